"""Links that fail on demand: cut, narrow, lossy, late; the guard or the name server out of reach.

Knows actors by name, and asks its caller for their process ids and addresses; the work is done by a process of root's
(``keeper``), which puts everything back however this one ends. Does not know the lab's topology.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pbxguard.errors import LabUnavailable
from pbxguard.lab.engine import Engine

__all__ = ["METHODS", "Line", "LinkFault", "LinkUnsupported", "Moment", "applied", "pids_of"]

#: How a link is shaped, the first that goes: tbf for a rate alone, netem, and a relay in user space.
METHODS = ("tbf", "netem", "relay")

#: Seconds for one order; entering a namespace and a few netlink requests take some 50 ms.
_PATIENCE = 20.0

Percent = Annotated[float, Field(ge=0, le=100)]
Milliseconds = Annotated[float, Field(ge=0, le=10_000)]
#: Of a call: it is about to be placed; its INVITE is at the PBX; the caller was told 180; it was answered.
Moment = Literal["placed", "invite", "ringing", "answered"]


class LinkUnsupported(LabUnavailable):
    """This machine cannot do that to a link: skip what needs it, by name, with this reason."""


class LinkFault(BaseModel):
    """One thing that befalls the link of an actor.

    ``{actor = "intl", loss = 5.0}``, ``{actor = "goip1", cut = true, after = 1.0, restore_after = 2.0}``,
    ``{actor = "pbx", peer = "guard", cut = true}`` (guard unreachable), ``{actor = "pbx", peer = "guard",
    delay_ms = 800}`` (guard slow), ``{actor = "pbx", dns_gone = true}``.

    Attributes:
        actor: Whose link.
        address: Which of its links, by its own address there; left out, all of them.
        peer: Only traffic with this actor or address; a cut is then silent, as of a line or a firewall that swallows.
        cut: The link is down. The actor's interface loses its carrier.
        rate_kbit: kbit/s of whole frames each way; RTP in G.711 needs 85.6.
        delay_ms: Each way, so a round trip has it twice.
        jitter_ms: Each frame is late by ``delay_ms`` plus or minus this; frames may overtake one another.
        loss: Percent of the frames each way.
        corrupt: Percent of the frames each way with one bit wrong; checksums mostly turn that into a loss.
        dns_gone: Its name servers (of its /etc/resolv.conf) do not answer any more.
        direction: ``to`` the actor, ``from`` it, or both.
        when: The moment of the call that ``after`` counts from: ``placed`` is before its INVITE.
        after: Seconds from that moment.
        restore_after: Seconds until it is put right again; left out, at the end of the call.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    actor: Annotated[str, Field(min_length=1, max_length=64)]
    address: IPv4Address | None = None
    peer: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    cut: bool = False
    rate_kbit: Annotated[float, Field(ge=8, le=10_000_000)] | None = None
    delay_ms: Milliseconds = 0.0
    jitter_ms: Milliseconds = 0.0
    loss: Percent = 0.0
    corrupt: Percent = 0.0
    dns_gone: bool = False
    direction: Literal["both", "to", "from"] = "both"
    when: Moment = "placed"
    after: Annotated[float, Field(ge=0, le=3600)] = 0.0
    restore_after: Annotated[float, Field(gt=0, le=3600)] | None = None

    @property
    def at_once(self) -> bool:
        """It is there before the call."""
        return self.when == "placed" and not self.after

    @model_validator(mode="after")
    def _one_sort(self) -> Self:
        sorts = [self.cut, self.dns_gone, bool(self.shape())]
        if sum(sorts) != 1:
            raise ValueError("say one of: cut, dns_gone, or some of rate_kbit, delay_ms, jitter_ms, loss, corrupt")
        if self.jitter_ms > self.delay_ms:
            raise ValueError("jitter_ms is more than delay_ms, and nothing arrives before it was sent")
        if self.cut and self.peer is None and self.direction != "both":
            raise ValueError("a link is cut both ways; direction goes with peer, or with loss = 100")
        if self.dns_gone and (self.peer or self.address or self.direction != "both"):
            raise ValueError("dns_gone goes without peer, address and direction")
        return self

    def shape(self) -> dict[str, float]:
        """What it does to frames, without what it does not."""
        names = ("rate_kbit", "delay_ms", "jitter_ms", "loss", "corrupt")
        return {name: value for name in names if (value := getattr(self, name))}


