"""``pbxguard lab goip``: a gateway without radio on this machine, for SMS servers and for looking at."""

import asyncio
import contextlib
import json
import signal
from collections.abc import Sequence
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pbxguard.cli.context import out, printable, reported
from pbxguard.lab.goip import profiles
from pbxguard.lab.goip.box import MAX_LINES, Box, LinePlan, Mode
from pbxguard.lab.goip.control import Device, steady_clock
from pbxguard.lab.goip.mobile import MobileNetwork
from pbxguard.lab.goip.protocol import Identity
from pbxguard.lab.goip.sims import MAX_SIMS, Rotation, RotationKind, SimTable
from pbxguard.lab.goip.web import Web

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_REFRESH_S = 1.0
_COLUMNS = ("line", "udp", "number", "network", "state", "voip", "server", "told", "lost")


@click.command(epilog="Example: pbxguard lab goip --lines 4 --server 127.0.0.1:44444")
@click.option("--lines", default=4, show_default=True, type=click.IntRange(1, MAX_LINES))
@click.option("--server", default="127.0.0.1:44444", show_default=True, metavar="HOST:PORT", help="The SMS server.")
@click.option("--listen", default="127.0.0.1:9991", show_default=True, metavar="HOST:PORT",
              help="UDP of line 1; the others have the next ports. Port 0: any.")  # fmt: skip
@click.option("--http", default="127.0.0.1:8086", show_default=True, metavar="HOST:PORT",
              help="send.html, send_status.xml and status.xml; their user is admin.")  # fmt: skip
@click.option("--id", "name", default="goip", show_default=True, help="Line 2 says NAME-2.")
@click.option("--password", default="goip", show_default=True, help="Of every line, and of the pages.")
@click.option("--profile", default="dbl", show_default=True, metavar="NAME|FILE", help="Wire image of its SIP.")
@click.option("--mode", default=Mode.SINGLE.value, show_default=True, type=click.Choice([m.value for m in Mode]))
@click.option("--sims", type=click.IntRange(1, MAX_SIMS), help="SIMs in the box; as many as lines unless said.")
@click.option("--rotation", default="never", show_default=True, type=click.Choice([r.value for r in RotationKind]))
@click.option("--every", default=1, show_default=True, type=click.IntRange(1), help="Calls or minutes of --rotation.")
@click.option("--json", "as_json", is_flag=True, help="The status as a line of JSON, now and at each change.")
@reported
def goip(
    lines: int,
    server: str,
    listen: str,
    http: str,
    name: str,
    password: str,
    profile: str,
    mode: str,
    sims: int | None,
    rotation: str,
    every: int,
    *,
    as_json: bool,
) -> None:
    """A GOIP gateway without radio: its UDP SMS/control protocol and its pages, until Ctrl-C.

    It stays on this machine or in the lab's networks, and its SIMs and numbers are made up. A text to the number of
    one of its SIMs arrives there. SIP is not part of it.
    """
    image = profiles.load(profile)
    # By line a routing prefix is mandatory: here every line takes every number.
    plans = [LinePlan(prefixes=tuple("0123456789") if mode == Mode.LINE else ())] * lines
    box = Box(
        plans,
        SimTable.fictional(max(sims or lines, lines)),
        clock=steady_clock(),
        mode=Mode(mode),
        rotation=Rotation(RotationKind(rotation), every),
        busy_status=image.busy_status.value,
    )
    identities = [Identity(f"{name}-{line.number}", password) for line in box.lines]
    device = Device(box, MobileNetwork(), identities, server=server, listen=listen)
    web = Web(device, http, "admin", password)
    asyncio.run(_run(device, web, profile, as_json=as_json))


async def _run(device: Device, web: Web, profile: str, *, as_json: bool) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _ENDING:
        loop.add_signal_handler(number, ended.set)
    async with device, web:
        if as_json:
            await _as_json(device, web, profile, ended)
            return
        if not out.is_terminal:
            out.width = 150
        with contextlib.ExitStack() as stack:
            live = stack.enter_context(Live(_table(device, web), console=out)) if out.is_terminal else None
            if live is None:
                out.print(_table(device, web))
            while not await _waited(ended):
                if live is not None:
                    live.update(_table(device, web))
        if live is None:
            out.print(_table(device, web))


async def _as_json(device: Device, web: Web, profile: str, ended: asyncio.Event) -> None:
    before = ""
    while True:
        now = json.dumps(_status(device, web, profile))
        if now != before:
            click.echo(now)
            before = now
        if await _waited(ended):
            return


async def _waited(ended: asyncio.Event) -> bool:
    """Wait for the end, or until it is time to look again."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(ended.wait(), _REFRESH_S)
    return ended.is_set()


def _status(device: Device, web: Web, profile: str) -> dict[str, Any]:
    host, port = web.address()
    return {
        "server": "{}:{}".format(*device.server),
        "http": f"{host}:{port}",
        "profile": profile,
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
    }


def _table(device: Device, web: Web) -> RenderableType:
    host, port = web.address()
    # 80 columns hold it.
    table = Table(
        title=f"GOIP in {device.box.mode} mode; Ctrl-C ends it\n"
        f"SMS server {device.server[0]}:{device.server[1]}, pages http://{host}:{port}/default/en_US/",
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        collapse_padding=True,
    )
    for column in _COLUMNS:
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
