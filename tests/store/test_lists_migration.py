"""A database of the first version with many list entries, opened by this one."""

import sqlite3
from contextlib import closing
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from pbxguard.screening.lists import Action, ListEntry
from pbxguard.store import Store, migrations
from pbxguard.store.schema import metadata

_FILL = """
INSERT INTO list_entry(owner, key, name, span, part, action, source, reason, legal_basis, expires_at)
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n LIMIT ?)
SELECT '', printf('138%08d', i), 'system', '', 0, 'block', 'old', '', '', NULL FROM n
"""


def test_old_entries_are_as_they_were(tmp_path: Path) -> None:
    """Entries of schema 0001 hold from always, are not kept and not lifted; the tables are those of the schema."""
    path = tmp_path / "guard.db"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        command.upgrade(migrations.config(connection), "0001")
    engine.dispose()
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute(_FILL, (50_000,))
    old = ListEntry("", "13800000007", Action.BLOCK, "system", "old")
    with Store.open(path) as store:
        assert store.facts(old.pattern, ()).listed == (old,)
        assert store.entry("", old.pattern, "system") == old
        assert store.count() == 50_000
        with store.reading() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        store.import_entries([ListEntry("", "13900000000", Action.BLOCK, "system")])
        assert store.count() == 50_001
