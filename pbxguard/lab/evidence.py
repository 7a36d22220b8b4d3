"""From a capture and a decision record to what was observed of one call, and whether that was expected.

Knows nothing of containers: give it files. Everything here is read off the wire at the PBX, but for the
decision, which the guard recorded.
"""

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from pbxguard import prompts
from pbxguard.lab import heard, topology
from pbxguard.lab.ladder import ladder
from pbxguard.lab.scenario import CallStep, Expect
from pbxguard.lab.wire import Capture, Leg
from pbxguard.pbx.address import uri_user
from pbxguard.store import DecisionRow

#: A prompt with this score was heard; a wrong prompt scores below 0.1, half a prompt about 0.5.
HEARD = 0.8
#: A prompt that the caller cut short shows at least this much of itself.
BEGUN = 0.1

TAG = "X-Pbxguard-Call"


@dataclass(frozen=True, slots=True)
class Observed:
    """What was observed of one call.

    Attributes:
        sip_status: Final status on the caller's leg, or None when there was none.
        early_media: A 183 with SDP was sent before the final status.
        prompt: Name of the prompt that was heard best, "" when none was.
        prompt_score: How well it matched, 0 to 1: the least of its languages.
        languages: Languages in which it was heard, in order.
        other_score: The best score of any other prompt: what a wrong prompt would get.
        cli: The CLI as the guard recorded it.
        shown: The user part of From that the callee's telephone got.
        recorded: The guard recorded a decision about the call.
        two_way_audio: Each marker reached the other side.
        heard_by_caller: How well the callee's marker reached the caller, 0 to 1.
        heard_by_callee: How well the caller's marker reached the callee, 0 to 1.
        q850_zero: The PBX sent a Reason header with the invalid Q.850 cause 0.
    """

    verdict: str
    reason: str
    sip_status: int | None
    answered: bool
    callee_rang: bool
    prompt: str
    prompt_score: float
    post_dial_ms: float | None
    labels: tuple[str, ...] = ()
    cli_class: str = ""
    cli: str = ""
    display: str = ""
    shown: str = ""
    early_media: bool = False
    recorded: bool = False
    languages: tuple[str, ...] = ()
    other_score: float = 0.0
    two_way_audio: bool = False
    heard_by_caller: float = 0.0
    heard_by_callee: float = 0.0
    q850_zero: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """One call: what was observed, and where the files are."""

    scenario: str
    title: str
    call_id: str
    call: CallStep
    expected: Expect | None
    observed: Observed
    faults: tuple[str, ...]
    folder: Path | None = None

    @property
    def passed(self) -> bool:
        return not self.faults

    def as_json(self) -> dict[str, object]:
        """The call as DESIGN section 7 has it in ``report.json``."""
        return {
            "scenario": self.scenario,
            "title": self.title,
            "call_id": self.call_id,
            "channel": "voice",
            "cli": self.call.cli,
            "callee": self.call.number,
            "trunk": self.call.trunk,
            "expected": None if self.expected is None else self.expected.model_dump(exclude_none=True),
            "observed": asdict(self.observed),
            "passed": self.passed,
            "faults": list(self.faults),
        }


@dataclass(frozen=True, slots=True)
class Legs:
    """The two legs of a call through the PBX; the second is None when nobody was called."""

    caller: Leg
    callee: Leg | None


def legs_of(capture: Capture, tag: str) -> Legs | None:
    """The legs of the call with that tag, or None when its INVITE never reached the PBX."""
    tagged = [leg for leg in capture.calls().values() if leg.invite is not None and leg.invite.header(TAG) == tag]
    pbx = topology.PBX_ADDRESSES
    inbound = [leg for leg in tagged if leg.invite is not None and leg.invite.destination[0] in pbx]
    outbound = [leg for leg in tagged if leg.invite is not None and leg.invite.source[0] in pbx]
    return Legs(inbound[0], outbound[0] if outbound else None) if inbound else None


def observe(legs: Legs, decision: DecisionRow | None, prompt_dir: Path) -> Observed:
    """What the two legs and the guard's record show."""
    caller = legs.caller
    sound = caller.audio_to_caller()
    to_caller = to_callee = 0.0
    if legs.callee is not None:
        to_caller = heard.match(sound, _marker("callee")).score
        to_callee = heard.match(legs.callee.audio_to_callee(), _marker("caller")).score
    scores = {key: heard.match(sound, reference) for key, reference in _references(prompt_dir).items()}
    found = {key: match for key, match in scores.items() if match.score >= BEGUN}
    name = max(found, key=lambda key: found[key].score)[0] if found else ""
    ours = sorted((match.start_s, language, match.score) for (n, language), match in found.items() if n == name)
    wanted = tuple(decision.extra["languages"]) if decision is not None else ()
    spoken = [entry for entry in ours if entry[1] in wanted] or ours
    return Observed(
        verdict=decision.verdict if decision else "failed",
        reason=str(decision.reason) if decision else "guard_failed",
        sip_status=caller.final_status,
        answered=caller.answered,
        callee_rang=legs.callee is not None and (legs.callee.rang or legs.callee.answered),
        prompt=name,
        prompt_score=round(min((entry[2] for entry in spoken), default=0.0), 3),
        post_dial_ms=None if caller.post_dial_ms is None else round(caller.post_dial_ms, 1),
        labels=tuple(decision.labels) if decision else (),
        cli_class=decision.cli_class if decision else "",
        cli=decision.cli_raw if decision else "",
        display=_display(legs.callee),
        shown=_shown(legs.callee),
        early_media=any(p.status == 183 and p.has_sdp for p in caller.provisionals),
        languages=tuple(entry[1] for entry in spoken),
        other_score=round(max((m.score for (n, _), m in scores.items() if n != name), default=0.0), 3),
        recorded=decision is not None,
        two_way_audio=min(to_caller, to_callee) >= HEARD,
        heard_by_caller=round(to_caller, 3),
        heard_by_callee=round(to_callee, 3),
        q850_zero=any("cause=0" in reason.replace(" ", "") for reason in _reasons_of_pbx(caller)),
    )


