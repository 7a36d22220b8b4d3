"""A real call whose line is cut under a prompt; other faults of links have scenarios (link-*, guard-*, dns-gone)."""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest

from pbxguard import prompts
from pbxguard.errors import LabUnavailable
from pbxguard.lab import evidence
from pbxguard.lab.callers import Callers, Placing
from pbxguard.lab.capture import capturing
from pbxguard.lab.evidence import Observed
from pbxguard.lab.links import Line, LinkFault, applied, pids_of
from pbxguard.lab.waiting import wait_for
from pbxguard.lab.wire import Capture, Leg
from pbxguard.lab.world import World
from pbxguard.store import Store

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="links are changed by root only"),
]

#: The guard refuses it with a prompt of some seconds.
REFUSED = Placing("", "intl", "+85261234567", "13957100003")
#: The same, but that the caller does not hear the prompt to its end.
SHORT = replace(REFUSED, hang_up_after=2.5)

Record = Callable[[str, object], None]


async def place(
    world: World, call: Placing, faults: Sequence[LinkFault] = (), *, limit: float = 30
) -> tuple[Observed, Leg, list[Line]]:
    """Place one call; the faults begin a second after its INVITE, and the PBX ends the call while they last."""
    tagged = replace(call, id=os.urandom(8).hex())
    pid_of = pids_of(world.engine)
    async with (
        Callers.open(world.engine, world.passwords.ami) as callers,
        capturing(world.engine, world.watcher, world.root / "captures", tagged.id) as path,
    ):
        placed = asyncio.create_task(_place(callers, tagged, limit))
        await wait_for(
            lambda: evidence.legs_of(Capture.load(path), tagged.id) is not None, 10, "the INVITE", every=0.02
        )
        await asyncio.sleep(1.0)
        async with applied(lambda actor: pid_of(world.container(actor)), faults) as lines:
            await placed
            await wait_for(lambda: world.channels() == 0, 60, "the PBX to end its calls", every=0.3)
    capture = Capture.load(path)
    path.unlink()
    legs = evidence.legs_of(capture, tagged.id)
    assert legs is not None
    with Store.open(world.settings.store_url) as store:
        row = store.decision(legs.caller.call_id)
    return evidence.observe(legs, row, prompts.PROMPT_DIR), legs.caller, lines


async def _place(callers: Callers, call: Placing, limit: float) -> None:
    # A caller whose link is cut does not hear that its call has ended, and says so.
    with suppress(LabUnavailable):
        await callers.place(call, limit=limit)


async def test_link_cut_during_the_prompt(world: World, record_property: Record) -> None:
    """A caller whose link is cut in mid-prompt keeps no channel: the PBX ends the call by itself, in bounded time."""
    began = time.monotonic()
    _, leg, lines = await place(
        world, replace(REFUSED, hang_up_after=3.0), [LinkFault(actor="intl", cut=True)], limit=5
    )

    record_property(
        "cut", f"{lines[0]}: status {leg.final_status}, no channel after {time.monotonic() - began:.1f} s"
    )
    assert lines[0].by == "link down"
    assert lines[0].until is not None
    await wait_for(lambda: "goip1" in world.registered(), 10, "the others to be untouched")
    [again, *_] = await place(world, SHORT)
    assert again.prompt == "intl_default_off"


async def test_only_this_labs_containers(world: World) -> None:
    """A container that is not of this lab is refused by name."""
    with pytest.raises(LabUnavailable, match="registry does not run in this lab"):
        async with applied(pids_of(world.engine), [LinkFault(actor="registry", cut=True)]):
            pass
