"""``serve``: the handlers that the PBXs ask."""

import asyncio
import gc
import os
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import NoReturn

import click
import structlog
import uvloop

from pbxguard import log as logging
from pbxguard.cli import supervisor
from pbxguard.cli.context import App, make_folder, pass_app, reported, show_table
from pbxguard.config import FreeswitchSettings, Settings
from pbxguard.errors import BadConfig, PbxguardError
from pbxguard.guard import Guard
from pbxguard.pbx import asterisk, health

log = structlog.get_logger()

_A_DAY = 24 * 60 * 60


@click.command()
@click.option("--listen", metavar="HOST:PORT", help="FastAGI address instead of the one in the settings.")
@click.option("--esl", metavar="HOST:PORT", help="One FreeSWITCH instead of those in the settings; the password is "
              "PBXGUARD_ESL_PASSWORD.")  # fmt: skip
@click.option("--status", is_flag=True, help="Say how the handlers of this state folder are; exit code 1: not ready.")
@click.option("--only", type=click.Choice(["asterisk", "freeswitch"]), help="Serve this kind of PBX alone.")
@pass_app
@reported
def serve(app: App, listen: str | None, esl: str | None, only: str | None, *, status: bool) -> None:
    """Answer the PBXs until SIGTERM or SIGINT.

    Calls under way are finished first. Asterisk is always served; FreeSWITCH when the settings name one. Each
    kind has a process of its own, and one that dies is started again, with growing pauses and without touching
    the other. One that refuses the settings at its start ends all with exit code 2.
    """
    settings = app.settings
    if status:
        _show_status(settings)
    if listen is not None:
        host, port = _address(listen, "--listen")
        changed = settings.asterisk.model_copy(update={"host": host, "port": port})
        settings = settings.model_copy(update={"asterisk": changed})
    if esl is not None:
        host, port = _address(esl, "--esl")
        password = os.environ.get("PBXGUARD_ESL_PASSWORD", FreeswitchSettings().password)
        one = FreeswitchSettings(host=host, port=port, password=password)
        settings = settings.model_copy(update={"freeswitch": {"esl": one}})
    if only == "freeswitch" and not settings.freeswitch:
        raise BadConfig("no FreeSWITCH to serve: add [freeswitch.NAME] to the settings, or give --esl")
    for name in settings.trunks:
        app.trunk(name)
    logging.configure(level=settings.log.level, mask_numbers=settings.log.mask_numbers, for_good=True)
    with suppress(BadConfig):  # a folder that cannot be made costs --status, or the database says so itself
        make_folder(settings.state_dir)
    if only is None and settings.freeswitch:
        sys.exit(supervisor.run(sys.argv[1:], ("asterisk", "freeswitch"), settings.state_dir))
    supervisor.end_with_supervisor()
    with health.told(settings.state_dir, only or "asterisk") as teller:
        guard = Guard(app.store, app.pack, settings)
        try:
            _warm_up(guard, teller)
            threading.Thread(target=_forget_daily, args=(guard,), name="retention", daemon=True).start()
            if only == "freeswitch":
                from pbxguard.pbx import freeswitch  # noqa: PLC0415 (gevent belongs into its own process)

                freeswitch.serve(guard, settings, teller)
            else:
                # uvloop: half of the handler's CPU for a call is the event loop's own.
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(_serve(guard, teller))
        finally:
            guard.close()


def _warm_up(guard: Guard, teller: health.Teller) -> None:
    """Before anybody is told that we are there."""
    teller.say("starting", ready=False)
    guard.warm_up()
    settle()


def settle() -> None:
    """Set all that was loaded aside from garbage collection: it stays until the end.

    A full collection of it takes 30 to 50 ms, in which no call is decided; while a big import has the processors too,
    that became more than the deadline.
    """
    gc.collect()
    gc.freeze()


def _show_status(settings: Settings) -> NoReturn:
    wanted = {"asterisk"} | ({"freeswitch"} if settings.freeswitch else set())
    found = {one.kind: one for one in health.heard(settings.state_dir)}
    rows = []
    for kind in sorted(wanted | set(found)):
        one = found.get(kind)
        state = "not running" if one is None or not one.alive else "ready" if one.ready else "not ready"
        # What a process said that it was when it was killed is no longer so; why one ended is.
        detail = one.detail if one and (one.alive or not one.ready) else ""
        rows.append((kind, state, one.pid if one else "-", detail))
    show_table(("handler", "state", "pid", "detail"), rows)
    sys.exit(0 if all(row[1] == "ready" for row in rows) else 1)


def _address(text: str, option: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise click.BadParameter(f"{text!r} is not HOST:PORT, such as 127.0.0.1:4573", param_hint=option)
    return host.strip("[]"), int(port)


async def _serve(guard: Guard, teller: health.Teller) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await asterisk.serve(guard, guard.settings, stop, teller)


def _forget_daily(guard: Guard) -> None:
    """Remove old decisions now and once a day; in a thread that a hanging database does not let outlive us."""
    while True:
        try:
            if rows := guard.forget_old():
                log.info("old decisions removed", rows=rows)
        except PbxguardError as error:
            log.warning("old decisions not removed", why=str(error))
        time.sleep(_A_DAY)
