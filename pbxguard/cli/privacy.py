"""``privacy``: which pair of callers an intermediate number (X) stands for, and until when."""

import itertools
import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from pbxguard.cli.context import App, complain, out, pass_app, reported, show_json, show_table
from pbxguard.errors import BadInput
from pbxguard.screening.numbering import read_cli
from pbxguard.screening.privacy import Binding, live, pair
from pbxguard.store.privacy import LONGEST_CALL_S


@click.group()
def privacy() -> None:
    """Bindings of privacy numbers.

    While X is bound to A and B, each sees X when the other calls. A call from X to somebody whose binding is over is
    refused (privacy_binding_expired).
    """


@privacy.command()
@click.argument("x")
@click.option("--a", "a", metavar="NUMBER", help="The one side; default: not known here, only calls to B are bound.")
@click.option("--b", "b", metavar="NUMBER", required=True, help="The other side.")
@click.option("--until", metavar="ISO8601", help="Ends then (exclusive); default: when it is unbound.")
@click.option("--since", metavar="ISO8601", help="Begins then (inclusive); default: now.")
@click.option(
    "--max-call", "max_call_s", type=click.IntRange(1, LONGEST_CALL_S), metavar="SECONDS",
    help="The longest that one call may take; default: no limit.",
)  # fmt: skip
@pass_app
@reported
def bind(
    app: App, x: str, a: str | None, b: str, until: str | None, since: str | None, max_call_s: int | None
) -> None:
    """Bind the privacy number X to a pair.

    An earlier binding of the same pair ends.
    """
    shown, one, other = app.key(x), app.key(a) if a else "", app.key(b)
    if not _is_x(app, shown):
        raise BadInput(f"{shown} is no privacy number in country pack {app.pack.id}")
    if one == other:
        raise BadInput(f"--a {one}: both sides are the same number")
    begins, ends = app.moment(since) if since else datetime.now(UTC), app.moment(until) if until else None
    if ends is not None and ends <= begins:
        raise BadInput(f"--until {until} is not after the time it begins ({app.local(begins)})")
    app.store.bind(pair(shown, one, other, begins, ends, max_call_s))
    limit = "" if ends is None else f" until {app.local(ends)}"
    out.print(f"{shown} stands for {one or '(any)'} and {other} from {app.local(begins)}{limit}", markup=False)


@privacy.command()
@click.argument("x")
@click.option("--party", metavar="NUMBER", help="Only pairs with this number; default: all of X.")
@pass_app
@reported
def unbind(app: App, x: str, party: str | None) -> None:
    """End the bindings of X at once."""
    shown = app.key(x)
    if not app.store.unbind(shown, datetime.now(UTC), app.key(party) if party else None):
        complain(f"{shown} has no binding that holds or is to come")
        sys.exit(1)
    out.print(f"unbound {shown}", markup=False)


@privacy.command()
@click.argument("x", required=False)
@click.option("--limit", default=50, type=click.IntRange(1), show_default=True, help="Show at most so many.")
@click.option("--json", "as_json", is_flag=True)
@pass_app
@reported
def show(app: App, x: str | None, limit: int, *, as_json: bool) -> None:
    """Show bindings, of X or all; one line for each direction."""
    found = list(itertools.islice(app.store.bindings(app.key(x) if x else None), limit + 1))
    now = datetime.now(UTC)
    columns = ("x", "caller", "callee", "state", "since", "until", "max_call_s")
    rows = [
        (e.x, e.a or "(any)", e.b, _state(e, now), app.local(e.since), app.local(e.until), e.max_call_s)
        for e in found[:limit]
    ]
    if as_json:
        show_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    show_table(
        [column.replace("_", " ") for column in columns],
        [["" if cell is None else cell for cell in row] for row in rows],
        title=f"times: {app.pack.timezone}",
    )
    if len(found) > limit:
        out.print(f"{limit} shown; --limit shows more")


@privacy.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--dry-run", is_flag=True, help="Check every row and change nothing.")
@pass_app
@reported
def import_(app: App, file: Path, *, dry_run: bool) -> None:
    """Import a CSV file of pairs: all rows or none.

    Its columns are x,a,b,since,until,max_call_s, of which only x and b are needed.
    """
    total = app.store.import_bindings(file, app.key, lambda x: _is_x(app, x), datetime.now(UTC), dry_run=dry_run)
    out.print(f"{'would import' if dry_run else 'imported'} {total} pairs")


@privacy.command()
@click.option("--before", metavar="ISO8601", required=True, help="Those that ended before then.")
@pass_app
@reported
def forget(app: App, before: str) -> None:
    """Remove bindings that ended long ago: they hold real numbers."""
    out.print(f"removed {app.store.forget_bindings(app.moment(before))} bindings")


def _is_x(app: App, number: str) -> bool:
    rules = app.pack.class_rules(read_cli(number, app.pack).number_class)
    return rules is not None and (rules.privacy or rules.privacy_legacy)


def _state(binding: Binding, now: datetime) -> str:
    if live(binding, now):
        return "holds"
    return "to come" if binding.since > now else "expired"
