"""Lines and their states, the four configuration modes and what they refuse, limits and SIM changes of a box."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbxguard.errors import BadInput, UnknownName
from pbxguard.lab.goip.box import (
    Box,
    DropWanted,
    Event,
    HungUp,
    Line,
    LinePlan,
    Mode,
    Recorded,
    Refusal,
    SimChanged,
    State,
    StateChanged,
)
from pbxguard.lab.goip.sims import Limits, Rotation, RotationKind, SimTable


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def on(self, **by: float) -> None:
        self.now += timedelta(**by)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(clock: Clock, *plans: LinePlan, mode: Mode = Mode.SINGLE, sims: int = 0, **more: object) -> Box:
    plans = plans or (LinePlan(), LinePlan(), LinePlan())
    return Box(plans, SimTable.fictional(sims or len(plans)), clock=clock, mode=mode, **more)  # type: ignore[arg-type]


def heard(box: Box) -> list[Event]:
    events: list[Event] = []
    box.watch(events.append)
    return events


def states(events: list[Event]) -> list[str]:
    return [str(event) for event in events if isinstance(event, StateChanged)]


def got(answer: Line | Refusal) -> int:
    """Number of the line, or the status."""
    return answer.number if isinstance(answer, Line) else answer.status


# -- states -----------------------------------------------------------------------------------------------


def test_an_incoming_call(clock: Clock) -> None:
    """IDLE, INCOMING:cli, ACTIVE, IDLE; RECORD in at the answer, HANGUP with its cause and its length."""
    box = make(clock)
    events = heard(box)
    assert box.incoming(2, "13800138000")
    clock.on(seconds=7)
    assert box.connected(2)
    clock.on(seconds=61)
    assert box.hung_up(2) is None
    assert states(events) == ["INCOMING:13800138000", "ACTIVE", "IDLE"]
    (record,) = [event for event in events if isinstance(event, Recorded)]
    (over,) = [event for event in events if isinstance(event, HungUp)]
    assert (record.direction, record.party, record.line) == (1, "13800138000", 2)
    assert (over.party, over.text, over.talked) == ("13800138000", "Normal call clearing", timedelta(seconds=61))
    assert box.usage == {}  # limits and rotation count what the SIM pays for


def test_an_outgoing_call(clock: Clock) -> None:
    """DIALING, ALERTING, CONNECTED with the number, then IDLE; RECORD out; it counts as a call of its SIM."""
    box = make(clock)
    events = heard(box)
    line = box.dial("10086")
    assert isinstance(line, Line)
    assert box.alerting(line.number)
    assert box.connected(line.number)
    clock.on(minutes=3)
    assert box.hung_up(line.number) is None
    assert states(events) == ["DIALING:10086", "ALERTING:10086", "CONNECTED:10086", "IDLE"]
    assert [event.direction for event in events if isinstance(event, Recorded)] == [2]
    assert (box.usage[line.sim.imsi].calls, box.usage[line.sim.imsi].talk) == (1, timedelta(minutes=3))


@pytest.mark.parametrize(
    ("cause", "status"), [(17, 480), (1, 404), (21, 603), (34, 503), (18, 408), (27, 502), (16, 480), (99, 500)]
)
def test_an_outgoing_call_that_is_not_answered(clock: Clock, cause: int, status: int) -> None:
    """The GSM cause becomes a SIP status; a busy callee is the gateway's own "480 Remote Busy"."""
    box = make(clock)
    line = box.dial("10086")
    assert isinstance(line, Line)
    box.alerting(line.number)
    refusal = box.hung_up(line.number, cause)
    assert refusal is not None
    assert refusal.status == status
    assert (refusal.phrase == "Remote Busy") == (cause == 17)


@pytest.mark.parametrize(("setting", "phrase"), [(480, "Remote Busy"), (486, "Busy Here"), (603, "Decline")])
def test_the_status_of_a_busy_callee_is_a_setting(clock: Clock, setting: int, phrase: str) -> None:
    """480, 486 or 603, with their phrases."""
    box = make(clock, busy_status=setting)
    assert isinstance(box.dial("10086"), Line)
    refusal = box.hung_up(1, 17)
    assert refusal is not None
    assert (refusal.status, refusal.phrase) == (setting, phrase)


def test_what_does_not_fit_a_line_changes_nothing(clock: Clock) -> None:
    """An answer, ringing or hang-up without a call, and a second caller, are turned away without an event."""
    box = make(clock)
    events = heard(box)
    assert not box.connected(1)
    assert not box.alerting(1)
    assert box.hung_up(1) is None
    assert events == []
    assert box.incoming(1, "")
    before = list(events)
    assert not box.incoming(1, "10086")
    assert not box.alerting(1)
    assert events == before
    assert states(events) == ["INCOMING"]  # withheld
    for number in (0, 4):
        with pytest.raises(UnknownName, match="1 to 3"):
            box.incoming(number, "10086")


