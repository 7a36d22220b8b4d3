"""What pbxguard keeps: subscribers, the consent ledger, lists, decisions; SQLite by default."""

from pbxguard.store.decisions import DecisionRow, Decisions
from pbxguard.store.facts import FactsReader
from pbxguard.store.ledger import Ledger
from pbxguard.store.listfile import COLUMNS as LIST_COLUMNS
from pbxguard.store.listfile import read_csv, write_csv
from pbxguard.store.listing import ImportReport, Listing
from pbxguard.store.subscribers import Subscribers

__all__ = ["LIST_COLUMNS", "DecisionRow", "ImportReport", "Store", "read_csv", "write_csv"]


class Store(FactsReader, Subscribers, Ledger, Listing, Decisions):
    """Everything that is kept, in one database; ``Store.open(path)``. Usable from several threads."""
