"""When calls are off by default, and by which text a subscriber opens or closes them.

Knows default_off.csv and optin_codes.csv: places, operators, dates and codes as the pack has them. Does not know
who has sent what (``registry``).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from zoneinfo import ZoneInfo

from pbxguard.screening.tables import Row, Span, near, read_rows
from pbxguard.screening.trunks import Refusal

_CHANNELS = ("voice", "sms")
_GROUPS = ("intl", "hmt")


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
class OptInCode:
    """What a subscriber texts to which short number, and what it does.

    Attributes:
        province: Province id, or ``*`` for all.
        operator: Operator id.
        channel: Which reception it is about: ``voice`` or ``sms``.
        verb: ``open``, ``close``, or ``guard``: a nuisance guard of the operator, which changes no consent.
        code: As printed; compared without case and without white space around it.
        to: The short number.
        groups: ``intl`` and ``hmt`` as far as it opens or closes them; empty for ``guard``.
    """

    province: str
    operator: str
    channel: str
    verb: str
    code: str
    to: str
    groups: tuple[str, ...]
    valid: Span
    source: str
    status: str


DefaultOffTable = Mapping[tuple[str, str, str], tuple[DefaultOff, ...]]
"""By province, channel and group."""

CodeTable = Mapping[tuple[str, str], tuple[OptInCode, ...]]
"""By short number and folded code; rows of one province stand before those of all."""


def read_default_off(
    text: str, provinces: Collection[str], operators: Collection[str]
) -> tuple[DefaultOffTable, list[Refusal]]:
    """Rows by (province, channel, group), and each that closes.

    Raises:
        BadPack: With file and line, also for two rows that hold for one subscriber at one time.
    """
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
            province=_one_of_them(row, "province", provinces),
            operator=_one_of_them(row, "operator", operators),
            channel=row.one_of("channel", _CHANNELS),
            groups=row.some_of("groups", _GROUPS),
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
    refusals = [
        Refusal(f"default_off:{rule.province}.{rule.channel}", row.verified, row.where)
        for row, rule in seen
        if rule.default == "closed"
    ]
    return MappingProxyType(table), refusals


def read_codes(text: str, zone: ZoneInfo, provinces: Collection[str], operators: Collection[str]) -> CodeTable:
    """Opt-in codes by short number and folded code.

    Raises:
        BadPack: With file and line, also for a code that means two things to one subscriber at one time.
    """
    table: dict[tuple[str, str], tuple[OptInCode, ...]] = {}
    lines: dict[int, str] = {}
    columns = ("province", "operator", "channel", "verb", "code", "to", "groups", "valid_from", "valid_to")
    for row in read_rows("optin_codes.csv", text, columns):
        verb = row.one_of("verb", ("open", "close", "guard"))
        new = OptInCode(
            province=_one_of_them(row, "province", provinces),
            operator=_one_of_them(row, "operator", operators),
            channel=row.one_of("channel", _CHANNELS),
            verb=verb,
            code=row.matching("code", "[0-9A-Za-z]{1,20}", "a code of letters and digits"),
            to=row.matching("to", "[0-9]{3,20}", "the number that it is sent to"),
            groups=row.some_of("groups", _GROUPS) if verb != "guard" else (),
            valid=row.span(zone),
            source=row["source"],
            status=row["status"],
        )
        if verb == "guard":
            row.matching("groups", "", "empty, as a nuisance guard changes no consent")
        key = (new.to, new.code.casefold())
        for other in table.get(key, ()):
            alike = (new.province, new.operator) == (other.province, other.operator)
            if alike and new.valid.overlaps(other.valid):
                raise row.bad("code", f"{new.code} to {new.to} has a meaning already, at {lines[id(other)]}")
        lines[id(new)] = row.where
        # Stable: of two rows that apply, the one of the subscriber's own province or operator comes first.
        table[key] = tuple(
            sorted((*table.get(key, ()), new), key=lambda c: (c.province == "*") + (c.operator == "*"))
        )
    return MappingProxyType(table)


def _one_of_them(row: Row, column: str, known: Collection[str]) -> str:
    value = row[column]
    if value != "*" and value not in known:
        raise row.bad(column, f"'{value}' is not * and not known to this pack; {near(value, known)}")
    return value


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
