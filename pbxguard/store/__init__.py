"""What pbxguard keeps: subscribers, the consent ledger, lists, decisions; SQLite by default."""

from pbxguard.store.audit import Audit, Audits
from pbxguard.store.cutover import Answers, Batch, Cohort, Cutover, Cutovers, Loser
from pbxguard.store.decisions import DecisionRow, Decisions
from pbxguard.store.facts import FactsReader
from pbxguard.store.ledger import Ledger, LedgerImport
from pbxguard.store.ledgerfile import COLUMNS as EVENT_COLUMNS
from pbxguard.store.ledgerfile import write_events
from pbxguard.store.listfile import COLUMNS as LIST_COLUMNS
from pbxguard.store.listfile import NEVER_BLOCK, read_csv, write_csv
from pbxguard.store.listing import ImportReport, Listing
from pbxguard.store.privacy import BINDING_COLUMNS, Bindings
from pbxguard.store.subscribers import Subscribers

__all__ = [
    "BINDING_COLUMNS",
    "EVENT_COLUMNS",
    "LIST_COLUMNS",
    "NEVER_BLOCK",
    "Answers",
    "Audit",
    "Batch",
    "Cohort",
    "Cutover",
    "DecisionRow",
    "ImportReport",
    "LedgerImport",
    "Loser",
    "Store",
    "read_csv",
    "write_csv",
    "write_events",
]


class Store(FactsReader, Subscribers, Ledger, Audits, Cutovers, Listing, Bindings, Decisions):
    """Everything that is kept, in one database; ``Store.open(path)``. Usable from several threads."""
