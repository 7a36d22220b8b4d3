"""Joins a box to the Asterisk that carries its SIP and RTP.

Calls ask the box for a line, and the box hears what became of them; texts go both ways as SIP MESSAGE. Knows AMI, and
the questions and variables of etc/goip/extensions.conf; which line a call gets and which refusal is the box's to say.

A text that reaches a SIM goes to the "SMS Forward Number" of its line as the vendor's manual has it (GoIP User
Manual, appendix "SMS To VoIP"): text/plain, From is the line's account, and the number of the GSM sender is the first
line of the body, the text what follows. That the two are parted by one line feed is assumed, and so is the other way:
the user of the Request-URI is the number that the text goes to.
"""

import asyncio
import base64
import binascii
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Self
from urllib.parse import unquote_to_bytes

import structlog

from pbxguard.errors import LabUnavailable
from pbxguard.lab.ami import Ami, Fields
from pbxguard.lab.goip.box import NORMAL_CLEARING, Box, DropWanted, Event, Line, Refusal, State, StateChanged
from pbxguard.lab.goip.callerid import CidPrefix
from pbxguard.lab.goip.control import Device, steady_clock
from pbxguard.lab.goip.endpoint import Timing
from pbxguard.lab.goip.mobile import Arrived, Happened, MobileNetwork, Text
from pbxguard.lab.goip.plan import GatewayPlan
from pbxguard.lab.goip.protocol import Identity, clean_number
from pbxguard.lab.goip.questions import Questions
from pbxguard.lab.goip.sims import Sim
from pbxguard.lab.goip.web import Web

__all__ = ["WEB_USER", "Gateway", "forwarded", "read_forwarded"]

_log = structlog.get_logger(__name__)

#: User of the pages.
WEB_USER = "admin"

