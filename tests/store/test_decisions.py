"""Decision records."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from pbxguard.store import DecisionRow, Store

NOW = datetime(2026, 11, 21, 12, 0, 0, 1, tzinfo=UTC)
ROW = DecisionRow(
    call_id="a84b4c76e66710@198.18.0.10",
    at=NOW,
    channel="voice",
    trunk="intl",
    cli_raw="0085261234567",
    cli_key="+85261234567",
    cli_class="intl_hk",
    callee_raw="13957100001",
    callee_key="13957100001",
    verdict="block",
    reason="intl_default_off",
    labels=("intl_origin_notice", "mvno"),
    rule="7.default_off",
    detail="the subscriber has not opted in",
    entry="+852* system feed",
    pack="cn 2026.11",
    lists_version="17",
    sip_status=603,
    prompt="intl_default_off",
    elapsed_us=83,
    extra={"user_agent": "x\udcff", "n": [1, 2]},
)


def decided(call_id: str, **changed: object) -> DecisionRow:
    return replace(ROW, call_id=call_id, **changed)  # type: ignore[arg-type]


def test_record_comes_back_whole(store: Store) -> None:
    """Every field of a decision survives, also where there is no number, status or label."""
    bare = DecisionRow("b", NOW, "sms", "ent", "", None, "missing", "", None, "failed", "guard_failed")
    store.record([ROW, bare])
    assert store.decision(ROW.call_id) == ROW
    assert store.decision("b") == bare
    assert store.decision("c") is None
    assert store.recent(1) == (bare,)
    assert store.recent() == (bare, ROW)


def test_newest_decision_of_a_call_id_is_given(store: Store) -> None:
    """A Call-ID that was used again is explained by its last decision."""
    store.record([ROW, replace(ROW, verdict="allow")])
    found = store.decision(ROW.call_id)
    assert found is not None
    assert found.verdict == "allow"


@pytest.mark.parametrize(
    "text",
    ["\udcff\udc00", "a\x00b", "x" * 100_000, "a\r\nb\x1b[31m", "\N{EM DASH}中文", "'; DROP TABLE decision"],
)
def test_hostile_text_is_stored_bounded_and_printable(store: Store, text: str) -> None:
    """Whatever the caller wrote is cut to its column, printable, and the call is found by it again."""
    store.record([replace(ROW, call_id=text, cli_raw=text, callee_raw=text)])
    found = store.decision(text)
    assert found is not None
    for kept in (found.call_id, found.cli_raw, found.callee_raw):
        assert kept.isprintable()
        assert 0 < len(kept) <= 200


def test_pruning_removes_what_is_older_and_nothing_else(store: Store) -> None:
    """Retention is half-open: a decision of exactly that moment stays."""
    store.record([replace(ROW, call_id=str(n), at=NOW + timedelta(hours=n)) for n in range(-6000, 2)])
    assert store.prune_decisions(NOW) == 6000
    assert [row.call_id for row in store.recent()] == ["1", "0"]
    assert store.prune_decisions(NOW) == 0
    assert store.count_decisions() == 2


def test_empty_batch_is_nothing(store: Store) -> None:
    """Recording no rows writes nothing."""
    store.record([])
    assert store.recent() == ()


def test_decisions_of_a_time_range_in_the_order_of_their_times(store: Store) -> None:
    """However they were written, thousands at one moment too: each decision of the range once, by time, then row."""
    dice = Random(3)
    moments = [NOW + timedelta(seconds=dice.choice((0, 1, 1, 1, 2, 3))) for _ in range(5000)]
    store.record([decided(f"c{n}", at=at) for n, at in enumerate(moments)])
    wanted = sorted(range(5000), key=lambda n: (moments[n], n))
    assert [row.call_id for row in store.iter_decisions()] == [f"c{n}" for n in wanted]
    since, until = NOW + timedelta(seconds=1), NOW + timedelta(seconds=3)
    inside = [f"c{n}" for n in wanted if since <= moments[n] < until]
    assert [row.call_id for row in store.iter_decisions(since, until)] == inside
    assert store.count_decisions(since, until) == len(inside)
    assert list(store.iter_decisions(NOW + timedelta(days=1))) == []


def test_reading_decisions_holds_up_nobody(store: Store) -> None:
    """While decisions are read, others are written, and removed ones are not missed."""
    store.record([decided(f"c{n}", at=NOW + timedelta(seconds=n)) for n in range(2500)])
    reading = store.iter_decisions()
    assert next(reading).call_id == "c0"
    store.record([decided("new", at=NOW + timedelta(days=1))])
    assert store.prune_decisions(NOW + timedelta(seconds=2000)) == 2000
    rest = [row.call_id for row in reading]
    assert rest[-1] == "new"
    assert len(rest) == 999 + 500 + 1


def test_call_ids_by_their_beginning(store: Store) -> None:
    """Each Call-ID once, in order; the beginning is text, not a pattern, and nothing is the beginning of none."""
    store.record([decided(name) for name in ("a%", "ab", "ab", "abc\U0010fffd", "b", "a_")])
    assert store.call_ids("a", 10) == ("a%", "a_", "ab", "abc\\U0010fffd")
    assert store.call_ids("ab", 1) == ("ab",)
    assert store.call_ids("a%", 10) == ("a%",)
    assert store.call_ids("", 10) == ()
    assert store.call_ids("zz", 10) == ()
