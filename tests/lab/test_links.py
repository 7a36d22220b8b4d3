"""Links that fail on demand, on real veths between network namespaces; no Docker needed, but root."""

import asyncio
import itertools
import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from pydantic import ValidationError
from pyroute2 import IPRoute, netns
from pyroute2.nftables.main import NFTables

from pbxguard.errors import LabUnavailable
from pbxguard.lab import links
from pbxguard.lab.links import Line, LinkFault, LinkUnsupported, applied
from pbxguard.lab.relay import LIMIT, Lane, Shape
from pbxguard.lab.waiting import wait_for, wait_until

A, B = "198.18.100.1", "198.18.100.2"
_NUMBERS = itertools.count(1)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@dataclass
class Town:
    """A hub with a bridge, as Docker has it, and two houses, ``a`` and ``b``, each on a veth of its own.

    The test's own thread is in the hub while it runs.
    """

    pids: dict[str, int]
    sockets: dict[str, socket.socket]
    processes: dict[str, "subprocess.Popen[bytes]"]

    def pid_of(self, actor: str) -> int:
        return self.pids[actor]

    def send(self, count: int, size: int = 172, *, every: float = 0.0, back: bool = False) -> list[float]:
        """Send *count* datagrams from a to b (or *back*), and wait for those that come; milliseconds of each."""
        here, there, to = ("b", "a", A) if back else ("a", "b", B)
        late: dict[int, float] = {}

        def take(wait: float) -> bool:
            if not select.select([self.sockets[there]], [], [], wait)[0]:
                return False
            data = self.sockets[there].recv(65536)
            number, sent = struct.unpack_from("<Id", data)
            late[number] = 1000 * (time.monotonic() - sent)
            return True

        while take(0):
            pass
        late.clear()
        for number in range(count):
            with suppress(OSError):  # a cut link says so
                self.sockets[here].sendto(
                    struct.pack("<Id", number, time.monotonic()).ljust(size, b"\x55"), (to, 4000)
                )
            until = time.monotonic() + every
            while take(max(0.0, until - time.monotonic())):
                pass
        while len(late) < count and take(1.5):
            pass
        return list(late.values())

    def state(self) -> object:
        """All that a fault may have changed: links, masters, aliases, qdiscs, tables; not what counts on."""
        found: list[object] = []
        for name in ("", *self.pids):
            with ExitStack() as stack:
                if name:
                    netns.pushns(f"/proc/{self.pids[name]}/ns/net")
                    stack.callback(netns.popns)
                ip = stack.enter_context(IPRoute())
                found += [
                    (name, x.get("ifname"), x["flags"] & 0x81, x.get("master"), x.get("ifalias") or "", x.get("mtu"))
                    for x in ip.get_links()
                ]
                found += [(name, q["index"], q.get_attr("TCA_KIND"), q["handle"]) for q in ip.get_qdiscs()]
                nft = stack.enter_context(NFTables())
                found += [(name, t.get_attr("NFTA_TABLE_NAME")) for t in nft.get_tables()]
        return sorted(found, key=str)

    def keepers(self) -> list[int]:
        """Processes that hold links, and are children of this one."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if parent == os.getpid() and b"pbxguard.lab.keeper" in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return found


@pytest.fixture(name="town")
def _town() -> Iterator[Town]:
    """Namespaces, veths and a bridge; and the check that a test left nothing else."""
    if os.geteuid() != 0:
        pytest.skip("namespaces and links need root")
    tag = f"pgt{os.getpid()}-{next(_NUMBERS)}"
    with ExitStack() as stack:
        for name in ("hub", "a", "b"):
            netns.create(f"{tag}-{name}")
            stack.callback(netns.remove, f"{tag}-{name}")
        town = Town({}, {}, {})
        for name in ("a", "b"):
            netns.pushns(f"{tag}-{name}")
            try:
                # a process that is in the namespace, as a container's first one is
                process = subprocess.Popen(["sleep", "600"])
                town.sockets[name] = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            finally:
                netns.popns()
            stack.callback(process.wait)
            stack.callback(process.kill)
            town.pids[name], town.processes[name] = process.pid, process
        netns.pushns(f"{tag}-hub")
        stack.callback(netns.popns)
        ip = stack.enter_context(IPRoute())
        ip.link("add", ifname="br0", kind="bridge")
        [bridge] = ip.link_lookup(ifname="br0")
        ip.link("set", index=bridge, state="up")
        ip.addr("add", index=bridge, address="198.18.100.254", prefixlen=24)
        for name, address in (("a", A), ("b", B)):
            space = town.pids[name]
            ip.link("add", ifname=f"out-{name}", kind="veth", peer={"ifname": "eth0", "net_ns_pid": space})
            [outer] = ip.link_lookup(ifname=f"out-{name}")
            ip.link("set", index=outer, master=bridge, state="up")
            netns.pushns(f"/proc/{space}/ns/net")
            try:
                with IPRoute() as inner:
                    [index] = inner.link_lookup(ifname="eth0")
                    inner.addr("add", index=index, address=address, prefixlen=24)
                    inner.link("set", index=index, state="up")
                    inner.link("set", index=1, state="up")
            finally:
                netns.popns()
            town.sockets[name].bind((address, 4000))
        wait_until(lambda: len(town.send(1)) == 1, 10, "the two to reach each other")
        before, files = town.state(), descriptors()
        yield town
        assert not town.keepers()
        if all(process.poll() is None for process in town.processes.values()):
            assert town.state() == before
        assert descriptors() <= files + 3  # the event loop's own
    assert not [name for name in netns.listnetns() if name.startswith(tag)]


METHODS = ["netem", "relay"]


@pytest.fixture(name="by", params=METHODS)
async def _by(request: pytest.FixtureRequest, town: Town) -> tuple[str, ...]:
    """Each way to shape a link; netem is skipped where the kernel has none."""
    if request.param == "netem":
        try:
            async with applied(town.pid_of, [LinkFault(actor="a", loss=1)], by=("netem",)):
                pass
        except LinkUnsupported as error:
            pytest.skip(str(error))
    return (request.param,)


# -- what it does to packets -------------------------------------------------------------------------------------


async def test_cut_and_restored(town: Town) -> None:
    """A cut link carries nothing either way; afterwards it carries all again."""
    async with applied(town.pid_of, [LinkFault(actor="a", cut=True)]) as lines:
        assert [str(line) for line in lines] == ["a eth0: cut both ways (link down)"]
        assert town.send(5) == []
        assert town.send(5, back=True) == []

    wait_until(lambda: len(town.send(5)) == 5, 10, "the link to be back")
    assert lines[0].until is not None


async def test_loss(town: Town, by: tuple[str, ...]) -> None:
    """30 % loss loses about that many datagrams, both ways; what is set is read back, what was lost is counted."""
    async with applied(town.pid_of, [LinkFault(actor="a", loss=30)], by=by) as lines:
        there, back = town.send(1000, every=0.0005), town.send(1000, every=0.0005, back=True)

    assert lines[0].has == {"to": {"loss": 30}, "from": {"loss": 30}}
    assert lines[0].by == by[0]
    assert 600 < len(there) < 800  # six standard deviations (14.5) and more
    assert 600 < len(back) < 800
    for way, arrived in (("from", there), ("to", back)):
        counted = lines[0].counted[way]
        # ARP may be lost too, and a busy machine's neighbour asks more often.
        assert counted["lost"] == pytest.approx(1000 - len(arrived), abs=30)


async def test_one_way_only(town: Town, by: tuple[str, ...]) -> None:
    """A fault of one direction leaves the other as it is: one-way audio."""
    fault = LinkFault(actor="a", loss=100, direction="to")
    async with applied(town.pid_of, [fault], by=by) as lines:
        assert len(town.send(20)) == 20
        assert town.send(20, back=True) == []

    assert lines[0].has == {"to": {"loss": 100}}


async def test_delay_and_jitter(town: Town, by: tuple[str, ...]) -> None:
    """80 ms of delay with 20 ms of jitter: every datagram is between 60 and 100 ms late, and they differ."""
    fault = LinkFault(actor="a", delay_ms=80, jitter_ms=20)
    async with applied(town.pid_of, [fault], by=by) as lines:
        late = sorted(town.send(100, every=0.005))

    assert lines[0].has["from"] == {"delay_ms": 80, "jitter_ms": 20}
    assert len(late) == 100
    assert late[0] > 59
    assert late[50] < 130  # a busy machine adds to it, and never takes off
    assert late[90] - late[10] > 15


async def test_corruption_is_seen_by_checksums(town: Town, by: tuple[str, ...]) -> None:
    """Nearly every datagram with one wrong bit is thrown away by the receiver's checksum, none is passed as good."""
    async with applied(town.pid_of, [LinkFault(actor="a", corrupt=100)], by=by) as lines:
        arrived = town.send(200)

    assert lines[0].has["from"] == {"corrupt": 100}
    assert len(arrived) < 40  # TTL and a few other bits of the IP header do not show, and netem hits MAC addresses
    assert len(town.send(20)) == 20


