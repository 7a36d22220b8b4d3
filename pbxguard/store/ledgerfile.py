"""Consent events as CSV files: read with every bad row named, written so that reading gives the same back.

Columns ``number,class,channel,caller,verb,effective_at,until,recorded_at,actor,via,evidence``; only ``number``,
``class``, ``verb`` and ``effective_at`` are required. What the ledger says of its own writing (``recorded_at``,
``actor``, ``via``) is taken from a file only to restore a ledger from its export. UTF-8, with or without a byte
order mark, lines end in LF or CRLF; times are ISO 8601 with their offset from UTC.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

from pbxguard.errors import BadInput, PbxguardError
from pbxguard.screening.call import Channel
from pbxguard.screening.lists import shown
from pbxguard.screening.registry import CallClass, ConsentEvent, Verb
from pbxguard.store.csvfile import CsvFile, opened

COLUMNS = (
    "number",
    "class",
    "channel",
    "caller",
    "verb",
    "effective_at",
    "until",
    "recorded_at",
    "actor",
    "via",
    "evidence",
)
REQUIRED = ("number", "class", "verb", "effective_at")

MAX_EVIDENCE = 500
"""Characters of free text that one event may carry."""

_MAX_ACTOR = 100
_MAX_VIA = 20
_REMEMBERED = 10_000
_NOTHING: frozenset[str] = frozenset()

_OURS = ("recorded_at", "actor", "via")

Told = tuple[ConsentEvent, frozenset[str]]
"""An event, and the names of its fields that the file left to us (``recorded_at``, ``actor``, ``via``)."""


def check_event(event: ConsentEvent) -> None:
    """Refuse an event that ends before it begins, and texts that are too long or not printable.

    Raises:
        BadInput: Names the number and what is wrong.
    """
    if event.until is not None and event.until <= event.effective_at:
        raise BadInput(f"registry: the consent of {event.number} ends before it begins; give a later end")
    if len(event.evidence) > MAX_EVIDENCE or len(event.actor) > _MAX_ACTOR:
        raise BadInput(
            f"registry: evidence of {event.number} is longer than {MAX_EVIDENCE} characters, or its actor "
            f"than {_MAX_ACTOR}; give a reference instead"
        )
    if not (event.evidence + event.actor).isprintable():
        raise BadInput(f"registry: evidence or actor of {event.number} holds a control character; leave it out")


def write_events(file: TextIO, events: Iterable[ConsentEvent]) -> int:
    """Write events as ``read_events`` reads them (open the file with ``newline=""``); give their number."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    total = 0
    for e in events:
        until = "" if e.until is None else e.until.astimezone(UTC).isoformat()
        times = e.effective_at.astimezone(UTC).isoformat(), until, e.recorded_at.astimezone(UTC).isoformat()
        writer.writerow((e.number, e.call_class, e.channel, e.caller, e.verb, *times, e.actor, e.via, e.evidence))
        total += 1
    return total


def read_events(
    path: Path, normalise: Callable[[str], str], *, now: datetime, actor: str, restore: bool = False
) -> Iterator[Told]:
    """Read events from a CSV file, in its order.

    The whole file is read even when a row is bad, to name all that is wrong; then BadInput is raised in
    place of the end, so whoever keeps the events must not commit before the iterator ends.

    Args:
        path: The file.
        normalise: Number as typed -> home form; raises BadNumber. Applied to numbers and callers.
        now: When the events are recorded.
        actor: Who did it; ``via`` is ``import``.
        restore: The file is the export of a ledger, which is brought back: its own ``recorded_at`` (not after *now*),
            ``actor`` and ``via`` hold where it has them, and the resets of its cut-overs are no error.

    Raises:
        BadInput: The file cannot be read, its header is wrong, or it has bad rows: the first 20 are
            listed, each with its line.
    """
    with opened(path) as file:
        yield from _Reader(CsvFile(path, file), normalise, now, actor, restore=restore).events()


class _Reader:
    """One pass over one file."""

    def __init__(
        self, file: CsvFile, normalise: Callable[[str], str], now: datetime, actor: str, *, restore: bool
    ) -> None:
        self._file, self._normalise = file, normalise
        self._now, self._actor, self._restore = now, actor, restore
        self._times: dict[str, datetime] = {}  # a whole file often has a handful of different times

    def events(self) -> Iterator[Told]:
        """Give the events; raise BadInput at the end if any row was bad."""
        columns = self._file.header(COLUMNS, REQUIRED)
        for row in self._file.rows():
            try:
                told = self._event(dict(zip(columns, row, strict=True)))
            except PbxguardError as exc:
                self._file.note(str(exc).removeprefix("registry: "))
            else:
                yield told
        self._file.raise_if_wrong()

    def _event(self, given: dict[str, str]) -> Told:
        if not self._restore:
            given = {**given, **dict.fromkeys(_OURS, "")}
        number, caller = given["number"].strip(), given.get("caller", "").strip()
        recorded = given.get("recorded_at", "").strip()
        actor, via = given.get("actor", ""), given.get("via", "")
        if len(via) > _MAX_VIA or not via.isprintable():
            raise BadInput(f"column via: {shown(via)} is longer than {_MAX_VIA} characters or not printable")
        until = given.get("until", "").strip()
        event = ConsentEvent(
            number=self._normalise(number),
            call_class=_one_of("class", given["class"], CallClass),
            channel=str(_one_of("channel", given.get("channel") or Channel.VOICE, Channel)),
            verb=_one_of("verb", given["verb"], Verb),
            effective_at=self._time("effective_at", given["effective_at"].strip()),
            recorded_at=self._time("recorded_at", recorded) if recorded else self._now,
            actor=actor or self._actor,
            via=via or "import",
            until=self._time("until", until) if until else None,
            caller=self._normalise(caller) if caller else "",
            evidence=given.get("evidence", ""),
        )
        check_event(event)
        if event.verb is Verb.RESET and not self._restore:
            raise BadInput(
                "column verb: only the undoing of a cut-over resets; --restore takes it from an exported ledger"
            )
        if event.recorded_at > self._now:
            # what is dated ahead of its record would be taken for something that holds
            raise BadInput(f"column recorded_at: {shown(recorded)} is in the future; leave it empty for now")
        if recorded and actor and via:
            return event, _NOTHING
        return event, frozenset(name for name, text in zip(_OURS, (recorded, actor, via), strict=True) if not text)

    def _time(self, column: str, text: str) -> datetime:
        known = self._times.get(text)
        if known is not None:
            return known
        try:
            at = datetime.fromisoformat(text)
            if at.tzinfo is not None:
                at = at.astimezone(UTC)
        except (ValueError, OverflowError) as exc:
            raise BadInput(f"column {column}: {shown(text)} is no time such as 2027-01-01T00:00:00+08:00") from exc
        if at.tzinfo is None:
            raise BadInput(f"column {column}: {shown(text)} has no time zone; write 2027-01-01T00:00:00+08:00")
        if len(self._times) >= _REMEMBERED:
            self._times.clear()
        self._times[text] = at
        return at


@lru_cache(maxsize=256)
def _one_of(column: str, text: str, known: type[StrEnum]) -> Any:
    word = text.strip().lower()
    try:
        return known(word)
    except ValueError as exc:
        names = ", ".join(known)
        raise BadInput(f"column {column}: {shown(text.strip())} is not one of {names}") from exc