@dataclass(slots=True)
class Line:
    """A fault that was set, with what the kernel (or the relay) has, read back.

    Attributes:
        interface: The actor's; "" for a rule of its packet filter.
        by: ``link down``, ``tbf``, ``netem``, ``relay`` or ``nftables``.
        has: Direction (``to`` and ``from`` the actor) -> values, in the units of ``LinkFault``.
        since: When it was in force, epoch; ``until`` when it was put right, or None.
        counted: Direction -> frames that the fault concerned, and how many were lost; known when it was put right.
    """

    fault: LinkFault
    interface: str
    by: str
    has: dict[str, dict[str, Any]]
    since: float
    until: float | None = None
    counted: dict[str, dict[str, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        """As one line for a report: ``intl eth0: loss 5 both ways (netem)``."""
        to, origin = self.has.get("to", {}), self.has.get("from", {})
        if to == origin:
            what = f"{_words(to)} both ways"
        else:
            what = ", ".join(f"{_words(has)} {way} it" for way, has in (("to", to), ("from", origin)) if has)
        peer = f" with {self.fault.peer}" if self.fault.peer else ""
        return f"{self.fault.actor} {self.interface}".strip() + f": {what}{peer} ({self.by})"


def _words(has: dict[str, Any]) -> str:
    if has == {"carrier": 0}:
        return "cut"
    return ", ".join(f"{k} {' '.join(v) if isinstance(v, list) else format(v, 'g')}" for k, v in has.items())


def pids_of(engine: Engine) -> Callable[[str], int]:
    """Lookup of a container's process by name, for ``applied``; refuses what is not a running one of this lab."""

    def pid_of(container: str) -> int:
        if container not in engine.running():
            raise LabUnavailable(f"{container} does not run in this lab; `pbxguard lab status` shows what does")
        return engine.pid(container)

    return pid_of


@asynccontextmanager
async def applied(
    pid_of: Callable[[str], int],
    faults: Sequence[LinkFault],
    *,
    address_of: Callable[[str], str | IPv4Address] = str,
    reached: Callable[[Moment], Awaitable[object]] | None = None,
    by: Sequence[str] = METHODS,
) -> AsyncIterator[list[Line]]:
    """Have *faults* in this block; yields what is set, a list that grows with those that begin later.

    Faults that are there at once are in force when the block begins. Everything is put right at its end, and also
    when this process is killed or a container has gone meanwhile. A fault that cannot be set later on is raised
    after the block.

    Args:
        pid_of: Actor -> process id on this host of one in its network namespace; it vouches that the actor is one
            of the lab's (``pids_of``). Called in a thread.
        faults: None is no work at all.
        address_of: A fault's ``peer`` -> IPv4 address.
        reached: Waits for a moment of the call; without it the block's beginning is every moment.
        by: Which of ``METHODS`` may be used.

    Raises:
        LinkUnsupported: No root, or this kernel cannot do it: what needs it is to be skipped with this reason.
        LabUnavailable: The actor does not run, or its link is in use.
    """
    if not faults:
        yield []
        return
    if os.geteuid() != 0:
        raise LinkUnsupported("links are changed by root only; run it as root (sudo), or leave out the links")
    keeper = await _Keeper.start()
    timeline: list[asyncio.Task[None]] = []
    lines: list[Line] = []
    try:
        orders = [
            (fault, await asyncio.to_thread(_order, number, fault, pid_of, address_of, tuple(by)))
            for number, fault in enumerate(faults)
        ]
        for fault, order in orders:
            if fault.at_once:
                await keeper.set(fault, order, lines)
        timeline = [asyncio.create_task(_run(keeper, fault, order, lines, reached)) for fault, order in orders]
        try:
            yield lines
        finally:
            for task in timeline:
                task.cancel()
            ends = list(await asyncio.gather(*timeline, return_exceptions=True))
            for fault, order in reversed(orders):
                try:
                    await keeper.restore(order["id"])
                except LabUnavailable as error:
                    ends.append(LabUnavailable(f"link of {fault.actor} is not as before: {error}"))
        for end in ends:
            if isinstance(end, Exception):
                raise end
    finally:
        await keeper.close()


async def _run(
    keeper: "_Keeper", fault: LinkFault, order: dict[str, Any], lines: list[Line],
    reached: Callable[[Moment], Awaitable[object]] | None,
) -> None:  # fmt: skip
    """The life of one fault from the beginning of the block."""
    if not fault.at_once:
        if reached is not None and fault.when != "placed":
            await reached(fault.when)
        await asyncio.sleep(fault.after)
        await keeper.set(fault, order, lines)
    if fault.restore_after is not None:
        await asyncio.sleep(fault.restore_after)
        await keeper.restore(order["id"])


def _order(
    number: int, fault: LinkFault, pid_of: Callable[[str], int], address_of: Callable[[str], str | IPv4Address],
    by: tuple[str, ...],
) -> dict[str, Any]:  # fmt: skip
    """The fault in the keeper's words."""
    pid = pid_of(fault.actor)
    namespace = f"/proc/{pid}/ns/net"
    if not Path(namespace).exists():
        raise LinkUnsupported(
            f"link of {fault.actor}: its process {pid} is not on this host; the lab's engine has to be a local one"
        )
    order: dict[str, Any] = {"id": number, "namespace": namespace, "direction": fault.direction, "by": by}
    if fault.address:
        order["address"] = str(fault.address)
    peer = _address(fault.peer, address_of) if fault.peer else ""
    if fault.dns_gone:
        return order | {"servers": _name_servers(Path(f"/proc/{pid}", "root/etc/resolv.conf"), fault.actor)}
    if fault.cut and peer:
        return order | {"shape": {"loss": 100.0}, "only": peer}
    if fault.cut:
        return order | {"cut": True}
    return order | {"shape": fault.shape(), "only": peer}


def _address(peer: str, address_of: Callable[[str], str | IPv4Address]) -> str:
    try:
        return str(IPv4Address(str(address_of(peer))))
    except ValueError as error:
        raise LabUnavailable(f"peer {peer!r} is neither an actor of the lab nor an IPv4 address") from error


def _name_servers(file: Path, actor: str) -> list[str]:
    """IPv4 addresses of resolv.conf; resolv.conf(5): at most three count."""
    found: list[str] = []
    with suppress(OSError):
        for line in file.read_text(errors="replace")[:10_000].splitlines():
            words = line.split()
            if len(words) >= 2 and words[0] == "nameserver":
                with suppress(ValueError):
                    found.append(str(IPv4Address(words[1])))
    if not found:
        raise LabUnavailable(f"{actor} has no IPv4 name server that could be gone (its /etc/resolv.conf)")
    return found[:3]


class _Keeper:
    """The keeper's process, and talk with it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        # PIPE was asked for, so there are streams.
        self._orders: asyncio.StreamWriter = process.stdin  # type: ignore[assignment]
        self._answers: asyncio.StreamReader = process.stdout  # type: ignore[assignment]
        self._complaints: asyncio.StreamReader = process.stderr  # type: ignore[assignment]
        self._talking = asyncio.Lock()
        self._asked = 0
        self._set: dict[int, list[Line]] = {}

    @classmethod
    async def start(cls) -> "_Keeper":
        # A session of its own: Ctrl-C is for this process, and the end of stdin for that one.
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pbxguard.lab.keeper", start_new_session=True,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        return cls(process)

    async def set(self, fault: LinkFault, order: dict[str, Any], lines: list[Line]) -> None:
        try:
            has = await self._ask({"do": "set"} | order)
        except LabUnavailable as error:
            raise type(error)(f"link of {fault.actor}: {error}") from error
        now = time.time()
        mine = []
        for each in has:
            ways = {way: each[way] for way in ("to", "from") if each.get(way)}
            mine.append(Line(fault, each["interface"], each["by"], ways, now))
        self._set[order["id"]] = mine
        lines.extend(mine)

    async def restore(self, number: int) -> None:
        mine = self._set.pop(number, [])
        if mine:
            had = await self._ask({"do": "restore", "id": number})
            for line, each in zip(mine, had, strict=True):
                line.until, line.counted = time.time(), each.get("counted", {})

    async def close(self) -> None:
        """End it, which puts everything right; not to be cut short."""
        self._orders.close()
        ending = asyncio.ensure_future(self._ended())
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await ending
            raise

    async def _ended(self) -> None:
        try:
            await asyncio.wait_for(self._process.communicate(), _PATIENCE)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _ask(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        async with self._talking:
            self._asked += 1
            number = self._asked
            try:
                self._orders.write(json.dumps(order | {"number": number}).encode() + b"\n")
                async with asyncio.timeout(_PATIENCE):
                    await self._orders.drain()
                    # An order that was cancelled has left its answer behind.
                    while line := await self._answers.readline():
                        answer = json.loads(line)
                        if answer["number"] == number:
                            break
                    else:
                        raise LabUnavailable(f"the process that holds the links ended; it said: {await self._last()}")
            except (TimeoutError, ConnectionError) as error:
                raise LabUnavailable("the process that holds the links does not answer") from error
        if "error" in answer:
            raise (LinkUnsupported if answer.get("unsupported") else LabUnavailable)(answer["error"])
        found: list[dict[str, Any]] = answer["lines"]
        return found

    async def _last(self) -> str:
        said = (await self._complaints.read(65536)).decode(errors="replace").strip().splitlines()
        return said[-1][:300] if said else "nothing"
