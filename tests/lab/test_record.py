"""A call that was placed by hand becomes a scenario file that can be run."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_wire import ip_packets, pcap, sip

from pbxguard.errors import BadInput
from pbxguard.lab import record, scenariofile, schema
from pbxguard.lab.evidence import Legs
from pbxguard.lab.waiting import wait_until
from pbxguard.lab.wire import Capture
from pbxguard.lab.world import World
from pbxguard.store import DecisionRow

Run = Callable[..., "subprocess.CompletedProcess[str]"]

FRAMES = Path(__file__).parent.parent / "frames"

real = [pytest.mark.lab, pytest.mark.timeout(300)]

PLAIN = """\
title = "plain"
[[step]]
call = { cli = "1", callee = "zhang", trunk = "intl" }
[step.expect]
verdict = "block"
reason = "x"
sip_status = 603
"""

texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.booleans() | texts | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
)


@given(values)
def test_every_value_comes_back_from_toml(value: record.Value) -> None:
    """What is written as TOML is read back as it was, whatever a caller wrote into it."""
    line = record.toml({"x": value})

    assert "\n" not in line
    assert tomllib.loads(f"y = {line}")["y"] == {"x": value}


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 81, "-x"])
def test_a_name_is_a_file_name(tmp_path: Path, name: str) -> None:
    """A name that is none for a file is refused."""
    with pytest.raises(BadInput, match="name"):
        record.target(tmp_path, name, force=True)


def test_a_scenario_that_is_there_stays(tmp_path: Path) -> None:
    """A file of that name is not written over, unless asked for."""
    (tmp_path / "x.toml").write_text(PLAIN)

    with pytest.raises(BadInput, match="--force"):
        record.target(tmp_path, "x", force=False)
    assert record.target(tmp_path, "x", force=True) == tmp_path / "x.toml"


def test_all_or_nothing(tmp_path: Path) -> None:
    """A text that is no scenario leaves the old file as it was, and no other; a good one takes its place."""
    path = tmp_path / "x.toml"
    path.write_text("old")
    with pytest.raises(BadInput):
        record.write(path, PLAIN.replace("603", '"soon"'))
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("x.toml", "old")]

    assert record.write(path, PLAIN).cli == "1"
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("x.toml", PLAIN)]


def test_a_call_without_the_labs_tag_is_found_by_its_call_id() -> None:
    """A call that the lab did not place is known by its Call-ID; an unknown one is not there yet."""
    capture = Capture.load(FRAMES / "call-refused.pcap")
    (call_id,) = capture.calls()
    found = record.legs_of(capture, call_id)

    assert found is not None
    assert (found.caller.final_status, found.callee) == (403, None)
    assert record.legs_of(capture, "other") is None


@pytest.mark.parametrize(
    ("trunk", "keys"), [("intl", {"raw", "offer", "headers"}), ("goip1", set()), ("goip2", set())]
)
def test_the_invite_of_a_gateway_is_its_own(trunk: str, keys: set[str]) -> None:
    """Of a carrier's call it is written how the INVITE was, Remote-Party-ID too; of a gateway's call it is not."""
    more = "Remote-Party-ID: <sip:110@x>;party=calling\r\n"
    packet = ip_packets(
        ("198.18.0.21", 5060), ("198.18.0.10", 5060), sip("INVITE sip:13957100001@y SIP/2.0", more=more)
    )[0]
    (leg,) = Capture.read(pcap([(1.0, packet)])).calls().values()
    who = ("odd;", None, "", "13957100001", None)
    row = DecisionRow(leg.call_id, datetime.now(UTC), "voice", trunk, *who, "allow", "default")
    found = record._placed(row, Legs(leg, None))

    assert found.keys() - {"cli", "callee", "trunk"} == keys
    if keys:
        assert found["headers"] == {"Remote-Party-ID": "<sip:110@x>;party=calling"}


class TestReal:
    """With real calls."""

    pytestmark = real

    def test_the_last_call_becomes_a_scenario_that_passes(self, world: World, pbxguard: Run, tmp_path: Path) -> None:
        """`lab call`, then `lab record --last`: the file has what was seen, its list entry too, and passes."""
        caller = "13733335555"
        assert pbxguard("lists", "add", caller, "--subscriber", "13957100003").returncode == 0
        to_call = ("lab", "call", "--from", caller, "--to", "zhao", "--trunk", "natl")
        seen = json.loads(pbxguard(*to_call, "--json", "--evidence", str(tmp_path / "seen")).stdout)
        done = pbxguard("lab", "record", "refused", "--last", "--scenarios", str(tmp_path),
                        "--evidence", str(tmp_path / "seen"))  # fmt: skip

        assert done.returncode == 0, done.stderr
        assert f"run it: pbxguard lab run refused --scenarios {tmp_path}" in done.stdout
        (found,) = scenariofile.read(tmp_path / "refused.toml")
        (step,) = found.step
        assert (step.call.cli, step.call.callee, step.call.trunk) == (caller, "zhao", "natl")
        assert [(entry.pattern, entry.subscriber) for entry in step.given.lists] == [(caller, "zhao")]
        assert (step.expect.reason, step.expect.prompt) == (seen["observed"]["reason"], seen["observed"]["prompt"])
        assert step.expect.rang == ()
        first = (tmp_path / "refused.toml").read_text().splitlines()[0]
        assert (tmp_path / first.removeprefix("#:schema ")).resolve() == schema.FILE.resolve()
        again = pbxguard("lab", "record", "refused", "--last", "--scenarios", str(tmp_path))
        assert (again.returncode, again.stdout) == (2, "")
        assert "--force" in again.stderr
        ran = pbxguard("lab", "run", "refused", "--scenarios", str(tmp_path), "--evidence", str(tmp_path / "ran"))
        assert ran.returncode == 0, ran.stdout

    def test_the_next_call_becomes_a_scenario_that_passes(self, world: World, pbxguard: Run, tmp_path: Path) -> None:
        """`lab record` waits for the next call, sees it to its end, and writes who rang and that both were heard."""
        recording = subprocess.Popen(
            [sys.executable, "-m", "pbxguard", "lab", "record", "heard", "--wait", "60",
             "--scenarios", str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL,
            env=os.environ | {"PBXGUARD_STATE": str(world.state), "COLUMNS": "200"},
        )  # fmt: skip
        with recording:
            captures = world.root / "captures"
            wait_until(lambda: any(captures.glob("record-*.pcap")), 30, "the recording to listen")
            to_call = ("lab", "call", "--from", "13800138000", "--to", "li", "--trunk", "natl")
            assert pbxguard(*to_call, "--evidence", str(tmp_path / "seen")).returncode == 0
            said, _ = recording.communicate(timeout=60)

        assert recording.returncode == 0, said
        (found,) = scenariofile.read(tmp_path / "heard.toml")
        expect = found.step[0].expect
        assert (expect.verdict, expect.sip_status, expect.two_way_audio, expect.rang) == ("allow", 200, True, ("li",))
        assert not list(captures.glob("record-*"))
        ran = pbxguard("lab", "run", "heard", "--scenarios", str(tmp_path), "--evidence", str(tmp_path / "ran"))
        assert ran.returncode == 0, ran.stdout

    def test_no_call_is_one_clear_line(self, world: World, pbxguard: Run, tmp_path: Path) -> None:
        """Where no call comes in time, that is said, and nothing is written."""
        done = pbxguard("lab", "record", "none", "--wait", "1", "--scenarios", str(tmp_path))

        assert done.returncode == 3
        assert "no call came in by a trunk in 1 s" in done.stderr
        assert "`pbxguard lab call`" in done.stderr
        assert not list(tmp_path.iterdir())
        assert not list((world.root / "captures").glob("record-*"))
