"""Lists as CSV files: read with every bad row named, written so that reading gives the same back.

Only the column ``pattern`` is required (``COLUMNS`` has them all), so files of an older version go on working.
UTF-8, with or without a byte order mark, lines end in LF or CRLF; times have a zone, ``retained`` is yes or no.
"""

import csv
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

from pbxguard.errors import BadInput, BadNumber
from pbxguard.screening.lists import (
    NOTES,
    Action,
    ListEntry,
    check_note,
    consists_of,
    normalise_pattern,
    pattern_keys,
    pattern_of,
    shown,
)
from pbxguard.store.csvfile import CsvFile, RowError, moment, opened
from pbxguard.store.schema import from_micros

COLUMNS = (
    *("pattern", "action", "owner", "name", "source", "reason", "legal_basis", "expires_at"),
    *("since", "retained", "document", "lifted_at", "lift_reason"),
)
LIMITS = {
    "owner": 20,
    "name": 40,
    "source": 100,
    "reason": 500,
    "legal_basis": 200,
    "document": 200,
    "lift_reason": 200,
}
"""The most characters of each text."""

StagedRow = tuple[str, str, str, str, int, str, str, str, str, int | None, int | None, int, str, int | None, str]
"""One row of table ``list_entry``, in the order of its columns."""

_ACTIONS = tuple(str(action) for action in Action)

_Tail = tuple[str, str, str, str, int | None, int | None, int, str, int | None, str]
_Attributes = tuple[str, str, _Tail]
"""What a row says beside its pattern: owner, name, then the last columns of the table."""

_REMEMBERED = 10_000


def read_csv(
    path: Path,
    normalise: Callable[[str], str],
    *,
    home: str,
    name: str = "system",
    only: bool = False,
    tags: Collection[str] = (),
    never_block: Callable[[str], bool] | None = None,
) -> Iterator[ListEntry]:
    """Read entries from a CSV file, in its order.

    The whole file is read even when a row is bad, to name all that is wrong; then BadInput is raised in
    place of the end, so whoever keeps the rows must not commit before the iterator ends.

    Args:
        path: The file.
        normalise: Number as typed -> home form; raises BadNumber. Applied to patterns and owners.
        home: The country's own code, ``+86`` (``normalise_pattern``).
        name: The list of rows that do not name one. Rows without an action block.
        only: All rows are global entries of that list: one that names another list or an owner is bad.
        tags: The classes and regions that patterns may name (``normalise_pattern``).
        never_block: Whether a number in home form is one that no list may block; a row that blocks nothing
            else is bad.

    Raises:
        BadInput: The file cannot be read, its header is wrong, or it has bad rows: the first 20 are
            listed, each with line and column.
    """
    for row in staged_csv(path, normalise, home=home, name=name, only=only, tags=tags, never_block=never_block):
        owner, key, listed, span, part, action, source, reason, legal, expires, since, kept, document, lifted, why = (
            row
        )
        if part == 0:
            yield ListEntry(
                *(owner, span or pattern_of(key), Action(action), listed, source, reason, legal),
                *(from_micros(expires), from_micros(since), bool(kept), document, from_micros(lifted), why),
            )


