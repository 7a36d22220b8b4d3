"""The opt-in registry: consent events folded into the state that a decision reads.

Knows how an append-only ledger becomes "open or not, for whom, until when". Does not know provinces or
default dates (``policy`` asks the pack) nor where events are kept (``store``).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


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
    """The folded state of one (number, class, channel, caller): its newest event."""

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


def fold(events: Iterable[ConsentEvent], state: Mapping[Key, Consent] | None = None) -> dict[Key, Consent]:
    """Fold ledger events into the newest consent of each key.

    The newest ``effective_at`` wins; of events with the same one, the later in the ledger. Folding a ledger
    in any batches, each on top of the ``state`` of those before it, gives the same as folding it at once.
    """
    folded = dict(state or {})
    for event in events:
        key = key_of(event)
        held = folded.get(key)
        if held is None or event.effective_at >= held.since:
            folded[key] = consent_of(event)
    return folded


def standing(events: Iterable[ConsentEvent]) -> dict[tuple[Key, datetime], Consent]:
    """Fold a whole ledger into what the store must know of it: what holds, and what is dated ahead.

    Of each key: the newest event that had begun when the last one of that key was recorded, and those that
    take effect after it. ``fold`` keeps the newest alone, whether it has begun or not.
    """
    kept: dict[Key, dict[datetime, Consent]] = {}
    recorded: dict[Key, datetime] = {}
    for event in events:
        key = key_of(event)
        kept.setdefault(key, {})[event.effective_at] = consent_of(event)
        recorded[key] = max(event.recorded_at, recorded.get(key, event.recorded_at))
    found = {}
    for key, consents in kept.items():
        begun = [since for since in consents if since <= recorded[key]]
        for since, consent in consents.items():
            if not begun or since >= max(begun):
                found[key, since] = consent
    return found


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
