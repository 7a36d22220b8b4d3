"""What the machine's host takes of its processors, and what the lab and its tests make of that."""

from pathlib import Path

import pytest
from placed import in_time
from processors import Host

from pbxguard.lab import cli, room
from pbxguard.lab.evidence import Evidence, Observed
from pbxguard.lab.room import Ticks
from pbxguard.lab.run import Run
from pbxguard.lab.scenario import CallStep, Scenario, Step

CALL = CallStep(cli="13800138000", callee="13957100001", trunk="natl")


def test_what_the_host_takes_is_a_part_of_all_time(tmp_path: Path) -> None:
    """The eighth number of the kernel's line is what was stolen; guests are counted with the first two already."""
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 10 50 800 20 5 5 10 40 4\ncpu0 50 5 25 400 10 2 3 5 20 2\n")
    before = Ticks.now(stat)
    stat.write_text("cpu  150 10 60 810 20 5 5 40 60 4\ncpu0 50 5 25 400 10 2 3 5 20 2\n")

    assert before == Ticks(10, 1000)
    assert Ticks.now(stat).stolen_since(before) == pytest.approx(0.3)
    assert before.stolen_since(before) == 0.0
    assert 0 <= Ticks.now().stolen_since(Ticks(0, 0)) <= 1


def scenario(name: str) -> Scenario:
    return Scenario(name=name, title=name, step=(Step(title=name, call=CALL),))


def placed(chosen: list[Scenario], fails: set[str], stolen: float) -> Run:
    observed = Observed("failed", "", None, False, False, "", 0.0, None)
    calls = [
        Evidence(each.name, each.name, "x", CALL, None, observed, ("cut",) if each.name in fails else ())
        for each in chosen
    ]
    return Run("x", Path(), calls=calls, stolen=stolen)


@pytest.mark.parametrize(("stolen", "times"), [(0.0, 1), (room.STUTTERS_AT, 2)])
def test_calls_are_placed_again_only_where_the_host_took_processors(stolen: float, times: int) -> None:
    """On a machine that has its processors a failed call stays failed; on another it is placed again."""
    asked: list[list[str]] = []

    def place(chosen: list[Scenario]) -> Run:
        asked.append([each.name for each in chosen])
        return placed(chosen, {"b"} if len(asked) == 1 else set(), stolen)

    chosen = [scenario(name) for name in "abc"]
    if times == 1:
        run = in_time(place, chosen)
    else:
        with pytest.warns(UserWarning, match="the host took 3% of the processors, placed again: \\['b'\\]"):
            run = in_time(place, chosen)

    assert asked == [["a", "b", "c"], ["b"]][:times]
    assert [call.scenario for call in run.calls if not call.passed] == ["b"][: 2 - times]
    assert sorted(call.scenario for call in run.calls) == ["a", "b", "c"]


@pytest.mark.parametrize(("stolen", "fails", "said"), [(0.2, {"a"}, True), (0.2, set(), False), (0.01, {"a"}, False)])
def test_a_run_that_failed_says_what_the_host_took(
    capsys: pytest.CaptureFixture[str], stolen: float, fails: set[str], *, said: bool
) -> None:
    """Who sees calls fail on a machine without its processors is told so; nobody else is."""
    cli._summary(placed([scenario("a")], fails, stolen))

    assert ("took 20% of its processors' time" in capsys.readouterr().out) == said


def test_a_test_of_calls_waits_for_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """What begins while the host takes processors waits until a whole look finds them there, and says so."""
    looks = iter([Ticks(0, 0), Ticks(50, 100), Ticks(90, 200), Ticks(91, 300)])
    monkeypatch.setattr(Ticks, "now", lambda: next(looks))
    monkeypatch.setattr(Host, "LOOK", 0.0)
    host = Host()
    with pytest.warns(UserWarning, match="the host took processors"):
        host.wait()

    assert next(looks, None) is None
    assert 0.9 < host.waited < 30
