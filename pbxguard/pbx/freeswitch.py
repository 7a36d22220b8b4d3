"""The FreeSWITCH adapter: one event socket connection per FreeSWITCH, on greenswitch, that cannot be frozen.

It reads an event, asks the guard, and sends two commands. It decides nothing. greenswitch 0.0.19 is the transport;
its reader, its ``send`` and its ``connect`` are replaced, because the stock ones decode a frame before they split
it, wait for ever on a peer that closes or is silent, and pass line ends on into commands.
"""

import signal
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Any

import gevent
import structlog
from gevent.event import AsyncResult, Event
from gevent.lock import BoundedSemaphore
from gevent.pool import Group
from gevent.socket import IPPROTO_TCP, TCP_NODELAY, create_connection
from greenswitch import esl as greenswitch

from pbxguard.config import FreeswitchSettings, Settings
from pbxguard.errors import CallerGone, PbxguardError, PeerProtocolError, ServiceUnavailable
from pbxguard.guard import Decided, Guard
from pbxguard.pbx import esl, health
from pbxguard.screening.call import Call
from pbxguard.screening.treatment import FREESWITCH

log = structlog.get_logger()

#: The most calls of one FreeSWITCH that may be under way; the failure policy of its dialplan has the others.
_MOST_CALLS = 2000

#: Seconds from one heartbeat to the next, and for how long one holds.
_HEARTBEAT_S = 1.0
_HEARTBEAT_VALID_S = 3

#: Seconds between two empty lines. FreeSWITCH 1.10 looks for events to send every 20 ms, or when something comes in
#: (mod_event_socket, read_packet), and the waiting dialplan looks for the verdict every 20 ms too: with both, a call
#: in a hundred would wait for more than 40. At idle they cost 0.4 % of a core there and 1.2 % here.
_NUDGE_S = 0.005

#: For how long events are taken after the dialplan was told that we leave, seconds: those that were on their way.
_LAST_CALLS_S = 0.1

#: The most that the end waits for FreeSWITCH to take back the heartbeat, and for the calls under way, seconds. The
#: supervisor waits 10 s.
_GOODBYE_S = 0.5
_DRAIN_S = 8.0

#: Seconds until a connection is tried again; the last one repeats.
_BACK_OFF = (0.2, 0.5, 1.0, 2.0)

#: A connection without an answer to as many heartbeats is given up. One whose replies are late is kept: to connect
#: again costs an overloaded FreeSWITCH more than the replies, and all calls under way their verdicts.
_MOST_MISSED = 3


