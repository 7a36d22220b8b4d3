"""Joins a box to the Asterisk that carries its SIP and RTP: calls ask for a line, the box hears what became of them.

Knows AMI, and the questions and variables of etc/goip/extensions.conf, whose numbers come filtered; which line a call
gets and which refusal is the box's to say. Knows nothing of texts, which go through its Asterisk too: those are
``sms``'s, and it has the accounts, the orders and the events that they need.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Self

import structlog

from pbxguard.errors import LabUnavailable
from pbxguard.lab.ami import Ami, Fields
from pbxguard.lab.goip.box import NORMAL_CLEARING, Box, DropWanted, Event, Line, Refusal, State, StateChanged
from pbxguard.lab.goip.callerid import CidPrefix
from pbxguard.lab.goip.control import steady_clock
from pbxguard.lab.goip.dialling import dialled
from pbxguard.lab.goip.plan import GatewayPlan
from pbxguard.lab.goip.questions import Questions
from pbxguard.lab.goip.sims import Sim

__all__ = ["Gateway"]

_log = structlog.get_logger(__name__)

#: How often the box is asked for what is due by its own clock.
_TICK = 1.0
#: Seconds that a caller waits for an idle line.
_LINE_LIMIT = 60.0
#: Seconds for an earlier box to let go of its Asterisk: two would both answer its questions.
_ALONE_LIMIT = 3.0

Variables = dict[str, str]


@dataclass(frozen=True, slots=True)
class _Call:
    line: int
    channel: str


class Gateway:
    """A gateway at work. Close it.

    Args:
        name: Of its actor; accounts begin with it.
        plan: Its settings, as its Asterisk was configured.
        ami: Connection to its Asterisk.
        box: Its lines.
        host: The host's address, as its Asterisk reaches it.

    Attributes:
        broken: Why it does not work any more, or "".
        accounts: Its SIP accounts, each with its lines.
    """

    def __init__(self, name: str, plan: GatewayPlan, ami: Ami, box: Box, host: IPv4Address) -> None:
        self.name, self.plan, self.box = name, plan, box
        self.broken = ""
        self._ami = ami
        self._questions = Questions(host, self._answer)
        self.accounts = plan.accounts(name)
        self._cid = CidPrefix.parse(plan.cid_prefix)
        self._calls: dict[str, _Call] = {}
        self._forward: dict[int, str] = {}
        self._reserved: set[int] = set()
        self._changed = asyncio.Condition()
        self._orders: asyncio.Queue[tuple[str, Mapping[str, str | list[str]]]] = asyncio.Queue()
        self._tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._tick())]
        self._told: set[asyncio.Task[None]] = set()
        box.watch(self._on_box)
        ami.lost = self._lost
        ami.on("DialState", self._on_progress)
        ami.on("DialEnd", self._on_progress)
        ami.on("Registry", self._on_registry)

    @classmethod
    async def open(cls, name: str, plan: GatewayPlan, ami: Ami, host: IPv4Address, bank: int = 0) -> Self:
        """A gateway whose Asterisk runs with this plan; the connection is closed when it cannot be had.

        Raises:
            LabUnavailable: Asterisk does not take orders, or takes them from another box.
        """
        gateway = cls(name, plan, ami, plan.box(steady_clock(), bank), host)
        try:
            await gateway._begin()
        except BaseException:
            gateway.close()
            raise
        return gateway

    async def _begin(self) -> None:
        # A box that has just been closed may still be logged in.
        begun = time.monotonic()
        while (await self._ami.console("manager show connected")).count("lab ") > 1:
            if time.monotonic() - begun > _ALONE_LIMIT:
                raise LabUnavailable(
                    f"{self.name} is at work for another `pbxguard lab` command; end that, or ring one of its SIMs "
                    "with `pbxguard lab call --trunk natl`"
                )
            await asyncio.sleep(0.1)
        await self._questions.__aenter__()
        await self._ami.order("Setvar", Variable="GOIP_BOX", Value=self._questions.address)
        for row in (await self._ami.console("pjsip show registrations")).splitlines():
            account = row.strip().partition("/")[0]
            for line in self.accounts.get(account, ()):
                self.box.registered(line, " Registered " in row)

    def close(self) -> None:
        for task in (*self._tasks, *self._told):
            task.cancel()
        self._questions.close()
        self._ami.close()

    def account(self, line: int | None) -> str:
        """The SIP account by which a switch reaches that line, or any; ``NAME-trunk`` for the gateway without one.

        Raises:
            LabUnavailable: No account has that line to itself or its group: the gateway would choose.
        """
        if line is None:
            return next(iter(self.accounts), f"{self.name}-trunk")
        for account, lines in self.accounts.items():
            if line in lines and account != self.name:
                return account
        raise LabUnavailable(
            f"{self.name} in {self.plan.mode} mode chooses the line itself; leave `line` out, or use another mode"
        )

    def account_of(self, line: int) -> str:
        """The SIP account that a line itself uses; the gateway's name for one without any."""
        return next((name for name, lines in self.accounts.items() if line in lines), self.name)

    def order(self, action: str, /, **fields: str | list[str]) -> None:
        """Have its Asterisk do this after all that was ordered before; an order that it does not take is logged."""
        self._orders.put_nowait((action, fields))

    @contextmanager
    def hearing(self, event: str, watcher: Callable[[Fields], None]) -> Iterator[None]:
        """Tell *watcher* of every AMI event of that name in this block."""
        self._ami.on(event, watcher)
        try:
            yield
        finally:
            self._ami.off(event, watcher)

    @asynccontextmanager
    async def forwarding(self, number: str, line: int | None = None) -> AsyncIterator[Sim]:
        """Have an idle line forward its GSM calls to *number* in this block; yields the SIM that a caller rings.

        Args:
            number: "Forwarding to VoIP Number" of the line.
            line: That line; None for the first that is idle and not used in another such block.

        Raises:
            LabUnavailable: None becomes idle.
        """
        found: Line | None = None

        def idle() -> bool:
            nonlocal found
            wanted = self.box.lines if line is None else (self.box.line(line),)
            ready = (each for each in wanted if each.state is State.IDLE and each.number not in self._reserved)
            found = next((each for each in ready if each.gsm_up and each.enabled), None)
            return found is not None or bool(self.broken)

        try:
            async with asyncio.timeout(_LINE_LIMIT), self._changed:
                await self._changed.wait_for(idle)
        except TimeoutError as error:
            raise LabUnavailable(
                f"{self.name}: an idle line was expected within {_LINE_LIMIT:.0f} s, observed none"
            ) from error
        if found is None:
            raise LabUnavailable(f"{self.name}: {self.broken}")
        self._reserved.add(found.number)
        self._forward[found.number] = dialled(number)
        try:
            yield found.sim
        finally:
            self._reserved.discard(found.number)
            self._forward.pop(found.number, None)
            self._notify()

    def forward_all(self, number: str) -> None:
        """Have every line forward its GSM calls to *number* from now on; "" for none."""
        self._forward = dict.fromkeys((line.number for line in self.box.lines), dialled(number))

    # -- what its Asterisk asks and says -------------------------------------------------------------------

    def _answer(self, script: str, asked: Mapping[str, str]) -> Variables:
        """A channel waits for the box; what it asks is of the dialplan's own making or numbers."""
        unique = asked.get("id", "")[:64]
        match script:
            case "dial":
                return self._dial(unique, asked)
            case "incoming":
                return self._incoming(unique, asked)
            case "answered":
                if call := self._calls.get(unique):
                    self.box.connected(call.line)
            case "over":
                return self._over(unique, asked.get("cause", ""))
        return {}

    def _dial(self, unique: str, asked: Mapping[str, str]) -> Variables:
        account = asked.get("account", "")
        lines = self.accounts.get(account, ())
        try:
            source = IPv4Address(asked.get("source", "").partition(":")[0])
        except ValueError:
            source = None
        found = self.box.dial(
            asked.get("number", ""),
            line=lines[0] if len(lines) == 1 else None,
            group=account.removeprefix(f"{self.name}-"),
            source=source,
        )
        if isinstance(found, Refusal):
            return {"GOIP_STATUS": str(found.status)}
        self._calls[unique] = _Call(found.number, asked.get("channel", ""))
        # The called GSM subscriber sees the SIM, never the caller on the SIP side.
        return {"GOIP_LINE": str(found.number), "GOIP_SIM": found.sim.msisdn, "GOIP_NUMBER": found.party}

    def _incoming(self, unique: str, asked: Mapping[str, str]) -> Variables:
        rung, cli = asked.get("number", ""), asked.get("cli", "")
        line = next((each for each in self.box.lines if each.sim.msisdn == rung), None)
        if line is None or not self.box.incoming(line.number, cli):
            return {}
        self._calls[unique] = _Call(line.number, asked.get("channel", ""))
        return {
            "GOIP_LINE": str(line.number),
            "GOIP_ACCOUNT": self.account_of(line.number),
            "GOIP_CLI": self._cid.apply(cli),
            "GOIP_TO": self._forward.get(line.number, "") if self.plan.forward else "",
        }

    def _over(self, unique: str, cause: str) -> Variables:
        call = self._calls.pop(unique, None)
        if call is None:
            return {}
        number = int(cause) if cause.isascii() and cause.isdigit() and len(cause) < 4 else 0
        refusal = self.box.hung_up(call.line, number or NORMAL_CLEARING)
        return {"GOIP_STATUS": str(refusal.status)} if refusal else {}

    def _on_progress(self, event: Fields) -> None:
        call = self._calls.get(event.get("Uniqueid", ""))
        if call is None:
            return
        match event.get("DialStatus", ""):
            case "RINGING":
                self.box.alerting(call.line)
            case "ANSWER":
                self.box.connected(call.line)

    def _on_registry(self, event: Fields) -> None:
        account = event.get("Username", "").removeprefix("sip:").partition("@")[0]
        for line in self.accounts.get(account, ()):
            self.box.registered(line, event.get("Status") == "Registered")

    def _lost(self) -> None:
        self.broken = "its Asterisk closed the AMI connection"
        for call in self._calls.values():
            self.box.hung_up(call.line, NORMAL_CLEARING)
        self._calls.clear()
        self._notify()

    # -- what the box wants --------------------------------------------------------------------------------

    def _on_box(self, event: Event) -> None:
        if isinstance(event, StateChanged):
            self._notify()
        if isinstance(event, DropWanted):
            channel = next((call.channel for call in self._calls.values() if call.line == event.line), None)
            if channel is not None:
                self.order("Hangup", Channel=channel, Cause=str(NORMAL_CLEARING))

    def _notify(self) -> None:
        async def tell() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.get_running_loop().create_task(tell())
        self._told.add(task)
        task.add_done_callback(self._told.discard)

    async def _work(self) -> None:
        """Orders one after the other."""
        while True:
            action, fields = await self._orders.get()
            try:
                await self._ami.order(action, **fields)
            except (LabUnavailable, ValueError) as error:  # its channel may be gone meanwhile
                _log.debug("gateway's order not taken", action=action, why=str(error)[:200])

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            self.box.tick()
