"""A gateway at work: 32 lines, calls at once with audio, restarts of its registrar, digits in three ways."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbxguard.lab import heard, listening
from pbxguard.lab.callers import Callers, Placing, sipp_keys, sipp_scenario
from pbxguard.lab.capture import capturing
from pbxguard.lab.evidence import TAG, legs_of
from pbxguard.lab.goip.box import Event, State, StateChanged
from pbxguard.lab.goip.plan import GatewayPlan
from pbxguard.lab.goip.profiles import CallerId, Dtmf
from pbxguard.lab.listening import Sound
from pbxguard.lab.topology import ANSWERING
from pbxguard.lab.waiting import wait_for, wait_until
from pbxguard.lab.wire import Capture, Leg
from pbxguard.lab.world import World

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

LINES = 32
#: ITU-T Q.23: each digit is two tones.
ROWS, COLUMNS = (697, 770, 852, 941), (1209, 1336, 1477, 1633)
STEP = heard.RATE // 25
KEYS = ("123A", "456B", "789C", "*0#D")


@pytest.fixture(name="world", scope="module")
def _as_it_was(world: World) -> Iterator[World]:
    """The lab, with its gateways as they were afterwards."""
    yield world
    for name in tuple(world.gateways):
        world.gateway(name)


@asynccontextmanager
async def watched(world: World, *actors: str) -> AsyncIterator[dict[str, Path]]:
    """Capture at these actors in this block."""
    name = os.urandom(4).hex()
    folder = world.root / "captures"
    async with (
        capturing(world.engine, world.container(actors[0]), folder, f"{name}-0") as first,
        capturing(world.engine, world.container(actors[-1]), folder, f"{name}-1") as last,
    ):
        yield {actors[0]: first, actors[-1]: last}


def callers(world: World) -> AbstractAsyncContextManager[Callers]:
    return Callers.open(world.engine, world.passwords.ami, world.net, world.gateways)


def tagged(path: Path) -> dict[str, Leg]:
    """The first leg of each call in a capture, by the call's tag."""
    found: dict[str, Leg] = {}
    for leg in sorted(Capture.load(path).calls().values(), key=lambda leg: leg.invite.at):
        found.setdefault(leg.invite.header(TAG) or "", leg)
    return found


def sounds(samples: heard.Samples, marker: str) -> Sound:
    return listening.listen(samples, {marker: heard.marker(marker)}, (marker,)).sound


@pytest.mark.parametrize(
    ("trunk", "first", "clis"), [("goip1", "natl", "130123456{:02d}"), ("goip2", "overseas", "139571030{:02d}")]
)
async def test_32_lines_carry_32_calls_at_once_with_audio(world: World, trunk: str, first: str, clis: str) -> None:
    """Each of 32 lines registers and carries a call at the same time; everybody hears the other side, whole.

    goip1: GSM callers to the PBX. goip2: callers abroad, through 32 SIMs and the mobile network, to the PBX.
    """
    plan = GatewayPlan(lines=LINES, mode="line", caller_id=CallerId.FROM)
    world.gateway(trunk, plan)
    calls = [
        Placing(os.urandom(8).hex(), trunk, f"130123456{n:02d}", ANSWERING, line=n, listen=4)
        for n in range(1, LINES + 1)
    ]
    talking: set[int] = set()
    most = 0

    def on_event(event: Event) -> None:
        nonlocal most
        if isinstance(event, StateChanged):
            talking.discard(event.line)
            if event.state in (State.ACTIVE, State.CONNECTED):
                talking.add(event.line)
            most = max(most, len(talking))

    async with callers(world) as placing, watched(world, first, "pbx") as paths:
        gateway = await placing.gateway(trunk)
        assert [line.voip_up for line in gateway.box.lines] == [True] * LINES
        gateway.box.watch(on_event)
        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(placing.place(call, limit=60))
        await wait_for(
            lambda: all(line.state is State.IDLE for line in gateway.box.lines), 20, "every line to be idle"
        )
    assert most == LINES
    origin, inbound = tagged(paths[first]), tagged(paths["pbx"])
    for call in calls:
        far, near = origin[call.id], inbound[call.id]
        assert (far.final_status, near.final_status) == (200, 200)
        assert sounds(far.audio_to_caller(), "callee") is Sound.WHOLE, call.line
        assert sounds(near.audio_to_callee(), "caller") is Sound.WHOLE, call.line
        assert f"sip:{clis.format(call.line)}@" in (near.invite.header("from") or "")


