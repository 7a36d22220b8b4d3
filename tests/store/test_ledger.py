"""The consent ledger and the state that decisions read."""

import itertools
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.dialects import postgresql

from pbxguard.errors import BadInput, StoreUnavailable
from pbxguard.screening.registry import CallClass, ConsentEvent, Verb, consent_of, fold, key_of, opened, standing
from pbxguard.store import Store, ledger

NOW = datetime(2026, 11, 21, 12, 0, 0, 654321, tzinfo=UTC)
ME = "13957100001"


def event(verb: Verb = Verb.OPEN, hours: int = 0, **fields: object) -> ConsentEvent:
    made = ConsentEvent(
        number=ME,
        call_class=CallClass.HMT,
        channel="voice",
        verb=verb,
        effective_at=NOW + timedelta(hours=hours),
        recorded_at=NOW,
        actor="cli:root",
        via="cli",
        evidence="form 17",
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def test_history_gives_back_what_was_appended(store: Store) -> None:
    """Every field of an event survives, in the order of the ledger; other numbers are not in it."""
    events = [
        event(until=NOW + timedelta(days=1), caller="+85261234567"),
        event(Verb.CLOSE, 1, channel="sms", evidence="短信 ✓"),
    ]
    store.append(events[0])
    store.append_many([event(number="13357100002"), events[1]])
    assert store.history(ME) == tuple(events)
    assert len(list(store.iter_events())) == 3


def test_open_close_open_is_answered_by_the_newest(store: Store) -> None:
    """Each append changes the answer of the next look-up."""
    at = NOW + timedelta(hours=9)
    for hours, (verb, let_through) in enumerate([(Verb.OPEN, True), (Verb.CLOSE, False), (Verb.OPEN, True)]):
        store.append(event(verb, hours, recorded_at=NOW + timedelta(hours=hours)))
        consents = store.facts(None, (ME,)).consents
        assert consents == store.state(ME)
        assert (opened(consents, ME, CallClass.HMT, "voice", None, at) is not None) is let_through
    assert len(store.state(ME)) == 1
    assert len(store.history(ME)) == 3


def test_event_dated_ahead_leaves_the_present_as_it_is(store: Store) -> None:
    """A close for tomorrow is kept beside today's consent, and takes over at its time."""
    store.append_many([event(), event(Verb.CLOSE, 24)])
    for hours, let_through in ((23, True), (24, False)):
        at = NOW + timedelta(hours=hours)
        held = opened(store.facts(None, (ME,)).consents, ME, CallClass.HMT, "voice", None, at)
        assert (held is not None) is let_through


def test_old_event_that_arrives_late_changes_nothing(store: Store) -> None:
    """An imported event that is older than the state goes to the ledger only."""
    store.append(event())
    store.append(event(Verb.CLOSE, -5, recorded_at=NOW + timedelta(hours=1)))
    assert store.state(ME) == (consent_of(event()),)
    assert len(store.history(ME)) == 2


events = st.builds(
    event,
    verb=st.sampled_from(Verb),
    hours=st.integers(-3, 3),
    channel=st.sampled_from(["voice", "sms"]),
    caller=st.sampled_from(["", "+85261234567"]),
    via=st.sampled_from(["cli", "cutover"]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(events, max_size=4), max_size=4))
def test_state_is_the_fold_of_the_ledger(store: Store, batches: list[list[ConsentEvent]]) -> None:
    """However it is cut into appends, the newest state of each key is the pure fold of the ledger."""
    emptied(store)
    for batch in batches:
        store.append_many(batch)
    newest = {key_of(consent): consent for consent in store.state(ME)}  # in the order of since
    assert newest == fold([e for batch in batches for e in batch])


def emptied(store: Store) -> None:
    """A ledger as new, for the next example of one test."""
    raw = sqlite3.connect(store.path)
    raw.executescript(
        "DROP TRIGGER consent_event_no_delete; DELETE FROM consent_event; DELETE FROM consent_state;"
        "CREATE TRIGGER consent_event_no_delete BEFORE DELETE ON consent_event "
        "BEGIN SELECT RAISE(ABORT, 'the consent ledger is append-only'); END"
    )
    raw.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ledger=st.lists(st.tuples(events, st.integers(0, 4))),
    cuts=st.lists(st.integers(0, 30), max_size=4),
    ahead=st.booleans(),
)
def test_state_table_is_what_stands(
    store: Store, ledger: list[tuple[ConsentEvent, int]], cuts: list[int], ahead: bool
) -> None:
    """After any sequence of opens, closes and resets, cut anyhow, the table is the pure fold, and verify says so."""
    emptied(store)
    # the clock goes on from line to line
    hours, timed = 0, []
    for made, step in ledger:
        hours += step
        timed.append(replace(made, recorded_at=NOW + timedelta(hours=hours - (5 if ahead else 0))))
    bounds = [0, *sorted(min(cut, len(timed)) for cut in cuts), len(timed)]
    for start, stop in itertools.pairwise(bounds):
        store.append_many(timed[start:stop])
    assert {(key_of(c), c.since): c for c in store.state(ME)} == standing(timed)
    found = store.verify_ledger()
    assert (found.fault, found.events, found.states) == ("", len(timed), len(standing(timed)))
    assert store.head() == (len(timed), found.head)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ledger=st.lists(st.tuples(events, st.integers(-9, 9))), cuts=st.lists(st.integers(0, 30), max_size=4))
