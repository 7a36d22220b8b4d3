"""``serve``: the handlers that the PBXs ask."""

import asyncio
import signal

import click

from pbxguard import log
from pbxguard.cli.context import App, pass_app, reported
from pbxguard.errors import BadConfig
from pbxguard.guard import Guard
from pbxguard.pbx import asterisk


@click.command()
@click.option("--listen", metavar="HOST:PORT", help="FastAGI address instead of the one in the settings.")
@pass_app
@reported
def serve(app: App, listen: str | None) -> None:
    """Answer the PBX until SIGTERM or SIGINT; calls under way are finished first."""
    settings = app.settings
    if listen is not None:
        host, _, port = listen.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise click.BadParameter(f"{listen!r} is not HOST:PORT, such as 127.0.0.1:4573", param_hint="--listen")
        changed = settings.asterisk.model_copy(update={"host": host, "port": int(port)})
        settings = settings.model_copy(update={"asterisk": changed})
    for name, trunk in settings.trunks.items():
        if trunk.kind not in app.pack.trunks:
            kinds = ", ".join(sorted(app.pack.trunks))
            raise BadConfig(f"trunks.{name}: kind {trunk.kind!r} is not in pack {app.pack.id}; it has {kinds}")
    log.configure(level=settings.log.level, mask_numbers=settings.log.mask_numbers)
    guard = Guard(app.store, app.pack, settings)
    try:
        asyncio.run(_serve(guard))
    finally:
        guard.close()


async def _serve(guard: Guard) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await asterisk.serve(guard, guard.settings, stop)
