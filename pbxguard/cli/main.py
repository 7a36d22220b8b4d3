"""The top of the command line: global options, and the families of commands."""

import sys
from pathlib import Path

import click

from pbxguard import __version__, log
from pbxguard.cli import decide, explain, lists, privacy, registry, serve, subscribers
from pbxguard.cli.context import FIRST_STEPS, App, complain


class _Lazy(click.Group):
    """Imports the lab's commands only when asked: docker, numpy and the rest are an extra."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "lab"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "lab":
            return super().get_command(ctx, cmd_name)
        try:
            from pbxguard.lab.cli import lab  # noqa: PLC0415
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("pbxguard"):
                raise
            return _without_lab(error.name)
        return lab


def _without_lab(missing: str) -> click.Command:
    """Stands for the lab where its extra is not installed: the help still lists it."""

    @click.command(
        "lab",
        context_settings={"ignore_unknown_options": True, "help_option_names": []},
        short_help="A lab with real calls; needs pbxguard[lab].",
    )
    @click.argument("words", nargs=-1, type=click.UNPROCESSED)
    def lab(words: tuple[str, ...]) -> None:  # noqa: ARG001 - whatever is asked of it
        complain(f"the lab needs {missing}; install pbxguard[lab]")
        sys.exit(3)

    return lab


@click.group(
    cls=_Lazy,
    epilog=f"\b\nBegin with the lab, which needs Docker:\n{FIRST_STEPS}",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Settings file; default PBXGUARD_CONFIG, then ./pbxguard.toml, then the lab's own settings.",
)
@click.version_option(__version__)
@click.pass_context
def pbxguard(ctx: click.Context, config_path: Path | None) -> None:
    """Screen calls and texts on Asterisk and FreeSWITCH.

    Exit codes: 0 done; 1 the answer is no (a scenario failed, a call is unknown); 2 wrong usage or settings;
    3 something needed is not there.
    """
    ctx.obj = App(config_path)
    ctx.call_on_close(ctx.obj.close)


pbxguard.add_command(decide.check)
pbxguard.add_command(explain.explain)
pbxguard.add_command(subscribers.subscribers)
pbxguard.add_command(registry.registry)
pbxguard.add_command(lists.lists)
pbxguard.add_command(privacy.privacy)
pbxguard.add_command(serve.serve)


def main() -> None:
    """Entry point of the console script."""
    # Standard output belongs to the answers, also when something is logged.
    log.configure(level="warning")
    pbxguard()
