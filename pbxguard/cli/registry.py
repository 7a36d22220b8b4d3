"""``registry``: who receives which class of call; the operator's side of texting 1219 to 10086."""

import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from pbxguard.cli.context import App, complain, out, pass_app, reported, show_json, show_table
from pbxguard.cli.cutover import cutover
from pbxguard.cli.longrun import counting, user, written
from pbxguard.errors import BadInput
from pbxguard.screening.registry import CallClass, ConsentEvent, Verb
from pbxguard.store import EVENT_COLUMNS, write_events

_class = click.option(
    "--class", "call_class", type=click.Choice(["intl", "hmt", "all"]), default="all", show_default=True,
    help="Calls from other countries (intl), from Hong Kong, Macau and Taiwan (hmt), or both.",
)  # fmt: skip
_channel = click.option("--channel", type=click.Choice(["voice", "sms"]), default="voice", show_default=True)
_caller = click.option("--caller", metavar="CLI", help="For this one caller only.")
_evidence = click.option("--evidence", default="", help="Reference to the proof, such as a form number.")


@click.group()
def registry() -> None:
    """The opt-in registry: who opened or closed what, and when.

    It is an append-only ledger. Each event carries the hash of the one before it; `pbxguard registry verify`
    finds a ledger that was tampered with.
    """


registry.add_command(cutover)


@registry.command(
    "open", epilog="Example: pbxguard registry open 13957100001 --class hmt --until 2027-01-01 --evidence 'form 17'"
)
@click.argument("number")
@_class
@_channel
@_caller
@_evidence
@click.option("--until", metavar="ISO8601", help="Ends then (exclusive); default: for good.")
@click.option("--at", metavar="ISO8601", help="Takes effect then; default: now.")
@pass_app
@reported
def open_(
    app: App, number: str, call_class: str, channel: str, caller: str | None, evidence: str,
    until: str | None, at: str | None,
) -> None:  # fmt: skip
    """NUMBER receives calls of a class from the next call on."""
    _append(app, Verb.OPEN, number, call_class, channel, caller, evidence, until, at)


@registry.command(epilog="Example: pbxguard registry close 13957100001 --class intl --channel sms")
@click.argument("number")
@_class
@_channel
@_caller
@_evidence
@click.option("--at", metavar="ISO8601", help="Takes effect then; default: now.")
@pass_app
@reported
def close(
    app: App, number: str, call_class: str, channel: str, caller: str | None, evidence: str, at: str | None
) -> None:
    """NUMBER receives no more calls of a class."""
    _append(app, Verb.CLOSE, number, call_class, channel, caller, evidence, None, at)


@registry.command()
@click.argument("number")
@click.option("--json", "as_json", is_flag=True)
@pass_app
@reported
def show(app: App, number: str, *, as_json: bool) -> None:
    """What NUMBER has open or closed now."""
    key = app.key(number)
    consents = app.store.state(key)
    columns = ("class", "channel", "caller", "state", "since", "until")
    rows = [
        (c.call_class, c.channel, c.caller or "(all)", c.verb, app.local(c.since), app.local(c.until))
        for c in consents
        if c.verb is not Verb.RESET  # closed by a cut-over that was undone: as if it had never been
    ]
    if as_json:
        show_json([dict(zip(columns, row, strict=True)) for row in rows])
    elif rows:
        show_table(columns, rows)
    else:
        out.print(f"{key} has opened and closed nothing: the defaults of its province apply")


@registry.command()
@click.argument("number")
@click.option("--json", "as_json", is_flag=True)
@pass_app
@reported
def history(app: App, number: str, *, as_json: bool) -> None:
    """Every line of the ledger about NUMBER.

    What, who, by which way, with what evidence. The oldest line first. "reset" takes back what a cut-over closed.
    """
    key = app.key(number)
    columns = (
        "recorded",
        "effective",
        "what",
        "class",
        "channel",
        "caller",
        "until",
        "by",
        "via",
        "evidence",
    )
    rows = [
        (app.local(e.recorded_at), app.local(e.effective_at), e.verb, e.call_class, e.channel,
         e.caller or "(all)", app.local(e.until), e.actor, e.via, e.evidence)
        for e in app.store.history(key)
    ]  # fmt: skip
    if as_json:
        show_json([dict(zip(columns, row, strict=True)) for row in rows])
    elif rows:
        # a narrow terminal has no room for columns that say nothing
        told = [place for place in range(len(columns)) if any(row[place] not in ("", "(all)") for row in rows)]
        show_table([columns[place] for place in told], [[row[place] for place in told] for row in rows])
    else:
        out.print(f"the ledger has no line about {key}")


@registry.command("import", epilog="Example: pbxguard registry import optins.csv --dry-run")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--dry-run", is_flag=True, help="Check every row, say what would be appended, and change nothing.")
@click.option("--restore", is_flag=True, help="FILE is an exported ledger that moves here: take its own records.")
@pass_app
@reported
def import_(app: App, file: Path, *, dry_run: bool, restore: bool) -> None:
    """Append the events of a CSV file: all rows or none.

    Needed are the columns "number", "class" (intl, hmt), "verb" (open, close) and "effective_at"; the others are
    those that export writes. Times have an offset, such as 2027-01-01T00:00:00+08:00. An event that the ledger has
    already is left out, so a file may be imported again.

    The events are recorded now, by you, as an import, whatever the file says. To move a ledger, --restore takes
    "recorded_at", "actor" and "via" from the file, and the verb "reset" of cut-overs that were undone: for exports of
    your own only, since they stand in the history as the file has them.
    """
    with counting(f"importing {file.name}") as count:
        report = app.store.import_events(
            file,
            app.key,
            now=datetime.now(UTC),
            actor=f"cli:{user()}",
            restore=restore,
            dry_run=dry_run,
            progress=count,
        )
    done = "would append" if dry_run else "appended"
    known = report.rows - report.added
    out.print(f"{done} {report.added} events" + (f"; {known} are in the ledger already" if known else ""))


