"""The frozen values that every module speaks: a call, its trunk, the facts about it, and the verdict.

This module knows names and shapes. It does not know numbers (``numbering``), rules (``policy``) or what a
PBX does with a verdict (``treatment``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from pbxguard.screening.lists import ListEntry
from pbxguard.screening.numbering import Number
from pbxguard.screening.registry import Consent


class Channel(StrEnum):
    """What is screened: a call (INVITE) or a text (MESSAGE)."""

    VOICE = "voice"
    SMS = "sms"


class Roaming(StrEnum):
    """What the roaming look-up says of a national mobile CLI that arrives from abroad."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class Reason(StrEnum):
    """Why a call was allowed or refused; the one primary reason of a verdict."""

    DEFAULT = "default"
    EMERGENCY_CALLEE = "emergency_callee"
    SUBSCRIBER_ALLOWLIST = "subscriber_allowlist"
    ROAMER_VERIFIED = "roamer_verified"
    ROAMING_UNKNOWN = "roaming_unknown"
    INTL_ORIGIN_NOTICE = "intl_origin_notice"
    VERIFIED_GOV = "verified_gov"
    VAS_CALL_CENTRE = "vas_call_centre"
    PRIVACY_NUMBER = "privacy_number"
    SIMBOX_SUSPECTED = "simbox_suspected"
    CLI_INVALID = "cli_invalid"
    CLI_MISSING = "cli_missing"
    INTL_PREFIX_MISSING = "intl_prefix_missing"
    NATIONAL_CLI_ON_INTL_TRUNK = "national_cli_on_intl_trunk"
    FOREIGN_CLI_ON_ENTERPRISE_TRUNK = "foreign_cli_on_enterprise_trunk"
    CLI_NOT_ALLOCATED = "cli_not_allocated"
    DNO_INBOUND_ONLY = "dno_inbound_only"
    CLASS_NOT_VOICE = "class_not_voice"
    VAS_INBOUND_ONLY = "vas_inbound_only"
    JOINT_PUNISHMENT = "joint_punishment"
    SYSTEM_BLOCKLIST = "system_blocklist"
    SUBSCRIBER_BLOCKLIST = "subscriber_blocklist"
    INTL_DEFAULT_OFF = "intl_default_off"
    PRIVACY_BINDING_EXPIRED = "privacy_binding_expired"
    SEGMENT_BREAKER = "segment_breaker"
    GUARD_FAILED = "guard_failed"


class Label(StrEnum):
    """What is told to the callee, or noted, about a call that is let through."""

    INTL_ORIGIN_NOTICE = "intl_origin_notice"
    VERIFIED_GOV = "verified_gov"
    VAS_CALL_CENTRE = "vas_call_centre"
    PRIVACY_NUMBER = "privacy_number"
    ROAMING_UNKNOWN = "roaming_unknown"
    SIMBOX_SUSPECTED = "simbox_suspected"
    MVNO = "mvno"
    RESERVED_RANGE = "reserved_range"
    FROM_PAI_DISAGREE = "from_pai_disagree"


@dataclass(frozen=True, slots=True)
class Trunk:
    """One trunk as the site declares it.

    Attributes:
        name: What dialplan and command line call it, such as ``intl``.
        kind: Its class in the country pack: intl_gateway, national, enterprise, sim_gateway, internal ...
        trusted: Whether its P-Asserted-Identity counts (RFC 3325).
        allocated: Enterprise trunks: the numbers (``057186554321``) and prefixes (``0571865*``) that the
            customer may show.
        outbound: Enterprise trunks: 95 call-centre codes may call out.
        roaming: The answer for national mobile CLIs when no look-up is connected. ``no``: nobody vouches.
        fail: What happens to a call when the guard cannot decide: ``open`` or ``closed``.
        prompt: ``early`` (183, then the prompt), ``answer`` (billable: answer, then play) or ``none``.
        hostile_ok: 608 may go to this trunk without a contact for redress.
        prompts_per_minute: The most prompts a minute; past it a refusal is silent (RFC 8688 section 6).
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


@dataclass(frozen=True, slots=True)
class Call:
    """One inbound INVITE or MESSAGE. Every string but ``trunk`` was written by the caller.

    Attributes:
        call_id: SIP Call-ID, cut to 200 characters.
        at: When it arrived, UTC.
        cli: The From user part as on the wire (percent signs not decoded).
        callee: The called number as the PBX received it.
        asserted: The P-Asserted-Identity user part, or None.
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
    """

    callees: Mapping[str, Subscriber] = field(default_factory=dict)
    consents: tuple[Consent, ...] = ()
    listed: tuple[ListEntry, ...] = ()
    flags: tuple[Label, ...] = ()


@dataclass(frozen=True, slots=True)
class Basis:
    """What a verdict rests on, for *explain*.

    Attributes:
        rule: Id of the rule that decided (``policy`` numbers them).
        detail: One sentence in plain words; never contains text that the caller wrote.
        cli: The CLI as read, or None when it was not read (failure).
        callee: The callee as read.
        entry: The list entry that decided, if one did.
        pack: Pack id and version, such as ``cn 2026.11``.
    """

    rule: str
    detail: str
    cli: Number | None = None
    callee: Number | None = None
    entry: ListEntry | None = None
    pack: str = ""


@dataclass(frozen=True, slots=True)
class Allow:
    """The callee receives the call, with these labels."""

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
    """No decision could be made; the failure policy of the trunk applies.

    A third outcome, never a spare value of the other two: a call is not "allowed" because a disk is slow.
    """

    why: str
    basis: Basis = Basis(rule="0.guard_failed", detail="the guard could not decide")
    labels: tuple[Label, ...] = ()
    reason: Reason = Reason.GUARD_FAILED


Verdict = Allow | Block | Failed
