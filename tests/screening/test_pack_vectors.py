"""The vectors of every shipped pack get the class, verdict and reason that stand beside them."""

import csv
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.resources import files
from zoneinfo import ZoneInfo

import pytest

from pbxguard import packs
from pbxguard.screening import policy
from pbxguard.screening.call import Allow, Block, Call, Channel, Facts, Label, Roaming, Subscriber, Trunk
from pbxguard.screening.lists import Action, ListEntry
from pbxguard.screening.numbering import home_key, read_callee
from pbxguard.screening.pack import Pack
from pbxguard.screening.privacy import Binding
from pbxguard.screening.registry import CallClass, Consent, Verb

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
SETTINGS = {"roaming", "allocated", "outbound", "detector", "list", "binding", "prefix", "asserted"}


def table(pack: str, name: str) -> list[dict[str, str]]:
    """The rows of a test file of a pack, by column."""
    text = (files("pbxguard.packs") / pack / name).read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))


CALLEES = {pack: {row["name"]: row for row in table(pack, "callees.csv")} for pack in packs.shipped()}
VECTORS = [(pack, row) for pack in packs.shipped() for row in table(pack, "vectors.csv")]


def consents(row: dict[str, str]) -> Iterator[Consent]:
    for word in row["consents"].split():
        verb, channel, call_class = word.split(":")
        yield Consent(row["number"], CallClass(call_class), channel, Verb(verb), LONG_AGO)


def facts(pack: Pack, row: dict[str, str], settings: dict[str, str], at: datetime) -> Facts:
    """What a store would know about the call of a vector."""
    callee = CALLEES[pack.id][row["callee"]]
    number = callee["number"]
    known = {number: Subscriber(number, callee["operator"], callee["province"])} if callee["operator"] else {}
    listed = [ListEntry(number, each, Action.ALLOW, "own", source="vector") for each in callee["allow"].split()]
    if "list" in settings:
        listed.append(ListEntry("", row["cli"], Action.BLOCK, settings["list"], source="vector"))
    ends = {"live": None, "expired": at}
    bindings = [Binding(row["cli"], "", number, LONG_AGO, ends[settings["binding"]])] if "binding" in settings else []
    heard_as = home_key(row["cli"], pack) if callee["allow"] else ""
    return Facts(
        callees=known,
        consents=tuple(consents(callee)),
        listed=tuple(each for each in listed if each.owner == "" or each.pattern == heard_as),
        flags=(Label.SIMBOX_SUSPECTED,) if settings.get("detector") == "simbox" else (),
        bindings=tuple(bindings),
    )


@pytest.mark.parametrize(
    ("pack_id", "row"), VECTORS, ids=[f"{pack}-{row['n']}-{row['cli']}" for pack, row in VECTORS]
)
def test_vector(pack_id: str, row: dict[str, str]) -> None:
    """A call as the vector describes it is read as its class and decided as it says, by its pack alone."""
    pack = packs.load(pack_id)
    settings = dict(word.split("=") for word in row["setting"].split())
    trunk = Trunk(
        name="t",
        kind=row["trunk"],
        roaming=Roaming(settings.get("roaming", "no")),
        outbound=settings.get("outbound") == "yes",
        allocated=(row["cli"],) if settings.get("allocated") == "yes" else (),
        trusted="asserted" in settings,
        cli_prefixes=(settings["prefix"],) if "prefix" in settings else (),
    )
    at = datetime.fromisoformat(row["at"]).replace(tzinfo=ZoneInfo(pack.timezone)).astimezone(UTC)
    callee = CALLEES[pack_id][row["callee"]]["number"]
    call = Call("v", at, trunk, row["cli"], callee, Channel(row["channel"]), asserted=settings.get("asserted"))
    heard = policy.read(call, pack)
    verdict = policy.decide(call, heard, facts(pack, row, settings, at), pack)
    assert heard.cli.number_class == row["class"]
    assert (isinstance(verdict, Block | Allow), isinstance(verdict, Block)) == (True, row["verdict"] == "block")
    assert verdict.reason == row["reason"]
    if row["verdict"] == "label":
        assert row["reason"] in verdict.labels
    assert verdict.basis.pack == pack.name


@pytest.mark.parametrize("pack", packs.shipped())
def test_every_pack_has_its_vectors(pack: str) -> None:
    """A pack has ten vectors or more, numbered without a gap, with known settings and callees of that pack."""
    rows = table(pack, "vectors.csv")
    assert len(rows) >= 10
    assert [int(row["n"]) for row in rows] == list(range(1, len(rows) + 1))
    for row in rows:
        assert row["callee"] in CALLEES[pack]
        assert {word.partition("=")[0] for word in row["setting"].split()} <= SETTINGS


@pytest.mark.parametrize("pack_id", packs.shipped())
def test_callees_are_numbers_of_home(pack_id: str) -> None:
    """Each callee is written in its home form, and its province and operator are known to the pack."""
    pack = packs.load(pack_id)
    for row in CALLEES[pack_id].values():
        assert read_callee(row["number"], pack).key == row["number"]
        if row["operator"]:
            assert row["operator"] in pack.operators
            assert row["province"] in pack.provinces
        else:
            assert row["number"] in pack.emergency
