"""The box on the wire: one UDP port a line, notices to the SMS server, answers to whoever asked.

Owns the sockets and the only timer. What is said is decided by ``endpoint``, what happens to texts by ``mobile``, and
to calls by ``box``; who drives calls (Asterisk's side) calls the box, and its events go out from here.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

import structlog

from pbxguard.errors import BadInput, ServiceUnavailable, UnknownName
from pbxguard.lab.goip.address import lab_address
from pbxguard.lab.goip.box import Box, Clock, Event
from pbxguard.lab.goip.endpoint import Address, Endpoint, Outgoing, Timing
from pbxguard.lab.goip.mobile import Arrived, Happened, MobileNetwork, Text
from pbxguard.lab.goip.protocol import Identity

__all__ = ["Device", "steady_clock"]

_log = structlog.get_logger(__name__)

#: How often the box is asked for what is due by its own clock (module starts, SIM changes, calls that are too long).
BOX_TICK = 1.0
SHORTEST_WAIT = 0.001


def steady_clock(start: datetime | None = None) -> Clock:
    """The time from now on as a clock that only goes forward, whatever becomes of the system's."""
    start, began = start or datetime.now(UTC), time.monotonic()
    return lambda: start + timedelta(seconds=time.monotonic() - began)


class _Port(asyncio.DatagramProtocol):
    def __init__(self, received: Callable[[bytes, Address], None]) -> None:
        self._received = received

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._received(data, (addr[0], addr[1]))

    def error_received(self, exc: Exception) -> None:
        # A server that is not there yet answers with ICMP: the keepalive goes on.
        _log.debug("goip_port_error", error=str(exc)[:200])


class Device:
    """A box whose lines listen for, and report to, an SMS server; an asynchronous context manager.

    Args:
        box: Its lines; this object watches it.
        network: What texts and USSD codes end in. Texts to a SIM of the box arrive there.
        identities: Id and password of each line.
        server: ``HOST:PORT`` of the SMS server.
        listen: ``HOST:PORT`` of the first line; the others have the ports after it. Port 0: the system chooses each.

    Raises:
        BadInput: An address is outside the lab, or there are not as many identities as lines.
    """

    def __init__(
        self,
        box: Box,
        network: MobileNetwork,
        identities: Sequence[Identity],
        *,
        server: str,
        listen: str = "127.0.0.1:9991",
        timing: Timing | None = None,
        ntp: bool = True,
    ) -> None:
        if len(identities) != len(box.lines):
            raise BadInput(f"{len(box.lines)} lines need as many ids, not {len(identities)}")
        self.box, self.network = box, network
        self.server = lab_address(server, "server")
        self._listen = lab_address(listen, "listen", any_port=True)
        network.subscriber = self._subscriber
        self.endpoints = tuple(
            Endpoint(
                box, line.number, network, identity, now=self.now(), timing=timing, ntp=ntp, sees=self._from_server
            )
            for line, identity in zip(box.lines, identities, strict=True)
        )
        self._ports: list[asyncio.DatagramTransport] = []
        self._timer: asyncio.TimerHandle | None = None
        self._watchers: list[Callable[[Happened], None]] = []
        box.watch(self._on_event)

    def now(self) -> float:
        """The box's clock in seconds."""
        return self.box.clock().timestamp()

    async def __aenter__(self) -> Self:
        """Open the ports and send the first keepalives.

        Raises:
            ServiceUnavailable: A port is taken, or the address is not of this machine.
        """
        loop = asyncio.get_running_loop()
        host, first = self._listen
        for place, endpoint in enumerate(self.endpoints):
            port = first + place if first else 0
            try:
                transport, _ = await loop.create_datagram_endpoint(
                    lambda endpoint=endpoint, place=place: _Port(  # type: ignore[misc]
                        lambda data, source: self._received(place, endpoint, data, source)
                    ),
                    local_addr=(host, port),
                )
            except (OSError, OverflowError) as error:
                self._close()
                raise ServiceUnavailable(
                    f"line {place + 1} cannot listen on {host}:{port} ({error}); choose other ports with --listen"
                ) from error
            self._ports.append(transport)
        self._wake()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        # asyncio closes sockets in the next turn of its loop
        await asyncio.sleep(0)

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for transport in self._ports:
            transport.close()
        self._ports.clear()

    def address(self, line: int) -> Address:
        """Where the line listens."""
        self.box.line(line)
        name: tuple[str, int] = self._ports[line - 1].get_extra_info("sockname")
        return name[0], name[1]

    # -- texts ---------------------------------------------------------------------------------------------

    def send(self, line: int, to: str, body: str, *, way: str = "") -> Text:
        """Let a line send a text, as the HTTP page does (*way* says who); its report goes to the SMS server."""
        text = self.endpoints[self.box.line(line).number - 1].send(to, body, self.now(), way=way)
        self._wake()
        return text

    def text_arrives(self, line: int, sender: str, body: str) -> None:
        """A text reaches the SIM in the line: RECEIVE goes to the SMS server."""
        self.network.arrive(self.box.line(line).sim.msisdn, sender, body, self.now())
        self._wake()

    def watch(self, watcher: Callable[[Happened], None]) -> None:
        """Tell *watcher* of each text that was sent, reported on, or has arrived at a SIM in a line."""
        self._watchers.append(watcher)

    def _subscriber(self, number: str) -> str | None:
        sim = self.box.sims.by_number(number)
        return sim.msisdn if sim and any(line.sim.imsi == sim.imsi for line in self.box.lines) else None

    # -- events and time -----------------------------------------------------------------------------------

    def _from_server(self, source: Address) -> bool:
        # The port may be another one: some servers answer from a second socket.
        return source[0] == self.server[0]

    def _on_event(self, event: Event) -> None:
        self._send(event.line - 1, self.endpoints[event.line - 1].happened(event, self.now()))
        self._arm()

    def _received(self, place: int, endpoint: Endpoint, data: bytes, source: Address) -> None:
        self._send(place, endpoint.received(data, source, self.now()))
        self._arm()

    def _wake(self) -> None:
        now = self.now()
        self.box.tick()
        for happened in self.network.due(now):
            try:
                place = self._place(happened.msisdn) if isinstance(happened, Arrived) else happened.text.line - 1
            except UnknownName:
                continue  # its SIM has been taken out of its line meanwhile
            self._send(place, self.endpoints[place].happened(happened, now))
            for watcher in self._watchers:
                watcher(happened)
        for place, endpoint in enumerate(self.endpoints):
            self._send(place, endpoint.due(now))
        self._arm()

    def _place(self, msisdn: str) -> int:
        for line in self.box.lines:
            if line.sim.msisdn == msisdn:
                return line.number - 1
        raise UnknownName(f"no line holds the SIM of {msisdn}")

    def _arm(self) -> None:
        if not self._ports:
            return
        if self._timer is not None:
            self._timer.cancel()
        now = self.now()
        dues = [endpoint.next_due() for endpoint in self.endpoints]
        if (due := self.network.next_due()) is not None:
            dues.append(due)
        wait = min(max(min(dues) - now, SHORTEST_WAIT), BOX_TICK)
        self._timer = asyncio.get_running_loop().call_later(wait, self._wake)

    def _send(self, place: int, outgoing: Sequence[Outgoing]) -> None:
        if place >= len(self._ports):
            return  # not open
        for data, to in outgoing:
            self._ports[place].sendto(data, to or self.server)
