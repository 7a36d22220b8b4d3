"""Lists: entries, imports that are all or nothing, CSV files."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pbxguard.errors import BadInput, BadNumber, StoreUnavailable
from pbxguard.screening.lists import Action, ListEntry
from pbxguard.store import ImportReport, Store, read_csv, write_csv

NOW = datetime(2026, 11, 21, 12, 0, 0, 7, tzinfo=UTC)
OLD = [ListEntry("", f"139{n:08d}", Action.BLOCK, "system") for n in range(500)]


def home(text: str) -> str:
    """A small home form: 0086 goes, digits and + stay, the rest is refused."""
    number = text.removeprefix("0086")
    if not number.isascii() or not number.removeprefix("+").isdigit() or len(number) > 20:
        raise BadNumber(f"{text[:40]!a}: not a number")
    return number


def block(pattern: str, name: str = "system", owner: str = "") -> ListEntry:
    return ListEntry(owner, pattern, Action.BLOCK, name)


def stored(store: Store) -> list[ListEntry]:
    return sorted(store.entries(), key=str)


def test_entry_is_added_overwritten_and_removed(store: Store) -> None:
    """Owner, pattern and list name an entry; each change gives the lists a new version."""
    versions = [store.lists_version()]
    first = ListEntry("13957100001", "13800000000-13800000123", Action.BLOCK, "own", "s", "r", "l", NOW)
    second = ListEntry("13957100001", "13800000000-13800000123", Action.ALLOW, "own")
    for entry in (first, second):
        store.add_entry(entry)
        assert list(store.entries()) == [entry]
        assert store.count() == 1
        versions.append(store.lists_version())
    assert not store.remove_entry("", second.pattern, "own")
    assert not store.remove_entry(second.owner, "13800000000-13800000122", "own")
    assert store.remove_entry(second.owner, second.pattern, "own")
    versions.append(store.lists_version())
    assert list(store.entries()) == []
    assert store.facts("13800000005", (second.owner,)).listed == ()
    assert len(set(versions)) == len(versions)


def test_overlapping_ranges_live_side_by_side(store: Store) -> None:
    """Two ranges that share numbers are two entries; removing one leaves the other whole."""
    wide, narrow = block("13800000000-13800019999"), block("13800000000-13800009999")
    store.import_entries([wide, narrow])
    assert {e.pattern for e in store.facts("13800000001", ()).listed} == {wide.pattern, narrow.pattern}
    store.remove_entry("", narrow.pattern, "system")
    assert store.facts("13800000001", ()).listed == (wide,)
    assert store.facts("13800010001", ()).listed == (wide,)


def test_entries_and_count_of_one_owner_or_list(store: Store) -> None:
    """Entries can be asked for by owner and by list."""
    rows = [block("1"), block("2", "own", "13957100001"), block("3", "punishment")]
    store.import_entries(rows)
    assert list(store.entries(owner="13957100001")) == [rows[1]]
    assert list(store.entries(name="punishment")) == [rows[2]]
    assert list(store.entries(owner="", name="own")) == []
    assert (store.count(), store.count(owner=""), store.count(name="own")) == (3, 2, 1)


def test_dry_run_tells_what_the_import_then_does(store: Store) -> None:
    """A dry run changes nothing and reports the same figures."""
    store.import_entries([*OLD, block("9520*", "other")])
    for replace in (None, "system"):
        rows = [*OLD[:3], block("1380*"), block("1380*"), block("13700000000-13700000012")]
        before = stored(store)
        dry = store.import_entries(rows, replace=replace, dry_run=True)
        assert stored(store) == before
        assert dry.lists_version == store.lists_version()
        real = store.import_entries(rows, replace=replace)
        assert (dry.rows, dry.added, dry.overwritten, dry.removed) == (
            real.rows,
            real.added,
            real.overwritten,
            real.removed,
        )
        assert store.lists_version() == real.lists_version != dry.lists_version
    assert real == ImportReport(6, 5, 1, 502, dry_run=False, lists_version="3")


def test_replacing_a_list_leaves_the_others(store: Store) -> None:
    """Only the named list is emptied first, whether or not there are others."""
    store.import_entries([*OLD, block("9520*", "other")])
    store.import_entries([block("1")], replace="system")
    assert stored(store) == [block("1"), block("9520*", "other")]
    store.import_entries([], replace="system")
    store.import_entries([block("2", "other")], replace="other")
    assert stored(store) == [block("2", "other")]
    with pytest.raises(BadInput, match="'own'"):
        store.import_entries([block("3", "own")], replace="other")
    assert stored(store) == [block("2", "other")]


def test_last_of_equal_rows_stays(store: Store) -> None:
    """A file that names an entry twice means the later line."""
    store.import_entries([block("1"), ListEntry("", "1", Action.ALLOW, "system", reason="mistake")])
    assert [entry.action for entry in store.entries()] == [Action.ALLOW]


def test_import_that_fails_midway_keeps_the_old_entries(store: Store) -> None:
    """An iterator that raises after many rows leaves entries and version as they were."""
    store.import_entries(OLD)

    def broken() -> Iterator[ListEntry]:
        yield from (block(f"138{n:08d}") for n in range(25_000))
        raise BadInput("line 25002: no")

    with pytest.raises(BadInput, match="25002"):
        store.import_entries(broken(), replace="system")
    with pytest.raises(BadNumber):
        store.import_entries([block("1"), block("not a number")])
    assert stored(store) == OLD
    assert store.lists_version() == "1"


def test_readers_and_writers_go_on_while_rows_are_read(store: Store) -> None:
    """During an import look-ups see the old entries, and a subscriber can still opt in."""
    store.import_entries(OLD)
    seen = []

    def look(_rows: int) -> None:
        seen.append(len(store.facts(OLD[0].pattern, ()).listed))
        store.add_entry(block("95588", "during"))

    store.import_entries((block(f"138{n:08d}") for n in range(25_000)), replace="system", progress=look)
    assert seen == [1, 1, 1]
    assert store.facts(OLD[0].pattern, ()).listed == ()
    assert store.count(name="during") == 1


_IMPORT = """
import sys
from pbxguard.screening.lists import Action, ListEntry
from pbxguard.store import Store
from pbxguard.store.sqlite import Bulk
with Store.open(sys.argv[1]) as store:
    def say(step):
        def method(self, *args, _real=getattr(Bulk, step)):
            given = _real(self, *args)
            print(step, flush=True)
            sys.stdin.readline()
            return given
        setattr(Bulk, step, method)
    for step in ("stage", "move", "checkpoint"):
        say(step)
    store.import_entries(
        (ListEntry("", f"138{n * 7919 % 200_000:08d}", Action.BLOCK, "system") for n in range(200_000)),
        replace="system",
    )
