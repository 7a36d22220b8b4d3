"""The chain of the ledger: what tampering is found, and what it is told as."""

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest

from pbxguard.screening.registry import CallClass, ConsentEvent, Verb
from pbxguard.store import Audit, Store
from pbxguard.store.chain import FIELDS, GENESIS, link

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
NUMBERS = [f"1395710000{n}" for n in range(5)]


def event(number: str, verb: Verb = Verb.OPEN, minutes: int = 0, **fields: str) -> ConsentEvent:
    at = NOW + timedelta(minutes=minutes)
    return ConsentEvent(number, CallClass.HMT, "voice", verb, at, at, "cli:root", "cli", **fields)


@pytest.fixture
def chained(store: Store) -> Store:
    """A store with five events."""
    for n, number in enumerate(NUMBERS):
        store.append(event(number, minutes=n, evidence=f"form {n}"))
    assert store.verify_ledger().fault == ""
    return store


def by_hand(store: Store, script: str) -> None:
    """What somebody does who has the file: the triggers are no obstacle."""
    raw = sqlite3.connect(store.path)
    raw.create_function("link", -1, lambda previous, *values: link(previous, values))
    with raw:
        for verb in ("update", "delete"):
            raw.execute(f"DROP TRIGGER IF EXISTS consent_event_no_{verb}")
        for line in script.split(";"):
            raw.execute(line)
    raw.close()


def test_encoding_is_the_documented_one(store: Store) -> None:
    """The hash is SHA-256 over version, previous hash and netstrings, so that another program can check it."""
    store.append(event("13957100001", evidence="凭证 7"))
    store.append(event("13957100001", Verb.CLOSE, 1))
    raw = sqlite3.connect(store.path)
    rows = raw.execute(f"SELECT {','.join(FIELDS)}, previous, hash FROM consent_event ORDER BY id").fetchall()
    raw.close()
    previous = bytes(32)
    for row in rows:
        data = b"pbxguard consent 1\n" + previous
        for value in row[:-2]:
            text = b"" if value is None else str(value).encode()
            data += b"-," if value is None else str(len(text)).encode() + b":" + text + b","
        assert row[-2] == previous
        previous = sha256(data).digest()
        assert row[-1] == previous
    assert store.head() == (2, previous.hex())


def test_encoding_tells_every_two_lines_apart() -> None:
    """A text that moves from one column to the next, or an empty one for none, gives another hash."""
    hashes = {
        link(GENESIS, values)
        for values in (["ab", "c"], ["a", "bc"], ["abc", ""], ["abc", None], ["", "abc"], ["1:a,", "b"], ["abc"])
    }
    assert len(hashes) == 7


def test_empty_ledger_is_whole(store: Store) -> None:
    """Nothing is nothing: no event, the head of 64 zeros."""
    assert store.verify_ledger() == Audit(0, "00" * 32)
    assert store.verify_ledger(head=GENESIS, count=0).fault == ""
    assert store.head() == (0, "00" * 32)


@pytest.mark.parametrize("column", [*FIELDS, "previous", "hash"])
def test_changed_event_is_found(chained: Store, column: str) -> None:
    """Whatever is changed of an event in the middle, that event is named, with its number."""
    values = {
        "effective_at": "1",
        "until": "1",
        "recorded_at": "1",
        "previous": "zeroblob(32)",
        "hash": "zeroblob(32)",
    }
    value = values.get(column, "'x'")
    by_hand(chained, f"UPDATE consent_event SET {column} = {value} WHERE id = 3")
    found = chained.verify_ledger()
    assert (found.event_id, found.events) == (3, 2)
    assert "event 3" in found.fault
    assert "was changed" in found.fault


@pytest.mark.parametrize("value", ["''", "x'00'", "'\x1b[31m'", "1.5"])
@pytest.mark.parametrize("column", ["until", "evidence", "hash", "previous"])
def test_odd_values_are_a_finding_and_no_crash(chained: Store, column: str, value: str) -> None:
    """A value of another type, as no program writes it, is told like any other change."""
    by_hand(chained, f"UPDATE consent_event SET {column} = {value} WHERE id = 2")
    found = chained.verify_ledger()
    assert found.event_id == 2
    assert found.fault.isprintable()


