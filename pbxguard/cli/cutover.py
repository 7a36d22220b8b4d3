"""``registry cutover``: a cohort that never answered is closed from a date on; looked at first, undone by batch."""

import csv
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import click

from pbxguard.cli.context import App, err, out, pass_app, reported, show_json, show_table
from pbxguard.cli.longrun import counting, user, written
from pbxguard.cli.subscribers import OPERATORS
from pbxguard.errors import BadInput
from pbxguard.screening.registry import CallClass
from pbxguard.store import Answers, Batch, Cohort, Cutover, Loser

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")

_EXAMPLES = """\b
Examples:
  pbxguard registry cutover --province zhejiang --operator cm --effective 2022-05-20
  pbxguard registry cutover --name zhejiang-2022-05 --province zhejiang --operator cm --effective 2022-05-20 --apply
  pbxguard registry cutover --name zhejiang-2022-05 --apply       # goes on after an interruption
  pbxguard registry cutover --undo zhejiang-2022-05:3             # batch 3; without :3 all of them
  pbxguard registry cutover --status zhejiang-2022-05"""


@click.command(epilog=_EXAMPLES)
@click.option("--name", metavar="NAME", help="Id of the cut-over, such as zhejiang-2022-05; needed to --apply it.")
@click.option("--province", metavar="NAME", help="Subscribers of this province only; default: all.")
@click.option("--operator", type=click.Choice(OPERATORS), help="Subscribers of this operator only; default: all.")
@click.option(
    "--class", "call_class", type=click.Choice(["intl", "hmt", "all"]),
    help="What is closed: calls from other countries (intl), from Hong Kong, Macau and Taiwan (hmt), or both; "
    "default: all.",
)  # fmt: skip
@click.option("--channel", type=click.Choice(["voice", "sms"]), help="Default: voice.")
@click.option(
    "--effective", metavar="ISO8601",
    help="They are closed from then on; without an offset in the site's zone. Default: now.",
)  # fmt: skip
@click.option(
    "--days", type=click.IntRange(1, 3650), default=30, show_default=True,
    help="Look for calls that would have been lost in so many days.",
)  # fmt: skip
@click.option("--top", type=click.IntRange(1, 10_000), default=20, show_default=True, help="List so many of them.")
@click.option(
    "--csv", "csv_file", type=click.Path(path_type=Path, dir_okay=False, writable=True), metavar="FILE",
    help="Write all who would be closed, with the calls that they would have lost.",
)  # fmt: skip
@click.option("--apply", is_flag=True, help="Close them. An interrupted run goes on where it stopped.")
@click.option(
    "--batch-size", type=click.IntRange(1, 100_000), default=5000, show_default=True,
    help="Subscribers that are closed at a time; other writers wait for one batch.",
)  # fmt: skip
@click.option("--undo", metavar="NAME[:BATCH]", help="Take a batch back, or all of them.")
@click.option("--status", metavar="NAME", help="What was done so far.")
@click.option("--json", "as_json", is_flag=True)
@pass_app
@reported
def cutover(
    app: App, name: str | None, province: str | None, operator: str | None, call_class: str | None,
    channel: str | None, effective: str | None, days: int, top: int, csv_file: Path | None, batch_size: int,
    undo: str | None, status: str | None, *, apply: bool, as_json: bool,
) -> None:  # fmt: skip
    """Close a cohort of subscribers who have not answered.

    It holds from a date on. Without --apply nothing is changed: it says how many have opened, closed or not
    answered, and who would have lost which calls. Who has opened or closed by own act is never touched; an
    opening whose end is past does not count, and one for a single caller stays beside the closing. --undo appends
    events that bring the numbers of a batch back to "never answered", except those who have opened or closed
    since. Exit code 1: interrupted.
    """
    if sum((apply, undo is not None, status is not None)) > 1:
        raise click.UsageError("--apply, --undo and --status are three different things; give one of them")
    if status is not None:
        _show_status(app, status, as_json=as_json)
    elif undo is not None:
        _undo(app, undo, as_json=as_json)
    elif apply:
        if csv_file is not None:
            raise click.UsageError("--csv belongs to the dry run; leave out --apply")
        if name is None:
            raise click.UsageError("--apply needs a --name for the cut-over, such as zhejiang-2022-05")
        given = (province, operator, call_class, channel, effective)
        _apply(app, name, _begun(app, name, given), batch_size, as_json=as_json)
    else:
        cohort = _cohort(app, province, operator, call_class, channel)
        _dry_run(app, cohort, effective, days, top, csv_file, as_json=as_json)


# -- looking ahead --------------------------------------------------------------------------------------------


@dataclass
class _Outlook:
    """What a cut-over would do.

    Attributes:
        first: Those who would lose the most calls.
        losing: How many would lose any.
        calls: How many calls, by class.
    """

    cohort: Cohort
    begins: datetime
    days: int
    to_close: int
    answers: tuple[Answers, ...]
    first: list[Loser] = field(default_factory=list)
    losing: int = 0
    calls: dict[CallClass, int] = field(default_factory=dict)

    def add(self, loser: Loser, top: int) -> None:
        if loser.total:
            self.losing += 1
            for each, lost in loser.calls.items():
                self.calls[each] = self.calls.get(each, 0) + lost
            if len(self.first) < top:
                self.first.append(loser)


