"""What a person sees of a run: on a terminal a view, elsewhere one line a result; and whether N worlds have room."""

import io

import pytest
from rich.console import Console

from pbxguard.errors import LabUnavailable
from pbxguard.lab import room
from pbxguard.lab.evidence import Evidence, Observed
from pbxguard.lab.progress import Board
from pbxguard.lab.scenario import CallStep, Expect, Scenario, Step

EXPECT = Expect(verdict="allow", reason="default", sip_status=200)
SEEN = Observed("block", "x", 603, answered=False, callee_rang=False, prompt="", prompt_score=0, post_dial_ms=1)


def scenario(title: str) -> Scenario:
    """A scenario of one call."""
    call = CallStep(cli="+8526[bold]\x1b[31m", callee="zhang", trunk="intl")
    return Scenario(name=title, title=title, step=(Step(title=title, call=call, expect=EXPECT),))


def result(of: Scenario, *faults: str) -> Evidence:
    """What became of its call."""
    return Evidence(of.name, of.step[0].title, "1", of.step[0].call, EXPECT, SEEN, faults)


def drawn(board: Board) -> str:
    """The view as a terminal of 100 columns has it."""
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    console.print(board.view())
    return console.file.getvalue()


def test_the_view_has_calls_in_flight_results_and_seconds() -> None:
    """The view names who calls whom in which world and since when, who of the lab is busy, what is done, and what a
    world waits for.
    """
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    first, second = scenario("first"), scenario("second")
    with Board(console, "asterisk", calls=5, worlds=2) as board:
        board.say(1, "coming up")
        board.started(0, first, first.step[0])
        board.started(0, second, second.step[0])
        before = drawn(board)
        board.ended(0, result(second, "verdict: expected allow, observed block"))
        after = drawn(board)

    assert "world 1: coming up" in before
    assert "asterisk: 0 of 5 calls, 0 as expected, 0 not, 2 in flight, 0 s" in before
    assert "zhang" in before
    assert "\\x1b" in before
    assert "\x1b[31m" not in before
    assert "asterisk: 1 of 5 calls, 0 as expected, 1 not, 1 in flight" in after
    assert "callers: intl 2 natl ent" in before
    assert "telephones: zhang 2 li zhao" in before
    assert "callers: intl 1 natl ent" in after
    assert "✗ second" in after
    assert "verdict: expected allow, observed block" in after


def test_many_calls_in_flight_are_counted() -> None:
    """The view stays on one screen however many calls there are."""
    board = Board(Console(file=io.StringIO(), force_terminal=True), "asterisk", calls=99)
    for number in range(40):
        each = scenario(f"call {number}")
        board.started(0, each, each.step[0])

    assert "and 24 more" in drawn(board)
    assert len(drawn(board).splitlines()) < 24


def test_without_a_terminal_each_result_is_a_line() -> None:
    """A log gets one plain line for each call, and its first fault below it; nothing is drawn over."""
    file = io.StringIO()
    first = scenario("first")
    with Board(Console(file=file, width=100), "asterisk", calls=2) as board:
        board.say(0, "starting the handler")
        board.started(0, first, first.step[0])
        board.ended(0, result(first))
        board.ended(0, result(first, "sip_status: expected 200, observed 603", "rang: expected li, observed none"))

    assert file.getvalue().splitlines() == [
        "  ✓ first (0.0 s)",
        "  ✗ first",
        "      sip_status: expected 200, observed 603",
    ]


@pytest.mark.parametrize(
    ("worlds", "memory", "cpus", "said"),
    [
        (5, 100_000, 2, "--jobs 5 is too much for 2 processors (2 worlds each); give at most --jobs 4"),
        (3, 900, 8, "--jobs 3 is too much for 900 MiB of free memory (400 MiB a world); give at most --jobs 2"),
        (17, 100_000, 64, "--jobs 17 is too much for the lab's addresses, which are enough for 16; give at most"),
        (2, 10, 1, "give at most --jobs 1"),
    ],
)
def test_too_many_worlds_are_refused_with_how_many_fit(worlds: int, memory: int, cpus: int, said: str) -> None:
    """What the machine has too little of is named, and how many worlds it has room for."""
    with pytest.raises(LabUnavailable) as error:
        room.require(worlds, available_mib=memory, cpus=cpus)

    assert said in str(error.value)


def test_what_fits_is_not_refused() -> None:
    """One world is never refused: it is the lab itself; four on two processors are not either."""
    room.require(1, available_mib=10, cpus=1)
    room.require(4, available_mib=2000, cpus=2)


@pytest.mark.parametrize(
    ("worlds", "cpus", "at_once"), [(1, 1, 12), (1, 2, 12), (2, 2, 8), (2, 8, 12), (4, 2, 4), (16, 1, 1)]
)
def test_calls_at_once_are_what_the_processors_have_time_for(worlds: int, cpus: int, at_once: int) -> None:
    """Several worlds share eight calls at once for each processor; none has more than one alone has."""
    assert room.calls(worlds, cpus=cpus) == at_once
