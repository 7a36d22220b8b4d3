"""The guard answers every call in time, whatever the store does, and forgets no decision."""

import asyncio
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic, perf_counter_ns

import pytest
import structlog
from structlog.testing import capture_logs

from pbxguard import guard as guard_module
from pbxguard.config import GuardSettings, Settings
from pbxguard.errors import StoreUnavailable
from pbxguard.guard import Decided, Guard, decision_row
from pbxguard.packs import load
from pbxguard.screening.call import Allow, Block, Call, Facts, Failed, Label, Reason, Subscriber, Trunk
from pbxguard.screening.lists import Action, ListEntry
from pbxguard.screening.treatment import ASTERISK
from pbxguard.store import Store, sqlite

CN = load("cn")
NOW = datetime(2026, 6, 1, 4, tzinfo=UTC)
ZHANG = Subscriber("13957100001", "cm", "zhejiang")
LI = Subscriber("13804510001", "cm", "heilongjiang", "en")
LIMIT = 5.0


def call(cli: str = "+85261234567", callee: str = ZHANG.number, *, call_id: str = "c1", **trunk: object) -> Call:
    values: dict[str, object] = {"name": "intl", "kind": "intl_gateway"}
    return Call(call_id, NOW, Trunk(**(values | trunk)), cli, callee)


def settings(deadline_ms: int = 2000, workers: int = 4) -> Settings:
    return Settings(guard=GuardSettings(deadline_ms=deadline_ms, workers=workers))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "guard.db") as opened:
        opened.import_subscribers([ZHANG, LI])
        yield opened


class Blocked(Store):
    """A store on a stalled disk: facts about one number come only when it is released."""

    def __init__(self, path: Path, stalled: str) -> None:
        super().__init__(path)
        self.stalled = stalled
        self.released = threading.Event()
        self.asked = 0

    def facts(self, cli_key: str | None, callees: tuple[str, ...], tags: tuple[str, ...] = ()) -> Facts:
        if self.stalled in callees:
            self.asked += 1
            self.released.wait(LIMIT)
        return super().facts(cli_key, callees, tags)


class Broken(Store):
    """A store that raises."""

    trouble: Exception = StoreUnavailable("guard.db: the database is damaged")

    def facts(self, cli_key: str | None, callees: tuple[str, ...], tags: tuple[str, ...] = ()) -> Facts:
        raise self.trouble


@pytest.fixture
def blocked(store: Store) -> Iterator[Blocked]:
    with Blocked(store.path, ZHANG.number) as opened:
        yield opened
        opened.released.set()


def until(condition, what: str) -> None:
    began = monotonic()
    while not condition():
        assert monotonic() - began < LIMIT, f"{what}: not within {LIMIT} s"
        threading.Event().wait(0.005)


# -- the good case --------------------------------------------------------------------------------------------


async def test_decision_is_recorded_and_found(store: Store) -> None:
    """A decision is found by its Call-ID with everything that explain needs."""
    store.add_entry(ListEntry("", "+852*", Action.BLOCK, "system", source="feed"))
    guard = Guard(store, CN, settings())
    decided = await guard.decide_soon(call(), ASTERISK)
    guard.close()
    row = store.decision("c1")
    assert row == decision_row(decided)
    assert row is not None
    assert (row.verdict, row.reason, row.sip_status) == ("block", "system_blocklist", 603)
    assert (row.cli_key, row.cli_class, row.callee_key) == ("+85261234567", "intl_hk", ZHANG.number)
    assert row.entry == "+852* on list 'system' (source: feed)"
    assert row.lists_version == store.lists_version()
    assert row.pack == CN.name
    assert row.at == NOW
    assert row.elapsed_us >= 0


async def test_display_is_in_the_callees_language(store: Store) -> None:
    """The origin notice is written in the language that the subscriber has."""
    guard = Guard(store, CN, settings(), recording=False)
    decided = await guard.decide_soon(call(callee=LI.number), ASTERISK)
    guard.close()
    assert decided.treatment.display == "Call from abroad Hong Kong"


