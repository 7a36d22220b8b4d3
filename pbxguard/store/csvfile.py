"""CSV files of any size that somebody else wrote: read in bounded memory, every bad row named by its line.

Knows lines, columns and errors. Does not know what the columns mean (``listfile``, ``privacy``).
"""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from pbxguard.errors import BadInput
from pbxguard.screening.lists import shown
from pbxguard.store.schema import to_micros

MAX_LINE = 4096
"""The longest line, in characters: all columns at their limits fit in."""

ERRORS_SHOWN = 20


class RowError(Exception):
    """What is wrong in one column of one row."""

    def __init__(self, column: str, what: str) -> None:
        super().__init__(f"column {column}: {what}" if column else what)


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """Open for ``CsvFile``: UTF-8 with or without a byte order mark.

    Raises:
        BadInput: The file cannot be read.
    """
    try:
        # bytes that are no UTF-8 become surrogates, which CsvFile then refuses by line
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield file
    except OSError as exc:
        raise BadInput(f"{path}: cannot be read: {exc.strerror or exc}; check the path") from exc


class CsvFile:
    """One pass over one file: first ``header``, then ``rows``, with ``note`` for each row that is wrong.

    Whoever reads calls ``raise_if_wrong`` at the end and keeps nothing of the file before that.
    """

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file = path, file
        self._line = 0
        self._wrong: list[str] = []
        self._wrong_total = 0
        self._reader = csv.reader(self._lines(), strict=True)
        self._width = 0

    def header(self, known: Sequence[str], needed: Sequence[str]) -> list[str]:
        """Read the names of the columns, in lower case.

        Raises:
            BadInput: One is not *known*, stands there twice, or a *needed* one is missing.
        """
        try:
            first = next(self._reader, None)
        except csv.Error as exc:
            raise BadInput(f"{self._path}: line 1: is not CSV ({exc})") from exc
        self.raise_if_wrong()
        columns = [column.strip().lower() for column in first or []]
        unknown = [column for column in columns if column not in known]
        missing = [column for column in needed if column not in columns]
        if missing or unknown or len(set(columns)) != len(columns):
            what = f"needs a column {(missing or needed)[0]}, once"
            if unknown:
                what = f"does not know column {shown(unknown[0])}"
            raise BadInput(f"{self._path}: line 1: the header {what}; it is {','.join(known)} or some of these")
        self._width = len(columns)
        return columns

    def rows(self) -> Iterator[list[str]]:
        """Give the rows that are CSV and as wide as the header; empty lines are nothing."""
        while True:
            try:
                for row in self._reader:
                    if len(row) == self._width:
                        yield row
                    elif row:
                        self.note(f"has {len(row)} columns, the header has {self._width}")
            except csv.Error as exc:
                self.note(f"is not CSV ({exc}); check the quotes")
            else:
                return

    def note(self, what: str) -> None:
        """Keep what is wrong with the row that was given last."""
        self._wrong_total += 1
        if len(self._wrong) < ERRORS_SHOWN:
            self._wrong.append(f"line {self._line}: {what}")

    def raise_if_wrong(self) -> None:
        """Raise BadInput with all that was noted; nothing was noted: nothing."""
        if self._wrong_total:
            more = self._wrong_total - len(self._wrong)
            listed = "; ".join(self._wrong) + (f"; and {more} more" if more else "")
            raise BadInput(f"{self._path}: {self._wrong_total} bad rows, nothing was imported: {listed}")

    def _lines(self) -> Iterator[str]:
        """Give the lines that are fit to be parsed; a line without an end is never held whole."""
        readline = self._file.readline
        while line := readline(MAX_LINE + 1):
            self._line += 1
            if len(line) > MAX_LINE:
                self.note(f"is longer than {MAX_LINE} characters")
                while line and not line.endswith(("\n", "\r")):
                    line = readline(MAX_LINE)
            elif "\0" in line:
                self.note("holds a NUL byte")
            elif not line.isascii() and any("\ud800" <= char <= "\udfff" for char in line):
                self.note("is not UTF-8; save the file as UTF-8")
            else:
                yield line


def moment(text: str, column: str) -> int | None:
    """Read a time with a zone as microseconds since 1970; nothing is None.

    Raises:
        RowError: It is no such time.
    """
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is not None:
            # the very first and last hours of the calendar lie outside it in UTC
            at = at.astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise RowError(column, f"{shown(text)} is not a time such as 2027-01-01T00:00:00Z") from exc
    if at.tzinfo is None:
        raise RowError(column, f"{shown(text)} has no time zone; write it as 2027-01-01T00:00:00+08:00")
    return to_micros(at)
