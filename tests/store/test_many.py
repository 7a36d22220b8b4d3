"""What many decisions read at once is what each would have read alone."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pbxguard.screening.call import Facts, Subscriber
from pbxguard.screening.lists import Action, ListEntry
from pbxguard.screening.privacy import pair
from pbxguard.screening.registry import CallClass, ConsentEvent, Verb
from pbxguard.store import Store, many
from pbxguard.store.many import Asked, ManyFacts

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
SUBSCRIBERS = tuple(f"139571{n:05d}" for n in range(40))
CALLERS = ("13800138000", "13900000001", "+85261234567", "+14155550100", "95588", "057186554321", "4008123456")


def same(one: Facts, other: Facts) -> bool:
    """Whether two say the same; the order of entries and consents says nothing."""
    return (one.callees, one.bindings, one.flags) == (other.callees, other.bindings, other.flags) and all(
        sorted(map(str, a)) == sorted(map(str, b))
        for a, b in ((one.consents, other.consents), (one.listed, other.listed))
    )


@pytest.fixture
def filled(store: Store) -> Store:
    """Subscribers, consents, bindings, and entries of every kind, global and subscribers' own."""
    dice = Random(4)
    store.import_subscribers(Subscriber(number, "cm", "zhejiang") for number in SUBSCRIBERS[::2])
    store.append_many(
        ConsentEvent(number, CallClass.HMT, "voice", Verb.OPEN, NOW, NOW, "test", "cli", NOW + timedelta(days=n + 1))
        for n, number in enumerate(SUBSCRIBERS[::3])
    )
    patterns = (*CALLERS, "138*", "9*", "+852*", "13800000000-13800999999", "class:mobile_cm", "region:hk", "0571*")
    store.import_entries(
        ListEntry(owner, pattern, dice.choice(list(Action)), dice.choice(("system", "own", "x")), since=NOW)
        for owner in ("", *SUBSCRIBERS[:5])
        for pattern in patterns
        if dice.random() < 0.5
    )
    store.bind(pair("700123456789012", "13800138000", SUBSCRIBERS[0], NOW))
    return store


def questions(number: int, seed: int = 1) -> list[Asked]:
    dice = Random(seed)
    tags = {"+852": ("intl_hk", "hmt", "region:hk"), "+141": ("intl_us", "intl", "region:us")}
    asked: list[Asked] = []
    for _ in range(number):
        cli = dice.choice((*CALLERS, None, f"138{dice.randrange(10**8):08d}", "700123456789012"))
        mine = ("privacy_700", "privacy") if cli and cli.startswith("700") else ("mobile_cm", "region:cn")
        callees = tuple(dice.sample(SUBSCRIBERS, dice.choice((0, 1, 1, 1, 2))))
        asked.append((cli, callees, tags.get((cli or "")[:4], mine)))
    return asked


@pytest.mark.parametrize("number", [0, 1, many.SINGLE, many.FEW - 1, many.FEW, 3000])
def test_facts_of_many_are_those_of_each(filled: Store, number: int) -> None:
    """However many are asked about, each call has the facts that it would have alone, in the order asked."""
    asked = questions(number)
    found = ManyFacts(filled).facts(asked)
    assert len(found) == number
    assert all(same(facts, filled.facts(*call)) for call, facts in zip(asked, found, strict=True))
    if number == 3000:
        assert {entry.pattern for facts in found for entry in facts.listed} >= {"138*", "13800000000-13800999999"}
        assert any(facts.bindings for facts in found)


def test_long_list_of_a_subscriber_is_not_read_whole(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Subscribers with more entries than one reading may hold get the same facts, and so do those beside them."""
    crowd = [f"138{n:08d}" for n in range(300)]
    filled.import_entries(ListEntry(SUBSCRIBERS[1], number, Action.BLOCK, "own") for number in crowd)
    limited = many._OWN.limit(many.literal_column("50", many.Integer))
    monkeypatch.setattr(many, "MOST_OWN", 49)
    monkeypatch.setattr(many, "_OWN", limited)
    asked = [*questions(100), *((number, (SUBSCRIBERS[1],), ("mobile_cm",)) for number in crowd)]
    found = ManyFacts(filled).facts(asked)
    assert all(same(facts, filled.facts(*call)) for call, facts in zip(asked, found, strict=True))
    assert all(facts.listed for facts in found[100:])


def test_too_many_broad_keys_to_look_through(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kinds of broad keys are not found out, every kind is asked for, and nothing is missed."""
    monkeypatch.setattr(many, "MOST_BROAD", 0)
    asked = questions(1000)
    found = ManyFacts(filled).facts(asked)
    assert all(same(facts, filled.facts(*call)) for call, facts in zip(asked, found, strict=True))


@pytest.mark.parametrize("later", [30, 1000])
def test_entry_of_a_new_kind_is_found_from_the_next_reading_on(filled: Store, later: int) -> None:
    """What is remembered of the lists holds for their version only."""
    reader = ManyFacts(filled)
    reader.facts(questions(1000))
    filled.add_entry(ListEntry("", "13811*", Action.BLOCK, "system"))
    asked: list[Asked] = [(f"13811{n:06d}", (), ()) for n in range(later)]
    assert all("13811*" in {entry.pattern for entry in facts.listed} for facts in reader.facts(asked))


def test_hostile_keys_find_nothing(filled: Store) -> None:
    """Text that is no number, as CLI or as callee, finds nothing and breaks nothing."""
    texts = ("' OR 1=1 --", "\udcff", "138\x00", "*", "*138", "#11:138", "9" * 5000, "１３８", "@mobile_cm", "+")
    asked: list[Asked] = [(text, (text,), ()) for text in texts * 60]
    assert all(facts == Facts() for facts in ManyFacts(filled).facts(asked))


numbers = st.text("0123", min_size=1, max_size=4)
patterns = st.one_of(numbers, numbers.map(lambda digits: digits + "*"), st.just("1200-1230"), st.just("class:a"))


def asked_about(draws: list[str]) -> Iterator[Asked]:
    yield from ((cli, ("1",), ("a",)) for cli in draws)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    listed=st.lists(patterns, unique=True, max_size=12),
    owner=st.sampled_from(["", "1"]),
    drawn=st.lists(numbers, min_size=1, max_size=40),
    few=st.sampled_from([0, 1000]),
)
def test_any_list_is_found_as_by_one(
    store: Store, monkeypatch: pytest.MonkeyPatch, listed: list[str], owner: str, drawn: list[str], few: int
) -> None:
    """Over any list and callers, with and without the kinds, the entries are those that one look-up finds."""
    monkeypatch.setattr(many, "SINGLE", 0)
    monkeypatch.setattr(many, "FEW", few)
    entries = [ListEntry(owner, pattern, Action.BLOCK, "system") for pattern in listed]
    store.import_entries(entries, replace="system")
    asked = list(asked_about(drawn))
    found = ManyFacts(store).facts(asked)
    assert all(same(facts, store.facts(*call)) for call, facts in zip(asked, found, strict=True))
