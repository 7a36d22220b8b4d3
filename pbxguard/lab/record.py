"""A scenario file from a call that somebody just placed by hand: what was given, who called whom, what happened.

Reads the guard's record, the capture and the store; the only file that it writes is the scenario's.
"""

import asyncio
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from pbxguard import prompts
from pbxguard.errors import BadInput, LabUnavailable, UnknownName
from pbxguard.lab import evidence, expectations, topology
from pbxguard.lab.capture import capturing
from pbxguard.lab.evidence import TAG, Legs, Observed
from pbxguard.lab.listening import HEARD
from pbxguard.lab.scenario import CallStep
from pbxguard.lab.scenariofile import read
from pbxguard.lab.schema import FILE as SCHEMA
from pbxguard.lab.topology import CALLERS, PHONES
from pbxguard.lab.waiting import wait_for
from pbxguard.lab.wire import Capture, Leg, SipMessage
from pbxguard.lab.world import World
from pbxguard.packs import load as load_pack
from pbxguard.screening.call import Subscriber
from pbxguard.screening.treatment import ASTERISK, FREESWITCH, refusal
from pbxguard.store import DecisionRow, Store

#: Longest call that is waited for, in seconds.
LONGEST_CALL = 600
#: Folders of evidence that are searched for the last call, the newest first.
_SEARCHED = 2000
#: Headers of an INVITE that a verdict may rest on, and that the lab can send again.
_REPEATED = ("P-Asserted-Identity", "Remote-Party-ID", "Privacy", "Diversion", "History-Info")
_PLAIN = re.compile(r"\+?[0-9]{0,40}|anonymous")

Value = str | float | bool | list["Value"] | Mapping[str, "Value"]


@dataclass(frozen=True, slots=True)
class Heard:
    """A call that is over: the guard's record and what was on the wire."""

    decision: DecisionRow
    capture: Capture
    legs: Legs


