"""``pbxguard lab``: the lab on the command line."""

import asyncio
import io
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
import segno
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from pbxguard.cli.context import (
    FIRST_STEPS,
    App,
    err,
    out,
    pass_app,
    printable,
    reported,
    show_json,
    show_list,
    show_table,
)
from pbxguard.errors import BadInput, LabUnavailable
from pbxguard.lab import addresses, record, report, room, schema, show, topology
from pbxguard.lab import doctor as check_up
from pbxguard.lab.callers import Callers
from pbxguard.lab.evidence import Evidence
from pbxguard.lab.goip.cli import goip
from pbxguard.lab.progress import Board
from pbxguard.lab.remark import remark
from pbxguard.lab.room import CALLS
from pbxguard.lab.run import Run, Stage, run_name, run_scenarios
from pbxguard.lab.scenario import CallStep, Scenario, calls_box
from pbxguard.lab.scenariofile import load, require_reasons
from pbxguard.lab.topology import PHONES
from pbxguard.lab.vectors import scenarios as pack_vectors
from pbxguard.lab.world import World
from pbxguard.packs import load as load_pack
from pbxguard.resources import SCENARIOS

_evidence = click.option(
    "--evidence", type=click.Path(path_type=Path, file_okay=False), default=Path("evidence"), show_default=True,
    help="Folder for what the calls leave behind.",
)  # fmt: skip


_DEMO = "pbxguard-demo-"
#: Columns that the table of a run needs; a narrower terminal gets lines, so that no number is broken.
_TABLE_WIDTH = 120
#: What becomes of a call to a telephone of the lab, by its behaviour.
_DOES = {
    "answers": "answers", "declines": "declines (603)", "rings": "rings, is never answered", "busy": "is busy (486)",
    "absent": "is never registered",
}  # fmt: skip
_ENDING = (signal.SIGTERM, signal.SIGHUP)

_pbx = click.option("--pbx", type=click.Choice(["asterisk", "freeswitch"]), help="Which PBX is guarded.")


def _world(app: App, pbx: str | None = None) -> World:
    """World 0, the one of ``lab up``."""
    return World(app.settings, app.config_path, say=lambda line: err.print(line, markup=False), pbx=pbx)


@click.group(epilog=f"\b\nBegin with:\n{FIRST_STEPS}")
@click.pass_context
def lab(ctx: click.Context) -> None:
    """A real PBX with carriers, gateways and telephones, in Docker.

    All of it is on this machine, on networks without a way out.
    """
    # Who kills a command or closes its terminal must not be left with its lab.
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            ctx.call_on_close(partial(signal.signal, number, signal.signal(number, _end)))


lab.add_command(goip)


def _end(number: int, _frame: FrameType | None) -> None:
    """End the command as its own ``sys.exit`` would, so that what it started is taken down."""
    for other in _ENDING:
        # make and a closing terminal send more than one; they must not break off the taking down.
        signal.signal(other, lambda *_: None)
    sys.exit(128 + number)


@lab.command()
@click.option(
    "--listen", metavar="ADDRESS", help="Also publish SIP (UDP and TCP 5060) and RTP on this address of the host."
)
@_pbx
@pass_app
@reported
def up(app: App, listen: str | None, pbx: str | None) -> None:
    """Start the lab; quick and harmless when it is up already."""
    if listen is not None:
        listen = addresses.require_own(listen, "--listen")
    with _world(app, pbx) as world, world.busy(alone=False):
        world.up(listen)
    out.print("the lab is up; `pbxguard lab status` shows it, `pbxguard lab down` takes it down")


@lab.command()
@pass_app
@reported
def down(app: App) -> None:
    """Take the lab down: its containers, networks and processes."""
    with _world(app) as world, world.busy(alone=True):
        removed = world.down()
    out.print(f"the lab is down ({removed} things removed)" if removed else "the lab was not up")


