"""What the machine's host takes of its processors, and what the lab and its tests make of that."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import processors
import pytest
from placed import in_time
from processors import Host

from pbxguard.lab import cli, room, waiting
from pbxguard.lab.evidence import Evidence, Observed
from pbxguard.lab.room import Ticks
from pbxguard.lab.run import Run
from pbxguard.lab.scenario import CallStep, Expect, Scenario, Sound, Step

CALL = CallStep(cli="13800138000", callee="13957100001", trunk="natl")


def test_what_the_host_takes_is_a_part_of_all_time(tmp_path: Path) -> None:
    """The eighth number of the kernel's line is what was stolen; nobody wanted idle time, and guests are counted with
    the first two already.
    """
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 10 50 800 20 5 5 10 40 4\ncpu0 50 5 25 400 10 2 3 5 20 2\n")
    before = Ticks.now(stat)
    stat.write_text("cpu  150 10 60 810 20 5 5 40 60 4\ncpu0 50 5 25 400 10 2 3 5 20 2\n")

    assert before == Ticks(10, 180)
    assert Ticks.now(stat).stolen_since(before) == pytest.approx(30 / 90)
    assert before.stolen_since(before) == 0.0
    assert 0 <= Ticks.now().stolen_since(Ticks(0, 0)) <= 1


def scenario(name: str) -> Scenario:
    return Scenario(name=name, title=name, step=(Step(title=name, call=CALL),))


STUTTERED = "prompt: expected x whole, observed x cut"
REFUSED = "verdict: expected block, observed allow"


WHOLE = Expect(verdict="allow", heard=Sound.WHOLE)


def placed(chosen: Sequence[Scenario], fails: Mapping[str, Sequence[str]], stolen: float) -> Run:
    """A run in which the steps of these scenarios failed so, one after the other, and all others passed."""
    observed = Observed("failed", "", None, False, False, "", 0.0, None, heard="cut")
    calls = [
        Evidence(each.name, each.name, "x", CALL, WHOLE, observed, (fault,) if fault else ())
        for each in chosen
        for fault in fails.get(each.name, [""])
    ]
    return Run("x", Path(), calls=calls, stolen=stolen)


BOTH = {"two_way_audio": True}


@pytest.mark.parametrize(
    ("fault", "wanted", "seen", "again"),
    [
        (STUTTERED, {"prompt": "x"}, {"prompt": "x", "heard": "cut"}, True),
        (STUTTERED, {"prompt": "x"}, {"prompt": "y", "heard": "wrong"}, False),
        (STUTTERED, {"prompt": "x"}, {"heard": "nothing"}, False),
        (STUTTERED, {"prompt": ""}, {"prompt": "x", "heard": "whole"}, False),
        ("heard: expected whole, observed gaps", {"heard": "whole"}, {"heard": "gaps"}, True),
        ("heard: expected whole, observed noise", {"heard": "whole"}, {"heard": "noise"}, False),
        ("heard: expected gaps, observed whole", {"heard": "gaps"}, {"heard": "whole"}, False),
        ("two_way_audio: expected yes, observed no", BOTH, {"heard": "gaps", "callee_heard": "cut"}, True),
        ("two_way_audio: expected yes, observed no", BOTH, {"heard": "gaps", "callee_heard": ""}, False),
        ("two_way_audio: expected no, observed yes", {"two_way_audio": False}, {"heard": "whole",
                                                                               "callee_heard": "whole"}, False),
        ("callee_heard: expected whole, observed no call", {"callee_heard": "whole"}, {"heard": "whole"}, False),
        ("origin_heard: expected whole, observed gaps", {"origin_heard": "whole"}, {"origin_heard": "gaps"}, True),
        (REFUSED, {"heard": "whole"}, {"heard": "cut"}, False),
        ("rang: expected none, observed zhang", {}, {"heard": "whole"}, False),
    ],
)  # fmt: skip
def test_what_counts_as_a_stutter(
    fault: str, wanted: dict[str, object], seen: dict[str, str], *, again: bool
) -> None:
    """Parts of the right sound are missing, and nothing else is the matter."""
    observed = replace(Observed("failed", "", None, False, False, "", 0.0, None), **seen)  # type: ignore[arg-type]
    expected = Expect.model_validate({"verdict": "allow", **wanted})
    call = Evidence("a", "a", "x", CALL, expected, observed, (fault,))

    assert call.stuttered == again
    assert not replace(call, faults=()).stuttered
    assert not replace(call, faults=(fault, REFUSED)).stuttered
    assert not replace(call, observed=replace(observed, leaked="intl_default_off")).stuttered
    assert not replace(call, expected=None).stuttered


@pytest.mark.parametrize(
    ("stolen", "fails", "second"),
    [
        (0.0, {"b": [STUTTERED]}, []),
        (0.5, {"b": [REFUSED]}, []),
        (0.5, {"b": [STUTTERED, REFUSED]}, []),
        (room.STUTTERS_AT, {"b": [STUTTERED]}, ["b"]),
        (0.5, {"b": ["", STUTTERED], "c": [REFUSED]}, ["b"]),
    ],
)
def test_calls_are_placed_again_only_where_they_stuttered(
    monkeypatch: pytest.MonkeyPatch, stolen: float, fails: dict[str, list[str]], second: list[str]
) -> None:
    """On a machine that has its processors a failed call stays failed; elsewhere, if it failed in more."""
    asked: list[list[str]] = []

    def place(chosen: Sequence[Scenario]) -> Run:
        asked.append([each.name for each in chosen])
        return placed(chosen, fails if len(asked) == 1 else {}, stolen)

    machine = Machine(monkeypatch, range(0))
    host = Host(machine.ticks, machine.work)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run = in_time(place, [scenario(name) for name in "abc"], host)

    assert asked == [["a", "b", "c"], second][: 1 + bool(second)]
    assert machine.worked == bool(second)
    assert [f"the host took {stolen:.0%} of the processors; placed again:\nNone: {STUTTERED}"] * bool(second) == [
        str(each.message) for each in said
    ]
    assert {call.scenario for call in run.calls if not call.passed} == fails.keys() - set(second)
    assert {call.scenario for call in run.calls} == {"a", "b", "c"}


def test_what_cannot_be_placed_again_stays_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run that skips what stuttered in the first does not make it pass."""
    runs = iter([placed([scenario("b")], {"b": [STUTTERED]}, 0.5), Run("x", Path(), skipped=[{"scenario": "b"}])])
    machine = Machine(monkeypatch, range(0))
    with pytest.warns(UserWarning, match="placed again"):
        run = in_time(lambda _: next(runs), [scenario("b")], Host(machine.ticks, machine.work))

    assert [call.passed for call in run.calls] == [False]
    assert run.skipped == []


