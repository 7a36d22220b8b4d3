"""Real calls while the guard, the line to it, its database or the PBX itself fails; and ten thousand calls for leaks.

Each PBX has a lab of its own, which is down again before another test brings one up: this file's name comes first
among those that need a lab.
"""

import asyncio
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template

import pytest

from pbxguard import config, prompts
from pbxguard.errors import LabUnavailable
from pbxguard.lab import evidence, heard, topology
from pbxguard.lab.callers import Callers, Placing
from pbxguard.lab.capture import capturing
from pbxguard.lab.evidence import Observed
from pbxguard.lab.waiting import wait_for, wait_until
from pbxguard.lab.wire import Capture, Leg
from pbxguard.lab.world import FREESWITCH_IMAGE, World
from pbxguard.screening.lists import Action, ListEntry
from pbxguard.store import DecisionRow, Store

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

#: Calls of the search for leaks; PBXGUARD_TEST_CALLS=10000 is the whole of it.
CALLS = int(os.environ.get("PBXGUARD_TEST_CALLS", "1000"))
RATE = 125

#: The claim: from the moment when the guard fails a call has its answer within this time.
WITHIN_MS = 1000

#: Like the lab's own, but that the national trunk, which has the load, hears no prompts.
SETTINGS = """\
[screening]
accept_unverified = ["*"]
[trunks.intl]
kind = "intl_gateway"
[trunks.natl]
kind = "national"
prompt = "none"
[trunks.ent]
kind = "enterprise"
fail = "closed"
allocated = ["0571865543*"]
[trunks.goip1]
kind = "sim_gateway"
"""

LISTED = "13911112222"

#: On a trunk that fails open a call that the guard would refuse; one that fails closed and the guard would allow.
OPEN = Placing("", "intl", "+85261234567", "13957100001", listen=0.5)
CLOSED = Placing("", "ent", "057186554321", "13957100002")
#: The guard refuses it with a short prompt.
REFUSED = Placing("", "intl", "1" * 40, "13957100003")
#: The guard refuses it with a prompt, which this caller does not hear to its end.
NEXT = Placing("", "intl", "+85261234567", "13957100003", hang_up_after=1.0)
ALLOWED = Placing("", "ent", "057186554322", "13904510001", listen=2.5)


def short_prompts(folder: Path) -> Path:
    """A site's prompts: the package's, but that the two which most calls here end with are short of words."""
    made = folder / "prompts"
    shutil.copytree(prompts.PROMPT_DIR, made, ignore=shutil.ignore_patterns("*.py", "__pycache__", "*.toml"))
    for language in prompts.LANGUAGES:
        for name in ("guard_failed", "system_blocklist"):
            file = prompts.path(name, language, made)
            heard.write_wav(file, heard.load_wav(file)[: 2 * heard.RATE])
    return made


@pytest.fixture(name="world", scope="module", params=["asterisk", "freeswitch"])
def _world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The lab, up; FreeSWITCH is skipped where no image of it is there."""
    if shutil.which("docker") is None and not Path("/var/run/docker.sock").exists():
        pytest.skip("no Docker engine; `make test` sets one up (needs root or sudo)")
    folder = tmp_path_factory.mktemp(f"chaos-{request.param}")
    file = folder / "pbxguard.toml"
    file.write_text(SETTINGS)
    settings = config.load(file).model_copy(update={"state": folder / "state", "prompts": short_prompts(folder)})
    with World(settings, file, pbx=request.param) as world:
        if request.param == "freeswitch":
            try:
                world.engine.require_image(FREESWITCH_IMAGE)
            except LabUnavailable:
                pytest.skip(
                    f"chaos on FreeSWITCH: no image {FREESWITCH_IMAGE}; `make freeswitch` builds it, "
                    "or tag one of FreeSWITCH 1.10.12 or later so"
                )
        world.handler.program = (sys.executable, str(Path(__file__).with_name("counted.py")))
        try:
            world.up()
            with Store.open(settings.store_url) as store:
                store.add_entry(ListEntry("", LISTED, Action.BLOCK, "system", source="test"))
            yield world
        finally:
            world.down()


@dataclass(frozen=True)
class Call:
    """What became of one call."""

    observed: Observed
    leg: Leg
    row: DecisionRow | None

    def answered_after(self, moment: float = 0.0) -> float:
        """Milliseconds from *moment* (epoch), or from the INVITE when that came later, to the first answer."""
        assert self.leg.post_dial_ms is not None
        return 1000 * (self.leg.invite.at - max(moment, self.leg.invite.at)) + self.leg.post_dial_ms


Act = Callable[[], Awaitable[None] | None]
Record = Callable[[str, object], None]


@pytest.fixture(name="record")
def _record(record_property: Record) -> Record:
    """Keeps a measured figure with the test's result (junit)."""
    return record_property


