"""The lab as its users have it: up, down, status, doctor, call, softphones; and what goes wrong."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import docker
from pbxguard.config import Settings
from pbxguard.errors import BadConfig, LabUnavailable
from pbxguard.lab import capture, topology
from pbxguard.lab import world as world_module
from pbxguard.lab.engine import Container, Engine
from pbxguard.lab.waiting import wait_until
from pbxguard.lab.world import ASTERISK_IMAGE, Missing, World
from pbxguard.store import Store

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(name="client")
def _client() -> Iterator[Any]:
    """The Docker engine, without the lab's own code in between."""
    client = docker.DockerClient(base_url=os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
    try:
        yield client
    finally:
        client.close()


def test_up_twice_changes_nothing(world: World) -> None:
    """A second `up` restarts no container and no handler."""
    before = world.handler.pid
    said: list[str] = []
    world.say = said.append

    world.up()

    assert said == []
    assert world.handler.pid == before


def test_networks_have_no_way_out(world: World, client: Any) -> None:
    """The lab's networks are internal and in the benchmark range."""
    networks = [n for n in client.networks.list(filters={"label": topology.LABEL}) if "listen" not in n.name]
    mine = [n for n in networks if n.attrs["Labels"].get(f"{topology.LABEL}.owner") == world.engine.owner]
    for network in mine:
        assert network.attrs["Internal"]
        assert network.attrs["IPAM"]["Config"][0]["Subnet"].startswith("198.18.")
    assert len(mine) == 2


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
        "lab", "call", "--from", "+8613800138000", "--to", "zhang", "--trunk", "intl", "--json",
        "--evidence", str(tmp_path),
    )  # fmt: skip
    call = json.loads(done.stdout)
    why = json.loads(pbxguard("explain", call["call_id"], "--json").stdout)

    assert call["observed"]["sip_status"] == 603
    assert call["observed"]["prompt"] == "system_blocklist"
    assert why["reason"] == "national_cli_on_intl_trunk"
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


@pytest.mark.parametrize("folder_there", [True, False])
def test_a_lab_that_has_ended_is_cleared(world: World, client: Any, tmp_path: Path, *, folder_there: bool) -> None:
    """Containers of a lab that a restart ended are no lab that is up; `up` removes them, and ends its handler."""
    state = tmp_path / "state"
    left = Engine(state)
    child = None
    try:
        sleeper = Container("pbxguard-left", ASTERISK_IMAGE, {"pbxguard-left": IPv4Address("198.18.9.2")},
                            command=("sleep", "60"))  # fmt: skip
        left.network("pbxguard-left", IPv4Network("198.18.9.0/24"), internal=True)
        left.start(sleeper)
        if folder_there:
            with World(Settings(state=state)) as ended:
                child = subprocess.Popen((sys.executable, "-c", "import time; time.sleep(300)", "serve"))
                (ended.root / "handler.pid").write_bytes(f"{child.pid}\n{ended.state}".encode())
        assert world.engine.other_owner() == str(state)

        client.containers.get("pbxguard-left").kill()

        assert world.engine.other_owner() is None
        world.up()
        assert world.engine.ended() == []
        assert client.networks.list(names=["pbxguard-left"]) == []
        assert client.containers.list(all=True, filters={"name": "pbxguard-left"}) == []
        assert child is None or child.wait(5) == -signal.SIGTERM
    finally:
        if child is not None:
            child.kill()
        left.remove_all()
        left.close()


def test_down_of_a_lab_that_is_not_up(tmp_path: Path) -> None:
    """`down` on a lab that was never up removes nothing, twice."""
    with World(Settings(state=tmp_path)) as other:
        assert other.down() == 0
        assert other.down() == 0


@pytest.mark.parametrize(
    ("polls", "stuck"),
    [
        ([{"li"}, {"zhang"}, {"li"}, {"zhang"}, {"li"}], set()),
        ([{"li"}, {"zhang"}, {"zhang"}, {"li"}, {"li"}], set()),
        ([{"li"}, {"li"}, {"li"}, {"li", "zhang"}], {"li"}),
        ([{"li", "zhang"}, {"li", "zhang"}, set(), {"li", "zhang"}, {"li", "zhang"}, {"li", "zhang"}], set()),
    ],
    ids=["in-turns", "with-a-break", "one-for-long", "all-but-once"],
)
def test_who_is_missing_for_long(polls: list[set[str]], stuck: set[str]) -> None:
    """Who has been missing for more than 20 s each time that the PBX was asked, every 8 s, and nobody before."""
    missing = Missing()
    found = [missing.for_long(names, 8.0 * number) for number, names in enumerate(polls)]

    assert found == [set()] * (len(polls) - 1) + [stuck]


