"""``explain``, and how a decision is shown to people and to scripts."""

import sys
from typing import Any

import click

from pbxguard.cli.context import App, complain, err, out, pass_app, printable, reported, show_json, show_table
from pbxguard.screening.pack import Pack
from pbxguard.store import DecisionRow


@click.command()
@click.argument("call_id")
@click.option("--json", "as_json", is_flag=True, help="The decision as JSON.")
@pass_app
@reported
def explain(app: App, call_id: str, *, as_json: bool) -> None:
    """Say why a call was decided as it was.

    CALL_ID is its SIP Call-ID, or the beginning of it if only one call has that. Shows the numbers as heard and
    as read, each rule in order with what it saw, the list entry, the legal basis, the notice to which a refused
    caller has a right, and how long each step took.
    """
    row = app.store.decision(call_id)
    if row is None:
        alike = app.store.call_ids(call_id, 5)
        row = app.store.decision(alike[0]) if len(alike) == 1 else None
    if row is None:
        _complain(app, call_id, alike)
        sys.exit(1)
    show_decision(app, row, as_json=as_json)


def _complain(app: App, call_id: str, alike: tuple[str, ...]) -> None:
    found = [row for each in alike if (row := app.store.decision(each))]
    if found:
        complain(f"several Call-IDs begin with {call_id[:80]}; give more of one, such as:")
    else:
        found = list(app.store.recent(5))
        complain(
            f"no decision is recorded for the Call-ID {call_id[:80]}"
            + ("; the newest ones are:" if found else ", nor for any other")
        )
    for row in found:
        err.print(f"  {printable(row.call_id)}  {app.local(row.at)}  {row.reason}", markup=False)


def verdict_word(row: DecisionRow) -> str:
    """``allow`` or ``block`` as the caller would experience it; a failed decision shows what its policy does."""
    return row.verdict if row.verdict != "failed" else ("allow" if row.extra["connected"] else "block")


def show_decision(app: App, row: DecisionRow, *, as_json: bool) -> None:
    """Print one decision: a table of what and why, then the steps, where they were recorded."""
    if as_json:
        show_json(_as_json(row, app.pack))
        return
    colour = "green" if verdict_word(row) == "allow" else "red"
    out.print(f"[bold {colour}]{verdict_word(row)}[/]  {row.reason}")
    extra = row.extra
    decided = f"{row.rule}, pack {row.pack or '-'}"
    lines = [
        ("call", f"{row.call_id}  {app.local(row.at)}  {row.channel} on trunk {row.trunk}"),
        ("CLI", f"{row.cli_raw or '(none)'}, read as {row.cli_key or 'no number'} ({row.cli_class})"),
        ("asserted", extra.get("asserted") or ""),
        ("display name", extra.get("display_name") or ""),
        ("callee", f"{row.callee_raw}, read as {row.callee_key or 'no number'}"),
        ("note", _callee_note(row)),
        ("diverted by", ", ".join(extra.get("diverted_by") or ())),
        ("because", row.detail),
        ("rule", decided + (f", lists version {row.lists_version}" if row.lists_version else "")),
        ("legal basis", row.extra.get("legal_basis") or ""),
        ("source", _source(row, app.pack)),
        ("list entry", row.entry),
        ("labels", ", ".join(row.labels)),
        ("in shadow", "; ".join(_shadow_text(hit) for hit in _shadow(row))),
        ("callee sees", "no number" if extra.get("withheld") else extra["display"]),
        ("caller hears", _heard(row)),
        *_notice_lines(row, app.pack),
        ("took", f"{row.elapsed_us} µs"),
    ]
    show_table(("what", "value"), [line for line in lines if line[1]])
    steps = _steps(row)
    if steps:
        show_table(
            ("rule", "outcome", "saw", "µs"),
            [(step["rule"], step["outcome"], step["saw"], f"{step['ns'] / 1000:.1f}") for step in steps],
            title="the rules in order",
        )


