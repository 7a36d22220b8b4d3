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
    assert "Set(LOCAL(pai)=${URIENCODE(${REPLACE(x,\\),_)})})" in steps[read + 1]
    assert "&rpid=${pai})" in steps[read + 2]
    assert 'GotoIf($["${pai}" = ""]?diverted)' in steps[read + 3]
    assert steps[read + 4].startswith("same => n(asserted),Set(LOCAL(x)=${PJSIP_HEADER(read,Privacy)")
    assert steps[read + 6].startswith("same => n(diverted),")
    assert any("Set(LOCAL(pai)=${URIENCODE(" in step for step in steps), "what stands in the comparison is one word"


def test_withheld_cli_is_gone_from_the_channel() -> None:
    """A call that connects without its CLI loses number, name and billing number, and is marked as prohibited."""
    steps = steps_of(DIALPLAN)
    start = next(n for n, step in enumerate(steps) if "n(withhold)" in step)
    branch = "\n".join(steps[start : start + 6])
    assert [text for text in ("CALLERID(all)=", "CALLERID(ani-all)=", "CALLERID(pres)=prohib",
                              "REDIRECTING(from-num-valid,i)=no", "REDIRECTING(orig-num-valid,i)=no", "Return()")
            if text not in branch] == []  # fmt: skip
    assert "withhold)" in next(step for step in steps if "?withhold" in step)


def test_only_a_callee_that_is_dialled_as_it_is_counts_as_an_emergency() -> None:
    """FILTER makes 110 of 1x1y0; the dialplan compares the lengths, so that such a callee is none."""
    steps = steps_of(DIALPLAN)
    [found] = [n for n, step in enumerate(steps) if "REGEX(" in step and "${emergency}" in step]
    assert steps[found - 3].endswith("Set(LOCAL(x)=${STACK_PEEK(1,e,1):0:64})")
    assert "Set(LOCAL(callee)=${FILTER(+0-9," in steps[found - 2]
    assert steps[found - 1].endswith(
        "ExecIf($[${LEN(${callee})} != ${LEN(${REPLACE(x,\\),_)})}]?Set(LOCAL(callee)=none))"
    )


def test_the_number_that_was_judged_is_shown() -> None:
    """Both numbers of the channel, and only where the guard names one."""
    steps = steps_of(DIALPLAN)
    first = next(n for n, step in enumerate(steps) if "Set(CALLERID(num)=" in step)
    assert steps[first - 1] == 'same => n,GotoIf($["${CUT(PBXGUARD_VERDICT,|,10)}" = ""]?pass)'
    assert steps[first + 1] == "same => n,Set(CALLERID(ani)=${CUT(PBXGUARD_VERDICT,|,10)})"


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
    assert {("privacy", "full"), ("set_profile_var", "caller_id_number=anonymous")} <= done
    (several,) = [data.split() for application, data in done if application == "multiset"]
    # The second and third: what the caller wrote in headers and in an ISUP body is not copied (mod_sofia.c).
    assert {
        "effective_caller_id_number=anonymous",
        "sip_copy_custom_headers=false",
        "sip_copy_multipart=false",
    } <= set(several)


def test_freeswitch_shows_the_number_that_was_judged() -> None:
    """The caller profile itself changes, before the call goes on, and only where the guard names a number."""
    found = extensions()
    assert list(found).index("pbxguard-shown") < list(found).index("pbxguard-allow")
    assert found["pbxguard-shown"].attrib["continue"] == "true"
    last = found["pbxguard-shown"].findall("condition")[-1]
    assert last.attrib == {"field": "${pbxguard_number}", "expression": "^.+$"}
    done = [a.attrib["data"] for a in last.iter("action")]
    assert [data.partition("=")[0] for data in done[:3]] == ["caller_id_number", "ani", "caller_id_name"]
    # Names may have blanks: the words of multiset are split at what no value of the guard holds.
    assert done[3].startswith("^^;sip_cid_type=;effective_caller_id_number=")


def freeswitch_fails_open(policy: str) -> bool:
    """Whether a call without a verdict passes, by the branches of the dialplan."""
    branch = extensions()["pbxguard-none-open"].findall("condition")[-1]
    assert branch.attrib["field"] == "${pbxguard_fail}"
    return re.search(branch.attrib["expression"], policy) is not None


@pytest.mark.parametrize(("policy", "is_open"), [("", True), ("open", True), ("Open", True), ("closed", False),
                                              ("Closed", False), ("opne", False), ("open ", False)])  # fmt: skip
def test_freeswitch_policy_that_is_mistyped_is_closed(policy: str, is_open: bool) -> None:
    """Only open lets a call pass, as on Asterisk; what is left over is refused without a condition."""
    assert freeswitch_fails_open(policy) == is_open
    assert [c.attrib["field"] for c in extensions()["pbxguard-none-closed"].iter("condition")] == [
        "destination_number"
    ]


def test_both_dialplans_spare_the_same_callees() -> None:
    """One regular expression, with a variable on each PBX; FreeSWITCH asks about the callee that the guard judged."""
    asterisk = re.search(r"Set\(LOCAL\(emergency\)=(\^.*\$)\)\)$", DIALPLAN, re.MULTILINE)
    assert asterisk is not None
    inline = dict(
        action.attrib["data"].split("=", 1)
        for action in extensions()["pbxguard-none"].iter("action")
        if action.attrib.get("inline") == "true"
    )
    assert inline == {"pbxguard_callee": "${sip_req_user}", "pbxguard_emergency": asterisk[1].replace("\\,", ",")}
    asked = extensions()["pbxguard-none-emergency"].findall("condition")[-1]
    assert asked.attrib == {"field": "${pbxguard_callee}", "expression": "${pbxguard_emergency}"}
    names = list(extensions())
    assert names.index("pbxguard-none") < names.index("pbxguard-none-emergency") < names.index("pbxguard-none-closed")