@pytest.mark.parametrize("by", [("tbf",), ("netem",), ("relay",)])
async def test_rate(town: Town, by: tuple[str, ...]) -> None:
    """800 kbit/s carries 100,000 bytes a second, and what its buffer of half a second cannot hold is lost."""
    try:
        async with applied(town.pid_of, [LinkFault(actor="a", rate_kbit=800)], by=by) as lines:
            started = time.monotonic()
            few = town.send(30, 958)  # 1000 bytes with their headers
            took = time.monotonic() - started
            many = town.send(300, 958)
    except LinkUnsupported as error:
        if by == ("netem",):
            pytest.skip(str(error))
        raise

    assert lines[0].by == by[0]
    assert lines[0].has["to"] == lines[0].has["from"] == {"rate_kbit": 800}
    assert len(few) == 30
    assert 0.2 < max(few) / 1000 <= took < 1.5
    assert 30 < len(many) < 250


async def test_only_the_traffic_with_one_peer(town: Town) -> None:
    """A fault with a peer leaves the traffic with others as it is."""
    faults = [LinkFault(actor="a", peer="somebody", delay_ms=200)]
    async with applied(town.pid_of, faults, address_of={"somebody": "198.18.100.99"}.__getitem__) as lines:
        other = town.send(20, every=0.002)
    async with applied(town.pid_of, [LinkFault(actor="a", peer=B, delay_ms=200)]):
        slow = town.send(20, every=0.002)

    assert lines[0].by == "relay"
    assert sorted(other)[10] < 100
    assert min(slow) >= 200