async def test_one_canonical_line_a_call(store: Store) -> None:
    """The log has one line for a call, with the CLI as it was and as it was read."""
    guard = Guard(store, CN, settings(), recording=False)
    with capture_logs() as logs:
        await guard.decide_soon(call("0085261234567"), ASTERISK)
    guard.close()
    (line,) = logs
    assert line["event"] == "call decided"
    assert (line["cli"], line["cli_key"], line["verdict"]) == ("0085261234567", "+85261234567", "block")
    assert (line["call_id"], line["status"], line["rule"]) == ("c1", 603, "7.default_off")


async def test_what_if_records_nothing(store: Store) -> None:
    """A guard that does not record leaves no row."""
    guard = Guard(store, CN, settings(), recording=False)
    guard.record(guard.decide(call(), ASTERISK))
    guard.close()
    assert store.count_decisions() == 0


# -- failure --------------------------------------------------------------------------------------------------


async def test_deadline(blocked: Blocked) -> None:
    """A store that does not answer costs a call the deadline and no more; other calls are not held up."""
    guard = Guard(blocked, CN, settings(deadline_ms=60, workers=2), recording=False)
    began = monotonic()
    late, soon = await asyncio.gather(
        guard.decide_soon(call(), ASTERISK), guard.decide_soon(call(callee=LI.number), ASTERISK)
    )
    took = monotonic() - began
    assert late.verdict == Failed("no decision within 60 ms", late.verdict.basis)
    assert late.treatment.connect
    assert late.elapsed_us >= 60_000
    assert soon.verdict.reason == Reason.INTL_ORIGIN_NOTICE
    assert took < 2.0, f"{took} s"
    guard.close()


async def test_workers_come_back(blocked: Blocked) -> None:
    """With every worker stalled all calls fail in time; once the disk is back the next call is decided.

    Calls whose deadline passed while they waited for a worker are not worked on afterwards.
    """
    guard = Guard(blocked, CN, settings(deadline_ms=50, workers=2), recording=False)
    done = await asyncio.gather(*(guard.decide_soon(call(), ASTERISK) for _ in range(20)))
    assert {type(each.verdict) for each in done} == {Failed}
    blocked.released.set()
    decided = done[0]
    began = monotonic()
    while isinstance(decided.verdict, Failed):
        assert monotonic() - began < LIMIT
        decided = await guard.decide_soon(call(), ASTERISK)
    assert decided.verdict.reason == Reason.INTL_DEFAULT_OFF
    assert blocked.asked < 20
    guard.close()


async def test_work_does_not_pile_up(blocked: Blocked) -> None:
    """While the store hangs, no more than 64 calls a worker wait; the others fail at once, and are not kept.

    Calls that were given up count as long as the queue holds them. Once the store is back the next call is decided.
    """
    guard = Guard(blocked, CN, settings(deadline_ms=400, workers=1), recording=False)
    done = await asyncio.gather(*(guard.decide_soon(call(), ASTERISK) for _ in range(200)))
    whys = Counter(each.verdict.why for each in done if isinstance(each.verdict, Failed))
    full = "64 calls wait for the database already"
    # One is in the hands of the worker, which may have taken it before or after the queue was full.
    assert whys[full] in (200 - 64, 200 - 65)
    assert whys["no decision within 400 ms"] == 200 - whys[full]
    assert max(each.elapsed_us for each in done if each.verdict.why == full) < 400_000
    while (again := await guard.decide_soon(call(), ASTERISK)).verdict.why != full:
        assert whys.total() < 210
        whys[again.verdict.why] += 1
    assert (again.treatment.connect, again.verdict.basis.cli.key) == (True, "+85261234567")
    emergency = await guard.decide_soon(call(callee="110", fail="closed"), ASTERISK)
    assert emergency.verdict.reason == Reason.EMERGENCY_CALLEE
    blocked.released.set()
    began = monotonic()
    while isinstance(again.verdict, Failed):
        assert monotonic() - began < LIMIT
        again = await guard.decide_soon(call(), ASTERISK)
    assert again.verdict.reason == Reason.INTL_DEFAULT_OFF
    guard.close()


def test_late_answer_is_that_of_the_deadline(store: Store) -> None:
    """late() fails a call as its passed deadline does, and applies the rules that need no store."""
    guard = Guard(store, CN, settings(deadline_ms=70))
    started = perf_counter_ns() - 80_000_000
    late = guard.late(call(fail="closed"), ASTERISK, started)
    assert isinstance(late.verdict, Failed)
    assert (late.verdict.why, late.treatment.status) == ("no decision within 70 ms", 480)
    assert late.elapsed_us >= 80_000
    assert guard.late(call("abc"), ASTERISK, started).verdict.reason == Reason.CLI_INVALID
    guard.close()
    assert store.count_decisions() == 0


