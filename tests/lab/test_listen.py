"""`lab up --listen`: a telephone on another host registers at the published address, is called and calls.

The other host is a container without any Docker network, joined to this one by a veth pair of its own.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

import docker
from pbxguard.lab import actors, topology
from pbxguard.lab.callers import Callers
from pbxguard.lab.evidence import Evidence
from pbxguard.lab.run import Stage
from pbxguard.lab.scenario import CallStep
from pbxguard.lab.waiting import wait_until
from pbxguard.lab.world import SOFTPHONE_IMAGE, World

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

HOST, OTHER = "198.19.255.1", "198.19.255.2"
ACCOUNT = next(phone for phone in topology.PHONES if phone.name == "engineer-zj")


@pytest.fixture(name="link")
def _link(tmp_path: Path, world: World) -> Iterator[str]:
    """A container that sees nothing but a cable to this host; its softphone is set up for the free account."""
    folder = tmp_path / "phone"
    folder.mkdir()
    accounts = (
        f"<sip:{ACCOUNT.number}@{HOST};transport=udp>;auth_pass={world.passwords.phones[ACCOUNT.number]};"
        "answermode=auto;regint=60;audio_codecs=PCMA/8000/1\n"
    )
    (folder / "accounts").write_text(accounts)
    (folder / "contacts").write_text("")
    (folder / "config").write_text(actors.softphone_config(OTHER))
    client = docker.DockerClient(base_url="unix:///var/run/docker.sock")
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


async def test_a_telephone_elsewhere_registers_and_is_heard(world: World, link: str, tmp_path: Path) -> None:
    """A softphone on another host registers at the published address, rings, answers, and audio goes both ways."""
    client = docker.DockerClient(base_url="unix:///var/run/docker.sock")
    try:
        world.up(HOST)
        client.containers.get(link).exec_run(["baresip", "-f", "/etc/baresip"], detach=True)
        wait_until(lambda: ACCOUNT.number in world.registered(), 15, "the telephone to register")
        call = await _call(world, tmp_path / "call")
    finally:
        client.close()
        world.down()
        world.up()

    assert world.server() == str(topology.PBX_ACCESS)
    assert call.observed.answered
    assert call.observed.two_way_audio, call.observed
