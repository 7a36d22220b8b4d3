"""What a scenario may ask beyond verdict and sound: messages, times, who rang, the guard's record, the PBX's CDR.

Values in, words out: every fault says what was expected and what was observed. Reads no file, places no call.
"""

import re
from collections.abc import Mapping, Sequence

from pbxguard.lab import topology
from pbxguard.lab.evidence import TAG, Legs, Observed
from pbxguard.lab.scenario import Expect, message_key
from pbxguard.lab.topology import PHONES
from pbxguard.lab.wire import Capture, Leg
from pbxguard.store import DecisionRow

#: No more of a peer's text than this is searched, and shown.
_SEARCHED, _SHOWN = 4096, 200


def legs_to_phones(capture: Capture, legs: Legs) -> tuple[Leg, ...]:
    """Every leg from the PBX to a telephone that belongs to the caller's; a call may ring at several."""
    tag = legs.caller.invite.header(TAG)
    if tag is None:
        return () if legs.callee is None else (legs.callee,)
    return tuple(
        leg
        for leg in capture.calls().values()
        if leg.invite is not None and leg.invite.source.ip in topology.PBX_ADDRESSES and leg.invite.header(TAG) == tag
    )


def phone_of(leg: Leg) -> str:
    """Which telephone a leg from the PBX went to: by its address in the lab, else by the number in To."""
    name = topology.names().get(leg.callee.ip, "")
    if any(phone.name == name for phone in PHONES):
        return name
    number = number_in(leg, "to")
    return next((phone.name for phone in PHONES if phone.number == number), number or name)


def number_in(leg: Leg, header: str) -> str:
    """The number in From or To of a leg's INVITE; a telephone may have put its own mark behind it (baresip: -0x1)."""
    found = re.search(r"sips?:(\+?[0-9]{1,40})", (leg.invite.header(header) or "")[:_SEARCHED])
    return found[1] if found else ""


def rang(legs: Sequence[Leg]) -> tuple[str, ...]:
    """The telephones that rang or answered, in the order in which they were called."""
    called = sorted((leg for leg in legs if leg.rang or leg.answered), key=lambda leg: leg.invite.at)
    return tuple(dict.fromkeys(map(phone_of, called)))


def times(leg: Leg) -> dict[str, float]:
    """Seconds from the INVITE to each thing that happened, by the names of ``By``."""
    found = {"ringing": next((p.at for p in leg.provisionals if p.status == 180), None)}
    if leg.final is not None:
        found["final"] = leg.final.at
        found["answer" if leg.answered else "end"] = leg.final.at
    if leg.answered and leg.bye is not None:
        found["end"] = leg.bye.at
    return {name: round(at - leg.invite.at, 3) for name, at in found.items() if at is not None}


def faults(
    expected: Expect,
    capture: Capture,
    legs: Legs,
    observed: Observed,
    decision: DecisionRow | None,
    cdr: Mapping[str, str],
) -> tuple[str, ...]:
    """Every difference, in words.

    Args:
        expected: What the scenario asks.
        capture: Where the legs are from.
        legs: Of the call.
        observed: What they show.
        decision: The guard's record, or None where it made none.
        cdr: The PBX's call detail record, empty where there is none.
    """
    wrong = [*_by(expected, legs.caller), *_sounds(expected, observed)]
    to_phones = legs_to_phones(capture, legs) if expected.rang is not None or expected.headers else ()
    if expected.rang is not None:
        names = sorted(_name(who) for who in expected.rang)
        if names != sorted(called := rang(to_phones)):
            wrong.append(f"rang: expected {_list(names)}, observed {_list(called)}")
    for key, pattern in expected.headers.items():
        wrong += _header(key, pattern, legs.caller, to_phones)
    return (*wrong, *_decided(expected, decision), *_recorded(expected, cdr))


def _sounds(expected: Expect, observed: Observed) -> list[str]:
    pairs = {name: (getattr(expected, name), getattr(observed, name)) for name in ("heard", "callee_heard")}
    return [
        f"{name}: expected {wanted}, observed {seen or 'no call'}"
        for name, (wanted, seen) in pairs.items()
        if wanted is not None and wanted != seen
    ]


def _decided(expected: Expect, decision: DecisionRow | None) -> list[str]:
    wrong = []
    for field, pattern in expected.decision.items():
        if decision is None:
            wrong.append(f"decision.{field}: expected /{pattern}/, observed no decision of the guard")
            continue
        value = getattr(decision, field)
        text = ",".join(value) if isinstance(value, tuple) else "" if value is None else str(value)
        if not re.search(pattern, text[:_SEARCHED]):
            wrong.append(f"decision.{field}: expected /{pattern}/, observed {_quoted(text)}")
    return wrong


def _recorded(expected: Expect, cdr: Mapping[str, str]) -> list[str]:
    wrong = []
    for column, pattern in expected.cdr.items():
        if column not in cdr:
            wrong.append(f"cdr.{column}: expected /{pattern}/, observed {_list(sorted(cdr), 'no CDR of the call')}")
        elif not re.search(pattern, cdr[column][:_SEARCHED]):
            wrong.append(f"cdr.{column}: expected /{pattern}/, observed {_quoted(cdr[column])}")
    return wrong


def _by(expected: Expect, leg: Leg) -> list[str]:
    seen = times(leg)
    wrong = []
    for name, limit in expected.by.model_dump(exclude_none=True).items():
        if name not in seen:
            told = ", ".join(str(p.status) for p in leg.provisionals) or "no answer"
            wrong.append(f"by.{name}: expected within {limit} s, observed none ({told}, then {leg.final_status})")
        elif seen[name] > limit:
            wrong.append(f"by.{name}: expected within {limit} s, observed after {seen[name]} s")
    return wrong


def _header(key: str, pattern: str | bool, caller: Leg, to_phones: Sequence[Leg]) -> list[str]:
    """Whether any of the messages that *key* names has the header as asked."""
    who, message, header = message_key(key)
    legs = [caller] if who == "caller" else [leg for leg in to_phones if who in ("callee", phone_of(leg))]
    shown = f"headers {key}"
    named = [m for leg in legs for m in leg.messages if _is(message, m.status, m.method)]
    if not named:
        there = dict.fromkeys(str(m.status or m.method) for leg in legs for m in leg.messages)
        return [f"{shown}: expected a {message} message, observed {_list(tuple(there), 'no message on that leg')}"]
    values = [value for each in named for value in each.header_values(header)]
    if pattern is True and not values:
        return [f"{shown}: expected the header, observed {message} without it"]
    if pattern is False and values:
        return [f"{shown}: expected no such header, observed {_quoted(values[0])}"]
    if isinstance(pattern, str) and not any(re.search(pattern, value[:_SEARCHED]) for value in values):
        return [f"{shown}: expected /{pattern}/, observed {_list([_quoted(v) for v in values], 'no such header')}"]
    return []


def _is(wanted: str, status: int | None, method: str) -> bool:
    if wanted.isalpha():
        return status is None and method == wanted
    return status is not None and re.fullmatch(wanted.replace("x", "[0-9]"), str(status)) is not None


def _name(who: str) -> str:
    return next((phone.name for phone in PHONES if phone.number == who), who)


def _list(values: Sequence[str], nothing: str = "none") -> str:
    return ", ".join(values[:10]) or nothing


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