def _dry_run(
    app: App, cohort: Cohort, effective: str | None, days: int, top: int, csv_file: Path | None, *, as_json: bool
) -> None:
    now = datetime.now(UTC)
    begins = app.moment(effective) if effective else now
    with counting("looking through the subscribers"):
        look = _Outlook(cohort, begins, days, *app.store.answers(cohort, now))
    losers = app.store.losers(
        cohort,
        now,
        now - timedelta(days=days),
        {each: _cli_classes(app, each) for each in cohort.classes},
        everyone=csv_file is not None,
    )
    with counting("looking through the calls") as count:
        if csv_file is None:
            _take_in(look, losers, top, count)
        else:
            with written(csv_file) as text:
                _take_in(look, _passed_on(losers, text), top, count)
    if as_json:
        show_json(_outlook_json(look))
        return
    _show_outlook(app, look)
    if csv_file is not None:
        out.print(f"wrote {look.to_close} subscribers to {csv_file}", markup=False)


def _take_in(look: _Outlook, losers: Iterable[Loser], top: int, count: Callable[[str, int], None]) -> None:
    for rows, loser in enumerate(losers, 1):
        look.add(loser, top)
        if rows % 5000 == 0:
            count("subscribers", rows)


def _passed_on(losers: Iterable[Loser], text: TextIO) -> Iterator[Loser]:
    """Write each as a row of CSV on its way."""
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("number", "operator", "province", "language", "classes", *CallClass, "last_call"))
    for loser in losers:
        calls = (loser.calls.get(each, "") for each in CallClass)
        last = "" if loser.last is None else loser.last.isoformat()
        who = (loser.number, loser.operator, loser.province, loser.language, " ".join(loser.classes))
        writer.writerow((*who, *calls, last))
        yield loser


def _outlook_json(look: _Outlook) -> dict[str, Any]:
    return {
        "cohort": _as_json(look.cohort),
        "effective": look.begins.isoformat(),
        "to_close": look.to_close,
        "answers": [
            {"class": a.call_class, "open": a.opened, "closed": a.closed, "ended": a.ended, "never": a.never}
            for a in look.answers
        ],
        "days": look.days,
        "losing": {"subscribers": look.losing, "calls": sum(look.calls.values()), "by_class": look.calls},
        "top": [
            {
                "number": each.number,
                "operator": each.operator,
                "province": each.province,
                "calls": each.calls,
                "last": None if each.last is None else each.last.isoformat(),
            }
            for each in look.first
        ],
    }


def _show_outlook(app: App, look: _Outlook) -> None:
    cohort = look.cohort
    out.print(f"{_words(cohort)}, from {app.local(look.begins)} on; a dry run, nothing was changed", markup=False)
    show_table(
        ("class", "open", "closed", "open until a past time", "never answered", "would be closed"),
        [(a.call_class, a.opened, a.closed, a.ended, a.never, a.to_close) for a in look.answers],
    )
    words = {"voice": "calls", "sms": "texts"}[cohort.channel]
    out.print(
        f"{look.to_close} subscribers would be closed; {look.losing} of them would have lost "
        f"{sum(look.calls.values())} {words} in the last {look.days} days"
    )
    if look.first:
        show_table(
            ("number", "operator", "province", *cohort.classes, "last"),
            [
                (e.number, e.operator, e.province, *(e.calls.get(c, "-") for c in cohort.classes), app.local(e.last))
                for e in look.first
            ],
        )
    if look.losing > len(look.first):
        out.print(f"{len(look.first)} of {look.losing}; --top shows more, --csv FILE writes all")


def _cli_classes(app: App, call_class: CallClass) -> list[str]:
    """The classes of a foreign CLI whose calls need this class of consent."""
    return [f"intl_{region.code}" for region in app.pack.regions.values() if region.group == call_class]


# -- closing --------------------------------------------------------------------------------------------------


def _begun(app: App, name: str, given: tuple[str | None, ...]) -> Cutover:
    """Begin a cut-over, or take up the one of that name."""
    if not _NAME.fullmatch(name):
        raise BadInput(f"--name {name[:40]!r}: a name is letters, digits, points and hyphens, at most 40")
    now = datetime.now(UTC)
    held = app.store.cutover(name)
    if held is not None and not any(given):
        return app.store.begin_cutover(name, held.cohort, held.effective_at, now)
    *cohort, effective = given
    default = now if held is None else held.effective_at
    begins = app.moment(effective) if effective else default
    return app.store.begin_cutover(name, _cohort(app, *cohort), begins, now)


