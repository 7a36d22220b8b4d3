"""The first tables: subscribers, the consent ledger and its state, lists, decisions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create them."""
    op.create_table(
        "subscriber",
        sa.Column("number", sa.String(20), primary_key=True, nullable=False),
        sa.Column("operator", sa.String(20), nullable=False),
        sa.Column("province", sa.String(40), nullable=False),
        sa.Column("language", sa.String(20), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "consent_event",
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
    )
    op.create_index("consent_event_number", "consent_event", ["number"])
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER consent_event_no_{verb.lower()} BEFORE {verb} ON consent_event "
                "BEGIN SELECT RAISE(ABORT, 'the consent ledger is append-only'); END"
            )
    op.create_table(
        "consent_state",
        sa.Column("number", sa.String(20), primary_key=True, nullable=False),
        sa.Column("call_class", sa.String(20), primary_key=True, nullable=False),
        sa.Column("channel", sa.String(10), primary_key=True, nullable=False),
        sa.Column("caller", sa.String(20), primary_key=True, nullable=False),
        sa.Column("since", sa.BigInteger, primary_key=True, nullable=False),
        sa.Column("verb", sa.String(10), nullable=False),
        sa.Column("until", sa.BigInteger),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "list_entry",
        sa.Column("owner", sa.String(20), primary_key=True, nullable=False),
        sa.Column("key", sa.String(30), primary_key=True, nullable=False),
        sa.Column("name", sa.String(40), primary_key=True, nullable=False),
        sa.Column("span", sa.String(41), primary_key=True, nullable=False),
        sa.Column("part", sa.SmallInteger, nullable=False),
        sa.Column("action", sa.String(10), nullable=False),
        sa.Column("source", sa.String(100), nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("legal_basis", sa.String(200), nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "decision",
        sa.Column("id", _SERIAL, primary_key=True, autoincrement=True),
        sa.Column("call_id", sa.String(200), nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("channel", sa.String(10), nullable=False),
        sa.Column("trunk", sa.String(100), nullable=False),
        sa.Column("cli_raw", sa.String(200), nullable=False),
        sa.Column("cli_key", sa.String(20)),
        sa.Column("cli_class", sa.String(60), nullable=False),
        sa.Column("callee_raw", sa.String(200), nullable=False),
        sa.Column("callee_key", sa.String(20)),
        sa.Column("verdict", sa.String(10), nullable=False),
        sa.Column("reason", sa.String(60), nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("rule", sa.String(60), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("entry", sa.Text, nullable=False),
        sa.Column("pack", sa.String(60), nullable=False),
        sa.Column("lists_version", sa.String(40), nullable=False),
        sa.Column("sip_status", sa.SmallInteger),
        sa.Column("prompt", sa.String(60), nullable=False),
        sa.Column("elapsed_us", sa.BigInteger, nullable=False),
        sa.Column("extra", sa.Text, nullable=False),
    )
    op.create_index("decision_call_id", "decision", ["call_id"])
    op.create_index("decision_at", "decision", ["at"])
    op.create_table(
        "meta",
        sa.Column("name", sa.String(40), primary_key=True, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
