"""The opt-in registry: consent events folded into the state that a decision reads.

Knows how an append-only ledger becomes "open or not, for whom, until when". Does not know provinces or
default dates (``policy`` asks the pack) nor where events are kept (``store``).
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T", int, datetime)

CUTOVER = "cutover"
"""The way by which whole cohorts are closed; an event of any other is somebody's own act."""


class CallClass(StrEnum):
    """Which calls a subscriber opens or closes: all other countries, or Hong Kong, Macau and Taiwan."""

    INTL = "intl"
    HMT = "hmt"


class Verb(StrEnum):
    """What a consent event does.

    ``RESET`` takes back what a cut-over closed: the subscriber has never answered, and the default of the
    pack holds again.
    """

    OPEN = "open"
    CLOSE = "close"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class ConsentEvent:
    """One line of the ledger. Never changed, never removed.

    Attributes:
        number: Subscriber, home form.
        caller: Home-form CLI when the consent is for one caller only, else "".
        until: End of the consent (exclusive, UTC), or None for good.
        effective_at: From when it holds (inclusive, UTC).
        recorded_at: When it was written (UTC).
        actor: Who did it (``cli:root``, ``subscriber``, ``cutover:2022-05``).
        via: By which way: cli, sms, shop, import, cutover, expiry.
        evidence: Reference to the proof (Message-ID, form number); free text of the operator.
    """

    number: str
    call_class: CallClass
    channel: str
    verb: Verb
    effective_at: datetime
    recorded_at: datetime
    actor: str
    via: str
    until: datetime | None = None
    caller: str = ""
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Consent:
    """The folded state of one (number, class, channel, caller): its newest event.

    Attributes:
        since: From when it holds (inclusive, UTC): ``effective_at`` of the event, or later, see ``Floors``.
    """

    number: str
    call_class: CallClass
    channel: str
    verb: Verb
    since: datetime
    until: datetime | None = None
    caller: str = ""


Key = tuple[str, CallClass, str, str]
"""What one consent is about: number, call class, channel, caller ("" for all callers)."""


def consent_of(event: ConsentEvent) -> Consent:
    """Give the state that an event brings about, taken by itself."""
    return Consent(
        number=event.number,
        call_class=event.call_class,
        channel=event.channel,
        verb=event.verb,
        since=event.effective_at,
        until=event.until,
        caller=event.caller,
    )


def key_of(consent: Consent | ConsentEvent) -> Key:
    """Give what a consent or an event is about."""
    return consent.number, consent.call_class, consent.channel, consent.caller


class Floors(Generic[K, T]):
    """From when on an event counts, event by event in the order of a ledger.

    An own act that is recorded after a cut-over closed (or opened again) the same key has the last word over it,
    whatever date it bears: a paper form of before the cut-over that comes in late. It counts from the newest line of
    a cut-over on, if its own date lies before that. All else counts from its own date.
    """

    def __init__(self, known: Mapping[K, T] | None = None) -> None:
        """Go on after a ledger that has these newest lines of cut-overs, by key."""
        self._newest: dict[K, T] = dict(known or {})

    def since(self, key: K, effective_at: T, via: str) -> T:
        """Give from when on the next event counts."""
        newest = self._newest.get(key)
        if via == CUTOVER:
            if newest is None or newest < effective_at:
                self._newest[key] = effective_at
            return effective_at
        return effective_at if newest is None or newest < effective_at else newest


def fold(events: Iterable[ConsentEvent]) -> dict[Key, Consent]:
    """Fold a whole ledger into the newest consent of each key.

    The newest ``since`` wins (see ``Floors``); of events with the same one, the later in the ledger.
    """
    folded: dict[Key, Consent] = {}
    for event, consent in _dated(events):
        key = key_of(event)
        held = folded.get(key)
        if held is None or consent.since >= held.since:
            folded[key] = consent
    return folded


def standing(events: Iterable[ConsentEvent]) -> dict[tuple[Key, datetime], Consent]:
    """Fold a whole ledger into what the store must know of it: what holds, and what is dated ahead.

    Of each key: the newest event that had begun when the last one of that key was recorded, and those that
    take effect after it. ``fold`` keeps the newest alone, whether it has begun or not.
    """
    kept: dict[Key, dict[datetime, Consent]] = {}
    recorded: dict[Key, datetime] = {}
    for event, consent in _dated(events):
        key = key_of(event)
        kept.setdefault(key, {})[consent.since] = consent
        recorded[key] = max(event.recorded_at, recorded.get(key, event.recorded_at))
    found = {}
    for key, consents in kept.items():
        begun = [since for since in consents if since <= recorded[key]]
        for since, consent in consents.items():
            if not begun or since >= max(begun):
                found[key, since] = consent
    return found


def _dated(events: Iterable[ConsentEvent]) -> Iterator[tuple[ConsentEvent, Consent]]:
    """Give each event with the state that it brings about after those before it."""
    floors: Floors[Key, datetime] = Floors()
    for event in events:
        since = floors.since(key_of(event), event.effective_at, event.via)
        yield event, replace(consent_of(event), since=since)


def opened(
    consents: Iterable[Consent],
    number: str,
    call_class: CallClass,
    channel: str,
    caller_key: str | None,
    at: datetime,
) -> Consent | None:
    """Give the consent that lets this call through, or None.

    A consent lets through from ``since`` (inclusive) to ``until`` (exclusive). One for this caller comes
    before one for all callers; closing the one leaves the other as it is. ``consents`` may hold several of
    one key, such as a close that is dated ahead: the newest that has begun counts.

    Args:
        consents: Folded state of at least this number.
        number: The callee, home form.
        call_class: What the call is.
        channel: ``voice`` or ``sms``.
        caller_key: The CLI in home form, or None where it has none.
        at: Time of the call, aware.
    """
    for caller in dict.fromkeys((caller_key or "", "")):
        held = _begun(consents, (number, call_class, channel, caller), at)
        if held and held.verb is Verb.OPEN and (held.until is None or at < held.until):
            return held
    return None


def closed(
    consents: Iterable[Consent], number: str, call_class: CallClass, channel: str, at: datetime
) -> Consent | None:
    """Give the consent for all callers that the subscriber closed or let run out, or None.

    For *explain*: "closed on 3 May" reads better than "not opted in". It never decides: without an open
    consent the default of the pack holds. Whose closing was taken back (``RESET``) has closed nothing.
    """
    held = _begun(consents, (number, call_class, channel, ""), at)
    if (
        held is None
        or held.verb is Verb.RESET
        or (held.verb is Verb.OPEN and (held.until is None or at < held.until))
    ):
        return None
    return held


def _begun(consents: Iterable[Consent], key: Key, at: datetime) -> Consent | None:
    newest: Consent | None = None
    for consent in consents:
        if key_of(consent) == key and consent.since <= at and (not newest or consent.since >= newest.since):
            newest = consent
    return newest