"""


@pytest.mark.parametrize(("at", "whole"), [(1, False), (7, False), (20, False), (21, False), (22, True)])
def test_killed_import_leaves_all_old_or_all_new(store: Store, at: int, whole: bool) -> None:
    """SIGKILL while rows are staged or moved leaves the old entries; after the commit, the new ones.

    Steps 1 to 20 stage 10,000 rows each, step 21 has moved them in without committing, 22 has committed.
    """
    store.import_entries(OLD)
    child = subprocess.Popen(
        [sys.executable, "-c", _IMPORT, store.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    for step in range(1, at + 1):
        assert child.stdout.readline(), f"the import ended before step {step}"
        if step < at:
            child.stdin.write("\n")
            child.stdin.flush()
    if at == 21:  # the moment that counts: everything is written, nothing committed
        assert store.facts(OLD[0].pattern, ()).listed == (OLD[0],)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(20) == -signal.SIGKILL
    child.stdin.close()
    child.stdout.close()
    store.close()
    with Store.open(store.path) as after:
        if whole:
            assert after.count() == 200_000
        else:
            assert stored(after) == OLD
        assert after.lists_version() == ("2" if whole else "1")
        with after.reading() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        after.add_entry(block("95588"))


@pytest.mark.parametrize("delay_rows", [0, 60_000, 130_000, 199_000])
def test_import_killed_while_running_leaves_the_old_entries(store: Store, delay_rows: int) -> None:
    """SIGKILL from within the row source, wherever it is, leaves the old entries whole."""
    store.import_entries(OLD)
    code = (
        "import os, signal, sys\nfrom pbxguard.screening.lists import Action, ListEntry\n"
        "from pbxguard.store import Store\n"
        "def rows():\n"
        "    for n in range(200_000):\n"
        "        if n == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield ListEntry('', f'138{n:08d}', Action.BLOCK, 'system')\n"
        "Store.open(sys.argv[1]).import_entries(rows(), replace='system')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, store.path, str(delay_rows)], check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert stored(store) == OLD


def test_csv_with_all_columns(tmp_path: Path, store: Store) -> None:
    """Every column is read; numbers come out in home form; byte order mark and CRLF are accepted."""
    path = tmp_path / "list.csv"
    path.write_bytes(
        b"\xef\xbb\xbfpattern,action,owner,name,source,reason,legal_basis,expires_at\r\n"
        b'008613800138000,ALLOW,008613957100001,own,feed,"a, ""b""",art. 36,2027-01-01T00:00:00+08:00\r\n'
        b"\r\n"
        b"9520*,,,,,,,\r\n"
        b"13800000000-13800009999,block,,punishment,,\xe8\xaf\x88\xe9\xaa\x97,,2027-01-01T00:00:00Z\r\n"
    )
    expected = [
        ListEntry(
            *("13957100001", "13800138000", Action.ALLOW, "own", "feed", 'a, "b"', "art. 36"),
            datetime(2026, 12, 31, 16, tzinfo=UTC),
        ),
        block("9520*"),
        ListEntry(
            *("", "13800000000-13800009999", Action.BLOCK, "punishment", "", "诈骗", ""),
            datetime(2027, 1, 1, tzinfo=UTC),
        ),
    ]
    assert list(read_csv(path, home, home="+86")) == expected
    assert store.import_csv(path, home, home="+86").added == 3
    assert stored(store) == sorted(expected, key=str)


