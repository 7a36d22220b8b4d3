"""Lists as CSV files: read with every bad row named, written so that reading gives the same back.

Columns ``pattern,action,owner,name,source,reason,legal_basis,expires_at``; only ``pattern`` is required.
UTF-8, with or without a byte order mark, lines end in LF or CRLF.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

from pbxguard.errors import BadInput, BadNumber
from pbxguard.screening.lists import Action, ListEntry, normalise_pattern, pattern_keys, pattern_of, shown
from pbxguard.store.schema import from_micros, to_micros

COLUMNS = ("pattern", "action", "owner", "name", "source", "reason", "legal_basis", "expires_at")
LIMITS = {"owner": 20, "name": 40, "source": 100, "reason": 500, "legal_basis": 200}
"""The most characters of each text."""

MAX_LINE = 4096
"""The longest line, in characters: all columns at their limits fit in."""

ERRORS_SHOWN = 20

StagedRow = tuple[str, str, str, str, int, str, str, str, str, int | None]
"""One row of table ``list_entry``, in the order of its columns."""

_Attributes = tuple[str, str, tuple[str, str, str, str, int | None]]
"""What a row says beside its pattern: owner, name, then the last columns of the table."""

_REMEMBERED = 10_000


def read_csv(path: Path, normalise: Callable[[str], str], *, name: str = "system") -> Iterator[ListEntry]:
    """Read entries from a CSV file, in its order.

    The whole file is read even when a row is bad, to name all that is wrong; then BadInput is raised in
    place of the end, so whoever keeps the rows must not commit before the iterator ends.

    Args:
        path: The file.
        normalise: Number as typed -> home form; raises BadNumber. Applied to patterns and owners.
        name: The list of rows that do not name one. Rows without an action block.

    Raises:
        BadInput: The file cannot be read, its header is wrong, or it has bad rows: the first 20 are
            listed, each with line and column.
    """
    for owner, key, listed, span, part, action, source, reason, legal, expires in staged_csv(
        path, normalise, name=name
    ):
        if part == 0:
            pattern = span or pattern_of(key)
            yield ListEntry(owner, pattern, Action(action), listed, source, reason, legal, from_micros(expires))


def write_csv(file: TextIO, entries: Iterable[ListEntry]) -> int:
    """Write entries as ``read_csv`` reads them (open the file with ``newline=""``); give their number."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    total = 0
    for e in entries:
        expires = "" if e.expires_at is None else e.expires_at.astimezone(UTC).isoformat()
        writer.writerow((e.pattern, str(e.action), e.owner, e.name, e.source, e.reason, e.legal_basis, expires))
        total += 1
    return total


def check_texts(entry: ListEntry) -> None:
    """Refuse texts that are too long or hold control characters.

    Raises:
        BadInput: Names the pattern, the column and what is wrong.
    """
    for column, limit in LIMITS.items():
        wrong = _wrong_text(getattr(entry, column), limit)
        if wrong:
            raise BadInput(f"lists: entry {shown(entry.pattern)}: {column}: {wrong}")
    if not entry.name:
        raise BadInput(f"lists: entry {shown(entry.pattern)}: name: is empty; name a list, such as system")


def staged_csv(path: Path, normalise: Callable[[str], str], *, name: str) -> Iterator[StagedRow]:
    """Read the file as rows of the table; otherwise as ``read_csv``."""
    try:
        # bytes that are no UTF-8 become surrogates, which _Lines then refuses by line
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from _Reader(path, file, normalise, name).rows()
    except OSError as exc:
        raise BadInput(f"{path}: cannot be read: {exc.strerror or exc}; check the path") from exc


class _RowError(Exception):
    """What is wrong in one column of one row."""

    def __init__(self, column: str, what: str) -> None:
        super().__init__(f"column {column}: {what}" if column else what)


