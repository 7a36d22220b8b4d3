"""What `lab call` prints and leaves behind, at a terminal of 80 columns; and the exit codes that the README tells."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from pbxguard.lab import holders
from pbxguard.lab.world import World

pytestmark = pytest.mark.timeout(300)

Run = Callable[..., "subprocess.CompletedProcess[str]"]

README = Path(__file__).resolve().parents[2] / "README.md"
REFUSED = ("lab", "call", "--from", "+85261234567", "--to", "engineer-zj", "--trunk", "intl")
EXAMPLES = [
    (int(code), line)
    for code, cell in re.findall(r"^\| (\d) \| .* \| (.*) \|$", README.read_text(encoding="utf-8"), re.MULTILINE)
    for line in re.findall(r"`pbxguard (.*?)`", cell)
]


@pytest.mark.lab
def test_one_call_leaves_the_files_of_a_run(world: World, pbxguard: Run, tmp_path: Path) -> None:
    """`lab call` writes page, JSON and JUnit file beside the call's folder, says where; `lab show` has the call."""
    # (The shorter of the two prompts.)
    done = pbxguard("lab", "call", "--from", "+8613800138000", "--to", "zhang", "--trunk", "intl",
                    "--evidence", str(tmp_path))  # fmt: skip
    (run,) = tmp_path.iterdir()
    told = json.loads((run / "report.json").read_text())

    assert done.returncode == 0, done.stderr
    assert {path.name for path in run.iterdir()} == {"call", "report.html", "report.json", "junit.xml"}
    assert f"page      {run}/report.html" in done.stdout.splitlines()
    assert (told["run"], told["pbx"], told["passed"], told["failed"]) == (run.name, "asterisk", 1, 0)
    assert told["calls"][0]["observed"]["reason"] == "national_cli_on_intl_trunk"
    assert told["calls"][0]["call_id"] in (run / "report.html").read_text()
    assert ET.parse(run / "junit.xml").getroot().get("tests") == "1"
    assert pbxguard("lab", "show", "call", "--evidence", str(tmp_path)).returncode == 0


@pytest.mark.lab
def test_one_call_reads_well_at_80_columns(world: World, tmp_path: Path) -> None:
    """`lab call` and `lab show` break no word of what they tell of a call, and draw nothing wider than 80 columns."""
    environment = os.environ | {"PBXGUARD_STATE": str(world.state), "COLUMNS": "80"}

    def printed(*words: str) -> str:
        command = [sys.executable, "-m", "pbxguard", *words, "--evidence", "e"]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            stdin=subprocess.DEVNULL,
            env=environment,
            cwd=tmp_path,
        ).stdout

    told, shown = printed(*REFUSED), printed("lab", "show", "call")
    names = [line.split()[0] for line in told.splitlines() if not line.startswith(" ")]

    assert names == ["from", "trunk", "to", "heard", "verdict", "why", "evidence", "page", "more"]
    assert re.search(r"^from +\+85261234567$", told, re.MULTILINE)
    assert re.search(r"^to +13957100011 \(engineer-zj, zhejiang\)$", told, re.MULTILINE)
    assert "(intl_default_off)" in told
    assert [line for line in told.splitlines() if len(line) > 80 and " " in line[10:]] == []
    assert "INVITE (SDP)" in shown
    assert "intl_default_off zh" in shown
    assert [line for line in shown.splitlines() if any(mark in line for mark in "│┃·█") and len(line) > 80] == []


@pytest.mark.lab
@pytest.mark.parametrize(("code", "line"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_exit_codes_are_those_of_the_readme(code: int, line: str, tmp_path: Path) -> None:
    """Each command that the README names for an exit code ends with it, where nothing was set up."""
    done = subprocess.run(
        [sys.executable, "-m", "pbxguard", *line.split()], capture_output=True, text=True, check=False, cwd=tmp_path,
        stdin=subprocess.DEVNULL, env=os.environ | {"PBXGUARD_STATE": str(tmp_path / "state")},
    )  # fmt: skip

    assert done.returncode == code, done.stdout + done.stderr


def test_who_holds_a_lock_is_told(tmp_path: Path) -> None:
    """Another process that holds a file stands there with command and pid; one that is gone does not, nor oneself."""
    script = (
        "import os, sys; from pbxguard.lab import holders\n"
        "with holders.named(os.open('lock', os.O_RDWR | os.O_CREAT)): print(flush=True); sys.stdin.read()"
    )
    descriptor = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    try:
        with subprocess.Popen(
            [sys.executable, "-c", script, "lab", "goip", "--lines", "4", "x\n" * 99],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path,
        ) as other, holders.named(descriptor):  # fmt: skip
            assert other.stdout is not None
            other.stdout.readline()
            said = holders.others(descriptor)
            other.communicate(timeout=30)
        gone = holders.others(descriptor)
    finally:
        os.close(descriptor)

    assert re.fullmatch(rf": `pbxguard lab goip --lines 4 [x?]+\.\.\.` \(pid {other.pid}\)", said)
    assert gone == ""
