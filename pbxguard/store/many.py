"""What many decisions rest on, read together: a few statements for some thousand calls, in bounded memory.

Gives what ``FactsReader.facts`` gives for each call, at a small part of its cost a call: a thousand look-ups by key
go into one statement. No list is read whole. Which kinds of broad look-up keys (prefixes, parts of ranges) the global
lists have is found out once for each of their versions, and only those kinds are asked for.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    Connection,
    Dialect,
    Integer,
    Select,
    String,
    bindparam,
    func,
    literal_column,
    select,
    union_all,
)

from pbxguard.screening.call import Facts, Subscriber
from pbxguard.screening.lists import Action, ListEntry, lookup_keys, pattern_of
from pbxguard.screening.registry import CallClass, Consent, Verb
from pbxguard.store.facts import PRIVACY_TAG, FactsReader
from pbxguard.store.schema import consent_state, from_micros, list_entry, meta, subscriber

Item = TypeVar("Item")

Asked = tuple[str | None, tuple[str, ...], tuple[str, ...]]
"""The arguments of ``FactsReader.facts``: the CLI in home form, the callees, the tags of the CLI."""

AT_ONCE = 1000
"""Keys of one statement; SQLite takes 32,766, and more than a thousand gain nothing."""

MOST_OWN = 5000
"""Entries of subscribers' own lists that one statement may give; a subscriber with more is asked about by itself."""

MOST_BROAD = 500_000
"""Broad keys that are looked through for their kinds (a fraction of a second); past it all kinds are asked for."""

FEW = 500
"""So few calls are not worth finding the kinds."""

SINGLE = 20
"""Fewer calls are quicker asked about one by one, each from a view of its own."""

_Kind = tuple[str, int]
"""Of a broad key: its head (``*``, ``#11:``) and its length."""

_Rows = list[Any]


