"""From a capture and a decision record to what was observed of one call, and whether that was expected.

Knows nothing of containers: give it files. Everything here is read off the wire at the PBX, but for the
decision, which the guard recorded.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from pbxguard import prompts
from pbxguard.lab import heard, listening, messages, topology
from pbxguard.lab.ladder import ladder
from pbxguard.lab.listening import BEGUN, HEARD, SOUND_WORDS, Heard, Part, Sound
from pbxguard.lab.messages import Texted
from pbxguard.lab.scenario import CallStep, Expect
from pbxguard.lab.wire import Capture, Leg, SipMessage
from pbxguard.pbx.address import uri_user
from pbxguard.store import DecisionRow

#: Plain values of ``Expect``, those that explain the others first.
_COMPARED = (
    "verdict", "reason", "sip_status", "answered", "callee_rang", "labels", "cli_class", "cli", "shown", "codec",
    "origin_status", "origin_heard", "origin_codec",
)  # fmt: skip

#: How the faults begin that say that too little of a sound was heard.
_OF_SOUND = ("two_way_audio: ", "prompt: ", "heard: ", "callee_heard: ", "origin_heard: ")

TAG = messages.TAG
#: Seconds that a sound may last longer than it is before the words tell of it: two packets and the rounding.
PAUSE_S = 0.06
#: Names of the markers that the two ends play, as references.
CALLER, CALLEE = "marker caller", "marker callee"


@dataclass(frozen=True, slots=True)
class Piece:
    """A prompt or marker that somebody heard, whole or in part. Times are seconds.

    Attributes:
        name: ``intl_default_off`` or ``marker callee``.
        language: Of the prompt, "" for a marker.
        sound: ``whole``, ``cut`` or ``gaps``.
        span: From where to where it was heard, in the audio of the evidence.
        part: Which part of the reference that was.
        length: Of the whole reference.
        gaps: Where, in the audio, it was not heard meanwhile.
        share: How much of it was heard between its ends, 0 to 1: packets lost one by one make no gap of their own.
    """

    name: str
    language: str
    sound: str
    score: float
    span: tuple[float, float]
    part: tuple[float, float]
    length: float
    gaps: tuple[tuple[float, float], ...] = ()
    share: float = 1.0


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
        opted_in: The opt-in but for which the guard would have refused the call, in words.
        cli: The CLI as the guard recorded it.
        shown: The user part of From that the callee's telephone got.
        recorded: The guard recorded a decision about the call.
        two_way_audio: Each marker reached the other side.
        heard_by_caller: How well the callee's marker reached the caller, 0 to 1.
        heard_by_callee: How well the caller's marker reached the callee, 0 to 1.
        q850_zero: The PBX sent a Reason header with the invalid Q.850 cause 0.
        heard: What the caller heard in one word (``listening.Sound``), against the prompt that the guard chose, or
            the callee's marker where the call was answered.
        span: From where to where that was heard, seconds from the first packet; None when it was not.
        pieces: Every prompt and marker that the caller heard, in order.
        codec: Of the audio that came to the caller from the PBX.
        callee_heard: What the callee heard, against the caller's marker; "" when nobody was called.
        callee_pieces: Every prompt and marker that the callee heard.
        leaked: Name of a prompt that the callee heard, or the caller of an answered call; "" when none was.
        audio_ms: From the INVITE to the first packet that the caller was sent, None when there was none.
        total_ms: From the INVITE to the last message of the caller's leg.
        origin_status: Final status at the first leg of a call through a gateway: what the GSM caller's network, or
            the switch abroad, got in the end.
        origin_heard: What was heard there in one word, against the callee's marker where the call was answered, else
            against the prompt that the guard chose; "" for a call without such a leg.
        origin_score: How well that matched, 0 to 1.
        origin_codec: Of the audio that came there.
        origin_pieces: Every prompt and marker that was heard there.
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
    opted_in: str = ""
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
    heard: str = ""
    codec: str = ""
    span: tuple[float, float] | None = None
    pieces: tuple[Piece, ...] = ()
    callee_heard: str = ""
    callee_pieces: tuple[Piece, ...] = ()
    leaked: str = ""
    audio_ms: float | None = None
    total_ms: float | None = None
    origin_status: int | None = None
    origin_heard: str = ""
    origin_score: float = 0.0
    origin_codec: str = ""
    origin_pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """One call: what was observed, and where the files are.

    Attributes:
        disturbed: What befell links and programs meanwhile, one line each.
    """

    scenario: str
    title: str
    call_id: str
    call: CallStep
    expected: Expect | None
    observed: Observed
    faults: tuple[str, ...]
    folder: Path | None = None
    disturbed: tuple[str, ...] = ()
    text: Texted | None = None

    @property
    def passed(self) -> bool:
        return not self.faults

    @property
    def stuttered(self) -> bool:
        """It failed only in that parts of the right sound are missing: so it does where a machine stands still.

        What was expected was a sound that is whole, and nothing else was heard in its place.
        """
        seen, wanted = self.observed, self.expected
        if self.passed or wanted is None or seen.leaked:
            return False
        ends = {"heard": (wanted.heard, seen.heard), "callee_heard": (wanted.callee_heard, seen.callee_heard),
                "origin_heard": (wanted.origin_heard, seen.origin_heard)}  # fmt: skip
        asked = {name for name, (want, _) in ends.items() if want is not None}
        if wanted.two_way_audio is not None:
            asked |= {"heard", "callee_heard"}
        if wanted.prompt:
            asked.add("heard")
        return (
            all(fault.startswith(_OF_SOUND) for fault in self.faults)
            and all(want in (None, Sound.WHOLE) for want, _ in ends.values())
            and all(ends[name][1] in (Sound.WHOLE, Sound.CUT, Sound.GAPS) for name in asked)
            and wanted.prompt in (None, seen.prompt)
            and wanted.two_way_audio is not False
        )

    def as_json(self) -> dict[str, object]:
        """The call as DESIGN section 7 has it in ``report.json``."""
        found = self._as_json()
        if self.text is not None:
            more = self.text.as_json()
            observed = {**asdict(self.observed), **_table(more.pop("observed"))}
            found |= {"channel": "sms", "observed": observed} | more
        return found

    def _as_json(self) -> dict[str, object]:
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
            "disturbed": list(self.disturbed),
        }


def _table(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True, slots=True)
class Legs:
    """The legs of a call.

    Attributes:
        caller: Into the PBX; of a call that never reached it, its first leg.
        callee: From the PBX to a telephone; None when nobody was called.
        origin: The first leg of a call through a gateway, where its caller is.
        reached: The call reached the PBX.
    """

    caller: Leg
    callee: Leg | None
    origin: Leg | None = None
    reached: bool = True


def legs_of(capture: Capture, tag: str) -> Legs | None:
    """The legs of the call with that tag, or None when there is no INVITE with it."""
    tagged = [leg for leg in capture.calls().values() if leg.invite is not None and leg.invite.header(TAG) == tag]
    first = min(tagged, key=lambda leg: leg.invite.at, default=None)
    pbx = topology.PBX_ADDRESSES
    inbound = [leg for leg in tagged if leg.invite is not None and leg.invite.destination[0] in pbx]
    outbound = [leg for leg in tagged if leg.invite is not None and leg.invite.source[0] in pbx]
    if not inbound:
        return None if first is None else Legs(first, None, first, reached=False)
    origin = first if first is not inbound[0] else None
    return Legs(inbound[0], outbound[0] if outbound else None, origin)


def every_leg(capture: Capture, legs: Legs) -> list[Leg]:
    """All legs of the call: a gateway has some before the PBX, a ring group several to telephones."""
    tag = legs.caller.invite.header(TAG)
    known = {leg.call_id: leg for leg in (legs.caller, legs.callee, legs.origin) if leg is not None}
    if tag is not None:
        known |= {leg.call_id: leg for leg in capture.calls().values() if leg.invite.header(TAG) == tag}
    return list(known.values())


def messages_of(capture: Capture, legs: Legs) -> list[SipMessage]:
    """The messages of the call on all its legs, in order of time."""
    of_call = {leg.call_id for leg in every_leg(capture, legs)}
    return [message for message in capture.messages if message.call_id in of_call]


def names_of(wire: Sequence[SipMessage]) -> dict[str, str]:
    """Address -> actor name, as a ladder takes it; a telephone that is none of the lab's has that of its account.

    Its address is known by the INVITE between it and the PBX, whose To, or else From, has its number.
    """
    names = topology.names()
    found: dict[str, str] = {}
    for message in wire:
        if message.method != "INVITE" or message.status is not None:
            continue
        for address, other, header in (
            (message.destination, message.source, "to"), (message.source, message.destination, "from")
        ):  # fmt: skip
            known = names.get(address.ip, topology.YOURS)
            # A telephone may have put its own mark behind the number (baresip: -0x1).
            number = uri_user(message.header(header) or "").partition("-")[0]
            if other.ip in topology.PBX_ADDRESSES and known in (topology.YOURS, topology.HOST) and number:
                found[str(address)] = next((p.name for p in topology.PHONES if p.number == number), number)
    return names | found


def late_by(leg: Leg, decision: DecisionRow | None) -> float:
    """Seconds by which the guard's verdict came after the PBX had told the caller something; 0 when it did not.

    Guard and capture have the same clock, the host's.
    """
    if decision is None or leg.post_dial_ms is None:
        return 0.0
    decided = decision.at.timestamp() + decision.elapsed_us / 1e6
    return max(0.0, decided - leg.invite.at - leg.post_dial_ms / 1000)


def observe(legs: Legs, decision: DecisionRow | None, prompt_dir: Path) -> Observed:
    """What the two legs and the guard's record show; a verdict that came too late was none for this call."""
    caller = legs.caller
    references = _references(prompt_dir)
    verdict = None if late_by(caller, decision) else decision
    announced = _keys(verdict.prompt, verdict.extra["languages"]) if verdict is not None else ()
    wanted = (CALLEE,) if caller.answered else announced
    to_caller = listening.listen(caller.audio_to_caller(), references | _marker(CALLEE), wanted)
    pieces = _pieces(to_caller)
    name = _prompt_heard(to_caller)
    said = [piece for piece in pieces if piece.name == name]
    spoken = [piece for piece in said if f"{piece.name}/{piece.language}" in announced] or said
    to_callee = Heard(Sound.NOTHING)
    callee_pieces: tuple[Piece, ...] = ()
    if legs.callee is not None:
        audio = legs.callee.audio_to_callee()
        to_callee = listening.listen(audio, references | _marker(CALLER), (CALLER,))
        callee_pieces = _pieces(to_callee)
    heard_by_caller = to_caller.scores.get(CALLEE, 0.0) if legs.callee is not None else 0.0
    heard_by_callee = to_callee.scores.get(CALLER, 0.0)
    origin = Heard(Sound.NOTHING)
    if legs.origin is not None:
        origin = listening.listen(legs.origin.audio_to_caller(), references | _marker(CALLEE), wanted)
    leaks = [piece.name for piece in (*(pieces if caller.answered else ()), *callee_pieces) if piece.language]
    return Observed(
        verdict=verdict.verdict if verdict else "failed" if legs.reached else "none",
        reason=str(verdict.reason) if verdict else "guard_failed" if legs.reached else "",
        sip_status=caller.final_status,
        answered=caller.answered,
        callee_rang=legs.callee is not None and (legs.callee.rang or legs.callee.answered),
        prompt=name,
        prompt_score=min((piece.score for piece in spoken), default=0.0),
        post_dial_ms=None if caller.post_dial_ms is None else round(caller.post_dial_ms, 1),
        labels=tuple(verdict.labels) if verdict else (),
        opted_in=str(verdict.extra.get("opted_in", "")) if verdict else "",
        cli_class=decision.cli_class if decision else "",
        cli=decision.cli_raw if decision else "",
        display=_display(legs.callee),
        shown=_shown(legs.callee),
        early_media=any(p.status == 183 and p.has_sdp for p in caller.provisionals),
        languages=tuple(piece.language for piece in spoken),
        other_score=round(
            max((score for key, score in to_caller.scores.items() if _prompt_of(key) not in ("", name)), default=0.0),
            3,
        ),
        recorded=decision is not None,
        two_way_audio=min(heard_by_caller, heard_by_callee) >= HEARD,
        heard_by_caller=round(heard_by_caller, 3),
        heard_by_callee=round(heard_by_callee, 3),
        q850_zero=any("cause=0" in reason.replace(" ", "") for reason in _reasons_of_pbx(caller)),
        heard=str(to_caller.sound),
        codec=_codec(caller),
        span=to_caller.span,
        pieces=pieces,
        callee_heard=str(to_callee.sound) if legs.callee is not None else "",
        callee_pieces=callee_pieces,
        leaked=leaks[0] if leaks else "",
        audio_ms=_since_invite(caller, min((stream.at for stream in caller.streams_to_caller), default=None)),
        total_ms=_since_invite(caller, caller.messages[-1].at),
        origin_status=legs.origin.final_status if legs.origin is not None else None,
        origin_heard=str(origin.sound) if legs.origin is not None else "",
        origin_score=round(max((origin.scores.get(name, 0.0) for name in wanted), default=0.0), 3),
        origin_codec=_codec(legs.origin),
        origin_pieces=_pieces(origin),
    )


