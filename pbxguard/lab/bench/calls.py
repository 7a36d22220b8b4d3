"""The rows about calls: rates that are held, overload, post-dial delay, CPU for each call. Needs a ``Rig``.

The paths take turns in every measurement, so that what else the machine does meets all of them alike.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pbxguard.errors import LabUnavailable
from pbxguard.lab.bench.load import Load, place
from pbxguard.lab.bench.pbx import CALLEE, Pbx
from pbxguard.lab.bench.rig import Rig
from pbxguard.lab.bench.rows import Row, at_least, at_most, figure, unmeasured

Say = Callable[[str], None]

DELAY_RATE, CPU_RATE = 100, 200


@dataclass(frozen=True, slots=True)
class Effort:
    """How much time the measurements may take: seconds of each load, rounds of the search, turns of the delays."""

    seconds: float = 6
    rounds: int = 6
    overload_seconds: float = 10
    delay_seconds: float = 10
    turns: int = 3


QUICK = Effort(seconds=3, rounds=4, overload_seconds=4, delay_seconds=4, turns=1)


@dataclass
class Search:
    """Where one path's limit is known to be: ``low`` was held, ``high`` was not."""

    path: str
    low: float
    high: float
    seen: list[Load] = field(default_factory=list)

    @property
    def next_rate(self) -> float:
        """The middle, by ratio, in whole calls."""
        return float(round((self.low * self.high) ** 0.5))

    def learn(self, load: Load) -> None:
        """Narrow the bracket."""
        self.seen.append(load)
        if load.held:
            self.low = max(self.low, load.rate)
        else:
            self.high = min(self.high, load.rate)

    @property
    def step(self) -> float:
        """How far apart the bracket's ends still are, as a share."""
        return self.high / self.low - 1


def held_rates(rig: Rig, effort: Effort, say: Say) -> dict[str, Search]:
    """Find the highest rate that each path holds, by bisection, the paths in turn.

    A rate counts as not held when it failed twice: other work on the machine may spoil one try.

    Raises:
        LabUnavailable: A path held none of the rates.
    """
    paths = rig.pbx.paths
    searches = {path: Search(path, *rig.pbx.rates) for path in paths}
    for number in range(effort.rounds):
        for path, search in searches.items():
            rate = search.next_rate
            load = _turn(rig, path, rate, effort.seconds)
            if not load.held:
                load = _turn(rig, path, rate, effort.seconds)
            search.learn(load)
            state = (
                "held" if load.held else f"not held ({load.failed} failed, {load.retransmissions} retransmissions)"
            )
            say(f"round {number + 1} of {effort.rounds}: {paths[path]} at {rate:.0f} calls/s: {state}")
    for path, search in searches.items():
        if not any(load.held for load in search.seen):
            raise LabUnavailable(
                f"{paths[path]} held no rate that was tried, not even {search.high:.0f} calls/s; is the machine busy?"
            )
    return searches


def rate_rows(pbx: Pbx, searches: dict[str, Search]) -> list[Row]:
    """Part a."""
    path, name = pbx.rival
    guard, rival = searches[CALLEE], searches[path]
    rows = [
        at_least("a", _held(pbx), name, 0.9, guard.low / rival.low, "ratio", f"to {max(guard.step, rival.step):.0%}")
    ]
    rows += [
        figure("a", f"calls/s held, {pbx.title}: {pbx.paths[path]}", search.low, "calls/s",
               f"not held at {search.high:.0f}")
        for path, search in searches.items()
    ]  # fmt: skip
    return rows


def overload_rows(rig: Rig, searches: dict[str, Search], effort: Effort, say: Say) -> list[Row]:
    """Part b: one and a half times what is held, for each path; the goal is the guard's."""
    if not searches:
        raise LabUnavailable("the calls/s held are not known")
    rows = []
    paths = rig.pbx.paths
    for path in (CALLEE, rig.pbx.rival[0]):
        search = searches[path]
        load = _turn(rig, path, round(1.5 * search.low), effort.overload_seconds)
        best = max([search.low, *(seen.completed for seen in search.seen if seen.held)])
        say(f"{paths[path]} at {load.rate:.0f} calls/s: {load.completed:.0f} completed, {load.failed} of "
            f"{load.calls} failed, {load.retransmissions} retransmissions")  # fmt: skip
        rows.append(overload_row(rig.pbx, path, load, best))
    return rows