def test_bare_file_of_numbers(tmp_path: Path, store: Store) -> None:
    """A file with nothing but patterns blocks them, on the list that the operator names."""
    path = tmp_path / "list.csv"
    path.write_text("pattern\n13800138000\n+852*\n")
    assert list(read_csv(path, home, home="+86", name="feed")) == [
        block("13800138000", "feed"),
        block("+852*", "feed"),
    ]
    store.import_csv(path, home, home="+86", replace="feed")
    assert store.count(name="feed") == 2


@pytest.mark.parametrize(
    ("row", "column", "what"),
    [
        ("138x,,,,,,,", "pattern", "not a number"),
        (",,,,,,,", "pattern", "not a number"),
        ("１３８,,,,,,,", "pattern", "not a number"),
        ("2-1,,,,,,,", "pattern", "ends before it begins"),
        ("1,maybe,,,,,,", "action", "none of allow, block, note"),
        ("1,,me,,,,,", "owner", "not a number"),
        (f"1,,,{'n' * 41},,,,", "name", "longer than 40"),
        (f"1,,,,,{'r' * 501},,", "reason", "longer than 500"),
        ("1,,,,a\tb,,,", "source", "control character"),
        ("1,,,,,,,tomorrow", "expires_at", "not a time"),
        ("1,,,,,,,2027-01-01", "expires_at", "no time zone"),
        ("1,,,", "", "4 columns, the header has 8"),
        ("1,,,,a\0b,,,", "", "NUL"),
        (f"1,,,,{'x' * 5000},,,", "", "longer than 4096"),
        ('1,,,,"a"b,,,', "", "not CSV"),
        ("1,,,,\udce9,,,", "", "not UTF-8"),
    ],
)
def test_bad_row_is_named_and_nothing_is_kept(tmp_path: Path, store: Store, row: str, column: str, what: str) -> None:
    """A bad row gives file, line, column and what is wrong; the good rows are not imported either."""
    store.import_entries(OLD)
    path = tmp_path / "list.csv"
    header = "pattern,action,owner,name,source,reason,legal_basis,expires_at"
    path.write_bytes(f"{header}\n1,,,,,,,\n{row}\n2,,,,,,,\n".encode(errors="surrogateescape"))
    for read in (lambda: list(read_csv(path, home, home="+86")), lambda: store.import_csv(path, home, home="+86")):
        with pytest.raises(BadInput) as caught:
            read()
        message = str(caught.value)
        assert message.isprintable()
        assert message.startswith(f"{path}: 1 bad rows, nothing was imported: line 3: ")
        assert what in message
        assert not column or f"column {column}: " in message
    assert stored(store) == OLD


