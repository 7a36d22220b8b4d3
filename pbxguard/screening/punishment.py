"""Joint punishment of telecom fraud: how long a number is on the list, and which number its holder keeps.

Knows terms and how repeated ones add up. Does not know where entries are kept (``store``) or what an entry does to
a call (``policy``).

Source: Joint Punishment Measures for Telecom and Online Fraud and Related Crimes, in force since 2024-12-01, issued
under Art. 31 of the Anti-Telecom and Online Fraud Law (numbering-cn R12; Xinhua 2024-11-26 and the press conference
of that day, source S27): the convicted are punished for 3 years, those whom the police of a city designate for 2; for
who is put on the list several times within a term, the terms are served in succession, at most 5 years running;
basic communication services are kept.

How this is read here, as the wording of the article itself was not obtained:

- A term begins on its first day at midnight, site's zone, and ends before the same day of its last year.
- A new measure on or before the end of the term that runs continues that run: its own term is added to the end.
- The end is never more than 5 years after the first day of the unbroken run.
- Measures of one run are told apart by their documents: one without a document may be the same, entered twice.
- A day between the two breaks the run: the new measure then counts for itself. So does one after a lifting, since
  what an appeal struck out was no term.
"""

from dataclasses import replace
from datetime import UTC, date, datetime
from enum import StrEnum
from zoneinfo import ZoneInfo

from pbxguard.errors import BadInput
from pbxguard.screening.lists import Action, ListEntry

PUNISHMENT_LIST = "punishment"
"""The list whose entries are joint punishment measures."""

MOST_YEARS = 5

LEGAL_BASIS = "Anti-Telecom and Online Fraud Law Art. 31, joint punishment measures of 2024-12-01: "


class Basis(StrEnum):
    """Why somebody is punished; it gives the term."""

    CONVICTED = "convicted"
    POLICE = "police"

    @property
    def years(self) -> int:
        """The term."""
        return 3 if self is Basis.CONVICTED else 2


def punish(
    number: str,
    basis: Basis,
    first_day: date,
    zone: ZoneInfo,
    *,
    before: ListEntry | None = None,
    document: str = "",
    reason: str = "",
    source: str = "",
) -> ListEntry:
    """Give the entry that a measure makes of a number, with what is on the list already.

    Args:
        number: Home form.
        basis: Gives the term.
        first_day: From which the measure holds, in the site's zone.
        zone: The site's.
        before: The number's entry on the list as it is now, or None.
        document: Reference of the decision; those of one run are all kept, split by "; ". A measure that continues a
            run needs one.
        reason: For *explain*; that of the run where it is empty.
        source: Likewise.

    Raises:
        BadInput: The measure does not fit what is on the list; the message says what to do.
    """
    if not 2000 <= first_day.year <= 9000:
        raise BadInput(f"{first_day}: no measure begins in that year; write its first day as 2026-06-01")
    since = datetime(first_day.year, first_day.month, first_day.day, tzinfo=zone).astimezone(UTC)
    measure = f"{basis} {basis.years} years"
    end = _later(since, basis.years, zone)
    run = _unbroken(before, since)
    if run is None:
        return ListEntry(
            owner="",
            pattern=number,
            action=Action.BLOCK,
            name=PUNISHMENT_LIST,
            source=source,
            reason=reason or "joint punishment",
            legal_basis=LEGAL_BASIS + measure,
            expires_at=end,
            since=since,
            document=document,
        )
    first, last = run
    if before is None or since < first:
        raise BadInput(
            f"{number}: a measure from {first_day} begins before the one that is on the list "
            f"({first.astimezone(zone).date()}); remove that and enter them in the order of their first days"
        )
    documents = before.document.split("; ") if before.document else []
    until = last.astimezone(zone).date()
    if document in documents:
        raise BadInput(f"{number}: {document!r} is on the list already, until {until}")
    if not document:
        raise BadInput(
            f"{number}: is on the list until {until}; a further measure needs its own --document, as the same one "
            "entered twice would double the term"
        )
    if since == first and not documents:
        raise BadInput(
            f"{number}: a measure from {first_day} is on the list, without a document; if this is another, remove it "
            f"(`pbxguard lists remove {number} --list {PUNISHMENT_LIST}`) and enter each with its --document"
        )
    return replace(
        before,
        expires_at=min(_later(last, basis.years, zone), _later(first, MOST_YEARS, zone)),
        legal_basis=f"{before.legal_basis or LEGAL_BASIS.removesuffix(': ')} + {measure}",
        document="; ".join([*documents, document] if document else documents),
        reason=reason or before.reason,
        source=source or before.source,
    )


def keep(kept: str, number: str, run: ListEntry) -> ListEntry:
    """Give the entry of the number that the holder of a punished one keeps, for as long as the run lasts."""
    return replace(run, pattern=kept, retained=True, reason=kept_reason(number))


def kept_reason(number: str) -> str:
    """The reason of an entry of ``keep``: by it the entry is found again."""
    return f"kept for basic communication by the holder of {number}"


def _unbroken(before: ListEntry | None, since: datetime) -> tuple[datetime, datetime] | None:
    """The first and the last moment of the run that a measure from *since* on continues, or None."""
    if before is None or before.lifted_at is not None:
        return None
    if before.retained:
        raise BadInput(f"{before.pattern}: {before.reason}; lift that first, then punish it")
    first, last = before.since, before.expires_at
    if first is None or last is None or not 2000 <= first.year <= last.year <= 9005:
        raise BadInput(f"{before.pattern}: its entry on the list has no first or last day; remove it, then punish it")
    return None if last < since else (first, last)


def _later(at: datetime, years: int, zone: ZoneInfo) -> datetime:
    """The same moment of the year, so many years later, by the site's clock; 29 February becomes 1 March."""
    local = at.astimezone(zone).replace(tzinfo=None)
    try:
        moved = local.replace(year=local.year + years)
    except ValueError:
        moved = local.replace(year=local.year + years, month=3, day=1)
    return moved.replace(tzinfo=zone).astimezone(UTC)
