"""The number classes of home: which digits, in which written form and at what time, are of which class.

Knows classes.csv, prefixes.csv, areas.csv and dno.csv. Does not know how a string on the wire is split into form
and digits (``numbering``), or what a rule makes of a class (``policy``).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Literal
from zoneinfo import ZoneInfo

from pbxguard.errors import BadPack
from pbxguard.screening.tables import ALWAYS, MOST_DIGITS, Row, Span, read_rows
from pbxguard.screening.trunks import Refusal

BAD_LENGTH = "_bad_length"
"""Ends the class of a number whose prefix is known and whose length is not: never a valid class."""

NationalForm = Literal["bare", "nsn", "area", "trunk0"]
"""Where national digits stand: alone, after the country code, after an area code, after the trunk prefix."""

_FORMS: tuple[NationalForm, ...] = ("bare", "nsn", "area", "trunk0")
_ANY = ("bare", "nsn", "area")


@dataclass(frozen=True, slots=True)
class Area:
    """One area code (no trunk prefix) and the lengths that a local number has there."""

    code: str
    province: str
    city: str
    local_lengths: frozenset[int]


@dataclass(frozen=True, slots=True)
class ClassRules:
    """What a number class may do.

    Attributes:
        voice_cli: ``yes``, ``no`` (makes no voice calls) or ``outbound_licence`` (where the trunk has one).
        dno: The number only answers (do not originate).
        label: Label of a call from this class, or "".
        privacy: A privacy (proxy) number: its call needs a binding.
        privacy_legacy: Such numbers were taken from this class before: a binding holds where there is one, and
            without one it is a number like any other.
        never_block: No list may hold it (emergency and operator numbers).
        verified: False where no source confirms one of its rows.
    """

    name: str
    voice_cli: str = "yes"
    dno: bool = False
    label: str = ""
    privacy: bool = False
    privacy_legacy: bool = False
    never_block: bool = False
    verified: bool = True


@dataclass(frozen=True, slots=True)
class Dno:
    """One number or prefix that makes no calls (do not originate).

    Attributes:
        pattern: Home form (``110``), or as written (``+11*``); ``*`` ends a prefix.
        scope: Trunks on which it holds: ``intl``, ``enterprise`` or ``all``.
        why: For *explain*.
    """

    pattern: str
    scope: str
    why: str
    source: str
    status: str
    where: str


@dataclass(frozen=True, slots=True)
class Claim:
    """One class's hold on a prefix."""

    number_class: str
    len_min: int
    len_max: int
    span: Span
    where: str


Claims = Mapping[str, tuple[Claim, ...]]
"""By prefix; several hold the same prefix at different lengths or times."""


@dataclass(frozen=True, slots=True)
class NumberPlan:
    """The numbers of home. Look-ups cost a few dictionary reads whatever the digits are.

    Attributes:
        national: Claims by form.
        longest: Digits of the longest prefix.
        keyed_bare: Classes whose home form has no trunk prefix.
        dates: When the class of some digits changes, sorted.
        dno_lengths: Digits of the prefixes in ``dno``, the longest first.
    """

    trunk_prefix: str
    national: Mapping[str, Claims]
    longest: int
    areas: Mapping[str, Area]
    area_lengths: tuple[int, ...]
    classes: Mapping[str, ClassRules]
    keyed_bare: frozenset[str]
    dates: tuple[datetime, ...]
    operators: frozenset[str]
    dno: Mapping[str, tuple[Dno, ...]]
    dno_lengths: tuple[int, ...]

    def national_class(self, digits: str, form: NationalForm, at: datetime | None = None) -> str | None:
        """See ``Pack.national_class``."""
        table = self.national[form]
        length = len(digits)
        nearest = None
        for end in range(min(length, self.longest), 0, -1):
            for claim in table.get(digits[:end], ()):
                if claim.span is not ALWAYS and not claim.span.holds(at):
                    continue
                if claim.len_min <= length <= claim.len_max:
                    return claim.number_class
                nearest = nearest or claim.number_class
        return None if nearest is None else nearest.removesuffix(BAD_LENGTH) + BAD_LENGTH

    def area(self, digits: str) -> Area | None:
        """The area whose code opens these digits (trunk prefix already cut), or None."""
        for length in self.area_lengths:
            area = self.areas.get(digits[:length])
            if area is not None:
                return area
        return None

    def home_form(self, number_class: str, digits: str) -> str:
        """The key of national digits: as a subscriber at home dials them."""
        return digits if number_class in self.keyed_bare else self.trunk_prefix + digits

    def class_of_key(self, key: str, at: datetime | None = None) -> str | None:
        """The class of a home form; None for a foreign number and for what is no number."""
        if self.trunk_prefix and key.startswith(self.trunk_prefix):
            digits = key[len(self.trunk_prefix) :]
            area = self.area(digits)
            if area is not None:
                local = digits[len(area.code) :]
                return "fixed" if len(local) in area.local_lengths else self.national_class(local, "area", at)
            return self.national_class(digits, "trunk0", at)
        return self.national_class(key, "bare", at)

    def do_not_originate(self, key: str | None, written: str) -> tuple[Dno, ...]:
        """See ``Pack.dno``."""
        if not self.dno:
            return ()
        met: tuple[Dno, ...] = self.dno.get(written, ())
        if key and key != written:
            met += self.dno.get(key, ())
        if key and self.trunk_prefix and key.startswith(self.trunk_prefix):
            digits = key[len(self.trunk_prefix) :]
            area = self.area(digits)
            if area is not None:  # a service keeps its meaning behind an area code
                met += self.dno.get(digits[len(area.code) :], ())
        for length in self.dno_lengths:
            met += self.dno.get(written[:length] + "*", ())
            if key and key != written:
                met += self.dno.get(key[:length] + "*", ())
        return met if len(met) < 2 else tuple(dict.fromkeys(met))


