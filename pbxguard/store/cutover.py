"""Cut-overs: whole cohorts of subscribers who never answered are closed, batch by batch, and opened again.

Knows who has answered and which recorded calls would have been lost. Does not know provinces, zones or which
class of CLI belongs to which class of consent (the pack does), nor when to stop (the command line does).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Case,
    ColumnElement,
    Connection,
    Row,
    ScalarSelect,
    Select,
    and_,
    case,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from pbxguard.errors import BadInput, UnknownName
from pbxguard.screening.registry import CUTOVER, CallClass, ConsentEvent, Verb
from pbxguard.store.database import Database
from pbxguard.store.ledger import append, event_of
from pbxguard.store.schema import (
    consent_event,
    consent_state,
    cutover,
    cutover_batch,
    decision,
    from_micros,
    subscriber,
    to_micros,
)
from pbxguard.store.upsert import batches

KEPT_BY_LIST = ("subscriber_allowlist", "emergency_callee")
"""Reasons of calls that a closing would not have stopped (steps 1 and 6 of the policy)."""


@dataclass(frozen=True, slots=True)
class Cohort:
    """Which subscribers, and what is closed for them.

    Attributes:
        channel: ``voice`` or ``sms``.
        province: Province of the pack, or "" for all; ``operator`` likewise.
    """

    classes: tuple[CallClass, ...]
    channel: str = "voice"
    province: str = ""
    operator: str = ""


@dataclass(frozen=True, slots=True)
class Answers:
    """How a cohort has answered as to one class: opened, closed, opened until a time that is over, or not."""

    call_class: CallClass
    opened: int
    closed: int
    ended: int
    never: int

    @property
    def to_close(self) -> int:
        """Those whom a cut-over closes: nothing that they asked for is in force."""
        return self.ended + self.never


@dataclass(frozen=True, slots=True)
class Loser:
    """A subscriber to be closed, and the calls of late that would not have come through.

    Attributes:
        classes: What would be closed.
        calls: Calls of these classes that were let through, by class.
        last: When the last of them was, or None.
    """

    number: str
    operator: str
    province: str
    language: str
    classes: tuple[CallClass, ...]
    calls: Mapping[CallClass, int]
    last: datetime | None

    @property
    def total(self) -> int:
        """All these calls."""
        return sum(self.calls.values())


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch of a cut-over; a subscriber with two classes has two events.

    Attributes:
        kept: Events that were left as they are when it was undone, because the subscriber has opened or
            closed since; None while it is not undone.
    """

    number: int
    subscribers: int
    events: int
    recorded_at: datetime
    undone_at: datetime | None = None
    kept: int | None = None


@dataclass(frozen=True, slots=True)
class Cutover:
    """A cut-over that was begun.

    Attributes:
        effective_at: From when on those who had not answered are closed.
        finished_at: When the last subscriber of the cohort had been looked at, or None.
        undone_at: When it was undone as a whole, or None.
    """

    name: str
    cohort: Cohort
    effective_at: datetime
    begun_at: datetime
    finished_at: datetime | None
    undone_at: datetime | None
    batches: tuple[Batch, ...] = ()


