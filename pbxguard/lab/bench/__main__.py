"""`python -m pbxguard.lab.bench`: run the parts that are asked for, print the table, write the JSON."""

import fcntl
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console

from pbxguard import config
from pbxguard.errors import LabUnavailable, PbxguardError
from pbxguard.lab.bench import big, calls, rows
from pbxguard.lab.bench.pbx import PBXS, Pbx
from pbxguard.lab.bench.rig import NoImage, Rig
from pbxguard.lab.bench.rows import Row, unmeasured

#: Name -> what it measures, in the order in which they run.
PARTS = {
    "cpu": "CPU for each call",
    "c": "added post-dial delay",
    "a": "calls/s held",
    "b": "completed calls/s at 1.5 x the calls/s held (runs a too)",
    "e": "import of a big list",
    "d": "one decision against big tables",
}

ROWS, QUICK_ROWS = 10_000_000, 200_000

#: Free disk that a million rows need: the list as CSV and twice as a database, subscribers, consents, sorting.
_MB_PER_MILLION = 700

#: The parts that place calls, on each PBX.
CALLS = ("cpu", "c", "a", "b")

# A pipe has no width of its own, and the table needs more than the 80 columns that it would get.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Measure = Callable[[calls.Say], list[Row]]


class Bench:
    """One run: what has been measured so far, and what is still to come.

    Args:
        parts: Names of ``PARTS``.
        pbxs: Those that the parts with calls are measured on, one after the other.
    """

    def __init__(self, parts: Sequence[str], pbxs: Sequence[Pbx]) -> None:
        self.left = [_step(part, pbx) for pbx in pbxs for part in CALLS if part in parts]
        self.left += [part for part in parts if part not in CALLS]
        self.rows: list[Row] = []
        self.incomplete = False
        self._started = time.monotonic()

    def part(self, name: str, measure: Measure, pbx: Pbx | None = None) -> None:
        """Run one part, if it is asked for; what is missing on this machine becomes a row that says so."""
        step = _step(name, pbx)
        if step not in self.left:
            return
        self.say(f"{PARTS[name]} ...")
        try:
            self.rows += measure(self.say)
        except PbxguardError as error:
            self.fail(name, error, pbx)
        else:
            self.left.remove(step)

    def fail(self, name: str, error: PbxguardError, pbx: Pbx | None = None) -> None:
        """The part could not be measured: a row without a value."""
        if _step(name, pbx) not in self.left:
            return
        self.incomplete = True
        err.print(f"pbxguard bench: {error}", markup=False)
        what = f"{PARTS[name]}, {pbx.title}" if pbx else PARTS[name]
        self.rows.append(unmeasured(name, what, "-", "", "", str(error)))
        self.left.remove(_step(name, pbx))

    def leave_out(self, pbx: Pbx, why: str) -> None:
        """This machine need not have that PBX: its goals become rows that say what to do, and nothing has failed."""
        for name in CALLS:
            if _step(name, pbx) in self.left:
                self.rows += calls.goals(pbx, name, why)
                self.left.remove(_step(name, pbx))

    def say(self, text: str) -> None:
        """One line of progress: seconds since the start, the step, and what is still to come."""
        now, *later = self.left
        rest = f" (then {', '.join(later)})" if later else ""
        err.print(f"[{time.monotonic() - self._started:4.0f} s] {now}{rest}: {text}", markup=False)


def _step(part: str, pbx: Pbx | None) -> str:
    return f"{part} {pbx.kind}" if pbx else part


@click.command()
@click.option("--only", metavar="PARTS", help=f"Run these only: {', '.join(PARTS)}, split by commas.")
@click.option(
    "--pbx",
    type=click.Choice([*PBXS, "both"]),
    default="both",
    show_default=True,
    help="Place the calls on this PBX alone; FreeSWITCH only where its image is on the machine.",
)
@click.option("--quick", is_flag=True, help="Short steps and few rows; the figures are rough, and labelled so.")
@click.option("--rows", "size", type=click.IntRange(1000, 50_000_000), help=f"Rows of the lists; default {ROWS}.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), default="evidence/bench/bench.json",
              show_default=True)  # fmt: skip