class ManyFacts:
    """Reads facts for many calls at once; between two readings it keeps the kinds of broad keys only."""

    def __init__(self, store: FactsReader) -> None:
        """Take them from *store*."""
        self._store = store
        self._version: str | None = None
        self._kinds: frozenset[_Kind] | None = None
        self._parts: dict[int, tuple[_Kind, ...]] = {}

    def facts(self, asked: Sequence[Asked]) -> list[Facts]:
        """Read the facts of each call, in their order, from one consistent view of the database.

        Privacy numbers, and calls to subscribers with very long lists of their own, are asked about one by one.

        Args:
            asked: Some thousand at most: their facts are held together.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        if len(asked) < SINGLE:
            return [self._store.facts(*call) for call in asked]
        # In the order of the tables: neighbours lie on one page.
        callees = sorted({number for _, numbers, _ in asked for number in numbers if number.isascii()})
        with self._store.reading() as connection:
            if len(asked) >= FEW or self._version is not None:
                self._find_kinds(connection)
            keys = [self._keys(cli, tags) for cli, _, tags in asked]
            people = {row[0]: Subscriber(*row) for row in _rows(connection, _SUBSCRIBERS, callees)}
            consents = _grouped((row[0], _consent(row)) for row in _rows(connection, _CONSENTS, callees))
            wanted = sorted(set(chain.from_iterable(keys)))
            everyone = _grouped((row[1], _entry(row)) for row in _rows(connection, _GLOBAL, wanted))
            own, crowded = _own(connection, callees)
        known = _Known(people, consents, everyone, own)
        return [
            self._store.facts(*call)
            if PRIVACY_TAG in call[2] or (crowded and not crowded.isdisjoint(call[1]))
            else known.facts(call, its)
            for call, its in zip(asked, keys, strict=True)
        ]

    def _find_kinds(self, connection: Connection) -> None:
        version = connection.execute(_VERSION).scalar() or "0"
        if version == self._version:
            return
        found = connection.execute(_KINDS).all()
        broad = sum(number for _, _, number in found)
        self._kinds = frozenset((head, length) for head, length, _ in found) if broad <= MOST_BROAD else None
        self._version = version
        self._parts = {}

    def _keys(self, cli: str | None, tags: tuple[str, ...]) -> tuple[str, ...]:
        """The keys under which a global entry for the CLI can stand, of the kinds that there are."""
        if self._kinds is None or cli is None or not cli.removeprefix("+").isdecimal():
            return lookup_keys(cli or "", tags)
        size = len(cli)
        if size not in self._parts:
            # Which keys a number has follows from its length.
            self._parts[size] = _parts(lookup_keys(cli), self._kinds)
        return (cli, *[head + cli[:end] for head, end in self._parts[size]], *_tag_keys(tags))


@lru_cache(maxsize=4096)
def _tag_keys(tags: tuple[str, ...]) -> tuple[str, ...]:
    """The keys of tags alone; as few as the country pack has classes and regions."""
    return lookup_keys("", tags)


def _parts(keys: Iterable[str], kinds: Collection[_Kind]) -> tuple[_Kind, ...]:
    """Of the keys of a number, the broad ones of these kinds, each as its head and how much of the number it has."""
    found = [(kind[0], len(key) - len(kind[0])) for key in keys if (kind := _kind(key)) and kind in kinds]
    return tuple(found)


def _kind(key: str) -> _Kind | None:
    """The kind of a broad key; None for a number."""
    if key.startswith("*"):
        return "*", len(key)
    return (key[:4], len(key)) if key.startswith("#") else None


class _Known(NamedTuple):
    """What was read for some thousand calls.

    Attributes:
        people: Subscribers by number.
        consents: By number.
        everyone: Global entries by key.
        own: Rows of subscribers' own entries, by owner and key.
    """

    people: Mapping[str, Subscriber]
    consents: Mapping[str, list[Consent]]
    everyone: Mapping[str, list[ListEntry]]
    own: Mapping[str, Mapping[str, _Rows]]

    def facts(self, call: Asked, keys: tuple[str, ...]) -> Facts:
        """The facts of one call; *keys* are those of its CLI."""
        cli, numbers, tags = call
        everyone = self.everyone
        listed = [entry for key in keys if key in everyone for entry in everyone[key]]
        callees: dict[str, Subscriber] = {}
        consents: list[Consent] = []
        for number in numbers:
            if number in self.people:
                callees[number] = self.people[number]
            if number in self.consents:
                consents += self.consents[number]
            if number in self.own:
                mine = self.own[number]
                listed += [_entry(row) for key in lookup_keys(cli or "", tags) for row in mine.get(key, ())]
        return Facts(callees, tuple(consents), tuple(listed))


def _own(connection: Connection, owners: Sequence[str]) -> tuple[dict[str, dict[str, _Rows]], set[str]]:
    """The own lists of subscribers, by owner and key, and those whose list is too long to be read whole."""
    own: dict[str, dict[str, _Rows]] = {}
    crowded: set[str] = set()
    waiting = [owners[start : start + AT_ONCE] for start in range(0, len(owners), AT_ONCE)]
    while waiting:
        block = waiting.pop()
        rows = _rows(connection, _OWN, block)
        if len(rows) <= MOST_OWN:
            for row in rows:
                own.setdefault(row[0], {}).setdefault(row[1], []).append(row)
        elif len(block) == 1:
            crowded.update(block)
        else:
            waiting += [block[: len(block) // 2], block[len(block) // 2 :]]
    return own, crowded


def _rows(connection: Connection, query: Select[Any], values: Sequence[str]) -> _Rows:
    """Run a statement with ``AT_ONCE`` parameters as often as all *values* need."""
    sql = _compiled(connection.dialect, query)
    # Plain tuples: SQLAlchemy's rows cost as much again as the look-up.
    cursor = connection.connection.cursor()
    found: _Rows = []
    for start in range(0, len(values), AT_ONCE):
        block = tuple(values[start : start + AT_ONCE])
        # Filled up with its last value, so that there is one statement to compile.
        cursor.execute(sql, block + block[-1:] * (AT_ONCE - len(block)))
        found += cursor.fetchall()
    return found


@lru_cache(maxsize=16)
def _compiled(dialect: Dialect, query: Select[Any]) -> str:
    return str(query.compile(dialect=dialect))


def _grouped(pairs: Iterable[tuple[str, Item]]) -> dict[str, list[Item]]:
    grouped: dict[str, list[Item]] = {}
    for key, item in pairs:
        grouped.setdefault(key, []).append(item)
    return grouped


_CLASSES = {str(member): member for member in CallClass}
_VERBS = {str(member): member for member in Verb}
_ACTIONS = {str(member): member for member in Action}


def _consent(row: Sequence[Any]) -> Consent:
    number, call_class, channel, caller, since, verb, until = row
    return Consent(
        number, _CLASSES[call_class], channel, _VERBS[verb], from_micros(since), from_micros(until), caller
    )


def _entry(row: Sequence[Any]) -> ListEntry:
    # By place: to ask a row for a dozen names takes longer than to find it.
    owner, key, name, span, action, source, reason, legal_basis, expires, since, retained, document, lifted, why = row
    return ListEntry(
        *(owner, span or pattern_of(key), _ACTIONS[action], name, source, reason, legal_basis),
        *(from_micros(expires), from_micros(since), bool(retained), document, from_micros(lifted), why),
    )


_e = list_entry.c
_ENTRIES = select(
    *(_e.owner, _e.key, _e.name, _e.span, _e.action, _e.source, _e.reason, _e.legal_basis),
    *(_e.expires_at, _e.since, _e.retained, _e.document, _e.lifted_at, _e.lift_reason),
)
_MARKS = [bindparam(f"v{place}", type_=String) for place in range(AT_ONCE)]
_s, _c = subscriber.c, consent_state.c
_SUBSCRIBERS = select(_s.number, _s.operator, _s.province, _s.language).where(_s.number.in_(_MARKS))
_CONSENTS = select(_c.number, _c.call_class, _c.channel, _c.caller, _c.since, _c.verb, _c.until).where(
    _c.number.in_(_MARKS)
)
_GLOBAL = _ENTRIES.where(_e.owner == literal_column("''"), _e.key.in_(_MARKS))
# Written out, so that the parameters are the owners only.
_LIMIT, _OFFSET = literal_column(str(MOST_OWN + 1), Integer), literal_column("0", Integer)
_OWN = _ENTRIES.where(_e.owner.in_(_MARKS)).limit(_LIMIT).offset(_OFFSET)
_VERSION = select(meta.c.value).where(meta.c.name == "lists_version")


def _kinds_between(low: str, high: str, head: int) -> Select[Any]:
    """The kinds of the global keys from *low* to below *high*, and how many keys each has."""
    key = list_entry.c.key
    some = select(key).where(list_entry.c.owner == "", key >= low, key < high).limit(MOST_BROAD + 1).subquery()
    parts = func.substr(some.c.key, 1, head).label("head"), func.length(some.c.key).label("length")
    return select(*parts, func.count()).group_by(*parts)


_KINDS = union_all(_kinds_between("*", "+", 1), _kinds_between("#", "$", 4))
