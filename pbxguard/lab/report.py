"""A run as files that people and machines read: report.json, junit.xml, report.html."""

import base64
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pbxguard.errors import BadInput
from pbxguard.lab import codecs, drawing, evidence, messages, show, topology
from pbxguard.lab.evidence import Evidence, Piece
from pbxguard.lab.heard import Samples
from pbxguard.lab.listening import SOUND_WORDS
from pbxguard.lab.run import Run
from pbxguard.lab.topology import PHONES
from pbxguard.lab.wire import Capture
from pbxguard.packs import load as load_pack

#: Seconds of one call's audio that are part of the page; its WAV file has the rest.
AUDIO_S = 60


def write(run: Run, pack_id: str) -> None:
    """Write all three into the run's folder."""
    text = json.dumps(run.as_json(), ensure_ascii=False, indent=1, default=str)
    (run.folder / "report.json").write_text(text + "\n", encoding="utf-8")
    _junit(run, run.folder / "junit.xml")
    (run.folder / "report.html").write_text(_html(run, pack_id), encoding="utf-8")


def heard_words(call: Evidence) -> str:
    """What the caller heard, in words; of a text where it arrived."""
    if call.text is not None:
        return messages.words(call.text.observed)
    seen = call.observed
    if seen.verdict == "none":
        answered = "answered by the gateway" if seen.answered else f"SIP {seen.sip_status} of the gateway"
        return f"{answered}; the PBX got no call" if seen.sip_status else "no final answer"
    if seen.answered:
        return "the callee" + (", both heard each other" if seen.two_way_audio else "")
    words = f"SIP {seen.sip_status}" if seen.sip_status else "no final answer"
    if seen.prompt:
        cut = " (cut short)" if call.expected is not None and call.expected.prompt_cut else ""
        return f"the prompt “{seen.prompt}” in {' and '.join(seen.languages)}{cut}, then {words}"
    return words


def callee_words(call: Evidence) -> str:
    """The called number with the name of the telephone, where it is one of the lab's."""
    phone = next((p for p in PHONES if p.number == call.call.number), None)
    return call.call.number if phone is None else f"{call.call.number} ({phone.name}, {phone.province})"


def why_words(call: Evidence, pack_id: str) -> str:
    """The opt-in that let the call through, or the reason: in plain English, one sentence."""
    if call.text is not None:
        return "Texts are not screened yet."
    if call.observed.reason == "guard_failed":
        return "The handler gave no verdict; the trunk's failure policy decided."
    if call.observed.verdict == "none":
        return "The call never reached the PBX."
    if opted_in := call.observed.opted_in.partition(", else ")[0]:
        return f"{opted_in[0].upper()}{opted_in[1:]}."
    try:
        return load_pack(pack_id).text(call.observed.reason, "en").partition(". ")[0].rstrip(".") + "."
    except KeyError:
        return call.observed.reason


def _junit(run: Run, path: Path) -> None:
    """The form that CI systems read (the JUnit of Jenkins): a failure has its cause and where the evidence lies."""
    suite = ET.Element(
        "testsuite",
        name=f"pbxguard {run.pbx}",
        tests=str(len(run.calls) + len(run.skipped)),
        failures=str(run.failed),
        errors="0",
        skipped=str(len(run.skipped)),
        time=f"{run.seconds:.1f}",
    )
    for call in run.calls:
        seconds = f"{(call.observed.total_ms or 0.0) / 1000:.3f}"
        case = ET.SubElement(suite, "testcase", classname=_xml(call.scenario), name=_xml(call.title), time=seconds)
        if call.faults:
            failure = ET.SubElement(case, "failure", message=_xml(call.faults[0]), type="difference")
            folder = (run.folder / call.folder.name).resolve() if call.folder else None
            elapsed = f"{seconds} s from the INVITE to the last message"
            told = [
                *call.faults,
                f"elapsed: {elapsed}, post-dial delay {_milliseconds(call.observed.post_dial_ms)}",
                f"the caller heard: {SOUND_WORDS.get(call.observed.heard, call.observed.heard) or 'not looked at'}",
            ]
            if call.text is not None:
                told = [*call.faults, heard_words(call)]
            if folder is not None:
                page = (run.folder / "report.html").resolve().as_uri()
                told += [f"evidence: {folder.as_uri()}/", f"report: {page}#{folder.name}"]
            failure.text = _xml("\n".join(told))
    for skipped in run.skipped:
        case = ET.SubElement(suite, "testcase", classname=skipped["scenario"], name=skipped["scenario"], time="0")
        ET.SubElement(case, "skipped", message=_xml(skipped["why"]))
    ET.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


def _milliseconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f} ms"


