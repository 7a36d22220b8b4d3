"""What can be said of the dialplan files without a PBX."""

import re
from pathlib import Path

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
