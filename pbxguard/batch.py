"""Decides calls by the thousand, as the guard decides one: the same reading, facts and rules, and nothing else.

No deadline, no failure policy and no treatment: trouble with the store is an error, not a verdict. One thread.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol, TypeVar

from pbxguard.screening import policy
from pbxguard.screening.call import Call, Facts, Verdict
from pbxguard.screening.numbering import Number, read_callee
from pbxguard.screening.pack import Pack
from pbxguard.screening.policy import Heard
from pbxguard.store.many import Asked

_K = TypeVar("_K")
_V = TypeVar("_V")

AT_ONCE = 4000
"""Calls whose facts are read together; about 5 kB each are held."""

#: Numbers that are kept as read, about 1 kB each, and the longest text that is: longer ones are no numbers.
_KEPT = 20_000
_LONGEST = 64


class FactsReader(Protocol):
    """What facts come from: the store (``ManyFacts``), or the store and a list on trial."""

    def facts(self, asked: Sequence[Asked]) -> list[Facts]:
        """The facts of each call, in their order."""


class Batch:
    """Decides one chunk of calls after another."""

    def __init__(self, reader: FactsReader, pack: Pack) -> None:
        self._reader = reader
        self._pack = pack
        self._heard: dict[tuple[str, str, int], Heard] = {}
        self._callees: dict[tuple[str, int], Number] = {}

    def decide(self, calls: Sequence[Call]) -> list[Verdict]:
        """The verdict of each call, in their order.

        Args:
            calls: At most ``AT_ONCE``, for bounded memory.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        pack = self._pack
        heard = [self._read(call) for call in calls]
        facts = self._reader.facts([(each.cli.key, each.callee_keys, each.tags) for each in heard])
        return [policy.decide(call, each, known, pack) for call, each, known in zip(calls, heard, facts, strict=True)]

    def _read(self, call: Call) -> Heard:
        """``policy.read``, which keeps what was read: a caller calls many, and many call one."""
        if call.asserted is not None or call.diverted_by or max(len(call.cli), len(call.callee)) > _LONGEST:
            return policy.read(call, self._pack)
        era = bisect_right(self._pack.dates, call.at) if self._pack.dates else 0
        caller = (call.trunk.name, call.cli, era)
        heard = self._heard.get(caller)
        if heard is None:
            return _kept(self._heard, caller, policy.read(call, self._pack))
        called = (call.callee, era)
        callee = self._callees.get(called)
        if callee is None:
            callee = _kept(self._callees, called, read_callee(call.callee, self._pack, at=call.at))
        return Heard(heard.cli, heard.presented, callee, tags=heard.tags)


def _kept(cache: dict[_K, _V], key: _K, value: _V) -> _V:
    if len(cache) >= _KEPT:
        # All at once: to find the oldest of a dictionary, over and over, costs more than to read it again.
        cache.clear()
    cache[key] = value
    return value
