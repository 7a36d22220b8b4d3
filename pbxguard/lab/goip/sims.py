"""SIMs, what each has been used for, when a line changes its SIM and how long one may talk: values and rules.

Knows no socket, file or clock: the time comes in as an aware datetime, and hours and months are those of its zone.
The policies and limits are those that vendors of SIM boxes offer (lab-and-goip.md 2.2, 2.5).
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Self

from pbxguard.errors import BadInput

__all__ = [
    "Cell",
    "Limits",
    "Period",
    "Placed",
    "Rotation",
    "RotationKind",
    "Sim",
    "SimTable",
    "Usage",
    "after_call",
    "luhn_digit",
    "next_sim",
    "numbers",
    "remaining",
    "too_soon",
]

#: Numbers of one bank of made-up SIMs.
BANK = 1000
MAX_SIMS = 1024  # SMB128 banks are joined up to several hundred slots
_DIGITS = {
    "imsi": re.compile(r"[0-9]{14,15}"),  # ITU-T E.212
    "iccid": re.compile(r"[0-9]{18,20}"),  # ITU-T E.118
    "imei": re.compile(r"[0-9]{15}"),  # 3GPP TS 23.003 section 6
    "msisdn": re.compile(r"\+?[0-9]{3,20}"),
}
_HEX = re.compile(r"[0-9A-F]{1,8}")
_NAME = re.compile(r"[^\x00-\x1f;:\x7f]{1,40}")


@dataclass(frozen=True, slots=True)
class Cell:
    """Where a SIM is seen: location area code and cell id, hexadecimal capitals as ``CELLINFO`` has them."""

    lac: str
    cell_id: str


@dataclass(frozen=True, slots=True)
class Sim:
    """One SIM, with the IMEI that the line shows while it carries it.

    Attributes:
        msisdn: The number that a callee sees, as the operator shows it.
        operator: Name of the network, for ``pro:``.
        signal: AT+CSQ: 0 to 31, or 99 for unknown.
    """

    msisdn: str
    imsi: str
    iccid: str
    imei: str
    operator: str
    cell: Cell
    signal: int = 24


class SimTable(tuple[Sim, ...]):
    """The SIMs of a box in their order; no IMSI, ICCID or number twice.

    Raises:
        BadInput: A value has not its form, or is there twice; the message names the row.
    """

    __slots__ = ()

    def __new__(cls, sims: Collection[Sim]) -> Self:
        if not 1 <= len(sims) <= MAX_SIMS:
            raise BadInput(f"a SIM table has 1 to {MAX_SIMS} rows, not {len(sims)}")
        seen: set[tuple[str, str]] = set()
        for row, sim in enumerate(sims, 1):
            _check(row, sim)
            for name in ("imsi", "iccid", "msisdn"):
                key = (name, getattr(sim, name))
                if key in seen:
                    raise BadInput(f"SIM table, row {row}: {name} {key[1]} is there twice; keep one of the rows")
                seen.add(key)
        return super().__new__(cls, sims)

    @classmethod
    def read(cls, rows: Sequence[Mapping[str, str]]) -> Self:
        """Rows of text (CSV, TOML) as a table.

        Args:
            rows: Each with msisdn, imsi, iccid, imei, operator, lac, cell_id, and signal where known.

        Raises:
            BadInput: A column is missing or a value has not its form; the message names row and column.
        """
        sims = []
        for number, row in enumerate(rows, 1):
            wanted = ("msisdn", "imsi", "iccid", "imei", "operator", "lac", "cell_id")
            missing = [name for name in wanted if not row.get(name)]
            if missing:
                raise BadInput(
                    f"SIM table, row {number}: {missing[0]} is missing; every row needs {', '.join(wanted)}"
                )
            signal = row.get("signal") or "24"
            sims.append(
                Sim(
                    msisdn=row["msisdn"],
                    imsi=row["imsi"],
                    iccid=row["iccid"],
                    imei=row["imei"],
                    operator=row["operator"],
                    cell=Cell(row["lac"].upper(), row["cell_id"].upper()),
                    signal=int(signal) if re.fullmatch(r"[0-9]{1,2}", signal) else -1,
                )
            )
        return cls(sims)

    @classmethod
    def fictional(cls, count: int, bank: int = 0) -> Self:
        """A table for the lab: test network 001 01 (ITU-T E.212), test IMEIs, numbers for the lab only.

        No range of Chinese mobile numbers is reserved for fiction: never let these reach a real trunk.

        Args:
            count: How many.
            bank: 0 to 7; SIMs of different banks have no number in common. Bank 0 has 13957102001 and on, bank 1
                13957103001.

        Raises:
            BadInput: More than 1000 SIMs in one of several banks.
        """
        if bank and count >= BANK:
            raise BadInput(f"a bank has less than {BANK} SIMs, not {count}")
        return cls([_fictional(BANK * bank + n) for n in range(1, count + 1)])

    def by_number(self, number: str) -> Sim | None:
        """The SIM that a number reaches, whether dialled at home or with +86."""
        wanted = number.removeprefix("+86").removeprefix("0086")
        return next((sim for sim in self if sim.msisdn.removeprefix("+86") == wanted), None)


def _check(row: int, sim: Sim) -> None:
    for name, form in _DIGITS.items():
        value = getattr(sim, name)
        if not form.fullmatch(value):
            raise BadInput(f"SIM table, row {row}: {name} {value[:40]!r} is none; it matches {form.pattern}")
    if not (_HEX.fullmatch(sim.cell.lac) and _HEX.fullmatch(sim.cell.cell_id)):
        raise BadInput(f"SIM table, row {row}: lac and cell_id are 1 to 8 hexadecimal digits")
    if not _NAME.fullmatch(sim.operator):
        raise BadInput(f"SIM table, row {row}: operator is 1 to 40 characters without ; and :")
    if not (0 <= sim.signal <= 31 or sim.signal == 99):
        raise BadInput(f"SIM table, row {row}: signal is 0 to 31, or 99 for unknown (AT+CSQ)")


def luhn_digit(digits: str) -> str:
    """Check digit of an IMEI or ICCID (ISO/IEC 7812-1 annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        doubled = int(digit) * (2 if place % 2 == 0 else 1)
        total += doubled // 10 + doubled % 10
    return str(-total % 10)


def numbers(bank: int) -> str:
    """What the numbers of a bank of made-up SIMs begin with; three digits follow."""
    return f"1395710{2 + bank}"


def _fictional(n: int) -> Sim:
    operators = ("CHINA MOBILE", "CHN-UNICOM", "CHN-CT")
    imei, iccid = f"00101200{n:06d}", f"89001010{n:011d}"
    return Sim(
        msisdn=f"{numbers(n // BANK)}{n % BANK:03d}",
        imsi=f"00101{n:010d}",
        iccid=iccid + luhn_digit(iccid),
        imei=imei + luhn_digit(imei),
        operator=operators[(n - 1) % len(operators)],
        cell=Cell("7E5", f"{0x5E00 + n:X}"),
        signal=18 + n % 12,
    )


# -- use and limits ---------------------------------------------------------------------------------------


class Period(StrEnum):
    """When the talk time of a SIM begins anew."""

    NEVER = "never"
    DAY = "day"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one SIM may do; None is no limit.

    Attributes:
        talk: Time of connected outgoing calls in a period (``exp_time`` of the protocol, which has minutes).
        call: Length of one outgoing call; the box ends it then.
        interval: Least time from the end of an outgoing call to the next.
    """

    talk: timedelta | None = None
    period: Period = Period.NEVER
    call: timedelta | None = None
    interval: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one SIM has done.

    Attributes:
        calls: Outgoing calls, whether answered or not.
        talk: Time of connected outgoing calls, ever.
        counted: The part of it that stands against the limit of the period that ``period`` names.
        ended: When its last outgoing call ended.
    """

    calls: int = 0
    talk: timedelta = timedelta(0)
    counted: timedelta = timedelta(0)
    period: str = ""
    ended: datetime | None = None


def _period(limits: Limits, now: datetime) -> str:
    return {Period.NEVER: "", Period.DAY: f"{now:%Y-%m-%d}", Period.MONTH: f"{now:%Y-%m}"}[limits.period]


def after_call(usage: Usage, limits: Limits, talked: timedelta, now: datetime) -> Usage:
    """The use of a SIM after an outgoing call that was connected for *talked* (0: never answered)."""
    period = _period(limits, now)
    before = usage.counted if usage.period == period else timedelta(0)
    return replace(
        usage,
        calls=usage.calls + 1,
        talk=usage.talk + talked,
        counted=before + talked,
        period=period,
        ended=now,
    )


def remaining(usage: Usage, limits: Limits, now: datetime) -> timedelta | None:
    """Talk time that is left, not below 0; None where there is no limit."""
    if limits.talk is None:
        return None
    counted = usage.counted if usage.period == _period(limits, now) else timedelta(0)
    return max(limits.talk - counted, timedelta(0))


def too_soon(usage: Usage, limits: Limits, now: datetime) -> bool:
    """Whether the interval since the SIM's last outgoing call has not passed yet."""
    return usage.ended is not None and now - usage.ended < limits.interval


# -- rotation ---------------------------------------------------------------------------------------------


class RotationKind(StrEnum):
    """When a line gets another SIM, and which one."""

    NEVER = "never"
    ROUND_ROBIN = "round-robin"
    LEAST_USED = "least-used"
    AFTER_CALLS = "after-calls"
    AFTER_MINUTES = "after-minutes"
    BY_HOUR = "by-hour"


@dataclass(frozen=True, slots=True)
class Rotation:
    """A policy.

    Attributes:
        kind: ``round-robin`` and ``least-used`` change after every outgoing call, to the next SIM of the table and to
            the one with the fewest calls; ``after-calls`` and ``after-minutes`` change to the next one when the SIM
            has made that many calls or has been that long in the line; ``by-hour`` when the clock's hour is another.
        every: Calls or minutes, for the two that count them.
    """

    kind: RotationKind = RotationKind.NEVER
    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise BadInput(f"rotation {self.kind}: the number of calls or minutes is at least 1, not {self.every}")


@dataclass(frozen=True, slots=True)
class Placed:
    """A SIM in a line: since when, and how many outgoing calls it has made there."""

    sim: Sim
    since: datetime
    calls: int = 0


def next_sim(
    rotation: Rotation,
    table: SimTable,
    placed: Placed,
    elsewhere: Collection[str],
    usage: Mapping[str, Usage],
    now: datetime,
) -> Sim | None:
    """The SIM that the line gets now, or None when it keeps what it has.

    Args:
        rotation: The policy.
        table: All SIMs of the box, in their order.
        placed: What is in the line.
        elsewhere: IMSIs that other lines hold; none of them is chosen.
        usage: Use by IMSI; one that is not there is unused.
        now: The box's time.
    """
    if not _due(rotation, placed, now):
        return None
    if rotation.kind is RotationKind.LEAST_USED:

        def used(sim: Sim) -> tuple[int, timedelta]:
            use = usage.get(sim.imsi, Usage())
            return use.calls, use.talk

        least = min((sim for sim in table if sim.imsi not in elsewhere), key=used, default=placed.sim)
        return least if used(least) < used(placed.sim) else None
    return next(_after(table, placed.sim, elsewhere), None)


def _due(rotation: Rotation, placed: Placed, now: datetime) -> bool:
    match rotation.kind:
        case RotationKind.NEVER:
            return False
        case RotationKind.ROUND_ROBIN | RotationKind.LEAST_USED:
            return placed.calls >= 1
        case RotationKind.AFTER_CALLS:
            return placed.calls >= rotation.every
        case RotationKind.AFTER_MINUTES:
            return now - placed.since >= timedelta(minutes=rotation.every)
        case RotationKind.BY_HOUR:
            return f"{now:%Y%m%d%H}" != f"{placed.since:%Y%m%d%H}"


def _after(table: SimTable, sim: Sim, elsewhere: Collection[str]) -> Iterator[Sim]:
    place = next((n for n, other in enumerate(table) if other.imsi == sim.imsi), 0)
    for other in (*table[place + 1 :], *table[:place]):
        if other.imsi not in elsewhere:
            yield other
