"""The state of a box: N lines, which line a call gets, what is refused with which status, and what happened.

Knows no socket: a driver on the SIP side says ``dial``, ``alerting``, ``connected``, ``hung_up``, one on the GSM side
``incoming``; who watches is told of every change. Which line is chosen and what is refused in which configuration
mode is that of the GoIP User Manual (lab-and-goip.md 2.2); what the manual leaves open is marked "assumed".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from ipaddress import IPv4Address
from types import MappingProxyType

from pbxguard.errors import BadInput, UnknownName
from pbxguard.lab.goip.dialling import is_dialable
from pbxguard.lab.goip.sims import (
    Limits,
    Placed,
    Rotation,
    Sim,
    SimTable,
    Usage,
    after_call,
    next_sim,
    remaining,
    too_soon,
)

__all__ = [
    "CAUSES",
    "Box",
    "Cause",
    "Clock",
    "Direction",
    "DropWanted",
    "Event",
    "HungUp",
    "Line",
    "LinePlan",
    "Mode",
    "Recorded",
    "Refusal",
    "SimChanged",
    "State",
    "StateChanged",
]

#: Gives the time, aware; hours and days of policies are those of its zone.
Clock = Callable[[], datetime]

MAX_LINES = 128
MAX_NUMBER = 40
TRUNK_SOURCES = 3
NORMAL_CLEARING = 16
USER_BUSY = 17


class Mode(StrEnum):
    """SIP_CONFIG_MODE of the vendor's configuration: SINGLE_MODE, LINE_MODE, GROUP_MODE, TRUNK_GW_MODE."""

    SINGLE = "single"
    LINE = "line"
    GROUP = "group"
    TRUNK = "trunk"


class State(StrEnum):
    """State of a line, as ``gsm_remain_state`` names it."""

    IDLE = "IDLE"
    INCOMING = "INCOMING"
    ACTIVE = "ACTIVE"
    DIALING = "DIALING"
    ALERTING = "ALERTING"
    CONNECTED = "CONNECTED"
    #: The module does something that is no call: it starts. (Assumed: the sources name BUSY without saying when.)
    BUSY = "BUSY"


class Direction(IntEnum):
    """``dir`` of RECORD."""

    IN = 1
    OUT = 2


@dataclass(frozen=True, slots=True)
class Cause:
    """Why the GSM side ended a call.

    Attributes:
        text: As HANGUP has it after ``cause:``.
        status: What the caller on the SIP side gets when the call was not answered yet. 480 "Remote Busy" is the
            gateway's own; the others are those of RFC 3398 section 7.2.4.1, as the vendor's code map is not public.
    """

    text: str
    status: int
    phrase: str


#: By the value of ITU-T Q.850, which GSM uses too (3GPP TS 24.008 table 10.5.123).
CAUSES: Mapping[int, Cause] = MappingProxyType(
    {
        1: Cause("Unassigned number", 404, "Not Found"),
        NORMAL_CLEARING: Cause("Normal call clearing", 480, "Temporarily Unavailable"),
        USER_BUSY: Cause("User busy", 480, "Remote Busy"),
        18: Cause("No user responding", 408, "Request Timeout"),
        19: Cause("User alerting, no answer", 480, "Temporarily Unavailable"),
        21: Cause("Call rejected", 603, "Decline"),
        27: Cause("Destination out of order", 502, "Bad Gateway"),
        28: Cause("Invalid number format", 484, "Address Incomplete"),
        34: Cause("No circuit/channel available", 503, "Service Unavailable"),
        38: Cause("Network out of order", 503, "Service Unavailable"),
    }
)
_OTHER = Cause("Interworking, unspecified", 500, "Server Internal Error")


@dataclass(frozen=True, slots=True)
class Refusal:
    """The final answer to an INVITE that gets no line."""

    status: int
    phrase: str
    why: str


@dataclass(frozen=True, slots=True)
class LinePlan:
    """What is configured for a line.

    Attributes:
        prefixes: Routing prefixes: the called numbers that the line is for. None: all, except by line.
        group: Its group, in group mode.
    """

    prefixes: tuple[str, ...] = ()
    group: str = ""


# -- events -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened on a line; ``at`` is the box's clock."""

    line: int
    at: datetime


@dataclass(frozen=True, slots=True)
class StateChanged(Event):
    """The line is in another state; *party* is the other number where the state has one."""

    state: State
    party: str

    def __str__(self) -> str:
        """The state as ``gsm_remain_state`` has it: ``ACTIVE``, ``DIALING:10086``."""
        return shown(self.state, self.party)


@dataclass(frozen=True, slots=True)
class Recorded(Event):
    """A call was answered: here its recording would begin."""

    direction: Direction
    party: str


