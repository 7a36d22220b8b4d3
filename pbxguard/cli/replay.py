"""``check --recorded``: what a changed pack, list or setting would have decided otherwise, call by call."""

import csv
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from pbxguard.batch import Batch
from pbxguard.cli.batch import Pace, without_pauses
from pbxguard.cli.context import App, complain, out, show_json, show_table
from pbxguard.errors import BadInput, UnknownName
from pbxguard.replay import Again, Cell, Comparison, TrialFacts, again, recorded_shadow
from pbxguard.screening.call import Shadow, Trunk
from pbxguard.store import DecisionRow, Store
from pbxguard.store.many import ManyFacts

CHANGED = ("call_id", "at", "trunk", "channel", "cli", "callee", "was", "was_reason", "was_rule", "now", "now_reason",
           "now_rule", "now_labels")  # fmt: skip
"""The columns of the file of changes."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Which recorded calls, and what is tried on them.

    Attributes:
        since: Inclusive, UTC; None from the first on.
        until: Exclusive, UTC.
        with_list: A list file that is taken as imported.
        without: Lists that are taken as empty.
        samples: Call-IDs that are shown for each line.
    """

    since: datetime | None
    until: datetime
    with_list: Path | None
    without: tuple[str, ...]
    samples: int


def check_recorded(app: App, trial: Trial, csv_file: Path | None, *, as_json: bool) -> None:
    """Decide recorded calls again and print old verdict x new verdict, what changed, and the calls behind it."""
    found = Comparison(trial.samples)
    with _trial_facts(app, trial) as reader, _changes(csv_file) as changes, without_pauses():
        batch = Batch(reader, app.pack)
        with Pace("deciding again", app.store.count_decisions(trial.since, trial.until)) as pace:
            for row, result in again(app.store.iter_decisions(trial.since, trial.until), _trunks(app), batch):
                found.add(row, result)
                if changes is not None and result is not None and result.changed:
                    changes.writerow(_change(row, result))
                pace.advance(1, pace.rows)
    if as_json:
        show_json(_comparison_json(app, found))
        return
    _show_comparison(found)
    if csv_file is not None:
        changed = sum(cell.calls for cell in found.changes.values())
        out.print(f"wrote {changed:,} calls to {csv_file}", markup=False)


def check_shadow(app: App, trial: Trial, *, as_json: bool) -> None:
    """Print what rules and lists in shadow would have done, as it was recorded."""
    with Pace("counting", app.store.count_decisions(trial.since, trial.until)) as pace:

        def counted() -> Iterator[DecisionRow]:
            for row in app.store.iter_decisions(trial.since, trial.until):
                yield row
                pace.advance(1, pace.rows)

        cells = recorded_shadow(counted(), trial.samples)
    if as_json:
        show_json({"calls": pace.rows, "shadow": _shadow_json(cells)})
    elif cells:
        _show_shadow(cells, "what was in shadow would have done")
    else:
        out.print(f"{pace.rows:,} calls, and nothing in shadow would have decided any of them")


def _trunks(app: App) -> Any:
    """The trunk of a name as it is set up now, or None; each is looked up once."""
    known: dict[str, Trunk | None] = {}

    def trunk(name: str) -> Trunk | None:
        if name not in known:
            try:
                known[name] = app.trunk(name)
            except UnknownName:
                known[name] = None
        return known[name]

    return trunk


@contextmanager
def _trial_facts(app: App, trial: Trial) -> Iterator[TrialFacts | ManyFacts]:
    """The facts of now, or with the lists on trial; a list is read into a database of its own, which goes away."""
    now = ManyFacts(app.store)
    for name in trial.without:
        if next(app.store.entries(name=name), None) is None:
            raise BadInput(f"--without-list {name[:40]!r}: nothing is on a list of that name; see `lists show`")
    if trial.with_list is None:
        yield TrialFacts(now, None, trial.without) if trial.without else now
        return
    with tempfile.TemporaryDirectory(prefix="pbxguard-") as folder, Store.open(Path(folder) / "trial.db") as store:
        store.import_csv(
            trial.with_list, app.key, home=app.home, tags=app.pack.tags, never_block=app.pack.never_block
        )
        yield TrialFacts(now, ManyFacts(store), trial.without)