_STUCK = """
import asyncio, sys, threading
from datetime import UTC, datetime
from pbxguard.config import GuardSettings, Settings
from pbxguard.guard import Guard
from pbxguard.packs import load
from pbxguard.screening.call import Call, Trunk
from pbxguard.screening.treatment import ASTERISK
from pbxguard.store import Store

class Stuck(Store):
    def facts(self, cli_key, callees, tags=()):
        threading.Event().wait()

store = Stuck.open(sys.argv[1])
guard = Guard(store, load("cn"), Settings(guard=GuardSettings(deadline_ms=50, workers=1)), recording=False)
call = Call("c", datetime.now(UTC), Trunk("t", "national"), "13800138000", "13957100001")
print(asyncio.run(guard.decide_soon(call, ASTERISK)).verdict.why)
guard.close()
store.close()
"""


def test_program_ends_while_a_worker_is_stuck(tmp_path: Path) -> None:
    """A thread that waits for a stalled disk for ever does not keep the process alive."""
    command = [sys.executable, "-c", _STUCK, tmp_path / "guard.db"]
    ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    assert "no decision within 50 ms" in ended.stdout


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        (StoreUnavailable("guard.db: the disk is full"), "guard.db: the disk is full"),
        (ZeroDivisionError("x"), "internal error (ZeroDivisionError); see the log"),
        (MemoryError(), "internal error (MemoryError); see the log"),
        (TimeoutError(), "internal error (TimeoutError); see the log"),
    ],
)
@pytest.mark.parametrize(("fail", "connects"), [("open", True), ("closed", False)])
async def test_trouble_is_a_third_outcome(
    store: Store, trouble: Exception, why: str, fail: str, connects: bool
) -> None:
    """Whatever the store raises is Failed with the reason, and the trunk's policy says what happens to the call."""
    with Broken(store.path) as broken:
        broken.trouble = trouble
        guard = Guard(broken, CN, settings())
        with capture_logs():
            decided = await guard.decide_soon(call(fail=fail), ASTERISK)
        guard.close()
    assert isinstance(decided.verdict, Failed)
    assert decided.verdict.why == why
    assert (decided.treatment.connect, decided.treatment.status) == (connects, None if connects else 480)
    row = store.decision("c1")
    assert row is not None
    assert (row.verdict, row.reason, row.detail) == ("failed", "guard_failed", why)
    assert (row.cli_key, row.callee_key) == ("+85261234567", ZHANG.number)


@pytest.mark.parametrize(
    ("cli", "callee", "kind", "reason"),
    [
        ("+85261234567", "110", Allow, Reason.EMERGENCY_CALLEE),
        ("abc", "0571120", Allow, Reason.EMERGENCY_CALLEE),
        ("abc", ZHANG.number, Block, Reason.CLI_INVALID),
        ("+861065551234", ZHANG.number, Block, Reason.NATIONAL_CLI_ON_INTL_TRUNK),
    ],
)
@pytest.mark.parametrize("late", [False, True])
async def test_rules_that_need_no_store_hold_without_one(
    blocked: Blocked, cli: str, callee: str, kind: type, reason: Reason, late: bool
) -> None:
    """With a store that is broken or late, and a trunk that fails closed, an emergency number is still called.

    A CLI that steps 2 to 4 refuse is refused all the same (specification, section 11, fail mode).
    """
    with Broken(blocked.path) as broken:
        blocked.stalled = callee
        guard = Guard(blocked if late else broken, CN, settings(deadline_ms=50, workers=1), recording=False)
        if late:  # the only worker waits for the disk
            first = await guard.decide_soon(call(callee=blocked.stalled), ASTERISK)
            assert isinstance(first.verdict, Failed | Allow)
        decided = await guard.decide_soon(call(cli, callee, fail="closed"), ASTERISK)
        guard.close()
        assert (type(decided.verdict), decided.verdict.reason) == (kind, reason)
        assert decided.treatment.connect is (kind is Allow)


