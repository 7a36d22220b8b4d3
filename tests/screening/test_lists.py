"""Patterns, their look-up keys, and which entry decides."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbxguard.errors import BadNumber
from pbxguard.screening.lists import (
    Action,
    ListEntry,
    effective,
    lookup_keys,
    matches,
    normalise_pattern,
    pattern_keys,
    pattern_of,
)

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)

numbers = st.from_regex(r"\A\+?[0-9]{1,16}\Z")
digits = st.text("0123456789", min_size=1, max_size=6)
moments = st.sampled_from([None, *(NOW + timedelta(seconds=s) for s in (-1, 0, 1, 60))])
entries = st.builds(
    ListEntry,
    owner=st.sampled_from(["", "13957100001"]),
    pattern=st.sampled_from(["13800138000", "138*", "13800138*", "13800138000-13800138009"]),
    action=st.sampled_from(Action),
    name=st.sampled_from(["system", "punishment", "own"]),
    source=st.sampled_from(["", "a", "b"]),
    expires_at=moments,
)


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("13800138000", ["13800138000"], ["1380013800", "138001380001", "+13800138000"]),
        ("9520*", ["9520", "95200", "95201234"], ["952", "9521", "+9520", "09520"]),
        ("+852*", ["+852", "+85261234567"], ["85261234567", "+85", "+8531"]),
        ("+*", ["+1", "+85261234567"], ["1", "0085261234567"]),
        ("+85260000000-+85260000999", ["+85260000000", "+85260000999"], ["+85260001000", "085260000000"]),
        (
            "13800000000-13800009999",
            ["13800000000", "13800004711", "13800009999"],
            ["13800010000", "13799999999", "1380000000", "138000000001", "+1380000000"],
        ),
    ],
)
def test_pattern_covers_exactly_what_it_says(pattern: str, inside: list[str], outside: list[str]) -> None:
    """Exact, prefix and range patterns cover what they name, and the look-up finds just that."""
    stored = set(pattern_keys(pattern))
    for number in inside + outside:
        assert matches(pattern, number) is (number in inside), number
        assert bool(stored & set(lookup_keys(number))) is (number in inside), number


@given(st.data())
def test_range_keys_are_exactly_the_numeric_range(data: st.DataObject) -> None:
    """A number is found under a key of a range when, and only when, it lies in it and is as long."""
    length = data.draw(st.integers(1, 6))
    plus = data.draw(st.sampled_from(["", "+"]))
    end = 10**length - 1
    low = data.draw(st.integers(0, end))
    high = data.draw(st.integers(low, end))
    pattern = f"{plus}{low:0{length}d}-{plus}{high:0{length}d}"
    keys = pattern_keys(pattern)
    assert len(set(keys)) == len(keys)
    probes = {low - 1, low, high, high + 1, *data.draw(st.lists(st.integers(0, end), max_size=20))}
    for value in probes:
        if 0 <= value <= end:
            number = f"{plus}{value:0{length}d}"
            found = set(keys) & set(lookup_keys(number))
            assert len(found) == (1 if low <= value <= high else 0), (pattern, number)
            assert matches(pattern, number) is (low <= value <= high)
            for other in (number + "0", "0" + number, "+" + number):
                assert not set(keys) & set(lookup_keys(other)), (pattern, other)


def test_widest_range_has_a_bounded_number_of_keys() -> None:
    """The worst 19-digit range takes fewer than 400 rows."""
    assert len(pattern_keys("1" * 19 + "-" + "9" * 18 + "8")) < 400


@given(numbers)
def test_lookup_keys_are_few_and_distinct(number: str) -> None:
    """A number is looked up under at most 50 different keys, the number itself first."""
    keys = lookup_keys(number)
    assert keys[0] == number
    assert len(keys) == len(set(keys)) <= 50


@given(numbers, digits)
def test_stored_match_and_plain_match_agree(number: str, body: str) -> None:
    """Key equality gives the same answer as comparing the pattern with the number."""
    for pattern in (body, body + "*"):
        assert bool(set(pattern_keys(pattern)) & set(lookup_keys(number))) is matches(pattern, number)
        assert pattern_of(pattern_keys(pattern)[0]) == pattern


@given(st.text(max_size=30))
def test_any_text_has_bounded_keys_and_matches_no_prefix_by_accident(text: str) -> None:
    """Text that is no home-form number is looked up under nothing."""
    if lookup_keys(text):
        assert text.isascii()
        assert text.removeprefix("+").isdigit()


@pytest.mark.parametrize(
    "text",
    [
        *("", "*", "+", "-", "9520**", "95*20", "138-", "-138", "abc", "138001380001-13800138000"),
        *("13800009999-13800000000", "+13800000000-13800009999", "1-2-3", "9" * 21, "9" * 20 + "*"),
        *("+86138*", "0086138*", "00852*", "138\x00", "１３８*", "138*\n0", "0571-86554321"),
    ],
)
def test_bad_patterns_are_refused_with_a_remedy(text: str) -> None:
    """What is neither number, prefix nor range raises BadNumber, in one printable line."""
    with pytest.raises(BadNumber) as caught:
        normalise_pattern(text, _strict)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        (" 13800138000 ", "13800138000"),
        ("008613800138000", "13800138000"),
        ("008613800000000-008613800009999", "13800000000-13800009999"),
        ("13800000000 - 13800009999", "13800000000-13800009999"),
        ("13800000000-13800000000", "13800000000"),
        ("9520*", "9520*"),
    ],
)
def test_patterns_are_stored_in_home_form(text: str, stored: str) -> None:
    """Numbers and both ends of a range are normalised; a range of one is that number."""
    assert normalise_pattern(text, _strict) == stored


@given(st.lists(entries, max_size=8), st.randoms(use_true_random=False))
def test_order_of_entries_never_matters(listed: list[ListEntry], random: object) -> None:
    """Any order of the same entries gives the same deciding entry."""
    shuffled = list(listed)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for owner in ("", "13957100001"):
        assert effective(listed, NOW, owner) == effective(shuffled, NOW, owner)


@given(st.lists(entries, max_size=8))
def test_allow_beats_block_among_live_entries_of_the_owner(listed: list[ListEntry]) -> None:
    """The entry that decides is live, the owner's, and an allow entry whenever there is one."""
    chosen = effective(listed, NOW, "")
    live = [e for e in listed if e.owner == "" and (e.expires_at is None or e.expires_at > NOW)]
    assert (chosen is None) == (not live)
    if chosen is not None:
        assert chosen in live
        assert (chosen.action is Action.ALLOW) == any(e.action is Action.ALLOW for e in live)


def test_expiry_is_half_open() -> None:
    """An entry holds until just before its expiry, and no longer at it."""
    entry = ListEntry("", "138*", Action.BLOCK, "system", expires_at=NOW)
    assert effective([entry], NOW - timedelta(microseconds=1), "") == entry
    assert effective([entry], NOW, "") is None


def test_narrowest_of_equals_is_named() -> None:
    """Of several blocks the exact number is named, then the range, then the longest prefix."""
    patterns = ["1*", "138*", "13800138000-13800138009", "13800138000"]
    listed = [ListEntry("", pattern, Action.BLOCK, "system") for pattern in patterns]
    while listed:
        chosen = effective(listed, NOW, "")
        assert chosen == listed.pop()


def _strict(text: str) -> str:
    """A small home form: 0086 goes, digits and + stay, the rest is refused."""
    number = text.removeprefix("0086")
    if not number.isascii() or not number.removeprefix("+").isdigit():
        raise BadNumber(f"{text!a}: not a number")
    return number