async def place(world: World, *calls: Placing, act: Act | None = None, watcher: str = "") -> list[Call]:
    """Place the calls at once and say what became of them; *act* when all their INVITEs are at the PBX."""
    tagged = [replace(call, id=os.urandom(8).hex()) for call in calls]
    captures = world.root / "captures"
    async with (
        Callers.open(world.engine, world.passwords.ami) as callers,
        capturing(world.engine, watcher or world.watcher, captures, tagged[0].id) as path,
        asyncio.TaskGroup() as group,
    ):
        for call in tagged:
            group.create_task(callers.place(call, limit=30))
        if act is not None:
            await wait_for(lambda: all(_legs(path, tagged)), 10, "the INVITEs", every=0.01)
            if (pending := act()) is not None:
                await pending
    capture = Capture.load(path)
    path.unlink()
    found = []
    for call in tagged:
        legs = evidence.legs_of(capture, call.id)
        assert legs is not None, f"the INVITE of {call} did not reach the PBX"
        row = _row(world, legs.caller.call_id)
        found.append(
            Call(evidence.observe(legs, row, world.settings.prompts or prompts.PROMPT_DIR), legs.caller, row)
        )
    return found


def _legs(path: Path, calls: list[Placing]) -> list[bool]:
    capture = Capture.load(path)
    return [evidence.legs_of(capture, call.id) is not None for call in calls]


def _row(world: World, call_id: str) -> DecisionRow | None:
    with Store.open(world.settings.store_url) as store:
        return store.decision(call_id)


async def decided(world: World, call: Call) -> DecisionRow:
    """The guard's record of the call, which is written a moment behind it."""
    await wait_for(lambda: _row(world, call.leg.call_id) is not None, 10, "the decision record")
    row = _row(world, call.leg.call_id)
    assert row is not None
    return row


def by_policy(record: Record, opened: Call, closed: Call, since: float = 0.0) -> None:
    """The trunks' policies had the calls, in time: on the open one the callee rang, the closed one gave 480."""
    record("open_ms", round(opened.answered_after(since)))
    record("closed_ms", round(closed.answered_after(since)))
    assert opened.observed.answered
    assert opened.observed.callee_rang
    assert opened.observed.two_way_audio
    assert closed.observed.sip_status == 480
    assert not closed.observed.callee_rang
    assert (closed.observed.prompt, closed.observed.prompt_score >= evidence.HEARD) == ("guard_failed", True)
    for call in (opened, closed):
        assert call.answered_after(since) <= WITHIN_MS


async def as_before(world: World) -> None:
    """No channel is left, the guard is back, and it screens the next call."""
    await wait_for(lambda: world.channels() == 0, 10, "the PBX to end its calls")
    await wait_for(lambda: ready(world), 15, "the guard to be back")
    [call] = await place(world, NEXT)
    row = await decided(world, call)
    assert (row.verdict, row.reason) == ("block", "intl_default_off")
    assert call.observed.prompt == "intl_default_off"
    assert call.answered_after() <= WITHIN_MS
    await wait_for(lambda: world.channels() == 0, 10, "the PBX to end the next call")


def ready(world: World) -> bool:
    """Whether the PBX counts on the guard: it can be reached, and has told FreeSWITCH so of late."""
    return world.handler.healthy(world.state) and world.guarded()


