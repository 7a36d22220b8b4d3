"""The text of a CSV or TOML file -> checked values; every error names the file and the line.

Knows how to read one field and what to say when it is wrong. Does not know what the fields mean (``pack``).
"""

import csv
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from difflib import get_close_matches
from typing import cast
from zoneinfo import ZoneInfo

from pbxguard.errors import BadPack

STATUS = ("verified", "unverified")
"""Whether a source confirms what a row says."""

MOST_DIGITS = 24
"""A longer string is no number."""


def digits(text: str) -> bool:
    """Whether the text is one or more ASCII digits."""
    return text.isascii() and text.isdigit()


def near(name: str, known: Iterable[str]) -> str:
    """The end of an error on an unknown name: those that look like it, else some of those that there are."""
    names = sorted(known)
    alike = get_close_matches(name, names, n=3, cutoff=0.5)
    if alike:
        return f"near are {', '.join(alike)}"
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"there are {shown}" if names else "there is none"


@dataclass(frozen=True, slots=True)
class Span:
    """A time from ``begin`` (inclusive) to ``end`` (exclusive), both UTC; None where it has no such bound."""

    begin: datetime | None = None
    end: datetime | None = None

    def holds(self, at: datetime | None) -> bool:
        """Whether ``at`` (aware) lies in it; None is the time after every date."""
        if at is None:
            return self.end is None
        return (self.begin is None or self.begin <= at) and (self.end is None or at < self.end)

    def overlaps(self, other: "Span") -> bool:
        return (self.begin is None or other.end is None or self.begin < other.end) and (
            other.begin is None or self.end is None or other.begin < self.end
        )


