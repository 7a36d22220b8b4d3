"""One SIPp run, bounded in calls and time, and what came of it. Does not know what the figures are for."""

import csv
from dataclasses import dataclass
from pathlib import Path

from pbxguard.errors import LabUnavailable
from pbxguard.lab.bench.pbx import CLI, LOAD_ADDRESS, PBX_ADDRESS
from pbxguard.lab.bench.rig import Rig

#: Share of calls that may need a retransmission in a rate that counts as held: a single lost packet is no overload.
TOLERATED = 0.001

#: Seconds after the last INVITE that a load waits for answers. Timer B is 32 s (RFC 3261 section 17.1.1.2); a PBX
#: that needs longer than this is in overload, and the calls count as not completed.
DRAIN_S = 8


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of SIPp did.

    Attributes:
        rate: Calls a second that were asked for.
        offered: Calls a second that SIPp placed while it placed any.
        completed: Calls a second that were refused as expected in the same time, the first second left out.
        calls: Calls placed; ``failed`` of them got another status or none.
        answers_ms: INVITE to final status of each call, in the order of the answers; to the microsecond.
    """

    path: str
    rate: float
    offered: float
    completed: float
    calls: int
    failed: int
    retransmissions: int
    answers_ms: tuple[float, ...] = ()

    @property
    def held(self) -> bool:
        """Whether the PBX kept up; a queue that grows shows in ``completed`` before it causes retransmissions."""
        few = self.calls * TOLERATED
        kept_up = self.offered >= 0.97 * self.rate and self.completed >= 0.97 * self.offered
        return kept_up and self.failed == 0 and self.retransmissions <= few


def place(rig: Rig, path: str, rate: float, seconds: float, *, answers: bool = False) -> Load:
    """Place calls at *rate* a second for *seconds*, and wait until they have ended.

    Args:
        rig: The PBX and who calls it.
        path: Extension that is called, one of ``rig.pbx.paths``.
        rate: Calls a second.
        seconds: How long calls are placed; answers are waited for up to ``DRAIN_S`` longer.
        answers: Keep the time of each answer.

    Raises:
        LabUnavailable: SIPp did not run.
    """
    for old in rig.output.iterdir():
        old.unlink()
    calls = max(1, round(rate * seconds))
    limit = seconds + DRAIN_S
    command = (
        "sipp", f"{PBX_ADDRESS}:5060", "-sf", "/bench/refused.xml", "-key", "cli", CLI, "-s", path,
        "-i", str(LOAD_ADDRESS),
        "-r", f"{rate:.0f}", "-m", str(calls), "-l", "20000", "-nostdin", "-buff_size", "4194304",
        "-timeout", f"{limit:.0f}", "-deadcall_wait", "0",
        "-trace_stat", "-stf", "/output/stat.csv", "-fd", "1",
        *(("-trace_rtt", "-rtt_freq", "1000") if answers else ()),
    )  # fmt: skip
    code, printed = rig.run(
        "sh", "-c", 'cd /output && exec "$@" >screen.log 2>&1', "sh", *command, timeout=limit + 10
    )
    statistics = rig.output / "stat.csv"
    if not statistics.is_file():
        log = rig.output / "screen.log"
        said = log.read_text(errors="replace").strip().splitlines()[-1:] if log.is_file() else [printed]
        raise LabUnavailable(f"SIPp did not run (exit {code}): {' '.join(said)[:300]}")
    return read_statistics(statistics, path, rate, _answers(rig.output) if answers else ())


def read_statistics(file: Path, path: str, rate: float, answers: tuple[float, ...] = ()) -> Load:
    """Read SIPp's ``-trace_stat`` file, one line a second."""
    with file.open(newline="") as text:
        rows = list(csv.DictReader(text, delimiter=";"))
    if not rows:
        raise LabUnavailable("SIPp wrote no statistics")
    last = rows[-1]
    calls = int(last["TotalCallCreated"])
    ok = int(last["SuccessfulCall(C)"])
    # whole seconds in which calls were placed at full rate; the first one warms up
    busy = [row for row in rows[2:] if int(row["OutgoingCall(P)"]) >= 0.9 * rate] or rows[1:]
    times = [_clock(row["CurrentTime"]) for row in rows]
    spent = sum(times[rows.index(row)] - times[rows.index(row) - 1] for row in busy) or 1.0
    return Load(
        path=path,
        rate=rate,
        offered=sum(int(row["OutgoingCall(P)"]) for row in busy) / spent,
        completed=sum(int(row["SuccessfulCall(P)"]) for row in busy) / spent,
        calls=calls,
        failed=calls - ok,
        retransmissions=int(last["Retransmissions(C)"]),
        answers_ms=answers,
    )


def _clock(stamp: str) -> float:
    """SIPp writes date, time and seconds since 1970, split by tabs."""
    return float(stamp.rsplit("\t", 1)[-1])


def _answers(folder: Path) -> tuple[float, ...]:
    """SIPp's ``-trace_rtt`` lines: when, milliseconds, which of a call's timers."""
    lines = [line for file in folder.glob("*_rtt.csv") for line in file.read_text().splitlines()[1:]]
    return tuple(float(line.split(";")[1]) for line in lines)
