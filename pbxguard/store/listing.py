"""The lists: entries added, removed, streamed, and imported by the million, all or nothing."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Integer, Row, Text, cast, delete, func, select

from pbxguard.errors import BadInput
from pbxguard.screening.lists import Action, ListEntry, pattern_keys, pattern_of
from pbxguard.store import sqlite
from pbxguard.store.database import Database
from pbxguard.store.listfile import StagedRow, check_texts, staged_csv
from pbxguard.store.schema import from_micros, list_entry, meta, to_micros
from pbxguard.store.upsert import batches, insert_for, upsert

_VERSION = "lists_version"
_STAGED_AT_ONCE = 10_000
_ONE_PER_ENTRY = list_entry.c.part == 0


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did, or would do.

    Attributes:
        rows: Entries read.
        added: Entries that are new.
        overwritten: Entries that took the place of one with the same owner, pattern and list, in the store
            or earlier in the same file.
        removed: Entries of the replaced list that were taken out first.
        lists_version: The version after it.
    """

    rows: int
    added: int
    overwritten: int
    removed: int
    dry_run: bool
    lists_version: str


class Listing(Database):
    """Changes and reads the lists. Patterns and owners are normalised already (home form)."""

    def add_entry(self, entry: ListEntry) -> None:
        """Store an entry, over the one with its owner, pattern and list if there is one."""
        self.add_entries([entry])

    def add_entries(self, entries: Sequence[ListEntry]) -> None:
        """Store a few entries that belong together, as ``add_entry``: all or none."""
        for entry in entries:
            check_texts(entry)
        columns = list_entry.columns.keys()
        rows = [dict(zip(columns, row, strict=True)) for entry in entries for row in staged(entry)]
        with self.writing() as connection:
            connection.execute(upsert(connection, list_entry), rows)
            _bump(connection)

    def entry(self, owner: str, pattern: str, name: str) -> ListEntry | None:
        """Give one entry, whether or not it holds now, or None."""
        with self.reading() as connection:
            row = connection.execute(select(list_entry).where(*_exactly(owner, pattern, name))).first()
        return None if row is None else _entry(row)

    def kept_by(self, reason: str, name: str) -> list[ListEntry]:
        """Give the retained entries of a list that were written for this reason; reads the whole list."""
        query = select(list_entry).where(
            _ONE_PER_ENTRY, *_chosen("", name), list_entry.c.retained == 1, list_entry.c.reason == reason
        )
        with self.reading() as connection:
            return [_entry(row) for row in connection.execute(query.order_by(*list_entry.primary_key))]

    def remove_entry(self, owner: str, pattern: str, name: str) -> bool:
        """Remove one entry; say whether there was one."""
        with self.writing() as connection:
            removed = connection.execute(delete(list_entry).where(*_exactly(owner, pattern, name))).rowcount > 0
            if removed:
                _bump(connection)
        return removed

    def entries(self, owner: str | None = None, name: str | None = None) -> Iterator[ListEntry]:
        """Give all entries, or those of one owner or list, streaming one consistent view.

        In the order of owner, then look-up key: prefixes and ranges of an owner come before numbers.
        """
        query = select(list_entry).where(_ONE_PER_ENTRY, *_chosen(owner, name))
        with self.reading() as connection:
            streamed = connection.execution_options(yield_per=1000)
            for row in streamed.execute(query.order_by(*list_entry.primary_key)):
                yield _entry(row)

    def count(self, owner: str | None = None, name: str | None = None) -> int:
        """Count entries; reads all of them, about a second for ten million."""
        with self.reading() as connection:
            return _count(connection, owner, name)

    def lists_version(self) -> str:
        """Give the number of changes made to the lists so far; goes into every decision record."""
        rows = self.query("SELECT value FROM meta WHERE name = 'lists_version'", ())
        return str(rows[0][0]) if rows else "0"

    def import_entries(
        self,
        rows: Iterable[ListEntry],
        *,
        replace: str | None = None,
        dry_run: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> ImportReport:
        """Store all of them or, if one fails, ``rows`` raises or the process dies, none.

        Decisions go on with the old entries until the commit. Other writers wait while the rows are moved
        in (not while they are read).

        Args:
            rows: The entries; an iterator is consumed as it comes, never held in memory.
            replace: Name of a list whose present entries are removed first, all owners; every row must
                belong to it.
            dry_run: Only tell what it would do.
            progress: Called with the number of rows read so far, every few thousand.
        """

        def checked() -> Iterator[StagedRow]:
            for entry in rows:
                check_texts(entry)
                yield from staged(entry)

        return self._import(checked(), replace, dry_run, progress)

    def import_csv(
        self,
        path: Path,
        normalise: Callable[[str], str],
        *,
        home: str,
        name: str = "system",
        only: bool = False,
        replace: str | None = None,
        dry_run: bool = False,
        progress: Callable[[int], None] | None = None,
        tags: Collection[str] = (),
        never_block: Callable[[str], bool] | None = None,
    ) -> ImportReport:
        """Import a CSV file: ``read_csv`` and ``import_entries`` in one, at twice the speed.

        Args:
            path: The file.
            normalise: As in ``read_csv``.
            home: As in ``read_csv``.
            name: The list of rows that do not name one.
            only: As in ``read_csv``.
            replace: As in ``import_entries``.
            dry_run: As in ``import_entries``.
            progress: As in ``import_entries``.
            tags: As in ``read_csv``.
            never_block: As in ``read_csv``.

        Raises:
            BadInput: The file has bad rows; the message lists the first of them.
        """
        rows = staged_csv(
            path, normalise, home=home, name=replace or name, only=only, tags=tags, never_block=never_block
        )
        return self._import(rows, replace, dry_run, progress)

    def _import(
        self,
        rows: Iterator[StagedRow],
        replace: str | None,
        dry_run: bool,
        progress: Callable[[int], None] | None,
    ) -> ImportReport:
        with self.plain_errors(), sqlite.Bulk(self._engine, list_entry) as bulk:
            total = 0
            for batch in batches(rows, _STAGED_AT_ONCE):
                if replace is not None:
                    _check_name(batch, replace)
                total += sum(1 for row in batch if row[4] == 0)
                bulk.stage(batch)
                if progress:
                    progress(total)
            if dry_run:
                added = bulk.count_staged(only="part = 0", new=replace is None)
                with bulk.connection.begin():
                    removed = _count(bulk.connection, None, replace) if replace is not None else 0
                return ImportReport(total, added, total - added, removed, True, self.lists_version())
            with bulk.connection.begin():
                removed = 0
                if replace is not None:
                    removed = _count(bulk.connection, None, replace)
                    _empty(bulk.connection, replace)
                before = _count(bulk.connection)
                bulk.move()
                added = _count(bulk.connection) - before
                version = _bump(bulk.connection)
            bulk.checkpoint()
        return ImportReport(total, added, total - added, removed, False, version)


def staged(entry: ListEntry) -> list[StagedRow]:
    """Give the rows of one entry, in the order of the table's columns: one for each look-up key."""
    span = _span(entry.pattern)
    tail = (
        *(str(entry.action), entry.source, entry.reason, entry.legal_basis, to_micros(entry.expires_at)),
        *(to_micros(entry.since), int(entry.retained), entry.document, to_micros(entry.lifted_at), entry.lift_reason),
    )
    keys = pattern_keys(entry.pattern)
    return [(entry.owner, key, entry.name, span, part, *tail) for part, key in enumerate(keys)]


def _span(pattern: str) -> str:
    return pattern if "-" in pattern else ""


def _check_name(batch: list[StagedRow], replace: str) -> None:
    for row in batch:
        if row[2] != replace:
            raise BadInput(
                f"lists: an entry for {row[3] or pattern_of(row[1])} belongs to list {row[2]!r}, but the "
                f"import replaces {replace!r}; import the lists one by one, or leave the name column out"
            )


def _exactly(owner: str, pattern: str, name: str) -> list[Any]:
    return [
        list_entry.c.owner == owner,
        list_entry.c.key.in_(pattern_keys(pattern)),
        list_entry.c.name == name,
        list_entry.c.span == _span(pattern),
    ]


def _chosen(owner: str | None, name: str | None) -> list[Any]:
    chosen: list[Any] = []
    if owner is not None:
        chosen.append(list_entry.c.owner == owner)
    if name is not None:
        chosen.append(list_entry.c.name == name)
    return chosen


def _count(connection: Connection, owner: str | None = None, name: str | None = None) -> int:
    query = select(func.count()).select_from(list_entry).where(_ONE_PER_ENTRY, *_chosen(owner, name))
    return connection.execute(query).scalar_one()


def _empty(connection: Connection, name: str) -> None:
    others = select(list_entry.c.name).where(list_entry.c.name != name).limit(1)
    if connection.execute(others).first() is None:
        connection.execute(delete(list_entry))  # without a condition SQLite drops whole pages
    else:
        connection.execute(delete(list_entry).where(list_entry.c.name == name))


def _bump(connection: Connection) -> str:
    statement = insert_for(connection, meta).values(name=_VERSION, value="1")
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[meta.c.name], set_={"value": cast(cast(meta.c.value, Integer) + 1, Text)}
        )
    )
    version = connection.execute(select(meta.c.value).where(meta.c.name == _VERSION)).scalar_one()
    return str(version)


def _entry(row: Row[Any]) -> ListEntry:
    return ListEntry(
        owner=row.owner,
        pattern=row.span or pattern_of(row.key),
        action=Action(row.action),
        name=row.name,
        source=row.source,
        reason=row.reason,
        legal_basis=row.legal_basis,
        expires_at=from_micros(row.expires_at),
        since=from_micros(row.since),
        retained=bool(row.retained),
        document=row.document,
        lifted_at=from_micros(row.lifted_at),
        lift_reason=row.lift_reason,
    )
