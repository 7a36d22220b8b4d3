"""Consent events folded into state, and what the state lets through."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbxguard.screening.registry import (
    CallClass,
    Consent,
    ConsentEvent,
    Verb,
    closed,
    consent_of,
    fold,
    key_of,
    opened,
    standing,
)

T0 = datetime(2026, 1, 1, tzinfo=UTC)
ME, CALLER = "13957100001", "+85261234567"


def event(verb: Verb, day: int, until: int | None = None, **fields: str) -> ConsentEvent:
    return ConsentEvent(
        number=ME,
        call_class=CallClass.HMT,
        channel=fields.get("channel", "voice"),
        verb=verb,
        effective_at=T0 + timedelta(days=day),
        recorded_at=T0,
        actor="test",
        via=fields.get("via", "cli"),
        until=None if until is None else T0 + timedelta(days=until),
        caller=fields.get("caller", ""),
    )


def ask(*consents: Consent, day: float, caller: str | None = CALLER, channel: str = "voice") -> Consent | None:
    return opened(consents, ME, CallClass.HMT, channel, caller, T0 + timedelta(days=day))


events = st.builds(
    event,
    verb=st.sampled_from(Verb),
    day=st.integers(0, 3),
    until=st.sampled_from([None, 9]),
    caller=st.sampled_from(["", CALLER]),
    channel=st.sampled_from(["voice", "sms"]),
)
closings = st.builds(
    event, verb=st.sampled_from([Verb.CLOSE, Verb.RESET]), day=st.integers(0, 3), via=st.just("cutover")
)


@given(st.lists(st.one_of(events, closings)))
def test_own_act_has_the_last_word_over_a_cut_over(ledger: list[ConsentEvent]) -> None:
    """Whatever their dates, what the last line of a key says holds at the end if it is an own act after a cut-over's.

    Unless another own act bears a date after those of all cut-overs before it: that one is newer, or ahead.
    """
    for key, consent in fold(ledger).items():
        mine = [e for e in ledger if key_of(e) == key]
        closed_by = [n for n, e in enumerate(mine) if e.via == "cutover"]
        if not closed_by or closed_by[-1] == len(mine) - 1:
            continue
        newest = max(mine[n].effective_at for n in closed_by)
        later = [e for e in mine if e.via != "cutover" and e.effective_at > newest]
        expected = max(reversed(later), key=lambda e: e.effective_at) if later else mine[-1]
        assert (consent.verb, consent.until) == (expected.verb, expected.until)
        assert consent.since == max(newest, expected.effective_at)


def test_paper_form_that_comes_in_late() -> None:
    """An opening of before the cut-over, recorded after it, opens; a closing after that closes, of any date."""
    shut = event(Verb.CLOSE, 2, via="cutover")
    form, back = event(Verb.OPEN, 1), event(Verb.CLOSE, 0)
    assert ask(*fold([shut, form]).values(), day=3) is not None
    assert ask(*fold([form, shut]).values(), day=3) is None, "what was recorded before is what the cut-over looked at"
    assert ask(*fold([shut, form, back]).values(), day=3) is None
    assert ask(*fold([shut, event(Verb.RESET, 2, via="cutover"), form]).values(), day=3) is not None
    ahead = standing([shut, event(Verb.OPEN, 4)]).values()
    assert ask(*ahead, day=3) is None
    assert ask(*ahead, day=4) is not None


@given(st.lists(events))
def test_newest_event_wins_and_ties_go_to_the_later_line(ledger: list[ConsentEvent]) -> None:
    """Each key holds its event with the newest effective time, the last in the ledger of those."""
    for key, consent in fold(ledger).items():
        mine = [e for e in ledger if (e.number, e.call_class, e.channel, e.caller) == key]
        newest = max(e.effective_at for e in mine)
        assert consent == consent_of([e for e in mine if e.effective_at == newest][-1])


@given(st.lists(st.one_of(events, closings)))
def test_standing_holds_the_fold(ledger: list[ConsentEvent]) -> None:
    """What the store must know of a ledger holds the newest of each key, and only what has not been overtaken."""
    kept = standing(ledger)
    assert {key_of(c): c for _, c in sorted(kept.items(), key=lambda item: item[0][1])} == fold(ledger)
    for (key, since), consent in kept.items():
        assert (key_of(consent), consent.since) == (key, since)
        begun = [s for k, s in kept if k == key and s <= T0]
        assert len(begun) <= 1


def test_closing_that_was_taken_back_is_no_answer() -> None:
    """After a reset nothing is open and nothing closed, whatever came before; what comes after counts again."""
    shut, back = event(Verb.CLOSE, 1), event(Verb.RESET, 1)
    at = T0 + timedelta(days=2)
    state = fold([event(Verb.OPEN, 0), shut, back]).values()
    assert ask(*state, day=2) is None
    assert closed(state, ME, CallClass.HMT, "voice", at) is None
    again = fold([shut, back, event(Verb.OPEN, 1)]).values()
    assert ask(*again, day=2) is not None
    assert closed(fold([shut, back, shut]).values(), ME, CallClass.HMT, "voice", at) is not None


def test_consent_holds_from_since_to_just_before_until() -> None:
    """A consent is half-open: its first moment counts, its last does not."""
    consent = consent_of(event(Verb.OPEN, 1, until=2))
    assert ask(consent, day=1 - 1e-6) is None
    assert ask(consent, day=1) == consent
    assert ask(consent, day=2 - 1e-6) == consent
    assert ask(consent, day=2) is None


def test_consent_for_one_caller_lets_only_that_caller_through() -> None:
    """A caller-specific consent holds for its caller; one for all holds for a caller without number too."""
    one, everyone = consent_of(event(Verb.OPEN, 0, caller=CALLER)), consent_of(event(Verb.OPEN, 0))
    assert ask(one, day=1) == one
    assert ask(one, day=1, caller="+85269999999") is None
    assert ask(one, day=1, caller=None) is None
    assert ask(everyone, day=1, caller=None) == everyone
    assert ask(everyone, one, day=1) == one


def test_other_number_class_or_channel_is_not_opened() -> None:
    """Consent to voice calls from Hong Kong says nothing about texts, other classes or other people."""
    consent = consent_of(event(Verb.OPEN, 0))
    at = T0 + timedelta(days=1)
    assert ask(consent, day=1, channel="sms") is None
    assert opened([consent], ME, CallClass.INTL, "voice", CALLER, at) is None
    assert opened([consent], "13957100002", CallClass.HMT, "voice", CALLER, at) is None


@pytest.mark.parametrize("backwards", [False, True])
def test_event_dated_ahead_leaves_the_present_as_it_is(backwards: bool) -> None:
    """A close that begins next week does not close today, whatever the order of the rows."""
    rows = [consent_of(event(Verb.OPEN, 0)), consent_of(event(Verb.CLOSE, 7))]
    rows = rows[::-1] if backwards else rows
    assert ask(*rows, day=6) is not None
    assert ask(*rows, day=7) is None


def test_closed_names_what_was_withdrawn_or_ran_out() -> None:
    """An open consent is not closed; a closed or expired one is named."""
    running, over, shut = (
        consent_of(e) for e in (event(Verb.OPEN, 0), event(Verb.OPEN, 0, until=1), event(Verb.CLOSE, 0))
    )
    at = T0 + timedelta(days=2)
    assert closed([running], ME, CallClass.HMT, "voice", at) is None
    assert closed([over], ME, CallClass.HMT, "voice", at) == over
    assert closed([shut], ME, CallClass.HMT, "voice", at) == shut
    assert closed([], ME, CallClass.HMT, "voice", at) is None
