"""Joint punishment: terms, repeats, the cap, and the number that is kept."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbxguard.errors import BadInput
from pbxguard.screening.lists import Action, ListEntry, effective, retained
from pbxguard.screening.punishment import PUNISHMENT_LIST, Basis, keep, kept_reason, punish

ZONE = ZoneInfo("Asia/Shanghai")
NUMBER = "13012345678"


def midnight(*day: int) -> datetime:
    return datetime(*day, tzinfo=ZONE).astimezone(UTC)  # type: ignore[arg-type]


def measures(*given_: tuple[Basis, date]) -> ListEntry:
    """Enter measures one after the other."""
    entry: ListEntry | None = None
    for n, (basis, first) in enumerate(given_):
        entry = punish(NUMBER, basis, first, ZONE, before=entry, document=f"A {n}")
    assert entry is not None
    return entry


@pytest.mark.parametrize(("basis", "end"), [(Basis.CONVICTED, (2029, 6, 1)), (Basis.POLICE, (2028, 6, 1))])
def test_term_runs_by_the_sites_calendar(basis: Basis, end: tuple[int, int, int]) -> None:
    """Three years for the convicted, two for those whom the police designate, from midnight to midnight, local."""
    entry = punish(NUMBER, basis, date(2026, 6, 1), ZONE, document="A 1", reason="r", source="s")
    assert (entry.since, entry.expires_at) == (midnight(2026, 6, 1), midnight(*end))
    assert entry.since == datetime(2026, 5, 31, 16, tzinfo=UTC)
    assert (entry.name, entry.action, entry.document) == (PUNISHMENT_LIST, Action.BLOCK, "A 1")
    assert entry.legal_basis.endswith(f"2024-12-01: {basis} {basis.years} years")
    assert effective([entry], midnight(*end) - timedelta(microseconds=1), "") == entry
    assert effective([entry], midnight(*end), "") is None


def test_leap_day() -> None:
    """A term that begins on 29 February lasts through the last day of February."""
    assert measures((Basis.CONVICTED, date(2028, 2, 29))).expires_at == midnight(2031, 3, 1)


def test_repeat_within_the_term_adds_its_own() -> None:
    """A second measure is served after the first; the run keeps its first day and all documents."""
    first = punish(NUMBER, Basis.POLICE, date(2026, 6, 1), ZONE, document="A 1", reason="r")
    both = punish(NUMBER, Basis.POLICE, date(2027, 1, 1), ZONE, before=first, document="B 2")
    assert (both.since, both.expires_at) == (midnight(2026, 6, 1), midnight(2030, 6, 1))
    assert both.document == "A 1; B 2"
    assert both.legal_basis.endswith(": police 2 years + police 2 years")
    assert both.reason == "r"


def test_five_years_running_are_the_most() -> None:
    """3 + 3 years end 5 years after the first day, and a third measure within them adds nothing."""
    entry = measures((Basis.CONVICTED, date(2026, 6, 1)), (Basis.CONVICTED, date(2027, 6, 1)))
    assert entry.expires_at == midnight(2031, 6, 1)
    again = punish(NUMBER, Basis.POLICE, date(2030, 1, 1), ZONE, before=entry, document="C 3")
    assert again.expires_at == midnight(2031, 6, 1)


def test_a_day_between_breaks_the_run() -> None:
    """On the day that the term ends the run goes on; a day later it is a new one."""
    police = (Basis.POLICE, date(2026, 6, 1))
    assert measures(police, (Basis.POLICE, date(2028, 6, 1))).since == midnight(2026, 6, 1)
    new = measures(police, (Basis.CONVICTED, date(2028, 6, 2)))
    assert (new.since, new.expires_at) == (midnight(2028, 6, 2), midnight(2031, 6, 2))


def test_lifted_term_counts_for_nothing() -> None:
    """After a lifting the next measure stands for itself, even on the same day."""
    lifted = ListEntry(
        *("", NUMBER, Action.BLOCK, PUNISHMENT_LIST),
        since=midnight(2026, 6, 1),
        expires_at=midnight(2029, 6, 1),
        lifted_at=midnight(2026, 7, 1) + timedelta(hours=12),
    )
    assert effective([lifted], midnight(2026, 7, 1), "") == lifted
    assert effective([lifted], midnight(2026, 7, 2), "") is None
    new = punish(NUMBER, Basis.POLICE, date(2026, 7, 1), ZONE, before=lifted)
    assert (new.since, new.expires_at, new.lifted_at) == (midnight(2026, 7, 1), midnight(2028, 7, 1), None)


def test_what_does_not_fit_is_refused() -> None:
    """An earlier measure, the same document, an entry without dates, a kept number, an odd year: one line each."""
    entry = punish(NUMBER, Basis.POLICE, date(2026, 6, 1), ZONE, document="A 1")
    bare = ListEntry("", NUMBER, Action.BLOCK, PUNISHMENT_LIST)
    last = datetime(9999, 12, 31, 23, tzinfo=UTC)  # next year in the site's zone, which the calendar does not have
    endless = ListEntry("", NUMBER, Action.BLOCK, PUNISHMENT_LIST, since=midnight(2026, 1, 1), expires_at=last)
    papers = punish(NUMBER, Basis.POLICE, date(2026, 6, 1), ZONE)
    kept = keep(NUMBER, "13112345678", entry)
    for before, day, document, says in (
        (entry, date(2026, 5, 31), "", "begins before"),
        (entry, date(2026, 7, 1), "A 1", "on the list already"),
        (bare, date(2026, 7, 1), "", "no first or last day"),
        (endless, date(2026, 7, 1), "B 2", "no first or last day"),
        (entry, date(2026, 6, 1), "", "needs its own --document"),
        (papers, date(2026, 6, 1), "", "needs its own --document"),
        (papers, date(2026, 6, 1), "A 1", "without a document"),
        (kept, date(2026, 7, 1), "", "kept for basic communication"),
        (None, date(9999, 7, 1), "", "no measure begins"),
        (None, date(1, 1, 1), "", "no measure begins"),
    ):
        with pytest.raises(BadInput, match=says) as caught:
            punish(NUMBER, Basis.POLICE, day, ZONE, before=before, document=document)
        assert str(caught.value).isprintable()


def test_kept_number_is_not_blocked_by_its_list_and_by_others_it_is() -> None:
    """The kept number may lie in a punished range; a block of another list holds all the same."""
    kept_number = "13112345678"
    entry = punish(NUMBER, Basis.POLICE, date(2026, 6, 1), ZONE)
    kept = keep(kept_number, NUMBER, entry)
    assert (kept.pattern, kept.retained, kept.reason) == (kept_number, True, kept_reason(NUMBER))
    assert (kept.since, kept.expires_at) == (entry.since, entry.expires_at)
    around = ListEntry("", "13112345000-13112345999", Action.BLOCK, PUNISHMENT_LIST)
    system = ListEntry("", "131*", Action.BLOCK, "system")
    at = midnight(2026, 7, 1)
    assert effective([kept, around], at, "") is None
    assert retained([kept, around], at) == kept
    assert effective([kept, around, system], at, "") == system
    assert effective([around], at, "") == around
    late = midnight(2028, 7, 1)
    assert effective([kept, around], late, "") == around
    assert retained([kept, around], late) is None


days = st.dates(date(2024, 12, 1), date(2045, 1, 1))


@given(st.lists(st.tuples(st.sampled_from(Basis), days), min_size=1, max_size=8))
def test_no_run_is_longer_than_five_years_or_shorter_than_its_last_term(given_: list[tuple[Basis, date]]) -> None:
    """Whatever measures come in order, a run is one term at least, 5 years at most, and never gets shorter."""
    entry: ListEntry | None = None
    for n, (basis, first) in enumerate(sorted(given_, key=lambda each: each[1])):
        before, entry = entry, punish(NUMBER, basis, first, ZONE, before=entry, document=f"A {n}")
        assert entry.since is not None
        assert entry.expires_at is not None
        begun, ended = entry.since.astimezone(ZONE), entry.expires_at.astimezone(ZONE)
        assert (ended.year - begun.year) <= 5
        assert ended - begun <= timedelta(days=366 * 5)
        assert ended >= begun + timedelta(days=365 * 2)
        if before is not None and before.since == entry.since:
            assert before.expires_at is not None
            assert entry.expires_at >= before.expires_at
        else:
            assert begun.date() == first
            assert ended.year - begun.year == basis.years
