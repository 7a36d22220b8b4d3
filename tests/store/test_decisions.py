"""Decision records."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

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
