"""A country pack: the text of its files checked and compiled into values with bounded look-up.

Knows the files' columns and what may not contradict. Does not know where the files are kept
(``pbxguard.packs``), how a number is written on the wire (``numbering``), or what rules decide (``policy``).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from types import MappingProxyType
from typing import Literal

from pbxguard.errors import BadPack
from pbxguard.screening.tables import MOST_DIGITS, STATUS, Row, Toml, digits, read_rows

FILES = (
    "pack.toml",
    "classes.csv",
    "prefixes.csv",
    "areas.csv",
    "regions.csv",
    "trunks.toml",
    "default_off.csv",
    "labels.toml",
)
"""What a pack must have. ``vectors.csv`` may lie beside them: tests read it, ``compile_pack`` does not."""

BAD_LENGTH = "_bad_length"
"""Ends the class of a number whose prefix is known and whose length is not: never a valid class."""

NationalForm = Literal["bare", "nsn", "area", "trunk0"]
"""Where national digits stand: alone, after the country code, after an area code, after the trunk prefix."""

_FORMS: tuple[NationalForm, ...] = ("bare", "nsn", "area", "trunk0")
_GROUPS = ("not_opted_in", "own_block", "system", "withheld", "failed", "pass")
_LANGUAGES = ("zh", "en")


@dataclass(frozen=True, slots=True)
class Area:
    """One area code (no trunk prefix) and the lengths that a local number has there."""

    code: str
    province: str
    city: str
    local_lengths: frozenset[int]


@dataclass(frozen=True, slots=True)
class Region:
    """One foreign region.

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
class ClassRules:
    """What a number class may do.

    Attributes:
        voice_cli: ``yes``, ``no`` (makes no voice calls) or ``outbound_licence`` (where the trunk has one).
        dno: The number only answers (do not originate).
        label: Label of a call from this class, or "".
        verified: False where no source confirms the row.
    """

    name: str
    voice_cli: str = "yes"
    dno: bool = False
    label: str = ""
    verified: bool = True


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
class DefaultOff:
    """From when on calls of a group reach only subscribers who asked for them.

    Attributes:
        province: Province id, or ``*`` for all.
        operator: Operator id, or ``*`` for all.
        effective_from: Inclusive, local time of the pack without zone.
        effective_to: Exclusive, or None for good.
        default: ``closed`` (opt-in) or ``open`` (opt-out).
        rollout: ``all`` at once, or ``batch``: subscribers follow in cohorts after the date.
    """

    province: str
    operator: str
    channel: str
    groups: tuple[str, ...]
    effective_from: datetime
    effective_to: datetime | None
    default: str
    rollout: str
    source: str
    status: str

    def covers(self, at: datetime) -> bool:
        """Whether the local time lies in ``[effective_from, effective_to)``."""
        return self.effective_from <= at and (self.effective_to is None or at < self.effective_to)


@dataclass(frozen=True, slots=True)
class _Range:
    number_class: str
    len_min: int
    len_max: int
    where: str


_Table = dict[str, tuple[_Range, ...]]