@contextmanager
def stalled(world: World) -> Iterator[None]:
    """In this block nobody can read the database: every decision is under way, and none comes to its end.

    A reader takes one of the five read locks of the write-ahead log (https://sqlite.org/walformat.html, 2.3.1)
    and tries again while it cannot. The lock goes with the first descriptor of the file that this process closes.
    """
    descriptor = os.open(f"{world.settings.store_url}-shm", os.O_RDWR)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX, 5, 123)
        yield
    finally:
        os.close(descriptor)


def test_the_lab_of_the_other_pbx_is_refused(world: World) -> None:
    """A lab that is up with one PBX is not turned into one with the other; the message has the remedy."""
    other = "freeswitch" if world.pbx == "asterisk" else "asterisk"
    with World(world.settings, pbx=other) as again, pytest.raises(LabUnavailable, match="take it down first"):
        again.up()

    assert world.is_up()


# -- the guard ---------------------------------------------------------------------------------------------


async def test_killed_before(world: World, record: Record) -> None:
    """A guard that is dead: both calls go as their trunk's policy says; once it is started again it screens."""
    with world.handler.killed(world.state):
        opened, closed = await place(world, OPEN, CLOSED)
        [later] = await place(world, OPEN)

    by_policy(record, opened, closed)
    # FreeSWITCH counts on a guard for 3 s after its last sign of life; from then on a dead one costs nothing.
    record("later_ms", round(later.answered_after()))
    assert later.observed.answered
    assert later.answered_after() <= WITHIN_MS / 4
    assert opened.row is None
    assert closed.row is None
    await as_before(world)


async def test_killed_during_the_decision(world: World, record: Record) -> None:
    """A guard that dies (SIGKILL) while calls wait for its verdict: the policy has them."""
    killed = 0.0

    def kill() -> None:
        nonlocal killed
        killed = time.time()
        world.handler.signal(signal.SIGKILL)

    with stalled(world):
        opened, closed = await place(world, OPEN, CLOSED, act=kill)
    await asyncio.to_thread(world.handler.start, world.state)

    by_policy(record, opened, closed, killed)
    for call in (opened, closed):
        assert call.leg.invite.at < killed < call.leg.invite.at + 0.3  # the deadline: it had not answered
        assert call.row is None
    await as_before(world)


async def test_killed_after_the_decision(world: World, record: Record) -> None:
    """A verdict holds when the guard dies: the prompt plays to its end, and who is connected stays connected."""
    wait = asyncio.Event()

    async def kill() -> None:
        await wait_for(lambda: (world.channels() or 0) >= 3, 5, "the callee's channel")
        world.handler.signal(signal.SIGKILL)
        wait.set()

    refused, allowed = await place(world, REFUSED, ALLOWED, act=kill)
    await asyncio.to_thread(world.handler.start, world.state)

    assert wait.is_set()
    assert refused.observed.sip_status == (603 if world.pbx == "asterisk" else 608)
    assert refused.observed.prompt == "system_blocklist"
    assert refused.observed.prompt_score >= evidence.HEARD
    assert allowed.observed.answered
    assert allowed.observed.two_way_audio
    await as_before(world)


async def test_frozen_before(world: World, record: Record) -> None:
    """A guard that accepts and is silent (SIGSTOP) costs the patience, and then the policy has the calls."""
    with world.handler.frozen():
        opened, closed = await place(world, OPEN, CLOSED)
        assert world.channels() == 0

    by_policy(record, opened, closed)
    await as_before(world)


async def test_frozen_during_the_decision(world: World, record: Record) -> None:
    """A guard that freezes while calls wait costs no more; thawed, its late verdict changes nothing."""
    frozen = 0.0

    async def freeze() -> None:
        nonlocal frozen
        frozen = time.time()
        world.handler.signal(signal.SIGSTOP)
        # The calls are past the patience: one is connected, the other hears the prompt.
        await wait_for(lambda: time.time() > frozen + 1.5, 3, "the patience")
        world.handler.signal(signal.SIGCONT)

    with stalled(world):
        opened, closed = await place(world, OPEN, CLOSED, act=freeze)

    by_policy(record, opened, closed, frozen)
    for call in (opened, closed):
        assert call.leg.invite.at < frozen < call.leg.invite.at + 0.3
    await as_before(world)


