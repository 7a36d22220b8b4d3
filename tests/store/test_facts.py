"""What a decision reads, in one query."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pbxguard.screening.call import Facts, Subscriber
from pbxguard.screening.lists import Action, ListEntry, matches
from pbxguard.screening.privacy import pair
from pbxguard.screening.registry import CallClass, ConsentEvent, Verb, consent_of
from pbxguard.store import Store

NOW = datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=UTC)
ZHANG = Subscriber("13957100001", "cm", "zhejiang", "zh")
LI = Subscriber("13357100002", "ct", "yunnan", "en")


def consent(number: str, **fields: object) -> ConsentEvent:
    values = {
        "number": number,
        "call_class": CallClass.HMT,
        "channel": "voice",
        "verb": Verb.OPEN,
        "effective_at": NOW,
        "recorded_at": NOW,
        "actor": "test",
        "via": "cli",
    }
    return ConsentEvent(**(values | fields))  # type: ignore[arg-type]


def test_facts_hold_subscribers_consents_and_matching_entries(store: Store) -> None:
    """Rows of the callees and entries that match the CLI come back as they were stored, and no others."""
    store.import_subscribers([ZHANG, LI, Subscriber("13357100003", "cu", "henan")])
    events = [
        consent(ZHANG.number, until=NOW + timedelta(days=1)),
        consent(LI.number, caller="+85261234567", channel="sms", verb=Verb.CLOSE),
        consent("13357100003"),
    ]
    store.append_many(events)
    listed = [
        ListEntry("", "+85261234567", Action.BLOCK, "system", "s", "r", "l", NOW),
        ListEntry("", "+852*", Action.ALLOW, "own"),
        ListEntry(ZHANG.number, "+85261230000-+85261239999", Action.BLOCK, "own"),
    ]
    others = [
        ListEntry("13357100003", "+85261234567", Action.BLOCK, "own"),
        ListEntry("", "+85261234568", Action.BLOCK, "system"),
        ListEntry("", "852*", Action.BLOCK, "system"),
    ]
    store.import_entries([*listed, *others])

    facts = store.facts("+85261234567", (ZHANG.number, LI.number))
    assert facts.callees == {ZHANG.number: ZHANG, LI.number: LI}
    assert set(facts.consents) == {consent_of(events[0]), consent_of(events[1])}
    assert sorted(facts.listed, key=str) == sorted(listed, key=str)


def test_nothing_to_ask_gives_no_facts(store: Store) -> None:
    """A call without a CLI consults no list; one without a known callee no registry."""
    store.add_entry(ListEntry("", "13800138000", Action.BLOCK, "system"))
    assert store.facts(None, ()) == Facts()
    assert store.facts(None, (ZHANG.number,)) == Facts()
    assert len(store.facts("13800138000", ()).listed) == 1
    assert len(store.facts("13800138000", (ZHANG.number, ZHANG.number, LI.number)).listed) == 1


@pytest.mark.parametrize("text", ["' OR 1=1 --", "\udcff", "138\x00", "*", "#11:138", "9" * 5000, "１３８"])
def test_hostile_keys_find_nothing(store: Store, text: str) -> None:
    """Text that is no number, as CLI or as callee, finds nothing and breaks nothing."""
    store.import_entries(
        [
            ListEntry("", "1*", Action.BLOCK, "system"),
            ListEntry("", "13800000000-13899999999", Action.BLOCK, "x"),
        ]
    )
    assert store.facts(text, (text,)) == Facts()


def test_change_holds_from_the_next_look_up_on(store: Store) -> None:
    """A consent or entry that was committed, also by another process, is read by the very next call."""
    with Store.open(store.path) as other:
        assert store.facts("95588", (ZHANG.number,)) == Facts()
        other.append(consent(ZHANG.number))
        assert len(store.facts("95588", (ZHANG.number,)).consents) == 1
        other.add_entry(ListEntry("", "9558*", Action.BLOCK, "system"))
        assert len(store.facts("95588", (ZHANG.number,)).listed) == 1


digits = st.text("0123", min_size=1, max_size=4)
patterns = st.one_of(
    digits,
    digits.map(lambda d: d + "*"),
    st.tuples(st.integers(0, 3333), st.integers(0, 3333)).map(lambda p: f"{min(p):04d}-{max(p):04d}"),
).filter(lambda p: "-" not in p or p[:4] != p[5:])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(listed=st.lists(patterns, unique=True, max_size=12), cli=digits)
def test_look_up_finds_what_the_patterns_say(store: Store, listed: list[str], cli: str) -> None:
    """Over any list, the store finds exactly the entries whose pattern matches the CLI."""
    entries = [ListEntry("", pattern, Action.BLOCK, "system") for pattern in listed]
    store.import_entries(entries, replace="system")
    found = store.facts(cli, ()).listed
    assert sorted(entry.pattern for entry in found) == sorted(p for p in listed if matches(p, cli))


def test_entries_of_a_class_or_region_are_found_by_tags(store: Store) -> None:
    """A class or region pattern is found for a CLI with that tag, for its owner, and for no other CLI."""
    listed = [
        ListEntry(ZHANG.number, "class:hmt", Action.BLOCK, "own"),
        ListEntry(ZHANG.number, "region:hk", Action.BLOCK, "own"),
        ListEntry("", "class:withheld", Action.BLOCK, "system"),
        ListEntry(LI.number, "class:intl_hk", Action.BLOCK, "own"),
    ]
    store.import_entries(listed)
    tags = ("intl_hk", "hmt", "region:hk")
    found = store.facts("+85261234567", (ZHANG.number,), tags).listed
    assert sorted(found, key=str) == sorted(listed[:2], key=str)
    assert store.facts("+85261234567", (ZHANG.number,)).listed == ()
    assert store.facts("+12125550100", (ZHANG.number,), ("intl_us", "intl", "region:us")).listed == ()
    assert store.facts(None, (ZHANG.number,), ("withheld",)).listed == (listed[2],)
    assert store.facts("+85261234567", (LI.number,), tags).listed == (listed[3],)


def test_what_a_decision_needs_of_an_entry_comes_back(store: Store) -> None:
    """Dates, lifting, document and whether the number is kept; the reason of a lifting stays in the store."""
    hour = timedelta(hours=1)
    entry = ListEntry(
        *("", "13012345678", Action.BLOCK, "punishment", "s", "r", "l"),
        expires_at=NOW + hour,
        since=NOW - hour,
        retained=True,
        document="A 1",
        lifted_at=NOW,
        lift_reason="why",
    )
    store.add_entry(entry)
    assert store.entry("", "13012345678", "punishment") == entry
    assert store.facts("13012345678", ()).listed == (replace(entry, lift_reason=""),)


X = "700123456789012"


def test_bindings_are_read_for_privacy_numbers_and_their_callees_only(store: Store) -> None:
    """With the tag: those of X and the callees, live or not. Without it, or for another X or callee: none."""
    live = pair(X, "13800138000", ZHANG.number, NOW, NOW + timedelta(hours=1), 600)
    over = pair(X, "", LI.number, NOW - timedelta(hours=2), NOW - timedelta(hours=1))
    store.bind([*live, *over, *pair(X[:-1] + "3", "", ZHANG.number, NOW)])
    tags = ("privacy_700", "privacy")
    assert store.facts(X, (ZHANG.number,), tags).bindings == (live[0],)
    assert set(store.facts(X, (ZHANG.number, LI.number), tags).bindings) == {live[0], *over}
    assert store.facts(X, ("13800138000",), tags).bindings == (live[1],)
    assert store.facts(X, (ZHANG.number,), tags[:1]).bindings == ()
    assert store.facts(X, ("13900000000",), tags) == Facts()
    assert store.facts(None, (ZHANG.number,), tags) == store.facts(X, (), tags) == Facts()
