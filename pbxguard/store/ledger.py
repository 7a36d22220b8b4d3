"""The consent ledger, append-only and chained, and the state folded from it, which decisions read.

A ledger line and the state that follows from it are committed together, before the call returns: whoever
is told "you are opted in" is, from the next call on.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Dialect, Row, Select, bindparam, delete, func, insert, select

from pbxguard.screening.registry import CUTOVER, CallClass, Consent, ConsentEvent, Floors, Verb
from pbxguard.store.chain import FIELDS, GENESIS, link
from pbxguard.store.database import Database
from pbxguard.store.ledgerfile import Told, check_event, read_events
from pbxguard.store.schema import consent_event, consent_state, from_micros, to_micros
from pbxguard.store.upsert import batches, upsert_for


@dataclass(frozen=True, slots=True)
class LedgerImport:
    """What an import did, or would do: events read, and those of them that the ledger did not have."""

    rows: int
    added: int


class Ledger(Database):
    """Appends consent events and reads them back. Numbers are in home form."""

    def append(self, event: ConsentEvent) -> None:
        """Write one event; it is on the disk, and holds for the next call, when this returns."""
        self.append_many([event])

    def append_many(self, events: Iterable[ConsentEvent]) -> int:
        """Write all of them or, if one fails or ``events`` raises, none; give their number.

        The state keeps, of each key (number, class, channel, caller), the newest event that had begun when
        it was recorded, and those dated ahead of that, as ``registry.standing``.

        Raises:
            BadInput: An event's end is not after its start, or a text is too long or not printable.
        """
        with self.writing() as connection:
            first, last = append(connection, events)
        return last - first + 1

    def import_events(
        self,
        path: Path,
        normalise: Callable[[str], str],
        *,
        now: datetime,
        actor: str,
        restore: bool = False,
        dry_run: bool = False,
        progress: Callable[[str, int], None] | None = None,
    ) -> LedgerImport:
        """Append the events of a CSV file, all of them or, if a row is wrong, none.

        An event that the ledger has already is left out, so that an import may be run again. The file is
        read twice: other writers wait while events are appended, not while the file is checked.

        Args:
            path: The file; ``ledgerfile`` has its columns.
            normalise: Number as typed -> home form; raises BadNumber.
            now: When the events are recorded.
            actor: Who did it.
            restore: Take these, and ``via``, from the file, as ``ledgerfile.read_events``.
            dry_run: Only tell what it would do.
            progress: Called with what is being done and the number of rows so far, every few thousand.

        Raises:
            BadInput: The file cannot be read or has bad rows; the message lists the first of them.
        """

        def told(doing: str) -> Iterator[list[Told]]:
            done = 0
            for batch in batches(read_events(path, normalise, now=now, actor=actor, restore=restore)):
                yield batch
                done += len(batch)
                if progress:
                    progress(doing, done)

        def new(connection: Connection, last: int) -> Iterator[ConsentEvent]:
            for batch in told("looking them up" if dry_run else "appending"):
                yield from _unknown(connection, batch, last)

        rows = sum(len(batch) for batch in told("checking"))
        if dry_run:
            with self.reading() as connection:
                return LedgerImport(rows, sum(1 for _ in new(connection, head_of(connection)[0])))
        with self.writing() as connection:
            first, last = append(connection, new(connection, head_of(connection)[0]))
        return LedgerImport(rows, last - first + 1)

    def head(self) -> tuple[int, str]:
        """Give the number of events and the hash of the last one, in hexadecimal: to be noted elsewhere."""
        with self.reading() as connection:
            count = connection.execute(select(func.count()).select_from(consent_event)).scalar_one()
            return count, head_of(connection)[1].hex()

    def history(self, number: str) -> tuple[ConsentEvent, ...]:
        """Give the ledger of one number, oldest line first."""
        return tuple(self.iter_events(number))

    def iter_events(self, number: str | None = None) -> Iterator[ConsentEvent]:
        """Give the ledger in its order, of one number or of all, streaming one consistent view."""
        query: Select[Any] = select(consent_event).order_by(consent_event.c.id)
        if number is not None:
            query = query.where(consent_event.c.number == number)
        with self.reading() as connection:
            for row in connection.execution_options(yield_per=1000).execute(query):
                yield event_of(row)

    def state(self, number: str) -> tuple[Consent, ...]:
        """Give the folded state of one number: what holds, and what is dated ahead."""
        query = select(consent_state).where(consent_state.c.number == number)
        with self.reading() as connection:
            rows = connection.execute(query.order_by(*consent_state.primary_key)).all()
        return tuple(_consent(row) for row in rows)


def head_of(connection: Connection) -> tuple[int, bytes]:
    """Give id and hash of the last line; 0 and ``GENESIS`` where there is none."""
    row = connection.execute(_HEAD).first()
    return (0, GENESIS) if row is None else (row.id, row.hash)


def append(connection: Connection, events: Iterable[ConsentEvent]) -> tuple[int, int]:
    """Append to ledger and state within the transaction of a writer; give the first and the last new id.

    The first is one more than the last where there was nothing to append.

    Raises:
        BadInput: As ``Ledger.append_many``.
    """
    last, previous = head_of(connection)
    first = last + 1
    statements = _compiled(connection.dialect)
    for batch in batches(events):
        rows = [_event_row(event) for event in batch]
        floors = Floors(_cutover_lines(connection, rows) if last else None)
        for row in rows:
            row["since"] = floors.since(_key(row), row["effective_at"], row["via"])
            # Not left to the database: of two writers that were to follow the same line, the key refuses one.
            last += 1
            row["id"], row["previous"] = last, previous
            previous = row["hash"] = link(previous, _hashed(row))
        for sql, picked in statements:
            connection.exec_driver_sql(sql, list(map(picked, rows)))
    return first, last


def _cutover_lines(connection: Connection, rows: list[dict[str, Any]]) -> dict[tuple[str, ...], int]:
    """Give the newest line of a cut-over about each key of these numbers."""
    e = consent_event.c
    keys = [e[name] for name in _KEY]
    found: dict[tuple[str, ...], int] = {}
    for numbers in batches(dict.fromkeys(row["number"] for row in rows), 500):
        query = select(*keys, func.max(e.effective_at)).where(e.number.in_(numbers), e.via == CUTOVER)
        for *key, newest in connection.execute(query.group_by(*keys)):
            found[tuple(key)] = newest
    return found


def _unknown(connection: Connection, told: list[Told], last: int) -> Iterator[ConsentEvent]:
    """Give the events that are not among the lines up to id ``last``."""
    if last == 0:
        yield from (event for event, _ in told)
        return
    rows = [_event_row(event) for event, _ in told]
    # What the file leaves to us is different in every run, so it is not compared.
    named = [tuple(name for name in FIELDS if name not in silent) for _, silent in told]
    asked = [(names, tuple([row[name] for name in names])) for names, row in zip(named, rows, strict=True)]
    wanted, kinds, found = set(asked), set(named), set()
    for numbers in batches(dict.fromkeys(row["number"] for row in rows), 500):
        query = select(consent_event).where(consent_event.c.number.in_(numbers), consent_event.c.id <= last)
        with closing(connection.execution_options(yield_per=1000).execute(query)) as lines:
            for line in lines.mappings():
                for names in kinds:
                    known = names, tuple([line[name] for name in names])
                    if known in wanted:
                        found.add(known)
    yield from (event for (event, _), key in zip(told, asked, strict=True) if key not in found)


_HEAD = select(consent_event.c.id, consent_event.c.hash).order_by(consent_event.c.id.desc()).limit(1)
_hashed = itemgetter(*FIELDS)
_KEY = ("number", "call_class", "channel", "caller")
_key = itemgetter(*_KEY)


def _same_key(table: Any) -> list[Any]:
    return [table.c[name] == bindparam(f"b_{name}") for name in _KEY]


_newer = consent_state.alias("newer")
_FORGET = delete(consent_state).where(
    *_same_key(consent_state),
    consent_state.c.since
    < select(func.max(_newer.c.since))
    .where(*_same_key(_newer), _newer.c.since <= bindparam("b_recorded_at"))
    .scalar_subquery(),
)
"""Removes from the state what a newer event that has begun puts out of force."""


@lru_cache(maxsize=4)
def _compiled(dialect: Dialect) -> tuple[tuple[str, Callable[[dict[str, Any]], tuple[Any, ...]]], ...]:
    """Give the three statements of an append as SQL, and what takes their parameters from a row, in order.

    Run by SQLAlchemy itself they take twice as long, most of it to sort the parameters of each row anew.
    """
    made = []
    for statement in (insert(consent_event), upsert_for(dialect, consent_state), _FORGET):
        query = statement.compile(dialect=dialect)
        if query.positiontup is None:
            raise NotImplementedError(f"{dialect.name}: the driver must take positional parameters")
        made.append((str(query), itemgetter(*[name.removeprefix("b_") for name in query.positiontup])))
    return tuple(made)


def _event_row(event: ConsentEvent) -> dict[str, Any]:
    check_event(event)
    return {
        "number": event.number,
        "call_class": str(event.call_class),
        "channel": str(event.channel),
        "caller": event.caller,
        "verb": str(event.verb),
        "effective_at": to_micros(event.effective_at),
        "until": to_micros(event.until),
        "recorded_at": to_micros(event.recorded_at),
        "actor": event.actor,
        "via": event.via,
        "evidence": event.evidence,
    }


def event_of(row: Row[Any]) -> ConsentEvent:
    """Give the event of a line."""
    return ConsentEvent(
        number=row.number,
        call_class=CallClass(row.call_class),
        channel=row.channel,
        verb=Verb(row.verb),
        effective_at=from_micros(row.effective_at),
        recorded_at=from_micros(row.recorded_at),
        actor=row.actor,
        via=row.via,
        until=from_micros(row.until),
        caller=row.caller,
        evidence=row.evidence,
    )


def _consent(row: Row[Any]) -> Consent:
    return Consent(
        number=row.number,
        call_class=CallClass(row.call_class),
        channel=row.channel,
        verb=Verb(row.verb),
        since=from_micros(row.since),
        until=from_micros(row.until),
        caller=row.caller,
    )