def main(only: str | None, pbx: str, size: int | None, output: Path, *, quick: bool) -> None:
    """Measure pbxguard on this machine. Ends with 0 when all was measured, whatever the goals say; 3 when not."""
    parts = _chosen(only)
    size = size or (QUICK_ROWS if quick else ROWS)
    machine = rows.machine()
    about = {"machine": machine, "quick": quick, "list_rows": size}
    pbxs = [make() for kind, make in PBXS.items() if pbx in (kind, "both")]
    bench = Bench(parts, pbxs)
    # SIGTERM ends a run as Ctrl-C does: the containers must go in both cases.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        folder = config.load().state_dir.absolute() / "bench"
        with _own(folder):
            _measure(bench, pbxs, folder, size, calls.QUICK if quick else calls.Effort())
    except PbxguardError as error:
        err.print(f"pbxguard bench: {error}", markup=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err.print("pbxguard bench: interrupted; nothing was written")
        sys.exit(130)
    found = [*sorted(bench.rows, key=lambda row: [*"abcde", "cpu"].index(row.part)), _by_hand()]
    rows.write(output, found, about)
    title = f"pbxguard bench, {machine['cpus']} CPUs" + (", quick: rough figures" if quick else "")
    rows.show(out, found, title)
    out.print(f"written to {output}", markup=False)
    sys.exit(3 if bench.incomplete else 0)


def _measure(bench: Bench, pbxs: Sequence[Pbx], folder: Path, size: int, effort: calls.Effort) -> None:
    for pbx in pbxs:
        if not any(_step(part, pbx) in bench.left for part in CALLS):
            continue
        try:
            with Rig(folder / "calls", pbx) as rig:
                _measure_calls(bench, rig, effort)
        except NoImage as error:
            bench.leave_out(pbx, str(error))
        except PbxguardError as error:
            for part in CALLS:
                bench.fail(part, error, pbx)
    if not bench.left:
        return
    big_folder = folder / "big"
    shutil.rmtree(big_folder, ignore_errors=True)
    big_folder.mkdir(parents=True)
    try:
        needed, free = size * _MB_PER_MILLION // 1_000_000, shutil.disk_usage(folder).free // 1_000_000
        if free < needed:
            raise LabUnavailable(f"{folder}: {needed} MB of disk are needed, {free} are free; take fewer --rows")
        bench.part("e", lambda say: big.import_rows(big_folder, size, say))
        bench.part("d", lambda say: big.decision_rows(big_folder, size, say))
    finally:
        shutil.rmtree(big_folder, ignore_errors=True)


def _measure_calls(bench: Bench, rig: Rig, effort: calls.Effort) -> None:
    searches: dict[str, calls.Search] = {}

    def rates(say: calls.Say) -> list[Row]:
        searches.update(calls.held_rates(rig, effort, say))
        return calls.rate_rows(rig.pbx, searches)

    bench.part("cpu", lambda say: calls.cpu_rows(rig, effort, say), rig.pbx)
    bench.part("c", lambda say: calls.delay_rows(rig, effort, say), rig.pbx)
    bench.part("a", rates, rig.pbx)
    bench.part("b", lambda say: calls.overload_rows(rig, searches, effort, say), rig.pbx)


def _chosen(only: str | None) -> list[str]:
    if only is None:
        return list(PARTS)
    asked = {part.strip() for part in only.split(",") if part.strip()}
    if not asked or asked - PARTS.keys():
        raise click.BadParameter(f"{only!r}: the parts are {', '.join(PARTS)}", param_hint="--only")
    if "b" in asked:
        asked.add("a")
    return [part for part in PARTS if part in asked]


def _by_hand() -> Row:
    """What DESIGN asks for and this program does not measure."""
    return unmeasured("f", "fresh machine to the end of `make demo`", "-", "<= 300, warm <= 60", "s",
                      "measured by hand in a fresh clone")  # fmt: skip


@contextmanager
def _own(folder: Path) -> Iterator[None]:
    """One bench at a time: two would spoil each other's figures."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise LabUnavailable(f"{folder}: cannot be written: {error.strerror}; set PBXGUARD_STATE") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LabUnavailable(f"another bench runs on {folder}; wait for it") from error
        yield


if __name__ == "__main__":
    main()
