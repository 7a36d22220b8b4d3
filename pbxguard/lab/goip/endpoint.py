"""What one line says and answers in the UDP protocol: keepalive, notices with resend, bulk sessions, commands.

Knows the line, its box and the mobile network; has no socket. Times are seconds of a clock that only goes forward;
who owns an endpoint hands it datagrams, asks it at ``next_due`` for what is due, and sends what it returns.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from pbxguard.lab.goip import commands
from pbxguard.lab.goip.box import Box, Direction, Event, HungUp, Line, Recorded, SimChanged, StateChanged
from pbxguard.lab.goip.mobile import Arrived, Happened, MobileNetwork, Report, Sent, Text
from pbxguard.lab.goip.protocol import (
    Ack,
    Bulk,
    Command,
    Done,
    Identity,
    KeepAlive,
    Notice,
    Password,
    Registered,
    Submit,
    parse,
    reply,
)

__all__ = ["Address", "Counters", "Endpoint", "Outgoing", "Timing"]

Address = tuple[str, int]

SESSIONS = 5
LAST_NUMBERS = 10
LAST_ANSWERS = 16
REPEATED = 15.0
MAX_PENDING = 256
#: +CMS ERROR of a text that the line cannot send now, and of one to what is no number (3GPP TS 27.005 section 3.2.5).
NO_NETWORK, NO_NUMBER = 38, 304
#: "Usually it is equal to 1" (section 3, step 6).
FULL = 1
_LF = "\n"


class Outgoing(NamedTuple):
    """A datagram; *to* None is the server."""

    data: bytes
    to: Address | None


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of the protocol: keepalive every 30, resend after 3 and 3 times, a session ends 90 after its last word.

    "Received in 90s after Bulk SMS Request" (section 3) is read as 90 s of silence: a session of the maximum of
    numbers at 2 to 5 s each takes longer.
    """

    keepalive: float = 30.0
    resend: float = 3.0
    resends: int = 3
    session: float = 90.0


@dataclass(slots=True)
class Counters:
    """What a line's endpoint has seen."""

    received: int = 0
    ignored: int = 0
    sent: int = 0
    resent: int = 0
    acknowledged: int = 0
    refused: int = 0
    lost: int = 0


@dataclass(slots=True)
class _Pending:
    notice: Notice
    due: float
    resends: int = 0


@dataclass(slots=True)
class _Session:
    text: str
    expires: float
    open: bool = False
    #: tid -> what it is answered with; "" while the text is under way
    numbers: "OrderedDict[int, bytes]" = field(default_factory=OrderedDict)


