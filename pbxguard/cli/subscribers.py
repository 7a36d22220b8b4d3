"""``subscribers``: who is called here, and with which operator, province and language."""

import csv
import sys
from pathlib import Path

import click

from pbxguard.cli.context import App, complain, out, pass_app, reported, show_json, show_table
from pbxguard.errors import BadInput, PbxguardError, UnknownName
from pbxguard.screening.call import Subscriber

_COLUMNS = ("number", "operator", "province", "language")
OPERATORS = ("cm", "cu", "ct", "cbn")


@click.group()
def subscribers() -> None:
    """The called parties that this site knows.

    Of each its number, operator, province and language.

    The operator knows its own subscribers; nothing is guessed from a number's prefix.
    """


@subscribers.command()
@click.argument("number")
@click.option("--operator", type=click.Choice(OPERATORS), required=True)
@click.option("--province", required=True, help="As in the pack: zhejiang, heilongjiang ...")
@click.option("--language", type=click.Choice(["zh", "en"]), default="zh", show_default=True)
@pass_app
@reported
def add(app: App, number: str, operator: str, province: str, language: str) -> None:
    """Add a subscriber, or change one."""
    subscriber = _subscriber(app, number, operator, province, language)
    app.store.add_subscriber(subscriber)
    out.print(f"subscriber {subscriber.number}: {operator}, {subscriber.province}, {language}")


@subscribers.command()
@click.argument("number")
@pass_app
@reported
def remove(app: App, number: str) -> None:
    """Remove a subscriber; the consent ledger keeps its lines."""
    key = app.key(number)
    if not app.store.remove_subscriber(key):
        complain(f"{key} is no subscriber here")
        sys.exit(1)
    out.print(f"removed {key}")


@subscribers.command()
@click.argument("number", required=False)
@click.option("--json", "as_json", is_flag=True)
@pass_app
@reported
def show(app: App, number: str | None, *, as_json: bool) -> None:
    """Show one subscriber, or all."""
    if number is None:
        found = list(app.store.iter_subscribers())
    else:
        one = app.store.subscriber(app.key(number))
        if one is None:
            raise UnknownName(f"{app.key(number)} is no subscriber here; `pbxguard subscribers add` adds one")
        found = [one]
    if as_json:
        show_json([{name: getattr(s, name) for name in _COLUMNS} for s in found])
    else:
        show_table(_COLUMNS, [[getattr(s, name) for name in _COLUMNS] for s in found])


@subscribers.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--dry-run", is_flag=True, help="Check every row and change nothing.")
@pass_app
@reported
def import_(app: App, file: Path, *, dry_run: bool) -> None:
    """Import a CSV file: all rows or none.

    Its columns are number,operator,province,language.
    """
    rows = _read(app, file)
    if dry_run:
        out.print(f"{len(rows)} subscribers are fine; nothing was changed")
        return
    app.store.import_subscribers(rows)
    out.print(f"imported {len(rows)} subscribers")


@subscribers.command()
@pass_app
@reported
def export(app: App) -> None:
    """Write all subscribers as CSV to standard output."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows([getattr(s, name) for name in _COLUMNS] for s in app.store.iter_subscribers())


def _subscriber(app: App, number: str, operator: str, province: str, language: str) -> Subscriber:
    if operator not in OPERATORS:
        raise BadInput(f"operator {operator[:40]!r} is not one of {', '.join(OPERATORS)}")
    if language not in ("zh", "en"):
        raise BadInput(f"language {language[:40]!r} is not zh or en")
    known = app.pack.provinces
    if province not in known:
        raise BadInput(f"province {province[:40]!r} is not in pack {app.pack.id}; it has {', '.join(sorted(known))}")
    return Subscriber(app.key(number), operator, province, language)


def _read(app: App, file: Path) -> list[Subscriber]:
    found, wrong = [], []
    with file.open(newline="", encoding="utf-8-sig", errors="replace") as text:
        reader = csv.DictReader(text)
        try:
            columns = list(reader.fieldnames or ())
            unknown = [name for name in columns if name not in _COLUMNS or columns.count(name) > 1]
            if unknown or not {"number", "operator", "province"} <= set(columns):
                raise BadInput(f"{file}:1: the first line must name {','.join(_COLUMNS)}")
            for row in reader:
                try:
                    found.append(_row(app, row))
                except PbxguardError as error:
                    wrong.append(f"line {reader.line_num}: {error}")
        except csv.Error as error:
            raise BadInput(f"{file}:{reader.reader.line_num}: {error}; nothing was imported") from error
    if wrong:
        more = f"; and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise BadInput(f"{file}: {len(wrong)} bad rows, nothing was imported: {'; '.join(wrong[:20])}{more}")
    return found


def _row(app: App, row: dict[str, str]) -> Subscriber:
    if None in row or None in row.values():
        raise BadInput("another number of fields than the first line")
    number, operator, province, language = (row.get(name, "").strip() for name in _COLUMNS)
    return _subscriber(app, number, operator, province, language or "zh")
