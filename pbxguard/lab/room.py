"""How many worlds of the lab this machine has room for, and how much of its processors it gets.

Reads /proc and the scheduler; starts nothing.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from pbxguard.errors import LabUnavailable
from pbxguard.lab.topology import MAX_WORLDS

#: Memory of one world with all its calls under way, in MiB: 375 were measured with Asterisk.
WORLD_MIB = 400
#: Worlds on one processor; with more of them the sound of the calls begins to stutter.
WORLDS_PER_CPU = 2
#: Calls at once that one world takes without trouble.
CALLS = 12
#: Calls at once for which one processor sends every packet in time; with 12 FreeSWITCH left gaps in a prompt.
CALLS_PER_CPU = 8

#: Part of the processors' time that was wanted, kept back by a host, from which on sound stutters. Chosen, not
#: measured: 2 % over a day did no harm; in a run with 18 % of all time taken, idle time too, 2 of 40 calls failed.
STUTTERS_AT = 0.06


@dataclass(frozen=True, slots=True)
class Ticks:
    """Time of all processors since the machine began, in ticks: what its host gave to others, and what was wanted.

    Attributes:
        stolen: What the host gave to others while somebody here wanted it.
        wanted: That, and what was used here; idle time is none of it.
    """

    stolen: int
    wanted: int

    @classmethod
    def now(cls, stat: Path = Path("/proc/stat")) -> "Ticks":
        """As the kernel counts (proc_stat(5), ``steal``); a machine without a host has nothing stolen."""
        counts = [int(word) for word in stat.read_text(encoding="ascii").partition("\n")[0].split()[1:9]]
        idle, iowait, stolen = counts[3], counts[4], counts[7]
        return cls(stolen, sum(counts) - idle - iowait)

    def stolen_since(self, before: "Ticks") -> float:
        """The part of the time wanted since then that the host kept, 0 to 1."""
        return max(0, self.stolen - before.stolen) / max(1, self.wanted - before.wanted)


def require(worlds: int, *, available_mib: int | None = None, cpus: int | None = None) -> None:
    """Raise when the machine is too small for so many worlds at once.

    Args:
        worlds: How many.
        available_mib: Memory that is free, in MiB; without it the machine's.
        cpus: Processors; without it those that this process may use.
    """
    free = _available_mib() if available_mib is None else available_mib
    processors = len(os.sched_getaffinity(0)) if cpus is None else cpus
    limits = {
        f"{processors} processors ({WORLDS_PER_CPU} worlds each)": processors * WORLDS_PER_CPU,
        f"{free} MiB of free memory ({WORLD_MIB} MiB a world)": free // WORLD_MIB,
        f"the lab's addresses, which are enough for {MAX_WORLDS}": MAX_WORLDS,
    }
    what, most = min(limits.items(), key=lambda limit: limit[1])
    if worlds > max(most, 1):
        raise LabUnavailable(f"--jobs {worlds} is too much for {what}; give at most --jobs {max(most, 1)}")


def calls(worlds: int, *, cpus: int | None = None) -> int:
    """How many calls at once each of so many worlds should place."""
    processors = len(os.sched_getaffinity(0)) if cpus is None else cpus
    return CALLS if worlds == 1 else max(1, min(CALLS, CALLS_PER_CPU * processors // worlds))


def _available_mib() -> int:
    """Memory that programs can have without swapping (proc(5), MemAvailable)."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    return 0
