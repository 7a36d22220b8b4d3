"""The ledger chained by hashes, and the cut-overs that close whole cohorts.

The chained ledger is a new table that takes the place of the old one: its rows can be neither changed (a
trigger forbids it) nor given columns that are NOT NULL without a default.
"""

import sqlalchemy as sa
from alembic import op

# The encoding is as fixed as a revision is: a change of it would break every ledger that there is.
from pbxguard.store.chain import FIELDS, GENESIS, link

revision = "0002"
down_revision = "0001"

_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_AT_ONCE = 5000


def _ledger(name: str) -> sa.Table:
    return sa.Table(
        name,
        sa.MetaData(),
        sa.Column("id", _SERIAL, primary_key=True, autoincrement=True),
        sa.Column("number", sa.String(20), nullable=False),
        sa.Column("call_class", sa.String(20), nullable=False),
        sa.Column("channel", sa.String(10), nullable=False),
        sa.Column("caller", sa.String(20), nullable=False),
        sa.Column("verb", sa.String(10), nullable=False),
        sa.Column("effective_at", sa.BigInteger, nullable=False),
        sa.Column("until", sa.BigInteger),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.String(100), nullable=False),
        sa.Column("via", sa.String(20), nullable=False),
        sa.Column("evidence", sa.Text, nullable=False),
        sa.Column("previous", sa.LargeBinary(32), nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
    )


def upgrade() -> None:
    """Chain the lines that are there, in their order, a few thousand at a time."""
    connection = op.get_bind()
    old, new = _ledger("consent_event"), _ledger("consent_event_chained")
    new.create(connection)
    columns = [old.c.id, *(old.c[name] for name in FIELDS)]
    query = sa.select(*columns).where(old.c.id > sa.bindparam("after")).order_by(old.c.id).limit(_AT_ONCE)
    last, previous = -(2**63), GENESIS
    while rows := connection.execute(query, {"after": last}).all():
        chained = []
        for row in rows:
            own = link(previous, row[1:])
            chained.append({**row._mapping, "previous": previous, "hash": own})  # noqa: SLF001 - its documented name
            previous = own
        connection.execute(sa.insert(new), chained)
        last = rows[-1].id
    op.drop_table("consent_event")  # fires no trigger
    op.rename_table("consent_event_chained", "consent_event")
    op.create_index("consent_event_number", "consent_event", ["number"])
    if connection.dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER consent_event_no_{verb.lower()} BEFORE {verb} ON consent_event "
                "BEGIN SELECT RAISE(ABORT, 'the consent ledger is append-only'); END"
            )
    op.create_table(
        "cutover",
        sa.Column("name", sa.String(40), primary_key=True, nullable=False),
        sa.Column("channel", sa.String(10), nullable=False),
        sa.Column("classes", sa.String(40), nullable=False),
        sa.Column("province", sa.String(40), nullable=False),
        sa.Column("operator", sa.String(20), nullable=False),
        sa.Column("effective_at", sa.BigInteger, nullable=False),
        sa.Column("begun_at", sa.BigInteger, nullable=False),
        sa.Column("finished_at", sa.BigInteger),
        sa.Column("undone_at", sa.BigInteger),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "cutover_batch",
        sa.Column("name", sa.String(40), primary_key=True, nullable=False),
        sa.Column("batch", sa.Integer, primary_key=True, nullable=False),
        sa.Column("first_id", sa.BigInteger, nullable=False),
        sa.Column("last_id", sa.BigInteger, nullable=False),
        sa.Column("subscribers", sa.Integer, nullable=False),
        sa.Column("upto", sa.String(20), nullable=False),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
        sa.Column("undone_at", sa.BigInteger),
        sa.Column("kept", sa.Integer),
        sqlite_with_rowid=False,
    )