@lab.command()
@click.option("--json", "as_json", is_flag=True)
@pass_app
@reported
def status(app: App, *, as_json: bool) -> None:
    """Who is there and registered. Exit code 1 when the lab is not up."""
    with _world(app) as world:
        rows, is_up = world.status(), world.is_up()
    columns = ("name", "role", "address", "state")
    if as_json:
        show_json([{name: getattr(row, name) for name in columns} for row in rows])
    else:
        show_table(columns, [[getattr(row, name) for name in columns] for row in rows])
    sys.exit(0 if is_up else 1)


@lab.command()
@pass_app
@reported
def doctor(app: App) -> None:
    """Find out what is wrong with the lab; ends with a test call.

    Looks at the Docker engine, every actor, the handler, and whether a call has audio in both directions.
    """
    fine = True
    for finding in check_up.examine(partial(_world, app)):
        mark = "[green]ok[/]  " if finding.ok else "[red]FAIL[/]"
        out.print(f"{mark} {escape(printable(finding.what))}")
        if not finding.ok:
            fine = False
            out.print(f"     {escape(printable(finding.remedy))}")
    sys.exit(0 if fine else 1)


@lab.command()
@click.option("--json", "as_json", is_flag=True)
@click.option("--qr/--no-qr", default=True, show_default=True, help="A QR code with the SIP address of each account.")
@pass_app
@reported
def softphones(app: App, *, as_json: bool, qr: bool) -> None:
    """The accounts to type into a telephone of your own."""
    with _world(app) as world:
        passwords, server = world.passwords.phones, world.server()
        is_up = world.is_up()
        registered = world.registered() if is_up else set()
        contacts = world.contacts() if is_up else {}
        published = server != str(world.net.pbx_access)
    accounts = [
        {
            "number": phone.number,
            "name": phone.name,
            "user": phone.number,
            "password": passwords[phone.number],
            "server": server,
            "transport": phone.transport,
            "transports": ["udp", "tcp"] if phone.is_free else [phone.transport],
            "province": phone.province,
            "operator": phone.operator,
            "language": phone.language,
            "in_use": not phone.is_free,
            "program": phone.program if phone.address else None,
            "behaviour": phone.behaviour,
            "registered": phone.number in registered,
            "registered_from": contacts.get(phone.number) if phone.number in registered else None,
        }
        for phone in PHONES
    ]
    if as_json:
        show_json(accounts)
        return
    free = [phone for phone in PHONES if phone.is_free]
    click.echo("Free, for a telephone of yours:")
    show_table(
        ("user", "password", "server", "province", "state"),
        [
            (p.number, passwords[p.number], server, p.province,
             f"registered from {contacts.get(p.number, '?')}" if p.number in registered else "not registered")
            for p in free
        ],
    )  # fmt: skip
    if qr:
        for phone in free:
            text = io.StringIO()
            address = f"sip:{phone.number}:{passwords[phone.number]}@{server};transport=udp"
            segno.make(address, error="l").terminal(out=text, compact=True, border=1)
            click.echo(f"{phone.number}:")
            click.echo(text.getvalue())
    click.echo(
        f"User (also for authentication), password and server as they stand, port {topology.SIP_PORT} over UDP or "
        "TCP,\ncodec PCMA or PCMU, no encryption."
    )
    if not is_up:
        click.echo("The lab is not up: pbxguard lab up")
    if not published:
        click.echo(f"{server} is for telephones on this host; for others: pbxguard lab up --listen ADDRESS")
    click.echo(f"To have it called: pbxguard lab call --from 13800138000 --to {free[0].name} --trunk natl")
    click.echo("\nTo dial from it (*43 is an echo of your voice):")
    show_table(
        ("number", "name", "what it does", "program"),
        [
            (p.number, p.name, _DOES[p.behaviour], f"{p.program}, {p.transport}" if p.address else "")
            for p in PHONES
            if not p.is_free
        ],
    )


