"""``serve``: the handlers that the PBXs ask."""

import asyncio
import re
import signal
import threading
import time

import click
import structlog
import uvloop

from pbxguard import log as logging
from pbxguard.cli.context import App, pass_app, reported
from pbxguard.errors import PbxguardError
from pbxguard.guard import Guard
from pbxguard.pbx import asterisk

log = structlog.get_logger()

_A_DAY = 24 * 60 * 60


@click.command()
@click.option("--listen", metavar="HOST:PORT", help="FastAGI address instead of the one in the settings.")
@pass_app
@reported
def serve(app: App, listen: str | None) -> None:
    """Answer the PBX until SIGTERM or SIGINT; calls under way are finished first."""
    settings = app.settings
    if listen is not None:
        host, _, port = listen.rpartition(":")
        if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise click.BadParameter(f"{listen!r} is not HOST:PORT, such as 127.0.0.1:4573", param_hint="--listen")
        changed = settings.asterisk.model_copy(update={"host": host.strip("[]"), "port": int(port)})
        settings = settings.model_copy(update={"asterisk": changed})
    for name in settings.trunks:
        app.trunk(name)
    logging.configure(level=settings.log.level, mask_numbers=settings.log.mask_numbers, for_good=True)
    guard = Guard(app.store, app.pack, settings)
    try:
        # uvloop: half of the handler's CPU for a call is the event loop's own.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(guard))
    finally:
        guard.close()


async def _serve(guard: Guard) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    threading.Thread(target=_forget_daily, args=(guard,), name="retention", daemon=True).start()
    await asterisk.serve(guard, guard.settings, stop)


def _forget_daily(guard: Guard) -> None:
    """Remove old decisions now and once a day; in a thread that a hanging database does not let outlive us."""
    while True:
        try:
            if rows := guard.forget_old():
                log.info("old decisions removed", rows=rows)
        except PbxguardError as error:
            log.warning("old decisions not removed", why=str(error))
        time.sleep(_A_DAY)
