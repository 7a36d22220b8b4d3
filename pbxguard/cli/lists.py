"""``lists``: blocklists and allowlists, global or one subscriber's."""

import itertools
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pbxguard.cli.context import App, complain, err, out, pass_app, printable, reported, show_json, show_table
from pbxguard.cli.longrun import written
from pbxguard.errors import BadInput
from pbxguard.screening.lists import Action, ListEntry, check_note, consists_of, live
from pbxguard.screening.punishment import PUNISHMENT_LIST, Basis, keep, kept_reason, punish
from pbxguard.store import LIST_COLUMNS, NEVER_BLOCK, write_csv

_owner = click.option("--subscriber", "owner", metavar="NUMBER", help="This subscriber's own list; default: global.")
_name = click.option("--list", "name", metavar="NAME", help="Name of the list; default system, or own.")


_REFUSALS = """\b
What a subscriber may refuse (lists add PATTERN --subscriber NUMBER):
  400*            400 numbers          class:intl      other countries
  950*  951*      call centres         class:hmt       Hong Kong, Macau and Taiwan
  class:svc95_vas all call centres     region:us       one country
  class:withheld  callers who hide their number
"""


@click.group(epilog=_REFUSALS)
def lists() -> None:
    """Blocklists and allowlists.

    A PATTERN is a number (13800138000, +85261234567), a prefix (9520*, +852*), a range
    (13800000000-13800009999), a class of the country pack (class:svc95_vas) or a region (region:hk). Allow beats
    block. Emergency and operator numbers are never blocked. An entry on the list "punishment" is a joint punishment.
    """


@lists.command()
@click.argument("pattern")
@click.option("--allow", "action", flag_value="allow", help="Put it on the allowlist.")
@click.option("--block", "action", flag_value="block", default="block", help="Put it on the blocklist (default).")
@click.option("--note", "action", flag_value="note", help="Only note what is known of the CLI, with "
              "--list roaming_yes, roaming_no, roaming_unknown or simbox_suspected.")  # fmt: skip
@_owner
@_name
@click.option("--reason", default="", help="Why, for explain and for appeals.")
@click.option("--source", default="cli", show_default=True, help="Where it comes from.")
@click.option("--legal-basis", default="")
@click.option("--document", default="", help="Reference of the decision that it rests on.")
@click.option("--since", metavar="ISO8601", help="Begins then (inclusive); default: holds at once.")
@click.option("--expires", metavar="ISO8601", help="Ends then (exclusive); default: never.")
@pass_app
@reported
def add(
    app: App, pattern: str, action: str, owner: str | None, name: str | None, reason: str, source: str,
    legal_basis: str, document: str, since: str | None, expires: str | None,
) -> None:  # fmt: skip
    """Add an entry, or change the one with the same pattern. Dates hold without a restart."""
    entry = ListEntry(
        owner=app.key(owner) if owner else "",
        pattern=_pattern(app, pattern),
        action=Action(action),
        name=name or ("own" if owner else "system"),
        source=source,
        reason=reason,
        legal_basis=legal_basis,
        expires_at=app.moment(expires) if expires else None,
        since=app.moment(since) if since else None,
        document=document,
    )
    if entry.since and entry.expires_at and entry.expires_at <= entry.since:
        raise BadInput(f"--expires {expires} is not after --since {since}")
    check_note(entry.action, entry.owner, entry.name)
    if entry.action is Action.BLOCK:
        _refuse_never_block(app, entry.pattern)
    app.store.add_entry(entry)
    out.print(f"{_whose(entry.owner)} list {printable(entry.name)}: {entry.action} {entry.pattern}", markup=False)


@lists.command()
@click.argument("pattern")
@_owner
@_name
@pass_app
@reported
def remove(app: App, pattern: str, owner: str | None, name: str | None) -> None:
    """Remove an entry."""
    key = app.key(owner) if owner else ""
    name = name or ("own" if owner else "system")
    normal = _pattern(app, pattern)
    if not app.store.remove_entry(key, normal, name):
        complain(f"{normal} is not on {_whose(key)} list {name!r}")
        sys.exit(1)
    out.print(f"removed {normal} from {_whose(key)} list {name}", markup=False)


