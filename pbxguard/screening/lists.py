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
``class:svc95_vas``             ``@svc95_vas``           every number with the tag ``svc95_vas``
``region:hk``                   ``@region:hk``           every number with the tag ``region:hk``
=============================== ======================== =======================================

A range is the least set of such fixed-length prefixes. ``#`` and ``*`` sort before every digit, so the few
prefixes of a list of millions of numbers lie side by side in an ordered table and stay in the page cache.
The tags of a number are those that the country pack gives it: its class, ``intl`` or ``hmt``, its region.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from enum import StrEnum

from pbxguard.errors import BadInput, BadNumber

MAX_DIGITS = 20
"""The longest number, in characters with the ``+``, that a pattern can name (E.164 ends at 16)."""

_NUMBER = re.compile(rf"\+?[0-9]{{1,{MAX_DIGITS - 1}}}", re.ASCII)
_PREFIX = re.compile(rf"(\+?[0-9]{{1,{MAX_DIGITS - 1}}}|\+)\*", re.ASCII)
_CLASS, _REGION = "class:", "region:"
_TAG_PATTERN = re.compile(rf"{_CLASS}([a-z][a-z0-9_]{{0,28}})|({_REGION}[a-z][a-z0-9_]{{0,21}})")  # keys of 30


class Action(StrEnum):
    """What a list entry does."""

    ALLOW = "allow"
    BLOCK = "block"
    NOTE = "note"


ROAMING = "roaming_"
"""Begins the lists of the roaming look-up: ``roaming_yes``, ``roaming_no``, ``roaming_unknown``."""

SIMBOX = "simbox_suspected"

NOTES = frozenset({f"{ROAMING}yes", f"{ROAMING}no", f"{ROAMING}unknown", SIMBOX})
"""Global lists whose entries neither allow nor block: they say what is known of a CLI.

The first three are the roaming look-up (for a CLI that is on none, the trunk's ``roaming`` answers), the last labels
the call.
"""


@dataclass(frozen=True, slots=True)
class ListEntry:
    """One stored entry.

    Attributes:
        owner: "" for a global entry, else the subscriber's number in home form.
        pattern: As the operator wrote it, normalised: ``13800138000``, ``9520*``, ``+852*``,
            ``13800000000-13800009999``, ``class:svc95_vas``, ``region:hk``.
        action: Allow beats block within one owner; a note decides nothing.
        name: The list that it belongs to, such as ``system``, ``punishment``, ``own``.
        expires_at: Exclusive, UTC; None for never.
        since: Inclusive, UTC; None for always.
        retained: The number that a punished person keeps for basic communication: the list that it is on
            never blocks it.
        document: Reference of the decision that it rests on.
        lifted_at: When an appeal ended it, UTC; from then on it holds no more (Anti-Telecom and Online Fraud
            Law, Art. 32: lifted at once when the check passes). The term and the reason stay on record.
        lift_reason: Why it was lifted.
    """

    owner: str
    pattern: str
    action: Action
    name: str
    source: str = ""
    reason: str = ""
    legal_basis: str = ""
    expires_at: datetime | None = None
    since: datetime | None = None
    retained: bool = False
    document: str = ""
    lifted_at: datetime | None = None
    lift_reason: str = ""


