"""Patterns, their look-up keys, and which entry decides."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbxguard.errors import BadInput, BadNumber
from pbxguard.screening.lists import (
    SIMBOX,
    Action,
    ListEntry,
    check_note,
    consists_of,
    effective,
    live,
    lookup_keys,
    matches,
    normalise_pattern,
    noted,
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
    since=moments,
    lifted_at=moments,
    retained=st.booleans(),
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
        normalise_pattern(text, _strict, home="+86")
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
    assert normalise_pattern(text, _strict, home="+86") == stored


@given(st.lists(entries, max_size=8), st.randoms(use_true_random=False))
def test_order_of_entries_never_matters(listed: list[ListEntry], random: object) -> None:
    """Any order of the same entries gives the same deciding entry."""
    shuffled = list(listed)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for owner in ("", "13957100001"):
        assert effective(listed, NOW, owner) == effective(shuffled, NOW, owner)


@given(st.lists(entries, max_size=8))
def test_allow_beats_block_among_live_entries_of_the_owner(listed: list[ListEntry]) -> None:
    """The entry that decides is live, the owner's, and an allow entry whenever there is one.

    On the list of a retained number no block counts; a note never decides.
    """
    chosen = effective(listed, NOW, "")
    ours = [e for e in listed if e.owner == "" and e.action is not Action.NOTE and live(e, NOW)]
    kept = {e.name for e in ours if e.retained}
    counting = [e for e in ours if e.action is Action.ALLOW or e.name not in kept]
    assert (chosen is None) == (not counting)
    if chosen is not None:
        assert chosen in counting
        assert (chosen.action is Action.ALLOW) == any(e.action is Action.ALLOW for e in counting)


def test_expiry_is_half_open() -> None:
    """An entry holds until just before its expiry, and no longer at it."""
    entry = ListEntry("", "138*", Action.BLOCK, "system", expires_at=NOW)
    assert effective([entry], NOW - timedelta(microseconds=1), "") == entry
    assert effective([entry], NOW, "") is None


def test_entry_comes_and_goes_by_date() -> None:
    """Its first moment is inside, its last and that of its lifting are not."""
    second = timedelta(seconds=1)
    entry = ListEntry("", "138*", Action.BLOCK, "system", since=NOW, expires_at=NOW + 2 * second)
    assert [live(entry, NOW + n * second) for n in (-1, 0, 1, 2)] == [False, True, True, False]
    lifted = replace(entry, lifted_at=NOW + second)
    assert [live(lifted, NOW + n * second) for n in (-1, 0, 1, 2)] == [False, True, False, False]


TAGS = ("intl_hk", "hmt", "region:hk")


@pytest.mark.parametrize(("pattern", "hit"), [("class:intl_hk", 1), ("class:hmt", 1), ("region:hk", 1),
                                              ("class:intl", 0), ("region:mo", 0), ("class:hk", 0)])  # fmt: skip
def test_class_and_region_patterns_match_tags(pattern: str, hit: int) -> None:
    """A number with the tag is found, whatever its digits, and even a withheld one; no other number is."""
    (key,) = pattern_keys(pattern)
    assert len(key) <= 30
    assert pattern_of(key) == pattern
    assert (key in lookup_keys("+85261234567", TAGS)) is bool(hit)
    assert (key in lookup_keys("", TAGS)) is bool(hit)
    assert matches(pattern, "+85261234567", TAGS) is bool(hit)
    assert not matches(pattern, "+85261234567")
    assert key not in lookup_keys("+85261234567")
    if hit:
        assert normalise_pattern(f" {pattern} ", _strict, home="+86", tags=TAGS) == pattern


@pytest.mark.parametrize(
    "text",
    [
        *("class:intl", "class:", "region:xx", "class:region:hk", "class:hmt*", "Class:hmt", "class:hmt-hmt"),
        *("class:" + "a" * 40, "region:" + "a" * 40, "class:h\u200bmt"),
    ],
)
def test_unknown_class_is_refused_with_near_ones(text: str) -> None:
    """A class or region that the pack does not have would match nothing, so it is an error in one line."""
    with pytest.raises(BadNumber) as caught:
        normalise_pattern(text, _strict, home="+86", tags=TAGS)
    assert str(caught.value).isprintable()
    with pytest.raises(BadNumber):
        pattern_keys(text if text not in ("class:intl", "region:xx") else "class:")
    with pytest.raises(BadNumber):
        normalise_pattern(text, _strict, home="+86")


def test_near_classes_are_named() -> None:
    """A typing error is answered with what was meant."""
    with pytest.raises(BadNumber, match=r"near are class:svc95_vas"):
        normalise_pattern("class:svc95vas", _strict, home="+86", tags=["svc95_vas", "intl", "fixed"])


@pytest.mark.parametrize(
    ("pattern", "refused"),
    [
        *(("110", True), ("119-120", True), ("110*", True), ("0571110", True), ("10085-10086", True)),
        *(("11*", False), ("1*", False), ("1101*", False), ("119-122", False), ("100-999", False)),
        *(("13800000000-13899999999", False), ("13800138000", False), ("+1*", False), ("class:emergency", False)),
    ],
)
def test_entries_that_only_block_emergency_numbers_are_told_apart(pattern: str, refused: bool) -> None:
    """An exact number, a prefix or a range of nothing but such numbers; one that merely contains some is not."""
    never = {"110", "119", "120", "122", "0571110", "10085", "10086"}
    assert consists_of(pattern, lambda number: number in never) is refused


def test_wide_range_is_not_walked_through() -> None:
    """However wide a range is, a few look-ups say what it consists of."""
    asked: list[str] = []

    def inside(number: str) -> bool:
        asked.append(number)
        return True

    assert not consists_of("10000000000-19999999999", inside)
    assert asked == []
    assert consists_of("+100-+110", inside)
    assert set(asked) == {f"+{number}" for number in range(100, 111)}


def test_narrowest_of_equals_is_named() -> None:
    """Of several blocks the exact number is named, then the range, then the longest prefix, then the class."""
    patterns = ["class:intl", "1*", "138*", "13800138000-13800138009", "13800138000"]
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


def test_a_note_decides_nothing() -> None:
    """A note of the site is no block and no allow, whatever else is listed; it is only known, while it holds."""
    note = ListEntry("", "13800138000", Action.NOTE, "roaming_yes", expires_at=NOW)
    block = ListEntry("", "13800138*", Action.BLOCK, "system")
    before = NOW - timedelta(seconds=1)
    assert effective([note], before, "") is None
    assert effective([note, block], before, "") == block
    assert noted([note, block], before) == {"roaming_yes"}
    assert noted([note, block], NOW) == frozenset()


@pytest.mark.parametrize(
    ("action", "owner", "name"),
    [
        (Action.NOTE, "", "system"),
        (Action.NOTE, "13957100001", "roaming_yes"),
        (Action.BLOCK, "", "roaming_no"),
        (Action.ALLOW, "", SIMBOX),
    ],
)
def test_notes_and_other_entries_do_not_mix(action: Action, owner: str, name: str) -> None:
    """A note that nothing would read, and a block that would look like a note, are refused by name."""
    with pytest.raises(BadInput, match=name):
        check_note(action, owner, name)