class Connection(greenswitch.InboundESL):  # type: ignore[misc]
    """One authenticated event socket.

    Args:
        settings: Address, password and time limits.
        on_event: Called with the headers of each event, in the order of arrival; it must not block.
    """

    def __init__(self, settings: FreeswitchSettings, on_event: Callable[[dict[str, str]], None]) -> None:
        super().__init__(settings.host, settings.port, settings.password, timeout=settings.timeout_ms / 1000)
        self._on_event = on_event
        self._replies: deque[AsyncResult] = deque()
        self._greeted = AsyncResult()
        self._reader = esl.Reader()
        self._writing = BoundedSemaphore()
        self.sock: Any = None
        self.ended = Event()
        self.why = ""

    def connect(self) -> None:
        """Connect and authenticate; every step has a time limit.

        Raises:
            ServiceUnavailable: Nobody listens, the password or the access list refuses us, or there is silence.
        """
        where = f"FreeSWITCH at {self.host}:{self.port}"
        try:
            sock = create_connection((self.host, self.port), timeout=self.timeout)
        except (OSError, UnicodeError) as error:  # the latter: a name that can be no host's
            why = getattr(error, "strerror", None) or error
            raise ServiceUnavailable(f"{where} does not take a connection: {why}") from error
        if self.ended.is_set():
            sock.close()
            raise ServiceUnavailable(f"{where}: {self.why}")
        sock.settimeout(None)
        # Commands are small and follow one another: Nagle's algorithm would hold each back for the one before.
        sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        self.sock = sock
        self.connected = True
        self._receive_events_greenlet = gevent.spawn(self.receive_events)
        try:
            self._greeted.get(timeout=self.timeout)
            reply = self.send("auth", self.password)
        except (gevent.Timeout, CallerGone) as error:
            why = self.why or "it is silent"
            self.close("no login")
            raise ServiceUnavailable(f"{where}: {why}; look at its event_socket.conf (apply-inbound-acl)") from error
        except ValueError as error:
            self.close("no login")
            raise ServiceUnavailable(
                f"{where}: the password holds a line end; set freeswitch.NAME.password"
            ) from error
        if not reply.headers.get("reply-text", "").startswith("+OK"):
            self.close("wrong password")
            raise ServiceUnavailable(f"{where} refuses the password; set freeswitch.NAME.password")

    def send(self, *words: str) -> esl.Frame:
        """Send one command and return its reply.

        Raises:
            CallerGone: The connection ended first.
            gevent.Timeout: No reply in time. One that comes late is dropped in its turn; the connection is closed
                where only a part of the command was sent.
        """
        return self.ask(esl.command(*words))[0]

    def ask(self, *commands: bytes) -> list[esl.Frame]:
        """The same for commands that are bytes already; FreeSWITCH runs them one after the other."""
        replies = [AsyncResult() for _ in commands]
        written = False
        with gevent.Timeout(self.timeout) as limit:
            try:
                # A full socket makes sendall wait: no other command may come between.
                with self._writing:
                    if not self.connected:
                        raise CallerGone(self.why or "not connected")
                    self._replies += replies
                    self.sock.sendall(b"".join(commands))
                    written = True
                return [reply.get() for reply in replies]
            except OSError as error:
                self.close(f"cannot send: {error.strerror or error}")
                raise CallerGone(self.why) from error
            except gevent.Timeout as late:
                # While it waited for others' commands to be sent nothing of this one was, and no reply is expected.
                if replies[0] in self._replies and not written:
                    self.close("no reply in time" if late is limit else "left in the middle of a command")
                raise

    def nudge(self) -> None:
        """Send empty lines until the connection ends: FreeSWITCH skips them, and looks for events to send."""
        while not _wait_within(self.ended, _NUDGE_S):
            try:
                with self._writing:
                    self.sock.sendall(b"\n")
            except OSError as error:
                self.close(f"cannot send: {error.strerror or error}")

    def receive_events(self) -> None:
        """Read until the peer closes or breaks the protocol, then fail everything that waits."""
        why = "FreeSWITCH closed the connection"
        try:
            while data := self.sock.recv(65536):
                for frame in self._reader.feed(data):
                    self._take(frame)
        except PeerProtocolError as error:
            why = str(error)
        except OSError as error:
            why = f"connection lost: {error.strerror or error}"
        except Exception as error:
            # Nobody may wait for a reader that is gone.
            log.exception("event socket reader failed")
            why = f"internal error ({type(error).__name__}); see the log"
        self.close(why)

    def _take(self, frame: esl.Frame) -> None:
        kind = frame.kind
        if kind == "auth/request":
            self._greeted.set(None)
        elif kind in ("command/reply", "api/response"):
            if not self._replies:
                raise PeerProtocolError("a reply to nothing")
            self._replies.popleft().set(frame)
        elif kind == "text/event-plain":
            self._on_event(frame.event())
        elif kind == "text/rude-rejection":
            self.why = "its access list refuses this host"
            raise PeerProtocolError(self.why)
        elif kind == "text/disconnect-notice":
            raise PeerProtocolError(self.why or "FreeSWITCH ended the connection")

    def close(self, why: str) -> None:
        """End the connection once; everything that waits fails with ``CallerGone``."""
        if self.ended.is_set():
            return
        self.why = self.why or why
        self.connected = False
        self.ended.set()
        gone = CallerGone(self.why)
        for waiting in (self._greeted, *self._replies):
            if not waiting.ready():
                waiting.set_exception(gone)
        self._replies.clear()
        if self.sock is not None:
            self.sock.close()


