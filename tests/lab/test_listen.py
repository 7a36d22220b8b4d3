"""`lab up --listen`: a telephone on another host registers at the published address, is called and calls.

The other host is a container without any Docker network, joined to this one by a veth pair of its own.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

import docker
from pbxguard.lab import actors, heard, topology
from pbxguard.lab.callers import Callers
from pbxguard.lab.evidence import Evidence
from pbxguard.lab.run import Stage
from pbxguard.lab.scenario import CallStep
from pbxguard.lab.waiting import wait_until
from pbxguard.lab.world import SOFTPHONE_IMAGE, World

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

HOST, OTHER = "198.19.255.1", "198.19.255.2"
ACCOUNT = next(phone for phone in topology.PHONES if phone.name == "engineer-zj")
CALLED = next(phone for phone in topology.PHONES if phone.name == "zhang")


def _client() -> Any:
    return docker.DockerClient(base_url=os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))


def _account(world: World, transport: str) -> str:
    return (
        f"<sip:{ACCOUNT.number}@{HOST};transport={transport}>;auth_pass={world.passwords.phones[ACCOUNT.number]};"
        "answermode=auto;regint=60;audio_codecs=PCMA/8000/1\n"
    )


@pytest.fixture(name="link")
def _link(tmp_path: Path, world: World) -> Iterator[str]:
    """A container that sees nothing but a cable to this host; its softphone is set up for the free account."""
    folder = tmp_path / "phone"
    folder.mkdir()
    (folder / "accounts").write_text(_account(world, "udp"))
    (folder / "contacts").write_text("")
    (folder / "config").write_text(actors.softphone_config(OTHER))
    client = _client()
    container = client.containers.create(
        SOFTPHONE_IMAGE, network_mode="none", init=True, command=["sleep", "infinity"],
        labels={topology.LABEL: "test"},
        volumes={
            str(folder): {"bind": "/etc/baresip", "mode": "ro"},
            str(world.root / "markers"): {"bind": "/var/lib/pbxguard/markers", "mode": "ro"},
        },
    )  # fmt: skip
    try:
        container.start()
        container.reload()
        _cable(container.attrs["State"]["Pid"])
        yield container.id
    finally:
        container.remove(force=True)
        client.close()


def _cable(pid: int) -> None:
    with IPRoute() as host:
        host.link("add", ifname="pbxg-try", kind="veth", peer={"ifname": "eth0", "net_ns_fd": f"/proc/{pid}/ns/net"})
        index = host.link_lookup(ifname="pbxg-try")[0]
        host.addr("add", index=index, address=HOST, prefixlen=30)
        host.link("set", index=index, state="up")
    with IPRoute(netns=f"/proc/{pid}/ns/net", flags=0) as other:
        index = other.link_lookup(ifname="eth0")[0]
        other.addr("add", index=index, address=OTHER, prefixlen=30)
        other.link("set", index=index, state="up")


async def _call(world: World, folder: Path) -> Evidence:
    async with Callers.open(world.engine, world.passwords.ami) as callers:
        stage = Stage(world, world.state, callers)
        step = CallStep(cli="13800138000", callee=ACCOUNT.number, trunk="natl")
        return await stage.call(step, folder, scenario="listen", title="to a telephone elsewhere")


def _softphone(container: Any, *options: str) -> None:
    """Start the softphone there, or start it anew with other options."""
    container.exec_run(["sh", "-c", "test ! -f /tmp/pid || kill $(cat /tmp/pid)"])
    wait_until(lambda: "baresip" not in str(container.top()["Processes"]), 10, "the softphone to end")
    start = 'echo $$ >/tmp/pid; exec baresip -f /etc/baresip "$@"'
    container.exec_run(["sh", "-c", start, "sh", *options], detach=True)


def _hears(container: Any, folder: Path) -> bool:
    """Whether the softphone there has heard another softphone's marker in its last call."""
    stream, _ = container.get_archive("/tmp/heard.wav")
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
        archive.extractall(folder, filter="data")
    # Half of it is enough: the callee's begins with its answer, and the caller listens a moment later.
    return heard.match(heard.load_wav(folder / "heard.wav"), heard.marker("callee")).score >= 0.5


async def _calls_both_ways(
    world: World, telephone: Any, called: Any, folder: Path
) -> tuple[Evidence, dict[str, bool]]:
    """Evidence of a call to the telephone there, and who heard the other in the call that it places."""
    _softphone(telephone)
    wait_until(lambda: ACCOUNT.number in world.registered(), 15, "the telephone to register")
    call = await _call(world, folder / "call")
    _softphone(telephone, "-e", f"/dial sip:{CALLED.number}@{HOST}", "-t", "8")
    wait_until(lambda: "baresip" in str(telephone.top()["Processes"]), 5, "the telephone to start")
    wait_until(lambda: "baresip" not in str(telephone.top()["Processes"]), 20, "the telephone's call to end")
    return call, {name: _hears(box, folder / name) for name, box in (("caller", telephone), ("callee", called))}


async def test_a_telephone_elsewhere_is_called_and_calls(world: World, link: str, tmp_path: Path) -> None:
    """A softphone on another host registers at the published address, by UDP and by TCP, is called and calls; both
    sides are heard.
    """
    client = _client()
    seen = {}
    try:
        world.up(HOST)
        telephone, called = client.containers.get(link), client.containers.get(world.container(CALLED.name))
        for transport in ("udp", "tcp"):
            (tmp_path / "phone" / "accounts").write_text(_account(world, transport))
            seen[transport] = await _calls_both_ways(world, telephone, called, tmp_path / transport)
            wait_until(lambda: ACCOUNT.number not in world.registered(), 15, "the telephone to be gone")
    finally:
        client.close()
        world.down()
        world.up()

    assert world.server() == str(topology.HOME.pbx_access)
    for transport, (call, hears) in seen.items():
        assert call.observed.answered, transport
        assert call.observed.two_way_audio, (transport, call.observed)
        assert hears == {"caller": True, "callee": True}, transport
