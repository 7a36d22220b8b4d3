"""The called parties that the operator knows."""

from collections.abc import Iterable, Iterator

from sqlalchemy import Row, delete, func, select

from pbxguard.screening.call import Subscriber
from pbxguard.store.database import Database
from pbxguard.store.schema import subscriber as table
from pbxguard.store.upsert import batches, upsert


class Subscribers(Database):
    """Adds, removes and lists subscribers. Numbers are in home form."""

    def add_subscriber(self, subscriber: Subscriber) -> None:
        """Store a subscriber, over the one with that number if there is one."""
        self.import_subscribers([subscriber])

    def import_subscribers(self, rows: Iterable[Subscriber]) -> int:
        """Store all of them or, if one fails or ``rows`` raises, none; give their number."""
        total = 0
        with self.writing() as connection:
            statement = upsert(connection, table)
            for batch in batches(rows):
                values = [
                    {
                        "number": r.number,
                        "operator": r.operator,
                        "province": r.province,
                        "language": r.language,
                    }
                    for r in batch
                ]
                connection.execute(statement, values)
                total += len(values)
        return total

    def remove_subscriber(self, number: str) -> bool:
        """Remove one; say whether there was one. The ledger and the lists keep what is theirs."""
        with self.writing() as connection:
            return connection.execute(delete(table).where(table.c.number == number)).rowcount > 0

    def subscriber(self, number: str) -> Subscriber | None:
        """Give the subscriber with that number, or None."""
        with self.reading() as connection:
            row = connection.execute(select(table).where(table.c.number == number)).first()
        return None if row is None else _subscriber(row)

    def iter_subscribers(self) -> Iterator[Subscriber]:
        """Give them all in the order of their numbers, streaming one consistent view."""
        with self.reading() as connection:
            streamed = connection.execution_options(yield_per=1000)
            for row in streamed.execute(select(table).order_by(table.c.number)):
                yield _subscriber(row)

    def count_subscribers(self) -> int:
        """Count them."""
        with self.reading() as connection:
            return connection.execute(select(func.count()).select_from(table)).scalar_one()


def _subscriber(row: Row[tuple[str, ...]]) -> Subscriber:
    return Subscriber(row.number, row.operator, row.province, row.language)
