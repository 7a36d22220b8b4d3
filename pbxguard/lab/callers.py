"""Place one call from an actor of the lab, and know when it has ended.

Asterisk actors are driven over AMI (panoramisk), raw INVITEs that no Asterisk sends by SIPp inside the actor's
container. What the caller saw and heard is read from the wire afterwards (``evidence``), not from here.
"""

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from urllib.parse import quote

from pbxguard.errors import LabUnavailable
from pbxguard.lab import topology
from pbxguard.lab.ami import Ami, Fields
from pbxguard.lab.engine import Engine
from pbxguard.lab.goip.gateway import Gateway
from pbxguard.lab.goip.plan import GatewayPlan
from pbxguard.lab.goip.sims import numbers as sim_numbers
from pbxguard.lab.topology import HOME, MOBILE, Topology

#: Settings of GOIP gateways by name.
Gateways = Mapping[str, GatewayPlan]
_AS_THEY_ARE: Gateways = MappingProxyType({})

#: What a call offers that says nothing of it.
_USUAL = ("PCMA", "PCMU")
#: Codecs by their names in SDP, and Asterisk's.
_CODECS = {"PCMA": "alaw", "PCMU": "ulaw", "G722": "g722", "GSM": "gsm"}
#: SIPp's exit code when it cannot bind a socket, and nothing was sent (its manual: -2).
_NO_SOCKET = 254
_SIPP_FOLDER = "/tmp"  # noqa: S108 (inside the actor's own container)


@dataclass(frozen=True, slots=True)
class Placing:
    """One call to place.

    Attributes:
        id: 16 hex digits; goes along in X-Pbxguard-Call, so that a capture shows which legs belong together.
        cli: As it shall stand on the wire; "" for none, ``anonymous`` for a withheld one.
        display_name: Of From.
        listen: Seconds that an answered caller listens after its own marker.
        hang_up_after: Seconds until the caller gives up (CANCEL when not answered), or None.
        offer: False: an INVITE without SDP (SIPp).
        raw: True: SIPp sends ``cli`` exactly as it is; Asterisk would escape it.
        headers: More headers of the INVITE (SIPp only); a value may hold the line end and the blank of a folded line.
        session: Session name of the SDP, as it is (SIPp only).
        sdp: Put behind the last line of the SDP, as it is (SIPp only).
        talk: False: the caller hangs up as soon as the call is answered.
        dtmf: Digits that the caller of an answered call types first.
        line: Of a gateway: the line whose SIM is rung, or whose account dials; None for any that is idle.
        codecs: What a carrier offers, the best first.
    """

    id: str
    trunk: str
    cli: str
    callee: str
    display_name: str = ""
    listen: float = 1.0
    hang_up_after: float | None = None
    offer: bool = True
    raw: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    session: str = ""
    sdp: str = ""
    line: int | None = None
    talk: bool = True
    dtmf: str = ""
    codecs: tuple[str, ...] = _USUAL

    @property
    def by_sipp(self) -> bool:
        """Whether the INVITE is one that no Asterisk sends."""
        return self.raw or not self.offer or bool(self.headers) or bool(self.session + self.sdp)


class _Originator:
    """An actor's Asterisk that is told to place calls, and says when each has ended."""

    def __init__(self, ami: Ami) -> None:
        self._ami = ami
        self._ended: dict[str, asyncio.Future[None]] = {}
        ami.on("UserEvent", self._on_event)
        ami.lost = self._lost

    async def originate(self, call: Placing, dial: str, limit: float) -> None:
        """Dial *dial* as that call's caller and return when it is over."""
        ended = asyncio.get_running_loop().create_future()
        self._ended[call.id] = ended
        withheld = call.cli.lower() == "anonymous"
        patience = call.hang_up_after if call.hang_up_after is not None else limit
        variables = {
            "LAB_ID": call.id,
            # Quoted twice over: AMI must not see a line end, and the dialplan decodes once.
            "LAB_CLI": "" if withheld else quote(call.cli, safe=""),
            "LAB_NAME": quote(call.display_name, safe=""),
            "LAB_WITHHELD": "1" if withheld else "0",
            "LAB_DIAL": dial,
            "LAB_PATIENCE": f"{patience:g}",
            "LAB_LISTEN": f"{call.listen:g}",
            "LAB_DTMF": call.dtmf,
            "LAB_TALK": "1" if call.talk else "0",
            # (The underscores hand it on to the call's other leg, whose offer it is.)
            "__LAB_CODECS": "" if call.codecs == _USUAL else ",".join(_CODECS[each] for each in call.codecs),
        }
        try:
            await self._ami.order(
                "Originate",
                Channel="Local/call@caller",
                Context="talk",
                Exten="s",
                Priority="1",
                Timeout=str(int((limit + 5) * 1000)),
                Async="true",
                Variable=[f"{name}={value}" for name, value in variables.items()],
            )
            await asyncio.wait_for(ended, limit + 10)
        except TimeoutError as error:
            raise LabUnavailable(
                f"end of the call from {call.trunk}: expected within {limit:.0f} s, "
                f"observed none after {limit + 10:.0f} s"
            ) from error
        finally:
            self._ended.pop(call.id, None)

    def close(self) -> None:
        self._ami.close()

    def _on_event(self, event: Fields) -> None:
        if event.get("UserEvent") == "LabCallEnded":
            ended = self._ended.get(event.get("Call", ""))
            if ended is not None and not ended.done():
                ended.set_result(None)

    def _lost(self) -> None:
        for ended in self._ended.values():
            if not ended.done():
                ended.set_exception(LabUnavailable("the AMI connection broke while a call was under way"))