@dataclass(frozen=True, slots=True)
class _Text:
    group: str
    by_language: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Pack:
    """One compiled country pack. Look-ups cost a few dictionary reads whatever the digits are.

    Attributes:
        cc: Country code of home, ``86``.
        idd: International prefix as dialled, ``00``.
        e164_max: Most digits of an international number (ITU-T E.164).
        emergency: The emergency numbers, without area code.
        timezone: IANA name of the zone in which the pack's dates are.
        trunks: Trunk rules by kind.
    """

    id: str
    version: str
    country: str
    cc: str
    idd: str
    trunk_prefix: str
    e164_max: int
    timezone: str
    home_language: str
    emergency: frozenset[str]
    checked_on: date
    trunks: Mapping[str, TrunkRules]
    regions: Mapping[str, Region]
    reasons: frozenset[str]
    labels: frozenset[str]
    _national: Mapping[str, _Table] = field(repr=False)
    _longest: int = field(repr=False)
    _areas: Mapping[str, Area] = field(repr=False)
    _region_prefixes: Mapping[str, Region] = field(repr=False)
    _longest_region: int = field(repr=False)
    _classes: Mapping[str, ClassRules] = field(repr=False)
    _default_off: Mapping[tuple[str, str, str], tuple[DefaultOff, ...]] = field(repr=False)
    _reason_texts: Mapping[str, _Text] = field(repr=False)
    _label_texts: Mapping[str, _Text] = field(repr=False)

    @property
    def name(self) -> str:
        """Id and version, as a verdict carries them: ``cn 2026.11``."""
        return f"{self.id} {self.version}"

    @property
    def provinces(self) -> frozenset[str]:
        """The provinces that the pack knows."""
        return frozenset(area.province for area in self._areas.values())

    def national_class(self, digits: str, form: NationalForm) -> str | None:
        """The class of national digits: the longest prefix that allows the length decides.

        Returns ``<class>_bad_length`` where a prefix matches and no length does, None where no prefix does.
        """
        table = self._national[form]
        length = len(digits)
        nearest = None
        for end in range(min(length, self._longest), 0, -1):
            for entry in table.get(digits[:end], ()):
                if entry.len_min <= length <= entry.len_max:
                    return entry.number_class
                nearest = nearest or entry.number_class
        return None if nearest is None else nearest.removesuffix(BAD_LENGTH) + BAD_LENGTH

    def area(self, digits: str) -> Area | None:
        """The area whose code opens these digits (trunk prefix already cut), or None."""
        return self._areas.get(digits[:3]) or self._areas.get(digits[:2])

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
        return self._classes.get(name)

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

    def reason_group(self, reason: str) -> str:
        """The treatment group: not_opted_in, own_block, system, withheld, failed or pass."""
        return self._reason_texts[reason].group

    def text(self, reason: str, language: str) -> str:
        """What the caller is told: reason and remedy; English where the language is not there."""
        texts = self._reason_texts[reason].by_language
        return texts.get(language) or texts["en"]

    def display(self, label: str, language: str) -> str:
        """What the callee's display shows of a label; English where the language is not there."""
        texts = self._label_texts[label].by_language
        return texts.get(language) or texts["en"]

    def region_name(self, region: str, language: str) -> str:
        """Display name of a foreign region; its code in capitals where the pack does not know it."""
        known = self.regions.get(region)
        return region.upper() if known is None else known.names.get(language) or known.names["en"]

    def languages(self, region: str | None) -> tuple[str, ...]:
        """In which a caller from ``region`` is spoken to; at home and unknown: the home language first."""
        known = self.regions.get(region or "")
        if known is not None:
            return known.languages
        return (self.home_language,) if self.home_language == "en" else (self.home_language, "en")


