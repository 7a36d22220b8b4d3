"""A line in user space: takes the frames of one veth off its bridge and hands them on late, damaged or not at all.

For kernels without ``sch_netem``. Knows Ethernet frames and time; does not know which container the veth belongs
to, nor how it is put back (``keeper``).
"""

import fcntl
import heapq
import os
import random
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address

# linux/if_tun.h, linux/if_packet.h, linux/virtio_net.h
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_TAP, _NO_PI, _VNET_HDR = 0x0002, 0x1000, 0x4000
_TUN_F_CSUM = 0x01
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23
_ETH_P_ALL, _ETH_P_IP = 0x0003, 0x0800
_NEEDS_CSUM = 1

#: struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
_HEADER = struct.Struct("<BBHHHH")
_ETHERNET = 14
_LONGEST = 65536 + _ETHERNET + _HEADER.size

#: Frames that wait at most, as netem has it; and seconds of a narrow line's buffer.
LIMIT, BUFFER_S = 1000, 0.5
#: Frames that are read in one go, so that one side cannot keep the other waiting.
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Shape:
    """What a line does to frames, each way on its own; 0 is nothing.

    Attributes:
        rate_kbit: kbit/s of whole frames.
        loss: Percent of frames that vanish.
        corrupt: Percent of frames with one bit flipped behind the Ethernet header.
        jitter_ms: Each frame is late by ``delay_ms`` plus or minus this, evenly; so frames may overtake.
    """

    rate_kbit: float = 0.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    corrupt: float = 0.0

    def values(self) -> dict[str, float]:
        """What it does, without what it does not."""
        return {name: value for name, value in asdict(self).items() if value}


@dataclass(slots=True)
class Lane:
    """One direction of a line: frames go in with the time, and come out when they are due.

    Args:
        only: Address whose traffic alone is touched; the rest passes at once.
    """

    shape: Shape
    only: IPv4Address | None
    dice: random.Random
    counted: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("frames", "lost", "full", "corrupted"), 0))
    _waiting: list[tuple[float, int, bytes]] = field(default_factory=list)
    _free_at: float = 0.0
    _number: int = 0

    def put(self, frame: bytes, now: float) -> None:
        """Take a frame (virtio_net_hdr and Ethernet) at *now*, seconds."""
        if len(frame) < _HEADER.size + _ETHERNET:
            return
        self._number += 1
        if self.only is not None and not _concerns(frame, self.only.packed):
            heapq.heappush(self._waiting, (now, self._number, frame))
            return
        shape = self.shape
        self.counted["frames"] += 1
        if self.dice.random() * 100 < shape.loss:
            self.counted["lost"] += 1
            return
        if len(self._waiting) >= LIMIT or (shape.rate_kbit and self._free_at - now > BUFFER_S):
            self.counted["full"] += 1
            return
        if self.dice.random() * 100 < shape.corrupt:
            self.counted["corrupted"] += 1
            frame = _damaged(frame, self.dice)
        due = now
        if shape.rate_kbit:
            due = self._free_at = max(now, self._free_at) + (len(frame) - _HEADER.size) / (shape.rate_kbit * 125)
        late = shape.delay_ms + self.dice.uniform(-shape.jitter_ms, shape.jitter_ms)
        heapq.heappush(self._waiting, (due + max(late, 0.0) / 1000, self._number, frame))

    def due(self, now: float) -> list[bytes]:
        """The frames whose time has come, in order."""
        found = []
        while self._waiting and self._waiting[0][0] <= now:
            found.append(heapq.heappop(self._waiting)[2])
        return found

    @property
    def next(self) -> float | None:
        """When the next frame is due, or None."""
        return self._waiting[0][0] if self._waiting else None