class Callers:
    """The actors that place calls, each with one AMI connection that is opened when first used.

    Args:
        engine: Where they run.
        ami_secret: Password of their AMI.
        net: The world they are in.
        gateways: How its GOIP gateways are configured, by name.
    """

    def __init__(
        self,
        engine: Engine,
        ami_secret: str,
        net: Topology = HOME,
        gateways: Gateways = _AS_THEY_ARE,
    ) -> None:
        self._engine = engine
        self._secret = ami_secret
        self._net = net
        self._plans = gateways
        self._originators: dict[str, _Originator] = {}
        self._gateways: dict[str, Gateway] = {}
        self._connecting = asyncio.Lock()
        self._turn = itertools.count(secrets.randbelow(2500))

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        engine: Engine,
        ami_secret: str,
        net: Topology = HOME,
        gateways: Gateways = _AS_THEY_ARE,
    ) -> AsyncIterator["Callers"]:
        """The actors of a world that is up, for the time of this block."""
        callers = cls(engine, ami_secret, net, gateways)
        try:
            yield callers
        finally:
            for originator in callers._originators.values():
                originator.close()
            for gateway in callers._gateways.values():
                gateway.close()

    async def place(self, call: Placing, *, limit: float = 60) -> None:
        """Place *call* and return when it has ended.

        Raises:
            LabUnavailable: The actor does not exist or did not take the order, or the call did not end in time.
        """
        caller = next((caller for caller in self._net.callers if caller.name == call.trunk), None)
        if caller is None or not caller.calls:
            known = ", ".join(caller.name for caller in self._net.callers if caller.calls)
            raise LabUnavailable(f"the lab has no trunk {call.trunk!r}; it has {known}")
        number = quote(call.callee, safe="+")
        if call.by_sipp:
            await self._by_sipp(call, limit)
        elif caller.registers_at == "pbx":
            # A GSM caller rings a SIM of the gateway, which forwards the call to the number that its line is set to.
            gateway = await self.gateway(caller.name)
            mobile = await self._originator(MOBILE)
            async with gateway.forwarding(call.callee, call.line) as sim:
                await mobile.originate(call, f"PJSIP/{sim.msisdn}@gsm-{caller.name}", limit)
        elif caller.registers_at:
            # A caller abroad has a gateway dial with one of its SIMs.
            gateway = await self.gateway(caller.name)
            switch = await self._originator(caller.registers_at)
            await switch.originate(call, f"PJSIP/{number}@{gateway.account(call.line)}", limit)
        else:
            originator = await self._originator(call.trunk)
            rung = self._sim_of(call.callee) if call.trunk == MOBILE else ""
            endpoint = "pbx" if call.codecs == _USUAL else "pbx-codecs"
            dial = f"PJSIP/{number}@gsm-{rung}" if rung else f"PJSIP/{endpoint}/sip:{number}@{self._net.pbx_carrier}"
            await originator.originate(call, dial, limit)

    def _sim_of(self, number: str) -> str:
        """The gateway that has the SIM of that number, or ""."""
        gateways = (each for each in self._net.callers if each.gateway is not None)
        return next((each.name for each in gateways if number.startswith(sim_numbers(each.bank))), "")

    async def gateway(self, name: str) -> Gateway:
        """The gateway of that name, with its box at work.

        Raises:
            LabUnavailable: It does not answer.
        """
        async with self._connecting:
            known = self._gateways.get(name)
            if known is not None and known.broken:
                self._gateways.pop(name).close()
            if name not in self._gateways:
                caller = self._net.caller(name)
                plan = self._plans.get(name) or caller.gateway
                if plan is None:
                    raise LabUnavailable(f"{name} is no gateway")
                ami = await Ami.connect(caller.address, self._secret)
                self._gateways[name] = await Gateway.open(name, plan, ami, self._net.guard_address, caller.bank)
            return self._gateways[name]

    def forget(self, name: str) -> None:
        """Leave a gateway alone, because it is set up anew."""
        gateway = self._gateways.pop(name, None)
        if gateway is not None:
            gateway.close()

    async def _originator(self, name: str) -> _Originator:
        async with self._connecting:
            if name not in self._originators:
                self._originators[name] = _Originator(await Ami.connect(self._net.caller(name).address, self._secret))
            return self._originators[name]

    async def _by_sipp(self, call: Placing, limit: float) -> None:
        container = self._net.name(call.trunk)
        name = f"{call.id}.xml"
        scenario = sipp_scenario(call)
        await asyncio.to_thread(self._engine.put, container, _SIPP_FOLDER, {name: scenario.encode()})
        code, text = _NO_SOCKET, ""
        # Each call has ports of its own; the PBX knows the trunk by its address alone. Where another process has
        # them, the next are tried.
        for _ in range(3):
            port = 20000 + 4 * (next(self._turn) % 2500)
            command = (
                "sipp", "-sf", f"{_SIPP_FOLDER}/{name}", "-m", "1", "-p", str(port), "-mp", str(port + 12000),
                "-nostdin", "-timeout", f"{int(limit)}s", "-timeout_error", "-s", call.callee, *sipp_keys(call),
                f"{self._net.pbx_carrier}:{topology.SIP_PORT}",
            )  # fmt: skip
            code, text = await asyncio.to_thread(self._engine.run, container, *command, timeout=limit + 5)
            if code != _NO_SOCKET:
                break
        if code not in (0, 1):  # 1: a call did not go as the scenario says; the wire has what happened
            raise LabUnavailable(f"sipp on {call.trunk} ended with {code}: {text.strip()[-300:]}")


