"""The rows about size: import of a big list against `sqlite3 .import`, and one decision against big tables."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pbxguard.errors import LabUnavailable
from pbxguard.lab.bench.decide import listed_number
from pbxguard.lab.bench.rows import Row, at_most, figure, unmeasured

Say = Callable[[str], None]

DECISIONS = 20_000

_COLUMNS = "pattern,action,name,source,reason"
_TAIL = ",block,system,bench,reported by subscribers"

#: Seconds that one import may take before it counts as failed.
_LIMIT = 900

# State as `registry open` leaves it: open since 2026, for calls from Hong Kong, Macao and Taiwan. The numbers are
# those of ``decide.subscriber_number``, in the order of the tables' keys.
_CONSENTS = """
INSERT INTO consent_state(number, call_class, channel, caller, since, verb, until)
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n LIMIT ?)
SELECT printf('139%08d', i), 'hmt', 'voice', '', 1767225600000000, 'open', NULL FROM n
"""
_SUBSCRIBERS = """
INSERT INTO subscriber(number, operator, province, language)
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n LIMIT ?)
SELECT printf('139%08d', i), 'cm', 'zhejiang', 'zh' FROM n
"""


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has ended: seconds, and the most memory that it held, MB."""

    seconds: float
    peak_mb: float


def import_rows(folder: Path, rows: int, say: Say) -> list[Row]:
    """Part e. Leaves the store of the imported list in *folder* for part d.

    Raises:
        LabUnavailable: The import failed; the message has what it printed.
    """
    file = folder / "list.csv"
    _generate(file, rows)
    say(f"generated {rows:,} rows ({file.stat().st_size / 1e6:.0f} MB) in no order")
    small = folder / "small.csv"
    _generate(small, max(1, rows // 10))
    little = _import(folder / "small", small)
    shutil.rmtree(folder / "small")
    say(f"imported {rows // 10:,} rows in {little.seconds:.1f} s, {little.peak_mb:.0f} MB")
    ours = _import(folder / "store", file)
    say(f"imported {rows:,} rows in {ours.seconds:.1f} s, {ours.peak_mb:.0f} MB")
    what = f"import of {rows:,} list rows in no order"
    found = [
        figure("e", f"{what}: time", ours.seconds, "s"),
        at_most("e", f"import: peak memory of {rows:,} rows", f"{rows // 10:,} rows", 1.25,
                ours.peak_mb / little.peak_mb, "ratio", f"{ours.peak_mb:.0f} and {little.peak_mb:.0f} MB"),
    ]  # fmt: skip
    against = "sqlite3 .import, table with a key"
    if shutil.which("sqlite3") is None:
        why = "sqlite3 is not installed; apt-get install sqlite3"
        return [unmeasured("e", what, against, "<= 2", "ratio", why), *found]
    keyed = _sqlite3(folder, file, ", PRIMARY KEY(name, pattern)) WITHOUT ROWID")
    say(f"sqlite3 with a key: {keyed.seconds:.1f} s, {keyed.peak_mb:.0f} MB")
    bare = _sqlite3(folder, file, ")")
    say(f"sqlite3 without a key: {bare.seconds:.1f} s, {bare.peak_mb:.0f} MB")
    return [
        at_most("e", what, against, 2, ours.seconds / keyed.seconds, "ratio",
                f"{ours.seconds:.1f} s and {keyed.seconds:.1f} s"),
        Row("e", what, "sqlite3 .import, no key: no look-up", "", ours.seconds / bare.seconds, "ratio", None,
            f"{bare.seconds:.1f} s"),
        *found,
    ]  # fmt: skip


def decision_rows(folder: Path, rows: int, say: Say) -> list[Row]:
    """Part d: against *rows* block entries (imported first where part e has not) and *rows* opted-in numbers.

    The consents and subscribers are written into the tables by one statement each: through the ledger ten million
    events take much longer, and a decision reads the state only.
    """
    store = folder / "store" / "pbxguard.db"
    if not store.is_file():
        _generate(folder / "list.csv", rows)
        _import(folder / "store", folder / "list.csv")
        say(f"imported {rows:,} block entries")
    with closing(sqlite3.connect(store)) as connection, connection:
        connection.execute(_SUBSCRIBERS, (rows,))
        connection.execute(_CONSENTS, (rows,))
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    say(f"{rows:,} subscribers and their consents are in; {store.stat().st_size / 1e6:.0f} MB")
    command = [sys.executable, "-m", "pbxguard.lab.bench.decide", str(store), str(DECISIONS), str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT, check=False)
    if done.returncode != 0:
        raise LabUnavailable(f"the timed decisions failed: {done.stderr.strip().splitlines()[-1:]}")
    took = json.loads(done.stdout)
    say(f"{DECISIONS:,} decisions: {took['reasons']}")
    what = f"one decision, {rows:,} block entries + {rows:,} opted-in numbers"
    note = f"{DECISIONS:,} decisions on random numbers; longest {took['max_us']:.0f} us"
    return [
        at_most("d", f"{what}: p50", "-", 100, took["p50_us"], "us", note),
        at_most("d", f"{what}: p99", "-", 500, took["p99_us"], "us"),
        at_most("d", f"{what}: process RSS", "-", 200, took["rss_mb"], "MB", f"at most {took['peak_mb']:.0f} MB"),
    ]


def _generate(file: Path, rows: int) -> None:
    with file.open("w", encoding="ascii", newline="") as text:
        text.write(_COLUMNS + "\n")
        for start in range(0, rows, 10_000):
            numbers = range(start, min(rows, start + 10_000))
            text.write("".join(f"{listed_number(number)}{_TAIL}\n" for number in numbers))


def _import(state: Path, file: Path) -> Finished:
    state.mkdir()
    command = [sys.executable, "-m", "pbxguard", "lists", "import", str(file)]
    return _timed(command, {"PBXGUARD_STATE": str(state)})


def _sqlite3(folder: Path, file: Path, end_of_table: str) -> Finished:
    database = folder / "plain.db"
    columns = ", ".join(f"{name} TEXT NOT NULL" for name in _COLUMNS.split(","))
    command = ["sqlite3", "-bail", str(database), f"CREATE TABLE list({columns}{end_of_table}",
               f'.import --csv --skip 1 "{file}" list']  # fmt: skip
    try:
        return _timed(command, {})
    finally:
        database.unlink(missing_ok=True)


def _timed(command: Sequence[str], environment: dict[str, str]) -> Finished:
    """Run a command to its end.

    Raises:
        LabUnavailable: It failed, or took too long; the message has the end of what it printed.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        command, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    peak = 0.0
    try:
        while True:
            try:
                _, errors = process.communicate(timeout=0.1)
                break
            except subprocess.TimeoutExpired:
                peak = max(peak, _peak_mb(process.pid))
                if time.monotonic() - started > _LIMIT:
                    raise LabUnavailable(f"{command[0]} took more than {_LIMIT} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode != 0:
        raise LabUnavailable(f"{' '.join(command[:5])} failed: {errors.strip()[-300:]}")
    return Finished(time.monotonic() - started, peak)


def _peak_mb(pid: int) -> float:
    """VmHWM of a process, proc(5); 0 when it has just ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        return 0.0
    return 0.0
