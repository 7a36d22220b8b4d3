"""Opening, migrating, sharing and failing of the database."""

import os
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql

from pbxguard.errors import BadConfig, StoreUnavailable
from pbxguard.screening.call import Subscriber
from pbxguard.screening.lists import Action, ListEntry
from pbxguard.store import Store, ledger, migrations
from pbxguard.store.facts import facts_query
from pbxguard.store.schema import REVISIONS, metadata
from pbxguard.store.sqlite import explain as sqlite_explain

ZHANG = Subscriber("13957100001", "cm", "zhejiang", "zh")


def one_line(error: BaseException) -> str:
    """Give the message, which must be one printable line."""
    text = str(error)
    assert text.isprintable(), text
    return text


def test_migrated_tables_are_those_of_the_schema(store: Store) -> None:
    """The revisions make exactly the tables, columns and indexes that the program uses."""
    with store.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_newest_revision_is_the_one_that_the_program_expects() -> None:
    """Alembic's own list of revisions is the one that opening compares with."""
    script = ScriptDirectory.from_config(migrations.config())
    assert [r.revision for r in script.walk_revisions()][::-1] == list(REVISIONS)


def test_opening_an_up_to_date_database_does_not_import_alembic(store: Store) -> None:
    """Alembic is loaded to migrate, never for an ordinary start."""
    code = (
        "import sys; from pbxguard.store import Store; Store.open(sys.argv[1]).close();"
        "sys.exit(any(m.split('.')[0] in ('alembic', 'mako') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code, store.path], check=False, timeout=60).returncode == 0


def test_two_processes_may_create_the_same_database_at_once(tmp_path: Path) -> None:
    """Several guards that start together on a new database all succeed."""
    code = "import sys; from pbxguard.store import Store; Store.open(sys.argv[1]).close()"
    started = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "new.db"]) for _ in range(4)]
    assert [process.wait(60) for process in started] == [0] * 4


def test_statements_compile_for_postgresql() -> None:
    """The hot query and the ledger's own statements hold nothing that only SQLite understands."""
    dialect = postgresql.dialect(paramstyle="format")  # type: ignore[no-untyped-call]
    for private in (False, True):
        assert "UNION ALL" in str(facts_query(3, 2, private=private).compile(dialect=dialect))
    assert "DELETE" in str(ledger._FORGET.compile(dialect=dialect))


def test_url_and_path_name_the_same_database(tmp_path: Path) -> None:
    """A path and its sqlite URL open the same file."""
    path = tmp_path / "guard.db"
    with Store.open(path) as store:
        store.add_subscriber(ZHANG)
    with Store.open(f"sqlite:///{path}") as store:
        assert store.subscriber(ZHANG.number) == ZHANG


@pytest.mark.parametrize("url", ["postgresql://h/db", ":memory:", "sqlite://", "", "://"])
def test_databases_that_several_processes_cannot_share_are_refused(url: str) -> None:
    """A memory database, another engine or no name at all is a configuration error."""
    with pytest.raises(BadConfig) as caught:
        Store.open(url)
    one_line(caught.value)


def test_missing_folder_missing_file_and_folder_in_its_place(tmp_path: Path) -> None:
    """What is not there is named, and nothing is created."""
    for path, create in ((tmp_path / "no" / "x.db", True), (tmp_path / "x.db", False), (tmp_path, True)):
        with pytest.raises(StoreUnavailable, match=str(path)):
            Store.open(path, create=create)
    assert list(tmp_path.iterdir()) == []


def test_file_that_is_not_a_database_is_left_alone(tmp_path: Path) -> None:
    """A text file is refused by name and keeps its bytes."""
    path = tmp_path / "notes.txt"
    path.write_bytes(b"dear diary, " * 1000)
    with pytest.raises(StoreUnavailable, match="not a pbxguard database") as caught:
        Store.open(path)
    one_line(caught.value)
    assert path.read_bytes() == b"dear diary, " * 1000


def test_corrupt_database_is_named_with_the_remedy(tmp_path: Path) -> None:
    """Damaged pages give StoreUnavailable with what to do, for the hot path as well as for writes."""
    path = tmp_path / "guard.db"
    with Store.open(path) as store:
        store.import_entries(ListEntry("", f"138{n:08d}", Action.BLOCK, "system") for n in range(20_000))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(os.urandom(size - 8192))
    with pytest.raises(StoreUnavailable, match="damaged") as caught, Store.open(path) as store:
        store.facts("13800000001", ("13957100001",))
    one_line(caught.value)
    with pytest.raises(StoreUnavailable, match="damaged"), Store.open(path) as store:
        store.add_entry(ListEntry("", "9520*", Action.BLOCK, "system"))


def test_database_of_a_newer_program_is_left_alone(store: Store) -> None:
    """A schema that this program does not know is refused, and not touched."""
    store.close()
    with sqlite3.connect(store.path) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    with pytest.raises(StoreUnavailable, match="newer pbxguard") as caught:
        Store.open(store.path)
    one_line(caught.value)