def _apply(app: App, name: str, begun: Cutover, size: int, *, as_json: bool) -> None:
    before = len(begun.batches)
    if before and not as_json:
        out.print(f"{name}: going on after batch {before}")
    done = _Sums()
    with _interruptible() as interrupted, counting(f"closing {name}") as count:
        while not interrupted():
            batch = app.store.close_batch(name, size, datetime.now(UTC), f"cli:{user()}")
            if batch is None:
                break
            done.add(batch)
            count(f"batch {batch.number}", done.subscribers)
        stopped = interrupted()
    held = app.store.cutover(name)
    finished = held is not None and held.finished_at is not None
    if as_json:
        show_json({"name": name, "finished": finished, **done.as_json()})
    else:
        out.print(f"{name}: closed {done}; {'finished' if finished else 'not finished'}")
    if stopped and not finished:
        err.print(f"interrupted between batches; `pbxguard registry cutover --name {name} --apply` goes on")
        sys.exit(1)


def _undo(app: App, text: str, *, as_json: bool) -> None:
    name, colon, number = text.partition(":")
    if colon and not re.fullmatch(r"[1-9][0-9]{0,8}", number):
        raise click.BadParameter(
            f"{number[:20]!r} is no number of a batch, such as {name[:40]}:3", param_hint="--undo"
        )
    now = datetime.now(UTC)
    if colon:
        batches = [int(number)]
    else:
        # noted first: a cut-over that is being undone must not go on closing
        batches = [batch.number for batch in reversed(app.store.stop_cutover(name, now).batches)]
    done, left = _Sums(), list(batches)
    with _interruptible() as interrupted, counting(f"undoing {name}") as count:
        while left and not interrupted():
            done.add(app.store.undo_batch(name, left.pop(0), now, f"cli:{user()}"))
            count("batches", done.batches)
    if as_json:
        show_json({"name": name, "undone": not left, **done.as_json()})
    else:
        out.print(f"{text}: undone {done}; {done.kept} events left alone: opened or closed since")
    if left:
        err.print(f"interrupted between batches; `pbxguard registry cutover --undo {name}` goes on", markup=False)
        sys.exit(1)


class _Sums:
    """What a run has done so far."""

    def __init__(self) -> None:
        self.batches = self.subscribers = self.events = self.kept = 0

    def add(self, batch: Batch) -> None:
        self.batches += 1
        self.subscribers += batch.subscribers
        self.events += batch.events
        self.kept += batch.kept or 0

    def __str__(self) -> str:
        return f"{self.subscribers} subscribers ({self.events} events) in {self.batches} batches"

    def as_json(self) -> dict[str, int]:
        return vars(self)


@contextmanager
def _interruptible() -> Iterator[Any]:
    """Take the first Ctrl-C (or SIGTERM) as a wish to stop after this batch, the second one at its word."""
    asked: list[int] = []
    before: dict[int, Any] = {}

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        restore()

    def restore() -> None:
        for each, handler in before.items():
            signal.signal(each, handler)

    for each in (signal.SIGINT, signal.SIGTERM):
        before[each] = signal.signal(each, ask)
    try:
        yield lambda: bool(asked)
    finally:
        restore()


# -- telling --------------------------------------------------------------------------------------------------


def _show_status(app: App, name: str, *, as_json: bool) -> None:
    held = app.store.known_cutover(name)
    columns = ("batch", "recorded", "subscribers", "events", "undone", "left alone")
    rows = [
        (b.number, app.local(b.recorded_at), b.subscribers, b.events, app.local(b.undone_at),
         "" if b.kept is None else b.kept)
        for b in held.batches
    ]  # fmt: skip
    to_close, _ = app.store.answers(held.cohort, datetime.now(UTC))
    state = "undone" if held.undone_at else "finished" if held.finished_at else "not finished"
    if as_json:
        show_json(
            {
                "name": name,
                "cohort": _as_json(held.cohort),
                "effective": held.effective_at.isoformat(),
                "begun": held.begun_at.isoformat(),
                "state": state,
                "not_answered": to_close,
                "batches": [
                    {
                        "batch": b.number,
                        "recorded": b.recorded_at.isoformat(),
                        "subscribers": b.subscribers,
                        "events": b.events,
                        "undone": None if b.undone_at is None else b.undone_at.isoformat(),
                        "left_alone": b.kept,
                    }
                    for b in held.batches
                ],
            }
        )
        return
    out.print(f"{name}: {_words(held.cohort)}, from {app.local(held.effective_at)} on; {state}", markup=False)
    show_table(columns, rows)
    out.print(f"{to_close} subscribers of the cohort have neither answered nor been closed")


def _cohort(
    app: App, province: str | None, operator: str | None, call_class: str | None, channel: str | None
) -> Cohort:
    known = app.pack.provinces
    if province and province not in known:
        raise BadInput(f"province {province[:40]!r} is not in pack {app.pack.id}; it has {', '.join(sorted(known))}")
    classes = tuple(CallClass) if call_class in (None, "all") else (CallClass(call_class),)
    return Cohort(classes, channel or "voice", province or "", operator or "")


def _words(cohort: Cohort) -> str:
    who = " ".join(filter(None, (cohort.province, cohort.operator))) or "all subscribers"
    return f"{who}: {cohort.channel} of class {' and '.join(cohort.classes)}"


def _as_json(cohort: Cohort) -> dict[str, Any]:
    return {
        "province": cohort.province or None,
        "operator": cohort.operator or None,
        "channel": cohort.channel,
        "classes": cohort.classes,
    }