def target(folder: Path, name: str, *, force: bool) -> Path:
    """The file that a recording of that name goes to.

    Raises:
        BadInput: The name is none for a file, the folder is not there, or the file is, without *force*.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}", name):
        raise BadInput(f"{name[:80]!r}: a scenario's name has letters, digits, - and _, at most 80")
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; make it, or give another with --scenarios")
    path = folder / f"{name}.toml"
    if path.exists() and not force:
        raise BadInput(f"{path} is there already; --force writes over it, another name leaves it")
    return path


async def next_call(world: World, patience: float) -> Heard:
    """Wait for the next call that the guard decides on, and for its end.

    Raises:
        LabUnavailable: There was none in *patience* seconds, or it did not end in ``LONGEST_CALL``; the message names
            a call between telephones, which the guard is not asked about.
    """
    since = datetime.now(UTC)
    name = f"record-{secrets.token_hex(8)}"
    found: list[DecisionRow] = []
    legs: list[Legs] = []

    def decided() -> bool:
        with Store.open(world.settings.store_url) as store:
            found.extend(row for row in store.recent(1) if row.channel == "voice" and row.at >= since)
        return bool(found)

    path = world.root / "captures" / f"{name}.pcap"
    try:
        async with capturing(world.engine, world.watcher, path.parent, name):

            def ended() -> bool:
                now = legs_of(Capture.load(path), found[0].call_id)
                legs[:] = [now] if now else []
                return bool(legs) and "end" in expectations.times(legs[0].caller)

            try:
                await wait_for(decided, patience, "a call", every=0.3)
            except LabUnavailable as error:
                between = await asyncio.to_thread(_between_telephones, path)
                raise LabUnavailable(_no_call(patience, between)) from error
            world.say(f"a call from {found[0].cli_raw or '(none)'} to {found[0].callee_raw}; waiting for its end")
            await wait_for(ended, LONGEST_CALL, "the end of the call", every=1.0)
        capture = await asyncio.to_thread(Capture.load, path)
    finally:
        path.unlink(missing_ok=True)
    return _heard(found[0], capture)


def _between_telephones(path: Path) -> Leg | None:
    """The last call from a telephone into the PBX in that capture."""
    trunks = {str(caller.address) for caller in topology.HOME.callers}
    calls = [
        leg
        for leg in Capture.load(path).calls().values()
        if leg.callee.ip in topology.PBX_ADDRESSES and leg.caller.ip not in topology.PBX_ADDRESSES | trunks
    ]
    return max(calls, key=lambda leg: leg.invite.at, default=None)


def _no_call(patience: float, between: Leg | None) -> str:
    if between is None:
        return (
            f"no call came in by a trunk in {patience:.0f} s; place one meanwhile in another terminal, with "
            "`pbxguard lab call`"
        )
    ends = [expectations.number_in(between, header) or "(no number)" for header in ("from", "to")]
    callee = next((phone.name for phone in PHONES if phone.number == ends[1]), ends[1])
    return (
        f"the call from {ends[0]} ({between.caller.ip}) to {callee} was one between telephones, which the guard is "
        f"not asked about; place it by a trunk, with `pbxguard lab call --from {ends[0]} --to {callee} --trunk natl`"
    )


def last_call(world: World, root: Path) -> Heard:
    """The last call that the guard decided on, from the evidence that it left below *root*.

    Raises:
        UnknownName: There was no call, or it left no evidence.
    """
    with Store.open(world.settings.store_url) as store:
        decision = next((row for row in store.recent(50) if row.channel == "voice"), None)
    if decision is None:
        raise UnknownName("the guard has decided no call yet; place one: `pbxguard lab call`")
    for result in islice(_newest(root), _SEARCHED):
        try:
            known = json.loads(result.read_bytes()).get("call_id")
        except (OSError, ValueError, AttributeError, RecursionError):
            continue
        if known == decision.call_id:
            return _heard(decision, Capture.load(result.with_name("call.pcap")))
    raise UnknownName(
        f"the last call, from {decision.cli_raw[:40]!r} to {decision.callee_raw[:40]!r}, left no evidence in {root}; "
        "leave out --last and place it again, or say where with --evidence"
    )


def _newest(root: Path) -> Iterator[Path]:
    found = [path for path in root.glob("*/*/result.json") if path.is_file()]
    return iter(sorted(found, key=lambda path: path.stat().st_mtime, reverse=True))


def _heard(decision: DecisionRow, capture: Capture) -> Heard:
    legs = legs_of(capture, decision.call_id)
    if legs is None:
        raise UnknownName(f"the INVITE of call {decision.call_id[:80]!r} is not in the capture; place the call again")
    return Heard(decision, capture, legs)


def legs_of(capture: Capture, call_id: str) -> Legs | None:
    """The legs of the call that came in under this Call-ID; None while it is not there."""
    calls = capture.calls()
    caller = calls.get(call_id)
    if caller is None or caller.invite is None:
        return None
    if tag := caller.invite.header(TAG):
        return evidence.legs_of(capture, tag)
    # Not placed by the lab: the next leg from the PBX to the same number.
    number = expectations.number_in(caller, "to")
    later = [
        leg
        for leg in calls.values()
        if leg.invite is not None
        and leg.invite.source.ip in topology.PBX_ADDRESSES
        and leg.invite.at >= caller.invite.at
        and expectations.number_in(leg, "to") == number
    ]
    return Legs(caller, min(later, key=lambda leg: leg.invite.at, default=None))


def text(world: World, call: Heard, name: str, folder: Path) -> str:
    """The scenario file of a call, as TOML.

    Raises:
        BadInput: The lab could not place this call again: its trunk is not one of the lab's.
    """
    decision, legs = call.decision, call.legs
    if decision.trunk not in {caller.name for caller in CALLERS}:
        raise BadInput(f"the call came on trunk {decision.trunk[:40]!r}, which the lab has no caller for")
    observed = evidence.observe(legs, decision, prompts.prompt_dir(world.settings.prompts))
    placed = _placed(decision, legs)
    given, notes = _given(world, decision)
    seen = (
        f"{placed['cli'] or 'a caller without CLI'} calls {placed['callee']} on {decision.trunk}: {observed.verdict}"
    )
    lines = [
        f"#:schema {Path(os.path.relpath(SCHEMA, folder)).as_posix()}",
        f"# Recorded {decision.at:%Y-%m-%d %H:%M} UTC on {world.pbx}; Call-ID {toml(decision.call_id[:200])}",
        *(f"# Not recorded: {note}" for note in notes),
        f"title = {toml(name.replace('-', ' '))}",
        "",
        "[[step]]",
        f"title = {toml(seen)}",
        *([f"given = {toml(given)}"] if given else []),
        f"call = {toml(placed)}",
        "[step.expect]",
        *(f"{key} = {toml(value)}" for key, value in _expected(world, call, observed, placed).items()),
    ]
    return "\n".join(lines) + "\n"


def write(path: Path, content: str) -> CallStep:
    """Write the file when it is a scenario that can be run, or nothing; the call that it has."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_text(content, encoding="utf-8")
        (scenario,) = read(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return scenario.step[0].call


def _placed(decision: DecisionRow, legs: Legs) -> dict[str, Value]:
    """The call as `[[step]] call` has it."""
    invite = legs.caller.invite
    withheld = "anonymous.invalid" in (invite.header("from") or "").lower()
    cli = "anonymous" if withheld else decision.cli_raw
    number = decision.callee_raw
    found: dict[str, Value] = {
        "cli": cli,
        "callee": next((phone.name for phone in PHONES if phone.number == number), number),
        "trunk": decision.trunk,
    }
    display = str(decision.extra.get("display_name") or "")
    if display and not withheld:
        found["display_name"] = display
    if all(caller.gateway is None for caller in CALLERS if caller.name == decision.trunk):
        found |= _by_hand(cli, invite)
    cancel = next((message for message in legs.caller.messages if message.method == "CANCEL"), None)
    if cancel is not None:
        found["hang_up_after"] = round(max(cancel.at - invite.at, 0.1), 1)
    return found


def _by_hand(cli: str, invite: SipMessage) -> dict[str, Value]:
    """How the INVITE of a carrier was written, where that is unlike the lab's own; a gateway writes its own."""
    found: dict[str, Value] = {}
    if not _PLAIN.fullmatch(cli):
        found["raw"] = True
    if invite.media is None:
        found["offer"] = False
    if headers := {name: value for name in _REPEATED if (value := invite.header(name))}:
        found["headers"] = headers
    return found


def _expected(world: World, call: Heard, observed: Observed, placed: Mapping[str, Value]) -> dict[str, Value]:
    """What was observed as `[step.expect]` has it; sound only where there is no doubt what it was."""
    decision, legs = call.decision, call.legs
    cut = "hang_up_after" in placed
    found: dict[str, Value] = {
        "verdict": observed.verdict,
        "reason": observed.reason,
        "sip_status": _on_asterisk(world, decision, observed.sip_status),
    }
    if observed.answered:
        found["answered"] = True
    if observed.callee_rang:
        found["callee_rang"] = True
    found["rang"] = list(expectations.rang(expectations.legs_to_phones(call.capture, legs)))
    if observed.prompt and (cut or observed.prompt_score >= HEARD):
        found["prompt"] = observed.prompt
        if cut:
            found["prompt_cut"] = True
    if observed.two_way_audio and not placed.keys() & {"headers", "raw", "offer"}:
        found["two_way_audio"] = True
    if observed.labels:
        found["labels"] = list(observed.labels)
    if decision.extra.get("display") and str(decision.extra["display"]) in observed.display:
        found["display"] = str(decision.extra["display"])
    if observed.cli_class:
        found["cli_class"] = observed.cli_class
    if decision.rule:
        found["decision"] = {"rule": f"^{re.escape(decision.rule)}$"}
    return found


def _on_asterisk(world: World, decision: DecisionRow, status: int | None) -> int:
    """The status as a file has it; where the PBXs differ by declaration, that of Asterisk."""
    if status is None:
        raise BadInput("the call had no final status; place it again and let it end")
    if world.pbx == "freeswitch" and status >= 300:
        group = load_pack(world.settings.pack).reason_group(decision.reason)
        if status == refusal(group, FREESWITCH)[0]:
            return refusal(group, ASTERISK)[0] or status
    return status


def _given(world: World, decision: DecisionRow) -> tuple[dict[str, Value], list[str]]:
    """What the store has that this call's verdict may rest on, and what a scenario cannot give."""
    numbers = (decision.callee_key,) if decision.callee_key else ()
    tags = (decision.cli_class,) if decision.cli_class else ()
    with Store.open(world.settings.store_url) as store:
        facts = store.facts(decision.cli_key, numbers, tags)
    notes: list[str] = []
    registry: list[Value] = []
    for consent in facts.consents:
        if consent.channel != "voice" or consent.caller:
            notes.append(f"consent of {consent.number} to {consent.call_class} ({consent.channel})")
        elif consent.since <= decision.at and (consent.until is None or decision.at < consent.until):
            registry.append(
                {"verb": str(consent.verb), "number": _name(consent.number), "class": str(consent.call_class)}
            )
    lists: list[Value] = [
        {"pattern": entry.pattern, "action": str(entry.action), "list": entry.name}
        | ({"subscriber": _name(entry.owner)} if entry.owner else {})
        for entry in facts.listed
        if all(moment is None or moment > decision.at for moment in (entry.expires_at, entry.lifted_at))
    ]
    if facts.bindings:
        notes.append(f"{len(facts.bindings)} binding(s) of the privacy number")
    notes += _unlike_the_lab(facts.callees.values())
    found: dict[str, Value] = {}
    if registry:
        found["registry"] = registry
    if lists:
        found["lists"] = lists
    return found, notes


def _unlike_the_lab(subscribers: Iterable[Subscriber]) -> Iterator[str]:
    """Subscribers whose settings a scenario does not have: it has those of the lab's telephones."""
    ours = {(phone.number, phone.operator, phone.province, phone.language) for phone in PHONES}
    for each in subscribers:
        if (each.number, each.operator, each.province, each.language) not in ours:
            yield f"settings of subscriber {each.number}: {each.operator}, {each.province}, {each.language}"


def _name(number: str) -> str:
    return next((phone.name for phone in PHONES if phone.number == number), number)


def toml(value: Value) -> str:
    """A value as TOML on one line (v1.0.0: basic string, inline table)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(map(_escaped, value)) + '"'
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return repr(value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml(key)


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    point = ord(character)
    # A lone surrogate is no Unicode scalar value, which is all that TOML has.
    return "\\uFFFD" if 0xD800 <= point < 0xE000 else f"\\u{point:04X}" if point < 0x10000 else f"\\U{point:08X}"
