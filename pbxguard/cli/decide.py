"""``check`` and ``explain``: what would be decided, and what was."""

import csv
import io
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import click
from rich.progress import Progress, TaskID

from pbxguard.cli.context import App, complain, err, out, pass_app, printable, reported, show_json, show_table
from pbxguard.errors import BadInput, PbxguardError, StoreUnavailable
from pbxguard.guard import Decided, Guard, decision_row
from pbxguard.screening.call import Call, Channel, Failed
from pbxguard.screening.treatment import ASTERISK
from pbxguard.store import DecisionRow

_COLUMNS = ("cli", "callee", "trunk", "channel", "at")
_ADDED = ("class", "verdict", "reason", "labels")


@click.command(epilog="Example: pbxguard check --from +85261234567 --to 13957100001 --trunk intl")
@click.option("--from", "cli", metavar="CLI", help="Calling number as it would stand on the wire.")
@click.option("--to", "callee", metavar="CALLEE", help="Called number.")
@click.option("--trunk", metavar="NAME", help="Trunk that the call would come in on.")
@click.option("--channel", type=click.Choice(["voice", "sms"]), default="voice", show_default=True)
@click.option("--at", metavar="ISO8601", help="Time of the call; without an offset in the site's zone. Default: now.")
@click.option(
    "--batch",
    type=click.Path(path_type=Path),
    metavar="FILE.csv",
    help="Decide every row (columns cli,callee,trunk,channel,at); CSV on standard output. A file is checked as a "
    "whole before the first answer; standard input (-) is answered row by row, up to the first bad one.",
)
@click.option("--json", "as_json", is_flag=True, help="The decision as JSON.")
@pass_app
@reported
def check(
    app: App,
    cli: str | None,
    callee: str | None,
    trunk: str | None,
    channel: str,
    at: str | None,
    batch: Path | None,
    *,
    as_json: bool,
) -> None:
    """Say what would be decided about a call, without any effect.

    The answer "block" is an answer, not a failure: the exit code is 0.
    """
    guard = Guard(app.store, app.pack, app.settings, recording=False)
    try:
        if batch is not None:
            if cli is not None or callee is not None or as_json:
                raise click.UsageError(
                    "--batch takes its calls from the file and writes CSV; leave out --from, --to and --json"
                )
            _check_batch(app, guard, batch, {"trunk": trunk or "", "channel": channel, "at": at or ""})
            return
        if cli is None or callee is None or trunk is None:
            raise click.UsageError("give --from, --to and --trunk, or --batch FILE.csv")
        call = _call(app, {"cli": cli, "callee": callee, "trunk": trunk, "channel": channel, "at": at or ""})
        row = decision_row(_decided(guard, call))
    finally:
        guard.close()
    _show(app, row, as_json=as_json)


@click.command()
@click.argument("call_id")
@click.option("--json", "as_json", is_flag=True, help="The decision as JSON.")
@pass_app
@reported
def explain(app: App, call_id: str, *, as_json: bool) -> None:
    """Say why a call was decided as it was, by its SIP Call-ID."""
    row = app.store.decision(call_id)
    if row is None:
        newest = app.store.recent(5)
        complain(
            f"no decision is recorded for the Call-ID {call_id[:80]}"
            + ("; the newest ones are:" if newest else ", nor for any other")
        )
        for known in newest:
            err.print(f"  {printable(known.call_id)}  {app.local(known.at)}  {known.reason}", markup=False)
        sys.exit(1)
    _show(app, row, as_json=as_json)


def _call(app: App, row: dict[str, str]) -> Call:
    at = app.moment(row["at"]) if row.get("at") else datetime.now(UTC)
    return Call(
        call_id=f"check-{uuid.uuid4()}",
        at=at,
        trunk=app.trunk(row["trunk"]),
        cli=row["cli"],
        callee=row["callee"],
        channel=Channel(row.get("channel") or "voice"),
    )


def _decided(guard: Guard, call: Call) -> Decided:
    """The decision; a guard that could not make one has no answer to a what-if question.

    Raises:
        StoreUnavailable: It could not; the message says why.
    """
    decided = guard.decide(call, ASTERISK)
    if isinstance(decided.verdict, Failed):
        raise StoreUnavailable(f"no decision: {decided.verdict.why}")
    return decided


def verdict_word(row: DecisionRow) -> str:
    """``allow`` or ``block`` as the caller would experience it; a failed decision shows what its policy does."""
    return row.verdict if row.verdict != "failed" else ("allow" if row.extra["connected"] else "block")