async def test_lines_register_again_when_the_registrar_has_forgotten_them(world: World) -> None:
    """The PBX restarts without the gateway's registrations: its lines come back by themselves, and carry calls."""
    world.gateway("goip1", GatewayPlan(lines=4, mode="line", caller_id=CallerId.FROM, register_s=10))
    accounts = {f"goip1-{line}" for line in range(1, 5)}
    assert accounts <= world.registered()
    for row in world.console("database show registrar").splitlines():
        if "/goip1" in row:
            family, _, key = row.partition(": ")[0].strip().removeprefix("/").rpartition("/")
            assert "removed" in world.console(f"database del {family} {key}")
    await asyncio.to_thread(world.restart_pbx)
    await asyncio.to_thread(wait_until, lambda: accounts <= world.registered(), 120, "the lines to register again")

    async with callers(world) as placing, watched(world, "natl", "pbx") as paths:
        call = Placing(os.urandom(8).hex(), "goip1", "13012345678", ANSWERING, line=3)
        await placing.place(call, limit=30)
    assert sounds(tagged(paths["natl"])[call.id].audio_to_caller(), "callee") is Sound.WHOLE


async def test_a_gateway_lives_on_when_the_pbx_restarts_in_mid_call(world: World) -> None:
    """The call of that moment ends on both sides, its line becomes idle, and the next call goes through."""
    world.gateway("goip1", GatewayPlan(lines=1, caller_id=CallerId.FROM, rtp_timeout_s=3, register_s=10))
    call = Placing(os.urandom(8).hex(), "goip1", "13012345678", ANSWERING, listen=60)
    async with callers(world) as placing:
        gateway = await placing.gateway("goip1")
        async with asyncio.TaskGroup() as group:
            group.create_task(placing.place(call, limit=100))
            await wait_for(lambda: gateway.box.line(1).state is State.ACTIVE, 20, "the call to be connected")
            await asyncio.to_thread(world.restart_pbx)
            await wait_for(lambda: gateway.box.line(1).state is State.IDLE, 40, "the line to be idle")
        await wait_for(lambda: "goip1" in world.registered(), 60, "the gateway to register again")
        async with watched(world, "natl", "pbx") as paths:
            again = replace(call, id=os.urandom(8).hex(), listen=1)
            await placing.place(again, limit=30)
    assert sounds(tagged(paths["natl"])[again.id].audio_to_caller(), "callee") is Sound.WHOLE


def dialled_by_tones(samples: heard.Samples) -> str:
    """The digits in the audio: 120 ms and more of nothing but the two tones of one."""
    blocks = [samples[at : at + STEP] for at in range(0, len(samples) - STEP, STEP)]
    runs = ((digit, len(list(same))) for digit, same in itertools.groupby(map(digit_in, blocks)))
    return "".join(digit for digit, length in runs if length >= 3)


def digit_in(block: heard.Samples) -> str:
    """The digit whose two tones are all that is in 40 ms, or ""."""
    if np.sqrt(np.mean(block.astype(np.float64) ** 2)) < 500:
        return ""
    power = np.abs(np.fft.rfft(block * np.hanning(STEP), heard.RATE)) ** 2

    def loudest(tones: tuple[int, ...]) -> int:
        return max(range(4), key=lambda n: power[tones[n] - 20 : tones[n] + 21].max())

    row, column = loudest(ROWS), loudest(COLUMNS)
    both = sum(power[tone - 40 : tone + 41].sum() for tone in (ROWS[row], COLUMNS[column]))
    return KEYS[row][column] if both > 0.85 * power.sum() else ""