DOING: dict[str, Callable[[Box, int], object]] = {
    "dial": lambda box, _n: box.dial("10086"),
    "in": lambda box, n: box.incoming(n, "10010"),
    "alerting": Box.alerting,
    "connected": Box.connected,
    "hung_up": Box.hung_up,
    "reboot": Box.reboot,
    "off": lambda box, n: box.enable(n, on=False),
    "on": lambda box, n: box.enable(n, on=True),
    "tick": lambda box, _n: box.tick(),
}


@given(st.lists(st.tuples(st.sampled_from(list(DOING)), st.integers(1, 3))))
def test_any_order_of_events_leaves_a_box_that_makes_sense(steps: list[tuple[str, int]]) -> None:
    """Whatever comes in whatever order: a line has a party exactly while it has a call, and a hang-up frees it."""
    clock = Clock()
    box = make(clock, sims=5, rotation=Rotation(RotationKind.ROUND_ROBIN))
    for what, number in steps:
        DOING[what](box, number)
        clock.on(seconds=5)
        for line in box.lines:
            assert bool(line.party) == (line.state not in (State.IDLE, State.BUSY))
            assert (line.answered is not None) == (line.state in (State.ACTIVE, State.CONNECTED))
        assert len({line.sim.imsi for line in box.lines}) == 3
    for line in box.lines:
        box.hung_up(line.number)
        box.enable(line.number, on=True)
    clock.on(minutes=1)
    box.tick()
    assert all(line.state is State.IDLE and line.gsm_up for line in box.lines)


# -- configuration modes (GoIP User Manual, lab-and-goip.md 2.2) ---------------------------------------------


def test_single_mode_takes_the_line_whose_prefix_matches(clock: Clock) -> None:
    """The matching line first; while it is busy, and for other numbers, an idle line without prefix; then 503."""
    box = make(clock, LinePlan(), LinePlan(("9",)), LinePlan())
    assert [got(box.dial(number)) for number in ("95588", "95588", "13800138000", "95588")] == [2, 1, 3, 503]


def test_single_mode_refuses_when_all_prefixes_are_set_and_none_matches(clock: Clock) -> None:
    """503, though every line is idle; also when the only line that matches is busy."""
    box = make(clock, LinePlan(("8",)), LinePlan(("9", "10")))
    assert got(box.dial("13800138000")) == 503
    assert [got(box.dial("10086")), got(box.dial("10086"))] == [2, 503]


def test_by_line_a_prefix_is_mandatory(clock: Clock) -> None:
    """No prefix of the called account's line matches: 404, also without any; it matches but is busy: 503."""
    box = make(clock, LinePlan(("9",)), LinePlan(("1",)), LinePlan(), mode=Mode.LINE)
    assert got(box.dial("86", line=1)) == 404
    assert got(box.dial("10086", line=1)) == 404
    assert got(box.dial("10086", line=3)) == 404
    assert got(box.dial("10086", line=2)) == 2
    assert got(box.dial("10086", line=2)) == 503
    assert got(box.dial("95588")) == 1


def test_by_group_an_idle_line_of_the_group(clock: Clock) -> None:
    """An idle line of the called account's group; none idle: 503; a group without lines: 404."""
    box = make(clock, LinePlan(group="a"), LinePlan(group="b"), LinePlan(group="a"), mode=Mode.GROUP)
    assert [got(box.dial("10086", group=group)) for group in "aaabc"] == [1, 3, 503, 2, 404]


def test_trunk_mode_takes_the_least_used_idle_line(clock: Clock) -> None:
    """Each call goes to the idle line with the fewest calls so far; none idle: 503."""
    box = make(clock, mode=Mode.TRUNK)
    assert [got(box.dial("10086")) for _ in range(4)] == [1, 2, 3, 503]
    box.hung_up(1)
    box.hung_up(2)
    assert got(box.dial("10086")) == 1
    box.hung_up(1)
    assert [got(box.dial("10086")), got(box.dial("10086"))] == [2, 1]


def test_trunk_mode_takes_calls_from_its_gateways_only(clock: Clock) -> None:
    """Three sources, the last octet may be x; another, or none, is refused with 403; a fourth is a bad setting."""
    sources = ("198.18.0.10", "198.18.1.x", "127.0.0.1")
    box = make(clock, mode=Mode.TRUNK, sources=sources)
    asked = ("198.18.0.10", "198.18.1.77", "198.18.0.11")
    assert [got(box.dial("10086", source=IPv4Address(source))) for source in asked] == [1, 2, 403]
    assert got(box.dial("10086")) == 403
    with pytest.raises(BadInput, match="3 addresses at most"):
        make(clock, mode=Mode.TRUNK, sources=(*sources, "198.18.0.12"))
    with pytest.raises(BadInput, match="no IPv4 address"):
        make(clock, mode=Mode.TRUNK, sources=("198.18.x.x",))


