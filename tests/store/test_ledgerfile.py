"""Consent events as CSV: what comes back, and which rows are refused."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pbxguard.errors import BadInput, BadNumber
from pbxguard.screening.registry import CallClass, ConsentEvent, Verb
from pbxguard.store import LedgerImport, Store, write_events

NOW = datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=UTC)
ME = "13957100001"
EVENTS = [
    ConsentEvent(ME, CallClass.HMT, "voice", Verb.OPEN, NOW, NOW, "cli:root", "cli", evidence='短信, "7"'),
    ConsentEvent(
        ME, CallClass.INTL, "sms", Verb.OPEN, NOW, NOW, "subscriber", "sms", NOW + timedelta(days=9), "+85261234567"
    ),
    ConsentEvent(ME, CallClass.HMT, "voice", Verb.CLOSE, NOW - timedelta(1), NOW, "cutover:x", "cutover"),
    ConsentEvent(ME, CallClass.HMT, "voice", Verb.RESET, NOW - timedelta(1), NOW, "cutover:x", "cutover"),
    ConsentEvent(ME, CallClass.HMT, "voice", Verb.CLOSE, NOW + timedelta(9), NOW, "cli:root", "cli"),
]
HEAD = "number,class,verb,effective_at"


def normalise(text: str) -> str:
    if not text.lstrip("+").isdigit():
        raise BadNumber(f"{text!r} is not a number")
    return text


def imported(store: Store, path: Path, **options: bool) -> LedgerImport:
    """Restore a ledger from its export."""
    options = {"restore": True, **options}
    return store.import_events(path, normalise, now=NOW + timedelta(hours=1), actor="cli:me", **options)


def exported(store: Store, path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as text:
        write_events(text, store.iter_events())
    return path


def test_export_into_an_empty_database_is_the_same(store: Store, tmp_path: Path) -> None:
    """Events, head and state of the copy are those of the original; a second import appends nothing."""
    store.append_many(EVENTS)
    path = exported(store, tmp_path / "a.csv")
    with Store.open(tmp_path / "b.db") as copy:
        assert imported(copy, path, dry_run=True) == LedgerImport(5, 5)
        assert copy.head()[0] == 0
        assert imported(copy, path) == LedgerImport(5, 5)
        assert copy.history(ME) == tuple(EVENTS)
        assert copy.head() == store.head()
        assert copy.state(ME) == store.state(ME)
        assert copy.verify_ledger().fault == ""
        for dry_run in (True, False):
            assert imported(copy, path, dry_run=dry_run) == LedgerImport(5, 0)
        assert copy.head() == store.head()


def test_later_export_appends_what_is_new(store: Store, tmp_path: Path) -> None:
    """A close that was taken back and done again is three events, also for a copy that has the first two."""
    store.append_many(EVENTS[2:4])
    first = exported(store, tmp_path / "a.csv")
    store.append(replace(EVENTS[2], recorded_at=NOW + timedelta(minutes=1)))
    second = exported(store, tmp_path / "b.csv")
    with Store.open(tmp_path / "b.db") as copy:
        assert imported(copy, first) == LedgerImport(2, 2)
        assert imported(copy, second) == LedgerImport(3, 1)
        assert copy.state(ME) == store.state(ME)
        assert copy.head() == store.head()


def test_short_file_takes_the_defaults(store: Store, tmp_path: Path) -> None:
    """Only four columns are needed; the file may come again an hour later, by another hand, and adds nothing."""
    path = tmp_path / "in.csv"
    path.write_bytes(f"\ufeff{HEAD}\r\n{ME}, HMT ,Open,2026-11-20T00:00+08:00\r\n\r\n".encode())
    assert imported(store, path) == LedgerImport(1, 1)
    (event,) = store.history(ME)
    assert event == ConsentEvent(
        ME, CallClass.HMT, "voice", Verb.OPEN, datetime(2026, 11, 19, 16, tzinfo=UTC), NOW + timedelta(hours=1),
        "cli:me", "import",
    )  # fmt: skip
    again = store.import_events(path, normalise, now=NOW + timedelta(hours=2), actor="cli:you")
    assert again == LedgerImport(1, 0)


def test_only_a_restore_takes_what_a_file_says_of_its_writing(store: Store, tmp_path: Path) -> None:
    """Time of record, actor and way are ours, so that no file passes for a subscriber or a cut-over."""
    path = tmp_path / "in.csv"
    row = f"{ME},hmt,close,2026-11-20T00:00Z,1999-01-01T00:00Z,cutover:x,cutover"
    path.write_text(f"{HEAD},recorded_at,actor,via\n{row}\n")
    assert imported(store, path, restore=False) == LedgerImport(1, 1)
    (event,) = store.history(ME)
    assert (event.recorded_at, event.actor, event.via) == (NOW + timedelta(hours=1), "cli:me", "import")
    assert imported(store, path, restore=False) == LedgerImport(1, 0)
    assert imported(store, path) == LedgerImport(1, 1), "as it stands it is another event"
    assert store.history(ME)[1].via == "cutover"
    path.write_text(f"{HEAD}\n{ME},hmt,reset,2026-11-20T00:00Z\n")
    with pytest.raises(BadInput, match="only the undoing of a cut-over resets"):
        imported(store, path, restore=False)


def test_import_of_many_tells_how_far_it_is(store: Store, tmp_path: Path) -> None:
    """The file is checked first, then appended; both tell."""
    path = tmp_path / "in.csv"
    rows = (f"139{n:08d},intl,close,2026-11-20T00:00Z" for n in range(12_000))
    path.write_text("\n".join([HEAD, *rows]))
    told: list[tuple[str, int]] = []
    report = store.import_events(
        path, normalise, now=NOW, actor="x", progress=lambda doing, count: told.append((doing, count))
    )
    assert report == LedgerImport(12_000, 12_000)
    assert told[0] == ("checking", 5000)
    assert told[-1] == ("appending", 12_000)
    assert store.verify_ledger().states == 12_000


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("abc,hmt,open,2026-11-20T00:00Z,,,,,,", "'abc' is not a number"),
        (f"{ME},moon,open,2026-11-20T00:00Z,,,,,,", "column class: 'moon' is not one of intl, hmt"),
        (f"{ME},hmt,shut,2026-11-20T00:00Z,,,,,,", "column verb: 'shut' is not one of open, close, reset"),
        (f"{ME},hmt,,2026-11-20T00:00Z,,,,,,", "column verb: '' is not one of"),
        (f"{ME},hmt,open,,,,,,,", "column effective_at: '' is no time such as"),
        (f"{ME},hmt,open,soon,,,,,,", "column effective_at: 'soon' is no time such as"),
        (f"{ME},hmt,open,0001-01-01T00:00+23:00,,,,,,", "column effective_at"),
        (f"{ME},hmt,open,2026-11-20T00:00,,,,,,", "has no time zone"),
        (f"{ME},hmt,open,2026-11-20T00:00Z,fax,,,,,", "column channel: 'fax' is not one of voice, sms"),
        (f"{ME},hmt,open,2026-11-20T00:00Z,,x,,,,", "'x' is not a number"),
        (f"{ME},hmt,open,2026-11-20T00:00Z,,,2026-11-20T00:00Z,,,", "ends before it begins"),
        (f"{ME},hmt,open,2026-11-20T00:00Z,,,,2999-01-01T00:00Z,,", "column recorded_at: '2999-01-01T00:00Z' is in"),
        (f"{ME},hmt,open,2026-11-20T00:00Z,,,,,{'x' * 101},", "its actor than 100"),
        (f"{ME},hmt,open,2026-11-20T00:00Z,,,,,a\x1b[31m,", "control character"),
        (f"{ME},hmt,open,2026-11-20T00:00Z,,,,,,{'v' * 21}", "column via"),
        (f"{ME},hmt,open,2026-11-20T00:00Z", "has 4 columns, the header has 10"),
        (f"{ME},hmt,open,2026-11-20T00:00Z,,,,,,\0", "holds a NUL byte"),
        (f"{ME},hmt,open,2026-11-20T00:00Z,,,,,,{'v' * 5000}", "is longer than 4096 characters"),
        ('"x"y,hmt', "is not CSV"),
    ],
)
def test_bad_row_keeps_all_out(store: Store, tmp_path: Path, row: str, says: str) -> None:
    """A row that is wrong is named with its line on one printable line, and the good ones are not appended."""
    good = f"{ME},hmt,open,2026-11-20T00:00Z,,,,,,"
    path = tmp_path / "in.csv"
    path.write_text(f"{HEAD},channel,caller,until,recorded_at,actor,via\n{good}\n{row}\n{good}\n")
    for dry_run in (True, False):
        with pytest.raises(BadInput) as caught:
            imported(store, path, dry_run=dry_run)
        assert "1 bad rows, nothing was imported: line 3: " in str(caught.value)
        assert says in str(caught.value)
        assert str(caught.value).isprintable()
    assert store.head()[0] == 0


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "line 1: the header needs a column number"),
        (b"number,class,verb\n", "line 1: the header needs a column effective_at"),
        (HEAD.encode() + b",colour\n", "does not know column 'colour'"),
        (HEAD.encode() + b",verb\n", "needs a column number, once"),
        (b"\xff\xfe\n", "line 1: is not UTF-8"),
        (HEAD.encode() + b"\n" + b"a,b,c,d\n" * 30, "30 bad rows"),
        (HEAD.encode() + b"\n" + b"a,b,c,d\n" * 30, "and 10 more"),
    ],
)
def test_bad_file(store: Store, tmp_path: Path, data: bytes, says: str) -> None:
    """A file that is none of ours is refused by its first line, and no more than 20 bad rows are listed."""
    path = tmp_path / "in.csv"
    path.write_bytes(data)
    with pytest.raises(BadInput) as caught:
        imported(store, path)
    assert says in str(caught.value)
    with pytest.raises(BadInput, match="cannot be read"):
        imported(store, tmp_path / "none.csv")
