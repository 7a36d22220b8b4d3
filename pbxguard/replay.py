"""Decides recorded calls again, and counts where the verdict would be another one.

The call is taken as it was kept: what the caller wrote, trunk, channel and time. Pack, trunks, lists, registry and
bindings are those of now, looked at with the time of the call.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from pbxguard.batch import Batch
from pbxguard.screening.call import Allow, Call, Channel, Facts, Shadow, Trunk, Verdict
from pbxguard.screening.lists import ListEntry
from pbxguard.store import DecisionRow
from pbxguard.store.many import Asked, ManyFacts

AT_ONCE = 2000
"""Recorded decisions that are held at once; with their steps about 20 kB each."""


@dataclass(frozen=True, slots=True)
class Again:
    """One recorded decision, and what the verdict on the same call would be now."""

    was: DecisionRow
    now: Verdict

    @property
    def verdict(self) -> str:
        """``allow`` or ``block``."""
        return "allow" if isinstance(self.now, Allow) else "block"

    @property
    def changed(self) -> bool:
        """Another verdict, or another reason for it."""
        return (self.was.verdict, self.was.reason) != (self.verdict, self.now.reason)


def recorded_call(row: DecisionRow, trunk: Trunk) -> Call:
    """The call of a recorded decision; ``trunk`` as it is set up now."""
    extra = row.extra
    return Call(
        call_id=row.call_id,
        at=row.at,
        trunk=trunk,
        cli=row.cli_raw,
        callee=row.callee_raw,
        channel=Channel(row.channel),
        display_name=extra.get("display_name") or "",
        asserted=extra.get("asserted"),
        diverted_by=tuple(extra.get("diverted_by") or ()),
        user_agent=extra.get("user_agent") or "",
        source=extra.get("source") or "",
        has_offer=extra.get("has_offer", True),
    )


def again(
    rows: Iterable[DecisionRow], trunk: Callable[[str], Trunk | None], batch: Batch
) -> Iterator[tuple[DecisionRow, Again | None]]:
    """Decide recorded calls again, in their order and in bounded memory; None for a call of a trunk that is gone.

    Args:
        rows: The decisions.
        trunk: The trunk of a name, or None.
        batch: Decides.

    Raises:
        StoreUnavailable: The database does not answer.
    """
    rows = iter(rows)
    while chunk := list(islice(rows, AT_ONCE)):
        trunks = [trunk(row.trunk) for row in chunk]
        calls = [recorded_call(row, its) for row, its in zip(chunk, trunks, strict=True) if its is not None]
        verdicts = iter(batch.decide(calls))
        for row, its in zip(chunk, trunks, strict=True):
            yield row, Again(row, next(verdicts)) if its is not None else None


class TrialFacts:
    """Facts as they would be with other lists: entries of a trial store put in, whole lists left out.

    Args:
        store: The facts of now.
        trial: Facts whose list entries are put in; one takes the place of an entry of now with its owner, pattern
            and list, as an import would.
        without: Names of lists whose entries of now do not count.
    """

    def __init__(self, store: ManyFacts, trial: ManyFacts | None, without: Collection[str]) -> None:
        self._store = store
        self._trial = trial
        self._without = frozenset(without)

    def facts(self, asked: Sequence[Asked]) -> list[Facts]:
        """The facts of each call, in their order."""
        now = self._store.facts(asked)
        if self._trial is None:
            return [self._changed(facts, ()) for facts in now]
        trial = self._trial.facts(asked)
        return [self._changed(facts, added.listed) for facts, added in zip(now, trial, strict=True)]

    def _changed(self, facts: Facts, added: tuple[ListEntry, ...]) -> Facts:
        if not facts.listed and not added:
            return facts
        replaced = {(entry.owner, entry.pattern, entry.name) for entry in added}
        kept = [
            entry
            for entry in facts.listed
            if entry.name not in self._without and (entry.owner, entry.pattern, entry.name) not in replaced
        ]
        return replace(facts, listed=(*kept, *added))


@dataclass(slots=True)
class Cell:
    """Calls that have something in common: how many, and the first Call-IDs."""

    calls: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, call_id: str, most: int) -> None:
        """Count one; keep its Call-ID among the first *most*."""
        self.calls += 1
        if len(self.first) < most:
            self.first.append(call_id)


@dataclass(slots=True)
class Comparison:
    """What was, against what would be.

    Attributes:
        most: Call-IDs that each cell keeps.
        verdicts: By verdict then and now.
        changes: By verdict and reason then, and verdict and reason now; only those that differ.
        shadow: What rules and lists in shadow would do now, by rule, verdict and reason.
        calls: Decided again.
        gone: Calls of trunks that the settings no longer have, by trunk.
    """

    most: int
    verdicts: dict[tuple[str, str], Cell] = field(default_factory=dict)
    changes: dict[tuple[str, str, str, str], Cell] = field(default_factory=dict)
    shadow: dict[Shadow, Cell] = field(default_factory=dict)
    calls: int = 0
    gone: dict[str, int] = field(default_factory=dict)

    def add(self, row: DecisionRow, found: Again | None) -> None:
        """Count one decision."""
        if found is None:
            self.gone[row.trunk] = self.gone.get(row.trunk, 0) + 1
            return
        self.calls += 1
        self.verdicts.setdefault((row.verdict, found.verdict), Cell()).add(row.call_id, self.most)
        if found.changed:
            change = (row.verdict, row.reason, found.verdict, str(found.now.reason))
            self.changes.setdefault(change, Cell()).add(row.call_id, self.most)
        for hit in found.now.basis.shadow:
            self.shadow.setdefault(hit, Cell()).add(row.call_id, self.most)


def recorded_shadow(rows: Iterable[DecisionRow], most: int) -> dict[Shadow, Cell]:
    """What rules and lists that were in shadow would have done, as recorded with each decision."""
    cells: dict[Shadow, Cell] = {}
    for row in rows:
        for hit in row.extra.get("shadow", ()):
            cells.setdefault(Shadow(*hit), Cell()).add(row.call_id, most)
    return cells
