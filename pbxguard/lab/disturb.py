"""What goes wrong while a call is under way: faults of links, a handler that dies, a PBX that restarts.

Begins each thing at its moment of the call, puts everything back, waits until the world is as before, and says what
was. Does not place the call, nor judge it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

from pbxguard.lab import evidence, expectations
from pbxguard.lab.links import Line, LinkFault, Moment, applied, pids_of
from pbxguard.lab.scenario import Disturb
from pbxguard.lab.waiting import wait_for
from pbxguard.lab.wire import Capture
from pbxguard.lab.world import World

__all__ = ["Moments", "Told", "disturbed"]

#: Seconds in which a PBX ends the calls of somebody who has gone: RFC 3261 section 17.1.2.2, timer F is 32 s.
CALLS_END = 60


class Moments:
    """How far a call is, as the wire at the PBX shows it."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()
        self._path = Path()
        self._tag = ""

    def begin(self, path: Path, tag: str) -> None:
        """The call with that tag is about to be placed, and *path* is its capture, which grows."""
        self._path, self._tag = path, tag
        self._begun.set()

    async def reached(self, moment: Moment) -> None:
        """Return when the call is that far; never, when it does not come to it."""
        await self._begun.wait()
        while not await asyncio.to_thread(self._is, moment):  # noqa: ASYNC110 (a file has no event)
            await asyncio.sleep(0.1)

    def _is(self, moment: Moment) -> bool:
        legs = evidence.legs_of(Capture.load(self._path), self._tag)
        if legs is None:
            return False
        seen = expectations.times(legs.caller)
        return moment == "invite" or {"ringing": "ringing", "answered": "answer"}.get(moment) in seen


@dataclass(slots=True)
class Happening:
    """One disturbance that came about, from when (epoch) until when, or None while it lasts."""

    disturb: Disturb
    since: float
    until: float | None = None


@dataclass(slots=True)
class Told:
    """What went wrong with the links and the programs, for the evidence of the calls."""

    links: Sequence[LinkFault] = ()
    disturb: Sequence[Disturb] = ()
    lines: list[Line] = field(default_factory=list)
    happenings: list[Happening] = field(default_factory=list)

    def words(self, invite_at: float) -> tuple[str, ...]:
        """What was set, as it was read back, when (seconds after the INVITE), and what it did to how many frames."""
        found = []
        for line in self.lines:
            counted = "; ".join(
                f"{way} it {', '.join(f'{number} {what}' for what, number in counts.items() if number)}"
                for way, counts in line.counted.items()
                if any(counts.values())
            )
            found.append(f"{line}, {_span(line.since, line.until, invite_at)}" + (f": {counted}" if counted else ""))
        found += [f"{h.disturb.what}, {_span(h.since, h.until, invite_at)}" for h in self.happenings]
        return tuple(found)

    def missed(self) -> tuple[str, ...]:
        """What should have gone wrong, but the call did not last so long; each is a fault of the scenario."""
        set_ = [line.fault for line in self.lines]
        begun = [each.disturb for each in self.happenings]
        late = [(f"links: {fault.actor}", fault) for fault in self.links if fault not in set_]
        late += [(f"disturb: {each.what}", each) for each in self.disturb if each not in begun]  # type: ignore[misc]
        return tuple(
            f"{what}: expected {each.after:g} s after {each.when}, observed the call's end before"
            for what, each in late
        )


def _span(since: float, until: float | None, zero: float) -> str:
    end = "the end" if until is None else f"{until - zero:.1f} s"
    return f"from {since - zero:.1f} s to {end}"


@asynccontextmanager
async def disturbed(
    world: World, state: Path, moments: Moments, links: Sequence[LinkFault], disturb: Sequence[Disturb]
) -> AsyncIterator[Told]:
    """Have all that in this block; after it the world is as before, or it is an error.

    Args:
        world: It is nobody else's meanwhile.
        state: State folder of the handler that is running.
        moments: Of the call that is placed in the block.
        links: What befalls lines; with nothing in it and *disturb* this does nothing at all.
        disturb: What befalls programs.

    Raises:
        LinkUnsupported: This machine cannot do that to a link.
        LabUnavailable: An actor does not run, or the world does not come back.
    """
    told = Told(links, disturb)
    if not links and not disturb:
        yield told
        return
    pid_of = pids_of(world.engine)
    over = asyncio.Event()
    here = [_here(world, fault) for fault in links]
    async with applied(
        lambda actor: pid_of(world.container(actor)), here,
        address_of=partial(_address, world), reached=moments.reached,
    ) as told.lines:  # fmt: skip
        tasks = [asyncio.create_task(_befall(world, state, each, moments, over, told.happenings)) for each in disturb]
        try:
            yield told
        finally:
            over.set()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end
    for line in told.lines:
        line.fault = links[here.index(line.fault)]
    await wait_for(lambda: world.channels() == 0, CALLS_END, "the PBX to end its calls", every=0.2)
    await asyncio.to_thread(world.wait_ready)


def _here(world: World, fault: LinkFault) -> LinkFault:
    """The fault on that link of the PBX alone on which the peer is."""
    if fault.actor != "pbx" or fault.peer is None:
        return fault
    carrier = IPv4Address(_address(world, fault.peer)) in world.net.carrier
    return fault.model_copy(update={"address": world.net.pbx_carrier if carrier else world.net.pbx_access})


def _address(world: World, who: str) -> str:
    """Address of an actor, or of the guard."""
    addresses = {caller.name: caller.address for caller in world.net.callers}
    addresses |= {phone.name: phone.address for phone in world.net.phones if phone.address}
    addresses |= {"guard": world.net.guard_address, "pbx": world.net.pbx_carrier}
    return str(addresses.get(who, who))


async def _befall(
    world: World, state: Path, disturb: Disturb, moments: Moments, over: asyncio.Event, happenings: list[Happening]
) -> None:
    """The life of one disturbance."""
    if not await _before(over, moments.reached(disturb.when)) or not await _before(
        over, asyncio.sleep(disturb.after)
    ):
        return
    happening = Happening(disturb, time.time())
    happenings.append(happening)
    match disturb.what:
        case "pbx restart":
            await asyncio.to_thread(world.restart_pbx)
        case "registrar restart":
            await asyncio.to_thread(world.forget_registrations)
            await asyncio.to_thread(world.wait_ready)
        case _:
            handler = world.handler
            how = handler.killed(state) if disturb.what == "handler killed" else handler.frozen()
            await asyncio.to_thread(how.__enter__)
            try:
                lasts = over.wait() if disturb.restore_after is None else asyncio.sleep(disturb.restore_after)
                await _before(over, lasts)
            finally:
                await asyncio.to_thread(how.__exit__, None, None, None)
    happening.until = time.time()


async def _before(over: asyncio.Event, what: Awaitable[object]) -> bool:
    """Wait for *what*, but not past the end of the block; whether it came."""
    waiting, ending = asyncio.ensure_future(what), asyncio.ensure_future(over.wait())
    try:
        await asyncio.wait((waiting, ending), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            waiting.result()
        return waiting.done()
    finally:
        for task in (waiting, ending):
            task.cancel()
        await asyncio.gather(waiting, ending, return_exceptions=True)