def test_first_twenty_errors_of_many_are_listed(tmp_path: Path) -> None:
    """A file with a thousand bad rows names twenty and counts the rest."""
    path = tmp_path / "list.csv"
    path.write_text("pattern\n" + "bad\n" * 1000)
    with pytest.raises(BadInput) as caught:
        list(read_csv(path, home, home="+86"))
    message = str(caught.value)
    assert "1000 bad rows" in message
    assert "line 21: " in message
    assert "line 22: " not in message
    assert message.endswith("and 980 more")


@pytest.mark.parametrize("text", ["", "number\n1\n", "pattern,colour\n1,red\n", "pattern,pattern\n1,1\n", '"\n'])
def test_wrong_header_is_named(tmp_path: Path, text: str) -> None:
    """A file without a usable header is refused at line 1."""
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(BadInput, match="line 1") as caught:
        list(read_csv(path, home, home="+86"))
    assert str(caught.value).isprintable()


def test_missing_file_and_endless_line(tmp_path: Path) -> None:
    """A path that is not there is named; a file without line ends is not read into memory."""
    with pytest.raises(BadInput, match="cannot be read"):
        list(read_csv(tmp_path / "none.csv", home, home="+86"))
    path = tmp_path / "list.csv"
    path.write_text("pattern\n" + "1" * 3_000_000)
    with pytest.raises(BadInput, match="line 2: is longer"):
        list(read_csv(path, home, home="+86"))


