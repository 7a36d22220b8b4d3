"""Privacy numbers: which binding of an intermediate number (X) holds for a callee at a moment.

Knows bindings as values. Does not know which numbers are privacy numbers (the country pack), what a missing
binding means for a call (``policy``) nor where bindings are kept (``store``).

A binding lets A and B talk without either seeing the other's number: both see X. One X serves many pairs at once,
told apart by who is called (semantics of the carriers' cloud interfaces: numbering-cn section 3, source S20). Its
end is one thing, the longest time of one call another (``duration`` and ``maxDuration`` there).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Binding:
    """X is shown to B when A calls. A pair has two of them, one each way (``pair``).

    Attributes:
        x: The number that is shown, home form.
        a: The real number of who calls, home form; "" where this site does not know it.
        b: The callee, home form.
        since: Inclusive, UTC.
        until: Exclusive, UTC; None while it has no end.
        max_call_s: The longest that one call may take, seconds; None for no limit.
    """

    x: str
    a: str
    b: str
    since: datetime
    until: datetime | None = None
    max_call_s: int | None = None


class Standing(StrEnum):
    """How a privacy number stands to a callee."""

    LIVE = "live"
    EXPIRED = "expired"
    NONE = "none"


def pair(
    x: str, a: str, b: str, since: datetime, until: datetime | None = None, max_call_s: int | None = None
) -> tuple[Binding, ...]:
    """Give the bindings of a pair: A's calls to B and, where A is known, B's calls to A."""
    there = Binding(x, a, b, since, until, max_call_s)
    return (there, Binding(x, b, a, since, until, max_call_s)) if a else (there,)


def live(binding: Binding, at: datetime) -> bool:
    """Say whether a binding holds at that moment; ``until`` itself is already outside."""
    return binding.since <= at and (binding.until is None or at < binding.until)


def standing(bindings: Iterable[Binding], x: str, callee: str, at: datetime) -> tuple[Standing, Binding | None]:
    """Say how X stands to a callee, and by which binding.

    A live one is preferred, else the one that ended last is given with EXPIRED. One that has yet to begin is none.
    Of several live ones that with the latest end counts, then the latest begun, so a renewed binding takes its
    new terms and the order of ``bindings`` never matters.

    Args:
        bindings: Any; those of other numbers and callees are passed over.
        x: The CLI, home form.
        callee: Home form.
        at: Time of the call, aware.
    """
    begun = [each for each in bindings if each.x == x and each.b == callee and each.since <= at]
    if not begun:
        return Standing.NONE, None
    last = max(begun, key=_end)
    return (Standing.LIVE if live(last, at) else Standing.EXPIRED), last


_FOR_EVER = datetime.max.replace(tzinfo=UTC)


def _end(binding: Binding) -> tuple[object, ...]:
    # the tighter limit of two that are otherwise equal
    limit = -binding.max_call_s if binding.max_call_s is not None else float("-inf")
    return (binding.until or _FOR_EVER, binding.since, limit, binding.a)