@lab.command(epilog="Example: pbxguard lab call --from +85261234567 --to zhang --trunk intl")
@click.option("--from", "cli", required=True, metavar="CLI", help="Calling number; `anonymous` withholds it.")
@click.option("--to", "callee", required=True, metavar="CALLEE", help="Called number, or a telephone's name.")
@click.option("--trunk", required=True, type=click.Choice([c.name for c in topology.CALLERS if c.calls]))
@click.option("--json", "as_json", is_flag=True)
@_evidence
@pass_app
@reported
def call(app: App, cli: str, callee: str, trunk: str, evidence: Path, *, as_json: bool) -> None:
    """Place one call and show what the caller saw and heard."""
    if not cli.isprintable() or len(cli) > 100:
        raise BadInput("--from: at most 100 printable characters")
    number = topology.number_of(callee)
    if not re.fullmatch(r"\+?[0-9]{1,40}", number):
        names = ", ".join(each.name for each in (*PHONES, *topology.GROUPS))
        raise BadInput(f"--to: {printable(callee[:40])!r} is no number and none of {names}")
    with _world(app) as world, world.busy(alone=False):
        world.require_up()
        name = run_name()
        folder = evidence / name / "call"
        step = CallStep(cli=cli, callee=callee, trunk=trunk)
        begun = time.monotonic()
        with err.status("the call is under way ..."):
            result = asyncio.run(_one_call(world, step, folder))
        said = remark(world, result)
        one = Run(name, folder.parent, world.pbx, [result], seconds=time.monotonic() - begun)
        report.write(one, app.settings.pack)
    if as_json:
        show_json(result.as_json() | {"evidence": str(folder), "remark": said})
    else:
        _show_one(result, app.settings.pack, said, folder)
    sys.exit(1 if result.faults else 0)


def _show_one(call: Evidence, pack: str, said: str, folder: Path) -> None:
    """One call as a list, which can be read and copied where its table would be too wide."""
    _, ((_, cli, trunk, callee, heard, verdict, why),) = _rows([call], pack)
    show_list(
        [
            ("from", cli),
            ("trunk", trunk),
            ("to", callee),
            ("heard", heard),
            ("verdict", verdict),
            # Where the guard recorded nothing there is no reason of its own.
            ("why", said if said and not call.observed.recorded else why),
            ("but", said if call.observed.recorded else ""),
            *(("fault", fault) for fault in call.faults),
            ("evidence", str(folder)),
            ("page", str(folder.parent / "report.html")),
            ("more", f"pbxguard explain {call.call_id}" if call.observed.recorded else ""),
        ]
    )


async def _one_call(world: World, step: CallStep, folder: Path) -> Evidence:
    async with Callers.open(world.engine, world.passwords.ami) as callers:
        stage = Stage(world, world.state, callers)
        return await stage.call(step, folder, scenario="call", title="one call")


@lab.command()
@click.argument("names", nargs=-1, metavar="[SCENARIO]...")
@click.option("--pbx", type=click.Choice(["asterisk", "freeswitch", "both"]), default="asterisk", show_default=True)
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1, topology.MAX_WORLDS),
              help="Worlds side by side, each with a PBX, carriers, telephones and state of its own.")  # fmt: skip
@click.option("--calls", type=click.IntRange(1, 32),
              help=f"Calls at once in each world.  [default: {CALLS}, less where worlds outnumber CPUs]")  # fmt: skip
@click.option("--scenarios", type=click.Path(path_type=Path, exists=True, file_okay=False), default=SCENARIOS,
              help="Folder of scenario files.")  # fmt: skip
