"""The hot path: everything that one decision needs, in one statement.

The statement is written in SQLAlchemy Core, compiled once for each shape (number of keys, number of
callees), and then run on the driver's own connection.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    CompoundSelect,
    Dialect,
    Integer,
    String,
    bindparam,
    cast,
    literal_column,
    null,
    select,
    union_all,
)

from pbxguard.screening.call import Facts, Subscriber
from pbxguard.screening.lists import Action, ListEntry, lookup_keys, pattern_of
from pbxguard.screening.registry import CallClass, Consent, Verb
from pbxguard.store.database import Database
from pbxguard.store.schema import consent_state, from_micros, list_entry, subscriber

_SUBSCRIBER, _CONSENT, _ENTRY = 0, 1, 2
_CLASSES = {str(member): member for member in CallClass}
_VERBS = {str(member): member for member in Verb}
_ACTIONS = {str(member): member for member in Action}


class FactsReader(Database):
    """Reads what a decision rests on."""

    def facts(self, cli_key: str | None, callees: tuple[str, ...]) -> Facts:
        """Read subscribers, consents and list entries for one call, in one query.

        Args:
            cli_key: The CLI in home form, or None where it has none: then no list is consulted.
            callees: Home-form numbers of the callee and whoever diverted to it; the caller of this method
                bounds how many.

        Raises:
            StoreUnavailable: The database does not answer; it waits for no writer.
        """
        keys = lookup_keys(cli_key) if cli_key is not None else ()
        callees = tuple(number for number in dict.fromkeys(callees) if number.isascii())
        if not keys and not callees:
            return Facts()
        statement, order = _compiled(self._engine.dialect, len(keys), len(callees))
        values = (*callees, *keys)
        subscribers: dict[str, Subscriber] = {}
        consents: list[Consent] = []
        listed: list[ListEntry] = []
        rows = self.query(statement, tuple([values[place] for place in order]))
        for kind, a, b, c, d, e, f, g, h, i, j in rows:
            if kind == _ENTRY:
                pattern = d or pattern_of(b)
                listed.append(ListEntry(a, pattern, _ACTIONS[e], c, f, g, h, from_micros(i)))
            elif kind == _CONSENT:
                consents.append(Consent(a, _CLASSES[b], c, _VERBS[e], from_micros(i), from_micros(j), d))
            else:
                subscribers[a] = Subscriber(a, b, c, d)
        return Facts(callees=subscribers, consents=tuple(consents), listed=tuple(listed))


@lru_cache(maxsize=512)
def _compiled(dialect: Dialect, keys: int, callees: int) -> tuple[str, tuple[int, ...]]:
    """Compile the statement of one shape: its SQL, and which value stands at each of its marks.

    The values are the callees, then the keys.
    """
    query = facts_query(keys, callees).compile(dialect=dialect)
    if query.positiontup is None:
        raise NotImplementedError(f"{dialect.name}: the driver must take positional parameters")
    return str(query), tuple(int(name.removeprefix("v")) for name in query.positiontup)


def facts_query(keys: int, callees: int) -> CompoundSelect[Any]:
    """Write the statement for that many keys and callees; parameters ``v0``, ``v1``, ... in that order."""
    numbers = [bindparam(f"v{place}", type_=String) for place in range(callees)]
    patterns = [bindparam(f"v{callees + place}", type_=String) for place in range(keys)]
    s, c, e = subscriber.c, consent_state.c, list_entry.c
    parts = []
    if callees:
        parts.append(
            select(
                *_columns(_SUBSCRIBER, (s.number, s.operator, s.province, s.language)),
            ).where(s.number.in_(numbers))
        )
        parts.append(
            select(
                *_columns(_CONSENT, (c.number, c.call_class, c.channel, c.caller, c.verb), (c.since, c.until))
            ).where(c.number.in_(numbers))
        )
    if keys:
        texts = (e.owner, e.key, e.name, e.span, e.action, e.source, e.reason, e.legal_basis)
        parts.append(
            select(*_columns(_ENTRY, texts, (e.expires_at,))).where(
                e.owner.in_([literal_column("''"), *numbers]), e.key.in_(patterns)
            )
        )
    return union_all(*parts)


def _columns(
    kind: int, texts: Sequence[ColumnElement[str]], times: Sequence[ColumnElement[Any]] = ()
) -> list[ColumnElement[Any]]:
    """Give one branch the shape that all share: its kind, eight texts, two times."""
    return [
        literal_column(str(kind), Integer),
        *texts,
        *[literal_column("''", String)] * (8 - len(texts)),
        *times,
        *[cast(null(), BigInteger)] * (2 - len(times)),
    ]