def sipp_keys(call: Placing) -> tuple[str, ...]:
    """Text that SIPp puts in as it is: in a scenario it would take blanks out and read brackets."""
    more = "\r\n".join(f"{name}: {value}" for name, value in call.headers.items())
    return ("-key", "more", more, "-key", "session", call.session or "lab", "-key", "sdp", call.sdp)


def sipp_scenario(call: Placing) -> str:
    """A SIPp client: INVITE exactly as asked, any provisional, then a refusal (ACK) or an answer (ACK, BYE)."""
    if call.offer:
        body = (
            "Content-Type: application/sdp\nContent-Length: [len]\n\n"
            "v=0\no=lab 1 1 IN IP4 [local_ip]\ns=[session]\nc=IN IP4 [media_ip]\nt=0 0\n"
            "m=audio [media_port] RTP/AVP 8 0\na=rtpmap:8 PCMA/8000\na=rtpmap:0 PCMU/8000\na=sendrecv[sdp]\n"
        )
    else:
        body = "Content-Length: 0\n"
    more = "[more]\n" if call.headers else ""
    display = f'"{call.display_name}" ' if call.display_name else ""
    sender = f"From: {display}<sip:{call.cli}@[local_ip]>;tag=[call_number]\n"
    # SIPp's branch is its process id and a count, alike in several containers; PJSIP tells transactions apart by the
    # branch alone, without sent-by (RFC 3261 section 17.2.3), and would take this INVITE for another's again.
    via = f"Via: SIP/2.0/UDP [local_ip]:[local_port];branch=[branch]-{call.id}\n"
    rest = "Call-ID: [call_id]\nMax-Forwards: 70\n"
    start = "sip:[service]@[remote_ip]:[remote_port] SIP/2.0\n"
    invite = (
        f"INVITE {start}{via}{sender}To: <sip:[service]@[remote_ip]>\nCSeq: 1 INVITE\n{rest}"
        f"Contact: <sip:lab@[local_ip]:[local_port]>\nX-Pbxguard-Call: {call.id}\n{more}{body}"
    )
    to = "To: <sip:[service]@[remote_ip]>[peer_tag_param]\n"
    ack = f"ACK {start}{via}{sender}{to}CSeq: 1 ACK\n{rest}Content-Length: 0\n"
    bye = f"BYE {start}{via}{sender}{to}CSeq: 2 BYE\n{rest}Content-Length: 0\n"
    # The ACK of a refusal belongs to the INVITE's transaction: same branch (RFC 3261 17.1.1.3).
    refused = f"ACK {start}[last_Via:]\n{sender}{to}CSeq: 1 ACK\n{rest}Content-Length: 0\n"
    statuses = (404, 433, 480, 484, 488, 500, 603, 607, 608)

    def send(message: str, how: str = "") -> str:
        return f"<send{how}><![CDATA[\n{message}\n]]></send>"

    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<scenario name="lab">'
        + send(invite, ' retrans="500"')
        + "".join(f'<recv response="{status}" optional="true"/>' for status in (100, 180, 181, 182, 183))
        + "".join(f'<recv response="{status}" optional="true" next="1"/>' for status in statuses)
        + '<recv response="200"/>'
        + send(ack)
        + '<pause milliseconds="1500"/>'
        + send(bye, ' retrans="500"')
        + '<recv response="200" next="2"/><label id="1"/>'
        + send(refused)
        + '<label id="2"/></scenario>\n'
    )