def overload_row(pbx: Pbx, path: str, load: Load, best: float) -> Row:
    """A row of part b: what *path* completes of *load*, as a share of the best rate that it held."""
    note = f"{load.completed:.0f} of {load.rate:.0f} calls/s; at most {best:.0f}"
    share = load.completed / best
    if path == CALLEE:
        return at_least("b", _overload(pbx), _MOST, 0.9, share, "ratio", note)
    return figure("b", f"{_overload(pbx)}: {pbx.paths[path]}", share, "ratio", note)


def delay_rows(rig: Rig, effort: Effort, say: Say) -> list[Row]:
    """Part c: what the guard adds to the time from INVITE to final status at 100 calls/s."""
    bare = rig.pbx.bare
    times: dict[str, list[float]] = {bare: [], CALLEE: []}
    for turn in range(effort.turns):
        for path in times:
            load = _turn(rig, path, DELAY_RATE, effort.delay_seconds, answers=True)
            times[path] += load.answers_ms
        say(f"turn {turn + 1} of {effort.turns}: median {quantile(times[CALLEE], 0.5):.2f} ms, "
            f"bare {quantile(times[bare], 0.5):.2f} ms")  # fmt: skip
    return delay_result(rig.pbx, times[CALLEE], times[bare])


def delay_result(pbx: Pbx, guard: Sequence[float], bare: Sequence[float]) -> list[Row]:
    """The rows of part c, from the milliseconds of each answer; a quantile without a goal is a figure."""
    rows = []
    for share in (0.5, 0.99):
        with_guard, without = quantile(guard, share), quantile(bare, share)
        added = with_guard - without
        note = f"{with_guard:.2f} less {without:.2f} ms; SIPp's clock, microseconds"
        goal = pbx.delay_goals.get(share)
        if goal is None:
            rows.append(figure("c", _delay(pbx, share), added, "ms", note))
        else:
            rows.append(at_most("c", _delay(pbx, share), _BARE, goal, added, "ms", note))
    return rows


def goals(pbx: Pbx, part: str, why: str) -> list[Row]:
    """The rows of one part that have a goal, for a PBX that could not be measured."""
    rows = []
    if part == "a":
        rows.append(unmeasured(part, _held(pbx), pbx.rival[1], ">= 0.9", "ratio", why))
    if part == "b":
        rows.append(unmeasured(part, _overload(pbx), _MOST, ">= 0.9", "ratio", why))
    if part == "c":
        rows += [unmeasured(part, _delay(pbx, share), _BARE, f"<= {goal:g}", "ms", why)
                 for share, goal in pbx.delay_goals.items()]  # fmt: skip
    return rows


_MOST, _BARE = "the most that was held", "bare PBX"


def _held(pbx: Pbx) -> str:
    return f"calls/s held with a screened reject, {pbx.title}"


def _overload(pbx: Pbx) -> str:
    return f"completed calls/s at 1.5 x the calls/s held, {pbx.title}"


def _delay(pbx: Pbx, share: float) -> str:
    return f"added post-dial delay at {DELAY_RATE} calls/s, p{share * 100:.0f}, {pbx.title}"


def cpu_rows(rig: Rig, effort: Effort, say: Say) -> list[Row]:
    """What one call costs in CPU, PBX and handler, user and system time from /proc (ticks of 10 ms)."""
    paths = rig.pbx.paths
    spent = {path: {"pbx": 0.0, "handler": 0.0} for path in paths}
    calls = dict.fromkeys(paths, 0)
    for _ in range(effort.turns):
        for path in paths:
            before = rig.cpu()
            load = _turn(rig, path, CPU_RATE, effort.delay_seconds)
            after = rig.cpu()
            calls[path] += load.calls
            for name in spent[path]:
                spent[path][name] += after[name] - before[name]
    rows = []
    for path, by_name in spent.items():
        for name, seconds in by_name.items():
            if name == "handler" and path != CALLEE:
                continue
            each = 1000 * seconds / calls[path]
            who = rig.pbx.title if name == "pbx" else f"{rig.pbx.title}'s handler"
            say(f"{paths[path]}: {each:.2f} ms of {name} CPU a call")
            rows.append(figure("cpu", f"CPU a call at {CPU_RATE} calls/s, {who}: {paths[path]}", each, "ms"))
    return rows


def quantile(values: Iterable[float], share: float) -> float:
    """The value that *share* of the values do not pass (nearest rank); infinity for none."""
    ordered: Sequence[float] = sorted(values)
    if not ordered:
        return float("inf")
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _turn(rig: Rig, path: str, rate: float, seconds: float, *, answers: bool = False) -> Load:
    load = place(rig, path, rate, seconds, answers=answers)
    rig.settle()
    return load