@click.option("--vectors", is_flag=True, help="The voice vectors of the country pack instead of scenario files.")
@_evidence
@pass_app
@reported
def run(
    app: App, names: tuple[str, ...], pbx: str, jobs: int, calls: int | None, scenarios: Path, evidence: Path,
    *, vectors: bool,
) -> None:  # fmt: skip
    """Place the calls of scenarios and judge what happened.

    Exit code 1 when a call differs from what is expected. The scenarios have a state of their own; your lists and
    registry stay as they are. A lab that is not up is started, and taken down afterwards; one of the other PBX
    has to be taken down first.
    """
    if vectors and names:
        raise click.UsageError("--vectors takes all of the pack's vectors; leave out the scenario names")
    if jobs > 1:
        room.require(jobs)
        if app.settings.store.url is not None:
            raise BadInput("--jobs: the worlds would share the database of [store] url; leave it out for the lab")
    chosen = pack_vectors(app.settings) if vectors else load(scenarios, names)
    require_reasons(chosen, load_pack(app.settings.pack))
    kinds = ("asterisk", "freeswitch") if pbx == "both" else (pbx,)
    for kind in kinds:
        # Not after minutes of calls on the other one.
        with _world(app, kind) as world:
            world.require_images()
    results = []
    for kind in kinds:
        with _world(app, kind) as world, world.busy(alone=True):
            was_up = world.is_up()
            if left := world.down_others():
                err.print(f"took down what an earlier run left behind ({left} things)")
            world.all_phones = calls_box(chosen)
            try:
                world.up()
                with _beside(app, kind, jobs, all_phones=world.all_phones) as others:
                    results.append(_run(world, chosen, evidence, calls or room.calls(jobs), others))
            finally:
                if not was_up:
                    world.down()
    if len(results) == 1:
        _finish(results[0], app)
    _side_by_side(results)
    for result in results:
        _summary(result)
    sys.exit(1 if any(result.failed for result in results) else 0)


@contextmanager
def _beside(app: App, pbx: str, jobs: int, *, all_phones: bool) -> Iterator[list[World]]:
    """The worlds beside the first; the run brings them up and takes them down."""
    with ExitStack() as stack:
        worlds = [
            stack.enter_context(World(app.settings, app.config_path, pbx=pbx, index=index))
            for index in range(1, jobs)
        ]
        for world in worlds:
            world.all_phones = all_phones
        yield worlds


@lab.command("schema")
@reported
def print_schema() -> None:
    """Print the JSON schema of scenario files, for an editor."""
    click.echo(schema.text(), nl=False)


@lab.command("record", epilog="Example: pbxguard lab record taiwan-landline --last")
@click.argument("name")
@click.option("--last", is_flag=True, help="The last call that the guard decided on, instead of the next.")
@click.option("--wait", "patience", default=120.0, show_default=True, type=click.FloatRange(1, 3600),
              help="Seconds to wait for the next call.")  # fmt: skip
@click.option("--scenarios", type=click.Path(path_type=Path, file_okay=False), default=SCENARIOS,
              help="Folder of scenario files, where NAME.toml goes.")  # fmt: skip
@click.option("--force", is_flag=True, help="Write over a scenario of that name.")
@_evidence
@pass_app
@reported
def record_call(
    app: App, name: str, patience: float, scenarios: Path, evidence: Path, *, last: bool, force: bool
) -> None:  # fmt: skip
    """Write a scenario file from a call that you place by hand.

    That is a call that comes in by a trunk, which `lab call` places, to a telephone of the lab or to your own. A call
    that you dial on a telephone is not screened, so there is nothing to record.

    What is given comes from your registry and lists, what is expected from what was seen and heard. Without --last
    it waits for the next call, until that is over.
    """
    path = record.target(scenarios, name, force=force)
    with _world(app) as world, world.busy(alone=False):
        if last:
            call = record.last_call(world, evidence)
        else:
            world.require_up()
            err.print(
                f"waiting for a call that comes in by a trunk, {patience:.0f} s at most; place it now in another "
                "terminal: pbxguard lab call",
                markup=False,
            )
            call = asyncio.run(record.next_call(world, patience))
        step = record.write(path, record.text(world, call, name, scenarios))
    where = "" if scenarios == SCENARIOS else f" --scenarios {scenarios}"
    out.print(f"wrote {path}: {printable(step.cli) or 'no CLI'} to {step.callee} on {step.trunk}", markup=False)
    out.print(f"run it: pbxguard lab run {name}{where}", markup=False)


