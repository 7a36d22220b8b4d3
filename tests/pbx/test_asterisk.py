"""The FastAGI server on real sockets, against a peer that speaks as Asterisk does, or worse."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from urllib.parse import quote

import pytest
from structlog.testing import capture_logs

from pbxguard.config import AsteriskSettings, Settings
from pbxguard.errors import CallerGone, PeerProtocolError, ServiceUnavailable
from pbxguard.guard import Guard
from pbxguard.packs import load
from pbxguard.pbx import agi, asterisk, health
from pbxguard.screening.call import Subscriber
from pbxguard.store import Store

FRAMES = Path(__file__).parents[1] / "frames"
LIMIT = 5.0
"""Seconds in which anything here must be done; most take milliseconds."""

OK = b"200 result=1\n"


@dataclass
class FakeAsterisk:
    """One call's side of FastAGI: sends a header block, then answers each command as it is told to.

    Attributes:
        verdict: The command that came, or b"" when the guard closed without one.
    """

    address: tuple[str, int]
    verdict: bytes = b""

    async def call(self, block: bytes, reply: bytes = OK, *, before: bytes = b"", piecemeal: bool = False) -> bytes:
        """Place a call; give what the guard wrote. ``before`` is sent out of band ahead of the command."""
        async with asyncio.timeout(LIMIT):
            reader, writer = await asyncio.open_connection(*self.address)
            try:
                for piece in [bytes([byte]) for byte in block] if piecemeal else [block]:
                    writer.write(piece)
                    await writer.drain()
                writer.write(before)
                self.verdict = await reader.readline()
                if self.verdict:
                    writer.write(reply)
                    self.verdict += await reader.read()
            except ConnectionError:
                pass  # an RST: the guard has closed with our bytes unread
            finally:
                writer.close()
        return self.verdict


def block(trunk: str = "intl", cli: str = "+85261234567", **more: str) -> bytes:
    """A header block as recorded, for another call."""
    values = {"v": "1", "trunk": trunk, "callee": "13957100001", "from": f"<sip:{cli}@198.18.0.21>"} | more
    script = "screen?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in values.items())
    recorded = (FRAMES / "agi-call.txt").read_bytes()
    rest = recorded[recorded.index(b"agi_channel: ") :]
    first = f"agi_network: yes\nagi_network_script: {script}\nagi_request: agi://198.18.0.1:4573/{script}\n"
    return first.encode() + rest


def recorded(name: str) -> bytes:
    return (FRAMES / f"agi-{name}.txt").read_bytes()


@dataclass
class Running:
    """The server under test."""

    application: asterisk.Application
    address: tuple[str, int]
    store: Store

    def peer(self) -> FakeAsterisk:
        return FakeAsterisk(self.address)

    async def serves(self) -> None:
        """A usual call gets its verdict within the limit."""
        assert b'"1|block|603|early|' in await self.peer().call(block())

    async def quiet(self) -> None:
        """Wait until every connection is done."""
        async with asyncio.timeout(LIMIT):
            await self.application.idle.wait()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "guard.db") as opened:
        opened.add_subscriber(Subscriber("13957100001", "cm", "zhejiang"))
        yield opened


def settings(**limits: int) -> Settings:
    return Settings(asterisk=AsteriskSettings(**({"request_timeout_ms": 2000} | limits)))


@asynccontextmanager
async def running(store: Store, **limits: int) -> AsyncIterator[Running]:
    where = settings(**limits)
    where = where.model_copy(update={"asterisk": where.asterisk.model_copy(update={"port": 0})})
    guard = Guard(store, load("cn"), where)
    application = asterisk.Application(guard, where)
    server = await asterisk.listen(application)
    try:
        yield Running(application, server.sockets[0].getsockname()[:2], store)
    finally:
        server.close()
        await application.idle.wait()
        await server.wait_closed()
        guard.close()


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition, with a limit."""
    began = monotonic()
    while not condition():
        assert monotonic() - began < LIMIT, f"{what}: not within {LIMIT} s"
        await asyncio.sleep(0.005)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def events(logs: list) -> list[str]:
    return [line["event"] for line in logs]