@dataclass(frozen=True, slots=True)
class HungUp(Event):
    """A call is over. *talked* is how long it was answered; *remains* is the SIM's talk time left."""

    direction: Direction
    party: str
    cause: int
    talked: timedelta
    remains: timedelta | None

    @property
    def text(self) -> str:
        return CAUSES.get(self.cause, _OTHER).text


@dataclass(frozen=True, slots=True)
class SimChanged(Event):
    """The line has another SIM."""

    sim: Sim


@dataclass(frozen=True, slots=True)
class DropWanted(Event):
    """The box wants the call on this line ended: who drives the media does it, and then says ``hung_up``."""

    why: str


# -- the box ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Line:
    """One line; only its box writes to it."""

    number: int
    plan: LinePlan
    placed: Placed
    state: State = State.IDLE
    party: str = ""
    direction: Direction = Direction.OUT
    enabled: bool = True
    gsm_up: bool = True
    voip_up: bool = False
    calls: int = 0
    since: datetime | None = None
    answered: datetime | None = None
    starts_until: datetime | None = None
    number_set: str = ""
    imei_set: str = ""
    cell_set: str = ""

    @property
    def sim(self) -> Sim:
        return self.placed.sim

    # What a server has set on the line, else what is in its SIM's row.

    @property
    def shown_number(self) -> str:
        return self.number_set or self.sim.msisdn

    @property
    def shown_imei(self) -> str:
        return self.imei_set or self.sim.imei

    @property
    def shown_cell(self) -> str:
        return self.cell_set or self.sim.cell.cell_id

    def __str__(self) -> str:
        """Its state as ``gsm_remain_state`` has it."""
        return shown(self.state, self.party)


_WITHOUT_PARTY = (State.IDLE, State.ACTIVE, State.BUSY)
_RINGING = (State.DIALING, State.ALERTING, State.INCOMING)


def shown(state: State, party: str) -> str:
    """A state as the protocol writes it."""
    return state if state in _WITHOUT_PARTY or not party else f"{state}:{party}"


