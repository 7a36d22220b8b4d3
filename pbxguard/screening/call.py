"""The frozen values that every module speaks: a call, its trunk, the facts about it, and the verdict.

This module knows names and shapes. It does not know numbers (``numbering``), rules (``policy``) or what a
PBX does with a verdict (``treatment``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from pbxguard.screening.lists import ListEntry
from pbxguard.screening.numbering import Number
from pbxguard.screening.privacy import Binding
from pbxguard.screening.reasons import Label, Reason
from pbxguard.screening.registry import Consent

__all__ = [
    "Allow",
    "Basis",
    "Block",
    "Call",
    "Channel",
    "Facts",
    "Failed",
    "Label",
    "Reason",
    "Roaming",
    "Shadow",
    "Step",
    "Subscriber",
    "Trunk",
    "Verdict",
]


class Channel(StrEnum):
    """What is screened: a call (INVITE) or a text (MESSAGE)."""

    VOICE = "voice"
    SMS = "sms"


class Roaming(StrEnum):
    """What the roaming look-up says of a national mobile CLI that arrives from abroad."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Trunk:
    """One trunk as the site declares it.

    Attributes:
        name: What dialplan and command line call it, such as ``intl``.
        kind: Its class in the country pack: intl_gateway, national, enterprise, sim_gateway, internal ...
        trusted: Whether its P-Asserted-Identity (RFC 3325), Remote-Party-ID and Diversion count.
        allocated: Enterprise trunks: the numbers (``057186554321``) and prefixes (``0571865*``) that the
            customer may show; none listed, none may be. Internal trunks: the site's extensions (``81*``); none
            listed, any digits that are no number of the plan.
        outbound: Enterprise trunks: 95 call-centre codes may call out.
        roaming: The answer for national mobile CLIs of which no note of the site says it (``lists.NOTES``).
            ``no``: nobody vouches, which is not known when the store does not answer (then it is ``unknown``).
        fail: What happens to a call when the guard cannot decide: ``open`` or ``closed``.
        prompt: ``early`` (183, then the prompt), ``answer`` (billable: answer, then play) or ``none``.
        hostile_ok: 608 may go to this trunk without a contact for redress.
        prompts_per_minute: The most prompts a minute; past it a refusal is silent (RFC 8688 section 6).
        cli_prefixes: What a gateway puts before the CLI, such as the prefix of a SIM box's port; cut before
            the CLI is read.
    """

    name: str
    kind: str
    trusted: bool = False
    allocated: tuple[str, ...] = ()
    outbound: bool = False
    roaming: Roaming = Roaming.NO
    fail: str = "open"
    prompt: str = "early"
    hostile_ok: bool = False
    prompts_per_minute: int = 600
    cli_prefixes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """One inbound INVITE or MESSAGE. Every string but ``trunk`` was written by the caller.

    Attributes:
        call_id: SIP Call-ID, cut to 200 characters.
        at: When it arrived, UTC.
        cli: The From user part as on the wire (percent signs not decoded).
        callee: The called number as the PBX received it.
        asserted: The P-Asserted-Identity user part, else that of Remote-Party-ID, or None.
        diverted_by: Numbers of Diversion or History-Info, the original callee first; they count on a trusted
            trunk only.
        has_offer: The INVITE carried SDP, so early media can reach the caller.
    """

    call_id: str
    at: datetime
    trunk: Trunk
    cli: str
    callee: str
    channel: Channel = Channel.VOICE
    display_name: str = ""
    asserted: str | None = None
    diverted_by: tuple[str, ...] = ()
    user_agent: str = ""
    source: str = ""
    has_offer: bool = True


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A called party that the operator knows; ``number`` is the home form (``13957100001``)."""

    number: str
    operator: str
    province: str
    language: str = "zh"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the store knows about one call, read in one query.

    Attributes:
        callees: Subscriber rows by home-form number, for the callee and whoever diverted to it.
        consents: Folded registry rows of those numbers.
        listed: List entries that match the CLI: global ones and those of the callees. Not yet filtered by
            expiry: the policy does that with the time of the call.
        flags: Labels that a detector has put on this CLI.
        bindings: Bindings of a privacy number for those callees, whatever their dates.
    """

    callees: Mapping[str, Subscriber] = field(default_factory=dict)
    consents: tuple[Consent, ...] = ()
    listed: tuple[ListEntry, ...] = ()
    flags: tuple[Label, ...] = ()
    bindings: tuple[Binding, ...] = ()


class Step(NamedTuple):
    """One rule in a trace, in the order in which it was asked.

    Attributes:
        saw: What the rule looked at, in words of our own; never text that the caller wrote.
        outcome: ``passes`` (it does not apply, or lets the call go on), ``decides``, ``labels``, ``shadow`` (it
            would have decided), ``skipped`` (switched off, or for other trunks, channels or classes).
        ns: What it took, nanoseconds; 0 where the answer is the same for all calls of this kind.
    """

    rule: str
    saw: str
    outcome: str
    ns: int


class Shadow(NamedTuple):
    """What a rule or list in shadow would have decided; it had no effect.

    Attributes:
        rule: Rule id, or ``list:NAME``.
        verdict: ``block``, ``allow``, ``anonymise``, ``label``, ``pass`` (the call would have gone on with this
            reason) or ``note`` (the roaming look-up would have answered as the list's name says).
        reason: The reason, or the label; "" where there is none.
    """

    rule: str
    verdict: str
    reason: str


@dataclass(frozen=True, slots=True)
class Basis:
    """What a verdict rests on, for *explain*.

    Attributes:
        rule: Id of the rule that decided (``rules.toml`` of the pack), or ``10.allow`` where none did.
        detail: One sentence in plain words; never contains text that the caller wrote.
        cli: The CLI as read, or None when it was not read (failure).
        callee: The callee as read.
        entry: The list entry that decided, if one did.
        pack: Pack id and version, such as ``cn 2026.11``.
        steps: The rules one by one, where a trace was asked for.
        shadow: What rules and lists in shadow would have decided.
        legal_basis: Law and article: of the list entry that decided, else of the rule; "" where there is none.
        opted_in: The opt-in but for which the call would be refused as off by default, in words, with its date; it is
            in ``detail`` too. "" where no opt-in was the cause.
    """

    rule: str
    detail: str
    cli: Number | None = None
    callee: Number | None = None
    entry: ListEntry | None = None
    pack: str = ""
    steps: tuple[Step, ...] = ()
    shadow: tuple[Shadow, ...] = ()
    legal_basis: str = ""
    opted_in: str = ""


@dataclass(frozen=True, slots=True)
class Allow:
    """The callee receives the call, with these labels; without its CLI where ``cli_anonymised`` is among them."""

    reason: Reason
    basis: Basis
    labels: tuple[Label, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """The caller is refused."""

    reason: Reason
    basis: Basis
    labels: tuple[Label, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """No decision could be made; the failure policy of the trunk applies, with the labels of the rules that could.

    A third outcome, never a spare value of the other two: a call is not "allowed" because a disk is slow.
    """

    why: str
    basis: Basis = Basis(rule="0.guard_failed", detail="the guard could not decide")
    labels: tuple[Label, ...] = ()
    reason: Reason = Reason.GUARD_FAILED


Verdict = Allow | Block | Failed
