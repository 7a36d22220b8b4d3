"""The consent ledger and the state that decisions read."""

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from pbxguard.errors import BadInput, StoreUnavailable
from pbxguard.screening.registry import CallClass, ConsentEvent, Verb, consent_of, fold, key_of, opened
from pbxguard.store import Store

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
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(events, max_size=4), max_size=4))
def test_state_is_the_fold_of_the_ledger(store: Store, batches: list[list[ConsentEvent]]) -> None:
    """However it is cut into appends, the newest state of each key is the pure fold of the ledger."""
    with store.writing() as connection:
        connection.execute(text("DELETE FROM consent_state"))
    for batch in batches:
        store.append_many(batch)
    newest = {key_of(consent): consent for consent in store.state(ME)}  # in the order of since
    assert newest == fold([e for batch in batches for e in batch])


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