class Box:
    """Lines, SIMs and the configuration mode.

    Args:
        plans: One for each line.
        sims: At least as many as lines; the first ones are in the lines at the start.
        sources: Trunk mode: addresses whose INVITEs are taken, at most 3, ``198.18.0.x`` for a whole /24. None: all.
        busy_status: What a busy subscriber on the GSM side becomes: 480, 486 or 603 (vendor's setting).
        restart: How long a module or the box takes to start.

    Raises:
        BadInput: Fewer SIMs than lines, more than 3 sources, or a source, prefix or status that is none.
    """

    def __init__(
        self,
        plans: Sequence[LinePlan],
        sims: SimTable,
        *,
        clock: Clock,
        mode: Mode = Mode.SINGLE,
        rotation: Rotation | None = None,
        limits: Limits | None = None,
        sources: Sequence[str] = (),
        busy_status: int = 480,
        restart: timedelta = timedelta(seconds=20),
    ) -> None:
        if not 1 <= len(plans) <= MAX_LINES:
            raise BadInput(f"a box has 1 to {MAX_LINES} lines, not {len(plans)}")
        if len(sims) < len(plans):
            raise BadInput(f"{len(plans)} lines need as many SIMs, and the table has {len(sims)}")
        if busy_status not in (480, 486, 603):
            raise BadInput(f"busy_status is 480, 486 or 603, not {busy_status}")
        for plan in plans:
            for prefix in plan.prefixes:
                if not (prefix.isascii() and prefix.removeprefix("+").isdecimal()):
                    raise BadInput(f"routing prefix {prefix[:40]!r} is not made of digits")
        self.clock = clock
        self.mode = mode
        self.sims = sims
        self.rotation = rotation or Rotation()
        self.busy_status = busy_status
        self.restart = restart
        now = clock()
        self.lines = tuple(
            Line(n, plan, Placed(sim, now), since=now)
            for n, (plan, sim) in enumerate(zip(plans, sims, strict=False), 1)
        )
        self.usage: dict[str, Usage] = {}
        self._limits = {line.number: limits or Limits() for line in self.lines}
        self._sources = tuple(map(_source, sources))
        if len(sources) > TRUNK_SOURCES:
            raise BadInput(f"trunk mode takes INVITEs from {TRUNK_SOURCES} addresses at most, not {len(sources)}")
        self._watchers: list[Callable[[Event], None]] = []

    def watch(self, watcher: Callable[[Event], None]) -> None:
        """Tell *watcher* of every event, in order."""
        self._watchers.append(watcher)

    def line(self, number: int) -> Line:
        """The line of that number, from 1.

        Raises:
            UnknownName: There is none.
        """
        if not 1 <= number <= len(self.lines):
            raise UnknownName(f"no line {number}; the box has 1 to {len(self.lines)}")
        return self.lines[number - 1]

    # -- SIP side ------------------------------------------------------------------------------------------

    def dial(
        self, number: str, *, line: int | None = None, group: str = "", source: IPv4Address | None = None
    ) -> Line | Refusal:
        """Give an INVITE a line, which then is DIALING, or say with which status it is refused.

        Args:
            number: As dialled; routing prefixes are compared with it and stay in it.
            line: The line whose account was called, by line; None for any.
            group: The group whose account was called, in group mode.
            source: Where the INVITE came from, for trunk mode.
        """
        if not is_dialable(number, MAX_NUMBER):
            return Refusal(404, "Not Found", "no number that GSM can dial")
        if self.mode is Mode.TRUNK and not self._from_trunk(source):
            return Refusal(403, "Forbidden", f"{source} is none of the gateways")  # assumed
        found = self._choose(number, line, group)
        if isinstance(found, Refusal):
            return found
        found.party, found.direction, found.answered = number, Direction.OUT, None
        found.calls += 1
        self._set(found, State.DIALING)
        return found

    def _choose(self, number: str, account: int | None, group: str) -> Line | Refusal:
        free = [line for line in self.lines if self.free(line)]
        match self.mode:
            case Mode.SINGLE:
                # The line whose prefix matches; else one that is for all numbers.
                meant = [line for line in self.lines if _matches(line, number)]
                rest = [line for line in self.lines if not line.plan.prefixes]
                if not meant and not rest:
                    return Refusal(503, "Service Unavailable", "no line's routing prefix matches")
                picked = next((line for line in (*meant, *rest) if line in free), None)
            case Mode.LINE:
                of_account = [line for line in self.lines if account in (None, line.number)]
                meant = [line for line in of_account if _matches(line, number)]
                if not meant:
                    return Refusal(404, "Not Found", "no routing prefix of the account's line matches")
                picked = next((line for line in meant if line in free), None)
            case Mode.GROUP:
                meant = [line for line in self.lines if line.plan.group == group]
                if not meant:
                    return Refusal(404, "Not Found", "no line is in that group")  # assumed
                picked = next((line for line in meant if line in free), None)
            case Mode.TRUNK:
                picked = min(free, key=lambda line: (line.calls, line.number), default=None)
        return picked or Refusal(503, "Service Unavailable", "no line is idle")

    def free(self, line: Line) -> bool:
        """Whether the line can dial now: idle, in the network, and its SIM within its limits."""
        now, limits = self.clock(), self._limits[line.number]
        usage = self.usage.get(line.sim.imsi, Usage())
        return (
            line.enabled
            and line.gsm_up
            and line.state is State.IDLE
            and not too_soon(usage, limits, now)
            and remaining(usage, limits, now) != timedelta(0)
        )

    def _from_trunk(self, source: IPv4Address | None) -> bool:
        return not self._sources or (source is not None and any(wanted(source) for wanted in self._sources))

    def registered(self, number: int, up: bool) -> None:
        """Say whether the line's account is registered with its SIP server."""
        self.line(number).voip_up = up

    # -- GSM side ------------------------------------------------------------------------------------------

    def incoming(self, number: int, cli: str) -> bool:
        """A GSM caller rings the line; "" for a withheld CLI. False: it is not idle, and the caller gets busy."""
        line = self.line(number)
        if line.state is not State.IDLE or not (line.enabled and line.gsm_up):
            return False
        line.party, line.direction, line.answered = cli[:MAX_NUMBER], Direction.IN, None
        self._set(line, State.INCOMING)
        return True

    def alerting(self, number: int) -> bool:
        """The called GSM subscriber is being rung. False: the line does not dial."""
        line = self.line(number)
        if line.state is not State.DIALING:
            return False
        self._set(line, State.ALERTING)
        return True

    def connected(self, number: int) -> bool:
        """The call is answered, in either direction. False: there is none that waits for it."""
        line = self.line(number)
        if line.state not in _RINGING:
            return False
        line.answered = self.clock()
        self._set(line, State.ACTIVE if line.state is State.INCOMING else State.CONNECTED)
        self._tell(Recorded(line.number, line.answered, line.direction, line.party))
        return True

    def hung_up(self, number: int, cause: int = NORMAL_CLEARING) -> Refusal | None:
        """The call is over, whichever side ended it.

        Returns:
            What the SIP caller gets where the call was outgoing and not answered, else None. A line without a call
            stays as it is.
        """
        line = self.line(number)
        if line.state in (State.IDLE, State.BUSY):
            return None
        now, before = self.clock(), line.state
        talked = now - line.answered if line.answered else timedelta(0)
        limits = self._limits[line.number]
        if line.direction is Direction.OUT:
            used = self.usage.get(line.sim.imsi, Usage())
            self.usage[line.sim.imsi] = after_call(used, limits, talked, now)
            line.placed = Placed(line.sim, line.placed.since, line.placed.calls + 1)
        remains = remaining(self.usage.get(line.sim.imsi, Usage()), limits, now)
        party, line.party, line.answered = line.party, "", None
        over = HungUp(line.number, now, line.direction, party, cause, talked, remains)
        self._tell(over)
        self._set(line, State.IDLE if line.starts_until is None else State.BUSY)
        self._rotate(line)
        if before not in (State.DIALING, State.ALERTING):
            return None
        why = CAUSES.get(cause, _OTHER)
        if cause == USER_BUSY and self.busy_status != why.status:
            phrase = {486: "Busy Here", 603: "Decline"}[self.busy_status]
            return Refusal(self.busy_status, phrase, why.text)
        return Refusal(why.status, why.phrase, why.text)

    # -- control -------------------------------------------------------------------------------------------

    def drop(self, number: int, why: str) -> bool:
        """Ask for the end of the line's call. False: it has none."""
        line = self.line(number)
        if line.state in (State.IDLE, State.BUSY):
            return False
        self._tell(DropWanted(line.number, self.clock(), why))
        return True

    def reboot(self, number: int) -> None:
        """Start the line's module anew: its call is dropped, and it leaves the network for ``restart``."""
        line = self.line(number)
        line.starts_until, line.gsm_up = self.clock() + self.restart, False
        if not self.drop(number, "the module starts") and line.state is State.IDLE:
            self._set(line, State.BUSY)

    def enable(self, number: int, on: bool) -> None:
        """Switch a line's module on or off; a call on it is dropped."""
        line = self.line(number)
        if line.enabled == on:
            return
        line.enabled = line.gsm_up = on
        if not on:
            self.drop(number, "the module is switched off")

    def limits(self, number: int) -> Limits:
        return self._limits[self.line(number).number]

    def set_limits(self, number: int, limits: Limits) -> None:
        """Other limits for the SIMs of a line, from now on."""
        self._limits[self.line(number).number] = limits

    def remains(self, number: int) -> timedelta | None:
        """Talk time left to the SIM in the line; None without limit."""
        line = self.line(number)
        return remaining(self.usage.get(line.sim.imsi, Usage()), self._limits[number], self.clock())

    def reset_talk(self, number: int) -> None:
        """Give the SIM in the line its whole talk time again."""
        imsi = self.line(number).sim.imsi
        used = self.usage.get(imsi, Usage())
        self.usage[imsi] = Usage(used.calls, used.talk, ended=used.ended)

    def tick(self) -> None:
        """Do what is due: modules that have started, calls that are too long, SIMs that are to be changed."""
        now = self.clock()
        for line in self.lines:
            if line.starts_until is not None and now >= line.starts_until:
                line.starts_until, line.gsm_up = None, line.enabled
                if line.state is State.BUSY:
                    self._set(line, State.IDLE)
            longest = self._longest(line)
            if longest is not None and line.answered is not None and now - line.answered >= longest:
                self.drop(line.number, "the call is too long")
            self._rotate(line)

    def _longest(self, line: Line) -> timedelta | None:
        if line.state is not State.CONNECTED:
            return None
        limits = self._limits[line.number]
        bounds = (limits.call, remaining(self.usage.get(line.sim.imsi, Usage()), limits, self.clock()))
        return min((bound for bound in bounds if bound is not None), default=None)

    def _rotate(self, line: Line) -> None:
        if line.state is not State.IDLE:
            return
        now = self.clock()
        elsewhere = {other.sim.imsi for other in self.lines if other is not line}
        sim = next_sim(self.rotation, self.sims, line.placed, elsewhere, self.usage, now)
        if sim is not None:
            line.placed, line.number_set = Placed(sim, now), ""
            self._tell(SimChanged(line.number, now, sim))

    def _set(self, line: Line, state: State) -> None:
        line.state, line.since = state, self.clock()
        self._tell(StateChanged(line.number, line.since, state, line.party))

    def _tell(self, event: Event) -> None:
        for watcher in self._watchers:
            watcher(event)


def _matches(line: Line, number: str) -> bool:
    return any(number.startswith(prefix) for prefix in line.plan.prefixes)


def _source(text: str) -> Callable[[IPv4Address], bool]:
    """``198.18.0.7``, or ``198.18.0.x`` for all of the last octet."""
    whole = text.endswith(".x")
    try:
        wanted = IPv4Address(text[:-1] + "0" if whole else text)
    except ValueError as error:
        raise BadInput(f"{text[:40]!r} is no IPv4 address; its last octet may be x") from error
    bits = 8 if whole else 0
    return lambda source: int(source) >> bits == int(wanted) >> bits
