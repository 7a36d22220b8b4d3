"""A telephone of the engineer's own: which of its registrations is called, and what is told when it is silent."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from own_phone import BUSY, RINGS, SILENT, OwnPhone

from pbxguard.lab.topology import PHONES
from pbxguard.lab.waiting import wait_until
from pbxguard.lab.world import World

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

Run = Callable[..., "subprocess.CompletedProcess[str]"]

OWN, OTHER = (next(phone for phone in PHONES if phone.name == name) for name in ("engineer-zj", "engineer-hlj"))
TO_OWN = ("lab", "call", "--from", "13800138000", "--to", OWN.name, "--trunk", "natl")


def test_a_telephone_that_was_restarted_is_the_one_that_rings(world: World, pbxguard: Run, tmp_path: Path) -> None:
    """Of two registrations of one account the newest alone gets the INVITE; the older one's program is gone."""
    with OwnPhone(world, OWN.number) as old:
        pass
    with OwnPhone(world, OWN.number) as new:
        assert new.address != old.address
        done = pbxguard(*TO_OWN, "--json", "--evidence", str(tmp_path))
        seen = json.loads(done.stdout)["observed"]
        invited = list(new.invites)

    assert seen["sip_status"] == 486, done.stderr
    assert len(set(invited)) == 1


def test_where_an_own_telephone_is_registered_from_is_told(world: World, pbxguard: Run) -> None:
    """`lab status` and `lab softphones` tell the address that an engineer's own telephone is registered from."""
    with OwnPhone(world, OWN.number) as phone:
        status = {row["name"]: row for row in json.loads(pbxguard("lab", "status", "--json").stdout)}
        accounts = {each["number"]: each for each in json.loads(pbxguard("lab", "softphones", "--json").stdout)}
        text = pbxguard("lab", "softphones", "--no-qr").stdout

    assert (status[OWN.name]["state"], status[OWN.name]["address"]) == ("registered", phone.address)
    assert accounts[OWN.number]["registered_from"] == phone.address
    assert f"registered from {phone.address}" in text
    assert all(status[each.name]["address"] == str(each.address) for each in PHONES if each.address)


@dataclass(frozen=True)
class Unanswered:
    """What became of two calls that nobody took, each at an own telephone."""

    silent: "subprocess.CompletedProcess[str]"
    silent_address: str
    rang: "subprocess.CompletedProcess[str]"


@pytest.fixture(name="unanswered", scope="module")
def _unanswered(world: World, tmp_path_factory: pytest.TempPathFactory) -> Unanswered:
    """Both at once, since each lasts half a minute and more."""

    def call(to: str, *options: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path_factory.mktemp("unanswered")
        return subprocess.run(
            [sys.executable, "-m", "pbxguard", "lab", "call", "--from", "13800138000", "--to", to, "--trunk", "natl",
             "--evidence", str(folder), *options],
            capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
            env=os.environ | {"PBXGUARD_STATE": str(world.state), "COLUMNS": "200"},
        )  # fmt: skip

    with (
        OwnPhone(world, OWN.number, SILENT) as silent,
        OwnPhone(world, OTHER.number, RINGS),
        ThreadPoolExecutor() as pool,
    ):
        calls = pool.submit(call, OWN.name), pool.submit(call, OTHER.name, "--json")
        return Unanswered(calls[0].result(), silent.address, calls[1].result())


def test_a_silent_telephone_is_named_with_its_address(unanswered: Unanswered, pbxguard: Run) -> None:
    """A telephone that is registered and answers no INVITE: which, where, and what to look at; and it is drawn in the
    ladder by its account's name.
    """
    done, address = unanswered.silent, unanswered.silent_address
    folder = re.search(r"^evidence +(\S+)$", done.stdout, re.MULTILINE)
    assert folder, done.stdout + done.stderr
    shown = pbxguard("lab", "show", folder[1]).stdout

    assert (
        f"but       the telephone at {address} that is registered as {OWN.number} did not answer the INVITE: "
        "is it still running, and does its NAT or firewall let UDP back?" in done.stdout
    )
    assert shown.splitlines()[3].split() == ["natl", "pbx", OWN.name]
    assert address.partition(":")[0] not in (Path(folder[1]) / "ladder.txt").read_text().splitlines()[0]


def test_a_telephone_that_rings_in_vain_is_named(unanswered: Unanswered) -> None:
    """Where a telephone rang and nobody took the call, it is told how long it rang."""
    call = json.loads(unanswered.rang.stdout)

    assert call["observed"]["callee_rang"]
    assert re.fullmatch(rf"nobody answered in \d+ s at {OTHER.name}, which rang", call["remark"])


def test_a_call_between_telephones_is_told_to_be_none_to_record(
    world: World, pbxguard: Run, tmp_path: Path
) -> None:  # fmt: skip
    """`lab record` sees a call that a telephone placed, and says that it cannot be recorded and which can."""
    recording = subprocess.Popen(
        [sys.executable, "-m", "pbxguard", "lab", "record", "none", "--wait", "8", "--scenarios", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL,
        env=os.environ | {"PBXGUARD_STATE": str(world.state), "COLUMNS": "200"},
    )  # fmt: skip
    with recording, OwnPhone(world, OWN.number, BUSY) as phone:
        wait_until(lambda: any((world.root / "captures").glob("record-*.pcap")), 30, "the recording to listen")
        phone.dial("13957100001")
        said, _ = recording.communicate(timeout=60)

    assert recording.returncode == 3
    assert (
        f"the call from {OWN.number} ({phone.address.partition(':')[0]}) to zhang was one between telephones" in said
    )
    assert f"pbxguard lab call --from {OWN.number} --to zhang --trunk natl" in said
    assert not list(tmp_path.iterdir())