@registry.command(epilog="Example: pbxguard registry export ledger.csv")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, writable=True), required=False)
@pass_app
@reported
def export(app: App, file: Path | None) -> None:
    """Write the whole ledger as CSV.

    To FILE or standard output, in its order.

    `registry import --restore` into an empty database gives the same ledger, with the same head and state.
    """
    if file is None:
        write_events(sys.stdout, app.store.iter_events())
        return
    with written(file) as text, counting(f"writing {file.name}") as count:
        total = write_events(text, _counted(app.store.iter_events(), count))
    out.print(f"wrote {total} events to {file} (columns {','.join(EVENT_COLUMNS)})", markup=False)


@registry.command(
    epilog="Example: pbxguard registry verify --head "
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 --count 1204"
)
@click.option("--head", metavar="HASH", help="The head that an earlier run printed, noted somewhere else.")
@click.option("--count", type=click.IntRange(0), metavar="N", help="The number of events that it printed.")
@click.option("--json", "as_json", is_flag=True)
@pass_app
@reported
def verify(app: App, head: str | None, count: int | None, *, as_json: bool) -> None:
    """Find out whether the ledger is what was written.

    The state that decisions read, too. An event that was changed, removed, put in or moved is found and the first
    one named, and so is a state that does not follow from the ledger; the exit code is then 1. Who can write to
    the database can also compute every hash anew: note the printed head and number somewhere else, and give them
    with --head and --count later; the ledger may have grown since.
    """
    if count is not None and head is None:
        raise click.UsageError("--count says how many events the noted head had; give --head too")
    if head is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", head):
        raise click.BadParameter("a head is 64 hexadecimal digits, as this command prints it", param_hint="--head")
    with counting("verifying") as progress:
        found = app.store.verify_ledger(
            head=None if head is None else bytes.fromhex(head), count=count, progress=progress
        )
    if as_json:
        show_json(
            {
                "ok": not found.fault,
                "events": found.events,
                "head": found.head,
                "states": found.states,
                "fault": found.fault or None,
                "event": found.event_id,
                "number": found.number or None,
            }
        )
    elif not found.fault:
        noted = "" if head is None else "; the noted head is in it"
        out.print(f"{found.events} events, head {found.head}{noted}")
        out.print(f"{found.states} rows of state follow from them")
    if found.fault:
        complain(
            f"{found.fault} ({found.events} events before it are whole, head {found.head}); compare with a backup"
            if found.event_id is not None
            else f"{found.fault}; compare with a backup"
        )
        sys.exit(1)


def _counted(events: Iterator[ConsentEvent], count: Callable[[str, int], None]) -> Iterator[ConsentEvent]:
    for number, event in enumerate(events, 1):
        yield event
        if number % 5000 == 0:
            count("events", number)


def _append(
    app: App, verb: Verb, number: str, call_class: str, channel: str, caller: str | None, evidence: str,
    until: str | None, at: str | None,
) -> None:  # fmt: skip
    now = datetime.now(UTC)
    key, caller_key = app.key(number), app.key(caller) if caller else ""
    effective, end = app.moment(at) if at else now, app.moment(until) if until else None
    if end is not None and end <= effective:
        raise BadInput(f"--until {until} is not after the time it takes effect ({app.local(effective)})")
    classes = list(CallClass) if call_class == "all" else [CallClass(call_class)]
    app.store.append_many(
        ConsentEvent(
            number=key,
            call_class=each,
            channel=channel,
            verb=verb,
            effective_at=effective,
            recorded_at=now,
            actor=f"cli:{user()}",
            via="cli",
            until=end,
            caller=caller_key,
            evidence=evidence,
        )
        for each in classes
    )
    whose = f" from {caller_key}" if caller_key else ""
    when = "" if at is None else f", from {app.local(effective)} on"
    limit = "" if end is None else f", until {app.local(end)}"
    word = "opened" if verb is Verb.OPEN else "closed"
    out.print(f"{key}: {channel} of class {' and '.join(classes)}{whose} {word}{when}{limit}")
    _note_overtaken(app, verb, (key, channel, caller_key), classes, effective, now)
    if app.store.subscriber(key) is None:
        out.print(f"note: {key} is no subscriber here yet; `pbxguard subscribers add` gives it a province")


def _note_overtaken(
    app: App, verb: Verb, whose: tuple[str, str, str], classes: list[CallClass], effective: datetime, now: datetime
) -> None:
    """Say where an act with an older date changes nothing, as a newer one of the same subscriber holds."""
    number, channel, caller = whose
    for each in app.store.state(number):
        about = (number, each.channel, each.caller) == (number, channel, caller) and each.call_class in classes
        if about and effective < each.since <= now and each.verb is not verb:
            out.print(
                f"note: class {each.call_class} stays {_WORDS[each.verb]} since {app.local(each.since)}: the act of "
                "that later date holds; give a later --at to change it"
            )


_WORDS = {Verb.OPEN: "open", Verb.CLOSE: "closed", Verb.RESET: "never answered"}