class Freeswitch:
    """Screens the calls of one FreeSWITCH for as long as it runs, reconnecting when it must.

    Args:
        name: Of the FreeSWITCH in the settings.
        guard: Decides.
        settings: For its address and the trunks.
        changed: Called when a connection is made, fails or is lost.

    Attributes:
        connected: The connection is there, and the dialplan has been told to wait for verdicts.
        why: What is wrong while it is not.
        refused: Events that were left to the dialplan because too many calls were under way.
    """

    def __init__(self, name: str, guard: Guard, settings: Settings, changed: Callable[[], None]) -> None:
        self.name = name
        self._changed = changed
        self.guard = guard
        self.settings = settings
        self.where = settings.freeswitch[name]
        self.capabilities = replace(FREESWITCH, contact_url=settings.contact_url)
        self.connected = Event()
        self.why = "not yet tried"
        self.refused = 0
        self._calls = Group()
        self._connection: Connection | None = None
        self._leaving = False
        self._echoed = Event()
        self._stop = Event()

    def run(self) -> None:
        """Serve until ``stop``; a lost connection is made again with growing pauses."""
        tries = 0
        while not self._stop.is_set():
            self._connection = connection = Connection(self.where, self._asked)
            try:
                self._log_in(connection)
            except (PbxguardError, gevent.Timeout) as error:
                why = (connection.why or "no reply in time") if isinstance(error, gevent.Timeout) else str(error)
            else:
                # One that FreeSWITCH cuts before the first heartbeat counts as failed: no storm of connections.
                tries = 0 if self._serve(connection) else tries
                why = connection.why
            connection.close("not served")
            self._is(None, why)
            pause = _BACK_OFF[min(tries, len(_BACK_OFF) - 1)]
            if tries < len(_BACK_OFF) and not self._stop.is_set():
                log.warning("no event socket", freeswitch=self.name, why=why, again_in_s=pause)
            tries += 1
            _wait_within(self._stop, pause)

    def _is(self, connection: Connection | None, why: str = "") -> None:
        """Note whether it serves, and tell."""
        self.why = why
        if connection is None:
            self.connected.clear()
        else:
            self.connected.set()
        self._changed()

    def _log_in(self, connection: Connection) -> None:
        connection.connect()
        subclasses = (esl.SUBCLASS, esl.ECHO_SUBCLASS)
        reply = connection.send("event", "plain", "CUSTOM", *subclasses).headers.get("reply-text", "")
        if not reply.startswith("+OK"):
            raise ServiceUnavailable(f"FreeSWITCH refuses the screening events: {reply[:80]!r}")
        # mod_sofia starts its presence thread at the first presence event of its life, and holds up all events for
        # half a second then: as long as the calls wait. So it gets one before the first call. It is of no account,
        # since it names nobody.
        connection.ask(esl.send_event("PRESENCE_PROBE"))
        self._echoed.clear()
        connection.ask(esl.send_event("CUSTOM", Event_Subclass=esl.ECHO_SUBCLASS))
        gevent.wait((self._echoed, connection.ended), timeout=connection.timeout, count=1)
        if not self._echoed.is_set() and not connection.ended.is_set():
            raise ServiceUnavailable("FreeSWITCH takes events and does not deliver them")

    def _serve(self, connection: Connection) -> bool:
        """Until the connection ends, keep the heartbeat; whether one came through.

        Only then do we serve: the dialplan waits for nobody whose heartbeat it has not.
        """
        gevent.spawn(connection.nudge)
        alive = False
        missed = 0
        while not connection.ended.is_set():
            try:
                self._beat(connection)
            except gevent.Timeout:
                missed += 1
                if missed == _MOST_MISSED:
                    connection.close("no heartbeat")
            except PbxguardError as error:
                connection.close(str(error) if isinstance(error, PeerProtocolError) else "no heartbeat")
            else:
                missed = 0
                if not alive:
                    alive = True
                    self._is(connection)
                    log.info("serving FreeSWITCH", freeswitch=self.name, host=self.where.host, port=self.where.port)
            _wait_within(connection.ended, _HEARTBEAT_S)
        return alive

    def _beat(self, connection: Connection) -> None:
        """Tell the dialplan until when it may wait for us, on FreeSWITCH's own clock."""
        now = connection.send("api", "strepoch").body.decode("ascii", "replace").strip()
        if not now.isdigit():
            raise PeerProtocolError("FreeSWITCH does not tell its time (strepoch)")
        if not self._leaving:
            until = str(int(now) + _HEARTBEAT_VALID_S)
            connection.send("api", "global_setvar", f"{esl.HEARTBEAT_VARIABLE}={until}")

    def stop(self) -> None:
        """Take the heartbeat back, then take no new calls, let those under way finish, disconnect.

        The first so that no later call waits for a guard that has left. All of it has limits.
        """
        self._leaving = True
        connection = self._connection
        if connection is not None and self.connected.is_set():
            with gevent.Timeout(_GOODBYE_S, exception=False), suppress(CallerGone):
                connection.send("api", "global_setvar", f"{esl.HEARTBEAT_VARIABLE}=0")
                _wait_within(connection.ended, _LAST_CALLS_S)
        self._stop.set()
        # A decision and its two commands have limits of their own.
        self._calls.join(timeout=_DRAIN_S)
        if self._connection is not None:
            self._connection.close("stopping")

    def _asked(self, event: dict[str, str]) -> None:
        subclass = event.get("Event-Subclass")
        if subclass == esl.ECHO_SUBCLASS:
            self._echoed.set()
        if subclass != esl.SUBCLASS or self._stop.is_set():
            return
        # The reader must not wait here: the calls under way wait for the replies that it reads.
        if len(self._calls) < _MOST_CALLS:
            self._calls.spawn(self._screen, event)
            return
        self.refused += 1
        if self.refused in (1, 10, 100) or self.refused % 1000 == 0:
            log.warning(
                "too many calls at once; the dialplan's failure policy has this one",
                freeswitch=self.name,
                limit=_MOST_CALLS,
                refused=self.refused,
            )

    def _screen(self, event: dict[str, str]) -> None:
        """Answer one call: one decision, its variables, the end of its wait."""
        connection = self._connection
        if connection is None:
            return
        try:
            uuid = esl.channel_uuid(event)
            call = self._call(event)
            decided = self._decide(call)
            shown = esl.shown_variables(event, call, decided.verdict)
            values = esl.verdict_variables(decided.verdict, decided.treatment, shown)
            packed = ";".join(f"{key}={value}" for key, value in values.items())
            # In one piece, but one after the other: the wait ends only when the variables are there.
            set_, _ = connection.ask(esl.command("api", "uuid_setvar_multi", uuid, packed), esl.release(uuid))
            if set_.body.startswith(b"-ERR No such channel"):
                log.debug("caller gone", freeswitch=self.name)
        except PeerProtocolError as error:
            log.warning("screening event refused", freeswitch=self.name, why=str(error))
        except (CallerGone, gevent.Timeout) as error:
            log.warning("verdict not delivered", freeswitch=self.name, why=str(error))
        except Exception:
            log.exception("screening failed", freeswitch=self.name)

    def _call(self, event: dict[str, str]) -> Call:
        if event.get("Pbxguard-Version") != esl.VERSION:
            raise PeerProtocolError("the dialplan speaks another version; install the one of this release")
        name = event.get("variable_pbxguard_trunk", "")
        trunk = self.settings.trunk(name)
        if trunk is None:
            raise PeerProtocolError(f"unknown trunk {name[:32]!r}; add [trunks.{name[:32]!r}] to pbxguard.toml")
        return esl.call_from_esl(event, trunk, self.guard.clock())

    def _decide(self, call: Call) -> Decided:
        return self.guard.decide_within(call, self.capabilities, _wait)


