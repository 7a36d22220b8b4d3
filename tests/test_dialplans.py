"""What can be said of the dialplan files without a PBX."""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from pbxguard import packs
from pbxguard.screening.numbering import read_callee

ROOT = Path(__file__).parents[1]
FILES = [*ROOT.glob("dialplans/asterisk/*.conf"), *ROOT.glob("pbxguard/lab/etc/*/extensions.conf")]
DIALPLAN = (ROOT / "dialplans" / "asterisk" / "pbxguard.conf").read_text()

_HEARD = r"\$\{(CALLERID|EXTEN|PJSIP_HEADER|STACK_PEEK|CHANNEL\(pjsip,(?!remote_addr))"


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_no_function_is_given_text_of_the_caller(path: Path) -> None:
    """No ``${NAME(...${what the caller wrote}...)}``: a bracket in it would end the function (pbx_variables.c)."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith(";")]
    wrong = [line for line in lines if re.search(r"\$\{[A-Z_]+\((?:[^${}]|\$\{[^{}]*\})*" + _HEARD, line)]

    assert [line for line in wrong if "DB_EXISTS" not in line] == []


@pytest.mark.parametrize(
    "callee", ["110", "119", "120", "122", "0571110", "010120", "+86110", "0086110", "+86571110", "008610119",
               "13957100001", "1100", "0110", "11", "57110", "+8613957100001", "+110", "00110", "95110", "0571"],
)  # fmt: skip
def test_emergency_numbers_of_the_dialplan_are_those_of_the_guard(callee: str) -> None:
    """The dialplan's own regular expression, for a dead guard, agrees with how the guard reads a callee."""
    found = re.search(r"Set\(LOCAL\(emergency\)=(\^.*\$)\)\)$", DIALPLAN, re.MULTILINE)
    assert found is not None
    pattern = found[1].replace("\\,", ",")

    assert bool(re.search(pattern, callee)) == (read_callee(callee, packs.load()).number_class == "emergency")


def steps_of(dialplan: str) -> list[str]:
    """The steps of the subroutine in order, without comments."""
    lines = [line.strip() for line in dialplan.splitlines()]
    return [line for line in lines if line.startswith(("exten", "same"))]


def test_transferred_call_is_not_asked_about_again() -> None:
    """The marker comes before all else, is set where a call is let through and nowhere else, and is inherited."""
    steps = steps_of(DIALPLAN)
    assert steps[0] == 'exten => screen,1,GotoIf($["${PBXGUARD_SCREENED}" != "1"]?first)'
    assert steps[1].endswith("?pass)")
    assert "REDIRECTING(count)" in steps[1]
    setting = [n for n, step in enumerate(steps) if "Set(" in step and "PBXGUARD_SCREENED" in step]
    allowed = next(n for n, step in enumerate(steps) if step.endswith("?blocked)"))
    assert setting == [allowed + 1]
    assert "Set(__PBXGUARD_SCREENED=1)" in steps[setting[0]]


def test_older_identity_header_is_read_only_where_there_is_no_newer_one() -> None:
    """A header costs 25 us: Remote-Party-ID is jumped over where P-Asserted-Identity is there, and never bare."""
    steps = steps_of(DIALPLAN)
    read = next(n for n, step in enumerate(steps) if "Remote-Party-ID" in step)
    assert 'GotoIf($["${pai}" != ""]?asserted)' in steps[read - 1]
    assert "&rpid=${URIENCODE(${REPLACE(x,\\),_)})}" in steps[read + 1]
    assert steps[read + 2].startswith("same => n(asserted),")
    assert any("Set(LOCAL(pai)=${URIENCODE(" in step for step in steps), "what stands in the comparison is one word"


def test_withheld_cli_is_gone_from_the_channel() -> None:
    """A call that connects without its CLI loses number, name and billing number, and is marked as prohibited."""
    steps = steps_of(DIALPLAN)
    start = next(n for n, step in enumerate(steps) if "n(withhold)" in step)
    branch = "\n".join(steps[start : start + 4])
    assert [text for text in ("CALLERID(all)=", "CALLERID(ani-all)=", "CALLERID(pres)=prohib", "Return()")
            if text not in branch] == []  # fmt: skip
    assert "withhold)" in next(step for step in steps if "?withhold" in step)


FREESWITCH = ET.parse(ROOT / "dialplans" / "freeswitch" / "pbxguard.xml").getroot()


def extensions() -> dict[str, ET.Element]:
    return {each.attrib["name"]: each for each in FREESWITCH.iter("extension")}


def test_freeswitch_does_not_ask_twice() -> None:
    """The extension for screened channels comes before the one that asks; both ways to go on set its marker."""
    found = extensions()
    assert list(found).index("pbxguard-screened") < list(found).index("pbxguard-screen")
    fields = [each.attrib["field"] for each in found["pbxguard-screened"].iter("condition")]
    assert fields == ["destination_number", "${pbxguard_screened}"]
    done = {name: [action.attrib.get("data", "") for action in each.iter("action")] for name, each in found.items()}
    assert [name for name in done if "pbxguard_screened=1" in done[name]] == ["pbxguard-allow", "pbxguard-withhold"]


def test_freeswitch_withholds_the_cli_everywhere() -> None:
    """Neither the outgoing INVITE nor a later display update has the number: the caller profile itself changes."""
    done = {(a.attrib["application"], a.attrib["data"]) for a in extensions()["pbxguard-withhold"].iter("action")}
    assert {("privacy", "full"), ("set_profile_var", "caller_id_number=anonymous"),
            ("set", "effective_caller_id_number=anonymous")} <= done  # fmt: skip
