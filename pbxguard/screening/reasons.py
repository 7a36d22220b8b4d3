"""The words for a verdict: reasons and labels. What they say to people is in the pack's ``labels.toml``."""

from enum import StrEnum


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
    PUNISHED_RETAINED = "punished_retained"
    CLI_ANONYMISED = "cli_anonymised"
    CLI_INVALID = "cli_invalid"
    CLI_MISSING = "cli_missing"
    INTL_PREFIX_MISSING = "intl_prefix_missing"
    NATIONAL_CLI_ON_INTL_TRUNK = "national_cli_on_intl_trunk"
    FOREIGN_CLI_ON_ENTERPRISE_TRUNK = "foreign_cli_on_enterprise_trunk"
    CLI_NOT_ALLOCATED = "cli_not_allocated"
    DNO_INBOUND_ONLY = "dno_inbound_only"
    DNO_LISTED = "dno_listed"
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
    PUNISHED_RETAINED = "punished_retained"
    CLI_ANONYMISED = "cli_anonymised"
    CLI_WITHHELD = "cli_withheld"
