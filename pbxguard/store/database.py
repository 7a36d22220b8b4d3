"""One database: opened, brought up to date, read and written by several threads, with errors in plain words.

Knows connections and revisions. Does not know what the tables mean.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import PoolProxiedConnection

from pbxguard.errors import BadConfig, BadInput, StoreUnavailable
from pbxguard.store import sqlite
from pbxguard.store.schema import REVISIONS

FOREIGN_ERRORS = (SQLAlchemyError, sqlite3.Error)
"""What a database call can raise; mapped to StoreUnavailable before it leaves this package."""


class Database:
    """A database file and its connections. Close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Prepare; ``Store.open`` is the way in."""
        self.path = path
        self._engine = sqlite.make_engine(path)
        # connections for the hot path, kept open: list.pop and list.append are atomic
        self._idle: list[PoolProxiedConnection] = []

    @classmethod
    def open(cls, url_or_path: str | Path, *, create: bool = True) -> Self:
        """Open a database, create it where there is none, and bring its tables up to date.

        Args:
            url_or_path: A file, or ``sqlite:////absolute/path``.
            create: Whether a missing file is made; a missing folder never is.

        Raises:
            BadConfig: The URL is not one of SQLite.
            StoreUnavailable: No such folder or file, not a database, damaged, locked, read-only, full, or
                written by a newer pbxguard.
        """
        path = _path_of(url_or_path)
        if not path.parent.is_dir():
            raise StoreUnavailable(f"{path}: the folder {path.parent} is not there; make it, or name another")
        if path.is_dir():
            raise StoreUnavailable(f"{path}: this is a folder; name a file in it")
        if not create and not path.exists():
            raise StoreUnavailable(f"{path}: no such database; check the path, or create it first")
        store = cls(path)
        try:
            store._migrate()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close every connection that is not in use at this moment; harmless when done twice."""
        while self._idle:
            self._idle.pop().close()
        self._engine.dispose()

    def __enter__(self) -> Self:
        """Give itself; it is open already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection with one consistent view, which waits for no writer."""
        with self.plain_errors(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Give a connection that holds the write lock; on disk when the block ends, undone if it raises."""
        with self.plain_errors(), sqlite.write_transaction(self._engine) as connection:
            yield connection

    @contextmanager
    def plain_errors(self) -> Iterator[None]:
        """Map what the database raises to StoreUnavailable with the remedy."""
        try:
            yield
        except UnicodeEncodeError as exc:
            raise BadInput(f"store: {ascii(exc.object)[:60]} is not text in UTF-8; retype it") from exc
        except FOREIGN_ERRORS as exc:
            raise sqlite.explain(self.path, exc) from exc

    def query(self, sql: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """Run one compiled read on a kept driver connection: the hot path, without any wrapper.

        SQLAlchemy's own execution costs more than the whole look-up. Each call takes a connection that no
        other thread holds; there are as many as there were ever calls at once.
        """
        try:
            fairy = self._idle.pop()
        except IndexError:
            with self.plain_errors():
                fairy = self._engine.raw_connection()
        try:
            cursor = fairy.driver_connection.execute(sql, parameters)  # type: ignore[union-attr]
            rows: list[tuple[Any, ...]] = cursor.fetchall()
        except FOREIGN_ERRORS as exc:
            fairy.invalidate()
            raise sqlite.explain(self.path, exc) from exc
        self._idle.append(fairy)
        return rows

    def _migrate(self) -> None:
        with self.reading() as connection:
            revision = _revision(connection)
        self._refuse_unknown(revision)
        if revision == REVISIONS[-1]:
            return
        with self.writing() as connection:
            revision = _revision(connection)  # another process may have been quicker
            self._refuse_unknown(revision)
            if revision != REVISIONS[-1]:
                from pbxguard.store.migrations import upgrade  # noqa: PLC0415 - alembic is slow to import

                upgrade(connection)

    def _refuse_unknown(self, revision: str | None) -> None:
        if revision is not None and revision not in REVISIONS:
            raise StoreUnavailable(
                f"{self.path}: written by a newer pbxguard (schema {revision}, this one knows "
                f"{REVISIONS[-1]}); upgrade pbxguard, or name another database"
            )


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _path_of(url_or_path: str | Path) -> Path:
    if isinstance(url_or_path, str) and "://" in url_or_path:
        try:
            url = make_url(url_or_path)
        except ArgumentError as exc:
            raise BadConfig(f"store: {url_or_path!r} is not a database URL; give a file path") from exc
        if url.get_backend_name() != "sqlite":
            raise BadConfig(
                f"store: this version keeps its data in SQLite, not {url.get_backend_name()}; "
                "give a file path or sqlite:////path"
            )
        url_or_path = url.database or ""
    if str(url_or_path) in {"", ".", ":memory:"}:
        raise BadConfig("store: the database must be a file, because several processes share it")
    return Path(url_or_path).absolute()