def read_plan(
    files: Mapping[str, str], zone: ZoneInfo, trunk_prefix: str
) -> tuple[NumberPlan, dict[str, Row], list[Refusal]]:
    """The plan, the first row of each class, and every row that can refuse a call.

    Raises:
        BadPack: With file and line, also for two classes that claim the same digits in the same form at one time.
    """
    national: dict[str, dict[str, tuple[Claim, ...]]] = {form: {} for form in _FORMS}
    table = _Classes(national)
    for row in read_rows("classes.csv", files["classes.csv"], _Classes.columns):
        table.add(row)
    if not national["bare"] or "fixed" not in table.rules:
        raise BadPack("classes.csv line 1: a pack needs a class 'fixed' and one pattern or more")
    operators = _read_prefixes(files["prefixes.csv"], zone, table, national)
    areas = _read_areas(files["areas.csv"])
    dno, dno_refusals = _read_dno(files["dno.csv"])
    plan = NumberPlan(
        trunk_prefix=trunk_prefix,
        national=MappingProxyType(national),
        longest=max(len(prefix) for claims in national.values() for prefix in claims),
        areas=MappingProxyType(areas),
        area_lengths=tuple(sorted({len(code) for code in areas}, reverse=True)),
        classes=MappingProxyType(table.rules),
        keyed_bare=frozenset(table.keyed_bare),
        dates=tuple(sorted(_dates(national))),
        operators=frozenset(operators),
        dno=MappingProxyType(dno),
        dno_lengths=tuple(sorted({len(each) - 1 for each in dno if each.endswith("*")}, reverse=True)),
    )
    return plan, table.first, table.refusals + dno_refusals


def _dates(national: Mapping[str, Claims]) -> set[datetime]:
    spans = {claim.span for claims in national.values() for of_prefix in claims.values() for claim in of_prefix}
    return {date for span in spans for date in (span.begin, span.end) if date is not None}


class _Classes:
    """The rows of classes.csv as they are read."""

    columns = (
        "class",
        "pattern",
        "len_min",
        "len_max",
        "form",
        "voice_cli",
        "dno",
        "label",
        "privacy",
        "never_block",
    )

    def __init__(self, national: dict[str, dict[str, tuple[Claim, ...]]]) -> None:
        self.national = national
        self.first: dict[str, Row] = {}
        self.rules: dict[str, ClassRules] = {}
        self.forms: dict[str, tuple[str, ...]] = {}
        self.keyed_bare: set[str] = set()
        self.refusals: list[Refusal] = []

    def add(self, row: Row) -> None:
        name = row.matching("class", "[a-z][a-z0-9_]*", "a class name in lower case")
        privacy = row.one_of("privacy", ("yes", "no", "legacy"))
        first = self.first.setdefault(name, row)
        for column in ("voice_cli", "dno", "label", "privacy", "never_block"):
            if row[column] != first[column]:
                raise row.bad("class", f"'{name}' has other {column} on line {first.line}")
        known = self.rules.get(name)
        rules = self.rules[name] = ClassRules(
            name,
            voice_cli=row.one_of("voice_cli", ("yes", "no", "outbound_licence")),
            dno=row.one_of("dno", ("yes", "no")) == "yes",
            label=row.matching("label", "[a-z_]*", "a label name"),
            privacy=privacy == "yes",
            privacy_legacy=privacy == "legacy",
            never_block=row.one_of("never_block", ("yes", "no")) == "yes",
            verified=row.verified and (known is None or known.verified),
        )
        if rules.dno or rules.voice_cli == "no":
            self.refusals.append(Refusal(f"class:{name}", row.verified, row.where))
        forms = _ANY if row["form"] == "any" else row.some_of("form", _FORMS)
        self._hold_form(row, name, forms)
        if not row["pattern"]:  # prefixes.csv or areas.csv say what its digits are
            for column in ("len_min", "len_max"):
                row.matching(column, "", "empty, though the row has no pattern")
            return
        pattern = row.matching("pattern", "[0-9]{1,24}", "a prefix of digits")
        low, high = row.count("len_min"), row.count("len_max")
        if not len(pattern) <= low <= high:
            raise row.bad("len_max", f"{low} to {high} digits do not fit the pattern {pattern}")
        _claim(self.national, row, pattern, forms, Claim(name, low, high, ALWAYS, row.where))

    def _hold_form(self, row: Row, name: str, forms: tuple[str, ...]) -> None:
        """Hold that each number of the class has one home form, bare or with the trunk prefix."""
        if not {"bare", "trunk0"} & set(forms) and forms != ("area",):
            raise row.bad("form", "a class that is read after a prefix is read bare too, or trunk0: that is its key")
        bare = "bare" in forms
        if name in self.forms and bare != (name in self.keyed_bare):
            raise row.bad("form", f"'{name}' is read {'not ' * bare}bare on line {self.first[name].line}")
        self.forms.setdefault(name, forms)
        if bare:
            self.keyed_bare.add(name)


