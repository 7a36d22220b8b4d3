"""``check --batch``: a CSV file or a stream of calls, decided by the thousand on one core in bounded memory.

A file is answered as a whole or not at all: the answers wait in a nameless temporary file (in TMPDIR, gone with the
process however it ends) until the last row has been read. A stream is answered as its rows arrive.
"""

import codecs
import csv
import gc
import io
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import BinaryIO, Self, TextIO

import click
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from pbxguard.batch import AT_ONCE, Batch
from pbxguard.cli.context import App, err
from pbxguard.errors import BadInput, PbxguardError
from pbxguard.screening.call import Allow, Call, Channel, Trunk, Verdict
from pbxguard.store.many import ManyFacts

COLUMNS = ("cli", "callee", "trunk", "channel", "at")
ADDED = ("class", "verdict", "reason", "labels")


def check_batch(app: App, path: Path, defaults: dict[str, str]) -> None:
    """Decide every row of a CSV file, or of standard input (``-``), and write CSV to standard output.

    Args:
        app: Settings, pack and store.
        path: The file.
        defaults: Trunk, channel and time for columns that the file does not have, or leaves empty in a row.

    Raises:
        BadInput: A row is wrong; the message names file and line.
    """
    batch = Batch(ManyFacts(app.store), app.pack)
    with _opened(path) as stream, without_pauses():
        whole = str(path) != "-" and path.is_file()
        lines = _Lines(stream, path, live=not whole)
        with tempfile.TemporaryFile("w+", encoding="utf-8", newline="") if whole else _standard_output() as answers:
            rows = _Rows(app, path, lines, defaults)
            total = path.stat().st_size if whole else None
            with Pace("deciding", total) as pace:
                _answer(rows, batch, answers, lines, pace)
            if whole:
                answers.seek(0)
                shutil.copyfileobj(answers, sys.stdout)


def _answer(rows: "_Rows", batch: Batch, answers: TextIO, lines: "_Lines", pace: "Pace") -> None:
    writer = csv.writer(answers, lineterminator="\n")
    writer.writerow([*rows.columns, *ADDED])
    waiting: list[list[str]] = []
    calls: list[Call] = []
    answered = 0

    def decide() -> None:
        nonlocal answered
        answered = lines.taken
        verdicts = batch.decide(calls)
        writer.writerows([*row, *_result(verdict)] for row, verdict in zip(waiting, verdicts, strict=True))
        answers.flush()
        pace.advance(len(calls), lines.taken)
        waiting.clear()
        calls.clear()

    try:
        for row, call in rows:
            waiting.append(row)
            calls.append(call)
            # Whoever types rows, or sends them one by one, waits for each answer.
            if len(calls) == AT_ONCE or lines.dry or lines.taken - answered > _MOST_HELD:
                decide()
    except BadInput:
        # What stands before a bad row of a stream is answered; of a file nobody sees it.
        decide()
        raise
    decide()


def _result(verdict: Verdict) -> tuple[str, str, str, str]:
    cli = verdict.basis.cli
    return (
        cli.number_class if cli else "",
        "allow" if isinstance(verdict, Allow) else "block",
        verdict.reason,
        ";".join(verdict.labels),
    )


class _Rows:
    """The rows of a file, each with its call; every error names file and line."""

    def __init__(self, app: App, path: Path, lines: "_Lines", defaults: dict[str, str]) -> None:
        self._app = app
        self._path = path
        self._reader = csv.reader(lines)
        self._defaults = defaults
        self._trunks: dict[str, Trunk] = {}
        self._moments: dict[str, datetime] = {}
        self.columns = self._header()

    def __iter__(self) -> Iterator[tuple[list[str], Call]]:
        reader, width = self._reader, len(self.columns)
        place = {name: self.columns.index(name) for name in self.columns}
        cli, callee = place["cli"], place["callee"]
        others = [(place.get(name), self._defaults[name]) for name in ("trunk", "channel", "at")]
        try:
            for row in reader:
                if len(row) != width:
                    if not row:
                        continue
                    raise self._bad("the row has another number of fields than the first line")
                trunk, channel, at = [(row[i] if i is not None else "") or default for i, default in others]
                yield row, self._call(row[cli], row[callee], trunk, channel, at)
        except csv.Error as error:
            raise self._bad(str(error)) from error

    def _call(self, cli: str, callee: str, trunk: str, channel: str, at: str) -> Call:
        try:
            return Call(
                "",
                self._moment(at) if at else datetime.now(UTC),
                self._trunks.get(trunk) or self._trunk(trunk),
                cli,
                callee,
                _CHANNELS.get(channel) or Channel(channel),
            )
        except (PbxguardError, click.BadParameter, ValueError) as error:
            raise self._bad(error.message if isinstance(error, click.BadParameter) else str(error)) from error

    def _trunk(self, name: str) -> Trunk:
        trunk = self._trunks[name] = self._app.trunk(name)
        return trunk

    def _moment(self, text: str) -> datetime:
        moment = self._moments.get(text)
        if moment is None:
            if len(self._moments) >= _MOMENTS:
                self._moments.clear()
            moment = self._moments[text] = self._app.moment(text)
        return moment

    def _header(self) -> list[str]:
        required = ("cli", "callee") if self._defaults["trunk"] else ("cli", "callee", "trunk")
        try:
            columns = next(self._reader, [])
        except csv.Error as error:
            raise BadInput(f"{self._path}:1: {error}; the first line must name {','.join(COLUMNS)}") from error
        missing = [name for name in required if name not in columns]
        wrong = [name for name in columns if name not in COLUMNS or columns.count(name) > 1]
        if missing or wrong:
            named = ", ".join(missing) or repr(", ".join(wrong)[:80])
            what = f"no column {named}" if missing else f"unknown or double column {named}"
            raise BadInput(f"{self._path}:1: {what}; the first line must name {','.join(COLUMNS)}")
        return columns

    def _bad(self, what: str) -> BadInput:
        return BadInput(f"{self._path}:{self._reader.line_num}: {what}")