async def test_slower_than_the_deadline(world: World, record: Record) -> None:
    """A database that does not answer: the guard itself says so at its deadline, and the policy has the calls."""
    with stalled(world):
        opened, closed = await place(world, OPEN, CLOSED)

    by_policy(record, opened, closed)
    for call in (opened, closed):
        row = await decided(world, call)
        assert (row.verdict, row.reason, row.detail) == ("failed", "guard_failed", "no decision within 300 ms")
    await as_before(world)


# -- the line between PBX and guard --------------------------------------------------------------------------


class Relay:
    """Passes the bytes of PBX and guard on; can be late, hold back and cut.

    Args:
        to: Where the other side listens.
        from_guard: It is the guard that connects (event socket), not the PBX (FastAGI).
    """

    def __init__(self, to: tuple[str, int], *, from_guard: bool) -> None:
        self._to = to
        self._from_guard = from_guard
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.delay = 0.0
        self.held = False
        self.asked = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.append(writer)
        with suppress(OSError):
            other_reader, other_writer = await asyncio.open_connection(*self._to)
            self._writers.append(other_writer)
            with suppress(ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, other_writer, to_pbx=self._from_guard))
                    group.create_task(self._pump(other_reader, writer, to_pbx=not self._from_guard))
        writer.close()
        self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_pbx: bool) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(65536):
            if not to_pbx:
                self.asked += data.count(b"agi_request: ") + data.count(b"Event-Subclass: pbxguard%3A%3Ascreen")
                writer.write(data)
            elif not self.held:
                loop.call_later(self.delay, writer.write, data)
        # What was sent last may still be on its way.
        loop.call_later(self.delay if to_pbx else 0, writer.close)

    def cut(self) -> None:
        """Reset every connection (RST), to both sides."""
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            if not writer.is_closing() and sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
        self._writers.clear()

    async def end(self) -> None:
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def relayed(world: World) -> AsyncIterator[Relay]:
    """In this block PBX and guard reach each other through the relay only."""
    handler, direct = world.handler, world.handler.address
    relay = Relay(direct, from_guard=world.pbx == "freeswitch")
    here = "127.0.0.1" if world.pbx == "freeswitch" else str(topology.HOME.guard_address)
    server = await asyncio.start_server(relay.serve, here, 0)
    address = server.sockets[0].getsockname()[:2]
    try:
        if world.pbx == "freeswitch":
            handler.address = address
            await asyncio.to_thread(handler.start, world.state)
        else:
            world.console("dialplan set global PBXGUARD_HOST {}:{}".format(*address))
        await wait_for(lambda: ready(world), 10, "the guard to serve through the relay")
        yield relay
    finally:
        handler.address = direct
        if world.pbx == "freeswitch":
            await asyncio.to_thread(handler.start, world.state)
        else:
            world.console("dialplan set global PBXGUARD_HOST {}:{}".format(*direct))
        server.close()
        await relay.end()
        await server.wait_closed()


async def test_slower_than_the_patience(world: World, record: Record) -> None:
    """A verdict that arrives after the PBX's patience changes nothing any more: no prompt, no connection."""
    async with relayed(world) as relay:
        relay.delay = 0.8
        opened, closed = await place(world, OPEN, CLOSED)
        relay.delay = 0.0
        assert relay.asked >= 2
        by_policy(record, opened, closed)
        # The guard did decide, and otherwise.
        assert (await decided(world, opened)).verdict == "block"
        assert (await decided(world, closed)).verdict == "allow"
        await as_before(world)