# -- the good case --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("call", b"1|block|603|early|zh/intl_default_off|en/intl_default_off|intl_default_off|||"),
        ("gateway", b"1|allow||none|||default|||"),
        ("forty-digits", b"1|block|603|early|zh/system_blocklist||cli_invalid|||"),
        ("line-ends", b"1|block|603|early|zh/system_blocklist||cli_invalid|||"),
    ],
)
@pytest.mark.parametrize("piecemeal", [False, True])
async def test_recorded_call_gets_its_verdict(store: Store, name: str, fields: bytes, piecemeal: bool) -> None:
    """A recorded request, whole or byte by byte, gets one command with the packed verdict, and the end.

    Also the one whose caller ends the block in its middle: the rest of it is not taken for a reply.
    """
    async with running(store) as server:
        with capture_logs() as logs:
            got = await server.peer().call(recorded(name), piecemeal=piecemeal)
        assert got == b'SET VARIABLE PBXGUARD_VERDICT "' + fields + b'"\n'
        await server.quiet()
        assert events(logs) == ["call decided"]


@pytest.mark.parametrize(
    "rest", [b"x\n" * 1000 + b"\n", b"200 result=1\n" * 30, b"HANGUP\n520-x\n510 no\n", b"\xff" * 15000]
)
async def test_what_follows_a_block_that_was_cut_short_cannot_take_the_verdict_away(
    store: Store, rest: bytes
) -> None:
    """Caller text behind a forged end of the block, forged replies too, is read after the command went out."""
    async with running(store, request_timeout_ms=300) as server:
        got = await server.peer().call(block() + rest)
        assert got.startswith(b'SET VARIABLE PBXGUARD_VERDICT "1|block|603|')
        await server.serves()


async def test_decision_is_recorded_under_its_call_id(store: Store) -> None:
    """The Call-ID of the dialplan finds the decision, with the address that the call came from."""
    async with running(store) as server:
        await server.peer().call(block(call_id="c1@198.18.0.21", source="198.18.0.21:5060"))
        await until(lambda: store.decision("c1@198.18.0.21") is not None, "recorded")
    row = store.decision("c1@198.18.0.21")
    assert row is not None
    assert (row.reason, row.trunk, row.extra["source"]) == ("intl_default_off", "intl", "198.18.0.21:5060")


async def test_two_hundred_calls_at_once(store: Store) -> None:
    """200 concurrent requests all get the verdict that is theirs."""
    async with running(store, max_connections=512) as server:
        calls = [("+85261234567", b"1|block|603|"), ("+8613800138000", b"1|block|603|"), ("abc", b"1|block|603|")]
        one = [server.peer().call(block(cli=calls[n % 3][0])) for n in range(100)]
        two = [server.peer().call(block("natl", "13800138000")) for _ in range(100)]
        answers = await asyncio.gather(*one, *two)
    assert all(answer.startswith(b'SET VARIABLE PBXGUARD_VERDICT "1|block') for answer in answers[:100])
    assert all(answer.startswith(b'SET VARIABLE PBXGUARD_VERDICT "1|allow') for answer in answers[100:])


# -- the P rows of panoramisk, and worse ----------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"agi_network: yes\n", b"\n", b"\xff" * 100])
async def test_connect_and_close(store: Store, data: bytes) -> None:
    """P1: a peer that closes before its request is complete costs nothing; the next call is served."""
    async with running(store) as server:
        _, writer = await asyncio.open_connection(*server.address)
        writer.write(data)
        writer.close()
        await server.serves()
        await server.quiet()