def write_csv(file: TextIO, entries: Iterable[ListEntry]) -> int:
    """Write entries as ``read_csv`` reads them (open the file with ``newline=""``); give their number."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    total = 0
    for e in entries:
        writer.writerow(
            (
                *(e.pattern, str(e.action), e.owner, e.name, e.source, e.reason, e.legal_basis, utc(e.expires_at)),
                *(utc(e.since), "yes" if e.retained else "no", e.document, utc(e.lifted_at), e.lift_reason),
            )
        )
        total += 1
    return total


def utc(at: datetime | None) -> str:
    """Write a time as ``read_csv`` reads it."""
    return "" if at is None else at.astimezone(UTC).isoformat()


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


def staged_csv(
    path: Path,
    normalise: Callable[[str], str],
    *,
    home: str,
    name: str,
    only: bool = False,
    tags: Collection[str] = (),
    never_block: Callable[[str], bool] | None = None,
) -> Iterator[StagedRow]:
    """Read the file as rows of the table; otherwise as ``read_csv``."""
    with opened(path) as file:
        pattern = partial(normalise_pattern, normalise=normalise, home=home, tags=tags)
        yield from _Reader(CsvFile(path, file), normalise, pattern, name, never_block, only=only).rows()


NEVER_BLOCK = "is an emergency or operator number, which no list may block"
"""What is said of an entry that would block such numbers only."""


class _Reader:
    """One pass over one file."""

    def __init__(
        self,
        file: CsvFile,
        normalise: Callable[[str], str],
        pattern: Callable[[str], str],
        name: str,
        never_block: Callable[[str], bool] | None,
        *,
        only: bool,
    ) -> None:
        self._file, self._normalise, self._normal_pattern = file, normalise, pattern
        self._name, self._only = name, only
        self._never_block = never_block or (lambda _key: False)
        self._known: dict[Any, _Attributes] = {}

    def rows(self) -> Iterator[StagedRow]:
        """Give the rows; raise BadInput at the end if any was bad."""
        columns = self._file.header(COLUMNS, ["pattern"])
        pattern_at = columns.index("pattern")
        others = [place for place in range(len(columns)) if place != pattern_at]
        pick: Callable[[list[str]], Any] = itemgetter(*others) if others else lambda _row: ""
        last: Any = None
        normalise, never_block = self._normalise, self._never_block
        for row in self._file.rows():
            rest, text = pick(row), row[pattern_at]
            try:
                if rest != last:
                    owner, name, tail = self._remembered(rest, columns, row)
                    last, blocks = rest, tail[0] == "block"
                if text.removeprefix("+").isdigit():  # by far the most: a number, which is its own key
                    number = normalise(text)
                    if not (blocks and never_block(number)):
                        yield (owner, number, name, "", 0, *tail)
                        continue
                pattern = self._pattern(text, blocks=blocks)
            except BadNumber as exc:
                self._file.note(f"column pattern: {exc}")
            except RowError as exc:
                self._file.note(str(exc))
            else:
                span = pattern if "-" in pattern else ""
                for part, key in enumerate(pattern_keys(pattern)):
                    yield (owner, key, name, span, part, *tail)
        self._file.raise_if_wrong()

    def _remembered(self, rest: Any, columns: list[str], row: list[str]) -> _Attributes:
        """Give what the other columns say: millions of rows share a few attributes, which are worked out once."""
        if rest not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[rest] = self._attributes(columns, row)
        return self._known[rest]

    def _pattern(self, text: str, *, blocks: bool) -> str:
        pattern = self._normal_pattern(text)
        if blocks and consists_of(pattern, self._never_block):
            raise RowError("pattern", f"{shown(pattern)} {NEVER_BLOCK}")
        return pattern

    def _attributes(self, columns: list[str], row: list[str]) -> _Attributes:
        """Check everything but the pattern; an empty name or action takes the default."""
        given = dict(zip(columns, row, strict=True))
        for column, limit in LIMITS.items():
            wrong = _wrong_text(given.get(column, ""), limit)
            if wrong:
                raise RowError(column, wrong)
        action = given.get("action", "").strip().lower() or "block"
        if action not in _ACTIONS:
            raise RowError("action", f"{shown(action)} is none of {', '.join(_ACTIONS)}")
        retained = given.get("retained", "").strip().lower() or "no"
        if retained not in ("yes", "no"):
            raise RowError("retained", f"{shown(retained)} is neither yes nor no")
        if retained == "yes" and action != "block":
            raise RowError("retained", "only an entry that blocks can be for a number that is kept")
        owner, name = self._list(given)
        since, expires_at, lifted_at = (
            moment(given.get(column, "").strip(), column) for column in ("since", "expires_at", "lifted_at")
        )
        if since is not None and expires_at is not None and expires_at <= since:
            raise RowError("expires_at", "is not after since")
        tail = (
            action,
            given.get("source", ""),
            given.get("reason", ""),
            given.get("legal_basis", ""),
            expires_at,
            since,
            int(retained == "yes"),
            given.get("document", ""),
            lifted_at,
            given.get("lift_reason", ""),
        )
        _check_note(action, owner, name)
        return owner, name, tail

    def _list(self, given: dict[str, str]) -> tuple[str, str]:
        """Give owner and name of the list that a row belongs to."""
        owner, name = given.get("owner", "").strip(), given.get("name", "").strip() or self._name
        if self._only and name != self._name:
            raise RowError("name", f"{shown(name)} is not the list that is imported, {shown(self._name)}")
        if self._only and owner:
            raise RowError("owner", f"{shown(owner)}: the list that is imported is global; leave the owner empty")
        try:
            return self._normalise(owner) if owner else "", name
        except BadNumber as exc:
            raise RowError("owner", str(exc)) from exc


def _check_note(action: str, owner: str, name: str) -> None:
    if action == Action.NOTE or name in NOTES:
        try:
            check_note(Action(action), owner, name)
        except BadInput as exc:
            raise RowError("name", str(exc)) from exc


def _wrong_text(text: str, limit: int) -> str:
    if len(text) > limit:
        return f"is longer than {limit} characters"
    if not text.isprintable():
        return "holds a control character"
    return ""
