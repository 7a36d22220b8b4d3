"""Calls decided by the thousand: the verdicts are those of the guard, call by call."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from random import Random

import pytest

from pbxguard import batch, packs
from pbxguard.batch import Batch
from pbxguard.config import Settings
from pbxguard.guard import Guard
from pbxguard.screening.call import Call, Channel, Roaming, Subscriber, Trunk, Verdict
from pbxguard.screening.lists import Action, ListEntry
from pbxguard.screening.pack import Pack, compile_pack
from pbxguard.screening.privacy import pair
from pbxguard.screening.punishment import PUNISHMENT_LIST
from pbxguard.screening.registry import CallClass, ConsentEvent, Verb
from pbxguard.screening.treatment import ASTERISK
from pbxguard.store import Store
from pbxguard.store.many import ManyFacts

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def table(pack: str, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((files("pbxguard.packs") / pack / name).read_text("utf-8").splitlines()))


def fill(store: Store, pack: str) -> None:
    """The callees of a pack's vectors, their consents and lists; and entries that any call may meet."""
    callees = table(pack, "callees.csv")
    store.import_subscribers(
        Subscriber(row["number"], row["operator"], row["province"]) for row in callees if row["province"]
    )
    for row in callees:
        for verb, channel, group in (word.split(":") for word in row["consents"].split()):
            event = ConsentEvent(
                row["number"], CallClass(group), channel, Verb(verb), LONG_AGO, LONG_AGO, "test", "cli"
            )
            store.append(event)
        if row["allow"]:
            store.add_entry(ListEntry(row["number"], row["allow"], Action.ALLOW, "own"))
    store.import_entries(
        [
            ListEntry("", "13012345678", Action.BLOCK, PUNISHMENT_LIST),
            ListEntry("", "1391*", Action.BLOCK, "system", expires_at=NOW),
            ListEntry("", "+44*", Action.BLOCK, "system", since=NOW - timedelta(days=30)),
            ListEntry("", "18600000000-18600099999", Action.BLOCK, "system"),
            ListEntry(callees[0]["number"], "class:svc95_vas", Action.BLOCK, "own"),
        ]
    )
    store.bind(pair("700123456789012", "13800138000", callees[0]["number"], LONG_AGO, NOW))


def from_vectors(pack: str) -> Iterator[Call]:
    numbers = {row["name"]: row["number"] for row in table(pack, "callees.csv")}
    for row in table(pack, "vectors.csv"):
        chosen = dict(word.split("=") for word in row["setting"].split())
        trunk = Trunk(
            name=f"{row['trunk']} {row['setting']} {row['cli']}",
            kind=row["trunk"],
            roaming=Roaming(chosen.get("roaming", "no")),
            outbound=chosen.get("outbound", "no") == "yes",
            allocated=(row["cli"],) if chosen.get("allocated") == "yes" else (),
        )
        at = datetime.fromisoformat(row["at"]).astimezone(UTC)
        yield Call("v", at, trunk, row["cli"], numbers[row["callee"]], Channel(row["channel"]))


def drawn(pack: str, number: int) -> Iterator[Call]:
    """Calls at random: callers and callees of the vectors and others, at any time, diverted, asserted or hostile."""
    dice, vectors = Random(8), list(from_vectors(pack))
    others = (
        "13912345678",
        "18600012345",
        "+447700900123",
        "95013",
        "700123456789012",
        "abc",
        "",
        "１３８",
        "\x1b[2J",
    )
    for _ in range(number):
        call = dice.choice(vectors)
        trusted = dice.random() < 0.5
        yield replace(
            call,
            trunk=replace(call.trunk, name=f"{call.trunk.name} {trusted}", trusted=trusted),
            at=NOW + timedelta(hours=dice.randrange(-20_000, 2000)),
            cli=dice.choice((call.cli, dice.choice(others), f"13{dice.randrange(10**9):09d}")),
            callee=dice.choice((call.callee, dice.choice(vectors).callee, f"139{dice.randrange(10**8):08d}")),
            asserted=dice.choice((None, None, dice.choice(others))),
            diverted_by=(dice.choice(vectors).callee,) if dice.random() < 0.2 else (),
            channel=dice.choice(list(Channel)),
        )