async def test_line_cut_during_the_decision(world: World, record: Record) -> None:
    """A connection that is reset while calls wait: the policy has them, and the guard connects again by itself."""
    cut = 0.0
    async with relayed(world) as relay:
        before = world.handler.pid
        relay.asked, relay.held = 0, True

        async def reset() -> None:
            nonlocal cut
            await wait_for(lambda: relay.asked >= 2, 5, "the guard to be asked", every=0.01)
            cut = time.time()
            relay.held = False
            relay.cut()

        opened, closed = await place(world, OPEN, CLOSED, act=reset)
        by_policy(record, opened, closed, cut)
        await as_before(world)
        assert world.handler.pid == before


# -- the PBX -----------------------------------------------------------------------------------------------


async def test_pbx_restarted(world: World, record: Record) -> None:
    """A restart ends waiting and connected calls; the guard, which goes on, screens again by itself."""
    before = world.handler.pid
    talking = Placing("", "natl", "13800138000", "13957100003", listen=20)
    waiting = [replace(OPEN, cli=f"+8526123456{n}", hang_up_after=20) for n in range(3)]
    others: list[Call] = []
    restarted = 0.0

    async def restart() -> None:
        nonlocal restarted
        restarted = time.time()
        await asyncio.to_thread(world.restart_pbx)

    async def freeze_and_restart() -> None:
        await wait_for(lambda: (world.channels() or 0) >= 2, 5, "the callee's channel")
        # A frozen guard keeps the calls waiting until the restart.
        world.handler.signal(signal.SIGSTOP)
        try:
            others.extend(await place(world, *waiting, act=restart, watcher=world.container("intl")))
        finally:
            world.handler.signal(signal.SIGCONT)

    connected = await place(world, talking, act=freeze_and_restart, watcher=world.container("natl"))

    assert connected[0].leg.answered
    for call in others:
        assert restarted - 0.5 < call.leg.invite.at < restarted  # within the patience
    for number, call in enumerate((*connected, *others)):
        ended = [m.at - restarted for m in call.leg.messages if m.method == "BYE" or (m.status or 0) >= 300]
        record(f"ended_{number}", f"{call.leg.final_status} {[round(after, 2) for after in ended]}")
        assert ended
        assert min(ended) < 10
    await as_before(world)
    assert world.handler.pid == before


# -- many calls --------------------------------------------------------------------------------------------

#: The port makes SIPp's branches differ from those of the others, see ``callers``.
_SIPP = Template("""\
<?xml version="1.0" encoding="UTF-8"?>
<scenario name="load">
  <send retrans="500"><![CDATA[
    INVITE sip:[service]@[remote_ip]:[remote_port] SIP/2.0
    Via: SIP/2.0/UDP [local_ip]:[local_port];branch=[branch]-[local_port]
    From: <sip:$cli@[local_ip]:[local_port]>;tag=[pid]-[call_number]
    To: <sip:[service]@[remote_ip]:[remote_port]>
    Call-ID: [call_id]
    CSeq: 1 INVITE
    Contact: <sip:[local_ip]:[local_port]>
    Max-Forwards: 70
    Content-Type: application/sdp
    Content-Length: [len]

    v=0
    o=load 1 1 IN IP4 [local_ip]
    s=-
    c=IN IP4 [media_ip]
    t=0 0
    m=audio [media_port] RTP/AVP 8
    a=rtpmap:8 PCMA/8000
  ]]></send>
$rest
</scenario>
""")

_ACK = """\
  <send><![CDATA[
    ACK sip:[service]@[remote_ip]:[remote_port] SIP/2.0
    [last_Via:]
    [last_From:]
    [last_To:]
    Call-ID: [call_id]
    CSeq: 1 ACK
    Max-Forwards: 70
    Content-Length: 0

  ]]></send>"""

_REFUSED = f"""\
  <recv response="100" optional="true"/>
  <recv response="608" optional="true" next="refused"/>
  <recv response="603"/>
  <label id="refused"/>
{_ACK}"""

