"""A run as it goes on, for a person: who is being called, what is done, and how long it takes.

On a terminal one view that is drawn anew; elsewhere one line for each result. Places no call.
"""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pbxguard.cli.context import printable
from pbxguard.lab.evidence import Evidence
from pbxguard.lab.run import Watch
from pbxguard.lab.scenario import Scenario, Step
from pbxguard.lab.topology import CALLERS, PHONES, members

#: Results that stay in view.
_RECENT = 8
#: Calls in flight that are shown; the rest is counted.
_SHOWN = 16


@dataclass(frozen=True, slots=True)
class _Flight:
    world: int
    step: Step
    since: float


class Board(Watch):
    """Shows a run on *console*. Use as a context manager.

    Args:
        console: A terminal, or not.
        pbx: Which PBX is guarded.
        calls: How many calls there will be.
        worlds: How many worlds there will be; with one none is named.
    """

    def __init__(self, console: Console, pbx: str, calls: int, worlds: int = 1) -> None:
        self._console = console
        self._pbx = pbx
        self._total = calls
        self._many = worlds > 1
        self._begun = time.monotonic()
        self._flights: dict[tuple[int, str, str], _Flight] = {}
        self._doing: dict[int, str] = {}
        self._recent: list[Text] = []
        self._passed = self._failed = 0
        # The view is drawn by a thread of its own.
        self._lock = threading.Lock()
        self._live = Live(get_renderable=self.view, console=console, transient=True, refresh_per_second=5)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, world: int, what: str) -> None:
        with self._lock:
            self._doing[world] = what
        if not self._console.is_terminal and what and (self._many or "not" in what):
            self._console.print(Text(f"  world {world}: {printable(what)}"))

    def started(self, world: int, scenario: Scenario, step: Step) -> None:
        with self._lock:
            self._flights[world, scenario.name, step.title] = _Flight(world, step, time.monotonic())

    def skipped(self, world: int, scenario: Scenario, why: str) -> None:
        with self._lock:
            gone = [key for key in self._flights if key[:2] == (world, scenario.name)]
            for key in gone:
                del self._flights[key]
            self._total -= len(scenario.step)
            line = Text(f"  – {printable(scenario.name)}: skipped: {printable(why)}", style="dim")
            self._recent = [*self._recent, line][-_RECENT:]
        if not self._console.is_terminal:
            self._console.print(line)

    def ended(self, world: int, result: Evidence) -> None:
        with self._lock:
            flight = self._flights.pop((world, result.scenario, result.title), None)
            self._passed += result.passed
            self._failed += not result.passed
            lines = [_result(result, None if flight is None else time.monotonic() - flight.since)]
            lines += [Text(f"      {printable(fault)}", style="red") for fault in result.faults[:1]]
            self._recent = [*self._recent, *lines][-_RECENT:]
        if not self._console.is_terminal:
            self._console.print(*lines, sep="\n")

    def view(self) -> RenderableType:
        """What the terminal shows at this moment."""
        with self._lock:
            flights = sorted(self._flights.values(), key=lambda flight: flight.since)
            doing = {world: what for world, what in self._doing.items() if what and what != "done"}
            recent = list(self._recent)
            passed, failed = self._passed, self._failed
        now = time.monotonic()
        table = Table(box=None, padding=(0, 1), show_header=bool(flights), header_style="dim")
        for name in (*(("world",) if self._many else ()), "from", "trunk", "to", "call", "s"):
            table.add_column(name, justify="right" if name in ("world", "s") else "left", no_wrap=True)
        for flight in flights[:_SHOWN]:
            call = flight.step.call
            table.add_row(
                *((str(flight.world),) if self._many else ()),
                Text(printable(call.cli)[:24] or "(none)"), call.trunk, Text(printable(call.callee)[:16]),
                Text(printable(flight.step.title)), f"{now - flight.since:.0f}",
            )  # fmt: skip
        more = [Text(f"  and {len(flights) - _SHOWN} more", style="dim")] if len(flights) > _SHOWN else []
        worlds = [Text(f"  world {world}: {printable(what)}", style="dim") for world, what in sorted(doing.items())]
        head = Text.assemble(
            f"{self._pbx}: {passed + failed} of {self._total} calls, ", (f"{passed} as expected", "green"), ", ",
            (f"{failed} not", "red" if failed else ""), f", {len(flights)} in flight, {now - self._begun:.0f} s",
        )  # fmt: skip
        bar = ProgressBar(total=max(self._total, 1), completed=passed + failed, width=60)
        return Group(*recent, *worlds, *_actors(flights), table, *more, head, bar)


def _actors(flights: Sequence[_Flight]) -> tuple[Text, Text]:
    """Everybody in the lab, and in how many calls in flight each has a part; those in none are dim."""
    trunks = Counter(flight.step.call.trunk for flight in flights)
    called = Counter(number for flight in flights for number in members(flight.step.call.number))
    callers = [(caller.name, trunks[caller.name]) for caller in CALLERS if caller.calls]
    phones = [(phone.name, called[phone.number]) for phone in PHONES if phone.address or called[phone.number]]
    return _busy("callers", callers), _busy("telephones", phones)


def _busy(what: str, actors: Sequence[tuple[str, int]]) -> Text:
    names = [(f" {name} {calls}", "bold") if calls else (f" {name}", "dim") for name, calls in actors]
    return Text.assemble((f"  {what}:", "dim"), *names)


def _result(result: Evidence, seconds: float | None) -> Text:
    mark, style = ("✓", "green") if result.passed else ("✗", "red")
    took = "" if seconds is None else f" ({seconds:.1f} s)"
    return Text.assemble("  ", (mark, style), f" {printable(result.title)}", (took, "dim"))
