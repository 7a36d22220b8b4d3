"""What every command shares: settings, store and pack on demand, and how errors and tables are shown."""

import contextlib
import errno
import functools
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from zoneinfo import ZoneInfo

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.markup import escape
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from pbxguard import config, packs
from pbxguard.config import Settings
from pbxguard.errors import BadConfig, BadNumber, PbxguardError, Unconfirmed, UnknownName
from pbxguard.screening.call import Trunk
from pbxguard.screening.lists import normalise_pattern
from pbxguard.screening.numbering import home_key
from pbxguard.screening.pack import Pack
from pbxguard.screening.rules import near
from pbxguard.store import Store

P = ParamSpec("P")
R = TypeVar("R")

#: Answers that a script reads go to standard output, everything else to standard error.
out = Console(soft_wrap=True, highlight=False, emoji=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


#: For the end of a help text: what somebody who is new here does, in order.
FIRST_STEPS = """\
  pbxguard lab up                 start it
  pbxguard lab softphones         the accounts for a telephone of your own
  pbxguard lab call --from +85261234567 --to zhang --trunk intl
  pbxguard lab show call          that call's ladder, sound and decision
  pbxguard lab down               take it down"""


class App:
    """Opened once a command, closed by click at its end."""

    def __init__(self, config_path: Path | None) -> None:
        self.config_path = config_path
        self._trunks: dict[str, Trunk] = {}

    @cached_property
    def settings(self) -> Settings:
        return config.load(self.config_path)

    @cached_property
    def pack(self) -> Pack:
        settings = self.settings
        try:
            return packs.load(settings.pack, settings.screening)
        except Unconfirmed:
            # What is wrong is told before what is only not said yet; a site without trunks has those of the lab.
            if "trunks" in settings.model_fields_set:
                whole = packs.load(settings.pack)
                for name in settings.trunks:
                    self._checked(name, whole)
            raise
        except BadConfig as error:
            file = config.file_of(self.config_path)
            raise BadConfig(str(error) if file is None else f"{file}: {error}") from error

    @cached_property
    def store(self) -> Store:
        if self.settings.store.url is None:
            make_folder(self.settings.state_dir)
        return Store.open(self.settings.store_url)

    def close(self) -> None:
        if "store" in self.__dict__:
            self.store.close()

    def trunk(self, name: str) -> Trunk:
        """The trunk of that name, checked against the pack.

        Raises:
            UnknownName: There is none; the message lists those there are.
            BadConfig: Its kind or its numbers are none of the pack.
        """
        if name not in self._trunks:
            self._trunks[name] = self._checked(name, self.pack)
        return self._trunks[name]

    def _checked(self, name: str, pack: Pack) -> Trunk:
        trunk = self.settings.trunk(name)
        if trunk is None:
            known = ", ".join(sorted(self.settings.trunks)) or "none"
            raise UnknownName(f"no trunk {name[:40]!r} in the settings; there are {known}")
        if trunk.kind not in pack.trunks:
            where = config.place(self.config_path, "trunks", name, "kind")
            raise BadConfig(
                f"{where}: {trunk.kind!r} is no kind of trunk in pack {pack.id}, "
                f"which has {', '.join(sorted(pack.trunks))}{near(trunk.kind, pack.trunks)}"
            )
        for pattern in trunk.allocated:
            where = config.place(self.config_path, "trunks", name, "allocated")
            # An extension is digits of the site's own, which no numbering plan knows.
            key = str if pack.trunks[trunk.kind].cli == "extension" else partial(home_key, pack=pack)
            try:
                normal = normalise_pattern(pattern, key, home="+" + pack.cc)
            except BadNumber as error:
                raise BadConfig(f"{where}: {error}") from error
            if normal != pattern:
                raise BadConfig(f"{where}: write {pattern!r} as dialled at home: {normal!r}")
        return trunk

    def key(self, number: str) -> str:
        """Home form of a number that the operator typed."""
        return home_key(number, self.pack)

    @property
    def home(self) -> str:
        """The country's own code, as foreign numbers are written: ``+86``."""
        return "+" + self.pack.cc

    def pattern(self, text: str, tags: Collection[str] = ()) -> str:
        """The stored form of a list pattern that the operator typed; *tags* are those that it may name."""
        return normalise_pattern(text, self.key, home=self.home, tags=tags)

    def moment(self, text: str) -> datetime:
        """An ISO 8601 time as UTC; one without an offset is in the site's zone."""
        zone = ZoneInfo(self.pack.timezone)
        try:
            at = datetime.fromisoformat(text)
            at = (at if at.tzinfo else at.replace(tzinfo=zone)).astimezone(UTC)
            at.astimezone(zone)
        except (ValueError, OverflowError) as error:
            # The very first and last hours of the calendar lie outside it in the other zone.
            raise click.BadParameter(
                f"{text[:40]!r} is no ISO 8601 time, such as 2026-06-01 or 2026-06-01T12:00+08:00"
            ) from error
        return at

    def local(self, at: datetime | None) -> str:
        """A stored time in the site's zone with its offset, for people."""
        return "" if at is None else self.pack.local(at)


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
            result = command(*args, **kwargs)
            sys.stdout.flush()
        except PbxguardError as error:
            complain(str(error))
            for line in error.more():
                err.print(f"  {printable(line)}", markup=False)
            sys.exit(error.exit_code)
        except OSError as error:
            _discard_output()
            if error.errno == errno.EPIPE:
                # The reader of our output has gone (`| head`): not an error of ours.
                sys.exit(0)
            where = f"{error.filename}: " if error.filename else ""
            complain(f"{where}{error.strerror or error}; put that right, then run it again")
            sys.exit(3)
        return result

    return run


def complain(message: str) -> None:
    """Print one line of complaint on standard error."""
    err.print(f"[red]pbxguard:[/red] {escape(printable(message))}")


def _discard_output() -> None:
    """Let the rest of our output go nowhere, so that the interpreter does not fail once more when it ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def show_json(value: Any) -> None:
    """Print a value as JSON on standard output, readable, with what a terminal would act on escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=2, default=str)
    click.echo("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Print a table; the cells are plain text, whatever a caller wrote into them.

    No word is broken: where the terminal is too narrow for that, each row is a list of its own.
    """
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = _widths(columns, cells)
    if widths is None:
        if title:
            out.print(title, markup=False)
        if len(columns) == 2:  # names and values already
            show_list((row[0], row[1]) for row in cells)
            return
        for place, row in enumerate(cells):
            if place:
                out.print()
            show_list(zip(columns, row, strict=True))
        return
    table = Table(title=title, title_justify="left", header_style="bold")
    for column, width in zip(columns, widths, strict=True):
        table.add_column(column, overflow="fold", width=width)
    for row in cells:
        table.add_row(*map(Text, row))
    # Console.print narrows to the console's width, which is 80 where nobody says how wide it may be.
    options = out.options.update_width(max(out.width, sum(widths) + _lines_of(columns)))
    out.print(Segments(out.render(table, options)), end="", crop=False)


def show_list(lines: Iterable[tuple[str, str]]) -> None:
    """Print names and values below each other, each on one line or more that break between words; no empty one."""
    shown = [(printable(name), printable(value)) for name, value in lines if value]
    left = max((cell_len(name) for name, _ in shown), default=0) + 2
    for name, value in shown:
        for place, line in enumerate(_wrapped(value, max(out.width - left, _NARROWEST))):
            out.print(f"{set_cell_size(name if place == 0 else '', left)}{line}", markup=False, soft_wrap=True)


#: A column of text gets so many cells, if it needs them.
_NARROWEST = 20
#: Where nobody says how wide it may be: a log, a pager, a file.
_WIDE = 150
#: What a line may break within: scripts that put no space between words.
_UNSPACED = re.compile("([\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef])")


def _lines_of(columns: Sequence[str]) -> int:
    """Cells that a table's lines and the space beside them take."""
    return 3 * len(columns) + 1


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int] | None:
    """Cells of each column in which no word is broken; None where the terminal has too few."""
    stated = out.is_terminal or "COLUMNS" in os.environ
    by_column = [[name, *(row[place] for row in rows)] for place, name in enumerate(columns)]
    whole = [max(map(cell_len, cells)) for cells in by_column]
    least = [max(map(_longest_word, cells)) for cells in by_column]
    room = (out.width if stated else _WIDE) - _lines_of(columns)
    if sum(least) > room:
        return None if stated else least
    wanted = list(whole)
    while sum(wanted) > room:
        # The widest gives way first, as long as it can.
        widest = max((at for at in range(len(wanted)) if wanted[at] > least[at]), key=lambda at: wanted[at])
        wanted[widest] -= 1
    return wanted


def _longest_word(text: str) -> int:
    return max((cell_len(piece) for word in text.split() for piece in _UNSPACED.split(word)), default=0)


def _wrapped(text: str, width: int) -> Iterator[str]:
    """Lines of at most so many cells, but where one word is longer: that one stays whole, to be copied."""
    line = ""
    for word in text.split(" "):
        for at, piece in enumerate(filter(None, _UNSPACED.split(word))):
            space = " " if line and at == 0 else ""
            if line and cell_len(line + space + piece) > width:
                yield line
                line, space = "", ""
            line += space + piece
    yield line


def printable(text: str) -> str:
    """*text* without anything that a terminal would act on."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
