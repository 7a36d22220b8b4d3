"""``registry``: who receives which class of call; the operator's side of texting 1219 to 10086."""

import getpass
import os
from datetime import UTC, datetime

import click

from pbxguard.cli.context import App, out, pass_app, reported, show_json, show_table
from pbxguard.errors import BadInput
from pbxguard.screening.registry import CallClass, ConsentEvent, Verb

_class = click.option(
    "--class", "call_class", type=click.Choice(["intl", "hmt", "all"]), default="all", show_default=True,
    help="Calls from other countries (intl), from Hong Kong, Macau and Taiwan (hmt), or both.",
)  # fmt: skip
_channel = click.option("--channel", type=click.Choice(["voice", "sms"]), default="voice", show_default=True)
_caller = click.option("--caller", metavar="CLI", help="For this one caller only.")
_evidence = click.option("--evidence", default="", help="Reference to the proof, such as a form number.")


@click.group()
def registry() -> None:
    """The opt-in registry: an append-only ledger of who opened or closed what, and when."""


@registry.command("open")
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


@registry.command()
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
    """Every line of the ledger about NUMBER: what, who, by which way, with what evidence."""
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
        for e in app.store.history(app.key(number))
    ]  # fmt: skip
    if as_json:
        show_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        show_table(columns, rows)


def _user() -> str:
    """Who is at the keyboard; in a container that may be a number without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


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
            actor=f"cli:{_user()}",
            via="cli",
            until=end,
            caller=caller_key,
            evidence=evidence[:200],
        )
        for each in classes
    )
    whose = f" from {caller_key}" if caller_key else ""
    when = "" if at is None else f", from {app.local(effective)} on"
    limit = "" if end is None else f", until {app.local(end)}"
    word = "opened" if verb is Verb.OPEN else "closed"
    out.print(f"{key}: {channel} of class {' and '.join(classes)}{whose} {word}{when}{limit}")
    if app.store.subscriber(key) is None:
        out.print(f"note: {key} is no subscriber here yet; `pbxguard subscribers add` gives it a province")
