"""The hot path: everything that one decision needs, in one statement.

The statement is written in SQLAlchemy Core, compiled once for each shape (number of keys, number of
callees, with bindings or without), and then run on the driver's own connection.
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
from pbxguard.screening.privacy import Binding
from pbxguard.screening.registry import CallClass, Consent, Verb
from pbxguard.store.database import Database
from pbxguard.store.schema import consent_state, from_micros, list_entry, privacy_binding, subscriber

PRIVACY_TAG = "privacy"
"""The tag of a CLI whose class is one of privacy numbers: only then are bindings read."""

_SUBSCRIBER, _CONSENT, _ENTRY, _BINDING = 0, 1, 2, 3
_TEXTS, _NUMBERS = 9, 4
_CLASSES = {str(member): member for member in CallClass}
_VERBS = {str(member): member for member in Verb}
_ACTIONS = {str(member): member for member in Action}


class FactsReader(Database):
    """Reads what a decision rests on."""

    def facts(self, cli_key: str | None, callees: tuple[str, ...], tags: tuple[str, ...] = ()) -> Facts:
        """Read subscribers, consents, list entries and bindings for one call, in one query.

        Args:
            cli_key: The CLI in home form, or None where it has none: then only entries for its tags match.
            callees: Home-form numbers of the callee and whoever diverted to it; the caller of this method
                bounds how many.
            tags: Of the CLI: its class, its group, ``region:`` and its region, ``privacy`` where it is a
                privacy number.

        Raises:
            StoreUnavailable: The database does not answer; it waits for no writer.
        """
        keys = lookup_keys(cli_key or "", tags)
        callees = tuple(number for number in dict.fromkeys(callees) if number.isascii())
        if not keys and not callees:
            return Facts()
        private = cli_key is not None and bool(callees) and PRIVACY_TAG in tags
        statement, order = _compiled(self._engine.dialect, len(keys), len(callees), private)
        values = (*callees, *keys, cli_key or "")
        subscribers: dict[str, Subscriber] = {}
        consents: list[Consent] = []
        listed: list[ListEntry] = []
        bindings: tuple[Binding, ...] = ()
        rows = self.query(statement, tuple([values[place] for place in order]))
        for kind, a, b, c, d, e, f, g, h, i, n, since, until, lifted in rows:
            if kind == _ENTRY:
                entry = ListEntry(
                    *(a, d or pattern_of(b), _ACTIONS[e], c, f, g, h, from_micros(until), from_micros(since)),
                    *(bool(n), i, from_micros(lifted)),
                )
                listed.append(entry)
            elif kind == _CONSENT:
                consents.append(Consent(a, _CLASSES[b], c, _VERBS[e], from_micros(since), from_micros(until), d))
            elif kind == _BINDING:
                bindings += (Binding(a, b, c, from_micros(since), from_micros(until), n),)
            else:
                subscribers[a] = Subscriber(a, b, c, d)
        return Facts(callees=subscribers, consents=tuple(consents), listed=tuple(listed), bindings=bindings)


@lru_cache(maxsize=512)
def _compiled(dialect: Dialect, keys: int, callees: int, private: bool) -> tuple[str, tuple[int, ...]]:
    """Compile the statement of one shape: its SQL, and which value stands at each of its marks.

    The values are the callees, then the keys, then the CLI.
    """
    query = facts_query(keys, callees, private=private).compile(dialect=dialect)
    if query.positiontup is None:
        raise NotImplementedError(f"{dialect.name}: the driver must take positional parameters")
    return str(query), tuple(int(name.removeprefix("v")) for name in query.positiontup)


def facts_query(keys: int, callees: int, *, private: bool = False) -> CompoundSelect[Any]:
    """Write the statement for that many keys and callees; parameters ``v0``, ``v1``, ... in that order.

    With *private* it reads bindings too, and the CLI is one more parameter behind them.
    """
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
                *_columns(
                    _CONSENT,
                    (c.number, c.call_class, c.channel, c.caller, c.verb),
                    (cast(null(), BigInteger), c.since, c.until),
                )
            ).where(c.number.in_(numbers))
        )
    if keys:
        texts = (e.owner, e.key, e.name, e.span, e.action, e.source, e.reason, e.legal_basis, e.document)
        parts.append(
            select(*_columns(_ENTRY, texts, (e.retained, e.since, e.expires_at, e.lifted_at))).where(
                e.owner.in_([literal_column("''"), *numbers]), e.key.in_(patterns)
            )
        )
    if private:
        p = privacy_binding.c
        parts.append(
            select(*_columns(_BINDING, (p.x, p.a, p.b), (p.max_call_s, p.since, p.until))).where(
                p.x == bindparam(f"v{callees + keys}", type_=String), p.b.in_(numbers)
            )
        )
    return union_all(*parts)


def _columns(
    kind: int, texts: Sequence[ColumnElement[str]], numbers: Sequence[ColumnElement[Any]] = ()
) -> list[ColumnElement[Any]]:
    """Give one branch the shape that all share: its kind, nine texts, four numbers (a flag, three times)."""
    return [
        literal_column(str(kind), Integer),
        *texts,
        *[literal_column("''", String)] * (_TEXTS - len(texts)),
        *numbers,
        *[cast(null(), BigInteger)] * (_NUMBERS - len(numbers)),
    ]