@pytest.mark.parametrize(
    ("answers", "restart", "restarted"),
    [
        ([set(), set(), set(), set(), set(), {"1"}], True, ["pbxguard-li"]),
        ([None, None, None, None, None, {"1"}], True, []),
        ([set(), set(), set(), None, set(), set(), {"1"}], True, []),
        ([set(), set(), set(), set(), set(), {"1"}], False, []),
    ],
    ids=["missing", "the-pbx-does-not-answer", "the-pbx-did-not-answer-once", "during-a-call"],
)
def test_who_is_started_anew(
    monkeypatch: pytest.MonkeyPatch, answers: list[set[str] | None], restarted: list[str], *, restart: bool
) -> None:
    """A telephone whose number is missing in the PBX's answers for more than 20 s, once, and only in `up`."""
    asked = iter(answers)
    clock = itertools.count(0.0, 8.0)
    bare = object.__new__(World)
    done: list[str] = []
    said: list[str] = []
    values = {
        "pbx": "asterisk", "gateways": {}, "net": topology.HOME, "give_up": threading.Event(), "say": said.append,
        "engine": SimpleNamespace(restart=done.append), "_registered": lambda: next(asked),
        "_silent": lambda registered: {} if registered else {"li": ["1"]},
    }  # fmt: skip
    for name, value in values.items():
        setattr(bare, name, value)
    monkeypatch.setattr(world_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))

    bare.wait_ready(restart=restart)

    assert done == restarted
    assert len(said) == len(restarted)
    assert next(asked, "end") == "end"


def test_up_after_a_telephone_hung(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program hangs, its registration lapses and its container runs on: `up` restarts that one, and says so."""
    said: list[str] = []
    monkeypatch.setattr(world, "say", said.append)
    monkeypatch.setattr(world_module, "_STUCK_FOR", 1.0)
    before = set(world.engine.running())
    li = "13957100002"
    code, told = world.engine.run(world.container("li"), "sh", "-c", "kill -STOP $(pidof twinkle-console)")
    assert code == 0, told
    wait_until(lambda: li not in world.registered(), 60, "li's registration to lapse")
    assert set(world.engine.running()) == before

    world.up()

    assert li in world.registered()
    assert said == [f"restarting pbxguard-li: {li} did not register"]


def test_up_after_a_crash(world: World, client: Any) -> None:
    """Dead containers, a dead handler and a running container that lost its network are put right by `up`."""
    client.containers.get("pbxguard-zhang").kill()
    client.containers.get("pbxguard-intl").remove(force=True)
    client.networks.get("pbxguard-carrier").disconnect("pbxguard-natl")
    world.handler.signal(signal.SIGKILL)

    world.up()

    states = {row.name: row.state for row in world.status()}
    assert states["zhang"] == "registered"
    assert states["intl"] == "running"
    assert states["handler"].startswith("running")
    natl = client.containers.get("pbxguard-natl")
    assert natl.status == "running"
    assert natl.attrs["NetworkSettings"]["Networks"]["pbxguard-carrier"]["IPAddress"] == "198.18.0.22"


def test_up_after_the_handler_froze(world: World) -> None:
    """A handler that is stopped (SIGSTOP) accepts connections and answers none: `up` starts another."""
    frozen = world.handler.pid
    world.handler.signal(signal.SIGSTOP)

    world.up()

    assert frozen is not None
    assert world.handler.pid not in (None, frozen)
    assert not Path(f"/proc/{frozen}/cmdline").exists() or not Path(f"/proc/{frozen}/cmdline").read_bytes()


def test_up_after_a_run_was_killed(world: World, tmp_path: Path) -> None:
    """A handler on another state folder, as a killed `lab run` leaves it, is replaced by one on the lab's own."""
    world.handler.start(tmp_path)
    assert not world.handler.healthy(world.state)

    world.up()

    assert world.handler.healthy(world.state)
    assert f"PBXGUARD_STATE={world.state}".encode() in Path(f"/proc/{world.handler.pid}/environ").read_bytes()


def test_a_container_of_somebody_else_stays(world: World, client: Any) -> None:
    """A container that only has the name of one of the lab's is never removed; the message has the remedy."""
    client.containers.get("pbxguard-natl").remove(force=True)
    foreign = client.containers.create(ASTERISK_IMAGE, name="pbxguard-natl", command=["true"])
    try:
        with pytest.raises(LabUnavailable, match="docker rm -f pbxguard-natl"):
            world.up()
        foreign.reload()
    finally:
        foreign.remove(force=True)
        world.up()


def test_things_of_another_lab_stay(world: World, client: Any, tmp_path: Path) -> None:
    """Another lab's container and network of the same name are named with their owner, and stay."""
    before = client.networks.get("pbxguard-carrier").id, client.containers.get("pbxguard-natl").id
    engine = Engine(tmp_path)
    try:
        with pytest.raises(LabUnavailable, match="docker network rm pbxguard-carrier") as network:
            engine.network("pbxguard-carrier", topology.HOME.carrier, internal=True)
        with pytest.raises(LabUnavailable, match="docker rm -f pbxguard-natl") as container:
            engine.start(Container("pbxguard-natl", ASTERISK_IMAGE, {"pbxguard-carrier": topology.HOME.carrier[22]}))
    finally:
        engine.close()

    assert str(world.state) in str(network.value)
    assert str(world.state) in str(container.value)
    assert before == (client.networks.get("pbxguard-carrier").id, client.containers.get("pbxguard-natl").id)


def test_one_run_at_a_time(pbxguard: Run, world: World) -> None:
    """While scenarios are placed, whatever would disturb them is refused in one line; the handler stays."""
    before = world.handler.pid
    to_call = ("lab", "call", "--from", "13800138000", "--to", "zhang", "--trunk", "natl")
    with world.busy(alone=True):
        for words in (("lab", "run"), to_call, ("lab", "up"), ("lab", "down")):
            done = pbxguard(*words)
            assert (done.returncode, done.stdout) == (3, ""), words
            assert done.stderr.startswith("pbxguard: another `pbxguard lab` command uses this lab"), words
            assert len(done.stderr.splitlines()) == 1, words
            assert f"(pid {os.getpid()}); wait for it, or end it" in done.stderr, words
    with world.busy(alone=False), world.busy(alone=False), pytest.raises(LabUnavailable), world.busy(alone=True):
        pass

    assert world.handler.pid == before
    assert world.handler.healthy(world.state)


async def test_a_capture_that_does_not_start_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, client: Any
) -> None:
    """When tcpdump does not report in time, it is ended, and neither log nor pid file stays."""
    monkeypatch.setattr(capture, "START_LIMIT", -1.0)
    captures = world.root / "captures"
    with pytest.raises(LabUnavailable, match="tcpdump"):
        async with capture.capturing(world.engine, "pbxguard-pbx", captures, "late"):
            pass

    wait_until(lambda: "captures/late" not in str(client.containers.get("pbxguard-pbx").top()), 5, "tcpdump to go")
    assert not list(captures.glob("late.*"))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"ami": 1}', b'{"ami": "x\\ny"}'])
