"""Whether the ledger is the one that was written, and the state the one that follows from it.

Knows the chain (``chain``) and the fold. Holds one line and the lines of one number at a time. Proof against
whoever can write to the database and recompute every hash is a head that was noted elsewhere.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, select, type_coerce
from sqlalchemy.types import NullType

from pbxguard.screening.lists import shown
from pbxguard.screening.registry import Floors
from pbxguard.store.chain import FIELDS, GENESIS, link
from pbxguard.store.database import Database
from pbxguard.store.schema import consent_event, consent_state

Progress = Callable[[str, int], None]
"""Called with what is being done and the number of rows so far, every few thousand."""

_EVERY = 5000


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found.

    Attributes:
        events: Lines of the ledger that are whole, up to the first that is not.
        head: The hash of the last of them, in hexadecimal.
        states: Rows of the state that were compared with the ledger.
        fault: The first thing that is wrong, a sentence, or "".
        event_id: The line that it is about, or None.
        number: The subscriber that it is about, or "".
    """

    events: int
    head: str
    states: int = 0
    fault: str = ""
    event_id: int | None = None
    number: str = ""


class _FaultFoundError(Exception):
    def __init__(self, fault: str, event_id: int | None = None, number: str = "") -> None:
        super().__init__(fault)
        self.event_id, self.number = event_id, number


class Audits(Database):
    """Checks what is kept."""

    def verify_ledger(
        self, *, head: bytes | None = None, count: int | None = None, progress: Progress | None = None
    ) -> Audit:
        """Check chain and state in one consistent view, in bounded memory; stop at the first fault.

        Args:
            head: A hash that was noted when it was the head; ``GENESIS`` of an empty ledger.
            count: How many events the ledger had then, where that was noted too.
            progress: Tells how far it is.
        """
        chain = _Chain(head, count)
        states = 0
        try:
            with self.reading() as connection:
                chain.check(connection, progress)
                for number, rows in groupby(_by_number(connection), key=itemgetter(0)):
                    states += _compare(number, rows)
                    if progress:
                        progress("comparing the state", states)
        except _FaultFoundError as found:
            return Audit(chain.events, chain.last.hex(), states, str(found), found.event_id, found.number)
        return Audit(chain.events, chain.last.hex(), states)


class _Chain:
    """One pass over the ledger, in the order of its ids."""

    def __init__(self, noted: bytes | None, count: int | None) -> None:
        self._noted, self._count = noted, count
        self.events, self.last = 0, GENESIS

    def check(self, connection: Connection, progress: Progress | None) -> None:
        found = self._is_noted()
        last_id: int | None = None
        streamed = connection.execution_options(yield_per=1000).execute(_LINES)
        for line in streamed:
            self._line(line, last_id)
            last_id = line[0]
            found = found or self._is_noted()
            if progress and self.events % _EVERY == 0:
                progress("checking the chain", self.events)
        if found or self._noted is None:
            return
        if self._count is not None and self.events < self._count:
            raise _FaultFoundError(
                f"{self._count} events were noted and {self.events} are there: the end of the ledger was cut off"
            )
        raise _FaultFoundError(
            "the noted head is not in this ledger: its end was cut off or rewritten, or it is not the ledger of "
            "which the head was noted"
        )

    def _is_noted(self) -> bool:
        """Whether the ledger up to here is the one whose head was noted."""
        if self._noted is None or self._count not in (None, self.events):
            return False
        if self.last == self._noted:
            return True
        if self._count is not None:
            raise _FaultFoundError(
                f"event {self._count} of the ledger has the hash {self.last.hex()}, not the noted one: the ledger "
                "was rewritten there or before"
            )
        return False

    def _line(self, line: Any, last_id: int | None) -> None:
        event_id, previous, own = line[:3]
        values = line[3:]
        whose = f"event {event_id} ({shown(str(values[0]))})"
        if type(previous) is not bytes or not _PLAIN.issuperset(map(type, values)) or link(previous, values) != own:
            raise _FaultFoundError(f"{whose} was changed after it was written", event_id, str(values[0]))
        if previous != self.last:
            after = "begin the ledger" if last_id is None else f"follow event {last_id}"
            raise _FaultFoundError(
                f"{whose} does not {after}: an event was removed, put in, moved or rewritten there",
                event_id,
                str(values[0]),
            )
        self.events, self.last = self.events + 1, own


def _by_number(connection: Connection) -> Iterator[tuple[str, int, Any]]:
    """Give ledger (0) and state (1) side by side, in the order of the numbers."""
    events, states = (
        connection.execution_options(yield_per=1000).execute(query) for query in (_EVENTS_OF, _STATES_OF)
    )
    return heapq.merge(
        ((str(row[0]), 0, row) for row in events),
        ((str(row[0]), 1, row) for row in states),
        key=itemgetter(0, 1),
    )


def _compare(number: str, rows: Iterable[tuple[str, int, Any]]) -> int:
    """Compare what the ledger says of one number with its state; give how many rows of state there were.

    A row of state that has been overtaken may still be there, as long as the ledger has it: no decision
    reads it.
    """
    said: dict[tuple[str, ...], dict[int, tuple[str, int | None]]] = {}
    recorded: dict[tuple[str, ...], int] = {}
    floors: Floors[tuple[str, ...], int] = Floors()
    states = 0
    held: set[tuple[tuple[str, ...], int]] = set()
    for _, kind, row in rows:
        key, (since, verb, until) = tuple(row[1:4]), row[4:7]
        if kind == 0:
            recorded_at, via = row[7:9]
            said.setdefault(key, {})[floors.since(key, since, via)] = verb, until
            recorded[key] = max(recorded_at, recorded.get(key, recorded_at))
            continue
        states += 1
        if said.get(key, {}).get(since) != (verb, until):
            raise _FaultFoundError(
                f"the state of {shown(number)} ({_words(key)}) is {shown(str(verb))}, which does not follow from "
                "the ledger",
                number=number,
            )
        held.add((key, since))
    for key, events in said.items():
        begun = max((since for since in events if since <= recorded[key]), default=None)
        for since, (verb, _) in events.items():
            if (begun is None or since >= begun) and (key, since) not in held:
                raise _FaultFoundError(
                    f"the state of {shown(number)} ({_words(key)}) lacks {shown(verb)}, which follows from the "
                    "ledger",
                    number=number,
                )
    return states


def _words(key: tuple[str, ...]) -> str:
    call_class, channel, caller = key
    return shown(f"{channel} of class {call_class}" + (f" from {caller}" if caller else ""))


_PLAIN = {str, int, type(None)}
_e, _s = consent_event.c, consent_state.c
# without the type's own conversion, which fails on what somebody wrote in by hand
_LINES = select(
    _e.id,
    type_coerce(_e.previous, NullType()),
    type_coerce(_e.hash, NullType()),
    *(_e[name] for name in FIELDS),
).order_by(_e.id)
_EVENTS_OF = select(
    *(_e.number, _e.call_class, _e.channel, _e.caller, _e.effective_at, _e.verb, _e.until),
    *(_e.recorded_at, _e.via),
).order_by(_e.number, _e.id)
_STATES_OF = select(_s.number, _s.call_class, _s.channel, _s.caller, _s.since, _s.verb, _s.until).order_by(
    *consent_state.primary_key
)