_CHANNELS = {str(channel): channel for channel in Channel}

#: Times that are kept as read.
_MOMENTS = 50_000

#: Bytes of rows that are held at once, however few rows they are.
_MOST_HELD = 1 << 23

#: Bytes that are read at a time, and the longest line, in characters; the CSV reader refuses far shorter fields.
_BLOCK = 1 << 18
_MOST_LINE = 1 << 20


class _Lines:
    """Lines of a file or stream as they arrive; ends as any editor writes them, bytes that are no UTF-8 replaced.

    Attributes:
        taken: Bytes read so far.
    """

    def __init__(self, stream: BinaryIO, path: Path, *, live: bool) -> None:
        self.taken = 0
        self._live = live
        self._stream = stream
        self._path = path
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._ready: deque[str] = deque()
        self._rest = ""
        self._ended = False

    @property
    def dry(self) -> bool:
        """The next line has yet to arrive."""
        return self._live and not self._ready and not self._ended

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        while not self._ready:
            if self._ended:
                raise StopIteration
            self._read()
        return self._ready.popleft()

    def _read(self) -> None:
        data = self._stream.read1(_BLOCK)  # type: ignore[attr-defined]
        self.taken += len(data)
        self._ended = not data
        text = self._rest + self._decoder.decode(data, final=self._ended)
        # A StringIO ends lines where a text file does: at LF, CR and CRLF, and nowhere else.
        self._ready.extend(io.StringIO(text, newline=""))
        self._rest = ""
        # The last one may go on, and a CR may be half of a CRLF.
        if self._ready and not self._ended and not self._ready[-1].endswith("\n"):
            self._rest = self._ready.pop()
            if len(self._rest) > _MOST_LINE:
                raise BadInput(
                    f"{self._path}: a line is longer than {_MOST_LINE} characters; end each row with a line end"
                )


class Pace:
    """How far it is: a bar on a terminal, and one line at the end everywhere; on standard error."""

    def __init__(self, what: str, total: int | None) -> None:
        """Count *what*; *total* in the unit of ``advance``'s ``done``, None where nobody knows it."""
        self.rows = 0
        self._started = monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[rows]:,} rows"),
            _Speed(self),
            TimeRemainingColumn(),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._task = self._progress.add_task(what, total=total, rows=0)

    def __enter__(self) -> Self:
        """Show it."""
        self._progress.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Take the bar away and, where all went well, say what was done."""
        self._progress.stop()
        if kind is None:
            err.print(f"{self.rows:,} rows in {self.seconds:.1f} s, {self.speed:,.0f} rows/s", markup=False)

    def advance(self, rows: int, done: int) -> None:
        """So many more *rows*; *done* of the total."""
        self.rows += rows
        if not self._progress.disable:
            self._progress.update(self._task, completed=done, rows=self.rows)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return max(monotonic() - self._started, 1e-6)

    @property
    def speed(self) -> float:
        """Rows a second since it began."""
        return self.rows / self.seconds


class _Speed(ProgressColumn):
    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def render(self, task: Task) -> Text:  # noqa: ARG002 - there is one task
        return Text(f"{self._pace.speed:,.0f}/s")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise BadInput(f"{path}: cannot read it: {error.strerror}") from error
    with file:
        yield file


@contextmanager
def _standard_output() -> Iterator[TextIO]:
    yield sys.stdout


@contextmanager
def without_pauses() -> Iterator[None]:
    """Leave the garbage collector out: it would walk millions of values that form no cycles."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