@lab.command("show", epilog="Example: pbxguard lab show consent-1")
@click.argument("wanted", metavar="CALL")
@click.option("--json", "as_json", is_flag=True)
@_evidence
@reported
def show_call(wanted: str, evidence: Path, *, as_json: bool) -> None:
    """Show a call's evidence: its ladder, sound and decision.

    The SIP ladder, what was heard and when, the decision's steps, what was expected and observed.

    CALL is a Call-ID or its beginning, a scenario's name, or the folder of a call; the newest run that has it counts.
    """
    bundle = show.read(show.find(evidence, wanted))
    if as_json:
        show_json(bundle.result | {"decision": bundle.decision, "evidence": str(bundle.folder)})
        return
    result, decision = bundle.result, bundle.decision
    seen = result.get("observed") or {}
    mark = "[green]✓[/]" if result.get("passed") else "[red]✗[/]"
    out.print(f"{mark} {escape(printable(str(result.get('title'))))}: {seen.get('verdict')} ({seen.get('reason')})")
    out.print(f"Call-ID {printable(str(result.get('call_id')))}\n", markup=False)
    lines = [f"disturbed: {line}" for line in result.get("disturbed") or []]
    lines += [
        *(show.drawn(bundle, out.width) or "(no SIP messages)").splitlines(),
        "",
        *show.timeline(bundle, out.width),
        "",
    ]
    for line in lines:
        out.print(printable(line), markup=False)
    if decision:
        because = f"rule {decision.get('rule')}: {decision.get('detail')} ({decision.get('elapsed_us')} µs in all)"
        out.print(printable(because), markup=False)
        show_table(("rule", "outcome", "saw", "µs"), show.steps(decision))
    rows = show.compared(result)
    if rows:
        show_table(("", "expected", "observed", ""), [(*row[:3], "✓" if row[3] else "✗") for row in rows])
    for fault in result.get("faults") or []:
        out.print(f"[red]✗[/] {escape(printable(fault))}")
    out.print(f"evidence: {bundle.folder}", markup=False)


@lab.command()
@_evidence
@pass_app
@reported
def demo(app: App, evidence: Path) -> None:
    """The whole story in a minute, from lab up to lab down.

    Places the calls of the main scenarios and prints who heard what and why.
    """
    out.print("pbxguard demo: a real Asterisk, real SIP calls, and what each caller hears.\n")
    chosen = [scenario for scenario in load(SCENARIOS) if scenario.demo]
    # The demonstration never touches a lab or a state that somebody works with.
    with tempfile.TemporaryDirectory(prefix=_DEMO) as state:
        settings = app.settings.model_copy(update={"state": Path(state)})
        say = partial(out.print, markup=False)
        with (
            World(settings, app.config_path, say=lambda line: say(f"  {line}")) as world,
            world.busy(alone=True),
        ):
            if (left := _left_by_demo(world)) and _take_down(app, left):
                out.print("  took down the lab of an earlier demo that was killed")
            world.all_phones = calls_box(chosen)
            try:
                world.up()
                result = _run(world, chosen, evidence, room.calls(1))
            finally:
                world.down()
    out.print("  the lab is down again\n")
    _finish(result, app)


def _left_by_demo(world: World) -> Path | None:
    """State folder of another demo that left a lab, up or ended, whether that demo still runs or not."""
    other = Path(world.engine.other_owner() or next(iter(world.engine.ended()), "/"))
    temporary = Path(tempfile.gettempdir()).resolve()
    return other if other.parent == temporary and re.fullmatch(f"{_DEMO}[a-z0-9_]{{8}}", other.name) else None


def _take_down(app: App, state: Path) -> bool:
    """Take the lab of a demo down when that demo does not run any more; whether it was."""
    with World(app.settings.model_copy(update={"state": state}), app.config_path) as world:
        try:
            with world.busy(alone=True):
                world.down()
        except LabUnavailable:
            return False
    shutil.rmtree(state, ignore_errors=True)
    return True


def _run(world: World, chosen: Sequence[Scenario], evidence: Path, calls: int, beside: Sequence[World] = ()) -> Run:
    total = sum(len(scenario.step) for scenario in chosen if scenario.pbx in (None, world.pbx))
    with Board(err, world.pbx, total, 1 + len(beside)) as board:
        result = asyncio.run(run_scenarios(world, chosen, evidence, calls=calls, beside=beside, watch=board))
    report.write(result, world.settings.pack)
    return result


