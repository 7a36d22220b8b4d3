"""Cut-overs: who is closed, who is left alone, what is taken back."""

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql

from pbxguard.errors import BadInput, UnknownName
from pbxguard.screening.call import Subscriber
from pbxguard.screening.registry import CallClass, ConsentEvent, Verb, closed, fold, key_of, opened
from pbxguard.store import Answers, Cohort, DecisionRow, Store
from pbxguard.store import cutover as module

NOW = datetime(2022, 6, 1, 12, tzinfo=UTC)
DATE = datetime(2022, 5, 19, 16, tzinfo=UTC)  # 20 May in Zhejiang
HMT, INTL = CallClass.HMT, CallClass.INTL
HK = "+85261234567"
ZJ = Cohort((INTL, HMT), "voice", "zhejiang", "cm")
CLASSES = {INTL: ["intl_us", "intl_gb"], HMT: ["intl_hk", "intl_mo"]}


def number(n: int) -> str:
    return f"139571{n:05d}"


def event(n: int, call_class: CallClass, verb: Verb, at: datetime = DATE, **fields: object) -> ConsentEvent:
    made = ConsentEvent(number(n), call_class, "voice", verb, at, NOW, "subscriber", "sms")
    return replace(made, **fields)  # type: ignore[arg-type]


def call(n: int, cli: str = HK, hours: float = 1, **fields: object) -> DecisionRow:
    made = DecisionRow(
        call_id=f"{n}-{cli}-{hours}", at=NOW - timedelta(hours=hours), channel="voice", trunk="intl", cli_raw=cli,
        cli_key=cli, cli_class="intl_hk" if cli.startswith("+852") else "intl_us", callee_raw=number(n),
        callee_key=number(n), verdict="allow", reason="intl_origin_notice",
    )  # fmt: skip
    return replace(made, **fields)  # type: ignore[arg-type]


def close_all(store: Store, name: str = "zj", size: int = 2, now: datetime = NOW) -> int:
    """Apply a cut-over to its end; give the number of its batches."""
    store.begin_cutover(name, ZJ, DATE, now)
    while store.close_batch(name, size, now, "cli:root") is not None:
        pass
    held = store.cutover(name)
    assert held is not None
    assert held.finished_at is not None
    return len(held.batches)


def is_open(store: Store, n: int, call_class: CallClass = HMT, cli: str = HK) -> bool:
    consents = store.facts(None, (number(n),)).consents
    return opened(consents, number(n), call_class, "voice", cli, NOW + timedelta(hours=1)) is not None


def is_closed(store: Store, n: int, call_class: CallClass = HMT) -> bool:
    consents = store.facts(None, (number(n),)).consents
    found = closed(consents, number(n), call_class, "voice", NOW + timedelta(hours=1))
    return found is not None and found.verb is Verb.CLOSE


@pytest.fixture
def zhejiang(store: Store) -> Store:
    """Seven subscribers of China Mobile in Zhejiang and two others; some have answered."""
    store.import_subscribers(Subscriber(number(n), "cm", "zhejiang") for n in range(7))
    store.import_subscribers([Subscriber(number(7), "cu", "zhejiang"), Subscriber(number(8), "cm", "hebei")])
    store.append_many(
        [
            event(1, HMT, Verb.OPEN),
            event(1, INTL, Verb.OPEN),
            event(2, HMT, Verb.CLOSE),  # has said nothing about other countries
            event(3, HMT, Verb.OPEN, DATE - timedelta(9), until=DATE - timedelta(1)),  # over
            event(4, HMT, Verb.OPEN, caller=HK),  # for one caller
            event(5, HMT, Verb.OPEN, NOW + timedelta(days=3)),  # dated ahead
            event(6, HMT, Verb.OPEN, channel="sms"),  # of texts
        ]
    )
    return store


