"""``lists``: blocklists and allowlists, global or one subscriber's."""

import contextlib
import itertools
import sys
from pathlib import Path

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pbxguard.cli.context import App, complain, err, out, pass_app, printable, reported, show_json, show_table
from pbxguard.errors import BadInput
from pbxguard.screening.lists import Action, ListEntry, normalise_pattern
from pbxguard.store import LIST_COLUMNS, write_csv

_owner = click.option("--subscriber", "owner", metavar="NUMBER", help="This subscriber's own list; default: global.")
_name = click.option("--list", "name", metavar="NAME", help="Name of the list; default system, or own.")


@click.group()
def lists() -> None:
    """Blocklists and allowlists.

    A PATTERN is a number (13800138000, +85261234567), a prefix (9520*, +852*) or a range
    (13800000000-13800009999). Allow beats block. An entry on the list "punishment" is a joint punishment.
    """


@lists.command()
@click.argument("pattern")
@click.option("--allow", "action", flag_value="allow", help="Put it on the allowlist.")
@click.option("--block", "action", flag_value="block", default="block", help="Put it on the blocklist (default).")
@_owner
@_name
@click.option("--reason", default="", help="Why, for explain and for appeals.")
@click.option("--source", default="cli", show_default=True, help="Where it comes from.")
@click.option("--legal-basis", default="")
@click.option("--expires", metavar="ISO8601", help="Ends then (exclusive); default: never.")
@pass_app
@reported
def add(
    app: App, pattern: str, action: str, owner: str | None, name: str | None, reason: str, source: str,
    legal_basis: str, expires: str | None,
) -> None:  # fmt: skip
    """Add an entry, or change the one with the same pattern."""
    entry = ListEntry(
        owner=app.key(owner) if owner else "",
        pattern=normalise_pattern(pattern, app.key),
        action=Action(action),
        name=name or ("own" if owner else "system"),
        source=source,
        reason=reason,
        legal_basis=legal_basis,
        expires_at=app.moment(expires) if expires else None,
    )
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
    normal = normalise_pattern(pattern, app.key)
    if not app.store.remove_entry(key, normal, name):
        complain(f"{normal} is not on {_whose(key)} list {name!r}")
        sys.exit(1)
    out.print(f"removed {normal} from {_whose(key)} list {name}", markup=False)


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
    columns = ("owner", "pattern", "action", "list", "source", "reason", "expires")
    rows = [(e.owner or "(global)", e.pattern, e.action, e.name, e.source, e.reason, app.local(e.expires_at))
            for e in found]  # fmt: skip
    if as_json:
        show_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    show_table(columns, rows)
    total = app.store.count(owner=key, name=name)
    if total > len(found):
        out.print(f"{len(found)} of {total}; --limit shows more, `pbxguard lists export` all")


@lists.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_name
@click.option("--replace", is_flag=True, help="The file becomes the whole list of that name.")
@click.option("--dry-run", is_flag=True, help="Check every row, say what would change, and change nothing.")
@pass_app
@reported
def import_(app: App, file: Path, name: str | None, *, replace: bool, dry_run: bool) -> None:
    """Import a CSV file: all rows or none. Calls go on seeing the old entries until it is done.

    Only the column "pattern" is needed; the others are those that export writes.
    """
    name = name or "system"
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,} rows"), TimeElapsedColumn(),
        console=err, transient=True, disable=not err.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task(f"importing {file.name}", total=None)
        report = app.store.import_csv(
            file,
            app.key,
            name=name,
            replace=name if replace else None,
            dry_run=dry_run,
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
    new = file.with_name(file.name + ".part")
    try:
        with new.open("w", newline="", encoding="utf-8") as text:
            count = write_csv(text, entries)
        new.replace(file)
    except BaseException as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise BadInput(f"{file}: cannot write it: {error.strerror}; name another file") from error
        raise
    out.print(f"wrote {count} entries to {file} (columns {','.join(LIST_COLUMNS)})", markup=False)


def _whose(owner: str) -> str:
    return f"{owner}'s" if owner else "global"