@pytest.mark.parametrize("way", list(Dtmf))
async def test_digits_reach_the_pbx_in_the_way_that_is_set(world: World, way: Dtmf) -> None:
    """Digits of a GSM caller come as tones in the audio, as telephone-events (RFC 4733) or as INFO, and only so."""
    world.gateway("goip1", GatewayPlan(caller_id=CallerId.FROM, dtmf=way))
    call = Placing(os.urandom(8).hex(), "goip1", "13012345678", ANSWERING, dtmf="159#")
    async with callers(world) as placing, watched(world, "natl", "pbx") as paths:
        await placing.place(call, limit=30)

    capture = Capture.load(paths["pbx"])
    legs = legs_of(capture, call.id)
    assert legs is not None
    info = [m for m in legs.caller.messages if m.method == "INFO" and m.status is None]
    signals = [line.partition(b"=")[2] for m in info for line in m.body.splitlines() if line.startswith(b"Signal")]
    events = {
        (packet.timestamp, packet.payload[0])
        for stream in legs.caller.streams_to_callee
        for packet in stream.packets
        if stream.payload_type != packet.payload_type and len(packet.payload) == 4
    }
    assert {
        "inband": dialled_by_tones(legs.caller.audio_to_callee()),
        "rfc4733": "".join("0123456789*#ABCD"[event] for _, event in sorted(events)),
        "info": b"".join(signals).decode(),
    } == {each.value: "159#" if each is way else "" for each in Dtmf}


async def test_a_busy_account_is_refused_while_its_line_is_in_a_call(world: World) -> None:
    """By line, the account of the only line whose prefix matches: 503 while that line talks, others being idle."""
    world.gateway("goip2", GatewayPlan(mode="line", prefixes=[["1"], ["2"]]))
    first = Placing(os.urandom(8).hex(), "goip2", "+85261234567", ANSWERING, line=1, listen=20)
    second = replace(first, id=os.urandom(8).hex())
    async with callers(world) as placing, watched(world, "overseas", "natl") as paths:
        gateway = await placing.gateway("goip2")
        async with asyncio.TaskGroup() as group:
            talking = group.create_task(placing.place(first, limit=60))
            await wait_for(lambda: gateway.box.line(1).state is State.CONNECTED, 20, "the first call")
            await placing.place(second, limit=30)
            assert not talking.done()
            gateway.box.drop(1, "the test is over")
    statuses = {tag: leg.final_status for tag, leg in tagged(paths["overseas"]).items()}
    assert (statuses[first.id], statuses[second.id]) == (200, 503)


def test_the_wire_image_is_the_profile(world: World) -> None:
    """User-Agent, SDP session and owner, and the order of codecs are those of the profile, on the wire."""
    world.gateway("goip1", GatewayPlan(caller_id=CallerId.FROM))

    async def call() -> Leg:
        placed = Placing(os.urandom(8).hex(), "goip1", "13012345678", ANSWERING, talk=False)
        async with callers(world) as placing, watched(world, "natl", "pbx") as paths:
            await placing.place(placed, limit=30)
        return tagged(paths["pbx"])[placed.id]

    invite = asyncio.run(call()).invite
    image = GatewayPlan().image
    lines = invite.body.decode().splitlines()
    assert invite.header("user-agent") == image.user_agent.value
    assert f"s={image.sdp_session.value}" in lines
    assert next(line for line in lines if line.startswith("o=")).startswith(f"o={image.sdp_origin_user.value} ")
    offered = next(line for line in lines if line.startswith("m=audio")).split()[3:]
    assert offered[:2] == ["8", "0"]
    wait_until(lambda: " Avail " in contact_of_pbx(world), 40, "the PBX to answer OPTIONS")


def contact_of_pbx(world: World) -> str:
    """How the gateway sees its registrar."""
    code, said = world.engine.run(world.container("goip1"), "asterisk", "-rx", "pjsip show contacts")
    assert code == 0
    return next((line for line in said.splitlines() if "registrar/" in line), "")