def test_answers_are_counted(zhejiang: Store) -> None:
    """Open, closed, open until a time that is over, never answered: by class, within the cohort."""
    to_close, (intl, hmt) = zhejiang.answers(ZJ, NOW)
    assert intl == Answers(INTL, opened=1, closed=0, ended=0, never=6)
    assert hmt == Answers(HMT, opened=2, closed=1, ended=1, never=3)
    assert (to_close, intl.to_close, hmt.to_close) == (6, 6, 4)
    assert zhejiang.answers(Cohort((HMT,), "voice"), NOW)[0] == 6
    assert zhejiang.answers(Cohort((HMT,), "sms", "zhejiang", "cm"), NOW)[0] == 6
    assert zhejiang.answers(Cohort((HMT,), "voice", "yunnan"), NOW)[0] == 0


def test_only_who_has_not_answered_is_closed(zhejiang: Store) -> None:
    """Each class by itself; who opened, closed or is of another cohort keeps every line as it is."""
    before = list(zhejiang.iter_events())
    assert close_all(zhejiang, size=100) == 1
    written = list(zhejiang.iter_events())[len(before) :]
    assert [(e.number, e.call_class) for e in written] == [
        (number(n), c) for n in (0, 2, 3, 4, 5, 6) for c in (INTL, HMT) if (n, c) not in {(2, HMT), (5, HMT)}
    ]
    assert {(e.verb, e.via, e.actor, e.evidence, e.recorded_at) for e in written} == {
        (Verb.CLOSE, "cutover", "cutover:zj", "batch 1, by cli:root", NOW)
    }
    assert is_open(zhejiang, 1)
    assert is_closed(zhejiang, 3), "an opening that is over does not keep one open"
    assert is_open(zhejiang, 4), "the opening for one caller stays beside the closing"
    assert not is_open(zhejiang, 4, cli="+85269999999")
    assert not is_closed(zhejiang, 7)
    assert zhejiang.verify_ledger().fault == ""
    assert zhejiang.answers(ZJ, NOW)[0] == 0


def test_batches_go_on_where_they_stopped(zhejiang: Store) -> None:
    """Each batch is committed by itself, in the order of the numbers; a new run goes on, and the end is the end."""
    zhejiang.begin_cutover("zj", ZJ, DATE, NOW)
    first = zhejiang.close_batch("zj", 2, NOW, "x")
    assert first is not None
    assert (first.number, first.subscribers, first.events) == (1, 2, 3)
    with Store.open(zhejiang.path) as other:
        assert other.begin_cutover("zj", ZJ, DATE, NOW + timedelta(1)).batches == (first,)
        sizes = []
        while (batch := other.close_batch("zj", 3, NOW, "x")) is not None:
            sizes.append((batch.number, batch.subscribers))
    assert sizes == [(2, 3), (3, 1)]
    keys = [key_of(e) for e in zhejiang.iter_events() if e.via == "cutover"]
    assert len(keys) == len(set(keys)) == 10
    zhejiang.add_subscriber(Subscriber(number(900), "cm", "zhejiang"))
    assert zhejiang.close_batch("zj", 3, NOW, "x") is None, "who comes after the end is another cut-over's"


