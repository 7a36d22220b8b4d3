"""The tables, and how times are kept: whole microseconds since 1970, UTC.

Knows columns and keys. Does not know how a database is opened (``database``) or brought up to date
(``migrations``, which must describe the same tables: a test compares the two).
"""

from datetime import UTC, datetime, timedelta
from typing import overload

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)

REVISIONS = ("0001", "0002", "0003", "0004")
"""Every schema revision that this program can read or migrate from, oldest first; the last is current."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

metadata = MetaData()

# BIGINT PRIMARY KEY is not the rowid on SQLite, INTEGER is; both count to 2**63.
_SERIAL = BigInteger().with_variant(Integer(), "sqlite")

subscriber = Table(
    "subscriber",
    metadata,
    Column("number", String(20), primary_key=True, nullable=False),
    Column("operator", String(20), nullable=False),
    Column("province", String(40), nullable=False),
    Column("language", String(20), nullable=False),
    sqlite_with_rowid=False,
)

consent_event = Table(
    "consent_event",
    metadata,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("number", String(20), nullable=False),
    Column("call_class", String(20), nullable=False),
    Column("channel", String(10), nullable=False),
    Column("caller", String(20), nullable=False),
    Column("verb", String(10), nullable=False),
    Column("effective_at", BigInteger, nullable=False),
    Column("until", BigInteger),
    Column("recorded_at", BigInteger, nullable=False),
    Column("actor", String(100), nullable=False),
    Column("via", String(20), nullable=False),
    Column("evidence", Text, nullable=False),
    # the chain (see ``chain``): the hash of the line before, and this line's own
    Column("previous", LargeBinary(32), nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
    Index("consent_event_number", "number"),
)

consent_state = Table(
    "consent_state",
    metadata,
    Column("number", String(20), primary_key=True, nullable=False),
    Column("call_class", String(20), primary_key=True, nullable=False),
    Column("channel", String(10), primary_key=True, nullable=False),
    Column("caller", String(20), primary_key=True, nullable=False),
    # part of the key: an event that is dated ahead stands beside the one that holds until then
    Column("since", BigInteger, primary_key=True, nullable=False),
    Column("verb", String(10), nullable=False),
    Column("until", BigInteger),
    sqlite_with_rowid=False,
)

cutover = Table(
    "cutover",
    metadata,
    Column("name", String(40), primary_key=True, nullable=False),
    Column("channel", String(10), nullable=False),
    Column("classes", String(40), nullable=False),
    Column("province", String(40), nullable=False),
    Column("operator", String(20), nullable=False),
    Column("effective_at", BigInteger, nullable=False),
    Column("begun_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    Column("undone_at", BigInteger),
    sqlite_with_rowid=False,
)

cutover_batch = Table(
    "cutover_batch",
    metadata,
    Column("name", String(40), primary_key=True, nullable=False),
    Column("batch", Integer, primary_key=True, nullable=False),
    # its lines of the ledger: one transaction writes them, so their ids follow each other
    Column("first_id", BigInteger, nullable=False),
    Column("last_id", BigInteger, nullable=False),
    Column("subscribers", Integer, nullable=False),
    # how far through the subscribers it got: the next batch goes on after this number
    Column("upto", String(20), nullable=False),
    Column("recorded_at", BigInteger, nullable=False),
    Column("undone_at", BigInteger),
    Column("kept", Integer),
    sqlite_with_rowid=False,
)

list_entry = Table(
    "list_entry",
    metadata,
    Column("owner", String(20), primary_key=True, nullable=False),
    Column("key", String(30), primary_key=True, nullable=False),
    Column("name", String(40), primary_key=True, nullable=False),
    # the pattern, for a range only ("" where the key says it all); one row for each key of the range
    Column("span", String(41), primary_key=True, nullable=False),
    Column("part", SmallInteger, nullable=False),
    Column("action", String(10), nullable=False),
    Column("source", String(100), nullable=False),
    Column("reason", String(500), nullable=False),
    Column("legal_basis", String(200), nullable=False),
    Column("expires_at", BigInteger),
    Column("since", BigInteger),
    Column("retained", SmallInteger, nullable=False, server_default="0"),
    Column("document", String(200), nullable=False, server_default=""),
    Column("lifted_at", BigInteger),
    Column("lift_reason", String(200), nullable=False, server_default=""),
    sqlite_with_rowid=False,
)

privacy_binding = Table(
    "privacy_binding",
    metadata,
    # x is shown to b when a calls: two rows for a pair, so that one key finds them for either callee
    Column("x", String(20), primary_key=True, nullable=False),
    Column("b", String(20), primary_key=True, nullable=False),
    Column("a", String(20), primary_key=True, nullable=False),
    Column("since", BigInteger, primary_key=True, nullable=False),
    Column("until", BigInteger),
    Column("max_call_s", Integer),
    sqlite_with_rowid=False,
)

decision = Table(
    "decision",
    metadata,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("call_id", String(200), nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("channel", String(10), nullable=False),
    Column("trunk", String(100), nullable=False),
    Column("cli_raw", String(200), nullable=False),
    Column("cli_key", String(20)),
    Column("cli_class", String(60), nullable=False),
    Column("callee_raw", String(200), nullable=False),
    Column("callee_key", String(20)),
    Column("verdict", String(10), nullable=False),
    Column("reason", String(60), nullable=False),
    Column("labels", Text, nullable=False),
    Column("rule", String(60), nullable=False),
    Column("detail", Text, nullable=False),
    Column("entry", Text, nullable=False),
    Column("pack", String(60), nullable=False),
    Column("lists_version", String(40), nullable=False),
    Column("sip_status", SmallInteger),
    Column("prompt", String(60), nullable=False),
    Column("elapsed_us", BigInteger, nullable=False),
    Column("extra", Text, nullable=False),
    Index("decision_call_id", "call_id"),
    Index("decision_at", "at"),
)

meta = Table(
    "meta",
    metadata,
    Column("name", String(40), primary_key=True, nullable=False),
    Column("value", Text, nullable=False),
    sqlite_with_rowid=False,
)


@overload
def to_micros(at: datetime) -> int: ...
@overload
def to_micros(at: None) -> None: ...
def to_micros(at: datetime | None) -> int | None:
    """Turn an aware time into microseconds since 1970 UTC, exactly; None stays None.

    Raises:
        ValueError: The time has no zone: it would mean another moment on another machine.
    """
    if at is None:
        return None
    if at.tzinfo is None:
        raise ValueError(f"{at!r} has no time zone")
    return (at - _EPOCH) // _MICROSECOND


@overload
def from_micros(micros: int) -> datetime: ...
@overload
def from_micros(micros: None) -> None: ...
def from_micros(micros: int | None) -> datetime | None:
    """Turn microseconds since 1970 into an aware UTC time; None stays None.

    What lies before year 1 or after year 9999 is the first or last moment of the calendar: a row that somebody wrote
    in by hand must not stop the decisions that read it.
    """
    if micros is None:
        return None
    try:
        return _EPOCH + timedelta(microseconds=micros)
    except OverflowError:
        return _FIRST if micros < 0 else _LAST