TAGS = ("intl", "region:hk")
texts = st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "), max_size=20)
listed = st.builds(
    ListEntry,
    owner=st.sampled_from(["", "13957100001"]),
    pattern=st.sampled_from(
        ["13800138000", "9520*", "+852*", "+*", "138-139", "+100-+299", "class:intl", "region:hk"]
    ),
    action=st.sampled_from([Action.ALLOW, Action.BLOCK]),
    name=texts.map(str.strip).filter(bool),
    source=texts,
    reason=texts,
    legal_basis=texts,
    expires_at=st.none() | st.datetimes(datetime(2026, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    since=st.none() | st.datetimes(max_value=datetime(2025, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    document=texts,
    lifted_at=st.none() | st.datetimes(timezones=st.just(UTC)),
    lift_reason=texts,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=st.lists(listed, max_size=6, unique_by=lambda e: (e.owner, e.pattern, e.name)))
def test_export_then_import_is_identity(store: Store, entries: list[ListEntry]) -> None:
    """What is exported, imported into an empty store, is what there was."""
    path = store.path.with_suffix(".csv")
    with path.open("w", encoding="utf-8", newline="") as file:
        assert write_csv(file, entries) == len(entries)
    for name in {entry.name for entry in store.entries()}:
        store.import_entries([], replace=name)
    store.import_csv(path, home, home="+86", tags=TAGS)
    assert stored(store) == sorted(entries, key=str)
    assert sorted(read_csv(path, home, home="+86", tags=TAGS), key=str) == sorted(entries, key=str)


@pytest.mark.parametrize(
    "fields", [{"reason": "x" * 501}, {"source": "a\0"}, {"name": ""}, {"name": "a\nb"}, {"owner": "1" * 21}]
)
def test_entries_with_bad_texts_are_refused(store: Store, fields: dict[str, str]) -> None:
    """Texts are bounded and printable by whatever way an entry comes."""
    entry = ListEntry(**({"owner": "", "pattern": "1", "action": Action.BLOCK, "name": "own"} | fields))  # type: ignore[arg-type]
    for way in (lambda: store.add_entry(entry), lambda: store.import_entries([entry])):
        with pytest.raises(BadInput):
            way()
    assert store.count() == 0


def test_import_into_a_locked_store_says_so(store: Store) -> None:
    """An import that cannot get the write lock changes nothing and names the remedy."""
    with store.writing(), pytest.raises(StoreUnavailable, match="locked"):
        store.import_entries(OLD)
    assert store.count() == 0


def test_row_that_blocks_only_numbers_that_may_never_be_blocked_is_bad(tmp_path: Path, store: Store) -> None:
    """An exact number, range or prefix of nothing else is refused by line; a wide one and an allow row are not."""
    never = {"110", "119", "120", "10086"}
    path = tmp_path / "list.csv"
    path.write_text("pattern,action\n138*,\n110,\n119-120,block\n10086*,\n")
    with pytest.raises(BadInput) as caught:
        store.import_csv(path, home, home="+86", never_block=never.__contains__)
    assert str(caught.value).count("which no list may block") == 3
    assert all(f"line {line}: column pattern: " in str(caught.value) for line in (3, 4, 5))
    assert store.count() == 0
    path.write_text("pattern,action\n1*,\n100-999,block\n110,allow\n10000000000-19999999999,\n")
    assert store.import_csv(path, home, home="+86", never_block=never.__contains__).added == 4
    assert len(list(read_csv(path, home, home="+86", never_block=never.__contains__))) == 4


def test_classes_in_a_file_are_those_of_the_pack(tmp_path: Path, store: Store) -> None:
    """A class that numbers can have is read; another one is a bad row, since it would match nothing."""
    path = tmp_path / "list.csv"
    path.write_text("pattern,owner\nclass:hmt,13957100001\nregion:hk,\n")
    assert store.import_csv(path, home, home="+86", tags=["hmt", "region:hk"]).added == 2
    assert [entry.pattern for entry in store.entries()] == ["region:hk", "class:hmt"]
    with pytest.raises(BadInput, match=r"line 3: column pattern: 'region:hk'.*near are class:hmt"):
        list(read_csv(path, home, home="+86", tags=["hmt"]))


@pytest.mark.parametrize(
    ("row", "column", "what"),
    [
        ("1,,tomorrow,,", "since", "not a time"),
        ("1,,2027-01-01,,", "since", "no time zone"),
        ("1,,2027-01-01T00:00:00Z,2027-01-01T00:00:00Z,", "expires_at", "not after since"),
        ("1,,,,maybe", "retained", "neither yes nor no"),
        ("1,allow,,,yes", "retained", "only an entry that blocks"),
    ],
)
def test_bad_dates_and_flags_are_named(tmp_path: Path, row: str, column: str, what: str) -> None:
    """The later columns are checked as the first ones."""
    path = tmp_path / "list.csv"
    path.write_text(f"pattern,action,since,expires_at,retained\n1,,,,no\n{row}\n")
    with pytest.raises(BadInput, match=f"line 3: column {column}: .*{what}"):
        list(read_csv(path, home, home="+86"))


def test_entries_that_belong_together_are_stored_together(store: Store) -> None:
    """One bad entry keeps the others out too; kept numbers are found by the reason that they were written with."""
    kept = ListEntry("", "13112345678", Action.BLOCK, "punishment", reason="kept by 1", retained=True)
    with pytest.raises(BadInput):
        store.add_entries([kept, block("2", "")])
    assert store.count() == 0
    store.add_entries([kept, block("1", "punishment")])
    assert store.lists_version() == "1"
    assert store.kept_by("kept by 1", "punishment") == [kept]
    assert store.kept_by("kept by 2", "punishment") == store.kept_by("kept by 1", "system") == []


@pytest.mark.parametrize("micros", [2**62, -(2**62)])
def test_time_outside_the_calendar_that_is_stored_already(store: Store, micros: int) -> None:
    """A row with such a time, as an older version took it, is read as the first or last moment; decisions go on."""
    store.add_entry(block("13800138000"))
    raw = sqlite3.connect(store.path)
    with raw:
        raw.execute("UPDATE list_entry SET since = ?, expires_at = ?", (micros, micros))
    raw.close()
    (entry,) = store.facts("13800138000", ()).listed
    assert entry.since == entry.expires_at
    assert entry.since is not None
    assert entry.since.year == (9999 if micros > 0 else 1)
    assert list(store.entries()) == [entry]