@lists.command("punish")
@click.argument("number")
@click.option("--basis", type=click.Choice([str(basis) for basis in Basis]), required=True,
              help="Convicted: 3 years. Designated by the police of a city: 2 years.")  # fmt: skip
@click.option(
    "--from",
    "first_day",
    type=click.DateTime(["%Y-%m-%d"]),
    required=True,
    metavar="DATE",
    help="First day of the term, 2026-06-01.",
)
@click.option("--document", default="", help="Reference of the decision; a further measure within a term needs one.")
@click.option("--retained", metavar="NUMBER", help="The number that the person keeps for basic communication.")
@click.option("--reason", default="", help="Why, for explain and for appeals.")
@click.option("--source", default="cli", show_default=True, help="Where it comes from.")
@pass_app
@reported
def punish_(
    app: App, number: str, basis: str, first_day: datetime, document: str, retained: str | None, reason: str,
    source: str,
) -> None:  # fmt: skip
    """Put NUMBER on the joint punishment list.

    For the term that its basis gives. A further measure within the term adds its own, up to 5 years running.
    `lists lift` ends it when an appeal passes.
    """
    key = app.key(number)
    _refuse_never_block(app, key)
    entry = punish(
        key,
        Basis(basis),
        first_day.date(),
        ZoneInfo(app.pack.timezone),
        before=app.store.entry("", key, PUNISHMENT_LIST),
        document=document,
        reason=reason,
        source=source,
    )
    keeps = {each.pattern for each in app.store.kept_by(kept_reason(key), PUNISHMENT_LIST) if not each.lifted_at}
    if retained:
        keeps.add(_kept(app, key, retained))
    app.store.add_entries([entry, *(keep(each, key, entry) for each in sorted(keeps))])
    kept = f"; kept: {', '.join(sorted(keeps))}" if keeps else ""
    out.print(
        f"{key} is punished from {app.local(entry.since)} until {app.local(entry.expires_at)}{kept}",
        markup=False,
    )


@lists.command()
@click.argument("pattern")
@click.option("--reason", required=True, help="Why: the appeal that passed.")
@_owner
@click.option("--list", "name", metavar="NAME", default=PUNISHMENT_LIST, show_default=True)
@pass_app
@reported
def lift(app: App, pattern: str, reason: str, owner: str | None, name: str) -> None:
    """Lift an entry at once, when an appeal passes.

    It stays on record with the reason. The number that was kept with a punished one is released with it.
    """
    key, normal = app.key(owner) if owner else "", _pattern(app, pattern)
    now = datetime.now(UTC)
    entry = app.store.entry(key, normal, name)
    if entry is None or entry.lifted_at or (entry.expires_at and entry.expires_at <= now):
        what = "is not on" if entry is None else "holds no more on"
        complain(f"{normal} {what} {_whose(key)} list {name!r}")
        sys.exit(1)
    both = [entry, *app.store.kept_by(kept_reason(normal), name)]
    app.store.add_entries([replace(each, lifted_at=now, lift_reason=reason) for each in both if not each.lifted_at])
    out.print(f"lifted {normal} from {_whose(key)} list {name}: it holds no more", markup=False)


