"""What a gateway at work shows: its lines as a table or JSON, and what happened on them, a line each.

Knows a device and its pages by what they tell; changes nothing, and knows neither options nor how it is all started.
Numbers, names and texts are an attacker's: what is shown of them is bounded, and nothing that a terminal acts on.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pbxguard.cli.context import printable
from pbxguard.lab.goip.box import Direction, Event, HungUp, Line, SimChanged, StateChanged
from pbxguard.lab.goip.control import Device
from pbxguard.lab.goip.mobile import Arrived, Happened, Report, Sent
from pbxguard.lab.goip.plan import GatewayPlan
from pbxguard.lab.goip.web import SEND_PAGE, Web

__all__ = ["COLUMNS", "DEFAULT_PASSWORD", "Entry", "Screen", "send_url"]

#: Columns of the table, each with what it says.
COLUMNS = {
    "line": "its id at the SMS server",
    "udp": "its port for the SMS server",
    "number": "of the SIM in it",
    "network": "mobile operator, or none",
    "state": "of its call, with the other number",
    "sip": "its SIP account is registered",
    "server": "the SMS server answers its keepalives",
    "sent": "notices to the SMS server",
    "lost": "notices that it never acknowledged",
}
#: Of `lab goip`; any other one is the operator's own and is shown nowhere.
DEFAULT_PASSWORD = "goip"  # noqa: S105 (it stands in the help)

#: Calls and texts that are kept, those under the table, characters of a text, a number or a name.
_KEPT, _SHOWN = 200, 8
_BODY, _NAME = 60, 40


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that happened.

    Attributes:
        at: When, aware.
        line: On which line; 0 for none.
        kind: ``state``, ``line``, ``call``, ``text``, ``report`` or ``page``.
        facts: The same for a program, of calls, texts and pages; the others are seen in the lines.
    """

    at: datetime
    line: int
    kind: str
    said: str
    facts: dict[str, str | float] = field(default_factory=dict)

    def __str__(self) -> str:
        where = f"line {self.line}  " if self.line else ""
        return f"{self.at.astimezone():%H:%M:%S}  {where}{printable(self.said)}"


