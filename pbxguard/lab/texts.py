"""Sends the texts of scenarios, by each way that a GOIP gateway has, and waits for what becomes of them.

Joins a gateway's SMS/control protocol and pages, a small SMS server on the host's side, the PBX's own interface (AMI,
event socket) and a capture of the MESSAGEs. Whether all was as expected, ``messages`` says. A text never stands in a
command line: it goes as base64 over AMI, as the counted body of an event over the event socket.
"""

import asyncio
import base64
import contextlib
import html
import re
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException
from ipaddress import IPv4Address
from pathlib import Path

from pbxguard.errors import LabUnavailable, PeerProtocolError
from pbxguard.lab import messages, topology
from pbxguard.lab.ami import Ami
from pbxguard.lab.callers import Callers
from pbxguard.lab.goip.box import Line
from pbxguard.lab.goip.control import Device
from pbxguard.lab.goip.endpoint import Timing
from pbxguard.lab.goip.gateway import Gateway
from pbxguard.lab.goip.mobile import MobileNetwork, Report, Sent, Text
from pbxguard.lab.goip.server import Notice, SmsServer
from pbxguard.lab.goip.sms import Texts, read_forwarded
from pbxguard.lab.goip.web import WEB_USER, Web
from pbxguard.lab.messages import Leg, TextObserved
from pbxguard.lab.scenario import TextStep
from pbxguard.lab.topology import number_of
from pbxguard.lab.waiting import wait_for
from pbxguard.lab.wire import Capture
from pbxguard.lab.world import World
from pbxguard.pbx import esl

__all__ = ["PASSWORD", "Texting"]

#: Of every line and of the pages, for the time of a run.
PASSWORD = "goip"  # noqa: S105 (the ports are the lab's, and gone with the run)
#: Seconds for one step of a text on its way, and how long something that must not come is waited for.
LIMIT, SILENCE = 15.0, 2.0
#: The mobile network of the lab is quicker than a real one, where a text takes 2 to 5 s.
_SENDING, _REPORT = 0.2, 0.2


@dataclass(frozen=True, slots=True)
class _Desk:
    """A gateway with its protocol, its pages and its place to keep what the mobile network said."""

    gateway: Gateway
    texts: Texts
    reports: dict[int, int]
    sent: list[Text]
    stack: AsyncExitStack

    @classmethod
    async def open(cls, gateway: Gateway, host: IPv4Address, server: SmsServer) -> "_Desk":
        async with AsyncExitStack() as stack:
            texts = await stack.enter_async_context(
                Texts.open(
                    gateway,
                    server="{}:{}".format(*server.address), listen=f"{host}:0", http=f"{host}:0", password=PASSWORD,
                    network=MobileNetwork(sending=_SENDING, report=_REPORT), timing=Timing(),
                )
            )  # fmt: skip
            desk = cls(gateway, texts, {}, [], stack.pop_all())
        texts.device.watch(desk.happened)
        return desk

    @property
    def device(self) -> Device:
        return self.texts.device

    @property
    def web(self) -> Web:
        return self.texts.web

    def happened(self, what: object) -> None:
        if isinstance(what, Report):
            self.reports[what.text.number] = what.status
        elif isinstance(what, Sent) and not what.error:
            self.sent.append(what.text)

    def text(self, number: int) -> Text | None:
        """The text of that sms_no, once the mobile network has it."""
        return next((each for each in self.sent if each.number == number), None)