@lists.command()
@_owner
@_name
@click.option("--limit", default=50, type=click.IntRange(1), show_default=True, help="Show at most so many.")
@click.option("--json", "as_json", is_flag=True)
@pass_app
@reported
def show(app: App, owner: str | None, name: str | None, limit: int, *, as_json: bool) -> None:
    """Show entries; without --subscriber those of all."""
    key = app.key(owner) if owner else None
    found = list(itertools.islice(app.store.entries(owner=key, name=name), limit))
    now = datetime.now(UTC)
    columns = (
        *("owner", "pattern", "action", "list", "state", "since", "expires", "legal_basis", "document"),
        *("source", "reason", "lifted", "lift_reason"),
    )
    rows = [
        (e.owner or "(global)", e.pattern, e.action, e.name, _state(e, now), app.local(e.since),
         app.local(e.expires_at), e.legal_basis, e.document, e.source, e.reason, app.local(e.lifted_at),
         e.lift_reason)
        for e in found
    ]  # fmt: skip
    if as_json:
        show_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    # most entries have none of the later columns
    used = [place for place in range(len(columns)) if place < 5 or any(row[place] for row in rows)]
    show_table(
        [columns[place].replace("_", " ") for place in used],
        [[row[place] for place in used] for row in rows],
        title=f"times: {app.pack.timezone}",
    )
    total = app.store.count(owner=key, name=name)
    if total > len(found):
        out.print(f"{len(found)} of {total}; --limit shows more, `pbxguard lists export` all")


@lists.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--list", "name", metavar="NAME",
    help="All rows belong to this list; default: to those that they name, or system.",
)  # fmt: skip
@click.option("--replace", is_flag=True, help="The file becomes the whole list of that name.")
@click.option("--dry-run", is_flag=True, help="Check every row, say what would change, and change nothing.")
@pass_app
@reported
def import_(app: App, file: Path, name: str | None, *, replace: bool, dry_run: bool) -> None:
    """Import a CSV file: all rows or none. Calls go on seeing the old entries until it is done.

    Only the column "pattern" is needed; the others are those that export writes. With --list every row is a global
    entry of that list: one that names another list or a subscriber is a bad row.
    """
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,} rows"), TimeElapsedColumn(),
        console=err, transient=True, disable=not err.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task(f"importing {file.name}", total=None)
        report = app.store.import_csv(
            file,
            app.key,
            home=app.home,
            name=name or "system",
            only=name is not None,
            replace=(name or "system") if replace else None,
            dry_run=dry_run,
            tags=app.pack.tags,
            never_block=app.pack.never_block,
            progress=lambda rows: progress.update(task, completed=rows),
        )
    done = "would import" if dry_run else "imported"
    extra = "".join(
        f", {count} {word}"
        for count, word in ((report.overwritten, "overwritten"), (report.removed, "removed first"))
        if count
    )
    out.print(f"{done} {report.rows} rows: {report.added} new{extra}", markup=False)


@lists.command()
@_owner
@_name
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, writable=True), required=False)
@pass_app
@reported
def export(app: App, owner: str | None, name: str | None, file: Path | None) -> None:
    """Write entries as CSV to FILE or standard output."""
    entries = app.store.entries(owner=app.key(owner) if owner else None, name=name)
    if file is None:
        write_csv(sys.stdout, entries)
        return
    with written(file) as text:
        count = write_csv(text, entries)
    out.print(f"wrote {count} entries to {file} (columns {','.join(LIST_COLUMNS)})", markup=False)


def _pattern(app: App, text: str) -> str:
    return app.pattern(text, app.pack.tags)


def _refuse_never_block(app: App, pattern: str) -> None:
    if consists_of(pattern, app.pack.never_block):
        raise BadInput(f"{pattern} {NEVER_BLOCK}; a wider prefix or range passes over such numbers")


def _kept(app: App, punished: str, number: str) -> str:
    """The home form of the number that the holder of a punished one keeps."""
    kept = app.key(number)
    if kept == punished:
        raise BadInput(f"--retained {kept}: the same number cannot be punished and kept")
    there = app.store.entry("", kept, PUNISHMENT_LIST)
    if there is not None and not there.lifted_at and there.reason != kept_reason(punished):
        raise BadInput(f"--retained {kept}: it is on the list itself ({there.reason}); lift that first")
    return kept


def _state(entry: ListEntry, now: datetime) -> str:
    if entry.lifted_at is not None and entry.lifted_at <= now:
        return "lifted"
    if entry.expires_at is not None and entry.expires_at <= now:
        return "expired"
    if not live(entry, now):
        return "to come"
    return "kept" if entry.retained else "holds"


def _whose(owner: str) -> str:
    return f"{owner}'s" if owner else "global"