def test_locked_database_stops_writers_after_two_seconds_and_readers_never(store: Store) -> None:
    """Another program's write lock gives a writer a clear error; a decision does not wait for it."""
    store.add_subscriber(ZHANG)
    raw = sqlite3.connect(store.path, isolation_level=None)
    raw.execute("BEGIN IMMEDIATE")
    raw.execute("DELETE FROM subscriber")
    try:
        assert store.facts("95588", (ZHANG.number,)).callees == {ZHANG.number: ZHANG}
        with Store.open(store.path) as other:
            assert other.subscriber(ZHANG.number) == ZHANG
        with pytest.raises(StoreUnavailable, match="locked") as caught:
            store.remove_subscriber(ZHANG.number)
        one_line(caught.value)
    finally:
        raw.execute("ROLLBACK")
        raw.close()
    assert store.remove_subscriber(ZHANG.number)


@pytest.mark.parametrize("lock", ["BEGIN IMMEDIATE", "BEGIN; SELECT * FROM sqlite_master", "BEGIN EXCLUSIVE"])
def test_new_database_that_another_program_is_opening_too(tmp_path: Path, lock: str) -> None:
    """Whichever lock the other has on the file that has no write-ahead log yet, it is waited for."""
    raw = sqlite3.connect(tmp_path / "new.db", isolation_level=None, check_same_thread=False)
    raw.execute("CREATE TABLE t(a)")
    for statement in lock.split("; "):
        raw.execute(statement).fetchall()
    release = threading.Timer(0.3, lambda: raw.execute("ROLLBACK"))
    release.start()
    try:
        with Store.open(tmp_path / "new.db") as store:
            assert not raw.in_transaction
            assert list(store.recent()) == []
    finally:
        release.join()
        raw.close()


def test_new_database_that_stays_locked(tmp_path: Path) -> None:
    """A program that goes on holding its lock on the new file is named as the cause."""
    raw = sqlite3.connect(tmp_path / "new.db", isolation_level=None)
    raw.execute("CREATE TABLE t(a)")
    raw.execute("BEGIN")
    raw.execute("SELECT * FROM sqlite_master").fetchall()
    try:
        with pytest.raises(StoreUnavailable, match="locked by another program") as caught:
            Store.open(tmp_path / "new.db")
        one_line(caught.value)
    finally:
        raw.close()


_FILL = """
import resource, sys
from pbxguard.errors import StoreUnavailable
from pbxguard.screening.lists import Action, ListEntry
from pbxguard.store import Store
store = Store.open(sys.argv[1])
store.add_entry(ListEntry("", "9520*", Action.BLOCK, "system"))
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
try:
    store.import_entries(ListEntry("", f"138{n:08d}", Action.BLOCK, "system") for n in range(200_000))
except StoreUnavailable as exc:
    print(exc)
store.close()
"""


def test_full_disk_is_named_and_changes_nothing(tmp_path: Path) -> None:
    """An import that does not fit says so, and the entries from before are all there are."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = (
        os.geteuid() == 0
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small], check=False, capture_output=True
        ).returncode
        == 0
    )
    try:
        # where nothing can be mounted, the limit on file sizes stands in for the end of the disk
        command = [sys.executable, "-c", _FILL, small / "guard.db", "" if mounted else "limit"]
        ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
        assert ("disk is full" if mounted else "free space") in ended.stdout, ended
        assert ended.stdout.count("\n") == 1
        with Store.open(small / "guard.db") as store:
            assert [entry.pattern for entry in store.entries()] == ["9520*"]
    finally:
        if mounted:
            subprocess.run(["umount", small], check=True)


_FILL_UP = """
import sys
from pathlib import Path
from pbxguard.errors import StoreUnavailable
from pbxguard.store import Store
path = Path(sys.argv[1])
Store.open(path).close()
try:
    with (path.parent / "fill").open("wb", buffering=0) as fill:
        while True:
            fill.write(bytes(4096))
except OSError:
    pass
try:
    Store.open(path).facts("95588", ("13957100001",))
except StoreUnavailable as exc:
    print(exc)
"""


def test_io_error_of_a_full_disk_is_named_full(tmp_path: Path) -> None:
    """Where the disk has no byte left, what SQLite calls an I/O error is told as a full disk with the remedy."""
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("needs to mount a small file system")
    try:
        command = [sys.executable, "-c", _FILL_UP, small / "guard.db"]
        ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        assert "the disk is full" in ended.stdout, ended
        assert "free space there" in ended.stdout
        assert ended.stdout.count("\n") == 1
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize(("folder", "says"), [("/proc", "the disk is full"), ("/", "disk I/O error")])
def test_io_error_is_named_by_the_space_that_is_left(folder: str, says: str) -> None:
    """An I/O error is a full disk only where no byte is free, as always on /proc."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    assert says in one_line(sqlite_explain(Path(folder) / "guard.db", error))


def test_many_threads_read_and_write_one_store(store: Store) -> None:
    """Eight threads that look up and write at the same time get right answers and no errors."""
    store.add_subscriber(ZHANG)
    start = threading.Barrier(8)

    def work(thread: int) -> int:
        start.wait(20)
        for n in range(50):
            store.add_entry(ListEntry("", f"138{thread:04d}{n:04d}", Action.BLOCK, "system"))
            facts = store.facts(f"138{thread:04d}{n:04d}", (ZHANG.number,))
            assert [entry.pattern for entry in facts.listed] == [f"138{thread:04d}{n:04d}"]
            assert facts.callees == {ZHANG.number: ZHANG}
        return thread

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(work, range(8))) == list(range(8))
    assert store.count() == 400
    assert store.lists_version() == "400"