def _wait(decision: "Future[Decided]", seconds: float) -> None:
    """Wait for a worker thread's result without holding up the loop.

    The guard's workers rather than gevent's own threads: those grow from none while calls come in, and their queue
    has no end. ``run_callback_threadsafe`` is the one thing of the loop that another thread may touch.
    """
    done = Event()
    loop = gevent.get_hub().loop
    decision.add_done_callback(lambda _: loop.run_callback_threadsafe(done.set))
    _wait_within(done, seconds)


def _wait_within(event: Event, seconds: float) -> bool:
    """Wait until an event is set, at most so long; whether it is.

    gevent's own ``wait`` has no limit where the event is set and its waiters are still to be woken: it queues behind
    them, and is lost for good when the last of them gives up in that moment (gevent 26.9).
    """
    return event.is_set() or bool(event.wait(seconds))


def serve(guard: Guard, settings: Settings, teller: health.Teller) -> None:
    """Serve every FreeSWITCH of the settings until SIGTERM or SIGINT; calls under way are finished first."""
    switches: list[Freeswitch] = []

    def changed() -> None:
        away = [f"{switch.name} ({switch.why})" for switch in switches if not switch.connected.is_set()]
        teller.say(f"not connected: {', '.join(away)}" if away else "connected to every FreeSWITCH", ready=not away)

    switches += [Freeswitch(name, guard, settings, changed) for name in settings.freeswitch]
    changed()
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, stop.set)
    greenlets = [gevent.spawn(switch.run) for switch in switches]
    stop.wait()
    gevent.joinall([gevent.spawn(switch.stop) for switch in switches])
    gevent.joinall(greenlets, timeout=3)