async def test_an_invite_is_answered_with_180_then_183(world: World) -> None:
    """The switch abroad gets ringing, then early media with SDP, before the mobile network says anything."""
    world.gateway("goip2")
    call = Placing(os.urandom(8).hex(), "goip2", "+85261234567", "19900000201", hang_up_after=2)
    async with callers(world) as placing, watched(world, "overseas", "natl") as paths:
        await placing.place(call, limit=30)
    leg = tagged(paths["overseas"])[call.id]
    assert [(p.status, p.has_sdp) for p in leg.provisionals if p.status != 100] == [(180, False), (183, True)]
    assert leg.final_status == 487


def test_without_its_box_a_gateway_refuses(world: World) -> None:
    """Nobody drives the gateway: an INVITE gets 503, and no channel is left waiting."""
    world.gateway("goip2")
    dial = f"channel originate PJSIP/{ANSWERING}@goip2 application Wait 1"
    code, _ = world.engine.run(world.container("overseas"), "asterisk", "-rx", dial)
    assert code == 0

    def idle() -> bool:
        code, text = world.engine.run(world.container("goip2"), "asterisk", "-rx", "core show channels count")
        return code == 0 and "0 active channels" in text

    wait_until(idle, 30, "the gateway to have no channel")


#: What a caller may write to reach the box's connection to its Asterisk: line ends that forge headers and whole
#: events there, in the number, the name, the extension and Diversion.
ATTACKS = {
    "an event in From": {"cli": "1%0d%0a%0d%0aEvent%3a%20Shutdown%0d%0aX%3a%201"},
    "a header in From": {"cli": "1%0d%0aUniqueid%3a%20forged%0d%0aX%3a%201"},
    "an event in the name": {"display_name": "x%0d%0a%0d%0aEvent%3a%20DialEnd%0d%0aDialStatus%3a%20ANSWER"},
    "arguments in Diversion": {
        "headers": {
            "Diversion": f"<sip:1%0aagi_arg_1%3a%20incoming%0aagi_extension%3a%2013957103001%0aagi_arg_2%3a%201%0dX"
            f"%0a{'A' * 900}@x>"
        }
    },
    "an event in the extension": {"callee": "1%0d%0a%0d%0aEvent%3a%20Shutdown%0d%0aX%3a%201"},
    "a device in the extension": {"callee": "1&Local%2fcall%40caller%2c60%2cU(x)"},
}


@pytest.mark.parametrize("attack", list(ATTACKS))
async def test_what_a_caller_writes_does_not_reach_the_box(world: World, attack: str) -> None:
    """An INVITE full of line ends is refused or carried, and the next call goes through the same gateway."""
    world.gateway("goip2", GatewayPlan(lines=1, mode="trunk", registers=False))
    plain: dict[str, Any] = {"cli": "+85261234567", "callee": ANSWERING, "raw": True}
    hostile = Placing(os.urandom(8).hex(), "goip2", **(plain | ATTACKS[attack]))
    scenario = sipp_scenario(hostile).encode()
    async with callers(world) as placing:
        gateway = await placing.gateway("goip2")
        container = world.container("overseas")
        await asyncio.to_thread(world.engine.put, container, "/tmp", {"attack.xml": scenario})
        command = (
            "sipp", "-sf", "/tmp/attack.xml", "-m", "1", "-p", "20100", "-nostdin", "-timeout", "20s",
            "-timeout_error", "-s", hostile.callee, *sipp_keys(hostile), f"{world.net.caller('goip2').address}:5060",
        )  # fmt: skip
        code, said = await asyncio.to_thread(world.engine.run, container, *command, timeout=30)
        assert code in (0, 1), said
        await wait_for(lambda: gateway.box.line(1).state is State.IDLE, 20, "the line to be idle")
        assert gateway.broken == ""
        async with watched(world, "overseas", "pbx") as paths:
            call = Placing(os.urandom(8).hex(), "goip2", "+85261234567", ANSWERING)
            await placing.place(call, limit=30)
        assert gateway.broken == ""
    assert sounds(tagged(paths["overseas"])[call.id].audio_to_caller(), "callee") is Sound.WHOLE