def normalise_pattern(text: str, normalise: Callable[[str], str], *, home: str, tags: Collection[str] = ()) -> str:
    """Bring a pattern as typed to the form that is stored.

    Args:
        text: ``13800138000``, ``9520*``, ``+852*``, ``13800000000-13800009999``, ``class:NAME`` or
            ``region:NAME``; no other separators.
        normalise: Number as typed -> home form; raises BadNumber. Applied to an exact number and to both
            ends of a range. A prefix is not a number yet, so it must be typed in home form.
        home: The country's own code, ``+86``: a prefix that begins so would never match a home-form number.
        tags: The tags that numbers can have; a pattern of another one would match nothing. None of them:
            class and region patterns are refused.

    Raises:
        BadNumber: The pattern is none of the above; the message says what would be.
    """
    text = text.strip()
    if text.startswith((_CLASS, _REGION)):
        return _tag_pattern(text, tags)
    if text.endswith("*"):
        if not _PREFIX.fullmatch(text):
            raise BadNumber(f"{shown(text)}: a prefix is digits, then one *, such as 9520* or +852*")
        if text.startswith(("00", home)):
            raise BadNumber(
                f"{shown(text)}: a prefix is written as a subscriber at home dials it, "
                f"such as 138* or 0571* (not {home}138*), and a foreign one as +852* (not 00852*)"
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
    tag = _tag_of(pattern)
    if tag:
        return ("@" + tag,)
    low, _, high = pattern.partition("-")
    _check_range(low, high)
    return _range_keys(low, high)


def pattern_of(key: str) -> str:
    """Give the pattern back that a key was made from; not that of a range."""
    if key.startswith("*"):
        return key[1:] + "*"
    if key.startswith("@"):
        return key[1:] if key.startswith("@" + _REGION) else _CLASS + key[1:]
    return key


def lookup_keys(home_key: str, tags: Sequence[str] = ()) -> tuple[str, ...]:
    """Give every key that an entry which matches this number can be stored under.

    At most 2 x the length + 1 keys (33 for the longest E.164 number), and one for each tag. Text that is not
    a home-form number has no keys but those of its tags (``withheld``).
    """
    if not _NUMBER.fullmatch(home_key):
        return tuple(["@" + tag for tag in tags])
    n = len(home_key)
    keys = [home_key]
    keys += ["*" + home_key[:end] for end in range(1, n + 1)]
    head = f"#{n:02d}:"
    keys += [head + home_key[:end] for end in range(n)]
    keys += ["@" + tag for tag in tags]
    return tuple(keys)


def matches(pattern: str, home_key: str, tags: Collection[str] = ()) -> bool:
    """Say whether a stored pattern covers a number in home form that has these tags."""
    tag = _tag_of(pattern)
    if tag:
        return tag in tags
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
    """Say whether an entry holds at that moment: ``since`` is inside, ``expires_at`` and ``lifted_at`` outside."""
    return (
        (entry.expires_at is None or at < entry.expires_at)
        and (entry.since is None or entry.since <= at)
        and (entry.lifted_at is None or at < entry.lifted_at)
    )


def retained(entries: Iterable[ListEntry], at: datetime, owner: str = "") -> ListEntry | None:
    """Give the entry by which a punished person keeps this number for basic communication, or None.

    Args:
        entries: Entries whose pattern matches the CLI.
        at: Time of the call, aware.
        owner: As in ``effective``.
    """
    ours = [entry for entry in entries if entry.retained and entry.owner == owner and live(entry, at)]
    return min(ours, key=_precedence, default=None)


def consists_of(pattern: str, inside: Callable[[str], bool]) -> bool:
    """Say whether a normalised pattern covers only numbers that are *inside* (the never-block set).

    A prefix does when it is such a number itself: no valid number goes on after one. A wide prefix or range
    that has some of them among others does not. Nor does a class: the pack says what its numbers may do.
    """
    if _tag_of(pattern):
        return False
    if pattern.endswith("*"):
        return inside(pattern[:-1])
    low, hyphen, high = pattern.partition("-")
    if not hyphen:
        return inside(pattern)
    plus = "+" if low.startswith("+") else ""
    digits = len(low) - len(plus)
    # the ends first: they settle it for all but short ranges, so a range of millions is never walked through
    return (
        int(high) - int(low) < _MOST_WALKED
        and inside(low)
        and inside(high)
        and all(inside(f"{plus}{number:0{digits}d}") for number in range(int(low) + 1, int(high)))
    )


def effective(entries: Iterable[ListEntry], at: datetime, owner: str) -> ListEntry | None:
    """Choose the entry that decides among those that match a CLI, or None; notes never do.

    Entries of other owners and those that do not hold now do not count. Allow beats block; of equals the
    narrowest pattern is named, then the first by list name and pattern, so the order of ``entries`` never
    matters. A retained entry (``retained``) decides nothing, and no other block of its list counts either: the
    one number that a punished person keeps may lie in a range that is punished.

    Args:
        entries: Entries whose pattern matches the CLI.
        at: Time of the call, aware.
        owner: "" for the global lists, else the subscriber in home form.
    """
    ours = [e for e in entries if e.owner == owner and e.action is not Action.NOTE and live(e, at)]
    if any(entry.retained for entry in ours):
        kept = {entry.name for entry in ours if entry.retained}
        ours = [entry for entry in ours if entry.name not in kept or entry.action is Action.ALLOW]
    return min(ours, key=_precedence, default=None)


def noted(entries: Iterable[ListEntry], at: datetime) -> frozenset[str]:
    """Give the names of the global lists whose notes hold for the CLI at that moment; see ``NOTES``."""
    return frozenset([e.name for e in entries if e.action is Action.NOTE and not e.owner and live(e, at)])


def check_note(action: Action, owner: str, name: str) -> None:
    """Refuse a note that nothing would read, and a blocklist that looks like one.

    Raises:
        BadInput: A note on another list than ``NOTES``, or of a subscriber's own; another action on one of these.
    """
    if action is Action.NOTE and (owner or name not in NOTES):
        raise BadInput(f"list {shown(name)}: a note goes on one of the global lists {', '.join(sorted(NOTES))}")
    if action is not Action.NOTE and not owner and name in NOTES:
        raise BadInput(f"list {shown(name)}: its entries are notes, they neither allow nor block; give --note")


def shown(text: str) -> str:
    """Quote what somebody typed for an error message: printable, at most 40 characters."""
    return ascii(text if len(text) <= 40 else text[:40] + "...")


_MOST_WALKED = 10_000


def _tag_of(pattern: str) -> str:
    """The tag that a normalised pattern names, or ""."""
    if not pattern.startswith((_CLASS, _REGION)):  # by far the most: digits
        return ""
    named = _TAG_PATTERN.fullmatch(pattern)
    return "" if named is None else named[1] or named[2]


def _tag_pattern(text: str, known: Collection[str]) -> str:
    if _tag_of(text) in known:
        return text
    if not known:
        raise BadNumber(f"{shown(text)}: only numbers, prefixes and ranges here, such as 13800138000 or 0571*")
    patterns = [pattern_of("@" + tag) for tag in known]
    near = get_close_matches(text[:40], patterns, n=3, cutoff=0.5) or sorted(patterns)[:3]
    raise BadNumber(f"{shown(text)}: the country pack has no such class or region; near are {', '.join(near)}")


def _precedence(entry: ListEntry) -> tuple[object, ...]:
    breadth: tuple[int, int]
    if _tag_of(entry.pattern):
        breadth = (3, 0)
    elif entry.pattern.endswith("*"):
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
        -entry.since.timestamp() if entry.since else 0.0,
        -entry.lifted_at.timestamp() if entry.lifted_at else 0.0,
        entry.source,
        entry.reason,
        entry.legal_basis,
        entry.document,
        entry.lift_reason,
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
