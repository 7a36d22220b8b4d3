"""Bindings of privacy numbers: stored, ended, imported."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pbxguard.errors import BadInput, BadNumber
from pbxguard.screening.privacy import Binding, Standing, pair, standing
from pbxguard.store import BINDING_COLUMNS, Store

NOW = datetime(2026, 6, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
X, A, B, C = "700123456789012", "13800138000", "13957100001", "13357100002"


def home(text: str) -> str:
    if not text.isdigit():
        raise BadNumber(f"{text[:40]!a}: not a number")
    return text


def is_x(number: str) -> bool:
    return number.startswith("700")


def test_pair_is_bound_renewed_and_unbound(store: Store) -> None:
    """A new binding ends the one before it of the same pair; unbinding ends what holds and drops what is to come."""
    store.bind(pair(X, A, B, NOW, NOW + 9 * HOUR, 60))
    store.bind(pair(X, A, B, NOW + HOUR, NOW + 2 * HOUR, 120))
    there = [each for each in store.bindings(X) if each.b == B]
    assert there == [Binding(X, A, B, NOW, NOW + HOUR, 60), Binding(X, A, B, NOW + HOUR, NOW + 2 * HOUR, 120)]
    assert standing(there, X, B, NOW + 3 * HOUR) == (Standing.EXPIRED, there[1])
    store.bind(pair(X, A, B, NOW + 50 * HOUR))
    store.bind(pair(X, "", C, NOW))
    assert store.unbind(X, NOW + HOUR + HOUR / 2, party=A) == 4
    assert standing(store.bindings(X), X, B, NOW + HOUR + HOUR / 2)[0] is Standing.EXPIRED
    assert standing(store.bindings(X), X, C, NOW + 99 * HOUR)[0] is Standing.LIVE
    assert store.unbind(X, NOW + 2 * HOUR) == 1
    assert store.unbind(X, NOW + 2 * HOUR) == 0
    assert standing(store.bindings(), X, A, NOW + 60 * HOUR)[0] is Standing.EXPIRED


def test_old_bindings_are_forgotten(store: Store) -> None:
    """Those that ended before the moment go; live ones stay."""
    store.bind([*pair(X, A, B, NOW, NOW + HOUR), *pair(X, "", C, NOW)])
    assert store.forget_bindings(NOW + HOUR) == 0
    assert store.forget_bindings(NOW + 2 * HOUR) == 2
    assert [each.b for each in store.bindings()] == [C]


def test_file_of_pairs(tmp_path: Path, store: Store) -> None:
    """Each row binds both ways; what it leaves out has its default; a dry run only counts."""
    path = tmp_path / "pairs.csv"
    path.write_text(
        ",".join(BINDING_COLUMNS) + f"\n{X},{A},{B},2026-06-01T08:00:00+08:00,2026-06-02T00:00:00Z,600\n{X},,{C},,,\n"
    )
    later = NOW + HOUR
    assert store.import_bindings(path, home, is_x, later, dry_run=True) == 2
    assert list(store.bindings()) == []
    assert store.import_bindings(path, home, is_x, later) == 2
    expected = {*pair(X, A, B, NOW, NOW + 24 * HOUR, 600), *pair(X, "", C, later)}
    assert set(store.bindings()) == expected
    path.write_text(f"x,b\n{X},{B}\n")
    assert store.import_bindings(path, home, is_x, later) == 1
    assert set(store.bindings()) == {*expected, Binding(X, "", B, later)}


@pytest.mark.parametrize(
    ("row", "column", "what"),
    [
        (f"13800138000,{A},{B},,,", "x", "no privacy number"),
        (f"x,{A},{B},,,", "x", "not a number"),
        (f"{X},{A},,,,", "b", "not a number"),
        (f"{X},{B},{B},,,", "b", "same number"),
        (f"{X},{A},{B},today,,", "since", "not a time"),
        (f"{X},{A},{B},,2026-06-01,", "until", "no time zone"),
        (f"{X},{A},{B},2026-06-01T00:00:00Z,2026-06-01T00:00:00Z,", "until", "not after since"),
        *((f"{X},{A},{B},,,{longest}", "max_call_s", "seconds") for longest in ("0", "-1", "x", "1" * 30, "604801")),
    ],
)
def test_bad_pair_is_named_and_nothing_is_kept(
    tmp_path: Path, store: Store, row: str, column: str, what: str
) -> None:
    """One bad row keeps the whole file out, with line and column."""
    path = tmp_path / "pairs.csv"
    path.write_text(f"{','.join(BINDING_COLUMNS)}\n{X},{A},{B},,,\n{row}\n")
    with pytest.raises(BadInput, match=f"line 3: column {column}: .*{what}") as caught:
        store.import_bindings(path, home, is_x, NOW)
    assert str(caught.value).isprintable()
    assert list(store.bindings()) == []