def test_damaged_passwords(tmp_path: Path, content: bytes) -> None:
    """A damaged secrets.json is one clear line that names the file and the remedy."""
    damaged = tmp_path / "lab" / "secrets.json"
    damaged.parent.mkdir()
    damaged.write_bytes(content)

    with pytest.raises(BadConfig, match="remove it") as error:
        World(Settings(state=tmp_path))

    assert str(damaged) in str(error.value)
    assert damaged.read_bytes() == content


def test_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """A state folder below a file is the same line and exit code as in every other command."""
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "pbxguard", "lab", "status"], capture_output=True, text=True, check=False,
        env=os.environ | {"PBXGUARD_STATE": str(tmp_path / "file" / "x")},
    )  # fmt: skip

    assert done.returncode == 2
    assert "cannot make the state folder" in done.stderr
    assert "set PBXGUARD_STATE" in done.stderr


def test_up_after_the_pbx_died(world: World, client: Any) -> None:
    """A PBX that was restarted knows its telephones again as soon as `up` returns."""
    client.containers.get("pbxguard-pbx").kill()

    world.up()

    assert {p.number for p in topology.PHONES if p.address} <= world.registered()


def test_handler_port_in_use(world: World, tmp_path: Path) -> None:
    """When somebody else has the handler's port, `up` says so in one line that names the port."""
    world.handler.stop()
    blocker = socket.create_server((str(topology.HOME.guard_address), world.settings.asterisk.port))
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


def test_doctor_without_an_engine(tmp_path: Path) -> None:
    """Without an engine the doctor's first finding says so, with the remedy, and exit code 1."""
    done = subprocess.run(
        [sys.executable, "-m", "pbxguard", "lab", "doctor"], capture_output=True, text=True, check=False,
        env=os.environ | {"PBXGUARD_STATE": str(tmp_path), "DOCKER_HOST": f"unix://{tmp_path}/none.sock"},
    )  # fmt: skip

    assert done.returncode == 1
    assert done.stdout.startswith("FAIL no Docker engine answers at ")
    assert "`make lab` sets one up" in done.stdout
    assert done.stderr == ""


def test_a_killed_demo_leaves_no_lab(world: World, client: Any, tmp_path: Path) -> None:
    """SIGTERM ends a demo with its lab; what SIGKILL leaves, the next demo takes down first."""

    def owners() -> set[str]:
        found = client.containers.list(all=True, filters={"label": f"{topology.LABEL}.owner"}, ignore_removed=True)
        return {container.labels[f"{topology.LABEL}.owner"] for container in found}

    def demo() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "pbxguard", "lab", "demo", "--evidence", str(tmp_path / "evidence")],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL,
            env=os.environ | {"COLUMNS": "200", "TMPDIR": str(tmp_path)},
        )  # fmt: skip

    world.down()
    try:
        with demo() as first:
            wait_until(lambda: list(tmp_path.glob("*/lab/handler.pid")), 60, "the first demo's handler")
            first.kill()
        [left] = owners()
        with demo() as second:
            wait_until(lambda: owners() - {left}, 60, "the second demo's containers")
            second.send_signal(signal.SIGTERM)
            said, _ = second.communicate(timeout=60)
        assert second.returncode == 128 + signal.SIGTERM, said
        assert "took down the lab of an earlier demo" in said
        assert not owners()
        assert not list(tmp_path.glob("pbxguard-demo-*"))
    finally:
        for owner in owners():
            with World(Settings(state=Path(owner))) as stray:
                stray.down()
        world.up()
