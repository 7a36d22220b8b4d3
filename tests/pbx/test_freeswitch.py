"""The FreeSWITCH adapter on real sockets, against a peer that sends what a FreeSWITCH sent, or worse."""

import gc
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from time import monotonic

import gevent
import gevent.event
import pytest
from gevent.lock import BoundedSemaphore
from gevent.server import StreamServer
from gevent.socket import SHUT_RDWR, socket
from greenlet import greenlet
from structlog.testing import capture_logs

from pbxguard.config import FreeswitchSettings, GuardSettings, Settings
from pbxguard.errors import CallerGone, ServiceUnavailable
from pbxguard.guard import Guard
from pbxguard.packs import load
from pbxguard.pbx import esl, freeswitch, health
from pbxguard.pbx.esl import release
from pbxguard.pbx.freeswitch import Connection, Freeswitch, serve
from pbxguard.screening.call import Facts, Subscriber
from pbxguard.store import Store

FRAMES = Path(__file__).parents[1] / "frames"
#: The end of an adapter may take its eight seconds of drain, on a busy machine.
LIMIT = 60.0
"""Seconds in which anything here must be done; most take milliseconds."""


def recorded(name: str) -> bytes:
    return (FRAMES / f"esl-{name}.bin").read_bytes()


GREETING, ACCEPTED, LISTENING = (part + b"\n\n" for part in recorded("login").split(b"\n\n")[:3])
REFUSED = recorded("wrong-password").removeprefix(GREETING)
EPOCH = recorded("api")
NO_CHANNEL = recorded("no-channel")
OK = b"Content-Type: api/response\nContent-Length: 4\n\n+OK\n"
FIRED = b"Content-Type: command/reply\nReply-Text: +OK 7a1f\n\n"
ECHO = (
    b"Content-Length: 53\nContent-Type: text/event-plain\n\n"
    b"Event-Name: CUSTOM\nEvent-Subclass: pbxguard%3A%3Aecho\n\n"
)

Answer = bytes | Callable[[], bytes]


@dataclass
class FakeFreeSWITCH:
    """An event socket that knows a password and answers as FreeSWITCH 1.10.12 did, unless told otherwise.

    Attributes:
        greeting: What a new connection gets.
        answers: By the start of a command, what is sent instead of the usual answer; b"" is silence.
        commands: All that came, in their order; empty lines before a command are skipped, and not in it.
        nudges: How many empty lines came.
        peers: The connections that are open.
        logins: How many connections there have been.
    """

    greeting: bytes = GREETING
    answers: dict[str, Answer] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    nudges: int = 0
    peers: list[socket] = field(default_factory=list)
    logins: int = 0
    _writing: BoundedSemaphore = field(default_factory=BoundedSemaphore)

    def start(self, port: int = 0) -> "FakeFreeSWITCH":
        self.server = StreamServer(("127.0.0.1", port), self._peer)
        self.server.start()
        return self

    @property
    def port(self) -> int:
        return self.server.server_port

    def stop(self) -> None:
        self.server.stop()
        self.cut()

    def cut(self) -> None:
        """Lose every connection."""
        for peer in self.peers[:]:
            with suppress(OSError):  # the guard was first
                peer.shutdown(SHUT_RDWR)

    def send(self, data: bytes) -> None:
        """To the guard, on its one connection."""
        (peer,) = self.peers
        self._write(peer, data)

    def _write(self, peer: socket, data: bytes) -> None:
        """One after the other: FreeSWITCH's one thread for a connection never puts a reply into an event."""
        with self._writing:
            peer.sendall(data)

    def verdicts(self) -> dict[str, str]:
        """Variables that were set, by channel."""
        words = [command.split(" ", 3) for command in self.commands]
        return {word[2]: word[3] for word in words if word[1:2] == ["uuid_setvar_multi"]}

    def released(self) -> list[str]:
        """Channels whose wait was ended, in that order."""
        return [command.split()[-3] for command in self.commands if command.startswith("api expand uuid_break ")]

    def _peer(self, peer: socket, _address: object) -> None:
        self.logins += 1
        self.peers.append(peer)
        try:
            peer.sendall(self.greeting)
            left = b""
            while data := peer.recv(65536):
                left = self._skip(left + data)
                while b"\n\n" in left:
                    command, _, left = left.partition(b"\n\n")
                    left = self._skip(left)
                    self.commands.append(command.decode())
                    self._write(peer, self._answer(self.commands[-1]))
        except OSError:
            pass  # cut
        finally:
            self.peers.remove(peer)

    def _skip(self, data: bytes) -> bytes:
        """What comes after the empty lines."""
        found = data.lstrip(b"\n")
        self.nudges += len(data) - len(found)
        return found

    def _answer(self, command: str) -> bytes:
        for start, answer in self.answers.items():
            if command.startswith(start):
                return answer if isinstance(answer, bytes) else answer()
        if command.startswith("auth "):
            return ACCEPTED if command == "auth ClueCon" else REFUSED
        if command.startswith("event "):
            return LISTENING
        if command.startswith("sendevent "):
            return FIRED + ECHO * ("pbxguard::echo" in command)
        return EPOCH if command == "api strepoch" else OK


def screening(number: int, name: str = "screen", **changes: str) -> bytes:
    """The recorded screening event, of another channel and with other headers."""
    head, _, body = recorded(name).partition(b"\n\n")
    changes = {"Unique-ID": channel(number), "variable_sip_call_id": f"c{number}"} | changes
    lines = body.decode().split("\n")
    for key, value in changes.items():
        wanted = key.replace("_", "-") if not key.startswith("variable") else key
        lines = [f"{wanted}: {value}" if line.startswith(f"{wanted}: ") else line for line in lines]
    body = "\n".join(lines).encode()
    length = b"Content-Length: %d" % len(body)
    return head.replace(head.split(b"\n")[0], length) + b"\n\n" + body


