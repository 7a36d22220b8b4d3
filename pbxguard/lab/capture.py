"""Watch the wire while calls go on: tcpdump inside an actor's container, one file at a time; and join such files."""

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import dpkt

from pbxguard.errors import LabUnavailable
from pbxguard.lab import topology
from pbxguard.lab.engine import Engine
from pbxguard.lab.waiting import wait_for
from pbxguard.lab.wire import frames, ip_of

#: No capture of one call grows past this (bytes 1 to n of each packet are enough for SIP and RTP).
_SNAP_LENGTH = 4096
#: Seconds that tcpdump has to start.
START_LIMIT = 10.0


@asynccontextmanager
async def capturing(engine: Engine, container: str, folder: Path, name: str) -> AsyncIterator[Path]:
    """Capture SIP and RTP of an actor in this block; yields the file, which is complete after the block.

    Where the container is restarted meanwhile, the capture ends with it.

    Args:
        engine: Where it runs.
        container: The actor.
        folder: The folder of the host that is ``/captures`` in the container.
        name: File name without suffix.

    Raises:
        LabUnavailable: tcpdump did not start.
    """
    path = folder / f"{name}.pcap"
    first, last = topology.RTP_PORTS
    sip = f"portrange {topology.SIP_PORT}-{topology.SIP_PORT + topology.SIP_PORTS - 1}"
    # Immediate mode: else the last packets of a call are still in the kernel when tcpdump ends.
    command = (
        f"echo $$ > /captures/{name}.pid; exec tcpdump --immediate-mode -U -n -i any -s {_SNAP_LENGTH} "
        f"-w /captures/{name}.pcap "
        # A long text comes in fragments, and only the first has ports.
        f"'{sip} or (udp and (portrange {first}-{last} or ip[6:2] & 0x1fff != 0))' 2>/captures/{name}.log"
    )
    log, pid_file = folder / f"{name}.log", folder / f"{name}.pid"

    # After a restart of the container another process may have its id.
    ending = f"p=$(cat /captures/{name}.pid) && grep -aqs tcpdump /proc/$p/cmdline && kill"

    async def end(how: str) -> bool:
        code, _ = await asyncio.to_thread(engine.run, container, "sh", "-c", f"{ending} -{how} $p")
        return code == 0

    try:
        try:
            await asyncio.to_thread(engine.spawn, container, "sh", "-c", command)
            await wait_for(lambda: "listening on" in _said(log), START_LIMIT, "tcpdump")
        except BaseException as error:
            await end("KILL")
            path.unlink(missing_ok=True)
            if isinstance(error, LabUnavailable):
                said = _said(log)[:200].strip() or "nothing"
                raise LabUnavailable(f"{error}; it said: {said}") from error
            raise
        try:
            yield path
        finally:
            # tcpdump's last word is its packet count.
            if await end("INT"):
                await wait_for(lambda: "captured" in _said(log), 10, "tcpdump to end")
    finally:
        for leftover in (log, pid_file):
            leftover.unlink(missing_ok=True)


def join(paths: Sequence[Path], target: Path) -> None:
    """Write captures of several actors as one, in order of time. What was seen in two places is there twice.

    Raises:
        BadInput: One of them is no pcap.
        LabUnavailable: They have different link types.
    """
    read = [frames(path) for path in paths]
    links = {link for link, found in read if found}
    if len(links) > 1:
        raise LabUnavailable(f"captures of different link types cannot be joined: {sorted(links)}")
    _write(target, links.pop() if links else dpkt.pcap.DLT_EN10MB, [each for _, found in read for each in found])


def _write(target: Path, link: int, found: Sequence[tuple[float, bytes]]) -> None:
    with target.open("wb") as file:
        writer = dpkt.pcap.Writer(file, snaplen=_SNAP_LENGTH, linktype=link)
        for at, frame in sorted(found, key=lambda each: each[0]):
            writer.writepkt(frame, at)


def _said(log: Path) -> str:
    return log.read_text(errors="replace") if log.is_file() else ""


def merge(at_pbx: Path, at_caller: Path, caller: IPv4Address) -> None:
    """Have the packets of the caller in *at_pbx* as they were at the caller's end, for a link that is not perfect.

    What got lost on the way to the caller was not heard, and is left out; so is what its kernel throws away.

    Raises:
        BadInput: One of the files is no pcap.
    """
    link, others = frames(at_pbx)
    caller_link, own = frames(at_caller)
    if not others and not own:
        return
    kept = [(at, frame) for at, frame in others if caller.packed not in _ends(link, frame)]
    kept += [
        (at, frame)
        for at, frame in own
        if caller.packed in _ends(caller_link, frame) and _is_taken(caller_link, frame, caller.packed)
    ]
    new = at_pbx.with_suffix(".new")
    _write(new, link or caller_link, kept)
    new.replace(at_pbx)
    at_caller.unlink()


def _ends(link: int, frame: bytes) -> tuple[bytes, ...]:
    ip = ip_of(link, frame)
    return () if ip is None else (ip.src, ip.dst)


def _is_taken(link: int, frame: bytes, receiver: bytes) -> bool:
    """Whether the receiver's kernel takes it: RFC 1071; a sum left to the card is the pseudo header's own."""
    ip: Any = ip_of(link, frame)
    if ip is None or ip.dst != receiver or ip.p != dpkt.ip.IP_PROTO_UDP:
        return True
    if dpkt.in_cksum(ip.pack_hdr() + bytes(ip.opts)):
        return False
    raw = bytes(ip.data)
    if ip.mf or ip.offset or len(raw) < 8:
        return True
    pseudo = ip.src + ip.dst + struct.pack("!BBH", 0, ip.p, len(raw))
    (claimed,) = struct.unpack_from("!H", raw, 6)
    return claimed in (0, 0xFFFF ^ dpkt.in_cksum(pseudo)) or dpkt.in_cksum(pseudo + raw) == 0
