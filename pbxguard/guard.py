"""The only place that joins store, clock and policy under a deadline, and where failure becomes an outcome.

A guard answers every call: with Allow or Block, or with Failed when it cannot know. It never raises, and it
never turns trouble of its own into one of the other two answers. What a failed decision means for the call is
the trunk's setting, applied by ``treatment``; when the guard itself is not there, by the dialplan.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from math import inf
from time import monotonic, perf_counter_ns, sleep
from typing import Any, TypeVar

import structlog
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from phonenumbers import PhoneMetadata

from pbxguard.config import Settings
from pbxguard.errors import PbxguardError
from pbxguard.screening import policy
from pbxguard.screening.call import Basis, Call, Failed, Trunk, Verdict
from pbxguard.screening.pack import Pack
from pbxguard.screening.treatment import ASTERISK, Capabilities, Treatment, treatment_for
from pbxguard.store import DecisionRow, Store

log = structlog.get_logger()

#: How long the warm-up may take, seconds: a database that does not answer must not keep the guard from answering.
_WARM_UP_S = 5.0


@dataclass(frozen=True, slots=True)
class Decided:
    """A verdict, its treatment, and what it took.

    Attributes:
        elapsed_us: From the call's arrival here to the answer, microseconds.
    """

    call: Call
    verdict: Verdict
    treatment: Treatment
    elapsed_us: int
    lists_version: str = ""


class Guard:
    """Decides calls for the adapters.

    Args:
        store: Lists, registry and subscribers; used from several threads.
        pack: The country pack.
        settings: Deadline and number of workers.
        clock: The time of a call, UTC; tests give their own.
        recording: Keep decisions for *explain*; False for what-if questions.
        trace: Note what each rule saw; None is as ``recording``.
    """

    def __init__(
        self,
        store: Store,
        pack: Pack,
        settings: Settings,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        recording: bool = True,
        trace: bool | None = None,
    ) -> None:
        self.settings = settings
        self.pack = pack
        self.clock = clock
        self._store = store
        self._deadline = settings.guard.deadline_ms / 1000
        # SQLite is asked in threads: a stalled disk must not stall the calls that need no disk.
        self._workers = _Workers(settings.guard.workers)
        self._prompts = FixedWindowRateLimiter(MemoryStorage())
        self._diary = _Diary(store) if recording else None
        self._trace = recording if trace is None else trace

    def close(self) -> None:
        """Write what is still to be written and end the workers."""
        self._workers.close()
        if self._diary is not None:
            self._diary.close()

    def decide(self, call: Call, capabilities: Capabilities) -> Decided:
        """Decide in this thread, without a deadline; any trouble is a ``Failed`` verdict."""
        started = perf_counter_ns()
        language = self.pack.home_language
        version = ""
        try:
            heard = policy.read(call, self.pack)
            facts = self._store.facts(heard.cli.key, heard.callee_keys, heard.tags)
            verdict = policy.decide(call, heard, facts, self.pack, trace=self._trace, stopwatch=perf_counter_ns)
            version = self._store.lists_version() if verdict.basis.entry else ""
            subscriber = facts.callees.get(heard.callee.key or "")
            if subscriber is not None:
                language = subscriber.language
        except PbxguardError as error:
            verdict = self._without_store(call, str(error))
        except Exception as error:
            # Whatever is wrong, the caller must get an answer: the failure policy gives it.
            with suppress(OSError):
                log.exception("decision failed", call_id=call.call_id)
            verdict = self._without_store(call, f"internal error ({type(error).__name__}); see the log")
        return self._decided(call, verdict, capabilities, started, language, version)

    async def decide_soon(self, call: Call, capabilities: Capabilities) -> Decided:
        """Decide within the deadline, or answer ``Failed`` when it passes; records the decision."""
        started = perf_counter_ns()
        begun = self._begin(call, capabilities, started)
        if isinstance(begun, Future):
            pending = asyncio.wrap_future(begun)
            await asyncio.wait({pending}, timeout=self._deadline)
            begun = self._ended(begun, call, capabilities, started)
            pending.cancel()
        self.record(begun)
        return begun

    def decide_within(
        self, call: Call, capabilities: Capabilities, wait: Callable[["Future[Decided]", float], object]
    ) -> Decided:
        """The same for a caller that waits in a way of its own.

        Args:
            call: To be decided.
            capabilities: Of the adapter.
            wait: Returns when the decision is done or that many seconds have passed.
        """
        started = perf_counter_ns()
        begun = self._begin(call, capabilities, started)
        if isinstance(begun, Future):
            wait(begun, self._deadline)
            begun = self._ended(begun, call, capabilities, started)
        self.record(begun)
        return begun

    def warm_up(self) -> bool:
        """Have everything done once that is slow the first time; whether it came to its end in 5 s.

        For the time before the first call. A statement takes 1.5 to 3 ms to compile, in each thread that meets it
        at the same moment; the numbers of a country are a module to load; each connection is opened. The first dozen
        decisions took up to 13 ms each for it on an idle machine and up to 157 ms on a busy one. Nothing is recorded,
        and no trunk's prompts are counted.
        """
        began = monotonic()
        try:
            parts = self._workers.submit_to_all(self._rehearse)
            for part in parts:
                part.result(timeout=max(0.0, began + _WARM_UP_S - monotonic()))
        except Exception as error:  # noqa: BLE001 - a guard that is cold, or has no database, still answers
            log.warning("not warmed up", why=str(error) or type(error).__name__)
            return False
        log.debug("warmed up", workers=len(parts), took_ms=round((monotonic() - began) * 1000))
        return True

    def late(self, call: Call, capabilities: Capabilities, started: int) -> Decided:
        """The answer to a call that came at ``started`` (``perf_counter_ns``) and whose deadline has passed.

        It is not recorded: that is the caller's to do.
        """
        return self._failed(call, capabilities, started, f"no decision within {self.settings.guard.deadline_ms} ms")

    def record(self, decided: Decided) -> None:
        """Note the decision: one canonical log line now, the database row soon after."""
        row = decision_row(decided)
        if self._diary is not None:
            self._diary.add(row)
        # A full disk under the log, or a reader of it that has gone, costs the line and never the call.
        with suppress(OSError):
            log.info(
                "call decided",
                call_id=row.call_id,
                channel=row.channel,
                trunk=row.trunk,
                cli=row.cli_raw,
                cli_key=row.cli_key,
                cli_class=row.cli_class,
                callee=row.callee_raw,
                verdict=row.verdict,
                reason=row.reason,
                labels=list(row.labels),
                rule=row.rule,
                status=row.sip_status,
                elapsed_us=row.elapsed_us,
            )

    def forget_old(self) -> int:
        """Remove the decisions that are past the site's retention; give how many.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        return self._store.prune_decisions(self.clock() - timedelta(days=self.settings.store.keep_decisions_days))

    def _begin(self, call: Call, capabilities: Capabilities, started: int) -> "Future[Decided] | Decided":
        """Give the call to the workers; the answer at once where they cannot take it."""
        try:
            return self._workers.submit(lambda: self.decide(call, capabilities))
        except queue.Full:
            return self._failed(
                call, capabilities, started, f"{self._workers.most_waiting} calls wait for the database already"
            )
        except RuntimeError as error:
            # The workers are gone: the guard is shutting down while a call comes in.
            return self._failed(call, capabilities, started, f"the guard is closing: {error}")

    def _ended(self, begun: "Future[Decided]", call: Call, capabilities: Capabilities, started: int) -> Decided:
        """The answer when the wait is over; work that no worker has begun is given up."""
        if begun.cancel() or not begun.done():
            return self.late(call, capabilities, started)
        return begun.result()

    def _rehearse(self, number: int, every: threading.Barrier) -> None:
        """One worker's part of the warm-up; the first one does what all share."""
        if number == 0:
            PhoneMetadata.load_all()
            for callees in (("1",), ("1", "2")):
                self._store.facts(None, callees)
                # A statement for each length of a CLI, as many as E.164 numbers and their plus have, at home (its
                # class is a tag) and abroad (group and region too).
                for length in range(3, 17):
                    for tags in (("x",), ("x", "y", "z")):
                        self._store.facts("1" * length, callees, tags)
            self._store.lists_version()
            # A trunk without a name: the prompts of those in the settings are not counted.
            for kind in {trunk.kind for trunk in self.settings.trunks.values()} & self.pack.trunks.keys():
                for cli in (*self.pack.examples, "+85261234567", ""):
                    call = Call("", self.clock(), Trunk("", kind), cli, self.pack.examples[0])
                    self.decide(call, ASTERISK)
        every.wait(_WARM_UP_S)
        # All at the same time, so that each has a connection of its own.
        with self._store.reading() as connection:
            connection.exec_driver_sql("SELECT 1")
            every.wait(_WARM_UP_S)

    def _without_store(self, call: Call, why: str) -> Verdict:
        """``Failed``, unless the rules that need no store decide: nobody is kept from an emergency number.

        The roaming look-up is in the store, so a national mobile from abroad is of unknown roaming here (unless the
        trunk's own answer is ``yes``): it is not refused for want of a note that could not be read.
        """
        try:
            heard = policy.read(call, self.pack)
            return policy.decide_without_facts(call, heard, self.pack, why)
        except Exception:  # noqa: BLE001 - the trouble at hand may be this very one, and it is logged already
            return Failed(why)

    def _failed(self, call: Call, capabilities: Capabilities, started: int, why: str) -> Decided:
        verdict = self._without_store(call, why)
        return self._decided(call, verdict, capabilities, started, self.pack.home_language, "")

    def _decided(
        self,
        call: Call,
        verdict: Verdict,
        capabilities: Capabilities,
        started: int,
        language: str,
        version: str,
    ) -> Decided:
        treat = partial(
            treatment_for,
            verdict,
            trunk=call.trunk,
            capabilities=capabilities,
            pack=self.pack,
            language=language,
            has_offer=call.has_offer,
            display_name=call.display_name,
        )
        treatment = treat()
        if treatment.prompt and not self._may_prompt(call.trunk):
            treatment = treat(may_prompt=False)
        elapsed = (perf_counter_ns() - started) // 1000
        return Decided(call, verdict, treatment, elapsed, version)

    def _may_prompt(self, trunk: Trunk) -> bool:
        limit = trunk.prompts_per_minute
        return limit > 0 and self._prompts.hit(RateLimitItemPerMinute(limit), trunk.name)


