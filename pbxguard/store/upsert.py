"""Insert or overwrite by primary key, and how rows are cut into batches for it."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Connection, Dialect, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import Insert

Item = TypeVar("Item")

_INSERT = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def insert_for(connection: Connection, table: Table) -> Any:
    """Write an insert that knows ON CONFLICT, which SQLAlchemy has for each database by itself."""
    return _INSERT[connection.dialect.name](table)


def upsert(connection: Connection, table: Table) -> Insert:
    """Write "insert, and where the primary key is taken, overwrite"."""
    return upsert_for(connection.dialect, table)


def upsert_for(dialect: Dialect, table: Table) -> Insert:
    """Write the same for a database that is not connected."""
    statement: Any = _INSERT[dialect.name](table)
    changed = {c.name: statement.excluded[c.name] for c in table.columns if not c.primary_key}
    made: Insert = statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=changed)
    return made


def batches(items: Iterable[Item], size: int = 5000) -> Iterator[list[Item]]:
    """Cut into lists of at most ``size``."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