class Cutovers(Database):
    """Looks ahead at a cut-over, closes in batches, and takes batches back. Numbers are in home form."""

    def answers(self, cohort: Cohort, at: datetime) -> tuple[int, tuple[Answers, ...]]:
        """Give how many subscribers a cut-over would close at that time, and the answers by class."""
        inner = _cohort(cohort, at).subquery()
        columns: list[ColumnElement[int]] = [
            func.coalesce(func.sum(case((_any_to_close(inner, cohort), 1), else_=0)), 0)
        ]
        for place in range(len(cohort.classes)):
            columns += [func.count(case((inner.c[f"answer_{place}"] == word, 1))) for word in _ANSWERS]
        with self.reading() as connection:
            total, *counts = connection.execute(select(*columns)).one()
        each = [counts[start : start + 4] for start in range(0, len(counts), 4)]
        return total, tuple(Answers(c, *four) for c, four in zip(cohort.classes, each, strict=True))

    def losers(
        self,
        cohort: Cohort,
        at: datetime,
        since: datetime,
        groups: Mapping[CallClass, Sequence[str]],
        *,
        everyone: bool = False,
    ) -> Iterator[Loser]:
        """Give the subscribers who would lose calls, those with the most first, streaming one consistent view.

        Calls that a consent for that one caller or the subscriber's own allowlist lets through stay, so they
        do not count; nor does a diverted call count for the one who diverted it.

        Args:
            cohort: Whom the cut-over is about.
            at: When it would be applied.
            since: Recorded calls from then until ``at`` count.
            groups: The classes of a CLI (``intl_hk`` ...) that belong to each class of consent.
            everyone: Also give those to be closed who would have lost nothing.
        """
        with self.reading() as connection:
            query = losers_query(cohort, at, since, groups, everyone=everyone)
            for row in connection.execution_options(yield_per=1000).execute(query):
                number, operator, province, language = row[:4]
                closing = [place for place in range(len(cohort.classes)) if row[4 + place] in _TO_CLOSE]
                calls = row[4 + len(cohort.classes) :]
                yield Loser(
                    number=number,
                    operator=operator,
                    province=province,
                    language=language,
                    classes=tuple(cohort.classes[place] for place in closing),
                    calls={cohort.classes[place]: calls[place] for place in closing},
                    last=from_micros(row.last),
                )

    def cutover(self, name: str) -> Cutover | None:
        """Give a cut-over with its batches, or None."""
        with self.reading() as connection:
            return _cutover(connection, name)

    def known_cutover(self, name: str) -> Cutover:
        """Give a cut-over with its batches.

        Raises:
            UnknownName: There is none of that name; the message lists those there are.
        """
        with self.reading() as connection:
            return _known(connection, name, self)

    def cutover_names(self) -> tuple[str, ...]:
        """Give the names of all cut-overs, the newest first."""
        with self.reading() as connection:
            return tuple(connection.execute(select(cutover.c.name).order_by(cutover.c.begun_at.desc())).scalars())

    def begin_cutover(self, name: str, cohort: Cohort, effective_at: datetime, now: datetime) -> Cutover:
        """Begin a cut-over, or give the one of that name to go on with.

        Raises:
            BadInput: It lies ahead, was begun for another cohort or date, or was undone.
        """
        if effective_at > now:
            raise BadInput(
                f"cut-over {name}: its date is still to come; apply it from then on, so that nobody is closed who "
                "registers before"
            )
        with self.writing() as connection:
            held = _cutover(connection, name)
            if held is None:
                values = {
                    "name": name,
                    "channel": cohort.channel,
                    "classes": " ".join(cohort.classes),
                    "province": cohort.province,
                    "operator": cohort.operator,
                    "effective_at": to_micros(effective_at),
                    "begun_at": to_micros(now),
                }
                connection.execute(insert(cutover), [values])
                return Cutover(name, cohort, effective_at, now, None, None)
        if held.undone_at is not None:
            raise _undone(name)
        if (held.cohort, held.effective_at) != (cohort, effective_at):
            raise BadInput(
                f"cut-over {name} was begun for another cohort or date; give --name {name} alone to go on with it, "
                "or another name"
            )
        return held

    def close_batch(self, name: str, size: int, now: datetime, actor: str) -> Batch | None:
        """Close the next subscribers of a cut-over, at most ``size``, and give that batch; None at the end.

        The batch and its events are committed together, so a run that is broken off loses or repeats none.
        The subscribers are looked for before the write lock is taken, and looked at again under it: whoever
        opens in between is left out.

        Raises:
            BadInput: The cut-over was undone.
            UnknownName: There is none of that name.
        """
        held = self._running(name)
        if held.finished_at is not None:
            return None
        after = self._upto(name)
        while True:
            with self.reading() as connection:
                query = _to_close(held.cohort, now).where(subscriber.c.number > after)
                found = connection.execute(query.order_by(subscriber.c.number).limit(size)).scalars().all()
            if not found:
                with self.writing() as connection:
                    _refuse_undone(connection, name)
                    connection.execute(
                        update(cutover)
                        .where(cutover.c.name == name, cutover.c.finished_at.is_(None))
                        .values(finished_at=to_micros(now))
                    )
                return None
            with self.writing() as connection:
                _refuse_undone(connection, name)  # it may have been while the subscribers were looked for
                done = _last_batch(connection, name)
                if done is not None and done.upto > after:
                    after = done.upto  # another run of the same cut-over was quicker
                    continue
                number = 1 if done is None else done.batch + 1
                closed = [
                    event
                    for numbers in batches(found, 500)
                    for event in _closings(connection, held, numbers, number, now, actor)
                ]
                if closed:
                    return _write_batch(connection, name, number, closed, found[-1], now)
            after = found[-1]

    def undo_batch(self, name: str, batch: int, now: datetime, actor: str) -> Batch:
        """Bring the numbers of a batch back to "never answered" and give what became of it.

        Only those whose state still stems from this batch: who has opened or closed since is left alone. A
        batch that is undone already stays as it is.

        Raises:
            UnknownName: There is no such cut-over or batch.
        """
        with self.writing() as connection:
            held = _known(connection, name, self)
            found = next((each for each in held.batches if each.number == batch), None)
            if found is None:
                raise UnknownName(f"cut-over {name} has no batch {batch}; it has {len(held.batches)}")
            if found.undone_at is not None:
                return found
            row = connection.execute(_batch_rows(name).where(cutover_batch.c.batch == batch)).one()
            lines = connection.execute(_standing_lines(row.first_id, row.last_id)).all()
            append(connection, [_reset(event_of(line), batch, now, actor) for line in lines])
            kept = found.events - len(lines)
            connection.execute(
                update(cutover_batch)
                .where(cutover_batch.c.name == name, cutover_batch.c.batch == batch)
                .values(undone_at=to_micros(now), kept=kept)
            )
        return Batch(batch, found.subscribers, found.events, found.recorded_at, now, kept)

    def stop_cutover(self, name: str, now: datetime) -> Cutover:
        """Note that a cut-over is to be undone as a whole, so that it cannot go on, and give it.

        Raises:
            UnknownName: There is none of that name.
        """
        with self.writing() as connection:
            held = _known(connection, name, self)
            if held.undone_at is None:
                connection.execute(update(cutover).where(cutover.c.name == name).values(undone_at=to_micros(now)))
        return held

    def _running(self, name: str) -> Cutover:
        held = self.known_cutover(name)
        if held.undone_at is not None:
            raise _undone(name)
        return held

    def _upto(self, name: str) -> str:
        with self.reading() as connection:
            done = _last_batch(connection, name)
        return "" if done is None else str(done.upto)