def decision_row(decided: Decided) -> DecisionRow:
    """The row that *explain* looks up."""
    call, verdict, treatment = decided.call, decided.verdict, decided.treatment
    basis = verdict.basis
    entry = basis.entry
    return DecisionRow(
        call_id=call.call_id,
        at=call.at,
        channel=call.channel,
        trunk=call.trunk.name,
        cli_raw=call.cli[:200],
        cli_key=basis.cli.key if basis.cli else None,
        cli_class=basis.cli.number_class if basis.cli else "",
        callee_raw=call.callee[:200],
        callee_key=basis.callee.key if basis.callee else None,
        verdict="failed" if isinstance(verdict, Failed) else type(verdict).__name__.lower(),
        reason=verdict.reason,
        labels=tuple(verdict.labels),
        rule=basis.rule,
        detail=verdict.why if isinstance(verdict, Failed) else basis.detail,
        entry="" if entry is None else f"{entry.pattern} on list {entry.name!r} (source: {entry.source or '-'})",
        pack=basis.pack,
        lists_version=decided.lists_version,
        sip_status=treatment.status,
        prompt=treatment.prompt,
        elapsed_us=decided.elapsed_us,
        extra={
            "connected": treatment.connect,
            "display": treatment.display,
            "languages": list(treatment.languages),
            "mode": treatment.mode,
            "asserted": call.asserted,
            "diverted_by": list(call.diverted_by),
            "display_name": call.display_name,
            "user_agent": call.user_agent,
            "source": call.source,
            "has_offer": call.has_offer,
            "withheld": treatment.withhold,
            "legal_basis": basis.legal_basis,
            "opted_in": basis.opted_in,
            **_trace_of(basis),
        },
    )


