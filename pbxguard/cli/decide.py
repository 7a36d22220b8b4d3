"""``check``: what would be decided about a call, about a file of calls, or about the calls of the past."""

import uuid
from datetime import UTC, datetime
from pathlib import Path

import click

from pbxguard.cli.batch import COLUMNS, check_batch
from pbxguard.cli.context import App, pass_app, reported
from pbxguard.cli.explain import show_decision
from pbxguard.cli.replay import Trial, check_recorded, check_shadow
from pbxguard.errors import StoreUnavailable
from pbxguard.guard import Decided, Guard, decision_row
from pbxguard.screening.call import Call, Channel, Failed
from pbxguard.screening.treatment import ASTERISK

_USAGE = "give --from, --to and --trunk, or --batch FILE.csv, or --recorded"


@click.command(
    epilog="Examples: pbxguard check --from +85261234567 --to 13957100001 --trunk intl; "
    "pbxguard check --recorded --since 2026-11-01 --with-list new.csv"
)
@click.option("--from", "cli", metavar="CLI", help="Calling number as it would stand on the wire.")
@click.option("--to", "callee", metavar="CALLEE", help="Called number.")
@click.option("--trunk", metavar="NAME", help="Trunk that the call would come in on.")
@click.option("--channel", type=click.Choice(["voice", "sms"]), help="Default: voice.")
@click.option("--at", metavar="ISO8601", help="Time of the call; without an offset in the site's zone. Default: now.")
@click.option(
    "--batch",
    type=click.Path(path_type=Path),
    metavar="FILE.csv",
    help=f"Decide every row (columns {','.join(COLUMNS)}); CSV on standard output. A file is checked as a "
    "whole before the first answer (the answers wait in a nameless file in TMPDIR); standard input (-) is answered "
    "as its rows arrive, up to the first bad one.",
)
@click.option(
    "--recorded",
    is_flag=True,
    help="Decide the recorded calls again, each with the time that it had, and compare the verdict of then with that "
    "of the pack, settings, lists and registry of now (another pack, or rules in shadow: --config with a trial "
    "settings file). What was changed since the calls counts as a difference too.",
)
@click.option("--since", metavar="ISO8601", help="--recorded: calls from then on (inclusive).")
@click.option("--until", metavar="ISO8601", help="--recorded: calls before then (exclusive). Default: now.")
@click.option("--with-list", type=click.Path(path_type=Path), metavar="FILE.csv", help="--recorded: as if this list "
              "had been imported (`lists import`); nothing is.")  # fmt: skip
@click.option("--without-list", multiple=True, metavar="NAME", help="--recorded: as if this list were empty.")
@click.option("--shadow", is_flag=True, help="--recorded: decide nothing, count what rules and lists that were in "
              "shadow would have done, as it was noted with each call.")  # fmt: skip
@click.option("--samples", type=click.IntRange(0, 1000), help="--recorded: Call-IDs shown for each line. Default: 3.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.csv",
              help="--recorded: write every call whose verdict or reason differs.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The decision, or the counts of --recorded, as JSON.")
@pass_app
@reported
def check(
    app: App,
    cli: str | None,
    callee: str | None,
    trunk: str | None,
    channel: str | None,
    at: str | None,
    batch: Path | None,
    since: str | None,
    until: str | None,
    with_list: Path | None,
    without_list: tuple[str, ...],
    samples: int | None,
    csv_file: Path | None,
    *,
    recorded: bool,
    shadow: bool,
    as_json: bool,
) -> None:
    """Say what would be decided about a call, without any effect.

    The answer "block" is an answer, not a failure: the exit code is 0.
    """
    one = cli is not None or callee is not None
    replaying = (since, until, with_list, samples, csv_file)
    if not recorded and (shadow or without_list or any(option is not None for option in replaying)):
        raise click.UsageError("--since, --until, --with-list, --without-list, --shadow, --samples and --csv go with "
                               "--recorded")  # fmt: skip
    if recorded:
        if one or batch is not None or any(option is not None for option in (trunk, channel, at)):
            raise click.UsageError(
                "--recorded has its calls from the record; leave out --from, --to, --trunk, --channel, --at, --batch"
            )
        trial = Trial(
            since=app.moment(since) if since else None,
            until=app.moment(until) if until else datetime.now(UTC),
            with_list=with_list,
            without=without_list,
            samples=3 if samples is None else samples,
        )
        if not shadow:
            check_recorded(app, trial, csv_file, as_json=as_json)
        elif with_list or without_list or csv_file:
            raise click.UsageError("--shadow counts what was noted; leave out --with-list, --without-list and --csv")
        else:
            check_shadow(app, trial, as_json=as_json)
    elif batch is not None:
        if one or as_json:
            raise click.UsageError(
                "--batch takes its calls from the file and writes CSV; leave out --from, --to and --json"
            )
        check_batch(app, batch, {"trunk": trunk or "", "channel": channel or "voice", "at": at or ""})
    elif cli is None or callee is None or trunk is None:
        raise click.UsageError(_USAGE)
    else:
        _check_one(app, cli, callee, trunk, channel or "voice", at, as_json=as_json)


def _check_one(app: App, cli: str, callee: str, trunk: str, channel: str, at: str | None, *, as_json: bool) -> None:
    call = Call(
        call_id=f"check-{uuid.uuid4()}",
        at=app.moment(at) if at else datetime.now(UTC),
        trunk=app.trunk(trunk),
        cli=cli,
        callee=callee,
        channel=Channel(channel),
    )
    guard = Guard(app.store, app.pack, app.settings, recording=False, trace=True)
    try:
        row = decision_row(_decided(guard, call))
    finally:
        guard.close()
    show_decision(app, row, as_json=as_json)


def _decided(guard: Guard, call: Call) -> Decided:
    """The decision; a guard that could not make one has no answer to a what-if question.

    Raises:
        StoreUnavailable: It could not; the message says why.
    """
    decided = guard.decide(call, ASTERISK)
    if isinstance(decided.verdict, Failed):
        raise StoreUnavailable(f"no decision: {decided.verdict.why}")
    return decided