def channel(number: int) -> str:
    return f"00000000-0000-0000-0000-{number:012}"


class Stalled(Store):
    """A store on a stalled disk: facts come only when it is released."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.released = threading.Event()
        self.asked = 0

    def facts(self, cli_key: str | None, callees: tuple[str, ...], tags: tuple[str, ...] = ()) -> Facts:
        self.asked += 1
        self.released.wait(LIMIT)
        return super().facts(cli_key, callees, tags)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "guard.db") as opened:
        opened.add_subscriber(Subscriber("13957100001", "cm", "zhejiang"))
        yield opened


@pytest.fixture
def stalled(store: Store) -> Iterator[Stalled]:
    with Stalled(store.path) as opened:
        yield opened
        opened.released.set()


@pytest.fixture
def switch() -> Iterator[FakeFreeSWITCH]:
    one = FakeFreeSWITCH().start()
    yield one
    one.stop()


Serving = Callable[..., Freeswitch]


@pytest.fixture
def serving(store: Store) -> Iterator[Serving]:
    """Start the adapter for a FreeSWITCH, and wait until it is connected."""
    started: list[tuple[Freeswitch, greenlet]] = []
    guards: list[Guard] = []

    def start(
        fake: FakeFreeSWITCH, *, asked: Store = store, wait: bool = True, deadline_ms: int = 2000,
        workers: int = 4, **where: object
    ) -> Freeswitch:  # fmt: skip
        settings = Settings(
            guard=GuardSettings(deadline_ms=deadline_ms, workers=workers),
            freeswitch={"fs": FreeswitchSettings(**({"port": fake.port} | where))},
        )
        guard = Guard(asked, load("cn"), settings, recording=False)
        guards.append(guard)
        adapter = Freeswitch("fs", guard, settings, lambda: None)
        started.append((adapter, gevent.spawn(adapter.run)))
        if wait:
            assert adapter.connected.wait(LIMIT), "not connected"
        return adapter

    yield start
    for adapter, _ in started:
        adapter.stop()
    for _, running in started:
        running.join(LIMIT)
        assert running.successful(), "the adapter died or does not end"
    for guard in guards:
        guard.close()


def connection(fake: FakeFreeSWITCH, **where: object) -> Connection:
    return Connection(FreeswitchSettings(**({"port": fake.port, "timeout_ms": 300} | where)), lambda event: None)


def until(condition: Callable[[], object], what: str) -> None:
    """Let the others go on until a condition holds, with a limit."""
    began = monotonic()
    while not condition():
        assert monotonic() - began < LIMIT, f"{what}: not within {LIMIT} s"
        gevent.sleep(0.002)


def serves(fake: FakeFreeSWITCH, number: int = 0) -> None:
    """A usual call gets its verdict within the limit."""
    fake.send(screening(number))
    until(lambda: channel(number) in fake.released(), "a verdict")


def events(logs: list) -> list[str]:
    return [line["event"] for line in logs]


# -- the good case --------------------------------------------------------------------------------------------


def test_login(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """It logs in and asks for the screening events and its own alone."""
    serving(switch)
    assert switch.commands[:2] == ["auth ClueCon", "event plain CUSTOM pbxguard::screen pbxguard::echo"]


def test_events_come_through_before_the_first_heartbeat(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """The dialplan is told to wait only when events come through.

    FreeSWITCH 1.10.12 holds all of them up for 0.5 s at the first presence event of its life (measured: up to 500 ms
    from INVITE to the screening event when the first calls came with it), so it gets that one first.
    """
    switch.answers["sendevent CUSTOM"] = FIRED
    adapter = serving(switch, wait=False)
    until(lambda: "sendevent CUSTOM\nEvent-Subclass: pbxguard::echo" in switch.commands, "an event of its own")
    assert switch.commands[2:4] == ["sendevent PRESENCE_PROBE", switch.commands[-1]]
    assert not adapter.connected.is_set()
    switch.send(ECHO)
    assert adapter.connected.wait(LIMIT)
    assert any("global_setvar pbxguard_until=" in command for command in switch.commands[4:])


def test_events_that_do_not_come_through(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """A FreeSWITCH that delivers no events is not served, says so, and is tried again."""
    switch.answers["sendevent CUSTOM"] = FIRED
    adapter = serving(switch, wait=False, timeout_ms=100)
    until(lambda: switch.logins == 2, "another try")
    assert (adapter.connected.is_set(), adapter.why) == (False, "FreeSWITCH takes events and does not deliver them")


def test_ready_after_the_first_heartbeat(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """It is not ready before the dialplan has been told that it may wait."""
    switch.answers["api global_setvar"] = b""
    adapter = serving(switch, wait=False)
    until(lambda: any("global_setvar" in command for command in switch.commands), "the heartbeat")
    assert not adapter.connected.is_set()
    switch.send(OK)
    assert adapter.connected.wait(LIMIT)


@pytest.mark.parametrize("now", [b"", b"-ERR", b"\xff", b"soon"])
def test_heartbeat_without_a_clock(switch: FakeFreeSWITCH, serving: Serving, now: bytes) -> None:
    """A FreeSWITCH that does not tell its time gets no heartbeat and is not ready; the reason is said."""
    switch.answers["api strepoch"] = b"Content-Type: api/response\nContent-Length: %d\n\n%b" % (len(now), now)
    adapter = serving(switch, wait=False)
    until(lambda: switch.logins == 2, "another try")
    assert (adapter.connected.is_set(), adapter.why) == (False, "FreeSWITCH does not tell its time (strepoch)")
    assert not any("global_setvar" in command for command in switch.commands)


def test_a_call(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """A call's variables are set before its wait ends, in two commands that name its channel."""
    serving(switch)
    serves(switch, 7)
    mine = [command for command in switch.commands if channel(7) in command]
    packed = (
        "pbxguard_reason=intl_default_off;pbxguard_status=603 Decline;pbxguard_mode=early;"
        "pbxguard_say1=zh/intl_default_off.wav;pbxguard_say2=en/intl_default_off.wav;pbxguard_verdict=1-block"
    )
    assert mine == [f"api uuid_setvar_multi {channel(7)} {packed}", release(channel(7)).decode().strip()]