def _trace_of(basis: Basis) -> dict[str, object]:
    """What the rules saw, without those that are for other calls; nothing where there was no trace."""
    found: dict[str, object] = {}
    if basis.steps:
        found["steps"] = [
            [step.rule, step.outcome, step.saw, step.ns] for step in basis.steps if step.outcome != "skipped"
        ]
    if basis.shadow:
        found["shadow"] = [list(hit) for hit in basis.shadow]
    return found


#: The most calls that wait for one worker. At a millisecond a decision that is a fifth of the usual deadline.
_WAITING_A_WORKER = 64

_T = TypeVar("_T")
_Work = tuple["Future[Any]", Callable[[], Any]]


class _Workers:
    """Threads that decide, behind a queue with an end.

    ``ThreadPoolExecutor`` has neither of the two things that a stalled disk asks for: its queue grows without
    bound, cancelled work included, and the interpreter waits for its threads when it ends.
    """

    def __init__(self, number: int) -> None:
        self.most_waiting = _WAITING_A_WORKER * number
        self._number = number
        self._waiting: queue.Queue[_Work | None] = queue.Queue(self.most_waiting)
        self._closed = False
        for n in range(number):
            threading.Thread(target=self._work, name=f"decide_{n}", daemon=True).start()

    def submit(self, work: Callable[[], _T]) -> "Future[_T]":
        """Have it done by the next worker that is free.

        Raises:
            queue.Full: Too much is waiting; work that was cancelled counts until a worker has dropped it.
            RuntimeError: Closed.
        """
        if self._closed:
            raise RuntimeError("no new work")
        future: Future[_T] = Future()
        self._waiting.put_nowait((future, work))
        return future

    def submit_to_all(self, work: Callable[[int, threading.Barrier], None]) -> list["Future[None]"]:
        """Have it done once by every worker: with its number, and a barrier at which all can meet."""
        every = threading.Barrier(self._number)

        def part(number: int) -> None:
            try:
                work(number, every)
            except BaseException:
                every.abort()
                raise

        return [self.submit(partial(part, number)) for number in range(self._number)]

    def close(self) -> None:
        """Drop what waits and let the threads end; one that is stuck is left behind."""
        self._closed = True
        with suppress(queue.Empty):
            while True:
                work = self._waiting.get_nowait()
                if work is not None:
                    work[0].cancel()
        with suppress(queue.Full):
            for _ in range(self._number):
                self._waiting.put_nowait(None)

    def _work(self) -> None:
        while (taken := self._waiting.get()) is not None:
            future, work = taken
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:  # noqa: BLE001 - the caller's to handle, this thread goes on
                    future.set_exception(error)
            # An idle thread must not hold on to the last call.
            del taken, future, work