def compile_pack(files: Mapping[str, str]) -> Pack:
    """Check and compile the text of a pack's files, by name.

    Raises:
        BadPack: With file and line, for a file, column or key that is missing or unknown, a value out of its
            range, a bad date, two classes that claim the same digits in the same form, or two default-off
            rows that hold at the same time.
    """
    for name in FILES:
        if name not in files:
            raise BadPack(f"{name}: the file is missing; a pack has {', '.join(FILES)}")
    for name in sorted(files):
        if name not in FILES and name != "vectors.csv":
            raise BadPack(f"{name}: not a file of a pack; a pack has {', '.join(FILES)}")
    head = Toml("pack.toml", files["pack.toml"])
    national: dict[str, _Table] = {form: {} for form in _FORMS}
    classes = _class_rows(files["classes.csv"], national)
    _prefix_rows(files["prefixes.csv"], classes, national)
    areas = _areas(files["areas.csv"])
    regions, prefixes = _regions(files["regions.csv"])
    labels = Toml("labels.toml", files["labels.toml"])
    labels.only((), {"reason", "label"})
    reason_texts = _texts(labels, "reason", ("group", *_LANGUAGES))
    label_texts = _texts(labels, "label", _LANGUAGES)
    for row, rules in classes.values():
        if rules.label and rules.label not in label_texts:
            raise row.bad("label", f"'{rules.label}' has no text in labels.toml")
    head.only(
        (),
        {"id", "version", "country", "cc", "idd", "trunk_prefix", "e164_max", "timezone"}
        | {"home_language", "emergency", "checked_on"},
    )
    emergency = head.strings((), "emergency")
    for number in emergency:
        for form in ("bare", "nsn", "area"):
            if not any(claim.number_class == "emergency" for claim in national[form].get(number, ())):
                raise head.bad((), "emergency", f"'{number}' has no class 'emergency' in classes.csv ({form})")
    return Pack(
        id=head.string((), "id", r"[a-z]{2}[a-z0-9-]*"),
        version=head.string((), "version", r"[0-9A-Za-z.-]{1,20}"),
        country=head.string((), "country", r"[A-Z]{2}"),
        cc=head.string((), "cc", r"[1-9][0-9]{0,2}"),
        idd=head.string((), "idd", r"[0-9]{1,4}"),
        trunk_prefix=head.string((), "trunk_prefix", r"[0-9]{0,2}"),
        e164_max=head.integer((), "e164_max", 7, MOST_DIGITS),
        timezone=head.string((), "timezone", r"[A-Za-z]+(/[A-Za-z_+-]+)*"),
        home_language=head.string((), "home_language", "|".join(_LANGUAGES)),
        emergency=frozenset(emergency),
        checked_on=head.day((), "checked_on"),
        trunks=MappingProxyType(_trunks(Toml("trunks.toml", files["trunks.toml"]))),
        regions=MappingProxyType(regions),
        reasons=frozenset(reason_texts),
        labels=frozenset(label_texts),
        _national=MappingProxyType(national),
        _longest=max(len(prefix) for table in national.values() for prefix in table),
        _areas=MappingProxyType(areas),
        _region_prefixes=MappingProxyType(prefixes),
        _longest_region=max(map(len, prefixes)),
        _classes=MappingProxyType({name: rules for name, (_, rules) in classes.items()}),
        _default_off=MappingProxyType(_default_off_rows(files["default_off.csv"])),
        _reason_texts=MappingProxyType(reason_texts),
        _label_texts=MappingProxyType(label_texts),
    )


_MOBILE_CLASS: Mapping[str, Callable[[Row], str]] = {
    "mno": lambda row: f"mobile_{row.matching('operator', '[a-z]+', 'an operator id')}",
    "mvno": lambda row: f"mobile_mvno_{row.matching('host', '[a-z]+', 'the operator that carries the MVNO')}",
    "satellite": lambda _: "satellite",
    "iot": lambda _: "iot",
    "reserved": lambda _: "reserved",
}


def _class_rows(text: str, national: dict[str, _Table]) -> dict[str, tuple[Row, ClassRules]]:
    """Classes by name from classes.csv; their patterns go into ``national``."""
    classes: dict[str, tuple[Row, ClassRules]] = {}
    columns = ("class", "pattern", "len_min", "len_max", "form", "voice_cli", "dno", "label")
    for row in read_rows("classes.csv", text, columns):
        name = row.matching("class", "[a-z][a-z0-9_]*", "a class name in lower case")
        rules = ClassRules(
            name,
            voice_cli=row.one_of("voice_cli", ("yes", "no", "outbound_licence")),
            dno=row.one_of("dno", ("yes", "no")) == "yes",
            label=row.matching("label", "[a-z_]*", "a label name"),
            verified=row["status"] == "verified",
        )
        first, known = classes.setdefault(name, (row, rules))
        if (known.voice_cli, known.dno, known.label) != (rules.voice_cli, rules.dno, rules.label):
            raise row.bad("class", f"'{name}' has other voice_cli, dno or label on line {first.line}")
        if not row["pattern"]:  # prefixes.csv or areas.csv say what its digits are
            for column in ("len_min", "len_max", "form"):
                row.matching(column, "", "empty, though the row has no pattern")
            continue
        pattern = row.matching("pattern", "[0-9]{1,24}", "a prefix of digits")
        low, high = row.count("len_min"), row.count("len_max")
        if not len(pattern) <= low <= high:
            raise row.bad("len_max", f"{low} to {high} digits do not fit the pattern {pattern}")
        forms = ("bare", "nsn", "area") if row["form"] == "any" else row.some_of("form", _FORMS)
        if "bare" not in forms and forms != ("area",):
            raise row.bad("form", "a class that is read after a prefix is read bare too: its key is bare")
        _claim(national, row, pattern, forms, _Range(name, low, high, row.where))
    if not national["bare"] or "fixed" not in classes:
        raise BadPack("classes.csv line 1: a pack needs a class 'fixed' and one pattern or more")
    return classes


