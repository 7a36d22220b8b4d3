"""The rows about calls: rates that are held, overload, post-dial delay, CPU for each call. Needs a ``Rig``.

The paths take turns in every measurement, so that what else the machine does meets all of them alike.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pbxguard.lab.bench.load import Load, place
from pbxguard.lab.bench.rig import CALLEE, PATHS, Rig
from pbxguard.lab.bench.rows import Row, at_least, at_most, figure

Say = Callable[[str], None]

#: Calls a second between which every path's limit is looked for.
LOWEST, HIGHEST = 150.0, 2400.0

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
    low: float = LOWEST
    high: float = HIGHEST
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
    """
    searches = {path: Search(path) for path in PATHS}
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
            say(f"round {number + 1} of {effort.rounds}: {PATHS[path]} at {rate:.0f} calls/s: {state}")
    return searches


def rate_rows(searches: dict[str, Search]) -> list[Row]:
    """Part a."""
    guard, astdb = searches[CALLEE], searches["astdb"]
    rows = [
        at_least("a", "calls/s held with a screened reject, Asterisk", "the same PBX, AstDB DB_EXISTS", 0.9,
                 guard.low / astdb.low, "ratio", f"to {max(guard.step, astdb.step):.0%}"),
    ]  # fmt: skip
    rows += [
        figure("a", f"calls/s held: {PATHS[path]}", search.low, "calls/s", f"not held at {search.high:.0f}")
        for path, search in searches.items()
    ]
    return rows


def overload_rows(rig: Rig, searches: dict[str, Search], effort: Effort, say: Say) -> list[Row]:
    """Part b: one and a half times what is held, for each path; the goal is the guard's."""
    rows = []
    for path in (CALLEE, "astdb"):
        search = searches[path]
        load = _turn(rig, path, round(1.5 * search.low), effort.overload_seconds)
        best = max([search.low, *(seen.completed for seen in search.seen if seen.held)])
        say(f"{PATHS[path]} at {load.rate:.0f} calls/s: {load.completed:.0f} completed, {load.failed} of "
            f"{load.calls} failed, {load.retransmissions} retransmissions")  # fmt: skip
        what = "completed calls/s at 1.5 x the calls/s held"
        note = f"{load.completed:.0f} of {load.rate:.0f} calls/s; at most {best:.0f}"
        share = load.completed / best
        if path == CALLEE:
            rows.append(at_least("b", f"{what}, Asterisk", "the most that was held", 0.9, share, "ratio", note))
        else:
            rows.append(figure("b", f"{what}: {PATHS[path]}", share, "ratio", note))
    return rows


def delay_rows(rig: Rig, effort: Effort, say: Say) -> list[Row]:
    """Part c: what the guard adds to the time from INVITE to final status at 100 calls/s."""
    times: dict[str, list[float]] = {"hangup": [], CALLEE: []}
    for turn in range(effort.turns):
        for path in times:
            load = _turn(rig, path, DELAY_RATE, effort.delay_seconds, answers=True)
            times[path] += load.answers_ms
        say(f"turn {turn + 1} of {effort.turns}: median {quantile(times[CALLEE], 0.5):.2f} ms, "
            f"bare {quantile(times['hangup'], 0.5):.2f} ms")  # fmt: skip
    rows = []
    for share, goal in ((0.5, 2), (0.99, 10)):
        with_guard, bare = quantile(times[CALLEE], share), quantile(times["hangup"], share)
        rows.append(
            at_most("c", f"added post-dial delay at {DELAY_RATE} calls/s, p{share * 100:.0f}, Asterisk",
                    "bare PBX (Hangup)", goal, with_guard - bare, "ms",
                    f"{with_guard:.2f} less {bare:.2f} ms; SIPp's clock, microseconds")
        )  # fmt: skip
    return rows


def cpu_rows(rig: Rig, effort: Effort, say: Say) -> list[Row]:
    """What one call costs in CPU, PBX and handler, user and system time from /proc (ticks of 10 ms)."""
    spent = {path: {"pbx": 0.0, "handler": 0.0} for path in PATHS}
    calls = dict.fromkeys(PATHS, 0)
    for _ in range(effort.turns):
        for path in PATHS:
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
            say(f"{PATHS[path]}: {each:.2f} ms of {name} CPU a call")
            rows.append(figure("cpu", f"CPU a call at {CPU_RATE} calls/s, {name}: {PATHS[path]}", each, "ms"))
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
