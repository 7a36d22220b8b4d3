"""A small SMS server for GOIP gateways, as the other end of the lab's: it acknowledges, remembers, and sends texts.

The server's side of the UDP protocol and nothing more: no store, no retry over days. Whoever reaches the port writes
the datagrams: they are split as bytes (``protocol``), and only what came from a known shape is remembered.
"""

import asyncio
import itertools
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from pbxguard.errors import LabUnavailable, ServiceUnavailable
from pbxguard.lab.goip.address import lab_address
from pbxguard.lab.goip.endpoint import Address
from pbxguard.lab.goip.protocol import MAX_TEXT, NOTICES, read_notice

__all__ = ["Notice", "SmsServer"]

#: Notices that are kept to be looked at.
KEPT = 2000
#: Seconds for one answer of a line, and for the end of a text (2 to 5 s each, one after the other).
ANSWER_S, SENDING_S = 5.0, 60.0


@dataclass(frozen=True, slots=True)
class Notice:
    """What a line told: ``STATE``, ``RECEIVE``, ... with its fields."""

    verb: str
    number: int
    line: str
    fields: tuple[tuple[str, str], ...]

    def __getitem__(self, name: str) -> str:
        """The value of a field, "" where it has none."""
        return dict(self.fields).get(name, "")


class SmsServer(asyncio.DatagramProtocol):
    """The server; an asynchronous context manager that listens.

    Args:
        listen: ``HOST:PORT`` in the lab; port 0 lets the system choose.

    Attributes:
        notices: What lines told, in order, each once; a repeated one is acknowledged again.
        lines: Address of each line by its id, from its keepalive.
    """

    def __init__(self, listen: str) -> None:
        self._listen = lab_address(listen, "listen", any_port=True)
        self.notices: deque[Notice] = deque(maxlen=KEPT)
        self.lines: dict[str, Address] = {}
        self._transport: asyncio.DatagramTransport | None = None
        self._answers: dict[tuple[Address, int], asyncio.Queue[list[str]]] = {}
        self._ids = itertools.count(1)

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            ServiceUnavailable: The address is taken, or not of this machine.
        """
        try:
            self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: self, local_addr=self._listen
            )
        except OSError as error:
            raise ServiceUnavailable(
                f"the SMS server cannot listen on {self._listen[0]}:{self._listen[1]} ({error.strerror})"
            ) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._transport is not None:
            self._transport.close()
        await asyncio.sleep(0)  # asyncio closes the socket in the next turn

    @property
    def address(self) -> Address:
        """Where it listens."""
        if self._transport is None:
            return self._listen
        name: tuple[str, int] = self._transport.get_extra_info("sockname")
        return name[0], name[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        found = read_notice(data)
        if found is None:
            self._answered(data, (addr[0], addr[1]))
            return
        verb, number, fields = found
        line = fields.get("id", "")
        if verb == "req":
            self.lines[line] = addr[0], addr[1]
            self._send(f"reg:{number};status:0;", addr)
        elif verb in NOTICES:
            notice = Notice(verb, number, line, tuple(fields.items()))
            if not any((n.verb, n.number, n.line) == (verb, number, line) for n in self.notices):
                self.notices.append(notice)
            self._send(f"{verb} {number} OK", addr)

    def error_received(self, exc: Exception) -> None:
        """A line that is gone answers with ICMP; it will be back."""

    async def send(self, line: Address, password: str, to: str, body: str) -> str:
        """Have a line send a text (a bulk session of one number); its sms_no.

        Raises:
            ValueError: The text is longer than the protocol allows, or the number is none.
            LabUnavailable: The line refused it; its own words are in the message.
        """
        raw = body.encode("utf-8", "replace")
        if len(raw) > MAX_TEXT or not to.isascii() or not to or any(c.isspace() for c in to):
            raise ValueError(f"a text has at most {MAX_TEXT} bytes, and a number no blank")
        sid, tid = next(self._ids), 1
        queue: asyncio.Queue[list[str]] = asyncio.Queue()
        self._answers[line, sid] = queue
        try:
            await self._asked(queue, b"MSG %d %d %s\n" % (sid, len(raw), raw), line, "PASSWORD")
            await self._asked(queue, f"PASSWORD {sid} {password}\n".encode(), line, "SEND")
            words = await self._asked(queue, f"SEND {sid} {tid} {to}\n".encode(), line, "WAIT", "OK")
            async with asyncio.timeout(SENDING_S):
                while words[0] != "OK":
                    words = _good(await queue.get(), "OK", "WAIT")
            self._send(f"DONE {sid}\n", line)
            return words[3] if len(words) > 3 else ""
        except TimeoutError as error:
            raise LabUnavailable(f"the line at {line[0]}:{line[1]} did not answer in time") from error
        finally:
            del self._answers[line, sid]

    async def _asked(self, queue: asyncio.Queue[list[str]], data: bytes, line: Address, *wanted: str) -> list[str]:
        self._send(data, line)
        async with asyncio.timeout(ANSWER_S):
            return _good(await queue.get(), *wanted)

    def _answered(self, data: bytes, source: Address) -> None:
        words = data[:400].decode("utf-8", "replace").split()
        if len(words) > 1 and words[1].isascii() and words[1].isdecimal() and len(words[1]) < 10:
            queue = self._answers.get((source, int(words[1])))
            if queue is not None:
                queue.put_nowait(words)

    def _send(self, data: bytes | str, to: tuple[str, int]) -> None:
        if self._transport is not None:
            self._transport.sendto(data.encode() if isinstance(data, str) else data, to)


def _good(words: list[str], *wanted: str) -> list[str]:
    if words[0] not in wanted:
        raise LabUnavailable(f"the line answered {' '.join(words)[:200]!r}")
    return words
