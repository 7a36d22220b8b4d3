"""The lab's telephones as programs, and what `lab softphones`, `lab up --listen` and `lab call` tell about them."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import docker
from pbxguard.lab import addresses, heard, topology
from pbxguard.lab.scenario import calls_box
from pbxguard.lab.scenariofile import load
from pbxguard.lab.topology import PHONES
from pbxguard.lab.waiting import wait_until
from pbxguard.lab.world import World
from pbxguard.resources import SCENARIOS

Run = Callable[..., "subprocess.CompletedProcess[str]"]

lab = pytest.mark.lab
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(name="client")
def _client() -> Iterator[Any]:
    """The Docker engine, without the lab's own code in between."""
    client = docker.DockerClient(base_url=os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
    try:
        yield client
    finally:
        client.close()


def command(tmp_path: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pbxguard", *words], capture_output=True, text=True, check=False,
        env=os.environ | {"PBXGUARD_STATE": str(tmp_path / "state")},
    )  # fmt: skip


def test_every_behaviour_and_program_has_a_telephone() -> None:
    """There is a telephone for each behaviour, and each program answers over UDP and over TCP."""
    running = [phone for phone in PHONES if phone.address is not None]

    assert {phone.behaviour for phone in PHONES} == {"answers", "declines", "rings", "busy", "absent"}
    assert {(phone.program, phone.transport) for phone in running if phone.behaviour == "answers"} == {
        (program, transport) for program in ("baresip", "twinkle") for transport in ("udp", "tcp")
    }
    assert len({phone.number for phone in PHONES}) == len(PHONES)


def test_the_demonstration_does_not_wait_for_telephones_that_it_never_calls() -> None:
    """The calls of `lab demo` need no telephone of the shared container; the scenarios of these telephones do."""
    scenarios = load(SCENARIOS)

    assert not calls_box([scenario for scenario in scenarios if scenario.demo])
    assert calls_box([scenario for scenario in scenarios if scenario.name.startswith("phone-rings-out")])


@pytest.mark.parametrize(
    "address", ["192.0.2.77", "0.0.0.0", "224.0.0.1", "::1", "telephone", "1.2.3", "", "١.1.1.1"]
)
def test_listen_on_what_is_no_address_of_this_host(tmp_path: Path, address: str) -> None:
    """`lab up --listen` with another's address is one line that names this host's, and nothing is started."""
    done = command(tmp_path, "lab", "up", "--listen", address)

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("pbxguard: --listen")
    assert re.search(r"this host has|not an address of this host; it has", done.stderr)
    assert not (tmp_path / "state" / "lab").exists()


def test_addresses_of_this_host() -> None:
    """The loopback address is one of them; the lab's own networks are not."""
    there = addresses.own()

    assert "127.0.0.1" in map(str, there)
    assert not any(address in topology.HOME.access for address in there)
    assert addresses.require_own("127.0.0.1", "--listen") == "127.0.0.1"


def test_softphones_of_a_lab_that_is_not_up(tmp_path: Path) -> None:
    """The accounts are told with what to type, to dial and to start first."""
    done = command(tmp_path, "lab", "softphones")
    wide = done.stdout.partition("To dial from it")

    assert done.returncode == 0
    assert "The lab is not up: pbxguard lab up" in done.stdout
    for phone in PHONES:
        assert phone.number in (wide[0] if phone.is_free else wide[2])
    assert "over UDP or TCP" in wide[0]
    assert "lab up --listen ADDRESS" in wide[0]
    assert "*43" in done.stdout
    assert all(len(line) <= 120 for line in done.stdout.splitlines())


@lab
def test_softphones_while_the_lab_is_up(world: World, pbxguard: Run) -> None:
    """Every account has its transport, and whether anybody is registered with it; what is free is nobody's."""
    accounts = {a["number"]: a for a in json.loads(pbxguard("lab", "softphones", "--json").stdout)}

    for phone in PHONES:
        account = accounts[phone.number]
        assert account["registered"] == (phone.address is not None)
        assert account["in_use"] != phone.is_free
        assert account["transport"] == phone.transport
        assert account["transports"] == (["udp", "tcp"] if phone.is_free else [phone.transport])


@lab
def test_telephones_register_over_their_transport(world: World) -> None:
    """The PBX itself knows which of the telephones are there over TCP."""
    contacts = world.console("pjsip show contacts").lower()

    for phone in PHONES:
        found = re.search(rf"contact: +{phone.number}/sip:(\S+)", contacts)
        assert (found is not None) == (phone.address is not None), phone.name
    detail = {p.name: world.console(f"pjsip show aor {p.number}").lower() for p in PHONES if p.address}
    assert {name for name, text in detail.items() if "transport=tcp" in text} == {"tcp-baresip", "tcp-twinkle"}


@lab
def test_no_two_twinkles_draw_the_same_numbers(world: World) -> None:
    """Each Twinkle of a PBX starts in a second of its own, for its branches are drawn from that second alone."""
    containers = {phone.container for phone in PHONES if phone.program == "twinkle"}
    assert 60 % len(containers) == 0  # else the second of the minute does not tell
    turns = set()
    for name in containers:
        _, text = world.engine.run(world.container(name), "cat", "/etc/telephones/twinkle/turn")
        turn, count = map(int, text.split())
        _, log = world.engine.run(world.container(name), "head", "-1", "/tmp/home/.twinkle/twinkle.log")
        began = re.search(r":(\d\d)\.\d+ ", log)
        assert began is not None, log
        assert (int(began[1]) % count, count) == (turn, len(containers))
        turns.add(turn)

    assert turns == set(range(len(containers)))


@lab
@pytest.mark.parametrize(
    ("callee", "said"),
    [
        ("engineer-zj", "nobody is registered as 13957100011 (engineer-zj); `pbxguard lab softphones` shows"),
        ("absent", "13957100024 (absent) is the telephone that is never registered"),
        ("13957100099", "no telephone of the lab has the number 13957100099"),
        ("5551234", "no telephone of the lab has the number 5551234"),
    ],
)
def test_call_to_nobody_says_why(pbxguard: Run, tmp_path: Path, callee: str, said: str) -> None:
    """A call by hand that rings nowhere names what is the matter; it is not put on the guard."""
    words = ("lab", "call", "--from", "13800138000", "--to", callee, "--trunk", "natl", "--evidence", str(tmp_path))
    text = pbxguard(*words)
    told = json.loads(pbxguard(*words, "--json").stdout)

    assert told["remark"].startswith(said)
    assert said in text.stdout or said in re.sub(r"[│\s]+", " ", text.stdout)
    assert "gave no verdict" not in text.stdout


@lab
def test_call_that_rings_has_no_remark(pbxguard: Run, tmp_path: Path) -> None:
    """A call that was answered, and one that the guard refused, are not remarked on."""
    for cli in ("13800138000", "+85261234567"):
        words = ("--from", cli, "--to", "zhang", "--trunk", "intl" if cli[0] == "+" else "natl")
        told = json.loads(pbxguard("lab", "call", *words, "--evidence", str(tmp_path), "--json").stdout)
        assert told["remark"] == ""


def test_call_to_a_name_that_is_none(tmp_path: Path) -> None:
    """A mistyped name is one line that lists the telephones."""
    done = command(tmp_path, "lab", "call", "--from", "1", "--to", "zhng", "--trunk", "natl")

    assert done.returncode == 2
    assert "'zhng' is no number and none of zhang, li" in done.stderr


@lab
def test_twinkle_hears_the_caller(world: World, client: Any, pbxguard: Run, tmp_path: Path) -> None:
    """What Twinkle's own sound card got is the caller's marker: it plays what it receives."""
    call = ("lab", "call", "--from", "13800138000", "--to", "li", "--trunk", "natl", "--evidence", str(tmp_path))
    assert pbxguard(*call).returncode == 0

    def played() -> bool:
        stream, _ = client.containers.get(world.container("li")).get_archive("/tmp/heard.wav")
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
            archive.extractall(tmp_path, filter="data")
        return heard.match(heard.load_wav(tmp_path / "heard.wav"), heard.marker("caller")).score >= 0.5

    wait_until(played, 20, "Twinkle to have written what it played")


@lab
def test_a_program_that_dies_ends_its_container(world: World, client: Any) -> None:
    """A telephone whose program is gone is not running, so that `lab status` tells it and `lab up` repairs it."""
    box = client.containers.get(world.container(topology.BOX))
    box.exec_run(
        ["bash", "-c", "for p in /proc/[0-9]*; do read -r n <$p/comm; [ $n != baresip ] || kill -9 ${p#/proc/}; done"]
    )
    try:
        wait_until(lambda: world.container(topology.BOX) not in world.engine.running(), 20, "the container to end")
        states = {row.name: row.state for row in world.status()}
        assert states["declines"] == states["rings"] == "not running"
    finally:
        world.up()

    assert {phone.number for phone in PHONES if phone.address} <= world.registered()
