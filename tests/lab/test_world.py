"""The lab as its users have it: up, down, status, doctor, call, softphones; and what goes wrong."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import docker
from pbxguard.config import Settings
from pbxguard.errors import LabUnavailable
from pbxguard.lab import topology
from pbxguard.lab.world import World
from pbxguard.store import Store

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_up_twice_changes_nothing(world: World) -> None:
    """A second `up` restarts no container and no handler."""
    before = world.handler.pid
    said: list[str] = []
    world.say = said.append

    world.up()

    assert said == []
    assert world.handler.pid == before


def test_networks_have_no_way_out(world: World) -> None:
    """The lab's networks are internal and in the benchmark range."""
    client = docker.DockerClient(base_url="unix:///var/run/docker.sock")
    try:
        networks = [n for n in client.networks.list(filters={"label": topology.LABEL}) if "listen" not in n.name]
        mine = [n for n in networks if n.attrs["Labels"].get(f"{topology.LABEL}.owner") == world.engine.owner]
        for network in mine:
            assert network.attrs["Internal"]
            assert network.attrs["IPAM"]["Config"][0]["Subnet"].startswith("198.18.")
        assert len(mine) == 2
    finally:
        client.close()


def test_doctor_hears_both_directions(pbxguard: Run) -> None:
    """`lab doctor` places a call and finds audio in both directions."""
    done = pbxguard("lab", "doctor")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "audio in both directions" in done.stdout
    assert "FAIL" not in done.stdout


def test_status_as_json(pbxguard: Run) -> None:
    """`lab status --json` lists every actor; the GOIP line and all softphones are registered."""
    done = pbxguard("lab", "status", "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)}

    assert done.returncode == 0
    assert rows["goip1"]["state"] == "registered"
    assert all(rows[p.name]["state"] == "registered" for p in topology.PHONES if p.address)


def test_softphones_as_json(pbxguard: Run) -> None:
    """`lab softphones --json` has all that a telephone asks for, and an account that nobody uses."""
    accounts = json.loads(pbxguard("lab", "softphones", "--json").stdout)

    assert all({"number", "user", "password", "server", "province"} <= set(account) for account in accounts)
    assert any(not account["in_use"] for account in accounts)


def test_call_then_explain(pbxguard: Run, tmp_path: Path) -> None:
    """A refused call says why, and `explain` finds it again by its Call-ID."""
    done = pbxguard(
        "lab", "call", "--from", "+85261234567", "--to", "zhang", "--trunk", "intl", "--json",
        "--evidence", str(tmp_path),
    )  # fmt: skip
    call = json.loads(done.stdout)
    why = json.loads(pbxguard("explain", call["call_id"], "--json").stdout)

    assert call["observed"]["sip_status"] == 603
    assert call["observed"]["prompt"] == "intl_default_off"
    assert why["reason"] == "intl_default_off"
    assert why["callee_key"] == "13957100001"


def test_opt_in_holds_from_the_next_call_on(pbxguard: Run, world: World, tmp_path: Path) -> None:
    """What `registry open` wrote is what the running handler decides by, without a restart."""
    assert pbxguard("registry", "open", "13957100003", "--class", "hmt").returncode == 0
    call = json.loads(
        pbxguard(
            "lab", "call", "--from", "+85261234567", "--to", "zhao", "--trunk", "intl", "--json",
            "--evidence", str(tmp_path),
        ).stdout
    )  # fmt: skip

    assert call["observed"]["verdict"] == "allow"
    assert call["observed"]["answered"]
    with Store.open(world.settings.store_url) as store:
        assert store.state("13957100003")


def test_hostile_arguments_of_call_are_refused(pbxguard: Run) -> None:
    """A line end in --from never gets as far as AMI."""
    done = pbxguard("lab", "call", "--from", "1\nAction: Command", "--to", "zhang", "--trunk", "intl")

    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_second_lab_is_refused(world: World, tmp_path: Path) -> None:
    """Another state folder's lab does not take this one's addresses; the message says whose it is."""
    with World(Settings(state=tmp_path)) as other, pytest.raises(LabUnavailable, match="another lab is up") as error:
        other.up()

    assert str(world.state) in str(error.value)


def test_down_of_a_lab_that_is_not_up(tmp_path: Path) -> None:
    """`down` on a lab that was never up removes nothing, twice."""
    with World(Settings(state=tmp_path)) as other:
        assert other.down() == 0
        assert other.down() == 0


def test_up_after_a_crash(world: World) -> None:
    """Dead containers, a dead handler and a container that lost its network are put right by `up`."""
    client = docker.DockerClient(base_url="unix:///var/run/docker.sock")
    try:
        client.containers.get("pbxguard-zhang").kill()
        client.containers.get("pbxguard-intl").remove(force=True)
    finally:
        client.close()
    world.handler.signal(signal.SIGKILL)

    world.up()

    states = {row.name: row.state for row in world.status()}
    assert states["zhang"] == "registered"
    assert states["intl"] == "running"
    assert states["handler"].startswith("running")


def test_up_after_the_pbx_died(world: World) -> None:
    """A PBX that was restarted knows its telephones again as soon as `up` returns."""
    client = docker.DockerClient(base_url="unix:///var/run/docker.sock")
    try:
        client.containers.get("pbxguard-pbx").kill()
    finally:
        client.close()

    world.up()

    assert {p.number for p in topology.PHONES if p.address} <= world.registered()


def test_handler_port_in_use(world: World, tmp_path: Path) -> None:
    """When somebody else has the handler's port, `up` says so in one line that names the port."""
    world.handler.stop()
    blocker = socket.create_server((str(topology.GUARD_ADDRESS), world.settings.asterisk.port))
    try:
        with pytest.raises(LabUnavailable, match=str(world.settings.asterisk.port)):
            world.handler.start(tmp_path)
    finally:
        blocker.close()
        world.handler.start(world.state)


def test_no_engine_is_one_clear_line(tmp_path: Path) -> None:
    """Without an engine the lab says what to do, with exit code 3."""
    done = subprocess.run(
        [sys.executable, "-m", "pbxguard", "lab", "up"], capture_output=True, text=True, check=False,
        env=os.environ | {"PBXGUARD_STATE": str(tmp_path), "DOCKER_HOST": f"unix://{tmp_path}/none.sock"},
    )  # fmt: skip

    assert done.returncode == 3
    assert "make lab" in done.stderr
    assert "Traceback" not in done.stderr