async def test_two_thousand_probes_leak_nothing(store: Store) -> None:
    """P1: after 2,000 connections that close at once there is no task and no file descriptor more."""
    async with running(store) as server:
        await server.serves()
        await server.quiet()
        tasks, files = len(asyncio.all_tasks()), descriptors()
        for _ in range(20):
            opened = await asyncio.gather(*(asyncio.open_connection(*server.address) for _ in range(100)))
            for _, writer in opened:
                writer.close()
            await asyncio.gather(*(writer.wait_closed() for _, writer in opened), return_exceptions=True)
        del opened, writer
        await server.serves()
        await server.quiet()
        gc.collect()
        await until(lambda: len(asyncio.all_tasks()) <= tasks, "tasks")
        # Each worker opens its database (three files) when it first decides: room for that, not for 2,000.
        await until(lambda: descriptors() <= files + 20, "file descriptors")


async def test_silent_peer_is_closed(store: Store) -> None:
    """P2: a peer that sends nothing, or no end, is closed after the time limit and gets no verdict."""
    async with running(store, request_timeout_ms=50) as server:
        for data in (b"", block()[:-1]):
            with capture_logs() as logs:
                assert await server.peer().call(data) == b""
                await server.quiet()
            assert events(logs) == ["FastAGI peer too slow"]


async def test_peer_that_never_answers_the_command_is_closed(store: Store) -> None:
    """P2: the verdict is out, the reply never comes: the connection ends after the time limit."""
    async with running(store, request_timeout_ms=400) as server:
        got = await server.peer().call(block(), reply=b"")
        assert got.startswith(b"SET VARIABLE")
        await server.quiet()


@pytest.mark.parametrize("line", [b"agi_x: y\n", b"x" * 1000])
async def test_endless_headers_are_cut_off(store: Store, line: bytes) -> None:
    """P2: a header block over 16 KiB is refused and the peer closed, with no verdict."""
    async with running(store) as server:
        with capture_logs() as logs:
            assert await server.peer().call(line * (40_000 // len(line))) == b""
            await server.quiet()
        assert events(logs) == ["FastAGI request refused"]
        await server.serves()


@pytest.mark.parametrize("reply", [b"", b"200 resu", b"520-Invalid\nUsage: x\n"])
async def test_close_during_the_command(store: Store, reply: bytes) -> None:
    """P3: Asterisk hanging up in mid-reply is an end, not an error, and not even a warning."""
    async with running(store) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        with capture_logs() as logs:
            writer.write(block())
            assert await reader.readline()
            writer.write(reply)
            writer.close()
            await server.quiet()
        assert {line["log_level"] for line in logs} <= {"info", "debug"}
        await server.serves()


@pytest.mark.parametrize("hangups", [b"HANGUP\n", b"HANGUP\nHANGUP\n"])
async def test_hangup_out_of_band(store: Store, hangups: bytes) -> None:
    """P4: HANGUP ahead of the reply is no reply; commands and replies stay in step."""
    async with running(store) as server:
        with capture_logs() as logs:
            assert await server.peer().call(block(), before=hangups)
            await server.quiet()
        assert events(logs) == ["call decided"]


USAGE = (
    b"520-Invalid command syntax.  Proper usage follows:\nUsage: SET VARIABLE\n\n200 x\n520 End of proper usage.\n"
)


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (USAGE, 520),
        (b"HANGUP\n" + USAGE, 520),
        (b"510 Invalid or unknown command\n", 510),
        (b"511 Command Not Permitted on a dead channel or intercept routine\n", 511),
        (b"100 Trying...\nHANGUP\n511 Command Not Permitted on a dead channel\n", 511),
    ],
)
async def test_refused_command_is_logged(store: Store, reply: bytes, status: int) -> None:
    """P5, P6: a 520 is read to its end, 510 and 511 are understood; each is one warning with the status."""
    async with running(store) as server:
        with capture_logs() as logs:
            await server.peer().call(block(), reply)
            await server.quiet()
        refused = [line for line in logs if line["event"] == "Asterisk refused the verdict"]
        assert [line["agi_status"] for line in refused] == [status]