@pytest.mark.parametrize("fail", ["open", "closed"])
def test_verified_roamer_is_not_blocked_by_a_store_that_fails(store: Store, fail: str) -> None:
    """A roamer for whom a note vouches is Failed, not refused, while the note cannot be read or comes too late.

    The call goes the way of the trunk's failure policy; the callee is told that the roaming is not verified.
    """
    store.add_entry(ListEntry("", "13800138000", Action.NOTE, "roaming_yes"))
    one = call("+8613800138000", fail=fail)
    with Broken(store.path) as broken:
        working, failing = (Guard(each, CN, settings(), recording=False) for each in (store, broken))
        assert working.decide(one, ASTERISK).verdict.reason == Reason.ROAMER_VERIFIED
        for found in (failing.decide(one, ASTERISK), working.late(one, ASTERISK, perf_counter_ns())):
            assert isinstance(found.verdict, Failed)
            assert found.verdict.labels == (Label.ROAMING_UNKNOWN,)
            assert found.treatment.connect is (fail == "open")
            assert found.treatment.display == (CN.display("roaming_unknown", "zh") if fail == "open" else "")
        working.close()
        failing.close()


async def test_call_after_closing_is_failed(store: Store) -> None:
    """A call that comes in while the guard shuts down is answered, not raised at."""
    guard = Guard(store, CN, settings(), recording=False)
    guard.close()
    decided = await guard.decide_soon(call(), ASTERISK)
    assert isinstance(decided.verdict, Failed)
    assert decided.verdict.why.startswith("the guard is closing")


@pytest.fixture
def full_disk() -> Iterator[None]:
    """The log goes to a disk that is full."""
    before = structlog.get_config()
    with suppress(OSError), Path("/dev/full").open("w", buffering=1) as full:
        structlog.configure(
            processors=[structlog.processors.JSONRenderer()], logger_factory=structlog.PrintLoggerFactory(full)
        )
        with pytest.raises(OSError, match="No space"):
            structlog.get_logger().info("x")
        yield
    structlog.configure(**before)


async def test_log_that_cannot_be_written_costs_no_call(store: Store, full_disk: None) -> None:
    """A full disk under the log loses the line; the verdict is given and the decision recorded."""
    guard = Guard(store, CN, settings())
    decided = await guard.decide_soon(call(), ASTERISK)
    guard.close()
    assert decided.verdict.reason == Reason.INTL_DEFAULT_OFF
    assert store.decision("c1") is not None


# -- recording ------------------------------------------------------------------------------------------------


def decided_call(guard: Guard, call_id: str) -> Decided:
    return guard.decide(call(call_id=call_id), ASTERISK)


def test_locked_database_is_asked_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an import holds the database decisions wait; afterwards they are all there."""
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_MS", 20)
    with Store.open(store.path) as impatient:
        guard = Guard(impatient, CN, settings())
        writer = sqlite3.connect(store.path, isolation_level=None)
        try:
            writer.execute("BEGIN IMMEDIATE")
            with capture_logs() as logs:
                for n in range(3):
                    guard.record(decided_call(guard, f"c{n}"))
                until(lambda: any(line["event"] == "decisions not recorded yet" for line in logs), "first attempt")
                assert store.count_decisions() == 0
                writer.execute("COMMIT")
                until(lambda: store.count_decisions() == 3, "recorded")
        finally:
            writer.close()
            guard.close()
    assert [store.decision(f"c{n}") is not None for n in range(3)] == [True] * 3


def test_trouble_in_one_batch_does_not_end_the_recording(store: Store) -> None:
    """A batch that cannot be written for a reason nobody foresaw is lost, named, and the next one is written."""

    class Odd(Store):
        odd = True

        def record(self, rows) -> None:
            if self.odd:
                self.odd = False
                raise ZeroDivisionError
            super().record(rows)

    with Odd(store.path) as odd, capture_logs() as logs:
        guard = Guard(odd, CN, settings())
        guard.record(decided_call(guard, "lost"))
        until(lambda: any(line["event"] == "decisions lost" for line in logs), "lost")
        guard.record(decided_call(guard, "kept"))
        guard.close()
    assert (store.decision("lost"), store.decision("kept") is not None) == (None, True)


def test_closing_writes_what_is_still_to_be_written(store: Store) -> None:
    """Nothing that was decided before close() is missing after it."""
    guard = Guard(store, CN, settings())
    for n in range(1200):
        guard.record(decided_call(guard, f"c{n}"))
    guard.close()
    assert store.count_decisions() == 1200


def test_closing_asks_a_locked_database_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that ends while an import holds the database writes its last decisions as soon as that is over."""
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_MS", 20)
    writer = sqlite3.connect(store.path, isolation_level=None)
    with Store.open(store.path) as impatient, capture_logs() as logs:
        guard = Guard(impatient, CN, settings())
        writer.execute("BEGIN IMMEDIATE")
        guard.record(decided_call(guard, "c1"))
        ending = threading.Thread(target=guard.close, daemon=True)
        ending.start()
        until(lambda: [line["event"] for line in logs].count("decisions not recorded yet") >= 3, "asked three times")
        assert ending.is_alive()
        writer.execute("COMMIT")
        ending.join(LIMIT)
        assert not ending.is_alive()
    writer.close()
    assert store.decision("c1") is not None
    assert not [line for line in logs if line["event"].startswith("decisions lost")]