def _codec(leg: Leg | None) -> str:
    """Of the audio to the caller of that leg."""
    return next((stream.codec for stream in leg.streams_to_caller), "") if leg is not None else ""


def _since_invite(leg: Leg, at: float | None) -> float | None:
    return None if at is None else round((at - leg.invite.at) * 1000.0, 1)


def _keys(prompt: str, languages: Sequence[str]) -> tuple[str, ...]:
    """Names of the references that an announcement of this prompt is made of."""
    return tuple(f"{prompt}/{language}" for language in languages) if prompt else ()


def _prompt_of(key: str) -> str:
    """The prompt that a reference is of, or "" for a marker."""
    return key.partition("/")[0] if "/" in key else ""


def _prompt_heard(found: Heard) -> str:
    """The prompt that was heard best, in whatever language; "" for none."""
    ours = [part for part in found.parts if "/" in part.name]
    return _prompt_of(max(ours, key=lambda part: part.match.score).name) if ours else ""


def _pieces(found: Heard) -> tuple[Piece, ...]:
    return tuple(_piece(part) for part in found.parts)


def _piece(part: Part) -> Piece:
    name, _, language = part.name.partition("/")
    match = part.match
    score, length = round(match.score, 3), round(part.length_s, 2)
    return Piece(name, language, str(part.sound), score, match.span, match.part, length, match.gaps, match.share)