@asynccontextmanager
async def session(answers: bytes) -> AsyncIterator[asterisk.Request]:
    """A request whose peer has sent these bytes and closed."""
    ready: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    server = await asyncio.start_server(lambda r, w: ready.put_nowait((r, w)), "127.0.0.1", 0, limit=1000)
    _, peer = await asyncio.open_connection(*server.sockets[0].getsockname())
    peer.write(answers)
    peer.write_eof()
    reader, writer = await ready.get()
    try:
        yield asterisk.Request(app=None, headers={}, reader=reader, writer=writer)
    finally:
        writer.close()
        peer.close()
        server.close()


async def test_replies_stay_in_step() -> None:
    """P4, P5: three commands get their own three statuses past HANGUP, 100 and a 520 of many lines."""
    async with session(b"HANGUP\n200 result=1\n" + USAGE + b"100 Trying...\n511 dead\n") as request:
        assert [await request.send_command("NOOP") for _ in range(3)] == [200, 520, 511]
        assert request.hung_up
        with pytest.raises(CallerGone):
            await request.send_command("NOOP")


@pytest.mark.parametrize("answers", [b"x\n" * 100, b"520-x\n" + b"y\n" * 100, b"z" * 5000])
async def test_endless_replies_are_refused(answers: bytes) -> None:
    """P2: neither junk lines nor an endless line nor a 520 without an end holds a connection."""
    async with session(answers) as request:
        with pytest.raises(PeerProtocolError):
            await request.send_command("NOOP")


@pytest.mark.parametrize("command", ["NOOP\nEXEC System x", "NOOP\r"])
async def test_command_with_a_line_end_is_refused(command: str) -> None:
    """P11: no text can bring a second command along."""
    async with session(OK) as request:
        with pytest.raises(ValueError, match="line end"):
            await request.send_command(command)


async def test_built_inside_the_loop_with_a_coroutine_route(store: Store) -> None:
    """P7, P8: building it warns of nothing (warnings are errors here), and its one route is a coroutine function."""
    application = asterisk.Application(Guard(store, load("cn"), Settings(), recording=False), Settings())
    assert list(application._route) == ["screen"]
    assert application.loop is asyncio.get_running_loop()
    application.guard.close()


@pytest.mark.parametrize("name", ["Jérôme".encode("latin-1"), "张三".encode("gbk"), b"\xff\xfe\x00\x80"])
async def test_caller_name_that_is_not_utf8(store: Store, name: bytes) -> None:
    """P9: a Latin-1 or GBK caller name, in the block and in the query, costs nobody the verdict."""
    data = block(name="X").replace(b"agi_calleridname: unknown", b"agi_calleridname: " + name)
    data = data.replace(b"name=X", b"name=" + quote(name, safe="").encode())
    async with running(store) as server:
        assert (await server.peer().call(data)).startswith(b'SET VARIABLE PBXGUARD_VERDICT "1|block|603|')


async def test_cancellation_passes(store: Store) -> None:
    """P10: a handler that is cancelled ends as cancelled, and closes its connection."""
    async with running(store) as server:
        ours = asyncio.all_tasks()
        reader, writer = await asyncio.open_connection(*server.address)
        await until(lambda: server.application.open_connections == 1, "connected")
        (task,) = asyncio.all_tasks() - ours
        # The stream protocol of Python 3.11 asks a cancelled handler for its exception; that is not ours to test.
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        task.cancel()
        async with asyncio.timeout(LIMIT):
            assert await reader.read() == b""
        assert task.cancelled()
        assert server.application.open_connections == 0
        writer.close()