def test_clock_that_goes_back_is_no_fault(
    store: Store, ledger: list[tuple[ConsentEvent, int]], cuts: list[int]
) -> None:
    """Whatever times an import brings, the newest of each key is in the table and verify finds no fault."""
    emptied(store)
    timed = [replace(made, recorded_at=NOW + timedelta(hours=hours)) for made, hours in ledger]
    bounds = [0, *sorted(min(cut, len(timed)) for cut in cuts), len(timed)]
    for start, stop in itertools.pairwise(bounds):
        store.append_many(timed[start:stop])
    assert {key_of(consent): consent for consent in store.state(ME)} == fold(timed)
    assert store.verify_ledger().fault == ""


_WRITE = """
import sys
from datetime import UTC, datetime
from pbxguard.screening.registry import CallClass, ConsentEvent, Verb
from pbxguard.store import Store
with Store.open(sys.argv[1]) as store:
    for n in range(60):
        now = datetime.now(UTC)
        event = ConsentEvent(sys.argv[2], CallClass.HMT, "voice", Verb.OPEN, now, now, sys.argv[2], "cli")
        store.append_many([event] * (1 + n % 3))
"""


def test_two_processes_write_one_chain(store: Store) -> None:
    """Two programs that append at the same time leave one whole chain with all lines of both."""
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITE, store.path, number], env=dict(os.environ))
        for number in (ME, "13957100002")
    ]
    assert [writer.wait(100) for writer in writers] == [0, 0]
    found = store.verify_ledger()
    assert (found.fault, found.events) == ("", 240)
    for number in (ME, "13957100002"):
        assert len(store.history(number)) == 120


def test_two_writers_cannot_follow_one_line(store: Store) -> None:
    """The id of a line is one more than the last: of two that were to follow the same line, the key refuses one."""
    store.append(event())
    raw = sqlite3.connect(store.path)
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        raw.execute("INSERT INTO consent_event SELECT * FROM consent_event")
    raw.close()


def test_statements_of_an_append_compile_for_postgresql() -> None:
    """Ledger, state and what is put out of force: nothing that only SQLite understands."""
    dialect = postgresql.dialect(paramstyle="format")  # type: ignore[no-untyped-call]
    insert, state, forget = (sql for sql, _ in ledger._compiled(dialect))
    assert "INSERT INTO consent_event" in insert
    assert "ON CONFLICT" in state
    assert "DELETE" in forget


@pytest.mark.parametrize("sql", ["DELETE FROM consent_event", "UPDATE consent_event SET verb = 'open'"])
def test_ledger_refuses_to_be_changed(store: Store, sql: str) -> None:
    """No line of the ledger can be changed or removed, neither by the program nor by hand."""
    store.append(event(Verb.CLOSE))
    with pytest.raises(StoreUnavailable, match="append-only"), store.writing() as connection:
        connection.execute(text(sql))
    raw = sqlite3.connect(store.path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        raw.execute(sql)
    raw.close()
    assert store.history(ME) == (event(Verb.CLOSE),)


def test_failing_batch_leaves_ledger_and_state_as_they_were(store: Store) -> None:
    """Ledger and state change together or not at all."""

    def broken() -> Iterator[ConsentEvent]:
        yield from [event(hours=n) for n in range(6000)]
        raise BadInput("line 6001: no such class")

    with pytest.raises(BadInput, match="6001"):
        store.append_many(broken())
    for bad in (event(until=NOW), event(evidence="x" * 501), event(actor="a\x1b[31m"), event(actor="\udcff")):
        with pytest.raises(BadInput, match=ME):
            store.append_many([event(), bad])
    assert store.history(ME) == ()
    assert store.state(ME) == ()


def test_bytes_that_are_no_text_are_bad_input(store: Store) -> None:
    """An argument with broken UTF-8 is named in one line, not with a traceback."""
    with pytest.raises(BadInput, match="UTF-8"):
        store.append(event(via="\udcff"))
    assert store.history(ME) == ()


def test_times_without_zone_are_refused(store: Store) -> None:
    """A naive time is a programming error, never stored as if it were UTC."""
    with pytest.raises(ValueError, match="time zone"):
        store.append(event(effective_at=datetime(2026, 1, 1)))  # noqa: DTZ001
    assert store.history(ME) == ()