def _show(app: App, row: DecisionRow, *, as_json: bool) -> None:
    if as_json:
        show_json(
            {
                "call_id": row.call_id,
                "at": row.at.isoformat(),
                "channel": row.channel,
                "trunk": row.trunk,
                "cli": row.cli_raw,
                "cli_key": row.cli_key,
                "class": row.cli_class,
                "callee": row.callee_raw,
                "callee_key": row.callee_key,
                "verdict": verdict_word(row),
                "failed": row.verdict == "failed",
                "reason": row.reason,
                "labels": list(row.labels),
                "rule": row.rule,
                "detail": row.detail,
                "entry": row.entry,
                "pack": row.pack,
                "lists_version": row.lists_version,
                "sip_status": row.sip_status,
                "prompt": row.prompt,
                "languages": row.extra["languages"],
                "display": row.extra["display"],
                "elapsed_us": row.elapsed_us,
            }
        )
        return
    colour = "green" if verdict_word(row) == "allow" else "red"
    out.print(f"[bold {colour}]{verdict_word(row)}[/]  {row.reason}")
    heard = "nothing, the call connects"
    if row.sip_status is not None:
        languages = " and ".join(row.extra["languages"])
        prompt = f"the prompt {row.prompt} ({languages}), then " if row.prompt else ""
        heard = f"{prompt}SIP {row.sip_status}"
    rows = [
        ("call", f"{row.call_id}  {app.local(row.at)}  {row.channel} on trunk {row.trunk}"),
        ("CLI", f"{row.cli_raw or '(none)'}, read as {row.cli_key or 'no number'} ({row.cli_class})"),
        ("callee", f"{row.callee_raw}, read as {row.callee_key or 'no number'}"),
        ("because", row.detail),
        ("rule", f"{row.rule}, pack {row.pack or '-'}"),
        ("list entry", row.entry),
        ("labels", ", ".join(row.labels)),
        ("callee sees", row.extra["display"]),
        ("caller hears", heard),
        ("took", f"{row.elapsed_us} µs"),
    ]
    show_table(("what", "value"), [line for line in rows if line[1]])


def _check_batch(app: App, guard: Guard, path: Path, defaults: dict[str, str]) -> None:
    """Decide a CSV file row by row in bounded memory; a bad row is named by line.

    A file is read twice, so that a bad row leaves no half of an answer; a stream can be read only once, and its
    bad row ends it. ``defaults`` are for columns that the file does not have, or leaves empty in a row.
    """
    writer = csv.writer(sys.stdout, lineterminator="\n")
    required = ("cli", "callee") if defaults["trunk"] else ("cli", "callee", "trunk")
    with _opened(path) as file, Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        if _size(path) is not None:
            reader = csv.DictReader(file)
            _columns(reader, path, required)
            for row in _rows(reader, file, path, progress.add_task("checking", total=_size(path)), progress):
                _row_call(app, path, reader.line_num, row, defaults)
            file.seek(0)
        reader = csv.DictReader(file)
        columns = _columns(reader, path, required)
        writer.writerow([*columns, *_ADDED])
        for row in _rows(reader, file, path, progress.add_task("deciding", total=_size(path)), progress):
            decided = _decided(guard, _row_call(app, path, reader.line_num, row, defaults))
            writer.writerow([*(row[name] for name in columns), *_result(decided)])


def _columns(reader: "csv.DictReader[str]", path: Path, required: tuple[str, ...]) -> list[str]:
    try:
        columns = list(reader.fieldnames or ())
    except csv.Error as error:
        raise BadInput(f"{path}:1: {error}; the first line must name {','.join(_COLUMNS)}") from error
    missing = [name for name in required if name not in columns]
    wrong = [name for name in columns if name not in _COLUMNS or columns.count(name) > 1]
    if missing or wrong:
        what = f"no column {', '.join(missing)}" if missing else f"unknown or double column {', '.join(wrong)[:80]!r}"
        raise BadInput(f"{path}:1: {what}; the first line must name {','.join(_COLUMNS)}")
    return columns


def _row_call(app: App, path: Path, line: int, row: dict[str, str], defaults: dict[str, str]) -> Call:
    row = defaults | {name: value for name, value in row.items() if value}
    try:
        return _call(app, {"cli": "", "callee": "", **row})
    except (PbxguardError, click.BadParameter, ValueError) as error:
        message = error.message if isinstance(error, click.BadParameter) else str(error)
        raise BadInput(f"{path}:{line}: {message}") from error


def _result(decided: Decided) -> tuple[str, str, str, str]:
    row = decision_row(decided)
    return row.cli_class, verdict_word(row), str(row.reason), ";".join(row.labels)


def _opened(path: Path) -> TextIO:
    if str(path) == "-":
        return io.TextIOWrapper(sys.stdin.buffer, newline="", encoding="utf-8-sig", errors="replace")
    try:
        return path.open(newline="", encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise BadInput(f"{path}: cannot read it: {error.strerror}") from error


def _size(path: Path) -> int | None:
    """Bytes of a file; None for a stream (standard input, a pipe)."""
    return path.stat().st_size if str(path) != "-" and path.is_file() else None


def _rows(
    reader: "csv.DictReader[str]", file: TextIO, path: Path, task: TaskID, progress: Progress
) -> Iterator[dict[str, str]]:
    try:
        for count, row in enumerate(reader, start=1):
            if None in row or None in row.values():
                raise BadInput(f"{path}:{reader.line_num}: the row has another number of fields than the first line")
            yield row
            if count % 1000 == 0:
                progress.update(task, completed=file.buffer.tell() if file.seekable() else count)
    except csv.Error as error:
        raise BadInput(f"{path}:{reader.reader.line_num}: {error}") from error