class Screen:
    """Watches a device and its pages.

    Args:
        device: The box and its protocol.
        web: Its pages.
        plan: Its settings.
        actor: The lab's gateway, "" without SIP.
        texts_to: The number that texts are forwarded to as MESSAGE, "" for none.

    Attributes:
        last: Calls, texts and refused pages, the newest at the end.
        watcher: Told of every entry.
    """

    def __init__(self, device: Device, web: Web, plan: GatewayPlan, actor: str = "", texts_to: str = "") -> None:
        self.device, self.web, self.plan, self.actor = device, web, plan, actor
        self.last: deque[Entry] = deque(maxlen=_KEPT)
        self.watcher: Callable[[Entry], None] = lambda _entry: None
        self._texts_to = texts_to
        self._before = [self._links(line) for line in device.box.lines]
        device.box.watch(self._on_event)
        device.watch(self._on_text)
        web.refused = self._on_refused

    # -- what happens --------------------------------------------------------------------------------------

    def look(self) -> None:
        """Find what changes without a word: registration, SMS server, mobile network."""
        for line, before in zip(self.device.box.lines, self._before, strict=True):
            now = self._links(line)
            for said in (new for old, new in zip(before, now, strict=True) if new != old):
                self._add("line", line.number, said)
            self._before[line.number - 1] = now

    def _links(self, line: Line) -> tuple[str, str, str]:
        return (
            "its SIP account is registered" if line.voip_up else "its SIP account is not registered",
            "the SMS server answers"
            if self.device.endpoints[line.number - 1].logged_in
            else "the SMS server is silent",
            f"in the network {line.sim.operator}" if line.gsm_up else "in no network",
        )

    def _on_event(self, event: Event) -> None:
        match event:
            case StateChanged():
                self._add("state", event.line, str(event))
            case SimChanged():
                self._add("line", event.line, f"another SIM: {event.sim.msisdn}")
            case HungUp():
                out = event.direction is Direction.OUT
                party, seconds = event.party[:_NAME], round(event.talked.total_seconds(), 1)
                self._add(
                    "call",
                    event.line,
                    f"call {'to' if out else 'from'} {party or 'a withheld number'}: {event.text}, "
                    f"{f'talked {seconds:.0f} s' if event.talked else 'not answered'}",
                    direction="out" if out else "in", party=party, cause=event.text, talked_s=seconds,
                )  # fmt: skip

    def _on_text(self, happened: Happened) -> None:
        match happened:
            case Sent(text, error):
                what = f"text by {text.way} from {text.sender[:_NAME]} to {text.to[:_NAME]}"
                end = f"refused by the network, +CMS ERROR {error}" if error else _short(text.body)
                self._add(
                    "text", text.line, f"{what}: {end}",
                    way=text.way, sender=text.sender[:_NAME], to=text.to[:_NAME], body=text.body, error=error,
                )  # fmt: skip
            case Report(text, status):
                what = "delivered" if status == 0 else f"not delivered, TP-Status {status}"
                self._add("report", text.line, f"text to {text.to[:_NAME]}: {what}")
            case Arrived(msisdn, sender, body):
                line = next((each.number for each in self.device.box.lines if each.sim.msisdn == msisdn), 0)
                on = f", on as MESSAGE to {self._texts_to}" if self._texts_to else ""
                self._add(
                    "text", line, f"text by GSM from {sender[:_NAME]} to {msisdn}{on}: {_short(body)}",
                    way="GSM", sender=sender[:_NAME], to=msisdn, body=body, error=0,
                )  # fmt: skip

    def _on_refused(self, page: str, user: str) -> None:
        why = f"wrong user or password, as user {user[:_NAME]!r}" if user else "no user and password"
        self._add("page", 0, f"{page} refused: {why}", page=page)

    def _add(self, kind: str, line: int, said: str, **facts: str | float) -> None:
        entry = Entry(self.device.box.clock(), line, kind, said, facts)
        if facts:
            self.last.append(entry)
        self.watcher(entry)

    # -- what is shown -------------------------------------------------------------------------------------

    def heading(self) -> list[str]:
        """Who it is and how to have it send a text."""
        device, base = self.device, "http://{}:{}".format(*self.web.address())
        shown = self.web.password if self.web.password == DEFAULT_PASSWORD else "PASSWORD"
        to = device.box.lines[:2][-1].sim.msisdn
        return [
            f"{self.actor or 'GOIP without SIP'} in {device.box.mode} mode; Ctrl-C ends it",
            f"SMS server {device.server[0]}:{device.server[1]}; pages {base}/ (lists them and their parameters)",
            f"a text: {send_url(base, self.web.user, shown, to)}",
        ]

    def table(self) -> Table:
        """The lines."""
        device = self.device
        # 80 columns hold it.
        table = Table(header_style="bold", box=SIMPLE_HEAD, collapse_padding=True)
        for column in COLUMNS:
            table.add_column(column, overflow="fold")
        for line, endpoint in zip(device.box.lines, device.endpoints, strict=True):
            cells: Sequence[object] = (
                endpoint.identity.id,
                device.address(line.number)[1],
                line.shown_number,
                line.sim.operator if line.gsm_up else "none",
                line,
                "yes" if line.voip_up else "no",
                "answers" if endpoint.logged_in else "silent",
                endpoint.counters.sent,
                endpoint.counters.lost,
            )
            table.add_row(*(Text(printable(str(cell))) for cell in cells))
        return table

    def live(self) -> RenderableType:
        """The lines, and below them the last calls and texts."""
        last = list(self.last)[-_SHOWN:]
        rows = [Text(str(entry), no_wrap=True, overflow="ellipsis") for entry in last]
        return Group(self.table(), *(rows or [Text("no calls and texts yet", style="dim")]))

    def status(self) -> dict[str, Any]:
        """All of it for a program."""
        device = self.device
        host, port = self.web.address()
        return {
            "server": "{}:{}".format(*device.server),
            "http": f"{host}:{port}",
            "actor": self.actor or None,
            "profile": self.plan.profile,
            "mode": device.box.mode.value,
            "texts_sent": len(device.network.sent),
            "lines": [
                {
                    "line": line.number,
                    "id": endpoint.identity.id,
                    "udp": "{}:{}".format(*device.address(line.number)),
                    "number": line.shown_number,
                    "imsi": line.sim.imsi,
                    "iccid": line.sim.iccid,
                    "imei": line.shown_imei,
                    "operator": line.sim.operator,
                    "state": str(line),
                    "gsm": line.gsm_up,
                    "voip": line.voip_up,
                    "sms_server": endpoint.logged_in,
                    "notices": endpoint.counters.sent,
                    "lost": endpoint.counters.lost,
                }
                for line, endpoint in zip(device.box.lines, device.endpoints, strict=True)
            ],
            "last": [
                {"at": entry.at.isoformat(timespec="seconds"), "line": entry.line, "kind": entry.kind} | entry.facts
                for entry in list(self.last)[-_SHOWN:]
            ],
        }


def send_url(base: str, user: str, password: str, to: str) -> str:
    """The address at which line 1 sends a text to that number."""
    fields = {"u": user, "p": password, "l": "1", "n": to, "m": "hello"}
    return f"{base}{SEND_PAGE}?{urlencode(fields, quote_via=quote)}"


def _short(body: str) -> str:
    return f"“{body}”" if len(body) <= _BODY else f"“{body[:_BODY]}…” ({len(body)} characters)"
