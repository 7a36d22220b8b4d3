"""The trunk classes of a country pack (trunks.toml): which CLI is regular on which kind of trunk.

Knows the keys and the values that they may have. Does not know what follows from them (``policy``).
"""

from dataclasses import dataclass

from pbxguard.screening.tables import STATUS, Toml

WIRE_FORMATS = ("plus", "idd00", "national0", "bare", "e164_bare")
"""What ``wire_format`` may list: the values of ``numbering.Form`` that are numbers."""

_NATIONAL = "block|anonymise|label|pass"
SWITCHES = {
    "national_fixed": _NATIONAL,
    "national_mobile": f"roaming_check|{_NATIONAL}",
    "roaming_unknown": "block|label|pass",
    "cli_missing": "block|label|pass",
    "cli": "any|allocated_only|extension",
    "foreign_cli": "block|label|pass",
}
"""The switches that a trunk class has, and their values."""

FLAGS = ("origin_notice",)
"""The switches that are true or false."""

_REFUSING = frozenset({"block", "roaming_check", "allocated_only", "extension"})
_OTHERS = {*FLAGS, "wire_format", "detectors", "source", "status", "unverified", "checked_on"}


@dataclass(frozen=True, slots=True)
class TrunkRules:
    """Rules of one trunk class; the defaults are the values that change nothing.

    Attributes:
        wire_format: Forms of a CLI that are regular here (values of ``numbering.Form``).
        national_fixed: block | anonymise | label | pass.
        national_mobile: The same, or roaming_check.
        roaming_unknown: block | label | pass, when the roaming look-up has no answer.
        cli_missing: block | label | pass, for a withheld or missing CLI.
        origin_notice: A foreign CLI is shown as such (Anti-Telecom Fraud Law, Art. 13).
        cli: any | allocated_only | extension.
        foreign_cli: block | label | pass.
        detectors: Names of the behaviour detectors that run here.
        unverified: Keys whose value no source confirms.
    """

    kind: str
    wire_format: tuple[str, ...]
    national_fixed: str = "pass"
    national_mobile: str = "pass"
    roaming_unknown: str = "pass"
    cli_missing: str = "pass"
    origin_notice: bool = False
    cli: str = "any"
    foreign_cli: str = "pass"
    detectors: tuple[str, ...] = ()
    source: str = ""
    status: str = "verified"
    unverified: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row or key that can refuse a call.

    Attributes:
        name: By which a site accepts it: a rule id, ``class:iot``, ``dno:110``, ``trunk:intl_gateway.cli_missing``
            or ``default_off:zhejiang.voice``.
        verified: A source confirms it.
        where: File and line.
    """

    name: str
    verified: bool
    where: str


def read_trunks(toml: Toml) -> tuple[dict[str, TrunkRules], list[Refusal]]:
    """Trunk rules by kind, and every switch that can refuse a call.

    Raises:
        BadPack: With file and line.
    """
    toml.only((), {"trunk"})
    trunks: dict[str, TrunkRules] = {}
    refusals: list[Refusal] = []
    for kind in toml.table(("trunk",)):
        path = ("trunk", kind)
        table = toml.table(path)
        toml.only(path, set(SWITCHES) | _OTHERS)
        wire_format = toml.strings(path, "wire_format")
        if not set(wire_format) <= set(WIRE_FORMATS):
            raise toml.bad(path, "wire_format", f"only {', '.join(WIRE_FORMATS)} can be listed")
        unverified = toml.strings(path, "unverified") if "unverified" in table else ()
        for key in unverified:
            if key not in SWITCHES or key not in table:
                raise toml.bad(path, "unverified", f"'{key}' is not a switch that this trunk sets")
        toml.day(path, "checked_on")
        chosen = {key: toml.string(path, key, choices) for key, choices in SWITCHES.items() if key in table}
        trunks[kind] = rules = TrunkRules(
            kind=kind,
            wire_format=wire_format,
            origin_notice=toml.flag(path, "origin_notice") if "origin_notice" in table else False,
            detectors=toml.strings(path, "detectors") if "detectors" in table else (),
            source=toml.string(path, "source", ".+"),
            status=toml.string(path, "status", "|".join(STATUS)),
            unverified=unverified,
            **chosen,
        )
        refusals += [
            Refusal(
                f"trunk:{kind}.{key}",
                rules.status == "verified" and key not in unverified,
                f"{toml.name} line {toml.line(path, key)}",
            )
            for key, value in chosen.items()
            if value in _REFUSING
        ]
    return trunks, refusals
