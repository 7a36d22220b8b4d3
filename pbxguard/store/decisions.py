"""What was decided about each call, kept for *explain* until the site's retention ends."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, delete, func, insert, or_, select

from pbxguard.store.database import Database
from pbxguard.store.schema import decision as table
from pbxguard.store.schema import from_micros, to_micros
from pbxguard.store.upsert import batches


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """One decision as it is kept. Texts that the caller wrote are cut and made printable on the way in.

    Attributes:
        at: When the call arrived, aware.
        cli_key: The CLI in home form, or None; ``callee_key`` likewise.
        verdict: ``allow``, ``block`` or ``failed``.
        rule: Id of the rule that decided; ``detail`` is its one sentence.
        entry: The list entry that decided: pattern, list name and source; "" for none.
        sip_status: What the PBX was told to answer; None for a call let through.
        prompt: Name of the prompt; "" for none.
        elapsed_us: Time that the decision took, microseconds.
        extra: Anything else that JSON can hold.
    """

    call_id: str
    at: datetime
    channel: str
    trunk: str
    cli_raw: str
    cli_key: str | None
    cli_class: str
    callee_raw: str
    callee_key: str | None
    verdict: str
    reason: str
    labels: tuple[str, ...] = ()
    rule: str = ""
    detail: str = ""
    entry: str = ""
    pack: str = ""
    lists_version: str = ""
    sip_status: int | None = None
    prompt: str = ""
    elapsed_us: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


class Decisions(Database):
    """Records decisions in batches and finds them again."""

    def record(self, rows: Sequence[DecisionRow]) -> None:
        """Write all of them in one transaction."""
        if rows:
            values = [_values(row) for row in rows]
            with self.writing() as connection:
                connection.execute(insert(table), values)

    def decision(self, call_id: str) -> DecisionRow | None:
        """Give the newest decision about a Call-ID, or None."""
        query = select(table).where(table.c.call_id == safe(call_id, 200))
        return next(self._rows(query.order_by(table.c.id.desc()).limit(1)), None)

    def recent(self, limit: int = 50) -> tuple[DecisionRow, ...]:
        """Give the newest decisions, the newest first."""
        return tuple(self._rows(select(table).order_by(table.c.id.desc()).limit(limit)))

    def call_ids(self, beginning: str, limit: int) -> tuple[str, ...]:
        """Give the different Call-IDs with that beginning, at most *limit*, in their order."""
        beginning = safe(beginning, 200)
        if not beginning:
            return ()
        # Kept text is printable: nothing that begins so comes after the last character of all.
        query = select(table.c.call_id).where(
            table.c.call_id >= beginning, table.c.call_id < beginning + "\U0010ffff"
        )
        with self.reading() as connection:
            found = connection.execute(query.distinct().order_by(table.c.call_id).limit(limit)).scalars().all()
        return tuple(found)

    def iter_decisions(self, since: datetime | None = None, until: datetime | None = None) -> Iterator[DecisionRow]:
        """Give the decisions about calls that arrived in ``[since, until)``, in the order of their times.

        A thousand at a time, each from a view of its own: no writer waits, and the log of writes does not grow.
        """
        time, number = table.c.at, table.c.id
        query = select(table).where(*_between(since, until)).order_by(time, number).limit(1000)
        last = query
        while True:
            with self.reading() as connection:
                found = connection.execute(last).all()
            for row in found:
                yield _row(row)
            if not found:
                return
            at, serial = found[-1].at, found[-1].id
            # The first condition is what the index of times is asked with.
            last = query.where(time >= at, or_(time > at, number > serial))

    def count_decisions(self, since: datetime | None = None, until: datetime | None = None) -> int:
        """Count the decisions that are kept, about calls that arrived in ``[since, until)``."""
        query = select(func.count()).select_from(table).where(*_between(since, until))
        with self.reading() as connection:
            return connection.execute(query).scalar_one()

    def prune_decisions(self, before: datetime) -> int:
        """Remove decisions about calls that arrived before that time; give how many.

        A few thousand a transaction, so that no other writer waits long.
        """
        removed = 0
        old = select(table.c.id).where(table.c.at < to_micros(before)).order_by(table.c.at)
        while True:
            with self.reading() as connection:
                ids = connection.execute(old.limit(5000)).scalars().all()
            if not ids:
                return removed
            for batch in batches(ids, 500):
                with self.writing() as connection:
                    removed += connection.execute(delete(table).where(table.c.id.in_(batch))).rowcount

    def _rows(self, query: Select[Any]) -> Iterator[DecisionRow]:
        with self.reading() as connection:
            found = connection.execute(query).all()
        return (_row(row) for row in found)


def _between(since: datetime | None, until: datetime | None) -> list[ColumnElement[bool]]:
    wanted = []
    if since is not None:
        wanted.append(table.c.at >= to_micros(since))
    if until is not None:
        wanted.append(table.c.at < to_micros(until))
    return wanted


def safe(text: str, limit: int) -> str:
    """Make text from the wire storable: at most ``limit`` characters, no NUL, no half characters.

    Lone surrogates (bytes that were no UTF-8) and control characters become backslash escapes.
    """
    if text.isascii() and text.isprintable():
        return text[:limit]
    shown = "".join(char if char.isprintable() else _escape(char) for char in text[:limit])
    return shown[:limit]


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")


def _values(row: DecisionRow) -> dict[str, Any]:
    return {
        "call_id": safe(row.call_id, 200),
        "at": to_micros(row.at),
        "channel": str(row.channel),
        "trunk": safe(row.trunk, 100),
        "cli_raw": safe(row.cli_raw, 200),
        "cli_key": row.cli_key,
        "cli_class": row.cli_class,
        "callee_raw": safe(row.callee_raw, 200),
        "callee_key": row.callee_key,
        "verdict": row.verdict,
        "reason": str(row.reason),
        "labels": json.dumps([str(label) for label in row.labels]),
        "rule": row.rule,
        "detail": safe(row.detail, 500),
        "entry": safe(row.entry, 500),
        "pack": row.pack,
        "lists_version": row.lists_version,
        "sip_status": row.sip_status,
        "prompt": row.prompt,
        "elapsed_us": row.elapsed_us,
        "extra": json.dumps(row.extra),  # ASCII: whatever the caller wrote is escaped
    }


def _row(row: Row[Any]) -> DecisionRow:
    values = dict(row._mapping)  # noqa: SLF001 - the documented way to a row's names
    del values["id"]
    values["at"] = from_micros(values["at"])
    values["labels"] = tuple(json.loads(values["labels"]))
    values["extra"] = json.loads(values["extra"])
    return DecisionRow(**values)
