"""Revision 0004: own acts that a cut-over of an older version had swallowed."""

import sqlite3
from contextlib import closing
from pathlib import Path

from alembic import command

from pbxguard.screening.registry import Verb, key_of, standing
from pbxguard.store import Store, migrations, sqlite
from pbxguard.store.chain import FIELDS, GENESIS, link

DAY = 86_400_000_000
ALL, OTHER = "13957100001", "13957100002"
# number, verb, effective, until, recorded, via
LINES = [
    (ALL, "close", 20, None, 21, "cutover"),
    (OTHER, "close", 20, None, 21, "cutover"),
    (ALL, "open", 1, None, 22, "cli"),
    (ALL, "close", 40, None, 23, "cli"),
    (OTHER, "open", 24, None, 24, "cli"),
    ("13957100003", "open", 1, None, 24, "cli"),
]
STATE = [
    (ALL, 20, "close", None),
    (ALL, 40, "close", None),
    (OTHER, 24, "open", None),
    ("13957100003", 1, "open", None),
]
"""As the version before wrote it: the opening of day 1 is not in it."""


def of_third_revision(path: Path) -> bytes:
    """A database as the third revision left it; give the head of its ledger."""
    engine = sqlite.make_engine(path)
    with sqlite.write_transaction(engine) as connection:
        command.upgrade(migrations.config(connection), "0003")
    engine.dispose()
    head = GENESIS
    with closing(sqlite3.connect(path)) as raw, raw:
        for n, (number, verb, effective, until, recorded, via) in enumerate(LINES, 1):
            values = (number, "hmt", "voice", "", verb, effective * DAY, until, recorded * DAY, "x", via, "")
            own = link(head, values)
            marks = ",".join("?" * 14)
            raw.execute(
                f"INSERT INTO consent_event(id,{','.join(FIELDS)},previous,hash) VALUES({marks})",
                (n, *values, head, own),
            )
            head = own
        for number, since, verb, until in STATE:
            raw.execute(
                "INSERT INTO consent_state VALUES(?, 'hmt', 'voice', '', ?, ?, ?)",
                (number, since * DAY, verb, until),
            )
    return head


def test_state_follows_and_the_ledger_stays(tmp_path: Path) -> None:
    """The swallowed act holds, what is dated ahead stays, others are as they were; chain and head are the same."""
    path = tmp_path / "old.db"
    head = of_third_revision(path)
    with Store.open(path) as store:
        found = store.verify_ledger(head=head, count=len(LINES))
        assert (found.fault, found.events, found.states) == ("", len(LINES), len(STATE))
        state = [each for number in (ALL, OTHER, "13957100003") for each in store.state(number)]
        assert {(key_of(c), c.since): c for c in state} == standing(store.iter_events())
        assert [each.verb for each in store.state(ALL)] == [Verb.OPEN, Verb.CLOSE]
