"""What every command shares: settings, store and pack on demand, and how errors and tables are shown."""

import functools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from zoneinfo import ZoneInfo

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pbxguard import config, packs
from pbxguard.config import Settings
from pbxguard.errors import BadConfig, PbxguardError, UnknownName
from pbxguard.screening.call import Trunk
from pbxguard.screening.numbering import home_key
from pbxguard.screening.pack import Pack
from pbxguard.store import Store

P = ParamSpec("P")
R = TypeVar("R")

#: Answers that a script reads go to standard output, everything else to standard error.
out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, highlight=False)


class App:
    """Opened once a command, closed by click at its end."""

    def __init__(self, config_path: Path | None) -> None:
        self.config_path = config_path

    @cached_property
    def settings(self) -> Settings:
        return config.load(self.config_path)

    @cached_property
    def pack(self) -> Pack:
        return packs.load(self.settings.pack)

    @cached_property
    def store(self) -> Store:
        if self.settings.store.url is None:
            make_folder(self.settings.state_dir)
        return Store.open(self.settings.store_url)

    def close(self) -> None:
        if "store" in self.__dict__:
            self.store.close()

    def trunk(self, name: str) -> Trunk:
        """The trunk of that name.

        Raises:
            UnknownName: There is none; the message lists those there are.
        """
        trunk = self.settings.trunk(name)
        if trunk is None:
            known = ", ".join(sorted(self.settings.trunks))
            raise UnknownName(f"no trunk {name!r} in the settings; there are {known}")
        if trunk.kind not in self.pack.trunks:
            kinds = ", ".join(sorted(self.pack.trunks))
            raise UnknownName(f"trunk {name!r} is of the kind {trunk.kind!r}; pack {self.pack.id} has {kinds}")
        return trunk

    def key(self, number: str) -> str:
        """Home form of a number that the operator typed."""
        return home_key(number, self.pack)

    def moment(self, text: str) -> datetime:
        """An ISO 8601 time as UTC; one without an offset is in the site's zone."""
        try:
            at = datetime.fromisoformat(text)
        except ValueError as error:
            raise click.BadParameter(
                f"{text!r} is no ISO 8601 time, such as 2026-06-01 or 2026-06-01T12:00+08:00"
            ) from error
        zone = ZoneInfo(self.pack.timezone)
        return (at if at.tzinfo else at.replace(tzinfo=zone)).astimezone(UTC)

    def local(self, at: datetime | None) -> str:
        """A stored time in the site's zone, for people."""
        return "" if at is None else at.astimezone(ZoneInfo(self.pack.timezone)).strftime("%Y-%m-%d %H:%M:%S")


def make_folder(path: Path) -> None:
    """Have the folder.

    Raises:
        BadConfig: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadConfig(
            f"cannot make the state folder {path}: {error.strerror}; set PBXGUARD_STATE to one that can be written"
        ) from error


pass_app = click.make_pass_decorator(App)


def reported(command: Callable[P, R]) -> Callable[P, R]:
    """Turn our errors into one line on standard error and the documented exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except PbxguardError as error:
            err.print(f"[red]pbxguard:[/red] {escape(str(error))}", soft_wrap=True)
            sys.exit(error.exit_code)
        except BrokenPipeError:
            # The reader of our output has gone (`| head`): not an error of ours.
            sys.stderr.close()
            sys.exit(0)

    return run


def show_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Print a table; the cells are plain text, whatever a caller wrote into them."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(printable(str(cell))) for cell in row))
    out.print(table)


def printable(text: str) -> str:
    """*text* without anything that a terminal would act on."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