_OPENED, _CLOSED, _ENDED, _NEVER = _ANSWERS = ("open", "closed", "ended", "never")
_TO_CLOSE = (_ENDED, _NEVER)
_s = consent_state.c


def _about(call_class: CallClass, channel: str) -> ColumnElement[bool]:
    return and_(
        _s.number == subscriber.c.number, _s.call_class == str(call_class), _s.channel == channel, _s.caller == ""
    )


def _answer(call_class: CallClass, channel: str, now: int) -> ColumnElement[str]:
    """What a subscriber has answered as to one class: the newest that has begun, else what is dated ahead."""
    word: Case[str] = case(
        (_s.verb == str(Verb.CLOSE), _CLOSED),
        (and_(_s.verb == str(Verb.OPEN), or_(_s.until.is_(None), _s.until > now)), _OPENED),
        (_s.verb == str(Verb.OPEN), _ENDED),
        else_=_NEVER,
    )
    begun = case((_s.since <= now, 0), else_=1)
    newest = select(word).where(_about(call_class, channel)).order_by(begun, _s.since.desc()).limit(1)
    return func.coalesce(newest.scalar_subquery(), _NEVER)


def _cohort(cohort: Cohort, at: datetime) -> Select[Any]:
    """The subscribers of a cohort and their answers, ``answer_0`` as to the first class, and so on."""
    now = to_micros(at)
    query = select(
        subscriber,
        *(_answer(each, cohort.channel, now).label(f"answer_{n}") for n, each in enumerate(cohort.classes)),
    )
    if cohort.province:
        query = query.where(subscriber.c.province == cohort.province)
    if cohort.operator:
        query = query.where(subscriber.c.operator == cohort.operator)
    return query