_CLASS_OF_KIND: Mapping[str, Callable[[Row], str]] = {
    "mno": lambda row: f"mobile_{row.matching('operator', '[a-z]+', 'an operator id')}",
    "mvno": lambda row: f"mobile_mvno_{row.matching('host', '[a-z]+', 'the operator that carries the MVNO')}",
    "satellite": lambda _: "satellite",
    "iot": lambda _: "iot",
    "reserved": lambda _: "reserved",
    "privacy": lambda _: "privacy_x",
}


def _read_prefixes(
    text: str, zone: ZoneInfo, table: _Classes, national: dict[str, dict[str, tuple[Claim, ...]]]
) -> set[str]:
    """Put the rows of prefixes.csv into ``national``; gives the operators of mobile networks."""
    operators = set()
    columns = ("prefix", "kind", "operator", "host", "len", "mnp", "valid_from", "valid_to")
    for row in read_rows("prefixes.csv", text, columns):
        prefix = row.matching("prefix", "[0-9]{1,24}", "a prefix of digits")
        kind = row.one_of("kind", tuple(_CLASS_OF_KIND))
        name = _CLASS_OF_KIND[kind](row)
        if name not in table.forms:
            raise row.bad("kind", f"class '{name}' is not in classes.csv; add a row without a pattern")
        if kind in ("mno", "mvno"):
            operators.add(row["operator"] or row["host"])
        row.one_of("mnp", ("yes", "no"))
        span = row.span(zone)
        low, _, high = row.matching("len", "[0-9]{1,2}(-[0-9]{1,2})?", "a length such as 11 or 10-11").partition("-")
        shortest, longest = int(low), int(high or low)
        if not len(prefix) <= shortest <= longest <= MOST_DIGITS:
            raise row.bad("len", f"{row['len']} digits do not fit the prefix {prefix}")
        _claim(national, row, prefix, table.forms[name], Claim(name, shortest, longest, span, row.where))
    return operators


def _claim(
    national: dict[str, dict[str, tuple[Claim, ...]]], row: Row, prefix: str, forms: Iterable[str], claim: Claim
) -> None:
    """Put a claim into the tables; a prefix, form and length may be claimed once at any time."""
    for form in forms:
        others = national[form].get(prefix, ())
        for other in others:
            same_length = claim.len_min <= other.len_max and other.len_min <= claim.len_max
            if same_length and claim.span.overlaps(other.span):
                raise row.bad(
                    "pattern" if row.file == "classes.csv" else "prefix",
                    f"{prefix} ({form}) is claimed by {other.number_class} too, at {other.where}",
                )
        national[form][prefix] = (*others, claim)


def _read_areas(text: str) -> dict[str, Area]:
    areas: dict[str, Area] = {}
    opened: set[str] = set()  # what opens a code that is there
    for row in read_rows("areas.csv", text, ("area_code", "province", "city", "local_len")):
        code = row.matching(
            "area_code", "[1-9][0-9]{0,4}", "an area code of at most five digits without trunk prefix"
        )
        if code in areas or code in opened or any(code[:end] in areas for end in range(1, len(code))):
            raise row.bad("area_code", f"{code} is there already, or another code opens with it")
        opened.update(code[:end] for end in range(1, len(code)))
        lengths = row.matching("local_len", "[0-9](-[0-9])?", "a length such as 7, 8 or 7-8").split("-")
        areas[code] = Area(
            code,
            row.matching("province", "[a-z]+", "a province id in lower case"),
            row["city"],
            frozenset(range(int(lengths[0]), int(lengths[-1]) + 1)),
        )
    return areas


def _read_dno(text: str) -> tuple[dict[str, tuple[Dno, ...]], list[Refusal]]:
    table: dict[str, tuple[Dno, ...]] = {}
    refusals = []
    for row in read_rows("dno.csv", text, ("pattern", "scope", "why")):
        pattern = row.matching("pattern", r"\+?[0-9]{1,24}\*?", "a number, or a prefix and *")
        scope = row.one_of("scope", ("intl", "enterprise", "all"))
        why = row.matching("why", ".+", "the reason why this number makes no calls")
        for other in table.get(pattern, ()):
            if scope == other.scope or "all" in (scope, other.scope):
                raise row.bad("pattern", f"{pattern} is there already, at {other.where}")
        new = Dno(pattern, scope, why, row["source"], row["status"], row.where)
        table[pattern] = (*table.get(pattern, ()), new)
        refusals.append(Refusal(f"dno:{pattern}", row.verified, row.where))
    return table, refusals