def test_closing_gives_a_locked_database_up_in_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that stays locked holds up the end for the time that it has, and the rows lost are counted."""
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_MS", 20)
    monkeypatch.setattr(guard_module, "_CLOSING_S", 0.5)
    writer = sqlite3.connect(store.path, isolation_level=None)
    with Store.open(store.path) as impatient, capture_logs() as logs:
        guard = Guard(impatient, CN, settings())
        writer.execute("BEGIN IMMEDIATE")
        for n in range(3):
            guard.record(decided_call(guard, f"c{n}"))
        began = monotonic()
        guard.close()
        assert 0.4 < monotonic() - began < LIMIT
        diary = guard._diary
        assert diary is not None
        diary._thread.join(LIMIT)
    writer.close()
    lost = [line["rows"] for line in logs if line["event"].startswith("decisions lost")]
    assert set(lost) == {3}
    assert store.count_decisions() == 0


def test_closing_does_not_wait_for_a_database_that_hangs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the queue of decisions full and the database stuck, close() gives up in time and says what is lost."""

    class Stuck(Store):
        released = threading.Event()
        asked = threading.Event()

        def record(self, rows) -> None:
            self.asked.set()
            self.released.wait(LIMIT * 4)

    monkeypatch.setattr("pbxguard.guard._CLOSING_S", 0.3)
    with Stuck(store.path) as stuck, capture_logs() as logs:
        guard = Guard(stuck, CN, settings())
        row = decision_row(decided_call(guard, "c"))
        diary = guard._diary
        assert diary is not None
        diary.add(row)
        assert stuck.asked.wait(LIMIT)
        while diary._lost == 0:
            diary.add(row)
        ending = threading.Thread(target=guard.close, daemon=True)
        ending.start()
        ending.join(LIMIT)
        assert not ending.is_alive()
        lost = [line["rows"] for line in logs if line["event"] == "decisions lost: the database does not answer"]
        assert lost == [20_000 + diary._held]
        assert diary._held >= 1
        stuck.released.set()
        diary._thread.join(LIMIT)


def test_old_decisions_are_forgotten(store: Store) -> None:
    """Decisions past the site's retention go, younger ones stay; the edge is half-open."""
    guard = Guard(store, CN, Settings(), clock=lambda: NOW)
    keep = timedelta(days=Settings().store.keep_decisions_days)
    for name, at in (("old", NOW - keep - timedelta(seconds=1)), ("young", NOW - keep)):
        one = Call(name, at, Trunk("intl", "intl_gateway"), "+85261234567", ZHANG.number)
        guard.record(guard.decide(one, ASTERISK))
    guard.close()
    assert guard.forget_old() == 1
    assert [row.call_id for row in store.recent()] == ["young"]


# -- prompts --------------------------------------------------------------------------------------------------