ALWAYS = Span()


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a CSV file, with the errors that name it."""

    file: str
    line: int
    values: Mapping[str, str]

    @property
    def where(self) -> str:
        return f"{self.file} line {self.line}"

    def bad(self, column: str, why: str) -> BadPack:
        return BadPack(f"{self.where}: {column}: {why}")

    def __getitem__(self, column: str) -> str:
        return self.values[column]

    def one_of(self, column: str, choices: tuple[str, ...]) -> str:
        if self[column] not in choices:
            raise self.bad(column, f"'{self[column]}' is none of {', '.join(choices)}")
        return self[column]

    def some_of(self, column: str, choices: tuple[str, ...]) -> tuple[str, ...]:
        words = tuple(self[column].split())
        if not words or len(set(words)) < len(words) or not set(words) <= set(choices):
            raise self.bad(column, f"'{self[column]}' is not a list of {', '.join(choices)}")
        return words

    def matching(self, column: str, pattern: str, meaning: str) -> str:
        if re.fullmatch(pattern, self[column]) is None:
            raise self.bad(column, f"'{self[column]}' is not {meaning}")
        return self[column]

    def count(self, column: str) -> int:
        number = int(self.matching(column, "[0-9]{1,2}", "a number of digits"))
        if not 1 <= number <= MOST_DIGITS:
            raise self.bad(column, f"{number} is not between 1 and {MOST_DIGITS}")
        return number

    def moment(self, column: str) -> datetime | None:
        """A local date or date and time; None where the field is empty."""
        if not self[column]:
            return None
        try:
            moment = datetime.fromisoformat(self[column])
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is not None:
            raise self.bad(column, f"'{self[column]}' is not a local date such as 2022-05-20 or 2022-05-20T00:00")
        return moment

    def span(self, zone: ZoneInfo) -> Span:
        """The columns valid_from and valid_to, local dates of ``zone``; ALWAYS where both are empty."""
        begin, end = self.moment("valid_from"), self.moment("valid_to")
        if begin is not None and end is not None and end <= begin:
            raise self.bad("valid_to", "lies before valid_from")
        if begin is None and end is None:
            return ALWAYS
        return Span(*(None if t is None else t.replace(tzinfo=zone).astimezone(UTC) for t in (begin, end)))

    @property
    def verified(self) -> bool:
        return self["status"] == "verified"

    def provenance(self) -> None:
        """Hold the three columns that every row has: source, status, checked_on."""
        if not self["source"]:
            raise self.bad("source", "is empty; say where the row is from")
        self.one_of("status", STATUS)
        if self.moment("checked_on") is None:
            raise self.bad("checked_on", "is empty; give the day on which the source was read")


def read_rows(name: str, text: str, columns: tuple[str, ...]) -> Iterator[Row]:
    """The rows of a CSV table with a header of ``columns`` and source, status, checked_on, in any order."""
    wanted = (*columns, "source", "status", "checked_on")
    reader = csv.reader(text.splitlines(), strict=True)
    try:
        header = next(reader, [])
        for column in wanted:
            if column not in header:
                raise BadPack(f"{name} line 1: column '{column}' is missing; it has {', '.join(wanted)}")
        for column in header:
            if column not in wanted or header.count(column) > 1:
                raise BadPack(f"{name} line 1: column '{column}' is unknown or twice; it has {', '.join(wanted)}")
        for values in reader:
            if len(values) != len(header):
                raise BadPack(
                    f"{name} line {reader.line_num}: {len(values)} fields, but the header has {len(header)}"
                )
            row = Row(name, reader.line_num, dict(zip(header, map(str.strip, values), strict=True)))
            row.provenance()
            yield row
    except csv.Error as error:
        raise BadPack(f"{name} line {reader.line_num}: not CSV ({error})") from error


class Toml:
    """One TOML file, with errors that name the line: tomllib keeps none, so it is looked for in the text."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self._lines = text.splitlines()
        try:
            self._root: dict[str, object] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            at = re.search(r"at line ([0-9]+)", str(error))
            line = int(at[1]) if at else max(len(self._lines), 1)
            raise BadPack(f"{name} line {line}: not TOML ({error})") from error

    def bad(self, table: tuple[str, ...], key: str | None, why: str) -> BadPack:
        at = f"{key}: " if key else ""
        return BadPack(f"{self.name} line {self.line(table, key)}: {at}{why}")

    def table(self, path: tuple[str, ...]) -> dict[str, object]:
        value: object = self._root
        for key in path:
            value = cast("dict[str, object]", value).get(key)
            if not isinstance(value, dict):
                raise self.bad(path, None, f"a table [{'.'.join(path)}] is expected")
        return cast("dict[str, object]", value)

    def only(self, path: tuple[str, ...], known: set[str]) -> None:
        for key in self.table(path):
            if key not in known:
                raise self.bad(path, key, f"unknown key; known are {', '.join(sorted(known))}")

    def string(self, path: tuple[str, ...], key: str, pattern: str) -> str:
        value = self._need(path, key)
        if not isinstance(value, str) or re.fullmatch(pattern, value) is None:
            raise self.bad(path, key, f"{value!r} is not of the form {pattern}")
        return value

    def strings(self, path: tuple[str, ...], key: str) -> tuple[str, ...]:
        value = self._need(path, key)
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            raise self.bad(path, key, "a list of strings is expected")
        return tuple(value)

    def integer(self, path: tuple[str, ...], key: str, low: int, high: int) -> int:
        value = self._need(path, key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.bad(path, key, f"{value!r} is not a number between {low} and {high}")
        return value

    def flag(self, path: tuple[str, ...], key: str) -> bool:
        value = self._need(path, key)
        if not isinstance(value, bool):
            raise self.bad(path, key, f"{value!r} is neither true nor false")
        return value

    def day(self, path: tuple[str, ...], key: str) -> date:
        value = self._need(path, key)
        if not isinstance(value, date) or isinstance(value, datetime):
            raise self.bad(path, key, f"{value!r} is not a date such as 2026-11-21, without quotes")
        return value

    def _need(self, path: tuple[str, ...], key: str) -> object:
        table = self.table(path)
        if key not in table:
            raise self.bad(path, None, f"key '{key}' is missing")
        return table[key]

    def line(self, path: tuple[str, ...], key: str | None) -> int:
        """The line of a key in a table, or of the first table that it opens; else of the table's header."""
        header = re.compile(r"\s*\[\s*([A-Za-z0-9_.-]+)\s*\]")
        here = ".".join(path)
        opened = ".".join((*path, key)) if key else here
        assigned = re.compile(rf"\s*\"?{re.escape(key or '')}\"?\s*[.=]")
        current, of_table = "", 1
        for number, line in enumerate(self._lines, 1):
            found = header.match(line)
            if found:
                current = found[1]
                if current == opened or current.startswith(opened + "."):
                    return number
                if current == here:
                    of_table = number
            elif key and current == here and assigned.match(line):
                return number
        return of_table