TAMPERED: list[tuple[str, str, int]] = [
    ("removed", "DELETE FROM consent_event WHERE id = 3", 4),
    ("first removed", "DELETE FROM consent_event WHERE id = 1", 2),
    ("moved", "UPDATE consent_event SET id = 9 WHERE id = 2", 3),
    (
        "swapped",
        (
            "UPDATE consent_event SET id = 9 WHERE id = 2; UPDATE consent_event SET id = 2 WHERE id = 3;"
            "UPDATE consent_event SET id = 3 WHERE id = 9"
        ),
        2,
    ),
    (
        "put in",
        (
            "UPDATE consent_event SET id = id + 10 WHERE id > 2;"
            "INSERT INTO consent_event SELECT 3, number, call_class, channel, caller, verb, effective_at, until,"
            " recorded_at, actor, via, evidence, previous, hash FROM consent_event WHERE id = 2"
        ),
        3,
    ),
    (
        "put in, with the right hashes of its own",
        (
            "UPDATE consent_event SET id = id + 10 WHERE id > 2;"
            "INSERT INTO consent_event SELECT 3, number, call_class, channel, caller, 'close', effective_at, until,"
            " recorded_at, actor, via, evidence, hash, link(hash, number, call_class, channel, caller, 'close',"
            " effective_at, until, recorded_at, actor, via, evidence) FROM consent_event WHERE id = 2"
        ),
        13,
    ),
    (
        "changed, with a new hash of its own",
        (
            "UPDATE consent_event SET verb = 'close', hash = link(previous, number, call_class, channel, caller,"
            " 'close', effective_at, until, recorded_at, actor, via, evidence) WHERE id = 3"
        ),
        4,
    ),
]


@pytest.mark.parametrize(("script", "named"), [each[1:] for each in TAMPERED], ids=[each[0] for each in TAMPERED])
def test_removed_moved_or_inserted_event_is_found(chained: Store, script: str, named: int) -> None:
    """The first event that does not follow the one before it is named."""
    by_hand(chained, script)
    found = chained.verify_ledger()
    assert found.event_id == named
    assert "does not" in found.fault


def cut_off(store: Store) -> None:
    by_hand(store, "DELETE FROM consent_event WHERE id > 3")


def rewritten(store: Store) -> None:
    cut_off(store)
    for number in NUMBERS[3:]:
        store.append(event(number, Verb.CLOSE, 9))


def rewritten_longer(store: Store) -> None:
    rewritten(store)
    store.append(event(NUMBERS[0], Verb.CLOSE, 9))


@pytest.mark.parametrize(
    ("how", "with_count", "without"),
    [
        (cut_off, "5 events were noted and 3 are there", "not in this ledger"),
        (rewritten, "event 5 of the ledger has the hash", "not in this ledger"),
        (rewritten_longer, "event 5 of the ledger has the hash", "not in this ledger"),
    ],
)
def test_noted_head_finds_a_new_tail(
    chained: Store, how: Callable[[Store], None], with_count: str, without: str
) -> None:
    """A ledger whose end was cut off or written anew is whole in itself; the head that was noted tells."""
    count, head = chained.head()
    how(chained)
    by_hand(chained, "DELETE FROM consent_state WHERE number > '13957100002' AND verb = 'open'")
    assert chained.verify_ledger().fault == ""
    assert with_count in chained.verify_ledger(head=bytes.fromhex(head), count=count).fault
    assert without in chained.verify_ledger(head=bytes.fromhex(head)).fault


def test_noted_head_stays_good_as_the_ledger_grows(chained: Store) -> None:
    """What was added since does not matter; the right hash with a wrong count does."""
    count, head = chained.head()
    chained.append(event(NUMBERS[0], Verb.CLOSE, 9))
    noted = bytes.fromhex(head)
    assert chained.verify_ledger(head=noted, count=count).fault == ""
    assert chained.verify_ledger(head=noted).fault == ""
    assert "event 4" in chained.verify_ledger(head=noted, count=4).fault


@pytest.mark.parametrize(
    ("script", "number", "says"),
    [
        ("UPDATE consent_state SET verb = 'close' WHERE number = '13957100002'", NUMBERS[2], "does not follow"),
        ("UPDATE consent_state SET until = 5 WHERE number = '13957100002'", NUMBERS[2], "does not follow"),
        ("UPDATE consent_state SET since = since - 1 WHERE number = '13957100002'", NUMBERS[2], "does not follow"),
        ("DELETE FROM consent_state WHERE number = '13957100004'", NUMBERS[4], "lacks"),
        (
            (
                "INSERT INTO consent_state SELECT '13800000000', call_class, channel, caller, since, verb, until "
                "FROM consent_state LIMIT 1"
            ),
            "13800000000",
            "does not follow",
        ),
        (
            (
                "INSERT INTO consent_state SELECT number, call_class, channel, '+85261234567', since, verb, until "
                "FROM consent_state WHERE number = '13957100000'"
            ),
            NUMBERS[0],
            "from +85261234567",
        ),
    ],
)
def test_state_that_does_not_follow_is_found(chained: Store, script: str, number: str, says: str) -> None:
    """A row of state that was changed, removed or put in is told with its number, though the chain is whole."""
    by_hand(chained, script)
    found = chained.verify_ledger()
    assert (found.events, found.number, found.event_id) == (5, number, None)
    assert says in found.fault
    assert found.fault.isprintable()


def test_progress_is_told(store: Store) -> None:
    """Both passes tell how far they are."""
    store.append_many(event(f"139{n:08d}") for n in range(12_000))
    told: list[tuple[str, int]] = []
    assert store.verify_ledger(progress=lambda doing, rows: told.append((doing, rows))).states == 12_000
    assert ("checking the chain", 10_000) in told
    assert any(doing == "comparing the state" for doing, _ in told)