# -- our own refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (block().replace(b"/screen?", b"/other?"), "no such FastAGI script"),
        (block("nowhere"), "unknown trunk 'nowhere'; add [trunks.'nowhere']"),
        (block("a\nb" + "x" * 100), "unknown trunk 'a\\nb"),
        (block(v="2"), "another version than 1"),
        (block().replace(b"v=1&", b""), "another version"),
        (b"GET / HTTP/1.1\nHost: x\n\n", "does not start with an agi_request line"),
    ],
)
async def test_request_that_is_not_the_dialplans(store: Store, data: bytes, why: str) -> None:
    """Another script, trunk, version or protocol gets no verdict, and the log one line with the remedy."""
    async with running(store) as server:
        with capture_logs() as logs:
            assert await server.peer().call(data) == b""
            await server.quiet()
        (line,) = logs
        assert line["event"] == "FastAGI request refused"
        assert why in line["why"]
        assert line["why"].isprintable()
        assert store.recent() == ()


async def test_connection_over_the_limit_is_closed(store: Store) -> None:
    """Past max_connections a peer gets no verdict; a flood of them is a few log lines; then calls are served."""
    async with running(store, max_connections=2) as server:
        held = [await asyncio.open_connection(*server.address) for _ in range(2)]
        await until(lambda: server.application.open_connections == 2, "held")
        with capture_logs() as logs:
            assert await server.peer().call(block()) == b""
            for _ in range(20):
                await server.peer().call(b"")
        assert [line["refused"] for line in logs] == [1, 10]
        for _, writer in held:
            writer.close()
        await server.quiet()
        await server.serves()


def _ruin(folder: Path) -> None:
    for path in folder.glob("guard.db*"):
        path.unlink()
    (folder / "guard.db").write_bytes(b"not a database" * 1000)


async def test_store_that_fails_costs_a_policy_and_no_connection(store: Store, tmp_path: Path) -> None:
    """A damaged database gives the trunk's failure policy as a verdict: open here, closed on the enterprise trunk."""
    store.close()
    _ruin(tmp_path)
    async with running(store) as server:
        got = await server.peer().call(block())
        assert got == b'SET VARIABLE PBXGUARD_VERDICT "1|allow||none|||guard_failed|||"\n'
        got = await server.peer().call(block(callee="110"))
        assert got == b'SET VARIABLE PBXGUARD_VERDICT "1|allow||none|||emergency_callee|||"\n'


async def test_port_in_use_is_named(store: Store, tmp_path: Path) -> None:
    """An address that is taken is one line that names it and the remedy."""
    async with running(store) as server:
        taken = settings(port=server.address[1])
        guard = Guard(store, load("cn"), taken, recording=False)
        try:
            with pytest.raises(ServiceUnavailable, match=rf"127\.0\.0\.1:{server.address[1]}.*in use.*port"):
                await asterisk.serve(guard, taken, asyncio.Event(), health.Teller(tmp_path / "told", "asterisk"))
        finally:
            guard.close()


async def test_calls_under_way_are_finished_at_the_end(store: Store, tmp_path: Path) -> None:
    """serve() takes no new call once it is stopped, and ends after the reply to the last one."""
    async with running(store) as spare:
        port = spare.address[1]
    where = settings(port=port)
    guard = Guard(store, load("cn"), where)
    stop = asyncio.Event()
    teller = health.Teller(tmp_path / "told", "asterisk")
    serving = asyncio.create_task(asterisk.serve(guard, where, stop, teller))
    try:
        async with asyncio.timeout(LIMIT):
            while True:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                except ConnectionRefusedError:
                    await asyncio.sleep(0.005)
            data = block()
            writer.write(data[:200])
            await writer.drain()
            stop.set()
            await until(lambda: not _accepts(port), "closed")
            assert not serving.done()
            writer.write(data[200:])
            assert (await reader.readline()).startswith(b"SET VARIABLE")
            writer.write(OK)
            await serving
            writer.close()
    finally:
        serving.cancel()
        guard.close()


def _accepts(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_limits_hold_the_recorded_requests() -> None:
    """A recorded request is far below the size limit, so no real call meets it."""
    assert max(path.stat().st_size for path in FRAMES.glob("agi-*.txt")) * 10 < agi.MAX_HEADER_BYTES
