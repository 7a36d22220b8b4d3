"""A text of a scenario: what the wire and the other ends show of it, and whether that was expected. Values only.

A MESSAGE belongs to a text by the lab's own tag, which both PBXs of the lab send on. What a text says is somebody
else's: it is compared and written as data, and bounded where it is shown.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from pbxguard.lab import topology
from pbxguard.lab.scenario import ExpectText, TextStep
from pbxguard.lab.wire import Capture, SipMessage
from pbxguard.pbx.address import uri_user

__all__ = ["TAG", "Leg", "TextObserved", "Texted", "done", "faults", "legs", "messages_of", "words"]

TAG = "X-Pbxguard-Call"
#: No more of a text is shown.
_SHOWN = 80
#: Answers that ask for a password, after which the MESSAGE comes again.
_CHALLENGES = (401, 407)


@dataclass(frozen=True, slots=True)
class Leg:
    """One MESSAGE from one actor to another.

    Attributes:
        source: Name of the actor, and *target* the other's.
        sender: User of From.
        body: As it was sent.
        status: The final one, None while there is none.
        copies: How often it was sent, retransmissions and answers to a challenge aside.
    """

    source: str
    target: str
    sender: str
    body: str
    status: int | None
    copies: int = 1


@dataclass(frozen=True, slots=True)
class TextObserved:
    """What became of a text.

    Attributes:
        answer: What the sender's side was told: ``OK`` of a bulk session, ``DONE`` of send_status.xml, or why not.
        message: Final status of the MESSAGE between gateway and PBX.
        phone: The telephone that took the MESSAGE from the PBX (2xx), "" for none.
        copies: How often the PBX sent it there.
        server: The SMS server got it as RECEIVE.
        gsm: The mobile network took it.
        report: TP-Status of the DELIVER that the SMS server got.
        sender: Whom its receiver was told as sender.
        bodies: The text as it arrived, by place: ``phone``, ``server``, ``gsm``.
    """

    answer: str = ""
    message: int | None = None
    phone: str = ""
    copies: int = 0
    server: bool = False
    gsm: bool = False
    report: int | None = None
    sender: str = ""
    bodies: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Texted:
    """A text that was sent, for its evidence."""

    tag: str
    step: TextStep
    expected: ExpectText
    observed: TextObserved

    def as_json(self) -> dict[str, object]:
        """What a text has beyond a call in ``report.json``; keys of the two never meet."""
        seen = asdict(self.observed)
        if len(set(seen["bodies"].values())) == 1:  # mostly: then once, and compared with what was expected
            seen["body"] = next(iter(seen["bodies"].values()))
        wanted = self.expected.model_dump(exclude_none=True)
        if not self.expected.bodies:
            wanted = {"body": self.step.whole} | {name: each for name, each in wanted.items() if name != "bodies"}
        return {"way": self.step.way, "expected": wanted, "observed": seen}


def messages_of(capture: Capture, tag: str) -> list[SipMessage]:
    """Requests of a text and their answers, in order of time."""
    asked = {_key(m) for m in capture.messages if _is_text(m, tag)}
    return [m for m in capture.messages if m.method == "MESSAGE" and _key(m) in asked]


def legs(capture: Capture, tag: str) -> list[Leg]:
    """The MESSAGEs with that tag, one for each pair of actors, in order of time."""
    names = topology.names()
    found: dict[tuple[str, str], Leg] = {}
    ids: dict[tuple[str, str], set[str]] = {}
    messages = messages_of(capture, tag)
    for request in messages:
        if not _is_text(request, tag):
            continue
        ends = names.get(request.source.ip, request.source.ip), names.get(request.destination.ip, "")
        answers = [m.status for m in messages if m.status is not None and _answers(m, request)]
        final = next((s for s in answers if s >= 200 and s not in _CHALLENGES), None)
        ids.setdefault(ends, set()).add(request.call_id)
        if final is None and ends in found and found[ends].status is not None:
            continue
        body = request.body.decode("utf-8", "replace")
        found[ends] = Leg(*ends, uri_user(request.header("From") or ""), body, final)
    return [replace(leg, copies=len(ids[ends])) for ends, leg in found.items()]


def done(found: Sequence[Leg], *, relayed: bool) -> bool:
    """Whether nothing more is to come: the first leg is refused, or each that there must be has its answer."""
    if not found or any(leg.status is None for leg in found):
        return False
    first = found[0].status or 0
    return first >= 300 or not relayed or len(found) > 1


def faults(step: TextStep, expected: ExpectText, observed: TextObserved) -> tuple[str, ...]:
    """Every difference between what was expected and what was observed, in words."""
    wrong = []
    for name in ("message", "phone", "server", "gsm", "report", "sender"):
        want, got = getattr(expected, name), getattr(observed, name)
        if want is not None and want != got:
            wrong.append(f"{name}: expected {_said(want)}, observed {_said(got)}")
    if observed.copies > 1:
        wrong.append(f"phone: expected the text once, observed {observed.copies} MESSAGEs")
    if expected.answer is not None and not re.search(expected.answer, observed.answer):
        wrong.append(f"answer: expected /{expected.answer}/, observed {_said(observed.answer)}")
    want = step.whole if expected.body is None else expected.body
    places: dict[str, str] = dict.fromkeys(observed.bodies, want) | dict(expected.bodies.items())
    for place, wanted in places.items():
        body = observed.bodies.get(place)
        if body is None:
            wrong.append(f"body at {place}: expected {_text(wanted)}, observed that none arrived")
        elif body != wanted:
            wrong.append(f"body at {place}: expected {_text(wanted)}, observed {_text(body)}")
    return tuple(wrong)


def words(observed: TextObserved) -> str:
    """Where it arrived, in words."""
    places = [
        *([f"the telephone of {observed.phone}"] if observed.phone else []),
        *(["the SMS server"] if observed.server else []),
        *(["the mobile network"] if observed.gsm else []),
    ]
    status = f", MESSAGE {observed.message}" if observed.message is not None else ""
    report = f", reported {observed.report}" if observed.report is not None else ""
    return f"text: {' and '.join(places) or 'nobody'} got it{status}{report}"


def _is_text(message: SipMessage, tag: str) -> bool:
    return message.method == "MESSAGE" and message.status is None and message.header(TAG) == tag


def _key(message: SipMessage) -> tuple[str, frozenset[str]]:
    return message.call_id, frozenset((message.source.ip, message.destination.ip))


def _answers(message: SipMessage, request: SipMessage) -> bool:
    return (
        message.call_id == request.call_id
        and message.cseq == request.cseq
        and message.source.ip == request.destination.ip
        and message.destination.ip == request.source.ip
    )


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in (None, "") else repr(value) if isinstance(value, str) else str(value)


def _text(body: str) -> str:
    more = f" … ({len(body)} characters)" if len(body) > _SHOWN else ""
    return f"{body[:_SHOWN]!r}{more}"
