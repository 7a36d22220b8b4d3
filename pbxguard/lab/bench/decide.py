"""Time single decisions in a process of its own and print them as JSON: STORE, how many, how many rows it holds.

Imports the product only, so that the memory that it reports is the product's.
"""

import json
import random
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter_ns

from pbxguard import log, packs
from pbxguard.config import Settings, TrunkSettings
from pbxguard.guard import Guard
from pbxguard.screening.call import Call
from pbxguard.screening.treatment import ASTERISK
from pbxguard.store import Store

#: Decisions that are made before any is timed.
WARM_UP = 500

#: Numbers in a run of the generator below; coprime to its factors.
SPACE = 100_000_000


def listed_number(place: int) -> str:
    """The *place*-th blocked number: all different, in no order. Home form, Hong Kong."""
    return f"+852{(place * 73_687_871 + 12_345_677) % SPACE:08d}"


def subscriber_number(place: int) -> str:
    """The *place*-th subscriber. Home form, in the order of the numbers."""
    return f"139{place:08d}"


def memory_mb(field: str) -> float:
    """``VmRSS`` or ``VmHWM`` of this process, proc(5)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise LookupError(field)


def measure(store_path: str, count: int, rows: int) -> dict[str, object]:
    """Time *count* decisions about random calls: half from blocked numbers, half from others."""
    log.configure(level="error")
    trunk_settings = TrunkSettings(kind="intl_gateway", prompt="none")
    settings = Settings(trunks={"bench": trunk_settings})
    trunk = settings.trunk("bench")
    if trunk is None:
        raise LookupError("bench")
    dice = random.Random(4573)  # noqa: S311 - a repeatable choice of calls
    took: list[int] = []
    reasons: Counter[str] = Counter()
    with Store.open(store_path, create=False) as store:
        guard = Guard(store, packs.load(settings.pack), settings, recording=False)
        try:
            for number in range(WARM_UP + count):
                # places beyond the list's end are numbers that are not on it
                cli = listed_number(dice.randrange(2 * rows))
                call = Call(str(number), datetime.now(UTC), trunk, cli, subscriber_number(dice.randrange(rows)))
                started = perf_counter_ns()
                decided = guard.decide(call, ASTERISK)
                spent = perf_counter_ns() - started
                if number >= WARM_UP:
                    took.append(spent)
                    reasons[str(decided.verdict.reason)] += 1
        finally:
            guard.close()
    took.sort()
    return {
        "p50_us": took[len(took) // 2] / 1000,
        "p99_us": took[len(took) * 99 // 100] / 1000,
        "max_us": took[-1] / 1000,
        "rss_mb": memory_mb("VmRSS"),
        "peak_mb": memory_mb("VmHWM"),
        "reasons": dict(reasons),
    }


if __name__ == "__main__":
    json.dump(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])), sys.stdout)