def _as_json(row: DecisionRow, pack: Pack) -> dict[str, Any]:
    notice = _notice(row, pack)
    return {
        "call_id": row.call_id,
        "at": row.at.isoformat(),
        "channel": row.channel,
        "trunk": row.trunk,
        "cli": row.cli_raw,
        "cli_key": row.cli_key,
        "class": row.cli_class,
        "asserted": row.extra.get("asserted"),
        "display_name": row.extra.get("display_name", ""),
        "callee": row.callee_raw,
        "callee_key": row.callee_key,
        "note": _callee_note(row),
        "diverted_by": row.extra.get("diverted_by", []),
        "verdict": verdict_word(row),
        "failed": row.verdict == "failed",
        "reason": row.reason,
        "labels": list(row.labels),
        "rule": row.rule,
        "detail": row.detail,
        "opted_in": row.extra.get("opted_in", ""),
        "legal_basis": row.extra.get("legal_basis", ""),
        "source": _source(row, pack),
        "entry": row.entry,
        "pack": row.pack,
        "lists_version": row.lists_version,
        "shadow": [dict(zip(("rule", "verdict", "reason"), hit, strict=True)) for hit in _shadow(row)],
        "sip_status": row.sip_status,
        "prompt": row.prompt,
        "languages": row.extra["languages"],
        "display": row.extra["display"],
        "notice": notice,
        "elapsed_us": row.elapsed_us,
        "steps": _steps(row),
    }


def _callee_note(row: DecisionRow) -> str:
    """What a callee that is no number means for the verdict: a PBX may well call a SIP user by name."""
    if row.callee_key is not None:
        return ""
    return (
        "the callee is no telephone number, so no subscriber: a call to such a name is judged by its caller alone, "
        "and nobody's opt-in or own list counts; write a subscriber's number as dialled at home"
    )


def _heard(row: DecisionRow) -> str:
    if row.sip_status is None:
        return "nothing, the call connects"
    languages = " and ".join(row.extra["languages"])
    prompt = f"the prompt {row.prompt} ({languages}), then " if row.prompt else ""
    return f"{prompt}SIP {row.sip_status}"


def _source(row: DecisionRow, pack: Pack) -> str:
    """Where the rule is from; "" for a decision by another pack than that of now, which may have another source."""
    rule = next((rule for rule in pack.rules if (row.pack, row.rule) == (pack.name, rule.id)), None)
    return "" if rule is None else f"{rule.source} ({rule.status}; {rule.where})"


def _notice(row: DecisionRow, pack: Pack) -> dict[str, dict[str, str]] | None:
    """The notice of a refusal by language (Anti-Telecom and Online Fraud Law, Art. 32)."""
    if verdict_word(row) != "block" or row.reason not in pack.reasons:
        return None
    found = {language: pack.notice(row.reason, language) for language in dict.fromkeys((pack.home_language, "en"))}
    told = {
        language: {"reason": notice.reason, "remedy": notice.remedy, "papers": notice.papers}
        for language, notice in found.items()
        if notice is not None
    }
    return told or None


def _notice_lines(row: DecisionRow, pack: Pack) -> list[tuple[str, str]]:
    told = _notice(row, pack) or {}
    return [
        (f"notice ({language})", f"{notice['reason']}  {notice['remedy']}  {notice['papers']}")
        for language, notice in told.items()
    ]


def _steps(row: DecisionRow) -> list[dict[str, Any]]:
    return [dict(zip(("rule", "outcome", "saw", "ns"), step, strict=True)) for step in row.extra.get("steps", [])]


def _shadow(row: DecisionRow) -> list[tuple[str, str, str]]:
    return [(rule, verdict, reason) for rule, verdict, reason in row.extra.get("shadow", [])]


def _shadow_text(hit: tuple[str, str, str]) -> str:
    rule, verdict, reason = hit
    return f"{rule} would {verdict}" + (f" ({reason})" if reason else "")
