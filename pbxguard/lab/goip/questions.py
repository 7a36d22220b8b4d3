"""What a gateway's Asterisk asks its box, by FastAGI: one question a connection, answered with channel variables.

FastAGI and not async AGI, because only the request line of a question can be trusted: a caller's number or name with
line ends in it forges headers of an AMI event, or a whole event, and arguments behind them.
"""

import asyncio
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from types import TracebackType
from typing import Self

import structlog

from pbxguard.errors import CallerGone, LabUnavailable, PeerProtocolError
from pbxguard.pbx import agi
from pbxguard.pbx.asterisk import Request

__all__ = ["Answer", "Questions"]

_log = structlog.get_logger(__name__)

#: Seconds that a question may take.
_LIMIT = 5.0

#: Gets the script and the query of a question, gives the variables to set.
Answer = Callable[[str, Mapping[str, str]], Mapping[str, str]]


class Questions:
    """Listens for questions in an asynchronous ``with`` block.

    Args:
        host: Where; the port is any that is free.
        answer: Answers one question; it must not wait.
    """

    def __init__(self, host: IPv4Address, answer: Answer) -> None:
        self._host = host
        self._answer = answer
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """``HOST:PORT`` as a dialplan has it."""
        if self._server is None:
            raise RuntimeError("not open")
        return f"{self._host}:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        """Begin to listen.

        Raises:
            LabUnavailable: The address is not of this machine.
        """
        try:
            self._server = await asyncio.start_server(self._serve, str(self._host), 0, limit=agi.MAX_HEADER_BYTES)
        except OSError as error:
            said = f"cannot listen on {self._host} for a gateway's questions: {error.strerror}"
            raise LabUnavailable(said) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_LIMIT):
                asked = agi.parse_request(await reader.readuntil(b"\n\n"))
                request = Request(app=None, headers={}, reader=reader, writer=writer)
                for name, value in self._answer(asked.script, asked.query).items():
                    await request.send_command(agi.set_variable(name, value))
        except (CallerGone, PeerProtocolError, TimeoutError, OSError, EOFError, asyncio.LimitOverrunError) as error:
            # The dialplan goes on without an answer, which is a refusal.
            _log.debug("gateway's question not answered", why=str(error)[:200])
        finally:
            writer.close()