_CANCEL = f"""\
  <recv response="100" optional="true"/>
  <recv response="183"/>
  <send retrans="500"><![CDATA[
    CANCEL sip:[service]@[remote_ip]:[remote_port] SIP/2.0
    Via: SIP/2.0/UDP [local_ip]:[local_port];branch=[branch-3]-[local_port]
    [last_From:]
    To: <sip:[service]@[remote_ip]:[remote_port]>
    Call-ID: [call_id]
    CSeq: 1 CANCEL
    Max-Forwards: 70
    Content-Length: 0

  ]]></send>
  <recv response="200"/>
  <recv response="487"/>
{_ACK}"""

#: Nobody answers the PBX from here on.
_VANISH = """\
  <recv response="100" optional="true"/>
  <recv response="183"/>"""


async def load(world: World, trunk: str, name: str, cli: str, rest: str, calls: int, rate: float) -> int:
    """Place *calls* from *trunk* with SIPp, bounded in number and time; how many did not go as *rest* has it."""
    container = world.container(trunk)
    world.engine.put(container, "/tmp", {f"{name}.xml": _SIPP.substitute(cli=cli, rest=rest).encode()})
    limit = calls / rate + 30
    port = {"refused": 21000, "cancel": 22000, "vanish": 23000}[name]
    command = (
        "sipp", "-sf", f"/tmp/{name}.xml", "-m", str(calls), "-r", f"{rate * 10:.0f}", "-rp", "10000",
        "-p", str(port), "-mp", str(port + 10), "-nostdin", "-timeout", f"{limit:.0f}s", "-timeout_error",
        "-deadcall_wait", "0", "-s", OPEN.callee, f"{topology.HOME.pbx_carrier}:{topology.SIP_PORT}",
    )  # fmt: skip
    code, text = await asyncio.to_thread(world.engine.run, container, *command, timeout=limit + 10)
    failed = re.search(r"Failed call +\| +\d+ +\| +(\d+)", text)
    assert code in (0, 1), text[-2500:]
    assert failed is not None, text[-2500:]
    return int(failed[1])


def alive(world: World) -> dict[str, int]:
    """What the running handler holds: descriptors, threads, memory (KiB), greenlets, tasks, objects."""
    file = world.state / "alive.json"
    file.unlink(missing_ok=True)
    world.handler.signal(signal.SIGUSR1)
    wait_until(file.is_file, 10, "the handler's count")
    pid = world.handler.pid
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return json.loads(file.read_text()) | {
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "os_threads": int(status["Threads"]),
        "rss_kib": int(status["VmRSS"].split()[0]),
    }


async def test_many_calls_leak_nothing(world: World, record: Record) -> None:
    """After many calls, refused, cancelled and vanished, the handler holds what it held, and the PBX nothing."""

    async def many(calls: int) -> int:
        few = max(1, calls // 100)
        kinds = (
            ("natl", "refused", LISTED, _REFUSED, calls - 2 * few),
            ("intl", "cancel", REFUSED.cli, _CANCEL, few),
            ("intl", "vanish", REFUSED.cli, _VANISH, few),
        )
        return sum(await asyncio.gather(*(load(world, *kind, RATE * kind[-1] / calls) for kind in kinds)))

    async def quiet() -> dict[str, int]:
        await wait_for(lambda: world.channels() == 0, 40, "the PBX to end its calls")
        return alive(world)

    def recorded() -> int:
        with Store.open(world.settings.store_url) as store:
            return store.count_decisions()

    # The first calls fill caches and pools.
    await many(200)
    before = await quiet()
    rows = recorded()
    started = time.monotonic()
    failed = await many(CALLS)
    took = time.monotonic() - started
    after = await quiet()
    await wait_for(lambda: recorded() >= rows + CALLS - failed, 10, "the decision records")

    for name, figure in (
        ("calls", CALLS),
        ("failed", failed),
        ("seconds", round(took)),
        ("before", before),
        ("after", after),
    ):
        record(name, figure)
    for name in ("descriptors", "threads", "os_threads", "greenlets", "tasks"):
        assert after[name] <= before[name] + 2, name
    assert failed == 0
    assert after["objects"] - before["objects"] < CALLS / 2
    assert after["rss_kib"] - before["rss_kib"] < 32 * 1024  # the page cache of SQLite grows with the records