class Texting:
    """What sends texts in one world; a gateway's ports are opened when first used.

    Args:
        world: A lab that is up.
        callers: Open connections to its actors.
        server: The SMS server of all gateways.
    """

    def __init__(self, world: World, callers: Callers, server: SmsServer) -> None:
        self._world, self._callers, self._server = world, callers, server
        self._desks: dict[str, _Desk] = {}
        self._opening = asyncio.Lock()
        # A line sends one text at a time, and forwards to one number.
        self._lines: defaultdict[tuple[str, int], asyncio.Lock] = defaultdict(asyncio.Lock)

    @classmethod
    @asynccontextmanager
    async def open(cls, world: World, callers: Callers) -> AsyncIterator["Texting"]:
        """The texts of a world for the time of this block."""
        async with SmsServer(f"{world.net.guard_address}:0") as server:
            texting = cls(world, callers, server)
            try:
                yield texting
            finally:
                for desk in texting._desks.values():
                    await desk.stack.aclose()

    async def send(self, step: TextStep, tag: str, pcap: Path) -> TextObserved:
        """Send one text and say what became of it.

        Args:
            step: The text.
            tag: 16 hex digits; goes along in X-Pbxguard-Call.
            pcap: What is being captured at the PBX meanwhile.

        Raises:
            LabUnavailable: A gateway, the PBX or the SMS server does not work.
        """
        desk = await self._desk(step.gateway)
        line = await self._line(desk, step)
        async with self._lines[step.gateway, line.number]:
            match step.way:
                case "gsm":
                    return await self._from_gsm(desk, line, step, tag, pcap)
                case "udp":
                    return await self._over_udp(desk, line, step)
                case "http":
                    return await self._over_http(desk, line, step)
                case "pbx":
                    return await self._from_pbx(desk, step, tag, pcap)

    # -- ways ----------------------------------------------------------------------------------------------

    async def _from_gsm(self, desk: _Desk, line: Line, step: TextStep, tag: str, pcap: Path) -> TextObserved:
        """A text reaches the SIM of a line: RECEIVE to the SMS server, MESSAGE to the number that it forwards to."""
        to = number_of(step.to) if step.to else ""
        known = set(self._server.notices)
        with desk.texts.forwarding(line.number, to, tag):
            desk.device.text_arrives(line.number, step.sender, step.whole)
            notice = await self._notice(known, "RECEIVE", desk, line)
            # Who forwards to nobody must not be seen to send anything; that is waited for, but not for long.
            found = await _settled(pcap, tag, LIMIT if to else SILENCE, relayed=True)
        seen = TextObserved()
        if notice is not None:
            seen = replace(seen, server=True, sender=notice["srcnum"], bodies={"server": notice["msg"]})
        if found:
            seen = replace(seen, message=found[0].status)
        last = found[-1] if len(found) > 1 else None
        if last is not None and last.status is not None and last.status < 300:
            sender, body = read_forwarded(last.body)
            bodies = seen.bodies | {"phone": body}
            seen = replace(seen, phone=last.target, copies=last.copies, sender=sender, bodies=bodies)
        return seen

    async def _over_udp(self, desk: _Desk, line: Line, step: TextStep) -> TextObserved:
        """The SMS server has a line send a text."""
        known = set(self._server.notices)
        try:
            number = await self._server.send(desk.device.address(line.number), PASSWORD, step.to, step.whole)
        except LabUnavailable as error:
            return TextObserved(answer=str(error))
        return await self._gone_out(desk, line, int(number), "OK", known)

    async def _over_http(self, desk: _Desk, line: Line, step: TextStep) -> TextObserved:
        """Somebody has a line send a text with send.html, and asks send_status.xml for its end."""
        host, port = desk.web.address()
        base = f"http://{host}:{port}/default/en_US/"
        who = {"u": WEB_USER, "p": PASSWORD}
        # A text of the PBX may be in the line, and the page would say "busy".
        await _came(lambda: not desk.device.network.busy(line.number), LIMIT)
        known, begun = set(self._server.notices), len(desk.sent)
        ask = who | {"l": str(line.number), "n": step.to, "m": step.whole}
        said = await asyncio.to_thread(_page, f"{base}send.html?{urllib.parse.urlencode(ask)}")
        found = re.search(r"; ?ID:([0-9a-f]{1,16})\s*$", said)
        if not said.startswith("Sending") or found is None:
            return TextObserved(answer=said.strip()[:200])
        status = ""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LIMIT):
                while status != "DONE":
                    page = await asyncio.to_thread(_page, f"{base}send_status.xml?{urllib.parse.urlencode(who)}")
                    if f"<id{line.number}>{found[1]}</id{line.number}>" in page:
                        state = re.search(rf"<status{line.number}>([A-Z]{{1,20}})</", page)
                        fault = re.search(rf"<error{line.number}>([^<]{{1,40}})</", page)
                        status = f"ERROR {html.unescape(fault[1])}" if fault else state[1] if state else ""
                    if status.startswith("ERROR"):
                        return TextObserved(answer=status)
                    await asyncio.sleep(0.05)
        mine = [text for text in desk.sent[begun:] if text.line == line.number]
        return await self._gone_out(desk, line, mine[-1].number if mine else 0, status, known)

    async def _from_pbx(self, desk: _Desk, step: TextStep, tag: str, pcap: Path) -> TextObserved:
        """The PBX sends a text to an account of the gateway, and one of its lines sends it on."""
        known = set(self._server.notices)
        account, to = desk.gateway.account(step.line), step.to
        sender = number_of(step.sender)
        if self._world.pbx == "freeswitch":
            await self._by_freeswitch(account, sender, to, step.whole, tag)
        else:
            await self._by_asterisk(account, sender, to, step.whole, tag)
        found = await _settled(pcap, tag, LIMIT, relayed=False)
        seen = TextObserved(message=found[0].status if found else None)
        taken: list[Text] = []

        def here() -> bool:
            taken[:] = [text for mark, text in desk.texts.from_sip if mark == tag]
            return bool(taken)

        if not await _came(here, LIMIT if found and (found[0].status or 500) < 300 else SILENCE):
            return seen
        line = desk.gateway.box.line(taken[0].line)
        return replace(await self._gone_out(desk, line, taken[0].number, "", known), message=seen.message)

    async def _gone_out(self, desk: _Desk, line: Line, number: int, answer: str, known: set[Notice]) -> TextObserved:
        """What the mobile network and the SMS server have of a text that a line was told to send."""
        await _came(lambda: desk.text(number) is not None and number in desk.reports, LIMIT)
        text = desk.text(number)
        if text is None:
            return TextObserved(answer=answer)
        report = await self._notice(known, "DELIVER", desk, line, sms_no=str(number))
        return TextObserved(
            answer=answer,
            gsm=True,
            report=int(report["state"]) if report is not None and report["state"].isdecimal() else None,
            sender=text.sender,
            bodies={"gsm": text.body},
        )

    # -- the PBX's own interface ---------------------------------------------------------------------------

    async def _by_asterisk(self, account: str, sender: str, to: str, body: str, tag: str) -> None:
        ami = await Ami.connect(self._world.net.pbx_carrier, self._world.passwords.ami)
        try:
            raw = body.encode("utf-8", "replace")
            await ami.order(
                "MessageSend",
                Destination=f"pjsip:PJSIP/{to}@{account}",
                From=f"sip:{sender}@{self._world.net.pbx_carrier}",
                Base64Body=base64.b64encode(raw).decode(),
                Variable=[f"{messages.TAG}={tag}"],
            )
        finally:
            ami.close()

    async def _by_freeswitch(self, account: str, sender: str, to: str, body: str, tag: str) -> None:
        address = str(self._world.net.pbx_carrier), topology.ESL_PORT
        try:
            async with asyncio.timeout(LIMIT):
                reader, writer = await asyncio.open_connection(*address)
                try:
                    ask = _Asking(reader, writer)
                    await ask.frame()
                    await ask(esl.command("auth", self._world.passwords.ami))
                    contact = (await ask(esl.command("api", "sofia_contact", f"carrier/{account}@lab"))).body.decode()
                    found = re.fullmatch(r"sofia/carrier/sip:[^@\s]+@([A-Za-z0-9.:;=_-]{1,200})", contact.strip())
                    if found is None:
                        raise LabUnavailable(f"{account} is not registered at the PBX: {contact[:80]!r}")
                    raw = body.encode("utf-8", "replace")
                    head = {
                        "Event-Subclass": "SMS::SEND_MESSAGE", "dest_proto": "sip", "proto": "sip",
                        # Without the contact's parameters, which FreeSWITCH drops, From is what tells the account.
                        "from": f"{account}@{self._world.net.pbx_carrier}", "to": f"carrier/sip:{to}@{found[1]}",
                        "from_full": f'"{sender}" <sip:{account}@{self._world.net.pbx_carrier}>',
                        "type": "text/plain", f"sip_h_{messages.TAG}": tag, "content-length": str(len(raw)),
                    }  # fmt: skip
                    lines = ["sendevent CUSTOM", *(f"{name}: {value}" for name, value in head.items())]
                    await ask(b"".join(esl.command(line)[:-1] for line in lines) + b"\n" + raw)
                finally:
                    writer.close()
        except (OSError, TimeoutError, EOFError, PeerProtocolError) as error:
            raise LabUnavailable(f"the event socket at {address[0]}:{address[1]} does not answer") from error

    # -- helpers -------------------------------------------------------------------------------------------

    async def _desk(self, name: str) -> _Desk:
        async with self._opening:
            gateway = await self._callers.gateway(name)
            desk = self._desks.get(name)
            if desk is not None and desk.gateway is not gateway:  # set up anew meanwhile
                await self._desks.pop(name).stack.aclose()
                desk = None
            if desk is None:
                desk = await _Desk.open(gateway, self._world.net.guard_address, self._server)
                self._desks[name] = desk
            return desk

    async def _line(self, desk: _Desk, step: TextStep) -> Line:
        lines = desk.gateway.box.lines
        if step.line is not None:
            if step.line > len(lines):
                raise LabUnavailable(f"{step.gateway} has no line {step.line}; it has 1 to {len(lines)}")
            return lines[step.line - 1]
        idle = (line for line in lines if not self._lines[step.gateway, line.number].locked())
        return next(idle, lines[0])

    async def _notice(self, known: set[Notice], verb: str, desk: _Desk, line: Line, **fields: str) -> Notice | None:
        """The first new notice of a line with these fields, or None when none comes."""
        name = desk.device.endpoints[line.number - 1].identity.id
        found: list[Notice] = []

        def here() -> bool:
            found[:] = [
                notice
                for notice in self._server.notices
                if (notice.verb, notice.line) == (verb, name)
                and notice not in known
                and all(notice[key] == value for key, value in fields.items())
            ]
            return bool(found)

        return found[0] if await _came(here, LIMIT) else None


