"""SIM table, rotation policies, talk-time and interval limits: rules with a clock that the test moves."""

from datetime import UTC, datetime, timedelta

import pytest

from pbxguard.errors import BadInput
from pbxguard.lab.goip.sims import (
    Limits,
    Period,
    Placed,
    Rotation,
    RotationKind,
    Sim,
    SimTable,
    Usage,
    after_call,
    luhn_digit,
    next_sim,
    remaining,
    too_soon,
)

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
TABLE = SimTable.fictional(5)
ROW = {
    "msisdn": "+8613957100001", "imsi": "460001234567890", "iccid": "89860012345678901234", "imei": "490154203237518",
    "operator": "CHINA MOBILE", "lac": "7e5", "cell_id": "5E5B", "signal": "29",
}  # fmt: skip


def test_a_table_is_read_from_rows_of_text() -> None:
    """Every column of a row is in the SIM; hexadecimal cells become capitals, a missing signal is 24."""
    (sim,) = SimTable.read([ROW])
    assert (sim.msisdn, sim.imsi, sim.iccid, sim.imei) == tuple(ROW[n] for n in ("msisdn", "imsi", "iccid", "imei"))
    assert (sim.operator, sim.cell.lac, sim.cell.cell_id, sim.signal) == ("CHINA MOBILE", "7E5", "5E5B", 29)
    assert SimTable.read([{k: v for k, v in ROW.items() if k != "signal"}])[0].signal == 24


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("imsi", "46000", "row 2: imsi"),
        ("imei", "49015420323751", "row 2: imei"),
        ("iccid", "x", "row 2: iccid"),
        ("msisdn", "zhang", "row 2: msisdn"),
        ("msisdn", "", "row 2: msisdn is missing"),
        ("cell_id", "5E5G", "row 2: lac and cell_id"),
        ("signal", "32", "row 2: signal"),
        ("operator", "a;b", "row 2: operator"),
        ("imsi", ROW["imsi"], "row 2: imsi 460001234567890 is there twice"),
    ],
)
def test_a_bad_row_is_named(column: str, value: str, says: str) -> None:
    """A value without its form, or one that is there twice, is an error that names row and column."""
    second = ROW | {"msisdn": "13957100002", "imsi": "460001234567891", "iccid": "89860012345678901235"}
    with pytest.raises(BadInput, match=says):
        SimTable.read([ROW, second | {column: value}])


def test_fictional_sims_are_of_the_test_network() -> None:
    """Made-up SIMs are of network 001 01, have check digits, and no two are alike."""
    table = SimTable.fictional(300)
    assert all(sim.imsi.startswith("00101") and sim.imei.startswith("001012") for sim in table)
    assert all(luhn_digit(sim.imei[:-1]) == sim.imei[-1] for sim in table)
    assert all(luhn_digit(sim.iccid[:-1]) == sim.iccid[-1] for sim in table)
    assert luhn_digit("49015420323751") == "8"  # the example of 3GPP TS 23.003 annex B


@pytest.mark.parametrize("dialled", ["13957102003", "+8613957102003", "008613957102003"])
def test_a_sim_is_found_by_its_number_as_dialled(dialled: str) -> None:
    """A number reaches its SIM in home and in international form."""
    assert TABLE.by_number(dialled) is TABLE[2]
    assert TABLE.by_number("13957102099") is None


def chosen(
    rotation: Rotation, placed: Placed, now: datetime = NOW, used: dict[str, Usage] | None = None
) -> Sim | None:
    """What a line that holds *placed* gets while SIM 2 is in another line."""
    return next_sim(rotation, TABLE, placed, {TABLE[1].imsi}, used or {}, now)


def test_round_robin_takes_the_next_free_sim_after_each_call() -> None:
    """After a call comes the next SIM that no other line holds, after the last the first; before a call, none."""
    policy = Rotation(RotationKind.ROUND_ROBIN)
    assert chosen(policy, Placed(TABLE[0], NOW)) is None
    assert chosen(policy, Placed(TABLE[0], NOW, calls=1)) is TABLE[2]
    assert chosen(policy, Placed(TABLE[4], NOW, calls=1)) is TABLE[0]