def test_prompt_budget_of_a_trunk(store: Store) -> None:
    """Past its prompts a minute a trunk gets the same status in silence; another trunk is not touched."""
    guard = Guard(store, CN, settings(), recording=False)
    done = [guard.decide(call(prompts_per_minute=3), ASTERISK).treatment for _ in range(5)]
    other = guard.decide(call(name="other"), ASTERISK).treatment
    none = guard.decide(call(name="third", prompts_per_minute=0), ASTERISK).treatment
    guard.close()
    assert [(each.status, each.mode, bool(each.prompt)) for each in done] == (
        [(603, "early", True)] * 3 + [(603, "none", False)] * 2
    )
    assert (other.mode, none.mode) == ("early", "none")


def test_labels_of_a_detector_reach_the_record(store: Store) -> None:
    """Flags in the facts become labels of the verdict and of its row."""

    class Flagged(Store):
        def facts(self, cli_key, callees, tags=()) -> Facts:
            return Facts(flags=(Label.SIMBOX_SUSPECTED,))

    with Flagged(store.path) as flagged:
        guard = Guard(flagged, CN, settings(), recording=False)
        row = decision_row(guard.decide(call("13800138000", kind="sim_gateway"), ASTERISK))
        guard.close()
    assert (row.reason, row.labels, row.extra["display"]) == (
        "simbox_suspected", ("simbox_suspected",), "疑似GOIP 谨慎接听",
    )  # fmt: skip


async def test_recorded_decision_has_its_trace(store: Store) -> None:
    """The row says what each rule saw, and on which law a refusal rests; rules for other calls are left out."""
    guard = Guard(store, CN, settings())
    await guard.decide_soon(call(), ASTERISK)
    guard.close()
    row = store.decision("c1")
    assert row is not None
    steps = row.extra["steps"]
    assert [step[0] for step in steps][-1] == row.rule == "7.default_off"
    assert steps[-1][1:3] == ["decides", "zhejiang, cm, voice: closed from 2022-05-20"]
    assert all(step[3] >= 0 and step[1] != "skipped" for step in steps)
    assert sum(step[3] for step in steps) > 0
    assert (row.extra["legal_basis"], "shadow" in row.extra) == ("", False)


def test_what_if_has_a_trace_when_asked(store: Store) -> None:
    """A question that is not recorded costs no trace, unless somebody wants to see it."""
    for trace, steps in ((None, False), (True, True), (False, False)):
        guard = Guard(store, CN, settings(), recording=False, trace=trace)
        assert bool(guard.decide(call(), ASTERISK).verdict.basis.steps) is steps
        guard.close()


def test_shadow_reaches_the_record(store: Store) -> None:
    """What a rule in shadow would have done is in the row of the call, which goes on."""
    pack = replace(CN, rules=tuple(replace(r, mode="shadow") if r.step == 7 else r for r in CN.rules))
    guard = Guard(store, pack, settings(), recording=False)
    decided = guard.decide(call(), ASTERISK)
    guard.close()
    assert decided.treatment.connect
    assert decision_row(decided).extra["shadow"] == [["7.default_off", "block", "intl_default_off"]]


def test_cli_stays_withheld_when_the_store_fails(store: Store) -> None:
    """A number that no rule may show is not shown either where the failure policy lets the call through."""
    trunks = {**CN.trunks, "intl_gateway": replace(CN.trunks["intl_gateway"], national_fixed="anonymise")}
    with Broken(store.path) as broken:
        guard = Guard(broken, replace(CN, trunks=trunks), settings(), recording=False)
        decided = guard.decide(call("+861065551234"), ASTERISK)
        guard.close()
    assert isinstance(decided.verdict, Failed)
    assert (decided.treatment.connect, decided.treatment.withhold) == (True, True)
    assert decision_row(decided).extra["withheld"] is True


# -- warming up ----------------------------------------------------------------------------------------------------


def test_warm_up_leaves_no_first_time(store: Store) -> None:
    """After the warm-up calls of every length of CLI compile no statement and open no connection.

    Without it twelve first calls at once took up to 13 ms on an idle machine, up to 157 ms on a busy one (measured).
    """
    from sqlalchemy import event

    from pbxguard.store import facts

    guard = Guard(store, CN, settings(workers=3), recording=False)
    facts._compiled.cache_clear()
    opened = []
    event.listen(store._engine, "connect", lambda *_: opened.append(1))
    assert guard.warm_up()
    compiled, connections = facts._compiled.cache_info().misses, len(opened)
    assert connections >= 2, "the one that opened the database, and one for each other worker"
    futures = [
        guard._workers.submit(lambda cli=cli, trunk=trunk: guard.decide(call(cli, **trunk), ASTERISK))
        for cli in ("+85261234567", "0085261234567", "+12025550123", "13800138000", "057186554321", "95588", "", "x")
        for trunk in ({}, {"name": "natl", "kind": "national"})
    ]
    assert not [done for done in futures if isinstance(done.result(LIMIT).verdict, Failed)]
    assert (facts._compiled.cache_info().misses, len(opened)) == (compiled, connections)
    guard.close()


