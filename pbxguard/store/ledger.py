"""The consent ledger, append-only, and the state folded from it, which decisions read.

A ledger line and the state that follows from it are committed together, before the call returns: whoever
is told "you are opted in" is, from the next call on.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import Row, Select, bindparam, delete, func, insert, select

from pbxguard.errors import BadInput
from pbxguard.screening.registry import CallClass, Consent, ConsentEvent, Verb
from pbxguard.store.database import Database
from pbxguard.store.schema import consent_event, consent_state, from_micros, to_micros
from pbxguard.store.upsert import batches, upsert

MAX_EVIDENCE = 500
"""Characters of free text that one event may carry."""


class Ledger(Database):
    """Appends consent events and reads them back. Numbers are in home form."""

    def append(self, event: ConsentEvent) -> None:
        """Write one event; it is on the disk, and holds for the next call, when this returns."""
        self.append_many([event])

    def append_many(self, events: Iterable[ConsentEvent]) -> int:
        """Write all of them or, if one fails or ``events`` raises, none; give their number.

        The state keeps, of each key (number, class, channel, caller), the newest event that had begun when
        it was recorded, and those dated ahead of that.

        Raises:
            BadInput: An event's end is not after its start, or a text is too long or not printable.
        """
        total = 0
        with self.writing() as connection:
            state = upsert(connection, consent_state)
            for batch in batches(events):
                rows = [_event_row(event) for event in batch]
                connection.execute(insert(consent_event), rows)
                connection.execute(state, [{name: row[name] for name in _STATE} for row in rows])
                connection.execute(
                    _FORGET,
                    [{f"b_{name}": row[name] for name in (*_KEY, "recorded_at")} for row in rows],
                )
                total += len(rows)
        return total

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
                yield _event(row)

    def state(self, number: str) -> tuple[Consent, ...]:
        """Give the folded state of one number: what holds, and what is dated ahead."""
        query = select(consent_state).where(consent_state.c.number == number)
        with self.reading() as connection:
            rows = connection.execute(query.order_by(*consent_state.primary_key)).all()
        return tuple(_consent(row) for row in rows)


_KEY = ("number", "call_class", "channel", "caller")
_STATE = (*_KEY, "since", "verb", "until")


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


def _event_row(event: ConsentEvent) -> dict[str, Any]:
    if event.until is not None and event.until <= event.effective_at:
        raise BadInput(f"registry: the consent of {event.number} ends before it begins; give a later end")
    if len(event.evidence) > MAX_EVIDENCE or len(event.actor) > 100:
        raise BadInput(
            f"registry: evidence of {event.number} is longer than {MAX_EVIDENCE} characters, or its actor "
            "than 100; give a reference instead"
        )
    if not (event.evidence + event.actor).isprintable():
        raise BadInput(f"registry: evidence or actor of {event.number} holds a control character; leave it out")
    effective_at = to_micros(event.effective_at)
    return {
        "number": event.number,
        "call_class": str(event.call_class),
        "channel": str(event.channel),
        "caller": event.caller,
        "verb": str(event.verb),
        "effective_at": effective_at,
        "since": effective_at,
        "until": to_micros(event.until),
        "recorded_at": to_micros(event.recorded_at),
        "actor": event.actor,
        "via": event.via,
        "evidence": event.evidence,
    }


def _event(row: Row[Any]) -> ConsentEvent:
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