def test_least_used_takes_the_sim_with_the_fewest_calls() -> None:
    """After a call comes the free SIM with the fewest calls, then the least talk; the own one stays if it is that."""
    policy = Rotation(RotationKind.LEAST_USED)
    used = {sim.imsi: Usage(calls=n) for sim, n in zip(TABLE, (3, 0, 2, 1, 1), strict=True)}
    used[TABLE[3].imsi] = Usage(calls=1, talk=MINUTE)
    assert chosen(policy, Placed(TABLE[0], NOW, calls=1), used=used) is TABLE[4]
    assert chosen(policy, Placed(TABLE[4], NOW, calls=1), used=used) is None


def test_after_k_calls_and_m_minutes() -> None:
    """The SIM is changed with its k-th call in the line, or when it has been there for m minutes, not before."""
    calls, minutes = Rotation(RotationKind.AFTER_CALLS, 3), Rotation(RotationKind.AFTER_MINUTES, 30)
    assert chosen(calls, Placed(TABLE[0], NOW, calls=2)) is None
    assert chosen(calls, Placed(TABLE[0], NOW, calls=3)) is TABLE[2]
    assert chosen(minutes, Placed(TABLE[0], NOW), NOW + 29 * MINUTE) is None
    assert chosen(minutes, Placed(TABLE[0], NOW), NOW + 30 * MINUTE) is TABLE[2]


def test_by_hour_changes_when_the_hour_does() -> None:
    """The SIM is changed in the first minute of another hour, also the same hour of another day."""
    policy, placed = Rotation(RotationKind.BY_HOUR), Placed(TABLE[0], NOW)
    assert chosen(policy, placed, NOW + 59 * MINUTE) is None
    assert chosen(policy, placed, NOW + 60 * MINUTE) is TABLE[2]
    assert chosen(policy, placed, NOW + timedelta(days=1)) is TABLE[2]


def test_no_rotation_without_a_spare_sim() -> None:
    """With all SIMs in lines nothing changes, and `never` never does."""
    elsewhere = {sim.imsi for sim in TABLE[1:]}
    placed = Placed(TABLE[0], NOW - timedelta(days=1), calls=9)
    for kind in RotationKind:
        assert next_sim(Rotation(kind), TABLE, placed, elsewhere, {}, NOW) is None
    assert chosen(Rotation(), placed) is None


@pytest.mark.parametrize(
    ("period", "later", "left"),
    [
        (Period.NEVER, timedelta(days=40), 4 * MINUTE),
        (Period.DAY, timedelta(hours=11), 4 * MINUTE),
        (Period.DAY, timedelta(hours=12), 10 * MINUTE),
        (Period.MONTH, timedelta(days=9), 4 * MINUTE),
        (Period.MONTH, timedelta(days=10), 10 * MINUTE),
    ],
)
def test_talk_time_begins_anew_with_its_period(period: Period, later: timedelta, left: timedelta) -> None:
    """What was talked stands against the limit until the day or month of the clock's zone is over."""
    limits = Limits(talk=10 * MINUTE, period=period)
    used = after_call(Usage(), limits, 6 * MINUTE, NOW)
    assert remaining(used, limits, NOW + later) == left
    assert (used.calls, used.talk) == (1, 6 * MINUTE)


def test_talk_time_does_not_go_below_nothing() -> None:
    """More talk than the limit leaves 0; no limit leaves None."""
    used = after_call(Usage(), Limits(talk=MINUTE), 5 * MINUTE, NOW)
    assert remaining(used, Limits(talk=MINUTE), NOW) == timedelta(0)
    assert remaining(used, Limits(), NOW) is None


def test_interval_between_outgoing_calls() -> None:
    """A SIM may not dial again until the interval since the end of its last call has passed."""
    limits = Limits(interval=timedelta(seconds=20))
    used = after_call(Usage(), limits, timedelta(0), NOW)
    assert too_soon(used, limits, NOW + timedelta(seconds=19))
    assert not too_soon(used, limits, NOW + timedelta(seconds=20))
    assert not too_soon(Usage(), limits, NOW)
