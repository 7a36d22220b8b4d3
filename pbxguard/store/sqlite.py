"""All that is SQLite's own: pragmas, locks, error codes and the quick bulk load.

Everything else in this package is SQLAlchemy Core and compiles for PostgreSQL as well (a test holds it).
"""

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Engine, QueuePool, Table, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from pbxguard.errors import StoreUnavailable

BUSY_TIMEOUT_MS = 2000
"""How long a writer waits for another writer; a reader waits for nobody (WAL)."""

CACHE_KIB = 32_000
"""Page cache of one connection. With ten million rows the inner pages of each table fit in a few MB."""

BULK_CACHE_KIB = 32_000
"""Page cache of the one connection that imports; also what the sorter may hold before it spills."""

_WRITE = "pbxguard_write"

_LOCKED = "{path}: the database is locked by another program that writes to it; try again in a moment"
_CORRUPT = (
    "{path}: the database is damaged ({text}); stop pbxguard, restore a backup, or move the file away to "
    "start with an empty one"
)
_FULL = "{path}: the disk is full, nothing was changed; free space there (and in the temporary folder)"
_REMEDIES = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_CORRUPT: _CORRUPT,
    sqlite3.SQLITE_NOTADB: "{path}: this file is not a pbxguard database; name another one, or move it away",
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_READONLY: "{path}: the database is read-only; let this user write to it and its folder",
    sqlite3.SQLITE_PERM: "{path}: permission denied; let this user write to it and its folder",
    sqlite3.SQLITE_CANTOPEN: "{path}: cannot be opened; check that it is a file this user may read and write",
    sqlite3.SQLITE_IOERR: (
        "{path}: reading or writing failed ({text}); check the disk, its free space and file size limits"
    ),
}


def make_engine(path: Path) -> Engine:
    """Make an engine for a database file, with our pragmas and explicit transactions."""
    engine = create_engine(
        URL.create("sqlite+pysqlite", database=str(path)),
        connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_MS / 1000},
        poolclass=QueuePool,
        pool_size=4,
        max_overflow=-1,  # one a thread at most, and a thread that must wait for a connection is a late call
    )

    @event.listens_for(engine, "connect")
    def _connect(dbapi: sqlite3.Connection, _record: object) -> None:
        # Python's own transaction control opens them late and deferred; ours are explicit (see _begin)
        dbapi.isolation_level = None
        _write_ahead(dbapi)
        # a consent is on the disk before it is confirmed: NORMAL could lose it with the power
        dbapi.execute("PRAGMA synchronous=FULL")
        dbapi.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        dbapi.execute("PRAGMA temp_store=FILE")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A writer takes the lock first: a read that turns into a write cannot wait, it fails at once
        write = connection.get_execution_options().get(_WRITE, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _write_ahead(dbapi: sqlite3.Connection) -> None:
    """Have the database use a write-ahead log, as it does from its first connection on.

    Two that open a new database at once need the same lock for it, and SQLite waits for none here (of each other they
    would wait for ever): it refuses one of them at once, which asks again until the other is through.
    """
    end = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            dbapi.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.005)
        else:
            return


@contextmanager
def write_transaction(engine: Engine) -> Iterator[Connection]:
    """Hold the write lock for a block; commit at its end, roll back if it raises."""
    with engine.connect().execution_options(**{_WRITE: True}) as connection, connection.begin():
        yield connection


def explain(path: Path, error: Exception) -> StoreUnavailable:
    """Turn a database error into one line that names the file and the remedy."""
    cause: BaseException | None = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(cause, "sqlite_errorcode", None)
    text = str(cause)
    remedy = None if code is None else _REMEDIES.get(code & 0xFF)
    # The index of the write-ahead log is mapped memory: where it cannot grow, SQLite tells of I/O, not of space.
    if code is not None and code & 0xFF == sqlite3.SQLITE_IOERR and _disk_is_full(path):
        remedy = _FULL
    if remedy is None:
        remedy = "{path}: the database does not answer as expected ({text}); check that it is pbxguard's own"
    return StoreUnavailable(remedy.format(path=path, text=text))


def _disk_is_full(path: Path) -> bool:
    """Whether the database's file system, or that of temporary files, has no byte left for this user."""
    for folder in (path.parent, Path(tempfile.gettempdir())):
        with suppress(OSError):
            if shutil.disk_usage(folder).free == 0:
                return True
    return False


class Bulk:
    """A connection of its own that stages rows beside the database, then moves them in at one go.

    Staging goes to a temporary file which SQLite removes by itself, also when the process is killed, and
    locks nothing. The rows are then sorted and moved in key order in one transaction: in key order every
    page is written once, in any other order a table of millions of rows is re-read and re-written for
    every few rows. Readers see the old rows until the commit. All names come from the schema, never from
    input.
    """

    def __init__(self, engine: Engine, table: Table) -> None:
        """Open it, with an empty stage of the columns of ``table``."""
        self.connection = engine.connect().execution_options(**{_WRITE: True})
        self._columns = [column.name for column in table.columns]
        self._keys = [column.name for column in table.primary_key]
        self._table = table.name
        driver: Any = self.connection.connection.driver_connection
        self._driver = driver
        self._driver.execute(f"PRAGMA cache_size=-{BULK_CACHE_KIB}")
        self._driver.execute("PRAGMA threads=2")  # the sorter's own threads
        self._driver.execute(f"CREATE TEMP TABLE staged({', '.join(self._columns)})")

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection; its caches and temporary files go with it."""
        self.connection.invalidate()
        self.connection.close()

    def stage(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Put rows aside; each is a tuple in the order of the table's columns."""
        marks = ", ".join("?" * len(self._columns))
        self._driver.execute("BEGIN")
        self._driver.executemany(f"INSERT INTO temp.staged VALUES({marks})", rows)
        self._driver.execute("COMMIT")

    def move(self) -> None:
        """Move the staged rows into the table; of rows with the same key the last one staged stays.

        To be called within a transaction of ``connection``.
        """
        names, keys = ", ".join(self._columns), ", ".join(self._keys)
        changed = ", ".join(f"{c}=excluded.{c}" for c in self._columns if c not in self._keys)
        self.connection.exec_driver_sql(
            f"INSERT INTO main.{self._table}({names}) SELECT {names} FROM temp.staged WHERE true "  # noqa: S608
            f"ORDER BY {keys}, rowid ON CONFLICT({keys}) DO UPDATE SET {changed}"
        )

    def count_staged(self, *, only: str, new: bool) -> int:
        """Count the different keys that are staged, of rows for which ``only`` (SQL) holds.

        Args:
            only: A condition in SQL, from the program.
            new: Leave out those that the table has already.
        """
        keys = ", ".join(self._keys)
        same = " AND ".join(f"t.{key} = s.{key}" for key in self._keys)
        absent = f"WHERE NOT EXISTS (SELECT 1 FROM main.{self._table} t WHERE {same})" if new else ""  # noqa: S608
        # GROUP BY sorts; DISTINCT would build a tree in random order
        distinct = f"SELECT {keys} FROM temp.staged WHERE {only} GROUP BY {keys}"  # noqa: S608
        row = self._driver.execute(f"SELECT count(*) FROM ({distinct}) s {absent}").fetchone()  # noqa: S608
        return int(row[0])

    def checkpoint(self) -> None:
        """Fold the write-ahead log back into the file, so that readers need not search it."""
        # the import is committed: what goes wrong here is tried again by the next writer's checkpoint
        with suppress(sqlite3.Error):
            self._driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
