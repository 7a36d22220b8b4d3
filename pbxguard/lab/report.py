"""A run as files that people and machines read: report.json, junit.xml, report.html."""

import base64
import json
from pathlib import Path
from xml.etree import ElementTree as ET

from jinja2 import Environment, PackageLoader

from pbxguard import prompts
from pbxguard.lab.evidence import Evidence
from pbxguard.lab.run import Run
from pbxguard.lab.topology import PHONES
from pbxguard.packs import load as load_pack


def write(run: Run, pack_id: str) -> None:
    """Write all three into the run's folder."""
    text = json.dumps(run.as_json(), ensure_ascii=False, indent=1, default=str)
    (run.folder / "report.json").write_text(text + "\n", encoding="utf-8")
    _junit(run, run.folder / "junit.xml")
    (run.folder / "report.html").write_text(_html(run, pack_id), encoding="utf-8")


def heard_words(call: Evidence) -> str:
    """What the caller heard, in words."""
    seen = call.observed
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
    """The reason in plain English, its first sentence."""
    if call.observed.reason == "guard_failed":
        return "The handler gave no verdict; the trunk's failure policy decided."
    try:
        return load_pack(pack_id).text(call.observed.reason, "en").partition(". ")[0].rstrip(".") + "."
    except KeyError:
        return call.observed.reason


def _junit(run: Run, path: Path) -> None:
    suite = ET.Element(
        "testsuite",
        name=f"pbxguard {run.pbx}",
        tests=str(len(run.calls) + len(run.skipped)),
        failures=str(run.failed),
        skipped=str(len(run.skipped)),
        time=f"{run.seconds:.1f}",
    )
    for call in run.calls:
        case = ET.SubElement(suite, "testcase", classname=call.scenario, name=call.title)
        if call.faults:
            failure = ET.SubElement(case, "failure", message=_xml(call.faults[0]))
            folder = call.folder.name if call.folder else "-"
            failure.text = _xml("\n".join((*call.faults, f"evidence: {folder}/")))
    for skipped in run.skipped:
        case = ET.SubElement(suite, "testcase", classname=skipped["scenario"], name=skipped["scenario"])
        ET.SubElement(case, "skipped", message=_xml(skipped["why"]))
    ET.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


def _xml(text: str) -> str:
    """XML 1.0 has no place for control characters, and a fault may quote what a caller wrote."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _html(run: Run, pack_id: str) -> str:
    environment = Environment(loader=PackageLoader("pbxguard.lab"), autoescape=True)
    rows = []
    for call in run.calls:
        folder = call.folder
        files = sorted(p.name for p in folder.iterdir() if p.is_file()) if folder and folder.is_dir() else []
        sound = folder / "heard-by-caller.wav" if folder else None
        rows.append(
            {
                "call": call,
                "callee": callee_words(call),
                "heard": heard_words(call),
                "why": why_words(call, pack_id),
                "folder": folder.name if folder else "",
                "files": files,
                "ladder": _read(folder / "ladder.txt") if folder else "",
                "audio": base64.b64encode(sound.read_bytes()).decode() if sound and sound.is_file() else "",
            }
        )
    return environment.get_template("report.html").render(run=run, rows=rows, prompts=prompts.names())


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
