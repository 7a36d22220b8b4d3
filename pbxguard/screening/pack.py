"""A country pack: the text of its files checked and compiled into one value with bounded look-up.

Knows which files there are, what may not contradict across them, and what a site may choose. Does not know where
the files are kept (``pbxguard.packs``), how a number is written on the wire (``numbering``), or what rules decide
(``policy``). The parts: ``classes``, ``trunks``, ``optin``, ``texts``, ``rules``.
"""

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from types import MappingProxyType
from typing import Any, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pbxguard.errors import BadConfig, BadPack, Unconfirmed
from pbxguard.screening.classes import BAD_LENGTH, Area, ClassRules, Dno, NationalForm, NumberPlan, read_plan
from pbxguard.screening.optin import CodeTable, DefaultOff, DefaultOffTable, OptInCode, read_codes, read_default_off
from pbxguard.screening.rules import Rule, filter_hits, read_rules
from pbxguard.screening.tables import MOST_DIGITS, Toml, digits, near, read_rows
from pbxguard.screening.texts import Notice, Text, read_texts
from pbxguard.screening.trunks import FLAGS, SWITCHES, Refusal, TrunkRules, read_trunks

__all__ = [
    "BAD_LENGTH",
    "FILES",
    "SHAREABLE",
    "TEST_FILES",
    "Area",
    "ClassRules",
    "DefaultOff",
    "Dno",
    "NationalForm",
    "Notice",
    "OptInCode",
    "Pack",
    "Region",
    "SiteChoice",
    "TrunkRules",
    "compile_pack",
    "shared_files",
]

FILES = (
    "pack.toml",
    "classes.csv",
    "prefixes.csv",
    "areas.csv",
    "regions.csv",
    "trunks.toml",
    "default_off.csv",
    "optin_codes.csv",
    "dno.csv",
    "labels.toml",
    "rules.toml",
)
"""What a pack must have, in its own folder or shared."""

TEST_FILES = ("vectors.csv", "callees.csv")
"""What may lie beside them: tests read it, ``compile_pack`` does not."""

SHAREABLE = ("regions.csv", "labels.toml", "rules.toml")
"""What ``shared`` in pack.toml may name: taken from the folder that all packs have in common."""

_LANGUAGES = ("zh", "en")


class SiteChoice(Protocol):
    """What a site chooses of a pack ([screening] of its settings)."""

    @property
    def accept_unverified(self) -> tuple[str, ...]:
        """Names of refusals that no source confirms and that the site wants; ``*`` is all of them."""

    @property
    def shadow_rules(self) -> tuple[str, ...]:
        """Rule ids that are logged and decide nothing."""

    @property
    def shadow_lists(self) -> tuple[str, ...]:
        """List names that are logged and decide nothing."""

    @property
    def rules_off(self) -> tuple[str, ...]:
        """Rule ids that are not asked."""


