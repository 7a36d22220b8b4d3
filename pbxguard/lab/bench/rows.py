"""The result as rows: what was measured against what, the goal, and whether it was met. Measures nothing."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result.

    Attributes:
        part: Letter of the part that measured it, for ``--only``.
        what: What was measured.
        against: What it is compared with; "-" for nothing.
        goal: In words, such as ``>= 0.9``; "" for a figure that explains others and has no goal.
        value: None where it could not be measured; then ``why`` says so.
        met: None where there is no goal or no value.
    """

    part: str
    what: str
    against: str
    goal: str
    value: float | None
    unit: str
    met: bool | None = None
    why: str = ""


def at_least(part: str, what: str, against: str, goal: float, value: float, unit: str, why: str = "") -> Row:
    """A row whose value is to reach *goal*."""
    return Row(part, what, against, f">= {goal:g}", value, unit, value >= goal, why)


def at_most(part: str, what: str, against: str, goal: float, value: float, unit: str, why: str = "") -> Row:
    """A row whose value is not to pass *goal*."""
    return Row(part, what, against, f"<= {goal:g}", value, unit, value <= goal, why)


def figure(part: str, what: str, value: float, unit: str, why: str = "") -> Row:
    """A row without a goal."""
    return Row(part, what, "-", "", value, unit, None, why)


def unmeasured(part: str, what: str, against: str, goal: str, unit: str, why: str) -> Row:
    """A row that could not be measured, and why."""
    return Row(part, what, against, goal, None, unit, None, why)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = ""
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "model": model,
        "memory_mb": int(memory) // 1024,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average_at_start": round(os.getloadavg()[0], 2),
    }


def write(path: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Write the JSON that DESIGN section 9 describes; replaces the file as a whole."""
    found = []
    for row in rows:
        value = None if row.value is None else _rounded(row.value)
        found.append(
            {"what": row.what, "against": row.against, "goal": row.goal, "value": value, "unit": row.unit,
             "met": row.met} | ({"why": row.why} if row.why else {})
        )  # fmt: skip
    content = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **about, "rows": found}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def show(console: Console, rows: Sequence[Row], title: str) -> None:
    """Print the rows as a table."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in ("what", "against", "goal"):
        table.add_column(column, overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("unit")
    table.add_column("met")
    table.add_column("note", overflow="fold")
    words = {True: "[green]yes[/green]", False: "[red]no[/red]", None: "-"}
    for row in rows:
        value = "-" if row.value is None else f"{_rounded(row.value):g}"
        table.add_row(row.what, row.against, row.goal or "-", value, row.unit, words[row.met], row.why)
    console.print(table)


def _rounded(value: float) -> float:
    """Three digits behind the point for small values, none for large ones."""
    return round(value, 3) if abs(value) < 10 else round(value, 1) if abs(value) < 100 else round(value)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
