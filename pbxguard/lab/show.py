"""One call's evidence as text for a terminal: its ladder, what was heard and when, the decision's steps, the faults.

Knows the files of a bundle (``evidence.write``); reads nothing else, and needs no lab.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pbxguard.errors import BadInput, UnknownName
from pbxguard.lab import evidence, heard
from pbxguard.lab.evidence import in_words
from pbxguard.lab.ladder import ladder, printable
from pbxguard.lab.wire import Capture

__all__ = ["Bundle", "compared", "drawn", "fault_lines", "find", "read", "steps", "timeline"]

MAX_FILE_BYTES = 4 * 1024 * 1024
#: Cells of a timeline, and of the words behind it.
CELLS, LEAST_CELLS, _WORDS = 48, 16, 56
_LISTED = 12
#: Characters of a Call-ID that tell it from the others of a run, and a name from a Call-ID.
CALL_ID = 8


@dataclass(frozen=True, slots=True)
class Bundle:
    """The evidence of one call as it lies on disk.

    Attributes:
        result: ``result.json``: scenario, expected, observed, faults.
        decision: ``decision.json``, or {} where the guard recorded none.
        ladder: ``ladder.txt``, or "" where nothing reached the PBX; ``drawn`` has it for a terminal.
    """

    folder: Path
    result: dict[str, Any]
    decision: dict[str, Any]
    ladder: str


def find(root: Path, wanted: str) -> Path:
    """The folder of a call: of the newest run that has it.

    Args:
        root: Folder of the runs, usually ``evidence``.
        wanted: A Call-ID or its beginning (``CALL_ID`` characters or more), a scenario's name, a folder's name or its
            path.

    Raises:
        UnknownName: No call of that name left evidence, or several did in the same run; the message names them.
    """
    direct = Path(wanted)
    if (direct / "result.json").is_file():
        return direct
    if not root.is_dir():
        raise UnknownName(
            f"{root}: no evidence here; place a call with `pbxguard lab run`, or say where with --evidence"
        )
    newest: list[str] = []
    for run in sorted((path for path in root.iterdir() if path.is_dir()), key=lambda path: path.name, reverse=True):
        folders = sorted(path.parent for path in run.glob("*/result.json"))
        newest = newest or [folder.name for folder in folders]
        found = [folder for folder in folders if folder.name == wanted] or [
            folder for folder in folders if _is_of(folder, wanted)
        ]
        if len(found) == 1:
            return found[0]
        if found:
            names = _listed([folder.name for folder in found])
            raise UnknownName(f"{wanted[:80]!r} fits several calls of {run.name}: {names}; give one of them")
    raise UnknownName(
        f"no call {wanted[:80]!r} in {root}; "
        + (f"the newest run has {_listed(newest)}" if newest else "there is no run with a call yet")
    )


def _is_of(folder: Path, wanted: str) -> bool:
    try:
        result = _json(folder / "result.json")
    except BadInput:
        return False
    return result.get("scenario") == wanted or (
        len(wanted) >= CALL_ID and str(result.get("call_id", "")).startswith(wanted)
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def read(folder: Path) -> Bundle:
    """Read the bundle of a call.

    Raises:
        BadInput: A file of it is no JSON object or too big; it is named.
    """
    decision, ladder = folder / "decision.json", folder / "ladder.txt"
    return Bundle(
        folder,
        _json(folder / "result.json"),
        _json(decision) if decision.is_file() else {},
        ladder.read_text(encoding="utf-8", errors="replace")[:MAX_FILE_BYTES] if ladder.is_file() else "",
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        value = json.loads(data) if len(data) <= MAX_FILE_BYTES else None
    except OSError as error:
        raise BadInput(f"{path}: cannot read it: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not the JSON that the lab wrote; place the call again") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path}: not the JSON that the lab wrote; place the call again")
    return value


def drawn(bundle: Bundle, width: int) -> str:
    """The ladder of the bundle's capture in that many cells; where there is no capture, as it was drawn then."""
    try:
        capture = Capture.load(bundle.folder / "call.pcap")
    except BadInput:
        return bundle.ladder
    call_id = str(bundle.result.get("call_id") or "")
    leg = capture.calls().get(call_id)
    if leg is None:
        return bundle.ladder
    legs = evidence.legs_of(capture, leg.invite.header(evidence.TAG) or "") or evidence.Legs(leg, None)
    wire = evidence.messages_of(capture, legs)
    return ladder(wire, evidence.names_of(wire), width)


#: Who is listened to, by the name in the evidence's files.
PARTIES = {
    "caller": "the caller",
    "callee": "the callee",
    "origin": "the caller at the other end of the gateway",
}


