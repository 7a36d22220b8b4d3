"""Bindings of privacy numbers: stored, ended, streamed, and imported all or nothing."""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Row, delete, or_, select, update

from pbxguard.errors import BadNumber
from pbxguard.screening.privacy import Binding, pair
from pbxguard.store import sqlite
from pbxguard.store.csvfile import CsvFile, RowError, moment, opened
from pbxguard.store.database import Database
from pbxguard.store.schema import from_micros, to_micros
from pbxguard.store.schema import privacy_binding as table
from pbxguard.store.upsert import batches, upsert

BINDING_COLUMNS = ("x", "a", "b", "since", "until", "max_call_s")
"""Columns of a file of pairs: one row a pair, ``a`` and ``until`` and ``max_call_s`` may be empty."""

LONGEST_CALL_S = 7 * 86_400
"""The most that a maximum call time can be, seconds."""

_StagedBinding = tuple[str, str, str, int, int | None, int | None]


class Bindings(Database):
    """Changes and reads the bindings. Numbers are in home form."""

    def bind(self, bindings: Iterable[Binding]) -> None:
        """Store bindings: all or none. An earlier one of the same X, A and B ends where the new one begins."""
        with self.writing() as connection:
            for each in bindings:
                since = to_micros(each.since)
                connection.execute(
                    update(table)
                    .where(
                        *(table.c.x == each.x, table.c.b == each.b, table.c.a == each.a, table.c.since < since),
                        or_(table.c.until.is_(None), table.c.until > since),
                    )
                    .values(until=since)
                )
                row = dict(zip(table.columns.keys(), _staged(each), strict=True))
                connection.execute(upsert(connection, table), [row])

    def unbind(self, x: str, at: datetime, party: str | None = None) -> int:
        """End the bindings of X, or those of one party to them; give how many. Those yet to begin are removed."""
        now = to_micros(at)
        chosen: list[Any] = [table.c.x == x]
        if party is not None:
            chosen.append(or_(table.c.a == party, table.c.b == party))
        with self.writing() as connection:
            removed = connection.execute(delete(table).where(*chosen, table.c.since >= now)).rowcount
            running = or_(table.c.until.is_(None), table.c.until > now)
            ended = connection.execute(update(table).where(*chosen, running).values(until=now)).rowcount
        return removed + ended

    def bindings(self, x: str | None = None) -> Iterator[Binding]:
        """Give all bindings, or those of one X, in the order of X, B, A and first day; streams one view."""
        query = select(table).order_by(*table.primary_key)
        if x is not None:
            query = query.where(table.c.x == x)
        with self.reading() as connection:
            for row in connection.execution_options(yield_per=1000).execute(query):
                yield _binding(row)

    def forget_bindings(self, before: datetime) -> int:
        """Remove the bindings that ended before a moment, as real numbers need not be kept; give how many."""
        with self.writing() as connection:
            return connection.execute(delete(table).where(table.c.until < to_micros(before))).rowcount

    def import_bindings(
        self,
        path: Path,
        normalise: Callable[[str], str],
        is_x: Callable[[str], bool],
        at: datetime,
        *,
        dry_run: bool = False,
    ) -> int:
        """Import a CSV file of pairs (``BINDING_COLUMNS``; only x and b are needed); give how many pairs.

        Decisions go on with the old bindings until all rows are in.

        Args:
            path: The file.
            normalise: Number as typed -> home form; raises BadNumber.
            is_x: Whether a number can be shown for another one (its class is a privacy class).
            at: The first moment of rows that do not say.
            dry_run: Only check.

        Raises:
            BadInput: The file has bad rows; the message lists the first of them.
        """
        total = 0
        with self.plain_errors(), sqlite.Bulk(self._engine, table) as bulk:
            for batch in batches(read_pairs(path, normalise, is_x, at), 5000):
                total += len(batch)
                bulk.stage(_staged(binding) for bindings in batch for binding in bindings)
            if not dry_run:
                with bulk.connection.begin():
                    bulk.move()
                bulk.checkpoint()
        return total


def read_pairs(
    path: Path, normalise: Callable[[str], str], is_x: Callable[[str], bool], at: datetime
) -> Iterator[tuple[Binding, ...]]:
    """Read pairs from a CSV file, as ``Bindings.import_bindings``; BadInput comes in place of the end."""
    with opened(path) as text:
        file = CsvFile(path, text)
        columns = file.header(BINDING_COLUMNS, ["x", "b"])
        for row in file.rows():
            try:
                yield _pair(
                    {column: cell.strip() for column, cell in zip(columns, row, strict=True)}, normalise, is_x, at
                )
            except RowError as exc:
                file.note(str(exc))
        file.raise_if_wrong()


def _pair(
    row: dict[str, str], normalise: Callable[[str], str], is_x: Callable[[str], bool], at: datetime
) -> tuple[Binding, ...]:
    numbers = {}
    for column in ("x", "a", "b"):
        try:
            numbers[column] = normalise(row[column]) if row.get(column) or column != "a" else ""
        except BadNumber as exc:
            raise RowError(column, str(exc)) from exc
    if not is_x(numbers["x"]):
        raise RowError("x", f"{numbers['x']} is no privacy number in this country pack")
    if numbers["a"] == numbers["b"]:
        raise RowError("b", "is the same number as a")
    since = from_micros(moment(row.get("since", ""), "since")) or at
    until = from_micros(moment(row.get("until", ""), "until"))
    if until is not None and until <= since:
        raise RowError("until", "is not after since")
    longest = row.get("max_call_s", "")
    if longest and not (re.fullmatch("[0-9]{1,9}", longest) and 1 <= int(longest) <= LONGEST_CALL_S):
        raise RowError("max_call_s", f"is not a number of seconds from 1 to {LONGEST_CALL_S}")
    return pair(numbers["x"], numbers["a"], numbers["b"], since, until, int(longest) if longest else None)


def _staged(each: Binding) -> _StagedBinding:
    return (each.x, each.b, each.a, to_micros(each.since), to_micros(each.until), each.max_call_s)


def _binding(row: Row[Any]) -> Binding:
    return Binding(row.x, row.a, row.b, from_micros(row.since), from_micros(row.until), row.max_call_s)
