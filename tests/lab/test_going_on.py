"""Calls that the guard lets through, and what comes of them: a number that may not be shown, and a transfer.

Each PBX has a lab of its own, with the German pack: there a national number from abroad is shown to nobody.
"""

import asyncio
import csv
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pbxguard import config
from pbxguard.errors import LabUnavailable
from pbxguard.lab.callers import Callers, Placing
from pbxguard.lab.capture import capturing
from pbxguard.lab.topology import PHONES
from pbxguard.lab.waiting import wait_for
from pbxguard.lab.wire import Capture, SipMessage
from pbxguard.lab.world import FREESWITCH_IMAGE, World
from pbxguard.store import DecisionRow, Store

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

SETTINGS = """\
[screening]
pack = "de"
accept_unverified = ["*"]
[trunks.intl]
kind = "intl_gateway"
[trunks.natl]
kind = "national"
[trunks.ent]
kind = "enterprise"
[trunks.goip1]
kind = "sim_gateway"
"""

ZHANG, WANG = (next(phone for phone in PHONES if phone.name == name) for name in ("zhang", "wang"))
BERLIN = "+4930901820"


@pytest.fixture(name="world", scope="module", params=["asterisk", "freeswitch"])
def _world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The lab, up; FreeSWITCH is skipped where no image of it is there."""
    if shutil.which("docker") is None and not Path("/var/run/docker.sock").exists():
        pytest.skip("no Docker engine; `make test` sets one up (needs root or sudo)")
    folder = tmp_path_factory.mktemp(f"going-on-{request.param}")
    file = folder / "pbxguard.toml"
    file.write_text(SETTINGS)
    settings = config.load(file).model_copy(update={"state": folder / "state"})
    with World(settings, file, pbx=request.param) as world:
        if request.param == "freeswitch":
            try:
                world.engine.require_image(FREESWITCH_IMAGE)
            except LabUnavailable:
                pytest.skip(f"calls that go on, FreeSWITCH: no image {FREESWITCH_IMAGE}; `make freeswitch` builds it")
        try:
            world.up()
            yield world
        finally:
            world.down()


def recorded(world: World) -> list[DecisionRow]:
    with Store.open(world.settings.store_url) as store:
        return list(store.recent(50))


def transfer(world: World, to: str) -> None:
    """Send the caller's channel to another number, through the same dialplan as its INVITE."""
    if world.pbx == "asterisk":
        lines = world.console("core show channels concise").splitlines()
        [channel] = {line.split("!")[0] for line in lines if line.startswith("PJSIP/natl-")}
        said = world.console(f"channel redirect {channel} from-natl,{to},1")
        assert "successfully redirected" in said, said
        return
    rows = csv.DictReader(world.console("show channels").splitlines())
    [uuid] = [row["uuid"] for row in rows if row["direction"] == "inbound"]
    said = world.console(f"uuid_transfer {uuid} {to} XML carrier")
    assert said.startswith("+OK"), said


async def place(world: World, call: Placing, *, then: str = "") -> Capture:
    """Place the call, transfer it to *then* while it is connected, and give what was on the wire."""
    call = replace(call, id=os.urandom(8).hex())
    async with (
        Callers.open(world.engine, world.passwords.ami) as callers,
        capturing(world.engine, world.watcher, world.root / "captures", call.id) as path,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(callers.place(call, limit=30))
        if then:
            await wait_for(
                lambda: len(to_phones(Capture.load(path))) == 1, 10, "the first telephone to ring", every=0.05
            )
            await wait_for(lambda: world.channels() == 2, 10, "the call to be connected", every=0.05)
            await wait_for(lambda: answered(Capture.load(path)), 10, "the first telephone to answer", every=0.05)
            await asyncio.to_thread(transfer, world, then)
            await wait_for(
                lambda: len(to_phones(Capture.load(path))) == 2, 10, "the second telephone to ring", every=0.05
            )
    return Capture.load(path)


def to_phones(seen: Capture) -> list[SipMessage]:
    """The INVITEs that the telephones got."""
    addresses = {str(phone.address) for phone in PHONES if phone.address}
    return [m for m in seen.messages if m.method == "INVITE" and m.status is None and m.destination.ip in addresses
            and not m.to_tag and not m.repeated]  # fmt: skip


def answered(seen: Capture) -> bool:
    """The first telephone that rang has answered."""
    return 200 in statuses(seen, to_phones(seen)[0])


def statuses(seen: Capture, invite: SipMessage) -> list[int]:
    """The answers to the INVITE."""
    return [m.status for m in seen.messages if m.status and m.method == "INVITE" and m.call_id == invite.call_id]


async def test_a_number_that_may_not_be_shown_is_shown_to_nobody(world: World) -> None:
    """The telephone answers, and no message to it has the number or the name of the caller, who is not told that the
    call is forwarded.
    """
    more = {
        name: value.format(BERLIN)
        for name, value in {
            "P-Asserted-Identity": "<sip:{}@c>",
            "P-Charge-Info": "<sip:{}@c>",
            "X-Caller": "{}",
            "User-to-User": "{};encoding=ascii",
            "Diversion": "<sip:{}@c>;reason=unknown",
            "K-Caller": "{}",
        }.items()
    }
    call = Placing("", "intl", BERLIN, ZHANG.number, display_name="Sparkasse", raw=True, headers=more)
    seen = await place(world, call)
    invites = to_phones(seen)

    await wait_for(lambda: bool(recorded(world)), 5, "the decision record")
    row = recorded(world)[0]
    assert (row.verdict, row.reason) == ("allow", "cli_anonymised")
    told = statuses(seen, next(m for m in seen.messages if m.method == "INVITE"))
    assert 200 in told
    assert not {181, 182} & set(told)
    assert len(invites) == 1
    said = "\n".join(f"{name}: {value}" for name, value in invites[0].headers)
    assert "30901820" not in said + invites[0].body.decode("utf-8", "replace")
    assert "Sparkasse" not in said
    assert "anonymous" in (invites[0].header("From") or "").lower()


async def test_a_caller_who_writes_over_the_address_is_not_put_through(world: World) -> None:
    """Parameters of From that FreeSWITCH takes for its own variables, with a name that looks like that number's."""
    sender = "110@gw>;user=030901820;host=c;tag=7\nX-Rest: <sip:x"
    call = Placing("", "natl", sender, ZHANG.number, display_name="%22 <sip:030901820@c>", raw=True)
    before = len(recorded(world))

    assert to_phones(await place(world, call)) == []
    await wait_for(lambda: len(recorded(world)) > before, 5, "the decision record")
    assert recorded(world)[0].verdict == "block"


async def test_a_transferred_call_is_not_screened_twice(world: World) -> None:
    """A call that is let through and then sent to another telephone by the same dialplan has one decision."""
    before = len(recorded(world))
    seen = await place(world, Placing("", "natl", "030901820", ZHANG.number, listen=6.0), then=WANG.number)

    assert [invite.destination.ip for invite in to_phones(seen)] == [str(ZHANG.address), str(WANG.address)]
    await wait_for(lambda: world.channels() == 0, 10, "the PBX to end the call")
    await wait_for(lambda: len(recorded(world)) > before, 5, "the decision record")
    assert len(recorded(world)) == before + 1
