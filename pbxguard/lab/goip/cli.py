"""``pbxguard lab goip``: a gateway without radio, for SMS servers, for real calls of the lab, and for looking at."""

import asyncio
import contextlib
import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import click
from pydantic import ValidationError
from rich.live import Live

from pbxguard.cli.context import App, err, out, pass_app, printable, reported
from pbxguard.errors import BadInput, LabUnavailable, PbxguardError
from pbxguard.lab.callers import Callers
from pbxguard.lab.goip.address import lab_address
from pbxguard.lab.goip.box import Mode
from pbxguard.lab.goip.control import Device, steady_clock
from pbxguard.lab.goip.mobile import MobileNetwork
from pbxguard.lab.goip.plan import MAX_LINES, GatewayPlan
from pbxguard.lab.goip.profiles import CallerId
from pbxguard.lab.goip.protocol import Identity
from pbxguard.lab.goip.screen import COLUMNS, DEFAULT_PASSWORD, Entry, Screen, send_url
from pbxguard.lab.goip.sims import MAX_SIMS, RotationKind
from pbxguard.lab.goip.sms import Texts
from pbxguard.lab.goip.web import WEB_USER, Web
from pbxguard.lab.topology import CALLERS, PHONES, number_of
from pbxguard.lab.world import World

GATEWAYS = tuple(caller.name for caller in CALLERS if caller.gateway is not None)
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_REFRESH_S = 1.0
_LEGEND = "\n".join(f"  {name:8} {says}" for name, says in COLUMNS.items())
_EXAMPLE = send_url("http://127.0.0.1:8086", WEB_USER, DEFAULT_PASSWORD, "13957102002")
_ZHANG = next(phone.address for phone in PHONES if phone.name == "zhang")
#: What a newcomer has to know and no option says; the examples work as they stand with the defaults and the lab up.
_EPILOG = f"""Example: pbxguard lab goip --lines 4 --forward zhang --sms-forward zhang --server 127.0.0.1:44444

\b
In another terminal, beside it:
  pbxguard lab call --from 13012345678 --to 13957102001 --trunk natl
  curl '{_EXAMPLE}'

The text of that curl arrives at the SIM in line 2 and goes on to zhang as MESSAGE. The telephones of the lab have no
screen: forward to your own one (`pbxguard lab softphones`), or watch the wire (beside FreeSWITCH in pbxguard-watch).
A text of a scenario has its ladder in `pbxguard lab show`.

\b
  docker exec -it pbxguard-pbx tcpdump -l -A -n -i any host {_ZHANG} and udp port 5060

\b
Columns of the table:
{_LEGEND}

Below it are the last calls and texts; where the output is no terminal, each change of a line, each call and each text
is a line of its own.

\b
The pages, http://127.0.0.1:8086/ lists them all:
  send.html        a line sends a text: u=USER p=PASSWORD l=LINE n=NUMBER m=TEXT
  send_status.xml  what became of each line's last text: u= p=
  status.xml       state of each line: u= p=, and type=list for the short form

Another user or password: send.html says "ERROR,user or password error" with status 200, as a device does; the two
others say 401.
"""


@click.command(epilog=_EPILOG)
@click.option("--actor", type=click.Choice(GATEWAYS),
              help=f"Gateway of the lab that is up.  [default: {GATEWAYS[0]} when it is up]")  # fmt: skip
@click.option("--no-sip", is_flag=True, help="A box of its own, without the lab and without SIP.")
@click.option("--lines", type=click.IntRange(1, MAX_LINES), help="[default: the lab's own setting, else 4]")
@click.option("--forward", metavar="PHONE",
              help="Number or telephone that GSM calls go to; without it the caller hears a dial tone.")  # fmt: skip
@click.option("--sms-forward", metavar="PHONE", help="Number or telephone that texts go to, as MESSAGE.")
@click.option("--server", default="127.0.0.1:44444", show_default=True, metavar="HOST:PORT", help="The SMS server.")
@click.option("--listen", default="127.0.0.1:9991", show_default=True, metavar="HOST:PORT",
              help="UDP of line 1; the others have the next ports. Port 0: any.")  # fmt: skip