async def test_unreachable_peer(town: Town) -> None:
    """A cut with a peer is silent: what is sent vanishes both ways, and the rest goes on."""
    async with applied(town.pid_of, [LinkFault(actor="b", peer=A, cut=True)]) as lines:
        assert town.send(5) == []
        assert town.send(5, back=True) == []
    async with applied(town.pid_of, [LinkFault(actor="b", peer="198.18.100.99", cut=True)]):
        assert len(town.send(5)) == 5

    assert str(lines[0]) == f"b eth0: loss 100 both ways with {A} (relay)"
    assert len(town.send(5)) == 5


@pytest.mark.parametrize("where", ["elsewhere", "in the container, as Docker has it"])
async def test_name_server_gone(town: Town, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Without DNS no query has an answer, silently; other traffic goes on."""
    house, address = ("b", B) if where == "elsewhere" else ("a", "127.0.0.11")
    monkeypatch.setattr(links, "_name_servers", lambda *_: [address])
    netns.pushns(f"/proc/{town.pids[house]}/ns/net")
    try:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    finally:
        netns.popns()
    netns.pushns(f"/proc/{town.pids['a']}/ns/net")
    try:
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    finally:
        netns.popns()

    def asked() -> bool:
        client.sendto(b"query", (address, 53))
        if select.select([server], [], [], 0.3)[0]:
            data, whom = server.recvfrom(99)
            server.sendto(data, whom)
        return bool(select.select([client], [], [], 0.3)[0]) and client.recv(99) == b"query"

    with server, client:
        server.bind((address, 53))
        assert asked()
        async with applied(town.pid_of, [LinkFault(actor="a", dns_gone=True)]) as lines:
            assert not asked()
            assert len(town.send(5)) == len(town.send(5, back=True)) == 5
        assert asked()
    assert str(lines[0]) == f"a: dns_gone {address} to it (nftables)"


def test_name_servers_of_a_container(tmp_path: Path) -> None:
    """The name servers are those of resolv.conf, at most three, IPv4; none is a clear line."""
    file = tmp_path / "resolv.conf"
    file.write_text(
        "search x\nnameserver ::1\nnameserver 127.0.0.11\nnameserver\nnameserver x\n" + "nameserver 1.1.1.1\n" * 9
    )
    assert links._name_servers(file, "pbx") == ["127.0.0.11", "1.1.1.1", "1.1.1.1"]
    file.write_text("")
    with pytest.raises(LabUnavailable, match="no IPv4 name server"):
        links._name_servers(file, "pbx")


async def test_tcp_through_a_relay(town: Town) -> None:
    """TCP, with segments that the sender leaves to its card, comes through the relay whole."""
    data = random.Random(1).randbytes(2_000_000)
    netns.pushns(f"/proc/{town.pids['b']}/ns/net")
    try:
        server = socket.create_server((B, 4001))
    finally:
        netns.popns()
    netns.pushns(f"/proc/{town.pids['a']}/ns/net")
    try:
        client = socket.socket()
    finally:
        netns.popns()
    async with applied(town.pid_of, [LinkFault(actor="a", delay_ms=1)], by=("relay",)):
        with server, client:
            client.settimeout(10)
            await asyncio.to_thread(client.connect, (B, 4001))
            there, _ = server.accept()
            with there:
                there.settimeout(10)
                sending = asyncio.create_task(asyncio.to_thread(client.sendall, data))
                received = b""
                while len(received) < len(data):
                    received += await asyncio.to_thread(there.recv, 1 << 20)
                await sending

    assert received == data


# -- a timeline --------------------------------------------------------------------------------------------------


async def test_after_and_restore_after(town: Town) -> None:
    """A fault begins and ends when its times say so, while the block goes on."""
    async with applied(town.pid_of, [LinkFault(actor="a", cut=True, after=0.5, restore_after=1.0)]) as lines:
        began = time.time()
        assert len(town.send(3)) == 3
        await wait_for(lambda: bool(lines and lines[0].until), 8, "the fault to begin and end")
        assert len(await asyncio.to_thread(town.send, 3)) in (2, 3)  # the first may still ask for the address

    assert lines[0].since - began == pytest.approx(0.5, abs=0.5)
    assert lines[0].until - lines[0].since == pytest.approx(1.0, abs=0.5)


async def test_two_faults_of_one_link(town: Town) -> None:
    """A link that is lossy can be cut as well; two faults of one sort at a time are refused, and nothing stays."""
    before = await asyncio.to_thread(town.state)
    async with applied(town.pid_of, [LinkFault(actor="a", loss=100), LinkFault(actor="a", cut=True)]) as lines:
        assert {line.by for line in lines} >= {"link down"}
        assert town.send(2) == []
    assert await asyncio.to_thread(town.state) == before
    with pytest.raises(LabUnavailable, match="a: eth0 has a fault of this sort already"):
        async with applied(town.pid_of, [LinkFault(actor="a", loss=1), LinkFault(actor="a", delay_ms=1)]):
            pass


@pytest.mark.parametrize("first", ["the cut", "the relay"])
async def test_two_faults_that_end_one_after_the_other(town: Town, first: str) -> None:
    """The end of one fault leaves the other of the same link in force, whichever ends first."""
    before = await asyncio.to_thread(town.state)
    cut, relay = LinkFault(actor="a", cut=True), LinkFault(actor="a", peer=B, cut=True)
    if first == "the cut":
        cut = cut.model_copy(update={"restore_after": 0.1})
    else:
        relay = relay.model_copy(update={"restore_after": 0.1})
    third = LinkFault(actor="a", peer=B, delay_ms=1, after=0.8)
    async with applied(town.pid_of, [relay, cut] + [third] * (first == "the relay")) as lines:
        await wait_for(lambda: any(line.until for line in lines), 10, "the first one to end")
        assert await asyncio.to_thread(town.send, 2) == []
        await wait_for(lambda: len(lines) == 2 + (first == "the relay"), 10, "the third one")
        assert await asyncio.to_thread(town.send, 2) == []

    assert await asyncio.to_thread(town.state) == before


async def test_a_later_fault_that_cannot_be_set(town: Town) -> None:
    """What cannot be set later on is raised after the block, and does not hide the block's own error."""
    faults = [LinkFault(actor="a", address="198.18.100.77", loss=1, after=0.05)]
    with pytest.raises(LabUnavailable, match=r"link of a: no interface with the address 198\.18\.100\.77"):
        async with applied(town.pid_of, faults):
            await asyncio.sleep(1)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with applied(town.pid_of, faults):
            await asyncio.sleep(1)
            raise ZeroDivisionError


# -- it is always put back ---------------------------------------------------------------------------------------

ALL = [
    LinkFault(actor="a", loss=100, delay_ms=5),
    LinkFault(actor="a", cut=True),
    LinkFault(actor="b", rate_kbit=64),
    LinkFault(actor="b", peer=A, cut=True),
]


async def test_after_an_exception(town: Town) -> None:
    """An exception in the block leaves every link as it was."""
    before = await asyncio.to_thread(town.state)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with applied(town.pid_of, ALL):
            assert await asyncio.to_thread(town.state) != before
            raise ZeroDivisionError

    assert await asyncio.to_thread(town.state) == before


async def test_after_a_cancellation(town: Town) -> None:
    """A task that is cancelled in the block leaves every link as it was."""
    before = await asyncio.to_thread(town.state)
    inside = asyncio.Event()

    async def run() -> None:
        async with applied(town.pid_of, ALL):
            inside.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(run())
    await asyncio.wait_for(inside.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await asyncio.to_thread(town.state) == before


_PROGRAM = """\
import asyncio, json, sys
from pbxguard.lab.links import LinkFault, applied
pids = json.loads(sys.argv[1])
async def main():
    async with applied(pids.__getitem__, [LinkFault.model_validate(f) for f in json.loads(sys.argv[2])]):
        print("set", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_after_a_signal(town: Town, how: signal.Signals) -> None:
    """Ctrl-C, SIGTERM and even SIGKILL of the program that set the faults leave every link as it was."""
    before = town.state()
    faults = json.dumps([fault.model_dump(mode="json") for fault in ALL])
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, json.dumps(town.pids), faults],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        assert program.stdout.readline() == "set\n"
        assert town.state() != before
        os.killpg(program.pid, how)
        program.wait(20)

    wait_until(lambda: town.state() == before, 10, "the links to be as before")


async def test_after_the_keeper_itself_was_killed(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """A keeper that was killed leaves faults, and that is said; the next one on that link puts them right first."""
    monkeypatch.setattr(links, "_name_servers", lambda *_: [B])
    before = await asyncio.to_thread(town.state)
    with pytest.raises(LabUnavailable, match="not as before"):  # noqa: PT012
        async with applied(town.pid_of, [*ALL, LinkFault(actor="a", dns_gone=True)]):
            [keeper] = town.keepers()
            os.kill(keeper, signal.SIGKILL)
    assert await asyncio.to_thread(town.state) != before

    for fault in (LinkFault(actor="a", loss=1), LinkFault(actor="b", loss=1), LinkFault(actor="a", dns_gone=True)):
        async with applied(town.pid_of, [fault]):
            pass

    assert await asyncio.to_thread(town.state) == before
    assert len(town.send(5)) == 5


async def test_when_the_container_has_gone(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that goes away with its link takes its faults along; putting them right fails nobody."""
    monkeypatch.setattr(links, "_name_servers", lambda *_: [B])
    async with applied(town.pid_of, [*ALL, LinkFault(actor="a", dns_gone=True)]):
        town.processes["a"].kill()
        town.processes["a"].wait()
        await asyncio.sleep(0.6)


async def test_a_link_that_another_run_has(town: Town) -> None:
    """A link that is in use by another run is refused in one line, and stays as that one has it."""
    async with applied(town.pid_of, [LinkFault(actor="a", loss=100)]):
        with pytest.raises(LabUnavailable, match="a fault of another run"):
            async with applied(town.pid_of, [LinkFault(actor="a", cut=True)]):
                pass
        assert town.send(2) == []


async def test_nothing_is_left_after_many(town: Town) -> None:
    """Ten rounds leave no qdisc, TAP, table, namespace, process or descriptor."""
    before = await asyncio.to_thread(town.state)
    for _ in range(2):
        async with applied(town.pid_of, ALL):
            pass
    files = descriptors()
    for _ in range(8):
        async with applied(town.pid_of, ALL):
            pass

    assert await asyncio.to_thread(town.state) == before
    assert descriptors() <= files


# -- what is refused ---------------------------------------------------------------------------------------------


async def test_the_hosts_own_network(town: Town) -> None:
    """A process that shares the host's network is refused, whatever the fault: nothing of the host is touched."""
    for fault in (LinkFault(actor="x", cut=True), LinkFault(actor="x", peer=A, cut=True)):
        with pytest.raises(LabUnavailable, match="link of x: it shares the network of the host"):
            async with applied(lambda _: os.getpid(), [fault]):
                pass


async def test_a_process_that_is_not_there(town: Town) -> None:
    """An engine on another host gives process ids that are not here: one clear line."""
    with pytest.raises(LinkUnsupported, match="not on this host"):
        async with applied(lambda _: 2**22 + 1, [LinkFault(actor="x", cut=True)]):
            pass


async def test_a_peer_that_is_nobody(town: Town) -> None:
    """A peer that is no actor and no address is one clear line, before anything is changed."""
    with pytest.raises(LabUnavailable, match="peer 'nobody'"):
        async with applied(
            town.pid_of, [LinkFault(actor="a", cut=True), LinkFault(actor="a", peer="nobody", loss=1)]
        ):
            pass


async def test_no_root(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root the reason for the skip says so, and what to do."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LinkUnsupported, match="run it as root"):
        async with applied(town.pid_of, [LinkFault(actor="a", cut=True)]):
            pass


async def test_no_method_that_this_kernel_has(town: Town) -> None:
    """What the kernel cannot do is said apart from what went wrong, and leaves nothing: cut and rate still run."""
    with pytest.raises(LinkUnsupported, match="netem"):
        async with applied(town.pid_of, [LinkFault(actor="b", cut=True), LinkFault(actor="a", loss=1)], by=("tbf",)):
            pass
    async with applied(
        town.pid_of, [LinkFault(actor="b", rate_kbit=64), LinkFault(actor="a", cut=True)], by=("tbf",)
    ):
        pass


async def test_no_fault_is_no_work() -> None:
    """A step without links needs neither root nor a process."""
    async with applied(lambda _: 1 // 0, []) as lines:
        assert lines == []


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({}, "say one of"),
        ({"cut": True, "loss": 5}, "say one of"),
        ({"cut": True, "dns_gone": True}, "say one of"),
        ({"jitter_ms": 5}, "jitter_ms is more"),
        ({"cut": True, "direction": "to"}, "cut both ways"),
        ({"dns_gone": True, "peer": "guard"}, "dns_gone goes without"),
        ({"loss": 101}, "loss"),
        ({"loss": float("nan")}, "loss"),
        ({"delay_ms": -1}, "delay_ms"),
        ({"rate_kbit": 0}, "rate_kbit"),
        ({"cut": True, "restore_after": 0}, "restore_after"),
        ({"los": 5}, "los"),
    ],
)
def test_faults_that_say_nothing_or_too_much(values: dict[str, object], complaint: str) -> None:
    """A fault says one thing, within bounds; a misspelt word is an error and not a link without a fault."""
    with pytest.raises(ValidationError, match=complaint):
        LinkFault.model_validate({"actor": "a"} | values)


def test_a_line_in_a_report() -> None:
    """Each line says what, where, which way and by what means."""
    fault = LinkFault(actor="pbx", peer="guard", delay_ms=800)
    line = Line(fault, "eth0", "relay", {"to": {"delay_ms": 800.0}, "from": {"delay_ms": 800.0}}, 0.0)
    assert str(line) == "pbx eth0: delay_ms 800 both ways with guard (relay)"


# -- the relay's clock, without a link ---------------------------------------------------------------------------

FRAME = bytes(10) + bytes(12) + b"\x08\x00" + bytes(186)


def test_a_lane_keeps_order_and_time() -> None:
    """With delay alone every frame comes out in order, when it is due and not before."""
    lane = Lane(Shape(delay_ms=100), None, random.Random(1))
    for n in range(10):
        lane.put(FRAME + bytes([n]), n * 0.02)

    assert lane.next == pytest.approx(0.1)
    assert lane.due(0.099) == []
    assert [frame[-1] for frame in lane.due(0.1501)] == [0, 1, 2]
    assert len(lane.due(1.0)) == 7
    assert lane.next is None


def test_a_lane_is_bounded() -> None:
    """However fast frames come, no more wait than netem would hold, and those of half a second of a narrow line."""
    late, narrow = (
        Lane(Shape(delay_ms=5000), None, random.Random(1)),
        Lane(Shape(rate_kbit=80), None, random.Random(1)),
    )
    for _ in range(3 * LIMIT):
        late.put(FRAME, 0.0)
        narrow.put(FRAME, 0.0)

    assert len(late.due(10.0)) == LIMIT
    assert late.counted["full"] == 2 * LIMIT
    assert len(narrow.due(10.0)) == pytest.approx(0.5 * 10_000 / 200, abs=2)


@pytest.mark.parametrize("length", [0, 9, 10, 22, 23, 24, 30, 50])
def test_short_frames(length: int) -> None:
    """No frame, however short, makes a lane fail."""
    lane = Lane(Shape(loss=1, corrupt=100, rate_kbit=64, delay_ms=1), IPv4Address(A), random.Random(1))
    damaging = Lane(Shape(corrupt=100), None, random.Random(1))
    for each in (lane, damaging):
        each.put(b"\1" + random.Random(length).randbytes(length), 0.0)
        assert len(each.due(10.0)) == (length + 1 >= 24)