def test_who_opens_between_look_and_lock_is_left_out(zhejiang: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The subscribers are looked at again under the write lock: an opening that comes in between holds."""
    zhejiang.begin_cutover("zj", ZJ, DATE, NOW)
    acts = [event(0, INTL, Verb.OPEN, NOW), event(0, HMT, Verb.OPEN, NOW)]
    lock = zhejiang.writing

    def after_an_opening() -> object:
        # the batch has found its subscribers and asks for the lock; another program is quicker
        monkeypatch.undo()
        with Store.open(zhejiang.path) as other:
            other.append_many(acts)
        return lock()

    monkeypatch.setattr(zhejiang, "writing", after_an_opening)
    batch = zhejiang.close_batch("zj", 2, NOW, "x")
    assert batch is not None
    assert (batch.subscribers, batch.events) == (1, 1)
    assert is_open(zhejiang, 0)
    assert zhejiang.history(number(0)) == tuple(acts)


def test_undo_brings_back_to_never_answered(zhejiang: Store) -> None:
    """Of one batch: default again for those it closed, untouched for all others; nothing is deleted."""
    assert close_all(zhejiang, size=2) == 3
    lines = len(list(zhejiang.iter_events()))
    batch = zhejiang.undo_batch("zj", 1, NOW, "cli:root")
    assert (batch.number, batch.events, batch.kept, batch.undone_at) == (1, 3, 0, NOW)
    assert not is_closed(zhejiang, 0)
    assert not is_closed(zhejiang, 2, INTL)
    assert is_closed(zhejiang, 2, HMT), "was closed by own act, before"
    assert is_closed(zhejiang, 3), "of the next batch"
    assert len(list(zhejiang.iter_events())) == lines + 3
    assert zhejiang.undo_batch("zj", 1, NOW + timedelta(1), "x") == batch, "undone once"
    assert len(list(zhejiang.iter_events())) == lines + 3
    assert zhejiang.answers(ZJ, NOW)[0] == 2
    assert zhejiang.verify_ledger().fault == ""
    assert {e.evidence for e in zhejiang.iter_events() if e.verb is Verb.RESET} == {"batch 1 undone, by cli:root"}


def test_undo_leaves_own_acts_alone(zhejiang: Store) -> None:
    """Who has opened or closed since keeps that, also where it is dated ahead."""
    close_all(zhejiang, size=100)
    later = NOW + timedelta(minutes=5)
    zhejiang.append_many(
        [
            event(0, HMT, Verb.OPEN, later, recorded_at=later),
            event(3, HMT, Verb.CLOSE, later, recorded_at=later),
            event(4, HMT, Verb.OPEN, later + timedelta(9), recorded_at=later),
        ]
    )
    batch = zhejiang.undo_batch("zj", 1, NOW + timedelta(minutes=9), "x")
    assert (batch.events, batch.kept) == (10, 3)
    assert is_open(zhejiang, 0)
    assert is_closed(zhejiang, 3)
    assert not is_closed(zhejiang, 0, INTL)
    assert zhejiang.verify_ledger().fault == ""


def test_late_paper_form_opens_whom_a_cutover_closed(zhejiang: Store) -> None:
    """An own act holds over the closing whatever date it bears, and undoing the batch leaves it alone."""
    close_all(zhejiang, size=100)
    later, early = NOW + timedelta(minutes=5), DATE - timedelta(days=18)
    assert not is_open(zhejiang, 0)
    zhejiang.append(event(0, HMT, Verb.OPEN, early, recorded_at=later, via="cli"))
    zhejiang.append(event(0, INTL, Verb.CLOSE, early, recorded_at=later, via="cli"))
    assert is_open(zhejiang, 0)
    assert is_closed(zhejiang, 0, INTL)
    assert zhejiang.verify_ledger().fault == ""
    batch = zhejiang.undo_batch("zj", 1, NOW + timedelta(minutes=9), "x")
    assert (batch.events, batch.kept) == (10, 2)
    assert is_open(zhejiang, 0)
    assert is_closed(zhejiang, 0, INTL), "closed by own act: the undoing must not open it"
    assert not is_closed(zhejiang, 2, INTL)
    zhejiang.append(event(2, INTL, Verb.OPEN, early, recorded_at=later + timedelta(1), via="cli"))
    assert is_open(zhejiang, 2, INTL, "+12125550100"), "over the undoing too"
    assert zhejiang.verify_ledger().fault == ""


def test_undo_stops_a_batch_that_is_under_way(zhejiang: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An undo that comes between the look for subscribers and the lock leaves nobody closed."""
    zhejiang.begin_cutover("zj", ZJ, DATE, NOW)
    zhejiang.close_batch("zj", 2, NOW, "x")
    lock = zhejiang.writing

    def after_an_undo() -> object:
        monkeypatch.undo()
        with Store.open(zhejiang.path) as other:
            for each in other.stop_cutover("zj", NOW).batches:
                other.undo_batch("zj", each.number, NOW, "x")
        return lock()

    monkeypatch.setattr(zhejiang, "writing", after_an_undo)
    with pytest.raises(BadInput, match="was undone"):
        zhejiang.close_batch("zj", 2, NOW, "x")
    held = zhejiang.known_cutover("zj")
    assert [each.undone_at for each in held.batches] == [NOW]
    assert held.finished_at is None
    assert not any(is_closed(zhejiang, n, INTL) for n in range(7))


def test_whole_undo_ends_a_cutover(zhejiang: Store) -> None:
    """After it neither a new run nor a batch in between closes anybody; another cut-over may, of any date."""
    zhejiang.begin_cutover("zj", ZJ, DATE, NOW)
    zhejiang.close_batch("zj", 2, NOW, "x")
    assert len(zhejiang.stop_cutover("zj", NOW).batches) == 1
    with pytest.raises(BadInput, match="was undone"):
        zhejiang.close_batch("zj", 2, NOW, "x")
    with pytest.raises(BadInput, match="was undone"):
        zhejiang.begin_cutover("zj", ZJ, DATE, NOW)
    zhejiang.undo_batch("zj", 1, NOW, "x")
    early = DATE - timedelta(days=30)
    zhejiang.begin_cutover("again", ZJ, early, NOW)
    while zhejiang.close_batch("again", 100, NOW, "x"):
        pass
    assert is_closed(zhejiang, 0), "also where the date lies before that of the one that was undone"
    assert set(zhejiang.cutover_names()) == {"zj", "again"}


def test_what_cannot_be_begun(zhejiang: Store) -> None:
    """A date to come, another cohort under the same name, an unknown name: one line with the remedy."""
    with pytest.raises(BadInput, match="still to come"):
        zhejiang.begin_cutover("zj", ZJ, NOW + timedelta(1), NOW)
    zhejiang.begin_cutover("zj", ZJ, DATE, NOW)
    for cohort, date in ((replace(ZJ, province="hebei"), DATE), (ZJ, NOW)):
        with pytest.raises(BadInput, match="another cohort or date"):
            zhejiang.begin_cutover("zj", cohort, date, NOW)
    with pytest.raises(UnknownName, match="there are zj"):
        zhejiang.close_batch("hz", 2, NOW, "x")
    with pytest.raises(UnknownName, match="no batch 7"):
        zhejiang.undo_batch("zj", 7, NOW, "x")
    assert zhejiang.cutover("hz") is None


def test_losers_are_counted_from_the_recorded_calls(zhejiang: Store) -> None:
    """Calls of the last days that were let through and would not have been; the most first."""
    zhejiang.record(
        [
            *[call(0, hours=n) for n in range(1, 4)],
            call(0, "+12125550100"),
            call(0, "+85369999999", cli_class="intl_mo", hours=0.5),
            call(2, "+12125550100"),
            call(6, hours=700),
            # none of these would be lost
            call(1),  # opened
            call(2),  # is closed already; let through as it was on no trunk that asks
            call(4),  # opened for this caller
            call(7),  # another operator
            call(0, hours=800),  # too long ago
            call(0, reason="subscriber_allowlist"),
            call(0, verdict="block", reason="system_blocklist"),
            call(0, channel="sms"),
            call(0, "13800138000", cli_class="mobile_cm"),
            call(99),
            call(0, callee_key=None),
        ]
    )
    since = NOW - timedelta(days=30)
    found = list(zhejiang.losers(ZJ, NOW, since, CLASSES))
    assert [(each.number, each.total) for each in found] == [(number(0), 5), (number(2), 1), (number(6), 1)]
    assert found[0].calls == {INTL: 1, HMT: 4}
    assert found[0].last == NOW - timedelta(hours=0.5)
    assert (found[1].classes, found[1].calls) == ((INTL,), {INTL: 1})
    everyone = list(zhejiang.losers(ZJ, NOW, since, CLASSES, everyone=True))
    assert everyone[:3] == found
    assert [each.number for each in everyone[3:]] == [number(3), number(4), number(5)]
    assert {each.total for each in everyone[3:]} == {0}
    assert everyone[3].last is None


def test_losers_statement_compiles_for_postgresql() -> None:
    """The look ahead holds nothing that only SQLite understands."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    for everyone in (True, False):
        query = module.losers_query(ZJ, NOW, DATE, CLASSES, everyone=everyone)
        assert "GROUP BY" in str(query.compile(dialect=dialect))
    assert "EXISTS" in str(module._standing_lines(1, 2).compile(dialect=dialect))


_RUN = """
import sys, time
from datetime import UTC, datetime
from pbxguard.store import Store
with Store.open(sys.argv[1]) as store:
    print("ready", flush=True)
    while store.close_batch("zj", 20, datetime.now(UTC), "x") is not None:
        print("batch", flush=True)
"""


def test_killed_run_loses_and_repeats_nothing(store: Store) -> None:
    """A run that is killed in the middle, and two that go on at the same time, close each subscriber once."""
    store.import_subscribers(Subscriber(number(n), "cm", "zhejiang") for n in range(2000))
    store.begin_cutover("zj", ZJ, DATE, NOW)
    command = [sys.executable, "-c", _RUN, str(store.path)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ), text=True)
    assert first.stdout is not None
    for _ in range(4):
        assert first.stdout.readline()
    first.send_signal(signal.SIGKILL)
    first.wait(30)
    first.stdout.close()
    others = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [other.wait(100) for other in others] == [0, 0]
    keys = [key_of(e) for e in store.iter_events()]
    assert len(keys) == len(set(keys)) == 4000
    held = store.cutover("zj")
    assert held is not None
    assert sum(batch.subscribers for batch in held.batches) == 2000
    assert sum(batch.events for batch in held.batches) == 4000
    assert store.verify_ledger().fault == ""


_OWN = st.tuples(
    st.integers(0, 5), st.sampled_from([INTL, HMT]), st.sampled_from([Verb.OPEN, Verb.CLOSE]), st.booleans()
)
_STEP = st.one_of(_OWN, st.sampled_from(["close", "undo 1", "undo 2", "undo all"]))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(_STEP, max_size=8))
def test_any_order_of_own_acts_and_batches(store: Store, tmp_path: Path, steps: list[object]) -> None:
    """Whatever is done in whatever order: the state is the fold, and own acts hold from when they were done.

    Those with a date before the cut-over too, but not over an own act of a newer date.
    """
    path = tmp_path / "one.db"
    for file in tmp_path.glob("one.db*"):
        file.unlink()
    own: dict[tuple[int, CallClass], tuple[bool, Verb]] = {}
    with Store.open(path) as one:
        one.import_subscribers(Subscriber(number(n), "cm", "zhejiang") for n in range(6))
        runs = 1
        one.begin_cutover("r1", ZJ, DATE, NOW)
        for minute, step in enumerate(steps):
            now = NOW + timedelta(minutes=minute)
            if isinstance(step, tuple):
                n, call_class, verb, late = step
                if not late or own.get((n, call_class), (True, verb))[0]:
                    own[n, call_class] = late, verb
                one.append(event(n, call_class, verb, DATE - timedelta(9) if late else now, recorded_at=now))
            elif step == "close":
                one.close_batch(f"r{runs}", 2, now, "x")
            elif step == "undo all":
                for batch in one.stop_cutover(f"r{runs}", now).batches:
                    one.undo_batch(f"r{runs}", batch.number, now, "x")
                runs += 1
                one.begin_cutover(f"r{runs}", ZJ, DATE, now)
            else:
                held = one.cutover(f"r{runs}")
                assert held is not None
                if len(held.batches) >= int(str(step)[-1]):
                    one.undo_batch(f"r{runs}", int(str(step)[-1]), now, "x")
        for (n, call_class), (_, verb) in own.items():
            assert is_open(one, n, call_class) is (verb is Verb.OPEN)
            assert is_closed(one, n, call_class) is (verb is Verb.CLOSE)
        ledger = list(one.iter_events())
        state = {key_of(c): c for n in range(6) for c in one.state(number(n))}
        assert state == fold(ledger)
        assert one.verify_ledger().fault == ""


def test_locked_database_stops_a_batch_whole(zhejiang: Store) -> None:
    """Where another program holds the lock, the batch is not begun; the next run goes on."""
    zhejiang.begin_cutover("zj", ZJ, DATE, NOW)
    raw = sqlite3.connect(zhejiang.path, isolation_level=None)
    raw.execute("BEGIN IMMEDIATE")
    before = len(zhejiang.history(number(0)))
    with pytest.raises(Exception, match="locked"):
        zhejiang.close_batch("zj", 2, NOW, "x")
    raw.execute("ROLLBACK")
    raw.close()
    assert len(zhejiang.history(number(0))) == before
    assert zhejiang.close_batch("zj", 2, NOW, "x") is not None
