"""The Asterisk adapter: a FastAGI server on panoramisk that cannot be frozen, starved or put out of step.

It reads a request, asks the guard, and sends one command. It decides nothing. panoramisk 1.4 is the transport;
its request handler and reply reader are replaced, because the stock ones spin for ever on a connection that is
closed without a request, have no limits, and take an out-of-band ``HANGUP`` for a reply.
"""

import asyncio
import os

import structlog
from panoramisk import fast_agi

from pbxguard.config import AsteriskSettings, Settings
from pbxguard.errors import CallerGone, PeerProtocolError, ServiceUnavailable
from pbxguard.guard import Guard
from pbxguard.pbx import agi, health
from pbxguard.screening.treatment import ASTERISK

log = structlog.get_logger()

#: The script name of the dialplan's AGI URL.
SCRIPT = "screen"

_HANGUP = b"HANGUP"


class Request(fast_agi.Request):  # type: ignore[misc]
    """One FastAGI session; ``send_command`` keeps commands and replies in step."""

    hung_up = False

    async def send_command(self, command: str) -> int:
        """Send one command and return the status of its reply (200, 510, 511, 520).

        Args:
            command: Made by ``agi.set_variable``, which quotes; a line end in it is refused here too.

        Raises:
            CallerGone: Asterisk closed the connection.
            PeerProtocolError: What came back is not a reply.
        """
        if "\n" in command or "\r" in command:
            raise ValueError("a line end in an AGI command")
        try:
            self.writer.write(command.encode() + b"\n")
            await self.writer.drain()
        except (ConnectionError, TimeoutError) as error:
            raise CallerGone("Asterisk closed the FastAGI connection") from error
        status = await self._read_status()
        while status == 100:
            status = await self._read_status()
        return status

    async def _read_status(self) -> int:
        for _ in range(agi.MAX_REPLY_LINES):
            line = await self._read_line()
            # res_agi.c sends HANGUP out of band, in front of the reply or in place of it.
            if line.rstrip() == _HANGUP:
                self.hung_up = True
                continue
            status = agi.reply_status(line)
            if status is None:
                continue  # the rest of a header block that the caller cut short, see pbx/agi.py
            if agi.is_usage_start(line):
                await self._skip_usage()
            return status
        raise PeerProtocolError("no AGI reply within the line limit")

    async def _skip_usage(self) -> None:
        for _ in range(agi.MAX_REPLY_LINES):
            if (await self._read_line()).startswith(b"520 "):
                return
        raise PeerProtocolError("a 520 reply without an end")

    async def _read_line(self) -> bytes:
        try:
            return bytes(await self.reader.readuntil(b"\n"))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise CallerGone("Asterisk closed the FastAGI connection") from error
        except asyncio.LimitOverrunError as error:
            raise PeerProtocolError("an AGI line over the size limit") from error


class Application(fast_agi.Application):  # type: ignore[misc]
    """panoramisk's application with one route and a handler with limits.

    Build it inside a running event loop.

    Args:
        guard: Decides.
        settings: For trunks and limits.
    """

    def __init__(self, guard: Guard, settings: Settings) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self.guard = guard
        self.settings = settings
        self.limits: AsteriskSettings = settings.asterisk
        self._trunks = {name: settings.trunk(name) for name in settings.trunks}
        self.open_connections = 0
        self.refused = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.add_route(SCRIPT, self.screen)

    async def handler(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection; the dialplan sees no verdict when anything goes wrong here."""
        self.open_connections += 1
        self.idle.clear()
        try:
            if self.open_connections > self.limits.max_connections:
                self._refuse()
                return
            async with asyncio.timeout(self.limits.request_timeout_ms / 1000):
                await self._serve(reader, writer)
        except CallerGone:
            log.debug("caller gone")
        except PeerProtocolError as error:
            log.warning("FastAGI request refused", why=str(error))
        except TimeoutError:
            log.warning("FastAGI peer too slow", limit_ms=self.limits.request_timeout_ms)
        except Exception:
            log.exception("FastAGI request failed")
        finally:
            self.open_connections -= 1
            if self.open_connections == 0:
                self.idle.set()
            writer.close()

    def _refuse(self) -> None:
        # Not a line for each: whoever floods the port would fill the log, or block us on a slow reader of it.
        self.refused += 1
        if self.refused in (1, 10, 100) or self.refused % 1000 == 0:
            log.warning(
                "FastAGI connection refused: too many", limit=self.limits.max_connections, refused=self.refused
            )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            block = await reader.readuntil(b"\n\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise CallerGone("closed before the request was complete") from error
        except asyncio.LimitOverrunError as error:
            raise PeerProtocolError("FastAGI header block over the size limit") from error
        asked = agi.parse_request(block)
        route = self._route.get(asked.script)
        if route is None:
            raise PeerProtocolError("no such FastAGI script; the dialplan must ask for 'screen'")
        request = Request(app=self, headers={}, reader=reader, writer=writer)
        await route(request, asked)

    async def screen(self, request: Request, asked: agi.AgiRequest) -> None:
        """Answer one call: one decision, one variable."""
        if asked.query.get("v") != agi.VERSION:
            raise PeerProtocolError(
                f"the dialplan speaks another version than {agi.VERSION}; install the dialplan of this release"
            )
        name = asked.query.get("trunk", "")
        trunk = self._trunks.get(name)
        if trunk is None:
            # No verdict: the dialplan's own policy applies, and the log has the remedy.
            raise PeerProtocolError(f"unknown trunk {name[:32]!r}; add [trunks.{name[:32]!r}] to pbxguard.toml")
        call = agi.call_from_agi(asked, trunk, self.guard.clock())
        decided = await self.guard.decide_soon(call, ASTERISK)
        number = agi.number_to_show(asked, call, decided.verdict)
        packed = agi.pack_verdict(decided.verdict, decided.treatment, number)
        status = await request.send_command(agi.set_variable(agi.VERDICT_VARIABLE, packed))
        if status != 200:
            log.warning("Asterisk refused the verdict", call_id=call.call_id, agi_status=status)


async def listen(application: Application) -> asyncio.Server:
    """Listen for FastAGI.

    Raises:
        ServiceUnavailable: The address cannot be bound; the message says which and why.
    """
    where = application.limits
    try:
        return await asyncio.start_server(
            application.handler, where.host, where.port, limit=agi.MAX_HEADER_BYTES, backlog=1024
        )
    except OSError as error:
        # asyncio words it anew and names the address once more; a resolver's errors have numbers of their own.
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ServiceUnavailable(
            f"cannot listen for FastAGI on {where.host}:{where.port}: {why or error}; "
            "stop the program that has this port or set [asterisk] port"
        ) from error


async def serve(guard: Guard, settings: Settings, stop: asyncio.Event, teller: health.Teller) -> None:
    """Serve until *stop* is set; then take no new calls and let those under way finish."""
    application = Application(guard, settings)
    server = await listen(application)
    log.info("serving FastAGI", host=settings.asterisk.host, port=settings.asterisk.port)
    teller.say(f"FastAGI on {settings.asterisk.host}:{settings.asterisk.port}", ready=True)
    await stop.wait()
    server.close()
    # Python 3.11 does not wait for the connections in wait_closed; each of them has a time limit of its own.
    await application.idle.wait()
    await server.wait_closed()