def test_warm_up_reaches_every_worker(store: Store) -> None:
    """Each worker takes part once, at the same time as all others."""
    guard = Guard(store, CN, settings(workers=5), recording=False)
    seen = []

    def part(number: int, every: threading.Barrier) -> None:
        every.wait(LIMIT)
        seen.append((number, threading.current_thread().name))

    for done in guard._workers.submit_to_all(part):
        done.result(LIMIT)
    assert {number for number, _ in seen} == set(range(5))
    assert len({name for _, name in seen}) == 5
    guard.close()


def test_warm_up_records_nothing(store: Store) -> None:
    """Nothing of the warm-up is recorded or logged as a decision, and no trunk's prompts are counted."""
    guard = Guard(store, CN, settings())
    one = call(prompts_per_minute=1)
    with capture_logs() as logs:
        guard.warm_up()
    assert [line["event"] for line in logs] == ["warmed up"]
    assert guard.decide(one, ASTERISK).treatment.prompt == "intl_default_off"
    guard.close()
    assert store.count_decisions() == 0


@pytest.mark.parametrize("trouble", [StoreUnavailable("guard.db: the database is damaged"), RuntimeError("broken")])
def test_warm_up_with_a_broken_store(store: Store, trouble: Exception) -> None:
    """A store that fails ends the warm-up at once with a warning; the guard answers all the same."""
    with Broken(store.path) as broken:
        broken.trouble = trouble
        guard = Guard(broken, CN, settings(), recording=False)
        began = monotonic()
        with capture_logs() as logs:
            assert not guard.warm_up()
        assert monotonic() - began < 2
        assert [(line["event"], line["why"]) for line in logs] == [("not warmed up", str(trouble))]
        waited = guard.decide_within(call(callee="110"), ASTERISK, lambda done, limit: done.result(limit))
        assert waited.verdict.reason == Reason.EMERGENCY_CALLEE
        guard.close()


def test_warm_up_of_a_stalled_store_ends(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that hangs holds up the start for the limit and no longer, and keeps one worker from calls, not all."""
    monkeypatch.setattr(guard_module, "_WARM_UP_S", 0.2)
    with Blocked(store.path, "1") as stuck:
        guard = Guard(stuck, CN, settings(workers=2), recording=False)
        began = monotonic()
        assert not guard.warm_up()
        assert 0.15 < monotonic() - began < 2
        decided = guard.decide_within(call(), ASTERISK, lambda done, _: done.result(LIMIT))
        assert decided.verdict.reason == Reason.INTL_DEFAULT_OFF
        stuck.released.set()
        guard.close()


# -- waiting in a way of one's own -----------------------------------------------------------------------------------


def test_decide_within(blocked: Blocked) -> None:
    """A decision that is not there when the wait is over is Failed, and is given up; one that is there counts."""
    guard = Guard(blocked, CN, settings(deadline_ms=50, workers=1), recording=False)
    limits = []

    def wait(decision, seconds: float) -> None:
        limits.append(seconds)
        with suppress(TimeoutError):
            decision.result(seconds)

    late = [guard.decide_within(call(), ASTERISK, wait) for _ in range(3)]
    assert [each.verdict.why for each in late] == ["no decision within 50 ms"] * 3
    assert limits == [0.05] * 3
    assert blocked.asked == 1
    blocked.released.set()
    until(guard._workers._waiting.empty, "an idle worker")
    guard._deadline = LIMIT
    assert guard.decide_within(call(), ASTERISK, wait).verdict.reason == Reason.INTL_DEFAULT_OFF
    guard.close()
    assert guard.decide_within(call(), ASTERISK, wait).verdict.why == "the guard is closing: no new work"