@pytest.mark.parametrize(
    ("stolen", "fails", "said"),
    [
        (0.2, {"a": [STUTTERED]}, True),
        (0.2, {"a": [REFUSED]}, False),
        (0.2, {}, False),
        (0.01, {"a": [STUTTERED]}, False),
    ],
)
def test_a_run_that_failed_says_what_the_host_took(
    capsys: pytest.CaptureFixture[str], stolen: float, fails: dict[str, list[str]], *, said: bool
) -> None:
    """Who hears calls stutter on a machine without its processors is told so; nobody else is."""
    cli._summary(placed([scenario("a")], fails, stolen))

    assert ("kept 20% of the processors' time" in capsys.readouterr().out) == said


class Machine:
    """A host that keeps half of the processors' time in some of the seconds that a test waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bad: range) -> None:
        self.clock, self.bad, self.worked = 0.0, bad, 0
        self.stolen = self.wanted = 0
        for module in (processors, waiting):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.clock, sleep=self.sleep))

    def pass_by(self, seconds: float, busy: float) -> None:
        wanted = round(100 * seconds * busy)
        self.stolen += wanted // 2 if int(self.clock) in self.bad else 0
        self.wanted += wanted
        self.clock += seconds

    def sleep(self, seconds: float) -> None:
        self.pass_by(seconds, 0.0)

    def work(self, seconds: float) -> None:
        self.worked += 1
        self.pass_by(seconds, 1.0)

    def ticks(self) -> Ticks:
        return Ticks(self.stolen, self.wanted)


def test_a_test_of_calls_waits_for_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks anew, at work, where some were missing of late; it waits until they are there, and says so."""
    machine = Machine(monkeypatch, range(3, 31))
    host = Host(machine.ticks, machine.work)
    machine.pass_by(3.0, 1.0)
    machine.pass_by(1.0, 1.0)
    host.wait()
    assert machine.worked == 0
    machine.pass_by(1.0, 1.0)

    with pytest.warns(UserWarning, match="the host took processors: waited for them, 2. s in all by now"):
        host.wait()

    assert 31 <= machine.clock < 37
    assert machine.worked == 7  # half a second each, five apart


def test_a_bad_time_that_is_over_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors were missing while the last test ran, and are there now: the next begins."""
    machine = Machine(monkeypatch, range(60))
    host = Host(machine.ticks, machine.work)
    machine.pass_by(60.0, 1.0)

    host.wait()

    assert (machine.worked, host.waited) == (1, 0.0)


def test_patience_with_the_host_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where processors are missing all day, a test waits a minute, and all of them ten."""
    machine = Machine(monkeypatch, range(10**6))
    host = Host(machine.ticks, machine.work)
    waits = 0
    while host.waited < Host.PATIENCE:
        machine.pass_by(10.0, 1.0)
        begun = machine.clock
        with pytest.warns(UserWarning, match="the host took processors"):
            host.wait()
        assert 60 <= machine.clock - begun < 70
        waits += 1
    worked = machine.worked
    machine.pass_by(10.0, 1.0)

    host.wait(look=True)

    assert (waits, machine.worked) == (10, worked)
