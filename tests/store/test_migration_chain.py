"""Revision 0002: a ledger from before the chain is chained as it stands."""

import sqlite3
from pathlib import Path

import pytest
from alembic import command

from pbxguard.errors import StoreUnavailable
from pbxguard.store import Store, migrations, sqlite
from pbxguard.store.chain import FIELDS


def of_first_revision(path: Path, lines: int) -> None:
    """A database as the first revision left it, with that many events."""
    engine = sqlite.make_engine(path)
    with sqlite.write_transaction(engine) as connection:
        command.upgrade(migrations.config(connection), "0001")
    engine.dispose()
    with sqlite3.connect(path) as raw:
        raw.execute(
            f"INSERT INTO consent_event({','.join(FIELDS)}) WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL "
            "SELECT i + 1 FROM n LIMIT ?) SELECT printf('139%08d', i), 'hmt', 'voice', '', 'open', 1000 + i, "
            "CASE WHEN i % 3 THEN NULL ELSE 9000000 + i END, 2000000 + i, 'cli:root', 'cli', '凭证 ' || i FROM n",
            (lines,),
        )
        raw.execute(
            "INSERT INTO consent_state(number, call_class, channel, caller, since, verb, until) "
            "SELECT number, call_class, channel, caller, effective_at, verb, until FROM consent_event"
        )
    raw.close()


def rows(path: Path) -> list[tuple[object, ...]]:
    raw = sqlite3.connect(path)
    found = raw.execute(f"SELECT id, {','.join(FIELDS)} FROM consent_event ORDER BY id").fetchall()
    raw.close()
    return found


@pytest.mark.parametrize("lines", [0, 1, 12_345])
def test_old_ledger_is_chained(tmp_path: Path, lines: int) -> None:
    """Every line keeps its id and its words, the chain is whole, and the next event follows it."""
    path = tmp_path / "old.db"
    of_first_revision(path, lines)
    before = rows(path)
    with Store.open(path) as store:
        found = store.verify_ledger()
        assert (found.fault, found.events, found.states) == ("", lines, lines)
        assert rows(path) == before
        for event in list(store.iter_events("13900000000")) or []:
            store.append(event)
        assert store.verify_ledger().fault == ""


@pytest.mark.parametrize("sql", ["DELETE FROM consent_event", "UPDATE consent_event SET verb = 'close'"])
def test_ledger_is_still_append_only(tmp_path: Path, sql: str) -> None:
    """The triggers that forbid changes are on the chained ledger too, and its index is there."""
    path = tmp_path / "old.db"
    of_first_revision(path, 3)
    Store.open(path).close()
    raw = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        raw.execute(sql)
    names = {row[0] for row in raw.execute("SELECT name FROM sqlite_master WHERE tbl_name = 'consent_event'")}
    raw.close()
    assert names == {"consent_event", "consent_event_number", "consent_event_no_update", "consent_event_no_delete"}


def test_migration_that_fails_leaves_the_old_ledger(tmp_path: Path) -> None:
    """All or nothing: where the new tables cannot be made, the database is what it was."""
    path = tmp_path / "old.db"
    of_first_revision(path, 20)
    before = rows(path)
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE cutover(x)")  # in the way of the revision's last step
    raw.close()
    with pytest.raises(StoreUnavailable):
        Store.open(path)
    assert rows(path) == before
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
        raw.execute("DROP TABLE cutover")
    raw.close()
    with Store.open(path) as store:
        assert store.verify_ledger().events == 20
