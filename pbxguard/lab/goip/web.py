"""The HTTP pages of a gateway that SMS servers use: send.html, send_status.xml, status.xml.

Knows the pages' forms, which are those that public clients read (lab-and-goip.md 2.3); HTTP itself is h11's. Whoever
reaches the port writes the requests: they are bounded in size, number and time, and what they carry is escaped.
"""

import asyncio
import base64
import binascii
import contextlib
import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl, urlsplit
from xml.sax.saxutils import escape

import h11
import structlog

from pbxguard.errors import ServiceUnavailable
from pbxguard.lab.goip.address import lab_address
from pbxguard.lab.goip.box import Line, State
from pbxguard.lab.goip.control import Device
from pbxguard.lab.goip.dialling import MAX_TEXT_NUMBER, is_dialable
from pbxguard.lab.goip.mobile import Happened, Sent, Text
from pbxguard.lab.goip.protocol import MAX_TEXT

__all__ = ["SEND_PAGE", "WEB_USER", "Page", "Web"]

_log = structlog.get_logger(__name__)

#: User of the pages.
WEB_USER = "admin"
#: Folders of the pages, one a language; both are the same here.
FOLDERS = ("/default/en_US", "/default/zh_CN")
#: The page that sends a text.
SEND_PAGE = f"{FOLDERS[0]}/send.html"
#: What ``/`` and a bare folder say. A device has its whole configuration there.
_CONTENTS = f"""\
Pages for SMS servers. Each is in {FOLDERS[0]}/, and takes u=USER and p=PASSWORD, or HTTP Basic.

send.html?u=&p=&l=LINE&n=NUMBER&m=TEXT
    A line (1 unless said) sends a text: "Sending,L1 Send SMS to:NUMBER; ID:XXXXXXXX", or "ERROR,why".
    n: digits, * and #, a plus in front (%2B). m: UTF-8, at most 3000 bytes. All percent-encoded.
    A line that still sends its last text says "ERROR,L1 busy".
send_status.xml?u=&p=
    The last text of each line by this page: id, status (STARTED, DONE), error ("" is none).
status.xml?u=&p=[&type=list]
    Each line's state; type=list is the short form.
"""

MAX_CONNECTIONS = 64
MAX_REQUEST = 16 * 1024  # a text of 3000 bytes is 9000 when every one is percent-encoded
MAX_FIELDS = 32
IDLE_S = 15.0
_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Page:
    """A response."""

    status: int
    body: str
    kind: str = "text/html; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class _Sending:
    """What the line's last text from the page has come to."""

    id: str = ""
    text: Text | None = None
    state: str = ""
    error: str = ""