@contextmanager
def _changes(path: Path | None) -> Iterator[Any]:
    """A CSV writer for the calls that change; the file is there when all of them are in it."""
    if path is None:
        yield None
        return
    new = path.with_name(path.name + ".part")
    try:
        with new.open("w", newline="", encoding="utf-8") as text:
            yield _with_header(text)
        new.replace(path)
    except BaseException as error:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise BadInput(f"{path}: cannot write it: {error.strerror}; name another file") from error
        raise


def _with_header(text: TextIO) -> Any:
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CHANGED)
    return writer


def _change(row: DecisionRow, result: Again) -> tuple[object, ...]:
    basis = result.now.basis
    return (
        *(row.call_id, row.at.isoformat(), row.trunk, row.channel, row.cli_raw, row.callee_raw),
        *(row.verdict, row.reason, row.rule),
        *(result.verdict, result.now.reason, basis.rule, ";".join(result.now.labels)),
    )


def _by_calls(cells: dict[Any, Cell]) -> list[tuple[Any, Cell]]:
    """The most calls first."""
    return sorted(cells.items(), key=lambda item: (-item[1].calls, item[0]))


def _first(cell: Cell) -> str:
    return "  ".join(cell.first) + ("  ..." if 0 < len(cell.first) < cell.calls else "")


def _show_comparison(found: Comparison) -> None:
    changed = sum(cell.calls for cell in found.changes.values())
    out.print(f"{found.calls:,} recorded calls; another verdict or reason for {changed:,}")
    _say_gone(found)
    if not found.calls:
        return
    then = sorted({was for was, _ in found.verdicts})
    none = Cell()
    rows = [(was, *(f"{found.verdicts.get((was, now), none).calls:,}" for now in ("allow", "block"))) for was in then]
    show_table(("was", "now allow", "now block"), rows)
    if found.changes:
        show_table(
            ("was", "now", "calls", "Call-IDs"),
            [
                (f"{was} {was_reason}", f"{now} {now_reason}", f"{cell.calls:,}", _first(cell))
                for (was, was_reason, now, now_reason), cell in _by_calls(found.changes)
            ],
            title="what changes",
        )
    if found.shadow:
        _show_shadow(found.shadow, "what is in shadow now would do to them")


def _say_gone(found: Comparison) -> None:
    for trunk, calls in sorted(found.gone.items()):
        complain(f"{calls:,} calls of trunk {trunk!r} are left out: the settings have no such trunk")


def _show_shadow(cells: dict[Shadow, Cell], title: str) -> None:
    show_table(
        ("rule or list", "would", "reason", "calls", "Call-IDs"),
        [(hit.rule, hit.verdict, hit.reason, f"{cell.calls:,}", _first(cell)) for hit, cell in _by_calls(cells)],
        title=title,
    )


def _comparison_json(app: App, found: Comparison) -> dict[str, Any]:
    return {
        "pack": app.pack.name,
        "calls": found.calls,
        "left_out": dict(sorted(found.gone.items())),
        "verdicts": [
            {"was": was, "now": now, "calls": cell.calls, "call_ids": cell.first}
            for (was, now), cell in _by_calls(found.verdicts)
        ],
        "changes": [
            {
                "was": was,
                "was_reason": was_reason,
                "now": now,
                "now_reason": now_reason,
                "calls": cell.calls,
                "call_ids": cell.first,
            }
            for (was, was_reason, now, now_reason), cell in _by_calls(found.changes)
        ],
        "shadow": _shadow_json(found.shadow),
    }


def _shadow_json(cells: dict[Shadow, Cell]) -> list[dict[str, Any]]:
    return [{**hit._asdict(), "calls": cell.calls, "call_ids": cell.first} for hit, cell in _by_calls(cells)]
