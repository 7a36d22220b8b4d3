"""List entries with a first day, a document, a kept number and a lifting; bindings of privacy numbers.

The columns are added in place, whatever the number of rows: SQLite and PostgreSQL only note a constant default.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add them."""
    for column in (
        sa.Column("since", sa.BigInteger),
        sa.Column("retained", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Column("document", sa.String(200), nullable=False, server_default=""),
        sa.Column("lifted_at", sa.BigInteger),
        sa.Column("lift_reason", sa.String(200), nullable=False, server_default=""),
    ):
        op.add_column("list_entry", column)
    op.create_table(
        "privacy_binding",
        sa.Column("x", sa.String(20), primary_key=True, nullable=False),
        sa.Column("b", sa.String(20), primary_key=True, nullable=False),
        sa.Column("a", sa.String(20), primary_key=True, nullable=False),
        sa.Column("since", sa.BigInteger, primary_key=True, nullable=False),
        sa.Column("until", sa.BigInteger),
        sa.Column("max_call_s", sa.Integer),
        sqlite_with_rowid=False,
    )