def _prefix_rows(text: str, classes: Collection[str], national: dict[str, _Table]) -> None:
    """Put the mobile and IoT prefixes of prefixes.csv into ``national``."""
    columns = ("prefix", "kind", "operator", "host", "len", "mnp", "valid_from", "valid_to")
    for row in read_rows("prefixes.csv", text, columns):
        prefix = row.matching("prefix", "[0-9]{1,24}", "a prefix of digits")
        kind = row.one_of("kind", tuple(_MOBILE_CLASS))
        name = _MOBILE_CLASS[kind](row)
        if name not in classes:
            raise row.bad("kind", f"class '{name}' is not in classes.csv; add a row without a pattern")
        row.one_of("mnp", ("yes", "no"))
        begin, end = row.moment("valid_from"), row.moment("valid_to")
        if begin and end and end <= begin:
            raise row.bad("valid_to", "lies before valid_from")
        length = row.count("len")
        # An IoT card is not dialled over long distance, so it has no form with the trunk prefix.
        forms = ("bare", "nsn") if kind == "iot" else ("bare", "nsn", "trunk0")
        _claim(national, row, prefix, forms, _Range(name, length, length, row.where))


def _claim(national: dict[str, _Table], row: Row, prefix: str, forms: tuple[str, ...], claim: _Range) -> None:
    """Put a range into the tables; the same prefix, form and length may be claimed once."""
    for form in forms:
        others = national[form].get(prefix, ())
        for other in others:
            if claim.len_min <= other.len_max and other.len_min <= claim.len_max:
                raise row.bad(
                    "pattern" if row.file == "classes.csv" else "prefix",
                    f"{prefix} ({form}) is claimed by {other.number_class} too, at {other.where}",
                )
        national[form][prefix] = (*others, claim)


def _areas(text: str) -> dict[str, Area]:
    areas: dict[str, Area] = {}
    for row in read_rows("areas.csv", text, ("area_code", "province", "city", "local_len")):
        code = row.matching("area_code", "[1-9][0-9]{1,2}", "an area code of two or three digits without 0")
        if code in areas or code[:2] in areas or any(code == known[:2] for known in areas):
            raise row.bad("area_code", f"{code} is there already, or another code opens with it")
        lengths = row.matching("local_len", "[0-9](-[0-9])?", "a length such as 7, 8 or 7-8").split("-")
        areas[code] = Area(
            code,
            row.matching("province", "[a-z]+", "a province id in lower case"),
            row["city"],
            frozenset(range(int(lengths[0]), int(lengths[-1]) + 1)),
        )
    return areas


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