class _Asking:
    """Commands on an event socket, one after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._frames = esl.Reader()
        self._waiting: list[esl.Frame] = []

    async def __call__(self, command: bytes) -> esl.Frame:
        self._writer.write(command)
        frame = await self.frame()
        said = frame.headers.get("reply-text", "")
        if said.startswith("-ERR"):
            raise LabUnavailable(f"FreeSWITCH: {said[:200]!r}")
        return frame

    async def frame(self) -> esl.Frame:
        while not self._waiting:
            data = await self._reader.read(65536)
            if not data:
                raise EOFError
            self._waiting += self._frames.feed(data)
        return self._waiting.pop(0)


async def _settled(pcap: Path, tag: str, limit: float, *, relayed: bool) -> list[Leg]:
    """The MESSAGEs of a text when nothing more is to come, or what there is at the limit (seconds)."""
    found: list[Leg] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit):
            while not messages.done(found, relayed=relayed):
                await asyncio.sleep(0.1)
                found = messages.legs(await asyncio.to_thread(Capture.load, pcap), tag)
    return found


async def _came(condition: Callable[[], bool], limit: float) -> bool:
    with contextlib.suppress(LabUnavailable):
        await wait_for(condition, limit, "it", every=0.02)
    return condition()


def _page(url: str) -> str:
    """A page of a gateway.

    Raises:
        LabUnavailable: It does not come; the message has no query, which has the password.
    """
    try:
        with urllib.request.urlopen(url, timeout=LIMIT) as response:  # noqa: S310 (our own, http in the lab)
            return str(response.read(65536).decode("utf-8", "replace"))
    except (OSError, HTTPException) as error:
        raise LabUnavailable(f"{url.partition('?')[0]}: the page does not come: {error}") from error