@dataclass(slots=True)
class Web:
    """The pages of a device; an asynchronous context manager that serves them.

    Attributes:
        listen: ``HOST:PORT``; port 0 lets the system choose.
        user: What ``u=`` must be, and *password* what ``p=`` must be. HTTP Basic is taken too, as the pages do.
        refused: Told of each page that was asked for with another user or password, and of that user.

    Raises:
        BadInput: *listen* is outside the lab.
    """

    device: Device
    listen: str
    user: str
    password: str = field(repr=False)
    refused: Callable[[str, str], None] = lambda _page, _user: None
    _sendings: dict[int, _Sending] = field(default_factory=dict)
    _last_id: int = 0
    _server: asyncio.Server | None = None
    _open: set["asyncio.Task[None]"] = field(default_factory=set)

    def __post_init__(self) -> None:
        lab_address(self.listen, "--http", any_port=True)
        self._sendings = {line.number: _Sending() for line in self.device.box.lines}
        self.device.watch(self._happened)

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            ServiceUnavailable: The address is taken or not of this machine.
        """
        host, port = lab_address(self.listen, "--http", any_port=True)
        try:
            self._server = await asyncio.start_server(self._accept, host, port, limit=MAX_REQUEST)
        except OSError as error:
            raise ServiceUnavailable(
                f"the pages cannot be had on {host}:{port} ({error.strerror}); choose another --http"
            ) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def address(self) -> tuple[str, int]:
        """Where the pages are."""
        if self._server is None:
            return lab_address(self.listen, "--http", any_port=True)
        name: tuple[str, int] = self._server.sockets[0].getsockname()
        return name[0], name[1]

    # -- pages ---------------------------------------------------------------------------------------------

    def page(self, method: str, target: str, basic: tuple[str, str] | None = None) -> Page:
        """What a request is answered with.

        Args:
            method: Its method.
            target: Its path and query.
            basic: User and password of HTTP Basic, where it has them.
        """
        if method != "GET":
            return Page(405, "only GET", headers=(("allow", "GET"),))
        parts = urlsplit(target)
        try:
            query = dict(parse_qsl(parts.query, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="replace"))
        except ValueError:
            return Page(400, "too many fields")
        folder, _, name = parts.path.rpartition("/")
        if parts.path in ("", "/") or f"{folder}/{name}".rstrip("/") in FOLDERS:
            return Page(200, _CONTENTS, "text/plain; charset=utf-8")
        make = {"send.html": self._send, "send_status.xml": self._send_status, "status.xml": self._status}.get(name)
        if make is None or folder not in FOLDERS:
            return Page(404, "no such page; / lists them\n")
        if not self._may(query.get("u", ""), query.get("p", "")) and not (basic and self._may(*basic)):
            self.refused(name, query.get("u", "") or (basic or ("", ""))[0])
            if name == "send.html":
                return Page(200, "ERROR,user or password error\n")  # as devices do: the status is 200
            return Page(401, "user or password error\n", headers=(("www-authenticate", 'Basic realm="GoIP"'),))
        return make(query)

    def _may(self, user: str, password: str) -> bool:
        right_user = hmac.compare_digest(user.encode("utf-8", "replace"), self.user.encode())
        return hmac.compare_digest(password.encode("utf-8", "replace"), self.password.encode()) and right_user

    def _send(self, query: Mapping[str, str]) -> Page:
        number, to, body = query.get("l", "1"), query.get("n", ""), query.get("m", "")
        lines = {str(line.number): line for line in self.device.box.lines}
        line = lines.get(number)
        if line is None:
            return Page(200, "ERROR,no such line\n")
        if not is_dialable(to, MAX_TEXT_NUMBER):
            return Page(200, "ERROR,invalid phone number\n")
        if not body or len(body.encode("utf-8", "replace")) > MAX_TEXT:
            return Page(200, "ERROR,no text, or one longer than 3000 bytes\n")
        if not line.gsm_up:
            return Page(200, f"ERROR,L{number} GSM logout\n")
        sending = self._sendings[line.number]
        if sending.state == "STARTED" or self.device.network.busy(line.number):
            return Page(200, f"ERROR,L{number} busy\n")
        # Devices take the time of day; two texts in one second still differ.
        self._last_id = max(self._last_id + 1, int(self.device.now()))
        self._sendings[line.number] = sending = _Sending(f"{self._last_id:08x}", state="STARTED")
        sending.text = self.device.send(line.number, to, body, way="send.html")
        return Page(200, f"Sending,L{number} Send SMS to:{to}; ID:{sending.id}\n")

    def _happened(self, what: Happened) -> None:
        if isinstance(what, Sent) and (sending := self._sendings[what.text.line]).text == what.text:
            sending.state, sending.error = "DONE", str(what.error) if what.error else ""

    def _send_status(self, _query: Mapping[str, str]) -> Page:
        rows: list[tuple[str, str]] = []
        for number, sending in self._sendings.items():
            rows += [
                (f"id{number}", sending.id),
                (f"status{number}", sending.state),
                (f"error{number}", sending.error),
            ]
        return _xml("send-sms-status", rows)

    def _status(self, query: Mapping[str, str]) -> Page:
        rows: list[tuple[str, str]] = []
        for line in self.device.box.lines:
            rows += _line_rows(line, brief=query.get("type") == "list")
        return _xml("status", rows)

    # -- HTTP ----------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (asyncio runs this in a task)
        if len(self._open) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._open.add(task)
        try:
            await _Connection(reader, writer, self._respond).serve()
        except (OSError, TimeoutError) as error:
            _log.debug("goip_http_gone", error=str(error)[:200])
        finally:
            self._open.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _respond(self, request: h11.Request) -> Page:
        basic = next((_basic(value) for name, value in request.headers if name == b"authorization"), None)
        return self.page(request.method.decode("ascii"), request.target.decode("ascii", "replace"), basic)


def _line_rows(line: Line, *, brief: bool) -> list[tuple[str, str]]:
    def yes(value: object) -> str:
        return "Y" if value else "N"

    rows = [
        ("module_status_gsm", yes(line.enabled)),
        ("gsm_sim", yes(line.enabled)),
        ("gsm_status", yes(line.gsm_up)),
        ("status_line", yes(line.voip_up)),
        ("line_state", line.state),
        ("gsm_signal", str(line.sim.signal)),
        ("gsm_cur_oper", line.sim.operator),
    ]
    if not brief:
        rows += [
            ("gsm_number", line.shown_number),
            ("gsm_imei", line.shown_imei),
            ("gsm_imsi", line.sim.imsi),
            ("gsm_iccid", line.sim.iccid),
            ("lac", f"LAC:{line.sim.cell.lac},CELL ID:{line.shown_cell}"),
            ("callc", f"{int(line.state is State.CONNECTED)}/{line.calls}"),
        ]
    return [(f"l{line.number}_{name}", value) for name, value in rows]


def _xml(root: str, rows: list[tuple[str, str]]) -> Page:
    # One element a line: clients read it with regular expressions.
    inside = "\n".join(f"<{name}>{escape(value)}</{name}>" for name, value in rows)
    body = f'<?xml version="1.0" encoding="utf-8"?>\n<{root}>\n{inside}\n</{root}>\n'
    return Page(200, body, "text/xml; charset=utf-8")


def _basic(value: bytes) -> tuple[str, str] | None:
    scheme, _, coded = value.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        user, _, password = base64.b64decode(coded, validate=True).decode("utf-8", "replace").partition(":")
    except binascii.Error:
        return None
    return user, password


@dataclass(slots=True)
class _Connection:
    """One client; requests one after the other until it goes, is silent, or says what is no HTTP."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    respond: Callable[[h11.Request], Awaitable[Page]]
    http: h11.Connection = field(
        default_factory=lambda: h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST)
    )

    async def serve(self) -> None:
        while True:
            # The time is for a whole request: who sends a byte at a time does not hold the connection.
            async with asyncio.timeout(IDLE_S):
                try:
                    request = await self._request()
                except h11.RemoteProtocolError as error:
                    if self.http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                        await self._answer(Page(error.error_status_hint, "bad request"), close=True)
                    return
                if request is None:
                    return
                await self._answer(await self.respond(request), close=False)
            if self.http.our_state is not h11.DONE or self.http.their_state is not h11.DONE:
                return
            self.http.start_next_cycle()

    async def _request(self) -> h11.Request | None:
        request, size = None, 0
        while True:
            event = self.http.next_event()
            match event:
                case h11.NEED_DATA:
                    self.http.receive_data(await self.reader.read(_CHUNK))
                case h11.Request():
                    request = event
                case h11.Data():
                    size += len(event.data)
                    if size > MAX_REQUEST:
                        raise h11.RemoteProtocolError("the body is too long", error_status_hint=413)
                case h11.EndOfMessage():
                    return request
                case _:
                    return None

    async def _answer(self, page: Page, *, close: bool) -> None:
        body = page.body.encode("utf-8", "replace")
        headers = [
            ("content-type", page.kind),
            ("content-length", str(len(body))),
            ("cache-control", "no-store"),
            *page.headers,
            *((("connection", "close"),) if close else ()),
        ]
        parts = (h11.Response(status_code=page.status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
        for part in parts:
            self.writer.write(self.http.send(part) or b"")
        await self.writer.drain()