def timeline(bundle: Bundle, width: int = CELLS + _WORDS) -> Iterator[str]:
    """What each party heard, one line a prompt or marker, drawn over the time of the audio in about that width."""
    cells = max(LEAST_CELLS, min(CELLS, width - _WORDS))
    seen = bundle.result.get("observed") or {}
    for who, sound, pieces in (
        ("caller", seen.get("heard"), seen.get("pieces")),
        ("callee", seen.get("callee_heard"), seen.get("callee_pieces")),
        ("origin", seen.get("origin_heard"), seen.get("origin_pieces")),
    ):
        wav = bundle.folder / f"heard-by-{who}.wav"
        if not sound or not wav.is_file():
            continue
        seconds = len(heard.load_wav(wav)) / heard.RATE
        yield f"{PARTIES[who]} heard: {sound} ({seconds:.2f} s of audio, {wav.name})"
        for piece in pieces or []:
            begin, end = piece["span"]
            name = f"{piece['name']} {piece['language']}".strip()
            bar = _bar(begin, end, piece["gaps"], seconds, cells)
            line = f"  {bar} {begin:6.2f} to {end:5.2f} s  {printable(name, 40)}"
            first, last = piece["part"]
            extent = f", {first:.2f} to {last:.2f} of its {piece['length']:.2f} s" if piece["sound"] == "cut" else ""
            gaps = "".join(f", gap {a:.2f} to {b:.2f} s" for a, b in piece["gaps"])
            gaps += f", {piece['share']:.0%} of it there" if piece["sound"] == "gaps" and "share" in piece else ""
            yield f"{line}, {piece['sound']} ({piece['score']:.2f}){extent}{gaps}"


def _bar(begin: float, end: float, gaps: list[list[float]], seconds: float, cells: int) -> str:
    def cell(at: float) -> str:
        if any(first <= at < last for first, last in gaps):
            return "░"
        return "█" if begin <= at < end else "·"

    return "".join(cell((i + 0.5) * seconds / cells) for i in range(cells))


def steps(decision: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The rules that the guard asked, as ``decision.json`` has them: rule, outcome, what it saw, microseconds."""
    found = (decision.get("extra") or {}).get("steps") or []
    return [(str(rule), str(outcome), str(saw), f"{int(ns) / 1000:.1f}") for rule, outcome, saw, ns in found]


def fault_lines(faults: Sequence[str]) -> tuple[str, ...]:
    """The faults as a terminal shows them: what only follows from another verdict than expected is one line."""
    cause = next((n for n, fault in enumerate(faults) if fault.startswith("verdict: ")), None)
    if cause is None or len(faults) < cause + 3:
        return tuple(faults)
    return (*faults[: cause + 1], f"and so: {'; '.join(faults[cause + 1 :])}")


def compared(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """What was expected beside what was observed: name, both in words, and whether they are the same.

    Args:
        result: As ``result.json`` has it.
    """
    observed, faults = result.get("observed") or {}, result.get("faults") or []
    # Some of what is asked is looked for on the wire or in a record, and only the fault says what was there.
    told = {name: seen for name, seen in map(_told, faults) if name}
    rows = []
    for name, want in _asked(result.get("expected") or {}):
        if name in told:
            rows.append((name, want, told[name], False))
        elif name in observed:
            rows.append((name, want, in_words(observed[name]), True))
        else:
            rows.append((name, want, "as expected", True))
    return rows


def _asked(expected: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every single thing that a scenario asks, and how it reads."""
    for name, want in expected.items():
        if name == "by":
            yield from ((f"by.{what}", f"within {limit} s") for what, limit in want.items())
        elif name == "headers":
            yield from ((f"headers {key}", _header(wanted)) for key, wanted in want.items())
        elif name in ("decision", "cdr"):
            yield from ((f"{name}.{key}", f"/{pattern}/") for key, pattern in want.items())
        elif name == "max_post_dial_ms":
            yield "post-dial delay", f"at most {want} ms"
        elif name == "prompt_cut":
            yield from [("prompt_cut", "yes")] if want else []
        else:
            yield name, in_words(want)


def _header(wanted: Any) -> str:
    if isinstance(wanted, bool):
        return "there" if wanted else "not there"
    return f"/{wanted}/"


def _told(fault: str) -> tuple[str, str]:
    """Name and observed value of a fault's words."""
    found = re.match(r"(?P<name>.+?): expected .*?, observed (?P<seen>.*)", fault, re.DOTALL)
    return (found["name"], found["seen"]) if found else ("", "")
