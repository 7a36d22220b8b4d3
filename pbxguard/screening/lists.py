"""Blocklists and allowlists: what an entry is, which keys it is stored under, and which of several decides.

Every pattern becomes look-up keys, so that a decision needs key equality only, never a scan or a LIKE. Does
not know where entries are kept (``store``) nor what a list's name means for the verdict (``policy``).

The keys of a pattern (home-form digits, an optional leading ``+``; at most 20 characters):

=============================== ======================== =======================================
pattern                         keys                     meaning
=============================== ======================== =======================================
``13800138000``                 ``13800138000``          exactly this number
``9520*``                       ``*9520``                every number that begins so, any length
``13800000000-13800009999``     ``#11:1380000``          every 11-character number that begins so
=============================== ======================== =======================================

A range is the least set of such fixed-length prefixes. ``#`` and ``*`` sort before every digit, so the few
prefixes of a list of millions of numbers lie side by side in an ordered table and stay in the page cache.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pbxguard.errors import BadNumber

MAX_DIGITS = 20
"""The longest number, in characters with the ``+``, that a pattern can name (E.164 ends at 16)."""

_NUMBER = re.compile(rf"\+?[0-9]{{1,{MAX_DIGITS - 1}}}", re.ASCII)
_PREFIX = re.compile(rf"(\+?[0-9]{{1,{MAX_DIGITS - 1}}}|\+)\*", re.ASCII)


class Action(StrEnum):
    """What a list entry does."""

    ALLOW = "allow"
    BLOCK = "block"


@dataclass(frozen=True, slots=True)
class ListEntry:
    """One stored entry.

    Attributes:
        owner: "" for a global entry, else the subscriber's number in home form.
        pattern: As the operator wrote it, normalised: ``13800138000``, ``9520*``, ``+852*``,
            ``13800000000-13800009999``.
        action: Allow beats block within one owner.
        name: The list that it belongs to, such as ``system``, ``punishment``, ``own``.
        expires_at: Exclusive, UTC; None for never.
    """

    owner: str
    pattern: str
    action: Action
    name: str
    source: str = ""
    reason: str = ""
    legal_basis: str = ""
    expires_at: datetime | None = None


def normalise_pattern(text: str, normalise: Callable[[str], str], *, home: str = "+86") -> str:
    """Bring a pattern as typed to the form that is stored.

    Args:
        text: ``13800138000``, ``9520*``, ``+852*`` or ``13800000000-13800009999``; no other separators.
        normalise: Number as typed -> home form; raises BadNumber. Applied to an exact number and to both
            ends of a range. A prefix is not a number yet, so it must be typed in home form.
        home: The country's own code: a prefix that begins so would never match a home-form number.

    Raises:
        BadNumber: The pattern is none of the above; the message says what would be.
    """
    text = text.strip()
    if text.endswith("*"):
        if not _PREFIX.fullmatch(text):
            raise BadNumber(f"{shown(text)}: a prefix is digits, then one *, such as 9520* or +852*")
        if text.startswith(("00", home)):
            raise BadNumber(
                f"{shown(text)}: a prefix is written as a subscriber at home dials it, "
                "such as 138* or 0571* (not +86138*), and +852* (not 00852*)"
            )
        return text
    if "-" in text:
        low, _, high = text.partition("-")
        if not (_NUMBER.fullmatch(low.strip()) and _NUMBER.fullmatch(high.strip())):
            raise BadNumber(
                f"{shown(text)}: a range is two whole numbers with one hyphen between them, such as "
                "13800000000-13800009999; a single number is written without hyphens"
            )
        low, high = normalise(low.strip()), normalise(high.strip())
        _check_range(low, high)
        return low if low == high else f"{low}-{high}"
    number = normalise(text)
    if not _NUMBER.fullmatch(number):
        raise BadNumber(f"{shown(text)}: not a number of at most {MAX_DIGITS} digits")
    return number


def pattern_keys(pattern: str) -> tuple[str, ...]:
    """Give the keys under which a normalised pattern is stored: one, or several for a range.

    Raises:
        BadNumber: It is not a pattern (see ``normalise_pattern``).
    """
    if _NUMBER.fullmatch(pattern):
        return (pattern,)
    if _PREFIX.fullmatch(pattern):
        return ("*" + pattern[:-1],)
    low, _, high = pattern.partition("-")
    _check_range(low, high)
    return _range_keys(low, high)


def pattern_of(key: str) -> str:
    """Give the pattern back that an exact or prefix key was made from."""
    return key[1:] + "*" if key.startswith("*") else key


def lookup_keys(home_key: str) -> tuple[str, ...]:
    """Give every key that an entry which matches this number can be stored under.

    At most 2 x the length + 1 keys (33 for the longest E.164 number). Text that is not a home-form number
    is on no list: no keys.
    """
    if not _NUMBER.fullmatch(home_key):
        return ()
    n = len(home_key)
    keys = [home_key]
    keys += ["*" + home_key[:end] for end in range(1, n + 1)]
    head = f"#{n:02d}:"
    keys += [head + home_key[:end] for end in range(n)]
    return tuple(keys)


def matches(pattern: str, home_key: str) -> bool:
    """Say whether a stored pattern covers a number in home form."""
    if pattern.endswith("*"):
        return bool(_NUMBER.fullmatch(home_key)) and home_key.startswith(pattern[:-1])
    low, hyphen, high = pattern.partition("-")
    if not hyphen:
        return pattern == home_key
    return (
        len(low) == len(home_key)
        and bool(_NUMBER.fullmatch(home_key))
        and low.startswith("+") == home_key.startswith("+")
        and low <= home_key <= high  # equal length and form: the order of text is the order of numbers
    )


def live(entry: ListEntry, at: datetime) -> bool:
    """Say whether an entry holds at that moment; ``expires_at`` itself is already outside."""
    return entry.expires_at is None or at < entry.expires_at


def effective(entries: Iterable[ListEntry], at: datetime, owner: str) -> ListEntry | None:
    """Choose the entry that decides among those that match a CLI, or None.

    Entries of other owners and expired ones do not count. Allow beats block; of equals the narrowest
    pattern is named, then the first by list name and pattern, so the order of ``entries`` never matters.

    Args:
        entries: Entries whose pattern matches the CLI.
        at: Time of the call, aware.
        owner: "" for the global lists, else the subscriber in home form.
    """
    ours = [entry for entry in entries if entry.owner == owner and live(entry, at)]
    return min(ours, key=_precedence, default=None)


def shown(text: str) -> str:
    """Quote what somebody typed for an error message: printable, at most 40 characters."""
    return ascii(text if len(text) <= 40 else text[:40] + "...")


def _precedence(entry: ListEntry) -> tuple[object, ...]:
    if entry.pattern.endswith("*"):
        breadth = (2, -len(entry.pattern))
    elif "-" in entry.pattern:
        low, _, high = entry.pattern.partition("-")
        breadth = (1, int(high) - int(low))
    else:
        breadth = (0, 0)
    return (
        entry.action is not Action.ALLOW,
        breadth,
        entry.name,
        entry.pattern,
        entry.expires_at is not None,  # of two that say the same, the one that stays
        -entry.expires_at.timestamp() if entry.expires_at else 0.0,
        entry.source,
        entry.reason,
        entry.legal_basis,
    )


def _check_range(low: str, high: str) -> None:
    text = shown(f"{low}-{high}")
    if not (_NUMBER.fullmatch(low) and _NUMBER.fullmatch(high)):
        raise BadNumber(f"{text}: not a number, a prefix such as 9520*, or a range of two numbers")
    if len(low) != len(high) or low.startswith("+") != high.startswith("+"):
        raise BadNumber(f"{text}: both ends of a range must have the same number of digits")
    if low > high:
        raise BadNumber(f"{text}: the range ends before it begins; swap the two numbers")


def _range_keys(low: str, high: str) -> tuple[str, ...]:
    plus = "+" if low.startswith("+") else ""
    digits = len(low) - len(plus)
    head = f"#{len(low):02d}:{plus}"
    start, stop = int(low), int(high) + 1
    keys = []
    while start < stop:
        size, zeros = 1, 0
        while zeros < digits and start % (size * 10) == 0 and start + size * 10 <= stop:
            size, zeros = size * 10, zeros + 1
        kept = digits - zeros
        block = str(start // size).zfill(kept) if kept else ""
        keys.append(plus + block if zeros == 0 else head + block)
        start += size
    return tuple(keys)