def faults(
    expected: Expect,
    observed: Observed,
    decision: DecisionRow | None = None,
    *,
    wanted_languages: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """Every difference between what was expected and what was observed, in words; the verdict's with its rule."""
    wrong = []
    for name in _COMPARED:
        want, got = getattr(expected, name), getattr(observed, name)
        if want is not None and want != got:
            wrong.append(f"{name}: expected {in_words(want)}, observed {in_words(got)}")
            if name == "verdict" and decision is not None and decision.verdict == got:
                wrong[-1] += f" by rule {decision.rule}" + (f" ({decision.detail})" if decision.detail else "")
    if expected.two_way_audio not in (None, observed.two_way_audio):
        want, got = in_words(expected.two_way_audio), in_words(observed.two_way_audio)
        wrong.append(
            f"two_way_audio: expected {want}, observed {got}: the caller heard {observed.heard_by_caller} of the "
            f"callee's marker ({observed.heard or 'nothing'}), the callee {observed.heard_by_callee} of the caller's "
            f"({observed.callee_heard or 'nothing'}); from {HEARD} on it is heard"
        )
    if expected.display is not None and expected.display not in observed.display:
        wrong.append(f"display: expected {expected.display!r} in it, observed {observed.display!r}")
    limit = expected.max_post_dial_ms
    if limit is not None and (observed.post_dial_ms is None or observed.post_dial_ms > limit):
        wrong.append(f"post-dial delay: expected at most {limit} ms, observed {observed.post_dial_ms} ms")
    if observed.q850_zero:
        wrong.append("a Reason header with Q.850 cause 0")
    return (*wrong, *_prompt_faults(expected, observed, wanted_languages))


def in_words(value: object) -> str:
    """An expected or observed value as a person reads it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {in_words(each)}" for key, each in value.items()) or "none"
    return "none" if value in ("", None) else str(value)


def heard_words(piece: Piece) -> str:
    """A prompt or marker as it was heard, in words: which part of it, and where the gaps are."""
    words = f"{piece.name}{f' ({piece.language})' if piece.language else ''} {piece.sound}"
    if piece.sound == Sound.CUT:
        words += f", {piece.part[0]:.2f} to {piece.part[1]:.2f} s of its {piece.length:.2f} s"
    pause = (piece.span[1] - piece.span[0]) - (piece.part[1] - piece.part[0])
    if pause >= PAUSE_S:
        words += f", with {pause:.2f} s of pause in it"
    if piece.gaps:
        words += f", not heard at {', '.join(f'{begin:.2f} to {end:.2f} s' for begin, end in piece.gaps)}"
    if piece.sound == Sound.GAPS:
        words += f", {piece.share:.0%} of it there"
    return words


def _prompt_faults(expected: Expect, observed: Observed, wanted_languages: tuple[str, ...]) -> list[str]:
    if expected.prompt is None:
        return []
    if not expected.prompt:
        if observed.prompt:
            return [f"prompt: expected none, observed {observed.prompt} (score {observed.prompt_score})"]
        return [f"prompt: expected none, observed {observed.leaked} at the callee"] if observed.leaked else []
    wrong = []
    least = BEGUN if expected.prompt_cut else HEARD
    if observed.prompt != expected.prompt or observed.prompt_score < least:
        wrong.append(
            f"prompt: expected {expected.prompt} with a score of {least} or more, "
            f"observed {observed.prompt or SOUND_WORDS[observed.heard or 'nothing']} ({observed.prompt_score})"
        )
    elif not expected.prompt_cut:
        partly = [piece for piece in observed.pieces if piece.name == expected.prompt and piece.sound != Sound.WHOLE]
        wrong += [f"prompt: expected {expected.prompt} whole, observed {heard_words(piece)}" for piece in partly]
    if wanted_languages and not expected.prompt_cut and observed.languages != wanted_languages:
        wrong.append(
            f"prompt languages: expected {in_words(wanted_languages)}, observed {in_words(observed.languages)}"
        )
    if not observed.early_media:
        wrong.append("the prompt was not early media: no 183 with SDP")
    return wrong


def write(
    folder: Path, capture: Capture, legs: Legs | None, evidence: Evidence, decision: DecisionRow | None
) -> None:
    """Put the bundle of one call into *folder*: ladder, decision, audio, result. The pcap is there already."""
    folder.mkdir(parents=True, exist_ok=True)
    if legs is not None:
        wire = messages_of(capture, legs)
        drawn = ladder(wire, names_of(wire))
        (folder / "ladder.txt").write_text(drawn, encoding="utf-8")
        sound = legs.caller.audio_to_caller()
        heard.write_wav(folder / "heard-by-caller.wav", sound if len(sound) else np.zeros(1, np.int16))
        if legs.callee is not None:
            heard.write_wav(folder / "heard-by-callee.wav", legs.callee.audio_to_callee())
        if legs.origin is not None:
            sound = legs.origin.audio_to_caller()
            heard.write_wav(folder / "heard-by-origin.wav", sound if len(sound) else np.zeros(1, np.int16))
    elif evidence.text is not None:
        drawn = ladder(messages.messages_of(capture, evidence.text.tag), topology.names())
        (folder / "ladder.txt").write_text(drawn, encoding="utf-8")
    if decision is not None:
        _write_json(folder / "decision.json", asdict(decision))
    _write_json(folder / "result.json", evidence.as_json())


def write_result(evidence: Evidence) -> None:
    """Put the result of a call that has a folder into it, in place of an earlier one."""
    if evidence.folder is not None:
        _write_json(evidence.folder / "result.json", evidence.as_json())


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1, default=str) + "\n", encoding="utf-8")


@cache
def _references(prompt_dir: Path) -> dict[str, heard.Samples]:
    return {
        f"{name}/{language}": heard.load_wav(prompts.path(name, language, prompt_dir))
        for name in prompts.names()
        for language in prompts.LANGUAGES
    }


@cache
def _marker(name: str) -> dict[str, heard.Samples]:
    return {name: heard.marker(name.removeprefix("marker "))}


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