def told(verdict: Verdict) -> tuple[object, ...]:
    basis = verdict.basis
    cli = basis.cli
    return (
        *(type(verdict), verdict.reason, set(verdict.labels), basis.rule, basis.entry, basis.shadow, basis.pack),
        *(cli and (cli.key, cli.number_class, cli.raw), basis.callee and basis.callee.key),
    )


@pytest.fixture(params=packs.shipped())
def pack(request: pytest.FixtureRequest) -> Pack:
    return packs.load(request.param)


@pytest.fixture
def store(tmp_path: Path, pack: Pack) -> Iterator[Store]:
    with Store.open(tmp_path / "guard.db") as opened:
        fill(opened, pack.id)
        yield opened


def test_verdicts_are_those_of_the_guard(store: Store, pack: Pack) -> None:
    """Of every vector of the pack and 3,000 random calls, in chunks of any size: what the guard says of each."""
    calls = [*from_vectors(pack.id), *drawn(pack.id, 3000)]
    guard = Guard(store, pack, Settings(), recording=False)
    try:
        wanted = [told(guard.decide(call, ASTERISK).verdict) for call in calls]
    finally:
        guard.close()
    deciding = Batch(ManyFacts(store), pack)
    found: list[Verdict] = []
    start = 0
    for size in (1, 7, 60, 600, len(calls)):
        found += deciding.decide(calls[start : start + size])
        start += size
    assert [told(verdict) for verdict in found] == wanted
    assert len({reason for _, reason, *_ in wanted}) > 5


def test_what_is_kept_of_numbers_is_bounded(store: Store, pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many callers there are, only so many numbers are kept as read, and the answers stay the same."""
    calls = list(drawn(pack.id, 400))
    wanted = [told(verdict) for verdict in Batch(ManyFacts(store), pack).decide(calls)]
    monkeypatch.setattr(batch, "_KEPT", 10)
    deciding = Batch(ManyFacts(store), pack)
    assert [told(verdict) for verdict in deciding.decide(calls)] == wanted
    assert len(deciding._heard) <= 10
    assert len(deciding._callees) <= 10


def test_long_texts_are_read_and_not_kept(store: Store, pack: Pack) -> None:
    """A caller or callee of many characters is decided as any other, and takes no place among the kept ones."""
    call = next(from_vectors(pack.id))
    calls = [replace(call, cli="1" * 5000), replace(call, callee="x" * 5000)]
    deciding = Batch(ManyFacts(store), pack)
    assert deciding.decide(calls)[0].reason == "cli_invalid"
    assert (deciding._heard, deciding._callees) == ({}, {})


@pytest.mark.parametrize("pack", ["cn"], indirect=True)
def test_number_that_gets_another_class_is_read_with_the_time_of_its_call(store: Store, pack: Pack) -> None:
    """A prefix that is given out on a day is none before it, also for a caller that was read already."""
    texts = packs._texts(files("pbxguard.packs") / "cn")
    row = next(line for line in texts["prefixes.csv"].splitlines() if line.startswith("130,"))
    fields = row.split(",")
    fields[6] = "2026-06-01"
    dated = compile_pack(texts | {"prefixes.csv": texts["prefixes.csv"].replace(row, ",".join(fields))})
    day = datetime(2026, 5, 31, 16, tzinfo=UTC)
    assert day in dated.dates
    trunk = Trunk("t", "national")
    calls = [
        Call("", at, trunk, cli, callee)
        for at in (day, day - timedelta(seconds=1), day)
        for cli, callee in (("13000000001", "13957100001"), ("13800138000", "13000000001"))
    ]
    told = Batch(ManyFacts(store), dated).decide(calls)
    assert [verdict.reason for verdict in told[::2]] == ["default", "cli_invalid", "default"]
    callees = [verdict.basis.callee for verdict in told[1::2]]
    assert [callee.number_class if callee else "" for callee in callees] == ["mobile_cu", "invalid", "mobile_cu"]
