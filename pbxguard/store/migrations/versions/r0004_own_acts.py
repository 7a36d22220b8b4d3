"""Own acts that were recorded after a cut-over closed the same key hold over it, also where they bear an older date.

Only the state of such keys changes; the ledger stays as it is, and its head too.
"""

from itertools import groupby

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_NAMES = ("number", "call_class", "channel", "caller")
_event = sa.table(
    "consent_event",
    *(sa.column(name) for name in ("id", *_NAMES, "verb", "effective_at", "until", "recorded_at", "via")),
)
_state = sa.table("consent_state", *(sa.column(name) for name in (*_NAMES, "since", "verb", "until")))


def upgrade() -> None:
    """Fold these keys anew."""
    connection = op.get_bind()
    act, closing = _event.alias("act"), _event.alias("closing")
    concerned = (
        sa.select(act.c.number)
        .where(
            closing.c.via == "cutover",
            act.c.via != "cutover",
            *(act.c[name] == closing.c[name] for name in _NAMES),
            act.c.id > closing.c.id,
            act.c.effective_at < closing.c.effective_at,
        )
        .distinct()
    )
    for number in connection.execute(concerned).scalars().all():
        lines = connection.execute(
            sa.select(_event).where(_event.c.number == number).order_by(*(_event.c[name] for name in _NAMES), "id")
        )
        stands = [
            row
            for key, its in groupby(lines.mappings(), key=lambda line: tuple(line[name] for name in _NAMES))
            for row in _standing(key, list(its))
        ]
        connection.execute(sa.delete(_state).where(_state.c.number == number))
        connection.execute(sa.insert(_state), stands)


def _standing(key: tuple[str, ...], lines: list[sa.RowMapping]) -> list[dict[str, object]]:
    """The state of one key: the newest that had begun when the last line was recorded, and what is dated ahead."""
    held: dict[int, sa.RowMapping] = {}
    newest: int | None = None
    for line in lines:
        since = line["effective_at"]
        if newest is None or since > newest:
            newest = since if line["via"] == "cutover" else newest
        elif line["via"] != "cutover":
            since = newest
        held[since] = line
    recorded = max(line["recorded_at"] for line in lines)
    begun = max((since for since in held if since <= recorded), default=min(held))
    return [
        {**dict(zip(_NAMES, key, strict=True)), "since": since, "verb": line["verb"], "until": line["until"]}
        for since, line in held.items()
        if since >= begun
    ]