def _any_to_close(rows: Any, cohort: Cohort) -> ColumnElement[bool]:
    return or_(*(rows.c[f"answer_{n}"].in_(_TO_CLOSE) for n in range(len(cohort.classes))))


def _to_close(cohort: Cohort, at: datetime) -> Select[Any]:
    now = to_micros(at)
    query = _cohort(cohort, at).with_only_columns(subscriber.c.number)
    return query.where(or_(*(_answer(each, cohort.channel, now).in_(_TO_CLOSE) for each in cohort.classes)))


def losers_query(
    cohort: Cohort, at: datetime, since: datetime, groups: Mapping[CallClass, Sequence[str]], *, everyone: bool
) -> Select[Any]:
    """Write the statement of ``Cutovers.losers``: subscriber, answers, calls by class, then the last call."""
    d, now = decision.c, to_micros(at)
    one = consent_state.alias("one")
    of_class = {each: d.cli_class.in_(list(groups.get(each, ()))) for each in cohort.classes}
    caller_opened = exists().where(
        one.c.number == d.callee_key,
        one.c.caller == d.cli_key,
        one.c.caller != "",
        one.c.channel == cohort.channel,
        or_(*(and_(one.c.call_class == str(each), matched) for each, matched in of_class.items())),
        one.c.verb == str(Verb.OPEN),
        one.c.since <= now,
        or_(one.c.until.is_(None), one.c.until > now),
    )
    calls = (
        select(
            d.callee_key.label("number"),
            *(func.count(case((matched, 1))).label(f"calls_{n}") for n, matched in enumerate(of_class.values())),
            func.max(d.at).label("last"),
        )
        .where(
            d.at >= to_micros(since),
            d.at < now,
            d.channel == cohort.channel,
            d.verdict == "allow",
            d.reason.not_in(KEPT_BY_LIST),
            d.callee_key.is_not(None),
            or_(*of_class.values()),
            ~caller_opened,
        )
        .group_by(d.callee_key)
        .subquery("calls")
    )
    who = _cohort(cohort, at).subquery("who")
    lost = [
        case((who.c[f"answer_{n}"].in_(_TO_CLOSE), func.coalesce(calls.c[f"calls_{n}"], 0)), else_=0)
        for n in range(len(cohort.classes))
    ]
    total: ColumnElement[int] = literal(0)
    for each in lost:
        total += each
    query = select(
        who.c.number,
        who.c.operator,
        who.c.province,
        who.c.language,
        *(who.c[f"answer_{n}"] for n in range(len(cohort.classes))),
        *(each.label(f"lost_{n}") for n, each in enumerate(lost)),
        calls.c.last.label("last"),
    ).where(_any_to_close(who, cohort))
    joined = query.select_from(calls.join(who, who.c.number == calls.c.number, isouter=False))
    if everyone:
        joined = query.select_from(who.join(calls, who.c.number == calls.c.number, isouter=True))
    else:
        joined = joined.where(total > 0)
    return joined.order_by(total.desc(), who.c.number)


def _newest_since(call_class: CallClass, channel: str, now: int) -> ScalarSelect[int]:
    newest = select(func.max(_s.since)).where(_about(call_class, channel), _s.since <= now)
    return newest.scalar_subquery()


def _closings(
    connection: Connection, held: Cutover, numbers: Sequence[str], batch: int, now: datetime, actor: str
) -> Iterator[ConsentEvent]:
    """Give the events that close those of ``numbers`` who have not answered."""
    cohort, micros = held.cohort, to_micros(now)
    query = _cohort(cohort, now).add_columns(
        *(_newest_since(each, cohort.channel, micros).label(f"since_{n}") for n, each in enumerate(cohort.classes))
    )
    rows = connection.execute(query.where(subscriber.c.number.in_(numbers)).order_by(subscriber.c.number)).mappings()
    for row in rows:
        for place, call_class in enumerate(cohort.classes):
            if row[f"answer_{place}"] not in _TO_CLOSE:
                continue
            newest = from_micros(row[f"since_{place}"])
            yield ConsentEvent(
                number=row["number"],
                call_class=call_class,
                channel=cohort.channel,
                verb=Verb.CLOSE,
                # an opening that has run out since then, or a closing taken back, would otherwise be the newer one
                effective_at=held.effective_at if newest is None else max(held.effective_at, newest),
                recorded_at=now,
                actor=f"cutover:{held.name}",
                via=CUTOVER,
                evidence=f"batch {batch}, by {actor}",
            )