#: How often the box is asked for what is due by its own clock.
_TICK = 1.0
#: Seconds that a caller waits for an idle line.
_LINE_LIMIT = 60.0
#: Seconds for an earlier box to let go of its Asterisk: two would both answer its questions.
_ALONE_LIMIT = 3.0
#: A line of AMI has 1024 bytes at most, its name included; five pieces hold the longest text and its sender.
_PIECE, _PIECES = 660, 5
_NO_PIECE = "AA=="
#: Texts from SIP that are kept to be looked at.
_KEPT = 1000

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
        from_sip: Texts that came as MESSAGE, with the lab's own tag of each.
    """

    def __init__(self, name: str, plan: GatewayPlan, ami: Ami, box: Box, host: IPv4Address) -> None:
        self.name, self.plan, self.box = name, plan, box
        self.broken = ""
        self._ami = ami
        self._questions = Questions(host, self._answer)
        self._accounts = plan.accounts(name)
        self._cid = CidPrefix.parse(plan.cid_prefix)
        self._calls: dict[str, _Call] = {}
        self._forward: dict[int, str] = {}
        self._reserved: set[int] = set()
        self._changed = asyncio.Condition()
        self._device: Device | None = None
        self._text_forward: dict[int, tuple[str, str]] = {}
        self.from_sip: deque[tuple[str, Text]] = deque(maxlen=_KEPT)
        self._orders: asyncio.Queue[tuple[str, Mapping[str, str | list[str]]]] = asyncio.Queue()
        self._tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._tick())]
        self._told: set[asyncio.Task[None]] = set()
        box.watch(self._on_box)
        ami.lost = self._lost
        ami.on("DialState", self._on_progress)
        ami.on("DialEnd", self._on_progress)
        ami.on("Registry", self._on_registry)
        ami.on("UserEvent", self._on_message)

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
            for line in self._accounts.get(account, ()):
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
            return next(iter(self._accounts), f"{self.name}-trunk")
        for account, lines in self._accounts.items():
            if line in lines and account != self.name:
                return account
        raise LabUnavailable(
            f"{self.name} in {self.plan.mode} mode chooses the line itself; leave `line` out, or use another mode"
        )

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
        self._forward[found.number] = number
        try:
            yield found.sim
        finally:
            self._reserved.discard(found.number)
            self._forward.pop(found.number, None)
            self._notify()

    def forward_all(self, number: str) -> None:
        """Have every line forward its GSM calls to *number* from now on; "" for none."""
        self._forward = dict.fromkeys((line.number for line in self.box.lines), number)

    # -- texts ---------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def texting(
        self, *, server: str, listen: str, http: str, password: str, user: str = WEB_USER, ids: str = "",
        network: MobileNetwork | None = None, timing: Timing | None = None,
    ) -> AsyncIterator[tuple[Device, Web]]:  # fmt: skip
        """Have the SMS/control protocol and the pages around this gateway's lines in this block; texts need them.

        Args:
            server: ``HOST:PORT`` of the SMS server.
            listen: ``HOST:PORT`` of line 1, the others have the ports behind it; port 0 for any.
            http: ``HOST:PORT`` of the pages.
            password: Of every line, and of the pages.
            user: Of the pages.
            ids: Line 2 says ``IDS-2``; the gateway's name unless given.
            network: What texts end in.
            timing: Of the protocol.

        Raises:
            BadInput: An address is outside the lab.
            ServiceUnavailable: An address is taken, or not of this machine.
        """
        identities = [Identity(f"{ids or self.name}-{line.number}", password) for line in self.box.lines]
        device = Device(self.box, network or MobileNetwork(), identities, server=server, listen=listen, timing=timing)
        web = Web(device, http, user, password)
        device.watch(self._on_text)
        async with device, web:
            self._device = device
            try:
                yield device, web
            finally:
                self._device = None

    @contextmanager
    def forwarding_texts(self, line: int, number: str, tag: str = "") -> Iterator[None]:
        """Have a line forward its texts to *number* ("SMS Forward Number") in this block.

        Args:
            line: Its number; one such block at a time for each.
            number: Who gets the MESSAGE at the SIP server; "" for nobody.
            tag: The lab's own id of the text, hex digits.
        """
        self._text_forward[self.box.line(line).number] = number, tag
        try:
            yield
        finally:
            self._text_forward.pop(line, None)

    def _on_text(self, happened: Happened) -> None:
        if not isinstance(happened, Arrived):
            return
        line = next((each for each in self.box.lines if each.sim.msisdn == happened.msisdn), None)
        number, tag = self._text_forward.get(line.number, ("", "")) if line is not None else ("", "")
        if line is None or not _dialable(number):
            return
        body = (
            forwarded(happened.sender, happened.body).encode("utf-8", "replace").replace(b"\0", b"?")
        )  # Asterisk's end of a text
        pieces = [
            base64.b64encode(body[at : at + _PIECE]).decode() for at in range(0, len(body), _PIECE)
        ][:_PIECES]  # fmt: skip
        pieces += [_NO_PIECE] * (_PIECES - len(pieces))
        account = next((name for name, lines in self._accounts.items() if line.number in lines), self.name)
        values = {f"TEXT{n}": piece for n, piece in enumerate(pieces, start=1)}
        values |= {"TEXT_ACCOUNT": account, "TEXT_TO": _dialable(number), "LAB_TAG": tag}
        self._orders.put_nowait(
            (
                "Originate",
                {
                    "Channel": "Local/send@text-out",
                    "Application": "NoOp",
                    "Timeout": "10000",
                    "Async": "true",
                    "Variable": [f"{name}={value}" for name, value in values.items()],
                },
            )
        )

    def _on_message(self, event: Fields) -> None:
        """A MESSAGE reached one of the accounts; a line of it sends the text, also while it has a call."""
        if event.get("UserEvent") != "GoipText" or self._device is None:
            return
        try:
            quoted = base64.b64decode(event.get("Text", ""), validate=True)
        except binascii.Error:
            return
        whole = event.get("Length", "") == str(len(quoted))
        to = _dialable(event.get("To", ""))
        numbers = self._accounts.get(event.get("Account", ""), tuple(line.number for line in self.box.lines))
        lines = [line for line in map(self.box.line, numbers) if line.gsm_up and line.enabled]
        if not (whole and to and lines):
            return
        # Assumed: the manual does not say which line of an account it is.
        line = min(
            lines, key=lambda each: (self._device is None or self._device.network.busy(each.number), each.number)
        )
        body = unquote_to_bytes(quoted).decode("utf-8", "replace")
        self.from_sip.append((event.get("Tag", ""), self._device.send(line.number, to, body)))

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
        lines = self._accounts.get(account, ())
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
        rung, cli = asked.get("number", ""), clean_number(asked.get("cli", ""))
        line = next((each for each in self.box.lines if each.sim.msisdn == rung), None)
        if line is None or not self.box.incoming(line.number, cli):
            return {}
        self._calls[unique] = _Call(line.number, asked.get("channel", ""))
        account = next((name for name, lines in self._accounts.items() if line.number in lines), self.name)
        return {
            "GOIP_LINE": str(line.number),
            "GOIP_ACCOUNT": account,
            "GOIP_CLI": self._cid.apply(cli),
            "GOIP_TO": _dialable(self._forward.get(line.number, "")) if self.plan.forward else "",
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
        for line in self._accounts.get(account, ()):
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
                self._orders.put_nowait(("Hangup", {"Channel": channel, "Cause": str(NORMAL_CLEARING)}))

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


def _dialable(number: str) -> str:
    return "".join(character for character in number if character in "0123456789*#+")


def forwarded(sender: str, body: str) -> str:
    """The body of a MESSAGE about a text of that GSM sender."""
    return f"{clean_number(sender)}\n{body}"


def read_forwarded(body: str) -> tuple[str, str]:
    """Sender and text of such a body; the sender is "" where it has no second line."""
    sender, feed, text = body.partition("\n")
    return (sender, text) if feed else ("", body)