class Endpoint:
    """The protocol side of one line.

    Args:
        sees: Whether an acknowledgement from this address is the server's.
        ntp: The device has the time: ids count down from the time of its start. Else they count down from 0, and an
            answered call is told twice, as devices do whose NTP server does not answer.
        now: Seconds; with *ntp* of the Unix epoch.
    """

    def __init__(
        self,
        box: Box,
        line: int,
        network: MobileNetwork,
        identity: Identity,
        *,
        now: float,
        timing: Timing | None = None,
        ntp: bool = True,
        sees: Callable[[Address], bool] = lambda _address: True,
    ) -> None:
        self.box, self.network, self.identity = box, network, identity
        self.line: Line = box.line(line)
        self.timing = timing or Timing()
        self.ntp = ntp
        self.sees = sees
        self.counters = Counters()
        self.logged_in = False
        self._next_id = int(now) if ntp else 0
        self._count = 0
        self._answered_count = 0
        self._keepalive_due = now
        self._pending: OrderedDict[tuple[str, int], _Pending] = OrderedDict()
        self._sessions: dict[tuple[Address, int], _Session] = {}
        self._awaited: dict[int, tuple[Address, int, int]] = {}
        self._answers: OrderedDict[tuple[Address, Command], tuple[tuple[bytes, ...], float]] = OrderedDict()
        self._idle_since = now

    # -- time ----------------------------------------------------------------------------------------------

    def next_due(self) -> float:
        """When ``due`` has something to send."""
        # Every notice waits as long as any other, so the first one is due first.
        first = next(iter(self._pending.values()), None)
        return self._keepalive_due if first is None else min(self._keepalive_due, first.due)

    def due(self, now: float) -> list[Outgoing]:
        """Keepalive and resends that are due."""
        out = []
        if now >= self._keepalive_due:
            out.append(self._keepalive(now))
        for key, pending in list(self._pending.items()):
            if now < pending.due:
                break
            if pending.resends >= self.timing.resends:
                del self._pending[key]
                self.counters.lost += 1
                continue
            pending.resends += 1
            pending.due = now + self.timing.resend
            self._pending.move_to_end(key)
            self.counters.resent += 1
            out.append(Outgoing(pending.notice.encode(self.identity), None))
        self._expire(now)
        return out

    def _keepalive(self, now: float) -> Outgoing:
        # Three keepalives without an answer: the server is gone.
        if self._count - self._answered_count >= 3:
            self.logged_in = False
        self._count += 1
        self._keepalive_due = now + self.timing.keepalive
        sim = self.line.sim
        message = KeepAlive(
            count=self._count,
            number=self.line.shown_number,
            signal=sim.signal if self.line.gsm_up else 99,
            gsm_up=self.line.gsm_up,
            voip_up=self.line.voip_up,
            state=self.line.state,
            imei=self.line.shown_imei,
            imsi=sim.imsi,
            iccid=sim.iccid,
            operator=sim.operator,
            lac=sim.cell.lac,
            cell_id=self.line.shown_cell,
            remain=commands.minutes(self.box.remains(self.line.number)),
            idle=max(int((now - self._idle_since) // 60), 0),
            enabled=self.line.enabled,
            logged_in=self.logged_in,
        )
        return Outgoing(message.encode(self.identity), None)

    # -- what happens on the line --------------------------------------------------------------------------

    def happened(self, event: Event | Happened, now: float) -> list[Outgoing]:
        """What is told about an event of this line, or of a text of it."""
        match event:
            case StateChanged():
                self._idle_since = now
                return self._tell(now, "STATE", ("gsm_remain_state", str(event)))
            case Recorded():
                told = [("dir", str(int(event.direction))), ("num", event.party)]
                out = self._tell(now, "RECORD", *told)
                return out if self.ntp else out + self._tell(now, "RECORD", *told)
            case HungUp():
                out = self._tell(now, "HANGUP", ("num", f"{event.party},cause:{event.text}"))
                if event.direction is Direction.OUT:
                    out += self._tell(now, "REMAIN", ("gsm_remain_time", str(commands.minutes(event.remains))))
                return out
            case SimChanged():
                return [self._keepalive(now)]
            case Arrived():
                return self._tell(now, "RECEIVE", ("srcnum", event.sender), ("msg", event.body))
            case Report():
                text = event.text
                state = ("state", str(event.status))
                return self._tell(now, "DELIVER", ("sms_no", str(text.number)), state, ("num", text.to))
            case Sent():
                return self._sent(event)
        return []

    def _tell(self, now: float, verb: str, *fields: tuple[str, str]) -> list[Outgoing]:
        notice = Notice(verb, self._next_id, fields)
        self._next_id -= 1
        if len(self._pending) >= MAX_PENDING:
            self._pending.popitem(last=False)
            self.counters.lost += 1
        self._pending[verb, notice.number] = _Pending(notice, now + self.timing.resend)
        self.counters.sent += 1
        return [Outgoing(notice.encode(self.identity), None)]

    # -- what comes ----------------------------------------------------------------------------------------

    def received(self, data: bytes, source: Address, now: float) -> list[Outgoing]:
        """What a datagram is answered with; never raises for what is in it."""
        self.counters.received += 1
        self._expire(now)
        message = parse(data)
        match message:
            case Registered() | Ack():
                if self.sees(source):
                    self._acknowledged(message)
                else:
                    self.counters.ignored += 1
                return []
            case Bulk():
                out = self._bulk(message, source, now)
            case Password() | Submit() | Done():
                out = self._in_session(message, source, now)
            case Command():
                return self._command(message, source, now)
            case None:
                out = []
        if not out:
            self.counters.ignored += 1
        return [Outgoing(data, source) for data in out]

    def _acknowledged(self, message: Registered | Ack) -> None:
        if isinstance(message, Registered):
            if 0 < message.count <= self._count:
                self._answered_count = max(self._answered_count, message.count)
                self.logged_in = message.ok
            return
        if self._pending.pop((message.verb, message.number), None) is None:
            return
        if message.ok:
            self.counters.acknowledged += 1
        else:
            self.counters.refused += 1

    def _expire(self, now: float) -> None:
        for key in [key for key, session in self._sessions.items() if now >= session.expires]:
            del self._sessions[key]

    # -- bulk sessions (section 3) -------------------------------------------------------------------------

    def _bulk(self, message: Bulk, source: Address, now: float) -> list[bytes]:
        sid, key = message.sid, (source, message.sid)
        if message.text is None:
            return [reply("ERROR", sid, "the text is longer than 3000 bytes", end=_LF)]
        session = self._sessions.get(key)
        if session is not None and session.text == message.text:
            # The server did not get our answer.
            session.expires = now + self.timing.session
            return [reply("SEND" if session.open else "PASSWORD", sid, end=_LF)]
        if session is None and len(self._sessions) >= SESSIONS:
            return [reply("ERROR", sid, "too many sessions", end=_LF)]
        self._sessions[key] = _Session(message.text, now + self.timing.session)
        return [reply("PASSWORD", sid, end=_LF)]

    def _in_session(self, message: Password | Submit | Done, source: Address, now: float) -> list[bytes]:
        sid, key = message.sid, (source, message.sid)
        if isinstance(message, Done):
            # Servers repeat it, and end USSD and CF with it, where there is no session.
            self._sessions.pop(key, None)
            return [reply("DONE", sid, end=_LF)]
        session = self._sessions.get(key)
        if session is None:
            return [reply("ERROR", sid, "no such session", end=_LF)]
        session.expires = now + self.timing.session
        if isinstance(message, Password):
            session.open = session.open or commands.same(message.password, self.identity.password)
            return [reply("SEND", sid, end=_LF) if session.open else reply("ERROR", sid, "PASSWORD", end=_LF)]
        if not session.open:
            return [reply("PASSWORD", sid, end=_LF)]
        return [self._submit(message, session, source, now)]

    def _submit(self, message: Submit, session: _Session, source: Address, now: float) -> bytes:
        known = session.numbers.get(message.tid)
        waiting = reply("WAIT", message.sid, message.tid, end=_LF)
        if known is not None:
            return known or waiting
        error = self._error(message.to)
        if error:
            answer = reply("ERROR", message.sid, message.tid, f"errorstatus:{error}", end=_LF)
        else:
            text = self.send(message.to, session.text, now, way="UDP")
            self._awaited[text.number] = (source, message.sid, message.tid)
            answer = b""
        session.numbers[message.tid] = answer
        while len(session.numbers) > LAST_NUMBERS:
            session.numbers.popitem(last=False)
        return answer or waiting

    def _error(self, to: str) -> int:
        """Why the line cannot take a text to that number, or 0."""
        if not to:
            return NO_NUMBER
        if not self.line.gsm_up:
            return NO_NETWORK
        return FULL if self.network.full(self.line.number) else 0

    def send(self, to: str, body: str, now: float, *, way: str = "") -> Text:
        """Let the line send a text, whoever asked for it; *way* says who."""
        return self.network.send(self.line.number, self.line.sim.msisdn, to, body, now, way=way)

    def _sent(self, event: Sent) -> list[Outgoing]:
        awaited = self._awaited.pop(event.text.number, None)
        if awaited is None:
            return []
        source, sid, tid = awaited
        if event.error:
            answer = reply("ERROR", sid, tid, f"errorstatus:{event.error}", end=_LF)
        else:
            answer = reply("OK", sid, tid, event.text.number, end=_LF)
        session = self._sessions.get((source, sid))
        if session is None or tid not in session.numbers:
            return []
        session.numbers[tid] = answer
        # The specification lets a server ask again; public ones wait to be told.
        return [Outgoing(answer, source)]

    # -- commands (sections 5 to 10) -----------------------------------------------------------------------

    def _command(self, command: Command, source: Address, now: float) -> list[Outgoing]:
        if not commands.known(command):
            self.counters.ignored += 1
            return []
        key, told = (source, command), list[Outgoing]()
        data, until = self._answers.get(key, ((), 0.0))
        if now >= until:
            answer = commands.run(commands.Phone(self.box, self.line, self.network), command, self.identity.password)
            data = answer.data
            if command.verb in commands.ONCE:
                # A server repeats a request whose answer was lost after 10 s (section 6): it is not done twice.
                self._answers[key] = data, now + REPEATED
            while len(self._answers) > LAST_ANSWERS:
                self._answers.popitem(last=False)
            for verb, fields in answer.notices:
                told += self._tell(now, verb, *fields)
        return [*(Outgoing(each, source) for each in data), *told]