def _write_batch(
    connection: Connection, name: str, number: int, closed: list[ConsentEvent], upto: str, now: datetime
) -> Batch:
    first, last = append(connection, closed)
    subscribers = len({event.number for event in closed})
    values = {
        "name": name,
        "batch": number,
        "first_id": first,
        "last_id": last,
        "subscribers": subscribers,
        "upto": upto,
        "recorded_at": to_micros(now),
    }
    connection.execute(insert(cutover_batch), [values])
    return Batch(number, subscribers, len(closed), now)


def _standing_lines(first: int, last: int) -> Select[Any]:
    """Those of some lines that still are the newest of what they are about, as ``registry.fold`` has it.

    An own act that was recorded later has overtaken a line whatever its date.
    """
    e, later = consent_event.c, consent_event.alias("later")
    overtaken = exists().where(
        later.c.number == e.number,
        later.c.call_class == e.call_class,
        later.c.channel == e.channel,
        later.c.caller == e.caller,
        or_(
            later.c.effective_at > e.effective_at,
            and_(later.c.effective_at == e.effective_at, later.c.id > e.id),
            and_(later.c.via != CUTOVER, later.c.id > e.id),
        ),
    )
    return select(consent_event).where(e.id.between(first, last), ~overtaken).order_by(e.id)


def _reset(event: ConsentEvent, batch: int, now: datetime, actor: str) -> ConsentEvent:
    return ConsentEvent(
        number=event.number,
        call_class=event.call_class,
        channel=event.channel,
        verb=Verb.RESET,
        # as if it had never been closed; of two with the same time the later line holds
        effective_at=event.effective_at,
        recorded_at=now,
        actor=event.actor,
        via=CUTOVER,
        evidence=f"batch {batch} undone, by {actor}",
    )


def _known(connection: Connection, name: str, store: Cutovers) -> Cutover:
    held = _cutover(connection, name)
    if held is None:
        known = ", ".join(store.cutover_names()[:10]) or "none"
        raise UnknownName(f"no cut-over {name[:40]!r}; there are {known}")
    return held


def _undone(name: str) -> BadInput:
    return BadInput(f"cut-over {name} was undone; begin a new one under another name")


def _refuse_undone(connection: Connection, name: str) -> None:
    if connection.execute(select(cutover.c.undone_at).where(cutover.c.name == name)).scalar() is not None:
        raise _undone(name)


def _batch_rows(name: str) -> Select[Any]:
    return select(cutover_batch).where(cutover_batch.c.name == name)


def _last_batch(connection: Connection, name: str) -> Row[Any] | None:
    return connection.execute(_batch_rows(name).order_by(cutover_batch.c.batch.desc()).limit(1)).first()


def _cutover(connection: Connection, name: str) -> Cutover | None:
    row = connection.execute(select(cutover).where(cutover.c.name == name)).first()
    if row is None:
        return None
    done = connection.execute(_batch_rows(name).order_by(cutover_batch.c.batch)).all()
    return Cutover(
        name=row.name,
        cohort=Cohort(tuple(map(CallClass, row.classes.split())), row.channel, row.province, row.operator),
        effective_at=from_micros(row.effective_at),
        begun_at=from_micros(row.begun_at),
        finished_at=from_micros(row.finished_at),
        undone_at=from_micros(row.undone_at),
        batches=tuple(
            Batch(
                number=b.batch,
                subscribers=b.subscribers,
                events=b.last_id - b.first_id + 1,
                recorded_at=from_micros(b.recorded_at),
                undone_at=from_micros(b.undone_at),
                kept=b.kept,
            )
            for b in done
        ),
    )