@dataclass(frozen=True, slots=True)
class Region:
    """One region of the world.

    Attributes:
        code: ISO 3166 alpha-2 in lower case, or ``001`` for international networks (UN M.49).
        group: ``intl`` or ``hmt``: the class of consent that its calls need.
        names: Display name by language.
        languages: In which a caller from there is spoken to, the first one first.
    """

    code: str
    group: str
    names: Mapping[str, str]
    languages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pack:
    """One compiled country pack. Look-ups cost a few dictionary reads whatever the digits are.

    Attributes:
        cc: Country code of home, ``86``.
        idd: International prefixes as dialled and shown, the longest first: ``("00",)``.
        trunk_prefix: National prefix before area code or mobile, ``0``; "" where there is none.
        e164_max: Most digits of an international number (ITU-T E.164).
        emergency: The emergency numbers, without area code.
        timezone: IANA name of the zone in which the pack's dates are.
        examples: Numbers as dialled at home, for messages to an operator.
        provinces: The provinces that the pack knows.
        operators: The operators of mobile networks that the pack knows.
        trunks: Trunk rules by kind.
        rules: In the order in which they are tried, with the modes that the site chose.
        shadow_lists: Lists that the site keeps in shadow.
        tags: By which a list may name callers: each class (``intl_hk`` too), ``intl``, ``hmt``, ``privacy`` and
            ``region:hk``.
        plans: Kept by the policy: what it compiled from the rules. A copy of the pack starts with none.
    """

    id: str
    version: str
    country: str
    cc: str
    idd: tuple[str, ...]
    trunk_prefix: str
    e164_max: int
    timezone: str
    home_language: str
    emergency: frozenset[str]
    examples: tuple[str, ...]
    provinces: frozenset[str]
    operators: frozenset[str]
    checked_on: date
    trunks: Mapping[str, TrunkRules] = field(repr=False)
    regions: Mapping[str, Region] = field(repr=False)
    reasons: frozenset[str]
    labels: frozenset[str]
    rules: tuple[Rule, ...] = field(repr=False)
    shadow_lists: frozenset[str]
    tags: frozenset[str] = field(repr=False)
    _plan: NumberPlan = field(repr=False)
    _region_prefixes: Mapping[str, Region] = field(repr=False)
    _longest_region: int = field(repr=False)
    _default_off: DefaultOffTable = field(repr=False)
    _codes: CodeTable = field(repr=False)
    _reason_texts: Mapping[str, Text] = field(repr=False)
    _label_texts: Mapping[str, Text] = field(repr=False)
    plans: dict[Any, Any] = field(init=False, default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """Id and version, as a verdict carries them: ``cn 2026.11``."""
        return f"{self.id} {self.version}"

    @property
    def dates(self) -> tuple[datetime, ...]:
        """When the class of some digits changes, UTC, sorted: between two of them a string reads as one number."""
        return self._plan.dates

    def local(self, at: datetime) -> str:
        """A moment in the zone of the country, with its offset, for people: ``2026-06-01 12:00:00+08:00``."""
        # The zone does not have the first or last hours of the calendar: they are shown as they are in UTC.
        with suppress(OverflowError):
            at = at.astimezone(ZoneInfo(self.timezone))
        return at.isoformat(" ", "seconds")

    def national_class(self, digits: str, form: NationalForm, at: datetime | None = None) -> str | None:
        """The class of national digits: the longest prefix that allows the length decides.

        Args:
            digits: Without what stands before them in that form.
            form: Where they stand.
            at: Time of the call, aware; None is the time after every date of the pack.

        Returns:
            ``<class>_bad_length`` where a prefix matches and no length does, None where no prefix does.
        """
        return self._plan.national_class(digits, form, at)

    def area(self, digits: str) -> Area | None:
        """The area whose code opens these digits (trunk prefix already cut), or None."""
        return self._plan.area(digits)

    def home_form(self, number_class: str, digits: str) -> str:
        """The key of national digits: as a subscriber at home dials them."""
        return self._plan.home_form(number_class, digits)

    def foreign_region(self, digits: str) -> Region | None:
        """The region of an international number without ``+``, by longest prefix, or None."""
        for end in range(min(len(digits), self._longest_region), 0, -1):
            region = self._region_prefixes.get(digits[:end])
            if region is not None:
                return region
        return None

    def class_rules(self, name: str) -> ClassRules | None:
        """What the class may do; None for a name that is not a valid class (bad length, bad country code)."""
        if name.endswith((BAD_LENGTH, "_bad_cc")):
            return None
        if name.startswith("intl_"):
            return ClassRules(name)
        return self._plan.classes.get(name)

    def never_block(self, home_key: str) -> bool:
        """Whether no list may hold this number: an emergency or operator number, also behind an area code."""
        if not digits(home_key):
            return False
        rules = self._plan.classes.get(self._plan.class_of_key(home_key) or "")
        return rules is not None and rules.never_block

    def dno(self, key: str | None, written: str = "") -> tuple[Dno, ...]:
        """The do-not-originate rows that a CLI meets, whatever their scope; the exact ones first.

        Args:
            key: ``Number.key``; a service number counts behind an area code too.
            written: ``Number.written``, for prefixes that are improper as written (``+11``).
        """
        return self._plan.do_not_originate(key, written)

    def default_off(self, province: str, operator: str, channel: str, group: str, at: datetime) -> DefaultOff | None:
        """The row that closes calls of ``group`` to this subscriber at ``at``, or None.

        Args:
            province: Of the subscriber, as the operator stores it (``zhejiang``).
            operator: cm, cu, ct, cbn ...
            channel: ``voice`` or ``sms``.
            group: ``intl`` or ``hmt``.
            at: Local time in the pack's zone, without tzinfo.
        """
        for where in (province, "*"):
            for row in self._default_off.get((where, channel, group), ()):
                if row.operator in (operator, "*") and row.default == "closed" and row.covers(at):
                    return row
        return None

    def optin_code(
        self, province: str, operator: str, text: str, to: str, at: datetime, channel: str = ""
    ) -> OptInCode | None:
        """What a subscriber's text to a short number means, or None: then answer with help and change nothing.

        Args:
            province: Of the subscriber.
            operator: Of the subscriber.
            text: The body as received; exact but for case and white space around it.
            to: The short number that it was sent to.
            at: When, aware.
            channel: Only codes about ``voice`` or ``sms``; "" for either.
        """
        for code in self._codes.get((to, text.strip().casefold()), ()):
            ours = code.province in (province, "*") and code.operator in (operator, "*")
            if ours and channel in ("", code.channel) and code.valid.holds(at):
                return code
        return None

    def reason_group(self, reason: str) -> str:
        """The treatment group: not_opted_in, own_block, system, withheld, failed or pass."""
        return self._reason_texts[reason].group

    def text(self, reason: str, language: str) -> str:
        """What the caller is told: reason and remedy; English where the language is not there."""
        return self._reason_texts[reason].text(language)

    def notice(self, reason: str, language: str) -> Notice | None:
        """Reason, remedy and papers for a refused caller; None where the reason lets the call through."""
        return self._reason_texts[reason].notice(language)

    def display(self, label: str, language: str) -> str:
        """What the callee's display shows of a label; English where the language is not there."""
        return self._label_texts[label].text(language)

    def region_name(self, region: str, language: str) -> str:
        """Display name of a foreign region; its code in capitals where the pack does not know it."""
        known = self.regions.get(region)
        return region.upper() if known is None else known.names.get(language) or known.names["en"]

    def languages(self, region: str | None) -> tuple[str, ...]:
        """In which a caller from ``region`` is spoken to; at home and unknown: the home language first."""
        known = self.regions.get(region or "")
        if known is not None and known.code != self.country.lower():
            return known.languages
        return (self.home_language,) if self.home_language == "en" else (self.home_language, "en")


def shared_files(text: str) -> tuple[str, ...]:
    """Which files a pack.toml takes from the shared folder.

    Raises:
        BadPack: The text is not TOML, or names a file that cannot be shared.
    """
    head = Toml("pack.toml", text)
    if "shared" not in head.table(()):
        return ()
    names = head.strings((), "shared")
    for name in names:
        if name not in SHAREABLE:
            raise head.bad((), "shared", f"'{name}' cannot be shared; only {', '.join(SHAREABLE)} can")
    return names


_HEAD = frozenset(
    {"id", "version", "country", "cc", "idd", "trunk_prefix", "e164_max", "timezone", "home_language", "emergency"}
    | {"languages", "examples", "provinces", "operators", "shared", "checked_on"}
)


def compile_pack(files: Mapping[str, str], choice: SiteChoice | None = None) -> Pack:
    """Check and compile the text of a pack's files, by name.

    Args:
        files: All of ``FILES``.
        choice: What the site chose; None accepts every row, for who reads a pack and screens nothing with it.

    Raises:
        BadPack: With file and line, for a file, column or key that is missing or unknown, a value out of its
            range, a bad date, two classes that claim the same digits in the same form at one time, two
            default-off rows that hold at the same time, a rule that names what is not there, or a row that
            refuses calls, has no source and is not accepted by the site.
        BadConfig: The site chose something that the pack does not have.
    """
    _hold_files(files)
    head = Toml("pack.toml", files["pack.toml"])
    head.only((), set(_HEAD))
    zone = _zone(head)
    country = head.string((), "country", r"[A-Z]{2}")
    trunk_prefix = head.string((), "trunk_prefix", r"[0-9]{0,2}")
    plan, class_rows, refusals = read_plan(files, zone, trunk_prefix)
    idd = _idd(head)
    _hold_reach(plan, trunk_prefix, idd)
    trunks, of_trunks = read_trunks(Toml("trunks.toml", files["trunks.toml"]))
    provinces = frozenset(area.province for area in plan.areas.values())
    operators = plan.operators
    if "provinces" in head.table(()):
        provinces |= set(head.strings((), "provinces"))
    if "operators" in head.table(()):
        operators |= set(head.strings((), "operators"))
    default_off, of_default_off = read_default_off(files["default_off.csv"], provinces, operators)
    languages = _languages(head)
    regions, prefixes = _regions(files["regions.csv"])
    reasons, labels = read_texts(Toml("labels.toml", files["labels.toml"]), languages)
    for name, row in class_rows.items():
        if row["label"] and row["label"] not in labels:
            raise row.bad("label", f"'{row['label']}' (class {name}) has no text in labels.toml")
    rules = _rules(
        files["rules.toml"],
        {
            "trunk": trunks,
            "number_class": _class_names(plan.classes, regions),
            "group": ("intl", "hmt"),
            "labels": labels,
            "reason": reasons,
        },
    )
    # What a rule with a trunk's switch does is judged in trunks.toml.
    blocking = [rule for rule in rules if rule.action == "block" and rule.mode == "enforce"]
    of_rules = [Refusal(rule.id, rule.status == "verified", rule.where) for rule in blocking]
    chosen = _with_modes(rules, choice)
    if choice is not None:
        _accept(refusals + of_trunks + of_default_off + of_rules, {rule.id for rule in rules}, choice)
    return Pack(
        id=head.string((), "id", r"[a-z]{2}[a-z0-9-]*"),
        version=head.string((), "version", r"[0-9A-Za-z.-]{1,20}"),
        country=country,
        cc=head.string((), "cc", r"[1-9][0-9]{0,2}"),
        idd=idd,
        trunk_prefix=trunk_prefix,
        e164_max=head.integer((), "e164_max", 7, MOST_DIGITS),
        timezone=zone.key,
        home_language=head.string((), "home_language", "|".join(languages)),
        emergency=_emergency(head, plan),
        examples=head.strings((), "examples"),
        provinces=provinces,
        operators=operators,
        checked_on=head.day((), "checked_on"),
        trunks=MappingProxyType(trunks),
        regions=MappingProxyType(regions),
        reasons=frozenset(reasons),
        labels=frozenset(labels),
        rules=chosen,
        shadow_lists=frozenset(choice.shadow_lists if choice else ()),
        tags=_tags(country, plan.classes, regions),
        _plan=plan,
        _region_prefixes=MappingProxyType(prefixes),
        _longest_region=max(map(len, prefixes)),
        _default_off=default_off,
        _codes=read_codes(files["optin_codes.csv"], zone, provinces, operators),
        _reason_texts=MappingProxyType(reasons),
        _label_texts=MappingProxyType(labels),
    )


def _hold_files(files: Collection[str]) -> None:
    for name in FILES:
        if name not in files:
            raise BadPack(f"{name}: the file is missing; a pack has {', '.join(FILES)}")
    for name in sorted(files):
        if name not in FILES and name not in TEST_FILES:
            raise BadPack(f"{name}: not a file of a pack; a pack has {', '.join(FILES)}")


# -- pack.toml and regions.csv -----------------------------------------------------------------------------


def _zone(head: Toml) -> ZoneInfo:
    key = head.string((), "timezone", r"[A-Za-z]+(/[A-Za-z_+-]+)*")
    try:
        return ZoneInfo(key)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise head.bad((), "timezone", f"{key} is no time zone; write one such as Asia/Shanghai") from error


def _idd(head: Toml) -> tuple[str, ...]:
    """One prefix, or several where carriers have their own; the longest is tried first."""
    if isinstance(head.table(()).get("idd"), str):
        return (head.string((), "idd", r"[0-9]{1,5}"),)
    prefixes = head.strings((), "idd")
    if not all(digits(prefix) and len(prefix) <= 5 for prefix in prefixes):
        raise head.bad((), "idd", f"{list(prefixes)} are not prefixes of one to five digits")
    return tuple(sorted(prefixes, key=len, reverse=True))


def _hold_reach(plan: NumberPlan, trunk_prefix: str, idd: tuple[str, ...]) -> None:
    """Refuse a bare number that opens with a prefix: it would be read as what follows the prefix."""
    for prefix, claims in plan.national["bare"].items():
        for other in filter(None, (trunk_prefix, *idd)):
            if prefix.startswith(other):
                raise BadPack(f"{claims[0].where}: {prefix} opens with the prefix {other} of pack.toml; cut it there")


def _languages(head: Toml) -> tuple[str, ...]:
    languages = head.strings((), "languages")
    if "en" not in languages or not all(re.fullmatch("[a-z]{2}", language) for language in languages):
        raise head.bad((), "languages", "two letters each are expected, and 'en', which stands in for all others")
    return languages


def _emergency(head: Toml, plan: NumberPlan) -> frozenset[str]:
    emergency = head.strings((), "emergency")
    for number in emergency:
        for form in ("bare", "nsn", "area"):
            if not any(claim.number_class == "emergency" for claim in plan.national[form].get(number, ())):
                raise head.bad((), "emergency", f"'{number}' has no class 'emergency' in classes.csv ({form})")
    return frozenset(emergency)


def _regions(text: str) -> tuple[dict[str, Region], dict[str, Region]]:
    """Regions by code, and by every prefix of their international numbers."""
    regions: dict[str, Region] = {}
    prefixes: dict[str, Region] = {}
    for row in read_rows("regions.csv", text, ("region", "group", "prefixes", *_LANGUAGES, "languages")):
        code = row.matching("region", "[a-z]{2}|001", "a region code such as hk")
        for language in _LANGUAGES:
            row.matching(language, ".+", "a display name")
        region = Region(
            code,
            row.one_of("group", ("intl", "hmt")),
            MappingProxyType({language: row[language] for language in _LANGUAGES}),
            row.some_of("languages", _LANGUAGES),
        )
        if code in regions:
            raise row.bad("region", f"{code} is there twice")
        regions[code] = region
        for prefix in row["prefixes"].split():
            if not digits(prefix) or prefix.startswith("0") or len(prefix) > 15:
                raise row.bad("prefixes", f"'{prefix}' does not open an international number")
            if prefix in prefixes:
                raise row.bad("prefixes", f"{prefix} belongs to {prefixes[prefix].code} too")
            prefixes[prefix] = region
    if not prefixes:
        raise BadPack("regions.csv line 1: a pack needs one region or more")
    return regions, prefixes


# -- rules, and what the site chose ------------------------------------------------------------------------


_NO_CLASS = ("withheld", "missing", "invalid", "intl_bad_cc", "intl" + BAD_LENGTH)
"""What ``Number.number_class`` is where there is no valid class."""


def _tags(country: str, classes: Collection[str], regions: Collection[str]) -> frozenset[str]:
    home = f"region:{country.lower()}"
    abroad = (tag for code in regions for tag in (f"intl_{code}", f"region:{code}"))
    return frozenset({*classes, "withheld", "intl", "hmt", "privacy", home, *abroad})


def _class_names(classes: Collection[str], regions: Collection[str]) -> frozenset[str]:
    """Every ``Number.number_class`` that can be."""
    short = (name.removesuffix(BAD_LENGTH) + BAD_LENGTH for name in classes)
    return frozenset({*classes, *short, *(f"intl_{code}" for code in regions), *_NO_CLASS})


def _rules(text: str, there: Mapping[str, Collection[str]]) -> tuple[Rule, ...]:
    """The rules, whose names are all in the pack: ``there`` has them by the rule's key."""
    rules = read_rules(text)
    for rule in rules:
        _check_rule(rule, there)
    return rules


def _check_rule(rule: Rule, there: Mapping[str, Collection[str]]) -> None:
    for key in ("trunk", "number_class", "group"):
        for pattern in getattr(rule, key):
            if not filter_hits(pattern, there[key]):
                raise rule.bad(key, f"'{pattern}' is not in this pack; {near(pattern.strip('!*'), there[key])}")
    for label in rule.labels:
        if label not in there["labels"]:
            raise rule.bad("labels", f"'{label}' has no text in labels.toml; {near(label, there['labels'])}")
    if rule.reason is not None and rule.reason not in there["reason"]:
        raise rule.bad("reason", f"'{rule.reason}' has no text in labels.toml; {near(rule.reason, there['reason'])}")
    switches = FLAGS if rule.reason is None else (*SWITCHES, *FLAGS)
    if rule.trunk_key and rule.trunk_key not in switches:
        known = "is true or false, so the rule needs a reason" if rule.trunk_key in SWITCHES else "is in trunks.toml"
        raise rule.bad("action", f"no switch '{rule.trunk_key}' {known}; {near(rule.trunk_key, switches)}")


def _accept(refusals: Collection[Refusal], rule_ids: Collection[str], choice: SiteChoice) -> None:
    """Refuse what no source confirms and the site has not accepted; and an acceptance of what is not there."""
    names = {*rule_ids, *(refusal.name for refusal in refusals)}
    for name in choice.accept_unverified:
        if name != "*" and name not in names:
            raise BadConfig(
                f"screening.accept_unverified: '{name}' refuses no call in this pack; {near(name, names)}"
            )
    idle = {*choice.accept_unverified, *choice.shadow_rules, *choice.rules_off}
    open_ones = [] if "*" in idle else [each for each in refusals if not each.verified and each.name not in idle]
    if open_ones:
        missing = tuple(dict.fromkeys(each.name for each in open_ones))
        total = f" ({len(missing)} such in all)" if len(missing) > 1 else ""
        raise Unconfirmed(
            f"{open_ones[0].where}: {missing[0]} refuses calls and no source confirms that it should{total}; if "
            'you want that all the same, write accept_unverified = ["*"] under [screening] in the settings, or name '
            "each; to do without one, change its row in a copy of the pack",
            missing,
        )


def _with_modes(rules: tuple[Rule, ...], choice: SiteChoice | None) -> tuple[Rule, ...]:
    if choice is None:
        return rules
    by_id = {rule.id: rule for rule in rules}
    for setting, chosen in (("shadow_rules", choice.shadow_rules), ("rules_off", choice.rules_off)):
        for name in chosen:
            if name not in by_id:
                raise BadConfig(f"screening.{setting}: '{name}' is no rule of this pack; {near(name, by_id)}")
            if by_id[name].fixed:
                raise BadConfig(f"screening.{setting}: '{name}' lets emergency calls through and stays as it is")
    modes = dict.fromkeys(choice.shadow_rules, "shadow") | dict.fromkeys(choice.rules_off, "off")
    return tuple(replace(rule, mode=modes[rule.id]) if rule.id in modes else rule for rule in rules)
