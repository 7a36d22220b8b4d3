"""What is wrong with the lab, in the order in which it matters; the last check is a call that is listened to."""

import asyncio
import json
import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pbxguard.errors import LabUnavailable, PbxguardError
from pbxguard.lab.callers import Callers
from pbxguard.lab.evidence import Evidence
from pbxguard.lab.run import Stage
from pbxguard.lab.scenario import CallStep
from pbxguard.lab.topology import LABEL, PHONES
from pbxguard.lab.world import FREESWITCH_IMAGE, World

_NEEDED = (1, 10, 12)
_GET_FREESWITCH = f"`make freeswitch` builds it, or tag an image of FreeSWITCH 1.10.12 or later as {FREESWITCH_IMAGE}"


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
    yield _freeswitch_image(wanted=world.pbx == "freeswitch")
    if not world.is_up():
        yield Finding("the lab is not up", ok=False, remedy="`pbxguard lab up` starts it")
        return
    for row in world.status():
        fine = row.state not in ("not running", "not registered")
        yield Finding(f"{row.name}: {row.state}", ok=fine, remedy="`pbxguard lab up` starts what is missing")
    version = world.version()[:120] or "no answer"
    yield Finding(f"PBX: {version}", ok=version != "no answer", remedy="`docker logs pbxguard-pbx` says why")
    yield _connection(world)
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


def _connection(world: World) -> Finding:
    """Whether the side that connects, the PBX (FastAGI) or the handler (event socket), reaches the other."""
    host, port = world.handler.address
    if world.pbx == "freeswitch":
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError as error:
            remedy = f"{error}; allow TCP {port} to the lab's networks in this host's firewall"
            return Finding(f"the handler does not reach the event socket at {host}:{port}", ok=False, remedy=remedy)
        return Finding(f"the handler reaches the event socket at {host}:{port}", ok=True)
    probe = f"exec 3<>/dev/tcp/{host}/{port}"
    code, _ = world.engine.run(world.container("pbx"), "bash", "-c", probe, timeout=5)
    return Finding(
        f"the PBX reaches the handler at {host}:{port}",
        ok=code == 0,
        remedy=f"allow TCP {port} from the lab's networks in this host's firewall; log: {world.handler.log_file}",
    )


def _freeswitch_image(*, wanted: bool) -> Finding:
    """Which FreeSWITCH the lab has or would take: image, origin, version. A fault only when it is *wanted*."""
    found = _docker("image", "inspect", FREESWITCH_IMAGE)
    if not found:
        return _lacking(f"no FreeSWITCH image {FREESWITCH_IMAGE}", _GET_FREESWITCH, wanted=wanted)
    facts = json.loads(found)[0]
    ours = ((facts.get("Config") or {}).get("Labels") or {}).get(LABEL) == "image"
    tags = [tag for tag in facts.get("RepoTags") or () if tag != FREESWITCH_IMAGE]
    known = [f"image {facts['Id'].removeprefix('sha256:')[:12]}", *tags, "built here" if ours else "not built here"]
    which = f"{FREESWITCH_IMAGE} ({', '.join(known)})"
    # The version that the program itself tells: a tag may say anything.
    told = _docker(
        *("run", "--rm", "--network", "none", "--label", f"{LABEL}=doctor", "--entrypoint", "timeout"),
        *(FREESWITCH_IMAGE, "10", "sh", "-c", "PATH=$PATH:/opt/freeswitch/bin exec freeswitch -version"),
    )
    version = re.search(r"FreeSWITCH version: ((\d{1,4})\.(\d{1,4})\.(\d{1,4})\S{0,60})", told[:1000])
    if version is None:
        return _lacking(f"{which} runs no FreeSWITCH", _GET_FREESWITCH, wanted=wanted)
    if tuple(map(int, version.group(2, 3, 4))) < _NEEDED:
        return _lacking(f"FreeSWITCH {version[1]} is too old: {which}", _GET_FREESWITCH, wanted=wanted)
    return Finding(f"FreeSWITCH {version[1]}: {which}", ok=True)


def _lacking(what: str, remedy: str, *, wanted: bool) -> Finding:
    if wanted:
        return Finding(what, ok=False, remedy=remedy)
    return Finding(f"{what}: FreeSWITCH scenarios are skipped; {remedy}", ok=True)


def _docker(*words: str) -> str:
    """What the Docker client prints, "" when it fails or is not there; on the engine that the lab uses."""
    local = {"DOCKER_HOST": os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")}
    try:
        done = subprocess.run(
            ["docker", *words], env=os.environ | local, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors="replace", timeout=30, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


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