def _xml(text: str) -> str:
    """XML 1.0 has no place for control characters, and a fault may quote what a caller wrote."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True, slots=True)
class _Audio:
    """What one party heard, for the page."""

    who: str
    file: str
    sound: str
    wave: drawing.Wave | None
    opus: str
    pieces: tuple[Piece, ...]


def _html(run: Run, pack_id: str) -> str:
    environment = Environment(
        loader=PackageLoader("pbxguard.lab"), autoescape=True, undefined=StrictUndefined, finalize=_shown,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    style, script = (_asset(name) for name in ("report.css", "report.js"))
    return environment.get_template("report.html").render(
        run=run,
        rows=[_row(call, number, pack_id) for number, call in enumerate(run.calls, start=1)],
        verdicts=sorted({call.observed.verdict for call in run.calls}),
        trunks=sorted({call.call.trunk for call in run.calls}),
        style=Markup(style),  # noqa: S704  our own file, not text of a caller
        script=Markup(script),  # noqa: S704
        style_hash=_hash(style),
        script_hash=_hash(script),
        wave_width=drawing.WAVE_WIDTH,
        wave_height=drawing.WAVE_HEIGHT,
        words=dict(SOUND_WORDS) | {"": ""},
    )


def _shown(value: object) -> object:
    """Text as it may stand on the page: what does not print, or turns the direction of what follows, as its code."""
    return _xml(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _asset(name: str) -> str:
    return (files("pbxguard.lab") / "templates" / name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    """For the page's own Content-Security-Policy: no other script and no other style counts."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _row(call: Evidence, number: int, pack_id: str) -> dict[str, Any]:
    folder = call.folder if call.folder is not None and call.folder.is_dir() else None
    names = sorted(p.name for p in folder.iterdir() if p.is_file()) if folder else []
    decision: dict[str, Any] = {}
    if folder and "decision.json" in names:
        decision = json.loads((folder / "decision.json").read_text(encoding="utf-8"))
    result = json.loads(json.dumps(call.as_json(), default=str))
    ladder, sounds = _wire(folder, call) if folder else (None, [])
    return {
        "number": number,
        "id": folder.name if folder else f"call-{number}",
        "call": call,
        "seen": call.observed,
        "callee": callee_words(call),
        "heard": heard_words(call),
        "why": why_words(call, pack_id),
        "folder": folder.name if folder else "",
        "files": names,
        "ladder": ladder,
        "sounds": sounds,
        "decision": decision,
        "steps": show.steps(decision),
        "compared": show.compared(result),
        "timings": _timings(call),
    }


def _timings(call: Evidence) -> list[tuple[str, str]]:
    seen = call.observed
    if call.text is not None:
        return [("from the first MESSAGE to the last answer", _milliseconds(seen.total_ms))] if seen.total_ms else []
    found = [("post-dial delay", _milliseconds(seen.post_dial_ms))]
    if seen.audio_ms is not None:
        found.append(("first audio packet", _milliseconds(seen.audio_ms)))
        if seen.span is not None:
            what = "callee's marker" if seen.answered else "prompt"
            begin, end = (seen.audio_ms + at * 1000 for at in seen.span)
            found += [(f"{what} begins", f"{begin / 1000:.2f} s"), (f"{what} ends", f"{end / 1000:.2f} s")]
    if seen.total_ms is not None:
        found.append(("whole call", f"{seen.total_ms / 1000:.2f} s"))
    return found


def _wire(folder: Path, call: Evidence) -> tuple[drawing.Ladder | None, list[_Audio]]:
    """The ladder and the audio of a call, read from its capture again."""
    try:
        capture = Capture.load(folder / "call.pcap")
    except BadInput:
        return None, []
    if call.text is not None:
        wire = messages.messages_of(capture, call.text.tag)
        return (drawing.draw_ladder(wire, topology.names(), []) if wire else None), []
    leg = next((leg for leg in capture.calls().values() if leg.call_id == call.call_id), None)
    if leg is None:
        return None, []
    legs = evidence.legs_of(capture, leg.invite.header(evidence.TAG) or "") or evidence.Legs(leg, None)
    streams = [
        stream
        for each in evidence.every_leg(capture, legs)
        for stream in (*each.streams_to_caller, *each.streams_to_callee)
    ]
    wire = evidence.messages_of(capture, legs)
    ladder = drawing.draw_ladder(wire, evidence.names_of(wire), streams)
    seen = call.observed
    sounds = [_audio("caller", legs.caller.audio_to_caller(), seen.heard, seen.pieces)]
    if legs.callee is not None:
        sounds.append(_audio("callee", legs.callee.audio_to_callee(), seen.callee_heard, seen.callee_pieces))
    if legs.origin is not None and legs.reached:
        sounds.append(_audio("origin", legs.origin.audio_to_caller(), seen.origin_heard, seen.origin_pieces))
    return ladder, sounds


def _audio(who: str, samples: Samples, sound: str, pieces: tuple[Piece, ...]) -> _Audio:
    samples = samples[: AUDIO_S * codecs.RATE]
    spans = [(piece.sound, *piece.span, evidence.heard_words(piece)) for piece in pieces]
    spans += [("gap", begin, end, "not heard") for piece in pieces for begin, end in piece.gaps]
    opus = base64.b64encode(codecs.ogg_opus(samples)).decode() if len(samples) else ""
    return _Audio(show.PARTIES[who], f"heard-by-{who}.wav", sound, drawing.draw_wave(samples, spans), opus, pieces)
