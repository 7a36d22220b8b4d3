"""Which binding of a privacy number holds."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbxguard.screening.privacy import Binding, Standing, live, pair, standing

NOW = datetime(2026, 6, 1, tzinfo=UTC)
X, A, B, C = "700123456789012", "13800138000", "13957100001", "13357100002"

moments = st.integers(-3, 3).map(lambda hours: NOW + timedelta(hours=hours))
bindings = st.builds(
    Binding,
    x=st.sampled_from([X, X[:-1] + "3"]),
    a=st.sampled_from(["", A]),
    b=st.sampled_from([B, C]),
    since=moments,
    until=st.none() | moments,
    max_call_s=st.none() | st.integers(1, 3),
)


def test_both_sides_see_x() -> None:
    """A pair is bound each way; where A is not known here, only calls to B are."""
    there, back = pair(X, A, B, NOW, None, 600)
    assert (there.a, there.b, there.max_call_s) == (A, B, 600)
    assert (back.a, back.b, back.max_call_s) == (B, A, 600)
    assert standing([there, back], X, A, NOW) == (Standing.LIVE, back)
    assert standing([there, back], X, B, NOW) == (Standing.LIVE, there)
    assert pair(X, "", B, NOW) == (Binding(X, "", B, NOW),)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(-1, Standing.NONE), (0, Standing.LIVE), (3599, Standing.LIVE), (3600, Standing.EXPIRED)],
)
def test_dates_are_half_open(seconds: int, expected: Standing) -> None:
    """A binding holds from its first moment until just before its end; before it begins it is none at all."""
    bound = pair(X, A, B, NOW, NOW + timedelta(hours=1))
    assert standing(bound, X, B, NOW + timedelta(seconds=seconds))[0] is expected


def test_one_x_serves_many_pairs() -> None:
    """X stands for whoever is bound to this callee; somebody else's binding says nothing."""
    over = pair(X, A, B, NOW - timedelta(hours=2), NOW - timedelta(hours=1))
    other = pair(X, A, C, NOW)
    assert standing([*over, *other], X, B, NOW) == (Standing.EXPIRED, over[0])
    assert standing([*over, *other], X, C, NOW) == (Standing.LIVE, other[0])
    assert standing([*over, *other], X, "13900000000", NOW) == (Standing.NONE, None)


def test_renewed_binding_holds_with_its_new_terms() -> None:
    """Of two bindings that hold, that with the later end counts, with its maximum call time."""
    first = Binding(X, A, B, NOW, NOW + timedelta(hours=1), 60)
    renewed = Binding(X, A, B, NOW, NOW + timedelta(hours=2), 120)
    assert standing([first, renewed], X, B, NOW) == (Standing.LIVE, renewed)


@given(st.lists(bindings, max_size=8), moments, st.randoms(use_true_random=False))
def test_standing_is_what_the_dates_say(bound: list[Binding], at: datetime, random: object) -> None:
    """LIVE exactly when one for X and callee holds, EXPIRED when one has been, whatever the order."""
    shuffled = list(bound)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    found, by = standing(bound, X, B, at)
    assert standing(shuffled, X, B, at) == (found, by)
    ours = [each for each in bound if (each.x, each.b) == (X, B)]
    if any(live(each, at) for each in ours):
        assert found is Standing.LIVE
    elif any(each.since <= at for each in ours):
        assert found is Standing.EXPIRED
    else:
        assert found is Standing.NONE
    if by is None:
        assert found is Standing.NONE
    else:
        assert by in ours
        assert live(by, at) is (found is Standing.LIVE)