def _default_off_rows(text: str) -> dict[tuple[str, str, str], tuple[DefaultOff, ...]]:
    """Rows by (province, channel, group); two that hold for one subscriber at one time are refused."""
    columns = ("province", "operator", "channel", "groups", "effective_from", "effective_to")
    table: dict[tuple[str, str, str], tuple[DefaultOff, ...]] = {}
    seen: list[tuple[Row, DefaultOff]] = []
    for row in read_rows("default_off.csv", text, (*columns, "default", "rollout")):
        begin, end = row.moment("effective_from"), row.moment("effective_to")
        if begin is None:
            raise row.bad("effective_from", "is empty; give the local date from which the default holds")
        if end is not None and end <= begin:
            raise row.bad("effective_to", "lies before effective_from")
        new = DefaultOff(
            province=row.matching("province", r"[a-z]+|\*", "a province id or *"),
            operator=row.matching("operator", r"[a-z]+|\*", "an operator id or *"),
            channel=row.one_of("channel", ("voice", "sms")),
            groups=row.some_of("groups", ("intl", "hmt")),
            effective_from=begin,
            effective_to=end,
            default=row.one_of("default", ("closed", "open")),
            rollout=row.one_of("rollout", ("all", "batch")),
            source=row["source"],
            status=row["status"],
        )
        for other_row, other in seen:
            if _collide(new, other):
                raise row.bad("effective_from", f"overlaps with {other_row.where}")
        seen.append((row, new))
        for group in new.groups:
            key = (new.province, new.channel, group)
            table[key] = (*table.get(key, ()), new)
    return table


def _collide(a: DefaultOff, b: DefaultOff) -> bool:
    def same(x: str, y: str) -> bool:
        return x == y or "*" in (x, y)

    return (
        same(a.province, b.province)
        and same(a.operator, b.operator)
        and a.channel == b.channel
        and not set(a.groups).isdisjoint(b.groups)
        and (b.effective_to is None or a.effective_from < b.effective_to)
        and (a.effective_to is None or b.effective_from < a.effective_to)
    )


_WIRE_FORMATS = ("plus", "idd00", "national0", "bare", "e164_bare")
_NATIONAL = "block|anonymise|label|pass"
_TRUNK_CHOICES = {
    "national_fixed": _NATIONAL,
    "national_mobile": f"roaming_check|{_NATIONAL}",
    "roaming_unknown": "block|label|pass",
    "cli_missing": "block|label|pass",
    "cli": "any|allocated_only|extension",
    "foreign_cli": "block|label|pass",
}
_TRUNK_OTHERS = {"wire_format", "origin_notice", "detectors", "source", "status", "unverified", "checked_on"}


def _trunks(toml: Toml) -> dict[str, TrunkRules]:
    toml.only((), {"trunk"})
    trunks: dict[str, TrunkRules] = {}
    for kind in toml.table(("trunk",)):
        path = ("trunk", kind)
        table = toml.table(path)
        toml.only(path, set(_TRUNK_CHOICES) | _TRUNK_OTHERS)
        wire_format = toml.strings(path, "wire_format")
        if not set(wire_format) <= set(_WIRE_FORMATS):
            raise toml.bad(path, "wire_format", f"only {', '.join(_WIRE_FORMATS)} can be listed")
        unverified = toml.strings(path, "unverified") if "unverified" in table else ()
        for key in unverified:
            if key not in _TRUNK_CHOICES:
                raise toml.bad(path, "unverified", f"'{key}' is not a rule of a trunk")
        toml.day(path, "checked_on")
        chosen = {key: toml.string(path, key, choices) for key, choices in _TRUNK_CHOICES.items() if key in table}
        trunks[kind] = TrunkRules(
            kind=kind,
            wire_format=wire_format,
            origin_notice=toml.flag(path, "origin_notice") if "origin_notice" in table else False,
            detectors=toml.strings(path, "detectors") if "detectors" in table else (),
            source=toml.string(path, "source", ".+"),
            status=toml.string(path, "status", "|".join(STATUS)),
            unverified=unverified,
            **chosen,
        )
    return trunks


def _texts(toml: Toml, kind: str, keys: tuple[str, ...]) -> dict[str, _Text]:
    texts: dict[str, _Text] = {}
    for name in toml.table((kind,)):
        path = (kind, name)
        toml.only(path, set(keys))
        texts[name] = _Text(
            group=toml.string(path, "group", "|".join(_GROUPS)) if "group" in keys else "",
            by_language=MappingProxyType({language: toml.string(path, language, ".+") for language in _LANGUAGES}),
        )
    return texts