class _Reader:
    """One pass over one file; collects what is wrong by line."""

    def __init__(self, path: Path, file: TextIO, normalise: Callable[[str], str], name: str) -> None:
        self._path, self._file, self._normalise, self._name = path, file, normalise, name
        self._line = 0
        self._wrong: list[str] = []
        self._wrong_total = 0

    def rows(self) -> Iterator[StagedRow]:
        """Give the rows; raise BadInput at the end if any was bad."""
        reader = csv.reader(self._lines(), strict=True)
        columns = self._header(reader)
        pattern_at = columns.index("pattern")
        others = [place for place in range(len(columns)) if place != pattern_at]
        pick: Callable[[list[str]], Any] = itemgetter(*others) if others else lambda _row: ""
        # millions of rows share a few attributes: what the other columns say is worked out once
        known: dict[Any, _Attributes] = {}
        normalise = self._normalise
        for row in self._parsed(reader, len(columns)):
            rest, text = pick(row), row[pattern_at]
            try:
                if rest not in known:
                    if len(known) >= _REMEMBERED:
                        known.clear()
                    known[rest] = self._attributes(columns, row)
                owner, name, tail = known[rest]
                if text.isdigit():  # by far the most: a number, which is its own key
                    yield (owner, normalise(text), name, "", 0, *tail)
                    continue
                pattern = normalise_pattern(text, normalise)
            except BadNumber as exc:
                self._note(f"column pattern: {exc}")
            except _RowError as exc:
                self._note(str(exc))
            else:
                span = pattern if "-" in pattern else ""
                for part, key in enumerate(pattern_keys(pattern)):
                    yield (owner, key, name, span, part, *tail)
        self._raise_if_wrong()

    def _parsed(self, reader: Iterator[list[str]], width: int) -> Iterator[list[str]]:
        """Give the rows that are CSV and as wide as the header; empty lines are nothing."""
        while True:
            try:
                for row in reader:
                    if len(row) == width:
                        yield row
                    elif row:
                        self._note(f"has {len(row)} columns, the header has {width}")
            except csv.Error as exc:
                self._note(f"is not CSV ({exc}); check the quotes")
            else:
                return

    def _header(self, reader: Iterator[list[str]]) -> list[str]:
        try:
            header = next(reader, None)
        except csv.Error as exc:
            raise BadInput(f"{self._path}: line 1: is not CSV ({exc})") from exc
        self._raise_if_wrong()
        columns = [column.strip().lower() for column in header or []]
        unknown = [column for column in columns if column not in COLUMNS]
        if "pattern" not in columns or unknown or len(set(columns)) != len(columns):
            what = f"does not know column {shown(unknown[0])}" if unknown else "needs a column pattern, once"
            raise BadInput(f"{self._path}: line 1: the header {what}; it is {','.join(COLUMNS)} or some of these")
        return columns

    def _attributes(self, columns: list[str], row: list[str]) -> _Attributes:
        """Check everything but the pattern; an empty name or action takes the default."""
        given = dict(zip(columns, row, strict=True))
        for column, limit in LIMITS.items():
            wrong = _wrong_text(given.get(column, ""), limit)
            if wrong:
                raise _RowError(column, wrong)
        action = given.get("action", "").strip().lower() or "block"
        if action not in ("allow", "block"):
            raise _RowError("action", f"{shown(action)} is neither allow nor block")
        owner = given.get("owner", "").strip()
        if owner:
            try:
                owner = self._normalise(owner)
            except BadNumber as exc:
                raise _RowError("owner", str(exc)) from exc
        tail = (
            action,
            given.get("source", ""),
            given.get("reason", ""),
            given.get("legal_basis", ""),
            _expiry(given.get("expires_at", "").strip()),
        )
        return owner, given.get("name", "").strip() or self._name, tail

    def _lines(self) -> Iterator[str]:
        """Give the lines that are fit to be parsed; a line without an end is never held whole."""
        readline = self._file.readline
        while line := readline(MAX_LINE + 1):
            self._line += 1
            if len(line) > MAX_LINE:
                self._note(f"is longer than {MAX_LINE} characters")
                while line and not line.endswith(("\n", "\r")):
                    line = readline(MAX_LINE)
            elif "\0" in line:
                self._note("holds a NUL byte")
            elif not line.isascii() and any("\ud800" <= char <= "\udfff" for char in line):
                self._note("is not UTF-8; save the file as UTF-8")
            else:
                yield line

    def _note(self, what: str) -> None:
        self._wrong_total += 1
        if len(self._wrong) < ERRORS_SHOWN:
            self._wrong.append(f"line {self._line}: {what}")

    def _raise_if_wrong(self) -> None:
        if self._wrong_total:
            more = self._wrong_total - len(self._wrong)
            listed = "; ".join(self._wrong) + (f"; and {more} more" if more else "")
            raise BadInput(f"{self._path}: {self._wrong_total} bad rows, nothing was imported: {listed}")


def _wrong_text(text: str, limit: int) -> str:
    if len(text) > limit:
        return f"is longer than {limit} characters"
    if not text.isprintable():
        return "holds a control character"
    return ""


def _expiry(text: str) -> int | None:
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError as exc:
        raise _RowError("expires_at", f"{shown(text)} is not a time such as 2027-01-01T00:00:00Z") from exc
    if at.tzinfo is None:
        raise _RowError("expires_at", f"{shown(text)} has no time zone; write it as 2027-01-01T00:00:00+08:00")
    return to_micros(at)