def faults(expected: Expect, observed: Observed, *, wanted_languages: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Every difference between what was expected and what was observed, in words."""
    wrong = []
    for name in ("verdict", "reason", "sip_status", "answered", "callee_rang"):
        want, got = getattr(expected, name), getattr(observed, name)
        if want != got:
            wrong.append(f"{name}: expected {want}, observed {got}")
    for name in ("labels", "two_way_audio", "cli_class", "cli", "shown"):
        want, got = getattr(expected, name), getattr(observed, name)
        if want is not None and want != got:
            wrong.append(f"{name}: expected {want}, observed {got}")
    if expected.two_way_audio and not observed.two_way_audio:
        wrong.append(f"markers: caller heard {observed.heard_by_caller}, callee heard {observed.heard_by_callee}")
    if expected.display is not None and expected.display not in observed.display:
        wrong.append(f"display: expected {expected.display!r} in it, observed {observed.display!r}")
    limit = expected.max_post_dial_ms
    if limit is not None and (observed.post_dial_ms is None or observed.post_dial_ms > limit):
        wrong.append(f"post-dial delay: expected at most {limit} ms, observed {observed.post_dial_ms} ms")
    if observed.q850_zero:
        wrong.append("a Reason header with Q.850 cause 0")
    return (*wrong, *_prompt_faults(expected, observed, wanted_languages))


def _prompt_faults(expected: Expect, observed: Observed, wanted_languages: tuple[str, ...]) -> list[str]:
    if not expected.prompt:
        if observed.prompt:
            return [f"prompt: expected none, heard {observed.prompt} (score {observed.prompt_score})"]
        return []
    wrong = []
    least = BEGUN if expected.prompt_cut else HEARD
    if observed.prompt != expected.prompt or observed.prompt_score < least:
        wrong.append(
            f"prompt: expected {expected.prompt} with a score of {least} or more, "
            f"heard {observed.prompt or 'none'} ({observed.prompt_score})"
        )
    if wanted_languages and not expected.prompt_cut and observed.languages != wanted_languages:
        wrong.append(f"prompt languages: expected {wanted_languages}, heard {observed.languages}")
    if not observed.early_media:
        wrong.append("the prompt was not early media: no 183 with SDP")
    return wrong


def write(
    folder: Path, capture: Capture, legs: Legs | None, evidence: Evidence, decision: DecisionRow | None
) -> None:
    """Put the bundle of one call into *folder*: ladder, decision, audio, result. The pcap is there already."""
    folder.mkdir(parents=True, exist_ok=True)
    if legs is not None:
        of_call = {legs.caller.call_id} | ({legs.callee.call_id} if legs.callee else set())
        messages = [message for message in capture.messages if message.call_id in of_call]
        (folder / "ladder.txt").write_text(ladder(messages, topology.names()), encoding="utf-8")
        sound = legs.caller.audio_to_caller()
        heard.write_wav(folder / "heard-by-caller.wav", sound if len(sound) else np.zeros(1, np.int16))
        if legs.callee is not None:
            heard.write_wav(folder / "heard-by-callee.wav", legs.callee.audio_to_callee())
    if decision is not None:
        _write_json(folder / "decision.json", asdict(decision))
    _write_json(folder / "result.json", evidence.as_json())


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1, default=str) + "\n", encoding="utf-8")


@cache
def _references(prompt_dir: Path) -> dict[tuple[str, str], heard.Samples]:
    return {
        (name, language): heard.load_wav(prompts.path(name, language, prompt_dir))
        for name in prompts.names()
        for language in prompts.LANGUAGES
    }


@cache
def _marker(name: str) -> heard.Samples:
    return heard.marker(name)


def _reasons_of_pbx(leg: Leg) -> list[str]:
    """Reason headers (RFC 3326) that the PBX sent; what the caller's side sends is not ours."""
    sent = (message for message in leg.messages if message.source == leg.callee)
    return [value for message in sent for value in message.header_values("reason")]


def _shown(callee: Leg | None) -> str:
    """The number that the callee's telephone got."""
    return uri_user(callee.invite.header("From") or "") if callee is not None and callee.invite is not None else ""


def _display(callee: Leg | None) -> str:
    """The display name that the callee's telephone got."""
    if callee is None or callee.invite is None:
        return ""
    sender = callee.invite.header("From") or ""
    return sender.partition("<")[0].strip().strip('"')
