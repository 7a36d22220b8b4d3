"""Watch the wire at the PBX while calls go on: tcpdump inside its container, one file at a time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pbxguard.errors import LabUnavailable
from pbxguard.lab import topology
from pbxguard.lab.engine import Engine
from pbxguard.lab.waiting import wait_for

#: No capture of one call grows past this (bytes 1 to n of each packet are enough for SIP and RTP).
_SNAP_LENGTH = 4096
#: Seconds that tcpdump has to start.
START_LIMIT = 10.0


@asynccontextmanager
async def capturing(engine: Engine, container: str, folder: Path, name: str) -> AsyncIterator[Path]:
    """Capture SIP and RTP of the PBX in this block; yields the file, which is complete after the block.

    Args:
        engine: Where the PBX runs.
        container: The PBX.
        folder: The folder of the host that is ``/captures`` in the container.
        name: File name without suffix.

    Raises:
        LabUnavailable: tcpdump did not start.
    """
    path = folder / f"{name}.pcap"
    first, last = topology.RTP_PORTS
    # Immediate mode: else the last packets of a call are still in the kernel when tcpdump ends.
    command = (
        f"echo $$ > /captures/{name}.pid; exec tcpdump --immediate-mode -U -n -i any -s {_SNAP_LENGTH} "
        f"-w /captures/{name}.pcap "
        # A long text comes in fragments, and only the first has ports.
        f"'udp and (port {topology.SIP_PORT} or portrange {first}-{last} or ip[6:2] & 0x1fff != 0)' "
        f"2>/captures/{name}.log"
    )
    log, pid_file = folder / f"{name}.log", folder / f"{name}.pid"

    async def end(how: str) -> None:
        await asyncio.to_thread(engine.run, container, "sh", "-c", f"kill -{how} $(cat /captures/{name}.pid)")

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
            await end("INT")
            # tcpdump's last word is its packet count.
            await wait_for(lambda: "captured" in _said(log), 10, "tcpdump to end")
    finally:
        for leftover in (log, pid_file):
            leftover.unlink(missing_ok=True)


def _said(log: Path) -> str:
    return log.read_text(errors="replace") if log.is_file() else ""
