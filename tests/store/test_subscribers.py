"""Subscribers that the operator knows."""

from collections.abc import Iterator

import pytest

from pbxguard.errors import BadInput
from pbxguard.screening.call import Subscriber
from pbxguard.store import Store

ZHANG = Subscriber("13957100001", "cm", "zhejiang", "zh")


def test_added_subscriber_is_found_changed_and_removed(store: Store) -> None:
    """Adding twice overwrites; removing tells whether there was one."""
    store.add_subscriber(ZHANG)
    moved = Subscriber(ZHANG.number, "cu", "yunnan", "en")
    store.add_subscriber(moved)
    assert store.subscriber(ZHANG.number) == moved
    assert store.remove_subscriber(ZHANG.number)
    assert not store.remove_subscriber(ZHANG.number)
    assert store.subscriber(ZHANG.number) is None


def test_import_is_all_or_nothing_and_comes_back_in_order(store: Store) -> None:
    """A failing import keeps nothing, a whole one is streamed in the order of the numbers."""
    rows = [Subscriber(f"139{n:08d}", "cm", "zhejiang") for n in range(12_000)]

    def broken() -> Iterator[Subscriber]:
        yield from rows
        raise BadInput("line 12002: no such province")

    with pytest.raises(BadInput):
        store.import_subscribers(broken())
    assert store.count_subscribers() == 0
    assert store.import_subscribers(reversed(rows)) == len(rows)
    assert list(store.iter_subscribers()) == rows
