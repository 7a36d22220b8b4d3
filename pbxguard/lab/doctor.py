"""What is wrong with the lab, in the order in which it matters; the last check is a call that is listened to."""

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pbxguard.errors import LabUnavailable, PbxguardError
from pbxguard.lab.callers import Callers
from pbxguard.lab.evidence import Evidence
from pbxguard.lab.run import Stage
from pbxguard.lab.scenario import CallStep
from pbxguard.lab.topology import PHONES
from pbxguard.lab.world import World


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    ok: bool
    remedy: str = ""


def examine(open_world: Callable[[], World]) -> Iterator[Finding]:
    """Look at everything, first whether the lab can be opened; stops where going on makes no sense."""
    try:
        world = open_world()
    except LabUnavailable as error:
        yield _failed("", error)
        return
    with world:
        yield Finding("the Docker engine answers", ok=True)
        yield from _examine(world)


def _examine(world: World) -> Iterator[Finding]:
    if not world.is_up():
        yield Finding("the lab is not up", ok=False, remedy="`pbxguard lab up` starts it")
        return
    for row in world.status():
        fine = row.state not in ("not running", "not registered")
        yield Finding(f"{row.name}: {row.state}", ok=fine, remedy="`pbxguard lab up` starts what is missing")
    version = world.version()[:120] or "no answer"
    yield Finding(f"PBX: {version}", ok=version != "no answer", remedy="`docker logs pbxguard-pbx` says why")
    host, port = world.handler.address
    probe = f"exec 3<>/dev/tcp/{host}/{port}"
    code, _ = world.engine.run(world.container("pbx"), "bash", "-c", probe, timeout=5)
    yield Finding(
        f"the PBX reaches the handler at {host}:{port}",
        ok=code == 0,
        remedy=f"allow TCP {port} from the lab's networks in this host's firewall; log: {world.handler.log_file}",
    )
    try:
        with world.busy(alone=False):
            call = asyncio.run(_two_way(world))
    except PbxguardError as error:
        yield _failed("a test call: ", error)
        return
    seen = call.observed
    yield Finding(
        f"a domestic call connects (SIP {seen.sip_status}, {seen.post_dial_ms} ms to the first sign)",
        ok=seen.answered,
        remedy="`pbxguard explain` says why it was refused; `docker logs pbxguard-pbx` what the PBX did",
    )
    yield Finding(
        f"audio in both directions (caller heard {seen.heard_by_caller}, callee heard {seen.heard_by_callee})",
        ok=seen.two_way_audio,
        remedy="one side did not hear the other's marker: look for a firewall between the lab's networks",
    )


def _failed(what: str, error: PbxguardError) -> Finding:
    """An error as a finding: its line is what is wrong, then the remedy."""
    said, _, remedy = str(error).partition("; ")
    return Finding(f"{what}{said}", ok=False, remedy=remedy or "see the findings above")


async def _two_way(world: World) -> Evidence:
    callee = next(phone for phone in PHONES if phone.address is not None)
    step = CallStep(cli="13800138000", callee=callee.number, trunk="natl")
    with tempfile.TemporaryDirectory() as folder:
        async with Callers.open(world.engine, world.passwords.ami) as callers:
            stage = Stage(world, world.state, callers)
            return await stage.call(step, Path(folder), scenario="doctor", title="two-way audio")