def _rows(calls: Sequence[Evidence], pack: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    columns = ("", "from", "trunk", "to", "what the caller heard", "verdict", "why")
    return columns, [
        (
            "✓" if call.passed else "✗",
            call.call.cli or "(none)",
            call.call.trunk,
            report.callee_words(call),
            report.heard_words(call),
            call.observed.verdict,
            report.why_words(call, pack) + (f" ({call.observed.reason})" if call.observed.reason else ""),
        )
        for call in calls
    ]


def _side_by_side(results: Sequence[Run]) -> None:
    """The results of the PBXs beside each other; a difference is declared by the adapter or a failure."""
    rows = []
    found: dict[tuple[str, int], dict[str, Evidence]] = {}
    for result in results:
        count: Counter[str] = Counter()
        for call in result.calls:
            count[call.scenario] += 1
            found.setdefault((call.scenario, count[call.scenario]), {})[result.pbx] = call
    for calls in found.values():
        first = next(iter(calls.values()))
        cells = [_cell(calls.get(result.pbx)) for result in results]
        rows.append((first.title, first.call.cli or "(none)", first.call.trunk, *cells))
    if not out.is_terminal:
        out.width = 190
    show_table(("call", "from", "trunk", *(result.pbx for result in results)), rows)


def _cell(call: Evidence | None) -> str:
    if call is None:
        return "(not for this PBX)"
    mark = "✓" if call.passed else "✗"
    why = f" ({call.observed.reason})" if call.observed.reason else ""
    return f"{mark} {call.observed.verdict}{why}, {report.heard_words(call)}"


def _finish(result: Run, app: App) -> NoReturn:
    _show(result, app)
    sys.exit(1 if result.failed else 0)


def _show(result: Run, app: App) -> None:
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = 150  # a log or a pager; rich takes 80 columns there
    columns, rows = _rows(result.calls, app.settings.pack)
    table = Table(header_style="bold", show_lines=True)
    for column in columns:
        table.add_column(column, overflow="fold", min_width=13 if column == "from" else None)
    colours = {"allow": "green", "block": "red", "failed": "yellow"}
    for row in rows:
        cells = [escape(printable(cell)) for cell in row]
        cells[5] = f"[{colours.get(row[5], 'white')}]{cells[5]}[/]"
        if out.width < _TABLE_WIDTH:
            mark, cli, trunk, callee, sound, verdict, why = cells
            out.print(f"{mark} {verdict}: {cli} on {trunk} to {callee}", soft_wrap=False)
            for line in (sound, why):
                out.print(Padding(line, (0, 0, 0, 4), expand=False), soft_wrap=False)
        else:
            table.add_row(*cells)
    if table.row_count:
        out.print(table)
    _summary(result)


def _summary(result: Run) -> None:
    """Every fault, and one line about the run."""
    for call in result.calls:
        if call.passed:
            continue
        took = "" if call.observed.total_ms is None else f", {call.observed.total_ms / 1000:.1f} s"
        out.print(
            f"[red]✗[/] {result.pbx}: {escape(printable(call.scenario))}: {escape(printable(call.title))}{took}"
        )
        for fault in show.fault_lines(call.faults):
            out.print(f"    {printable(fault)}", markup=False)
        if call.folder is not None and call.call_id:
            out.print(f"    pbxguard lab show {shlex.quote(_short(call.folder))}", markup=False)
    for skipped in result.skipped:
        out.print(f"{result.pbx}: skipped {skipped['scenario']}: {skipped['why']}", markup=False)
    stuttered = sum(call.stuttered for call in result.calls)
    if stuttered and result.stolen >= room.STUTTERS_AT:
        out.print(
            f"{result.pbx}: the host of this machine kept {result.stolen:.0%} of the processors' time that was "
            f"wanted, and sound stutters then: {stuttered} failed in nothing else",
            markup=False,
        )
    passed = f"{result.passed} {'call' if result.passed == 1 else 'calls'} as expected"
    out.print(
        f"{result.pbx}: {passed}, {result.failed} not, in {result.seconds:.0f} s.\n"
        f"Evidence (wire, audio, decisions): {_short(result.folder)}/report.html",
        markup=False,
    )


def _short(path: Path) -> str:
    """As it can be typed here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