#: How long the end of the program waits for the last decisions to be written, seconds.
_CLOSING_S = 5.0

#: How long the end waits before it asks a locked database again, seconds.
_CLOSING_PAUSE_S = 0.2

#: How often a locked database is asked while the guard runs.
_MOST_ATTEMPTS = 30

#: How long the first decision of a batch waits for others, seconds; *explain* is late by no more.
_GATHER_S = 0.25


@dataclass
class _Diary:
    """Writes decisions behind the calls, in batches: a locked database costs a late record, never a call."""

    store: Store
    _rows: queue.Queue[DecisionRow | None] = field(default_factory=lambda: queue.Queue(20_000))
    _lost: int = 0
    _closing: threading.Event = field(default_factory=threading.Event)
    _until: float = inf
    _held: int = 0

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._write, name="diary", daemon=True)
        self._thread.start()

    def add(self, row: DecisionRow) -> None:
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self._lost += 1
            if self._lost in (1, 10, 100) or self._lost % 1000 == 0:
                log.warning("decisions not recorded: the database does not keep up", lost=self._lost)

    def close(self) -> None:
        """Write what is left; a locked database is asked again until ``_CLOSING_S`` have passed.

        One that does not answer by then costs these records, and does not hold up the end.
        """
        self._until = until = monotonic() + _CLOSING_S
        self._closing.set()
        with suppress(queue.Full):
            self._rows.put(None, timeout=_CLOSING_S)
        self._thread.join(timeout=max(0.0, until - monotonic()))
        if self._thread.is_alive():
            with suppress(OSError):
                log.error("decisions lost: the database does not answer", rows=self._rows.qsize() + self._held)

    def _write(self) -> None:
        ending = False
        while not ending:
            batch = [self._rows.get()]
            # A transaction costs as much as a hundred rows, so the rows of a moment go together.
            self._closing.wait(_GATHER_S)
            while len(batch) < 1000:
                try:
                    batch.append(self._rows.get_nowait())
                except queue.Empty:
                    break
            ending = None in batch
            rows = [row for row in batch if row is not None]
            if not rows:
                continue
            self._held = len(rows)
            self._keep(rows)
            self._held = 0

    def _keep(self, rows: list[DecisionRow]) -> None:
        """Write a batch; a large import may hold the database for a while, so a locked one is asked again.

        That is 30 times, a second apart; from ``close`` on at shorter intervals, until its time is up.
        """
        attempts = 0
        while True:
            try:
                self.store.record(rows)
            except PbxguardError as error:
                log.warning("decisions not recorded yet", rows=len(rows), why=str(error))
                attempts += 1
                if self._closing.is_set():
                    left = self._until - monotonic()
                    if left <= 0:
                        break
                    sleep(min(_CLOSING_PAUSE_S, left))
                elif attempts >= _MOST_ATTEMPTS:
                    break
                else:
                    self._closing.wait(1.0)
            except Exception:
                # This thread serves all later calls too, so it goes on without the batch.
                log.exception("decisions not recorded")
                break
            else:
                return
        self._lost += len(rows)
        log.error("decisions lost", rows=len(rows), lost=self._lost)