class Relay:
    """The frames between a veth and a TAP interface that stands for it in the bridge. Close it.

    Args:
        tap: Name for the TAP interface, at most 15 characters.
        interface: The host's end of the veth.
        to: What befalls frames that go to the container; ``origin`` those that come from it.

    Raises:
        OSError: There is no /dev/net/tun, or no right to use it.
    """

    def __init__(self, tap: str, interface: str, to: Shape, origin: Shape, only: IPv4Address | None) -> None:
        self._interface = interface
        dice = random.Random()  # noqa: S311 (a line's mishaps are no secret)
        self._lanes = {"to": Lane(to, only, dice), "from": Lane(origin, only, dice)}
        self._packet: socket.socket | None = None
        self._tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(self._tap, _TUNSETIFF, struct.pack("16sH22x", tap.encode(), _TAP | _NO_PI | _VNET_HDR))
            # Checksums that the sender left to its card stay open and go along; long segments do not.
            fcntl.ioctl(self._tap, _TUNSETOFFLOAD, _TUN_F_CSUM)
        except BaseException:
            os.close(self._tap)
            raise

    def begin(self) -> None:
        """Begin to hand on; what came before is forgotten."""
        packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        self._packet = packet
        packet.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        packet.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        with suppress(BlockingIOError):
            while os.read(self._tap, _LONGEST):
                pass
        packet.bind((self._interface, _ETH_P_ALL))

    def close(self) -> None:
        """Stop; the TAP interface goes with it."""
        os.close(self._tap)
        if self._packet is not None:
            self._packet.close()

    @property
    def files(self) -> tuple[int, ...]:
        """What to wait for: when one can be read, call ``turn``."""
        return (self._tap, self._packet.fileno()) if self._packet is not None else ()

    @property
    def next(self) -> float | None:
        """The next moment (``time.monotonic``) at which ``turn`` has something to do."""
        return min((at for lane in self._lanes.values() if (at := lane.next) is not None), default=None)

    def counted(self) -> dict[str, Mapping[str, int]]:
        """Per direction: frames that the fault concerned, and how many it lost, could not hold, and corrupted."""
        return {way: lane.counted for way, lane in self._lanes.items()}

    def turn(self) -> None:
        """Take what has come, hand on what is due."""
        packet = self._packet
        if packet is None:
            return
        for lane, file in ((self._lanes["to"], self._tap), (self._lanes["from"], packet.fileno())):
            # ENETDOWN, ENXIO: the link is cut or has gone with its container; then there is nothing to hand on.
            with suppress(OSError):
                for _ in range(_AT_ONCE):
                    lane.put(os.read(file, _LONGEST), time.monotonic())
        now = time.monotonic()
        for lane, file in ((self._lanes["to"], packet.fileno()), (self._lanes["from"], self._tap)):
            for frame in lane.due(now):
                with suppress(OSError):
                    os.write(file, frame)


def _concerns(frame: bytes, address: bytes) -> bool:
    """Whether an IPv4 frame comes from this address or goes to it."""
    at = _HEADER.size
    if frame[at + 12 : at + 14] != _ETH_P_IP.to_bytes(2):
        return False
    return address in (frame[at + 26 : at + 30], frame[at + 30 : at + 34])


def _damaged(frame: bytes, dice: random.Random) -> bytes:
    """The frame with one bit flipped; its checksum is that of before, so a receiver can know."""
    whole = bytearray(frame)
    flags, gso, _, _, start, offset = _HEADER.unpack_from(whole)
    data = memoryview(whole)[_HEADER.size :]
    if flags & _NEEDS_CSUM and not gso and start + offset + 2 <= len(data):
        total = sum(int.from_bytes(data[at : at + 2].tobytes().ljust(2, b"\0")) for at in range(start, len(data), 2))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        data[start + offset : start + offset + 2] = ((~total & 0xFFFF) or 0xFFFF).to_bytes(2)
        _HEADER.pack_into(whole, 0, 0, 0, 0, 0, 0, 0)
    if len(data) > _ETHERNET:
        bit = dice.randrange(8 * _ETHERNET, 8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
    return bytes(whole)