@click.option("--http", default="127.0.0.1:8086", show_default=True, metavar="HOST:PORT",
              help="The pages, see below; their user is admin.")  # fmt: skip
@click.option("--id", "name", default="goip", show_default=True, help="Line 2 says NAME-2 to the SMS server.")
@click.option("--password", default=DEFAULT_PASSWORD, show_default=True, help="Of every line, and of the pages.")
@click.option("--profile", metavar="NAME|FILE", help="Wire image of its SIP.  [default: dbl]")
@click.option("--mode", type=click.Choice([m.value for m in Mode]), help="Configuration mode.  [default: single]")
@click.option("--caller-id", type=click.Choice([c.value for c in CallerId]), help="What SIP gets of a GSM caller.")
@click.option("--cid-prefix", metavar="RULES", help="Rewriting of the GSM caller's number, as 9:-9+852.")
@click.option("--sims", type=click.IntRange(1, MAX_SIMS), help="SIMs in the box; as many as lines unless said.")
@click.option("--rotation", type=click.Choice([r.value for r in RotationKind]), help="When a line changes its SIM.")
@click.option("--every", type=click.IntRange(1), help="Calls or minutes of --rotation.  [default: 1]")
@click.option("--json", "as_json", is_flag=True, help="The status as a line of JSON, now and at each change.")
@pass_app
@reported
def goip(
    app: App, /, actor: str | None, forward: str | None, sms_forward: str | None, server: str, listen: str, http: str,
    name: str, password: str, *, no_sip: bool, as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Run a GOIP gateway without radio, until Ctrl-C.

    It has SIP lines, the UDP SMS/control protocol and the pages.

    With the lab up it takes over one of the lab's gateways: its lines register and carry calls, with these settings
    while it runs and the lab's own afterwards. Ring a SIM by its number from the table. Without the lab there is no
    SIP.

    It stays on this machine or in the lab's networks, and its SIMs and numbers are made up. A text to the number of
    one of its SIMs arrives there.
    """
    changes = {key: value for key, value in settings.items() if value is not None}
    ports = Ports(server, listen, http, name, password)
    targets = {key: _target(f"--{key}", who) for key, who in (("forward", forward), ("sms-forward", sms_forward))}
    if no_sip and (actor or forward or sms_forward):
        raise BadInput("--no-sip is a box without SIP: leave out --actor, --forward and --sms-forward")
    world = None if no_sip else _lab(app, actor)
    if world is None:
        if not no_sip:
            err.print("no lab is up here, so there is no SIP; `pbxguard lab up` starts one", markup=False)
        plan = planned(GatewayPlan(), changes)
        device = Device(
            plan.box(steady_clock()), MobileNetwork(), ports.identities(plan.lines), server=server, listen=listen
        )
        web = Web(device, http, WEB_USER, password)
        asyncio.run(_alone(Screen(device, web, plan), as_json=as_json))
        return
    with world, world.busy(alone=False):
        actor = actor or GATEWAYS[0]
        caller = world.net.caller(actor)
        plan = planned(caller.gateway or GatewayPlan(), changes | {"forward": bool(forward)})
        for address, what in ((server, "--server"), (listen, "--listen"), (http, "--http")):
            lab_address(address, what, any_port=True)  # before anything is restarted
        if world.gateway_in_use(actor):
            raise LabUnavailable(f"{actor} is at work for another `pbxguard lab` command; end that first")
        try:
            world.gateway(actor, plan)
            asyncio.run(_attached(world, actor, plan, ports, targets, as_json=as_json))
        finally:
            world.gateway(actor)


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the SMS server is and the gateway listens, and what it says it is."""

    server: str
    listen: str
    http: str
    name: str
    password: str = field(repr=False)

    def identities(self, lines: int) -> list[Identity]:
        return [Identity(f"{self.name}-{line}", self.password) for line in range(1, lines + 1)]


def planned(plan: GatewayPlan, changes: Mapping[str, Any]) -> GatewayPlan:
    """The plan with these changes.

    Raises:
        BadInput: They do not go together; which is named.
    """
    values = {key: getattr(plan, key) for key in plan.model_fields_set} | dict(changes)
    if values.get("mode") == Mode.GROUP and not values.get("groups"):
        lines = values.get("lines", plan.lines)
        values["groups"] = ["abcd"[line % 4] for line in range(lines)]  # a SIM box with four groups
    if (lines := values.get("lines")) and (sims := values.get("sims")) and sims < lines:
        values["sims"] = lines
    try:
        return GatewayPlan.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = "".join(f"--{str(part).replace('_', '-')}: " for part in first["loc"][:1])
        raise BadInput(f"{where}{str(first['msg']).removeprefix('Value error, ')}") from error


def _target(option: str, who: str | None) -> str:
    number = number_of(who or "")
    if who and not (number.isascii() and number.isdigit() and len(number) <= 20):
        names = ", ".join(phone.name for phone in PHONES)
        raise BadInput(f"{option}: {printable(who)[:40]!r} is neither a number nor a telephone of the lab ({names})")
    return number


def _lab(app: App, actor: str | None) -> World | None:
    """The lab that is up; None where there is none, and none was asked for by name."""
    try:
        world = World(app.settings, app.config_path, say=lambda line: err.print(line, markup=False))
        try:
            world.require_up()
        except PbxguardError:
            world.engine.close()
            raise
    except PbxguardError:
        if actor is not None:
            raise
        return None
    return world


async def _alone(screen: Screen, *, as_json: bool) -> None:
    async with screen.device, screen.web:
        await _show(screen, as_json=as_json)


async def _attached(
    world: World, actor: str, plan: GatewayPlan, ports: Ports, targets: Mapping[str, str], *, as_json: bool
) -> None:
    async with Callers.open(world.engine, world.passwords.ami, world.net, world.gateways) as callers:
        gateway = await callers.gateway(actor)
        gateway.forward_all(targets["forward"])
        async with Texts.open(
            gateway,
            server=ports.server, listen=ports.listen, http=ports.http, password=ports.password, ids=ports.name,
        ) as texts:  # fmt: skip
            with contextlib.ExitStack() as stack:
                for line in gateway.box.lines:
                    stack.enter_context(texts.forwarding(line.number, targets["sms-forward"]))
                screen = Screen(texts.device, texts.web, plan, actor, targets["sms-forward"])
                await _show(screen, as_json=as_json, broken=lambda: gateway.broken)


async def _show(screen: Screen, *, as_json: bool, broken: Callable[[], str] = lambda: "") -> None:
    """Show it until a signal: as a table that changes on a terminal, elsewhere a line for each thing that happens.

    Raises:
        LabUnavailable: Its Asterisk went away meanwhile.
    """
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _ENDING:
        loop.add_signal_handler(number, ended.set)
    if as_json:
        await _as_json(screen, ended, broken)
    else:
        for line in screen.heading():
            out.print(line, markup=False)
        if out.is_terminal:
            with Live(screen.live(), console=out) as live:
                while not (await _waited(ended) or broken()):
                    live.update(screen.live())
        else:
            await _as_log(screen, ended, broken)
    if why := broken():
        raise LabUnavailable(f"{screen.actor}: {why}; `pbxguard lab status` shows the lab")


async def _as_log(screen: Screen, ended: asyncio.Event, broken: Callable[[], str]) -> None:
    out.width = 150
    out.print(screen.table())
    # Printed from here and not where it happens: whoever closes the pipe must not break a call.
    happened: list[Entry] = []
    screen.watcher = happened.append
    over = False
    while not over:
        over = await _waited(ended) or bool(broken())
        screen.look()
        for entry in happened:
            out.print(str(entry), markup=False)
        happened.clear()
    out.print(screen.table())


async def _as_json(screen: Screen, ended: asyncio.Event, broken: Callable[[], str]) -> None:
    before = ""
    while True:
        now = json.dumps(screen.status())
        if now != before:
            click.echo(now)
            before = now
        if await _waited(ended) or broken():
            return


async def _waited(ended: asyncio.Event) -> bool:
    """Wait for the end, or until it is time to look again."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(ended.wait(), _REFRESH_S)
    return ended.is_set()