def test_a_call_in_pieces(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """An event that dribbles in is screened as one that comes whole."""
    serving(switch)
    # The next heartbeat, whose replies must not come between, is a second away.
    until(lambda: any("global_setvar" in command for command in switch.commands), "a heartbeat")
    data = screening(1)
    for offset in range(0, len(data), 11):
        switch.send(data[offset : offset + 11])
        gevent.sleep(0)
    until(lambda: switch.released() == [channel(1)], "a verdict")


def test_heartbeat(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """While it is connected, the dialplan is told so on FreeSWITCH's clock; with the connection it ends."""
    serving(switch)
    now = int(EPOCH.rpartition(b"\n")[2])
    beat = f"api global_setvar pbxguard_until={now + 3}"
    until(lambda: switch.commands.count(beat) == 2, "two heartbeats")
    switch.server.stop()
    switch.cut()
    until(lambda: not switch.peers, "the end")
    assert switch.commands.count(beat) == 2


def test_burst(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """More calls at once than are decided at once are all answered, on the one connection and once each."""
    serving(switch)
    switch.send(b"".join(screening(number) for number in range(300)))
    until(lambda: len(switch.released()) == 300, "300 verdicts")
    assert sorted(switch.released()) == [channel(number) for number in range(300)]
    assert set(switch.verdicts()) == {channel(number) for number in range(300)}
    assert switch.logins == 1


def test_variables_come_before_the_release(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """With many calls in between, no wait ends before its variables are there."""
    serving(switch)
    switch.send(b"".join(screening(number) for number in range(50)))
    until(lambda: len(switch.released()) == 50, "50 verdicts")
    seen = set()
    for command in switch.commands:
        words = command.split(" ", 3)
        if words[1:2] == ["uuid_setvar_multi"]:
            seen.add(words[2])
        elif words[1:3] == ["expand", "uuid_break"]:
            assert command.split()[-3] in seen


def test_hostile_call(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """The recorded hostile call is refused for its number, and nothing else is done (G1)."""
    serving(switch)
    switch.send(screening(3, "hostile"))
    until(lambda: switch.released() == [channel(3)], "a verdict")
    assert "pbxguard_reason=cli_invalid;" in switch.verdicts()[channel(3)]
    starts = ("auth ", "event ", "sendevent ", "api strepoch", "api global_setvar ", "api uuid_setvar_multi ",
              "api expand uuid_break ${cond(")  # fmt: skip
    assert all(command.startswith(starts) for command in switch.commands)


# -- replies --------------------------------------------------------------------------------------------------


def test_replies_in_step(switch: FakeFreeSWITCH) -> None:
    """Commands from many greenlets get their own replies, however events stand between."""
    made = connection(switch)
    made.connect()
    count = iter(range(100))

    def numbered() -> bytes:
        body = b"%d" % next(count)
        return screening(0) + b"Content-Type: api/response\nContent-Length: %d\n\n%b" % (len(body), body)

    switch.answers["api number"] = numbered
    asked = [gevent.spawn(made.send, "api", f"number{turn}") for turn in range(100)]
    gevent.joinall(asked, LIMIT)
    order = [command for command in switch.commands if "number" in command]
    assert {f"api number{turn}": int(one.get().body) for turn, one in enumerate(asked)} == {
        command: place for place, command in enumerate(order)
    }
    made.close("done")


def test_body_with_headers_in_it(switch: FakeFreeSWITCH) -> None:
    """A reply whose body looks like frames is one reply (G12)."""
    body = b"Content-Type: command/reply\nReply-Text: +OK\n\n\n\n"
    switch.answers["api x"] = b"Content-Type: api/response\nContent-Length: %d\n\n%b" % (len(body), body)
    made = connection(switch)
    made.connect()
    assert made.send("api", "x").body == body
    assert made.send("api", "strepoch").body == EPOCH.rpartition(b"\n")[2]
    made.close("done")


@pytest.mark.parametrize("end", ["\n", "\r", "\0"])
def test_line_end_in_an_argument(switch: FakeFreeSWITCH, end: str) -> None:
    """A line end in an argument is refused, nothing of it is sent, and the connection goes on (G13)."""
    made = connection(switch)
    made.connect()
    with pytest.raises(ValueError, match="line end"):
        made.send("api", f"x{end}{end}bgapi shutdown")
    assert made.send("api", "strepoch").body.isdigit()
    assert len(switch.commands) == 2
    made.close("done")


def test_reply_to_nothing(switch: FakeFreeSWITCH) -> None:
    """A reply that nobody waits for ends the connection, since later ones would be out of step."""
    made = connection(switch)
    made.connect()
    switch.send(OK)
    assert made.ended.wait(LIMIT)
    assert made.why == "a reply to nothing"


def test_late_reply(switch: FakeFreeSWITCH) -> None:
    """A reply that comes too late is dropped in its turn: the next command has its own, on the same connection."""
    made = connection(switch)
    made.connect()
    switch.answers["api x"] = b""
    for _ in range(2):
        with pytest.raises(gevent.Timeout):
            made.send("api", "x")
    assert made.connected
    late = gevent.spawn(made.send, "api", "strepoch")
    switch.answers["api strepoch"] = OK + NO_CHANNEL + EPOCH
    assert late.get(timeout=LIMIT).body.isdigit()
    assert (made.connected, switch.logins) == (True, 1)


def test_half_a_command(switch: FakeFreeSWITCH) -> None:
    """A command of which a part was sent when its time was over ends the connection: no other may follow it."""
    made = connection(switch, timeout_ms=200)
    made.connect()
    # The peer reads no more while it holds the lock that its answers need.
    with switch._writing, pytest.raises(gevent.Timeout):
        made.ask(esl.command("api", "x"), esl.command("api", "x" * 50_000_000))
    assert (made.why, made.connected) == ("no reply in time", False)
    with pytest.raises(CallerGone, match="no reply in time"):
        made.send("api", "strepoch")


def test_long_command_arrives_whole(switch: FakeFreeSWITCH) -> None:
    """A command that is longer than what the socket takes at once arrives whole, and others wait behind it (G13)."""
    made = connection(switch, timeout_ms=5000)
    made.connect()
    long = "x" * 3_000_000
    sent = [gevent.spawn(made.send, "api", word) for word in (long, "strepoch", long)]
    gevent.joinall(sent, LIMIT)
    assert [one.successful() for one in sent] == [True] * 3
    assert switch.commands[1:] == [f"api {long}", "api strepoch", f"api {long}"]
    made.close("done")


# -- hostile or broken peers ----------------------------------------------------------------------------------


def test_close_in_the_middle_of_a_body(switch: FakeFreeSWITCH) -> None:
    """A peer that ends inside a body ends the connection, and the loop goes on (G2)."""
    made = connection(switch)
    made.connect()
    switch.send(recorded("screen")[:900])
    waiting = gevent.spawn(made.send, "api", "x")
    switch.answers["api x"] = b""
    until(lambda: "api x" in switch.commands, "the command")
    began = monotonic()
    switch.cut()
    with pytest.raises(CallerGone, match="FreeSWITCH closed the connection"):
        waiting.get()
    assert monotonic() - began < 0.2


@pytest.mark.parametrize("pending", [1, 50])
def test_close_while_commands_are_pending(switch: FakeFreeSWITCH, pending: int) -> None:
    """Every pending command fails at once when the peer closes (G3)."""
    switch.answers["api x"] = b""
    made = connection(switch, timeout_ms=5000)
    made.connect()
    waiting = [gevent.spawn(made.send, "api", "x") for _ in range(pending)]
    until(lambda: switch.commands.count("api x") == pending, "the commands")
    began = monotonic()
    switch.cut()
    gevent.joinall(waiting, LIMIT)
    assert monotonic() - began < 0.5
    assert {type(one.exception) for one in waiting} == {CallerGone}


@pytest.mark.parametrize(
    "frame",
    [
        b"A: b\n\n",
        b"no colon\n\n",
        b"Content-Type: text/event-json\nContent-Length: 2\n\n{}",
        b"Content-Type: text/event-plain\nContent-Length: 4\n\n\xff\xfe\n\n",
        b"Content-Type: text/event-plain\n\n",
        b"Content-Type: log/data\nContent-Length: 3\nLog-Level: 1\n\nabc",
        b"Content-Type: \xff\n\n",
        b"Content-Type: auth/request\n\n",
        b"\n\n\n",
    ],
)
def test_odd_frames(switch: FakeFreeSWITCH, serving: Serving, frame: bytes) -> None:
    """A frame of no or another type is passed over, and calls are served on the same connection (G4)."""
    serving(switch)
    switch.send(frame)
    serves(switch)
    assert switch.logins == 1


def test_reader_that_breaks_ends_the_connection(switch: FakeFreeSWITCH) -> None:
    """Whatever goes wrong with an event, nobody waits for a reader that is gone (G4)."""

    def breaks(_event: dict[str, str]) -> None:
        raise RuntimeError("broken")

    made = Connection(FreeswitchSettings(port=switch.port), breaks)
    made.connect()
    with capture_logs() as logs:
        switch.send(screening(0))
        assert made.ended.wait(LIMIT)
    assert not made.connected
    assert made.why == "internal error (RuntimeError); see the log"
    assert events(logs) == ["event socket reader failed"]


@pytest.mark.parametrize(
    "data",
    [b"Content-Length: -1\n\n", b"Content-Length: 99999999\n\n", b"a" * 70_000],
    ids=["minus", "huge", "endless"],
)
def test_broken_protocol(switch: FakeFreeSWITCH, serving: Serving, data: bytes) -> None:
    """A peer that breaks the protocol loses the connection, and a new one is made."""
    serving(switch)
    switch.send(data)
    until(lambda: switch.logins == 2 and switch.commands.count("api strepoch") > 1, "a new connection")
    serves(switch)


def test_event_that_breaks_its_own_screening(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """Whatever goes wrong with one event, those before and after it are screened on the same connection (G8)."""
    adapter = serving(switch)
    now, broken = adapter.guard.clock, iter([False, True, False])

    def clock() -> datetime:
        if next(broken):
            raise RuntimeError("broken")
        return now()

    adapter.guard.clock = clock
    with capture_logs() as logs:
        switch.send(b"".join(screening(number) for number in range(3)))
        until(lambda: len(switch.released()) == 2, "2 verdicts")
        # A command that has come here is not yet a reply that has come there.
        until(lambda: not adapter._calls, "the end of all three")
    assert events(logs).count("screening failed") == 1
    assert switch.logins == 1


def test_only_the_name_of_greenswitch_is_used() -> None:
    """Its reader, queue, handlers, ``connect``, ``send`` and its outbound server are none of ours (G2, G6 to G11).

    We accept no connection from FreeSWITCH and execute no application over the event socket.
    """
    import ast

    from greenswitch.esl import ESLProtocol, InboundESL

    own = set(vars(Connection))
    assert {"connect", "send", "receive_events", "__init__"} <= own
    tree = ast.parse(Path(freeswitch.__file__).read_text())
    of_it = {node.attr for node in ast.walk(tree)
             if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "greenswitch"}  # fmt: skip
    assert of_it == {"InboundESL"}
    called = {node.func.attr for node in ast.walk(tree)
              if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}  # fmt: skip
    theirs = {name for one in (ESLProtocol, InboundESL) for name in vars(one) if not name.startswith("__")}
    assert called & (theirs - own) <= {"stop"}, "stop() is that of our adapter"


def test_greenswitch_logs_nothing(switch: FakeFreeSWITCH, serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    """No number of a caller goes through the root logger, whose lines nobody masks (G14)."""
    with caplog.at_level("DEBUG"):
        serving(switch)
        serves(switch, 1)
        switch.send(screening(2, "hostile"))
        until(lambda: channel(2) in switch.released(), "a verdict")
    assert caplog.records == []


# -- logging in -----------------------------------------------------------------------------------------------


def test_silent_server(switch: FakeFreeSWITCH) -> None:
    """A server that says nothing costs the time limit and no more (G5)."""
    switch.greeting = b""
    began = monotonic()
    with pytest.raises(ServiceUnavailable, match=rf"^FreeSWITCH at 127.0.0.1:{switch.port}: it is silent; look at"):
        connection(switch).connect()
    assert 0.25 < monotonic() - began < 1


def test_server_silent_after_the_greeting(switch: FakeFreeSWITCH) -> None:
    """So does one that greets and does not answer the password (G5)."""
    switch.answers["auth"] = b""
    with pytest.raises(ServiceUnavailable, match="it is silent"):
        connection(switch).connect()


def test_wrong_password(switch: FakeFreeSWITCH) -> None:
    """The wrong password is one clear line with the remedy, without the password (G5)."""
    with pytest.raises(ServiceUnavailable, match=r"refuses the password; set freeswitch\.NAME\.password$") as raised:
        connection(switch, password="secret").connect()
    assert "secret" not in str(raised.value)
    until(lambda: not switch.peers, "the end of the connection")


def test_refused_by_the_access_list(switch: FakeFreeSWITCH) -> None:
    """A host that the access list refuses is told so."""
    switch.greeting = recorded("rude-rejection")
    with pytest.raises(ServiceUnavailable, match=r"its access list refuses this host; .*apply-inbound-acl"):
        connection(switch).connect()


@pytest.mark.parametrize(
    "where", [{"port": 1}, {"host": "192.0.2.1", "timeout_ms": 100}, {"host": "nowhere.invalid"}, {"host": "a..b"}]
)
def test_nobody_there(switch: FakeFreeSWITCH, where: dict[str, object]) -> None:
    """An address where no FreeSWITCH is gives one clear line."""
    with pytest.raises(ServiceUnavailable, match="does not take a connection: ") as raised:
        connection(switch, **where).connect()
    assert "\n" not in str(raised.value)


def test_password_with_a_line_end(switch: FakeFreeSWITCH) -> None:
    """A password that cannot be sent is a clear error, and nothing of it is sent."""
    with pytest.raises(ServiceUnavailable, match="password holds a line end"):
        connection(switch, password="a\n\nexit").connect()
    assert switch.commands == []


def test_event_not_granted(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """A FreeSWITCH that refuses the events is not one that is served: it is tried again."""
    switch.answers["event"] = b"Content-Type: command/reply\nReply-Text: -ERR no keywords supplied\n\n"
    adapter = serving(switch, wait=False)
    until(lambda: switch.logins == 2, "another try")
    assert not adapter.connected.is_set()


# -- reconnecting ---------------------------------------------------------------------------------------------


def test_reconnects_after_a_cut(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """A connection that is cut is made again within a second, and calls are served."""
    adapter = serving(switch)
    with capture_logs() as logs:
        for turn in range(3):
            switch.cut()
            until(lambda turn=turn: switch.logins == turn + 2 and adapter.connected.is_set(), "a new connection")
            serves(switch, turn)
    assert events(logs).count("no event socket") == 3


def test_reconnects_when_freeswitch_comes_back(serving: Serving) -> None:
    """It waits for a FreeSWITCH that is not there with growing pauses, and finds it when it comes."""
    fake = FakeFreeSWITCH().start()
    port = fake.port
    fake.stop()
    with capture_logs() as logs:
        adapter = serving(fake, wait=False, port=port)
        until(lambda: events(logs).count("no event socket") == 3, "three tries")
        assert [line["again_in_s"] for line in logs][:3] == [0.2, 0.5, 1.0]
        fake.start(port)
        assert adapter.connected.wait(LIMIT)
    serves(fake)
    fake.stop()


def test_no_storm_of_connections(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """A FreeSWITCH that lets us in and then closes is tried again with pauses, not in a tight loop."""

    def gone() -> bytes:
        gevent.spawn(switch.cut)
        return b""

    switch.answers["api strepoch"] = gone
    serving(switch, wait=False)
    until(lambda: switch.logins == 3, "three tries")
    assert switch.logins == 3
    gevent.sleep(0.3)
    assert switch.logins <= 4


def test_disconnect_notice(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """A FreeSWITCH that says good-bye is left, and connected again."""
    serving(switch)
    switch.send(recorded("disconnect").split(b"\n\n", 1)[1])
    until(lambda: switch.logins == 2 and len(switch.peers) == 1, "a new connection")
    serves(switch)


def test_silent_heartbeat(switch: FakeFreeSWITCH, serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FreeSWITCH that stops answering is left after three heartbeats, and not before."""
    monkeypatch.setattr(freeswitch, "_HEARTBEAT_S", 0.1)
    serving(switch, timeout_ms=200)
    began, before = monotonic(), switch.commands.count("api strepoch")
    switch.answers["api strepoch"] = b""
    until(lambda: switch.logins == 2, "a new connection")
    assert monotonic() - began > 0.6
    # The fourth: the new connection's, or one that was answered before the silence.
    assert 3 <= switch.commands.count("api strepoch") - before <= 5


def test_wait_for_what_was_just_set() -> None:
    """Waiting for an event that is set already ends at once, also when the last other waiter gives up before it is
    woken (gevent's own wait never ends then, so that a lost FreeSWITCH was never connected again).
    """
    event = gevent.event.Event()

    def other(_: object) -> None:
        raise AssertionError("it gave up")

    event.rawlink(other)
    gevent.get_hub().loop.run_callback(event.unlink, other)
    event.set()
    with gevent.Timeout(LIMIT):
        assert freeswitch._wait_within(event, 0.1)


def test_late_heartbeat(switch: FakeFreeSWITCH, serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats of which every second one is answered too late cost no connection, and calls are served."""
    monkeypatch.setattr(freeswitch, "_HEARTBEAT_S", 0.05)
    serving(switch, timeout_ms=100)
    turns = itertools.count()

    def sometimes_late() -> bytes:
        if next(turns) % 2:
            gevent.sleep(0.15)
        return EPOCH

    switch.answers["api strepoch"] = sometimes_late
    asked = len(switch.commands)
    until(lambda: switch.commands[asked:].count("api strepoch") > 12, "a dozen heartbeats")
    switch.answers.clear()
    serves(switch, 1)
    assert switch.logins == 1


# -- calls that cannot be decided or delivered ------------------------------------------------------------------


@pytest.mark.parametrize(("trunk", "verdict"), [("natl", "1-allow"), ("ent", "1-block")])
def test_deadline(switch: FakeFreeSWITCH, serving: Serving, stalled: Stalled, trunk: str, verdict: str) -> None:
    """A store that does not answer costs a call the deadline; then the trunk's failure policy is sent."""
    serving(switch, asked=stalled, deadline_ms=100)
    began = monotonic()
    sender = "%3Csip%3A057186554321%40h%3E%3Btag%3D1"  # allocated to ent, so that no rule decides without the store
    found = {"variable_sip_from_user": "057186554321", "variable_sip_from_host": "h"}
    switch.send(screening(1, variable_pbxguard_trunk=trunk, variable_sip_full_from=sender, **found))
    until(lambda: switch.released() == [channel(1)], "a verdict")
    assert 0.09 < monotonic() - began < 0.6
    assert switch.verdicts()[channel(1)].startswith("pbxguard_reason=guard_failed;")
    assert switch.verdicts()[channel(1)].endswith(f"pbxguard_verdict={verdict}")


def test_deadline_of_many(switch: FakeFreeSWITCH, serving: Serving, stalled: Stalled) -> None:
    """A stalled store with more calls than threads holds none of them beyond the deadline, nor the heartbeat."""
    serving(switch, asked=stalled, deadline_ms=100)
    began = monotonic()
    switch.send(b"".join(screening(number) for number in range(200)))
    until(lambda: len(switch.released()) == 200, "200 verdicts")
    assert monotonic() - began < 1.0
    assert all("guard_failed" in packed for packed in switch.verdicts().values())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"variable_pbxguard_trunk": "nobody"}, "unknown trunk 'nobody'; add [trunks.'nobody'] to pbxguard.toml"),
        ({"variable_pbxguard_trunk": ""}, "unknown trunk ''"),
        ({"Pbxguard_Version": "2"}, "the dialplan speaks another version; install the one of this release"),
        ({"Unique_ID": "x%0Ay"}, "an event without a channel"),
    ],
)
def test_request_that_is_refused(switch: FakeFreeSWITCH, serving: Serving, changes: dict[str, str], why: str) -> None:
    """An event that cannot be screened gets no reply, and a log line with the remedy; the next call is served."""
    serving(switch)
    changes = {name.replace("Unique_ID", "Unique-ID"): value for name, value in changes.items()}
    with capture_logs() as logs:
        switch.send(screening(1, **changes))
        serves(switch, 2)
    (line,) = [line for line in logs if line["event"] == "screening event refused"]
    assert line["why"].startswith(why)
    assert switch.released() == [channel(2)]


def test_stalled_disk_with_very_many_calls(switch: FakeFreeSWITCH, serving: Serving, stalled: Stalled) -> None:
    """2,000 calls at once on a stalled disk all fail by the deadline, and no more wait for it than the bound says.

    Once the disk is back the next call is decided.
    """
    adapter = serving(switch, asked=stalled, deadline_ms=300, timeout_ms=5000)
    workers = adapter.guard._workers
    began = monotonic()
    with capture_logs() as logs:
        switch.send(b"".join(screening(number) for number in range(2000)))
        until(lambda: len(switch.released()) == 2000, "2000 verdicts")
    assert monotonic() - began < LIMIT
    decided = [line for line in logs if line["event"] == "call decided"]
    assert {line["reason"] for line in decided} == {"guard_failed"}
    # What the loop itself needs for 2,000 events comes on top of the deadline.
    assert min(line["elapsed_us"] for line in decided) < 300_000
    assert workers._waiting.qsize() <= workers.most_waiting == 64 * 4
    stalled.released.set()
    until(lambda: workers._waiting.qsize() == 0 and not adapter._calls, "nothing under way")
    switch.send(screening(5000))
    until(lambda: channel(5000) in switch.released(), "a verdict")
    assert "intl_default_off" in switch.verdicts()[channel(5000)]


def test_as_many_decisions_at_once_as_workers(switch: FakeFreeSWITCH, serving: Serving, stalled: Stalled) -> None:
    """The decisions under way are as many as `guard.workers`, in threads that are there before the first call."""
    before = {thread.name for thread in threading.enumerate()}
    adapter = serving(switch, asked=stalled, workers=3)
    mine = [thread for thread in threading.enumerate() if thread.name.startswith("decide_")]
    assert len(mine) == 3 + sum(name.startswith("decide_") for name in before)
    switch.send(b"".join(screening(number) for number in range(9)))
    until(
        lambda: stalled.asked == 3 and adapter.guard._workers._waiting.qsize() == 6, "three at work and six waiting"
    )
    stalled.released.set()
    until(lambda: len(switch.released()) == 9, "9 verdicts")


def test_more_calls_than_can_wait(
    switch: FakeFreeSWITCH, serving: Serving, stalled: Stalled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls over the bound are left to the dialplan and counted, not with a line each; the others go on."""
    monkeypatch.setattr(freeswitch, "_MOST_CALLS", 5)
    adapter = serving(switch, asked=stalled)
    with capture_logs() as logs:
        switch.send(b"".join(screening(number) for number in range(20)))
        until(lambda: adapter.refused == 15, "15 refused")
        assert [line["refused"] for line in logs if line["event"].startswith("too many calls")] == [1, 10]
        stalled.released.set()
        until(lambda: len(switch.released()) == 5, "5 verdicts")
    serves(switch, 9)
    assert switch.logins == 1


def test_other_events_are_not_screened(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """An event of another kind is passed over."""
    serving(switch)
    switch.send(screening(1).replace(b"pbxguard%3A%3Ascreen", b"pbxguard%3A%3Ascreex"))
    serves(switch, 2)
    assert switch.released() == [channel(2)]


def test_caller_gone(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """A caller who has hung up meanwhile is no trouble: it is noted once, and the next call is served."""
    adapter = serving(switch)
    switch.answers |= {f"api uuid_setvar_multi {channel(1)}": NO_CHANNEL, release(channel(1)).decode(): NO_CHANNEL}
    with capture_logs() as logs:
        switch.send(screening(1))
        serves(switch, 2)
        # The two are decided side by side: the second may be done before the first.
        until(lambda: not adapter._calls, "the end of both")
    assert [line["event"] for line in logs if line["log_level"] != "info"] == ["caller gone"]
    assert switch.logins == 1


def test_nudges_are_no_commands(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """The empty lines that make FreeSWITCH look for events come all the time, and no command is changed by one."""
    serving(switch)
    before = switch.nudges
    until(lambda: switch.nudges > before + 20, "nudges")
    switch.send(b"".join(screening(number) for number in range(50)))
    until(lambda: len(switch.released()) == 50, "50 verdicts")
    known = ("auth ", "event ", "sendevent ", "api ")
    assert [command for command in switch.commands if not command.startswith(known)] == []
    assert switch.logins == 1


def test_nudges_end_with_the_connection(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """A connection that is cut leaves nobody who writes to it; the next one has its own nudges."""
    adapter = serving(switch)
    switch.cut()
    until(lambda: switch.logins == 2 and adapter.connected.is_set(), "a new connection")
    before = switch.nudges
    until(lambda: switch.nudges > before, "nudges")
    running = [one for one in gc.get_objects() if isinstance(one, gevent.Greenlet) and not one.dead]
    assert sum(getattr(one._run, "__name__", "") == "nudge" for one in running) == 1


def test_cut_before_the_verdict(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """A connection that is lost before the verdict was taken is said, and later calls are served."""
    adapter = serving(switch)
    switch.answers["api uuid_setvar_multi"] = b""
    with capture_logs() as logs:
        switch.send(screening(1))
        until(lambda: channel(1) in switch.verdicts(), "the verdict")
        switch.cut()
        until(lambda: "verdict not delivered" in events(logs), "the log line")
    switch.answers.clear()
    until(lambda: switch.logins == 2 and adapter.connected.is_set(), "a new connection")
    serves(switch, 2)


# -- several, and the end ---------------------------------------------------------------------------------------


def test_two_freeswitches(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """One FreeSWITCH that dies or is silent does not touch the calls of the other."""
    other = FakeFreeSWITCH().start()
    serving(switch)
    serving(other)
    serves(switch, 1)
    serves(other, 1)
    other.answers["api"] = b""
    other.send(screening(2))
    serves(switch, 2)
    other.stop()
    serves(switch, 3)
    assert switch.logins == 1


def test_stop_drains(switch: FakeFreeSWITCH, serving: Serving, stalled: Stalled) -> None:
    """When it is told to end, calls under way get their verdict, later ones none."""
    adapter = serving(switch, asked=stalled)
    switch.send(screening(1))
    until(lambda: len(adapter._calls) == 1, "a call under way")
    ending = gevent.spawn(adapter.stop)
    until(adapter._stop.is_set, "stopping")
    switch.send(screening(2))
    stalled.released.set()
    ending.join(LIMIT)
    until(lambda: not switch.peers, "the end")
    assert switch.released() == [channel(1)]


def test_stop_takes_the_heartbeat_back(switch: FakeFreeSWITCH, serving: Serving, stalled: Stalled) -> None:
    """Whoever ends tells the dialplan first, then finishes the calls under way, then disconnects.

    An event that was on its way when the heartbeat was taken back is still answered.
    """
    adapter = serving(switch, asked=stalled)
    switch.send(screening(1))
    until(lambda: len(adapter._calls) == 1, "a call under way")

    def late() -> bytes:
        return OK + screening(2)

    switch.answers["api global_setvar pbxguard_until=0"] = late
    ending = gevent.spawn(adapter.stop)
    until(lambda: len(adapter._calls) == 2, "the late call")
    assert switch.peers
    stalled.released.set()
    ending.join(LIMIT)
    until(lambda: not switch.peers, "the end")
    assert set(switch.released()) == {channel(1), channel(2)}
    beats = [command for command in switch.commands if "global_setvar" in command]
    assert beats[-1] == "api global_setvar pbxguard_until=0"
    assert beats.count(beats[-1]) == 1


def test_no_heartbeat_after_the_last(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """A heartbeat that was being made when the end came is not sent after it was taken back."""
    adapter = serving(switch)
    asked = switch.commands.count("api strepoch")
    switch.answers |= {"api strepoch": b"", "api global_setvar": b""}
    until(lambda: switch.commands.count("api strepoch") > asked, "the next heartbeat")
    ending = gevent.spawn(adapter.stop)
    until(lambda: switch.commands[-1] == "api global_setvar pbxguard_until=0", "the end of the heartbeat")
    switch.send(EPOCH + OK)
    ending.join(LIMIT)
    assert switch.commands[-1] == "api global_setvar pbxguard_until=0"


def test_stop_of_a_silent_freeswitch(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """A FreeSWITCH that does not answer holds up the end for no more than half a second."""
    adapter = serving(switch, timeout_ms=5000)
    switch.answers["api"] = b""
    began = monotonic()
    adapter.stop()
    assert 0.4 < monotonic() - began < 1.5


@pytest.mark.parametrize("trouble", ["nobody", "silent", "no events"])
def test_stop_while_not_connected(switch: FakeFreeSWITCH, serving: Serving, trouble: str) -> None:
    """It ends at once, too, while it has no connection or is making one."""
    if trouble == "nobody":
        switch.stop()
    elif trouble == "silent":
        switch.greeting = b""
    else:
        switch.answers["sendevent"] = FIRED
    adapter = serving(switch, wait=False)
    if trouble == "no events":
        until(lambda: any("echo" in command for command in switch.commands[2:]), "a login")
    elif trouble == "silent":
        until(lambda: switch.peers, "a try")
    else:
        gevent.sleep(0.05)
    began = monotonic()
    adapter.stop()
    until(lambda: not switch.peers, "the end")
    assert monotonic() - began < 0.5


def test_serve_says_when_it_is_ready(tmp_path: Path, store: Store, switch: FakeFreeSWITCH) -> None:
    """The health file follows the connections: which one is missing and why, and that all are there; SIGTERM ends it.

    One of two FreeSWITCHes going away touches no call of the other: those under way get their verdict, new ones too.
    """
    import os
    import signal

    other = FakeFreeSWITCH().start()
    port = other.port
    other.stop()
    where = {"a": FreeswitchSettings(port=switch.port), "b": FreeswitchSettings(port=port)}
    settings = Settings(freeswitch=where)
    guard = Guard(store, load("cn"), settings, recording=False)

    def said() -> list[tuple[bool, str]]:
        return [(one.ready, one.detail) for one in health.heard(tmp_path)]

    with health.told(tmp_path, "freeswitch") as teller:
        running = gevent.spawn(serve, guard, settings, teller)
        away = f"not connected: b (FreeSWITCH at 127.0.0.1:{port} does not take a connection: Connection refused)"
        until(lambda: said() == [(False, away)], "one of two")
        other.start(port)
        until(lambda: said() == [(True, "connected to every FreeSWITCH")], "both")
        switch.send(screening(1))
        other.send(screening(2))
        other.stop()
        until(lambda: said() == [(False, "not connected: b (FreeSWITCH closed the connection)")], "the loss")
        serves(switch, 3)
        until(lambda: set(switch.released()) == {channel(1), channel(3)}, "both verdicts")
        assert switch.logins == 1
        other.start(port)
        until(lambda: said()[0][0], "both again")
        serves(other, 4)
        serves(switch, 5)
        assert switch.logins == 1
        os.kill(os.getpid(), signal.SIGTERM)
        running.join(LIMIT)
        assert running.successful()
    assert said() == []
    guard.close()
    other.stop()


def test_nothing_leaks(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """5,000 calls, a tenth of which have hung up, and 10 lost connections leave no descriptor, greenlet or thread."""
    adapter = serving(switch)
    adapter.guard.warm_up()

    def held() -> tuple[int, int, int, int]:
        """Greenlets, threads, sockets, and all descriptors."""
        gc.collect()
        greenlets = sum(1 for one in gc.get_objects() if isinstance(one, greenlet) and not one.dead)
        descriptors = []
        for one in Path("/proc/self/fd").iterdir():
            with suppress(OSError):  # that of the listing itself
                descriptors.append(str(one.readlink()))
        sockets = sum(name.startswith("socket:") for name in descriptors)
        return greenlets, threading.active_count(), sockets, len(descriptors)

    def quiet() -> bool:
        return not adapter._calls and adapter.connected.is_set() and len(switch.peers) == 1

    def idle() -> bool:
        made = adapter._connection
        return quiet() and made is not None and not made._replies and not made._reader.pending

    serves(switch)
    until(quiet, "quiet")
    before = held()
    for batch in range(50):
        switch.commands.clear()
        if batch % 10 == 0:
            switch.answers["api uuid_setvar_multi"] = NO_CHANNEL
        switch.send(b"".join(screening(number) for number in range(100)))
        if switch.answers:
            until(lambda: len(switch.verdicts()) == 100, "100 callers who are gone")
            switch.answers.clear()
        else:
            until(lambda: len(switch.released()) == 100, "100 verdicts")
        if batch % 5 == 0:
            logins = switch.logins
            switch.cut()
            until(lambda logins=logins: switch.logins > logins and quiet(), "a new connection")
    until(idle, "nothing waits for a reply")
    # SQLite opens its files for each connection, and how many are needed at once is chance.
    most = (*before[:3], before[3] + 3 * 4)
    until(lambda: all(now <= limit for now, limit in zip(held(), most, strict=True)), f"no more than {most}")


def test_calls_that_get_no_reply_leave_nothing(switch: FakeFreeSWITCH, serving: Serving) -> None:
    """500 commands that are never answered end with their connection: no call is kept and no reply waited for."""
    adapter = serving(switch, timeout_ms=200)
    switch.answers["api uuid_setvar_multi"] = b""
    lost = adapter._connection
    switch.send(b"".join(screening(number) for number in range(500)))
    until(lambda: switch.logins == 2 and adapter.connected.is_set() and not adapter._calls, "a new connection")
    assert lost is not None
    assert (len(lost._replies), lost.connected, lost.why) == (0, False, "no heartbeat")
    switch.answers.clear()
    serves(switch, 1000)