@pytest.mark.parametrize("number", ["", "anna", "1;rm", "1" * 41, "١٢٣"])
def test_what_gsm_cannot_dial_is_not_found(clock: Clock, number: str) -> None:
    """A called user that is no number is 404 and takes no line."""
    box = make(clock)
    assert got(box.dial(number)) == 404
    assert all(line.state is State.IDLE for line in box.lines)


# -- limits, module, SIM changes ----------------------------------------------------------------------------


def test_a_sim_within_its_interval_is_not_idle(clock: Clock) -> None:
    """After an outgoing call the line takes none until the interval is over, but may be called."""
    box = make(clock, LinePlan(), limits=Limits(interval=timedelta(seconds=20)))
    assert got(box.dial("10086")) == 1
    box.hung_up(1)
    clock.on(seconds=19)
    assert got(box.dial("10086")) == 503
    clock.on(seconds=1)
    assert got(box.dial("10086")) == 1


def test_a_sim_without_talk_time_is_not_idle(clock: Clock) -> None:
    """The call is dropped when the time is up, its HANGUP says 0 remains, then 503 until the time is given again."""
    box = make(clock, LinePlan(), limits=Limits(talk=timedelta(minutes=2)))
    events = heard(box)
    box.dial("10086")
    box.connected(1)
    clock.on(seconds=119)
    box.tick()
    assert not any(isinstance(event, DropWanted) for event in events)
    clock.on(seconds=1)
    box.tick()
    assert any(isinstance(event, DropWanted) for event in events)
    box.hung_up(1)
    assert [event.remains for event in events if isinstance(event, HungUp)] == [timedelta(0)]
    assert got(box.dial("10086")) == 503
    box.reset_talk(1)
    assert got(box.dial("10086")) == 1


def test_a_call_that_is_too_long_is_dropped(clock: Clock) -> None:
    """The limit of one call ends an outgoing call, not an incoming one."""
    box = make(clock, limits=Limits(call=timedelta(minutes=1)))
    events = heard(box)
    box.dial("10086")
    box.connected(1)
    box.incoming(2, "10010")
    box.connected(2)
    clock.on(minutes=1)
    box.tick()
    assert [event.line for event in events if isinstance(event, DropWanted)] == [1]


def test_a_module_that_starts_is_busy_and_out_of_the_network(clock: Clock) -> None:
    """BUSY and logged out while it starts, its call dropped first; then idle again."""
    box = make(clock, LinePlan(), restart=timedelta(seconds=20))
    events = heard(box)
    box.incoming(1, "10010")
    box.reboot(1)
    assert [event.why for event in events if isinstance(event, DropWanted)] == ["the module starts"]
    box.hung_up(1)
    assert (box.line(1).state, box.line(1).gsm_up) == (State.BUSY, False)
    assert got(box.dial("10086")) == 503
    assert not box.incoming(1, "10010")
    clock.on(seconds=20)
    box.tick()
    assert got(box.dial("10086")) == 1


def test_sims_change_between_calls_only(clock: Clock) -> None:
    """A SIM that is due stays for the call that is under way, and goes at its end; no SIM is in two lines."""
    box = make(clock, LinePlan(), sims=3, rotation=Rotation(RotationKind.AFTER_MINUTES, 10))
    events = heard(box)
    box.incoming(1, "10010")
    clock.on(minutes=11)
    box.tick()
    assert box.line(1).sim is box.sims[0]
    box.hung_up(1)
    assert box.line(1).sim is box.sims[1]
    assert [event.sim for event in events if isinstance(event, SimChanged)] == [box.sims[1]]


def test_a_campaign_spreads_over_the_sims(clock: Clock) -> None:
    """Least-used rotation of 8 SIMs in 2 lines in trunk mode: after 80 calls each SIM has made 10."""
    box = make(
        clock, LinePlan(), LinePlan(), mode=Mode.TRUNK, sims=8, rotation=Rotation(RotationKind.LEAST_USED)
    )  # fmt: skip
    for _ in range(80):
        line = box.dial("13800138000")
        assert isinstance(line, Line)
        clock.on(seconds=15)
        box.hung_up(line.number)
    assert sorted(used.calls for used in box.usage.values()) == [10] * 8


def test_bad_boxes_are_refused(clock: Clock) -> None:
    """Too few SIMs, a prefix that is no number and a busy status that there is not are named."""
    with pytest.raises(BadInput, match="3 lines need as many SIMs"):
        Box([LinePlan()] * 3, SimTable.fictional(2), clock=clock)
    with pytest.raises(BadInput, match="prefix"):
        make(clock, LinePlan(("9x",)))
    with pytest.raises(BadInput, match="busy_status"):
        make(clock, busy_status=500)
