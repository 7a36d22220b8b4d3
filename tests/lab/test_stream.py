"""Tests of pbxguard.lab.stream: SIP over TCP as it is captured, however it is cut, doubled, disordered or lacking."""

import random
import socket
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_wire import CALLER, CALLER_RTP, PBX, PBX_RTP, capture, pcap, rtp, sdp, sip

from pbxguard.lab import stream
from pbxguard.lab.stream import Direction, Framer
from pbxguard.lab.wire import Capture

INVITE = sip("INVITE sip:1@x SIP/2.0", body=sdp(CALLER_RTP))
TRYING = sip("SIP/2.0 100 Trying")
OK = sip("SIP/2.0 200 OK", to="<sip:1@y>;tag=to1", body=sdp(PBX_RTP))
COMPACT = b"BYE sip:1@x SIP/2.0\r\nl: 3\r\ni: c1\r\nCSeq: 2 BYE\r\n\r\nend"
WHOLE = [INVITE, TRYING, OK, COMPACT]
# Between messages a peer may send line ends, to keep the connection.
BYTES = b"\r\n\r\n".join(WHOLE) + b"\r\n\r\n"


def framed(*pieces):
    framer = Framer()
    return [message for piece in pieces for message in framer.feed(piece)]


def test_whole_byte_by_byte_and_cut_at_every_offset():
    """The messages of a stream are the same however it is cut."""
    assert framed(BYTES) == WHOLE
    assert framed(*(BYTES[i : i + 1] for i in range(len(BYTES)))) == WHOLE
    for cut in range(len(BYTES)):
        assert framed(BYTES[:cut], BYTES[cut:]) == WHOLE


def test_a_stream_that_ends_in_the_middle():
    """What is not complete is no message, wherever it ends."""
    for end in range(len(BYTES)):
        found = framed(BYTES[:end])
        assert found == WHOLE[: len(found)]


def test_a_stream_that_begins_in_the_middle():
    """Whatever part of a message stands at the beginning, the messages behind it are read."""
    for begin in range(1, len(INVITE)):
        assert framed(BYTES[begin:])[-3:] == WHOLE[1:]


@pytest.mark.parametrize("length", ["65537", "999999999", "0" * 40 + "9", "-5", "1e3", "9" * 5000, "", "٣"])
def test_hostile_lengths_keep_nothing_and_end_soon(length):
    """A length past the bound is skipped without being kept; one that is no number is no length."""
    head = f"INVITE sip:1@x SIP/2.0\r\nContent-Length: {length}\r\n\r\n".encode()
    framer = Framer()
    assert framer.feed(head) == [head]
    promised = int(length) if length.isascii() and length.isdigit() and len(length) < 10 else 0
    for _ in range(20):
        assert framer.feed(b"x" * 8192) == []
        assert len(framer._data) <= stream.MAX_HEAD
    if promised < 200_000:
        assert framer.feed(b"\r\n" + OK) == [OK]


@pytest.mark.parametrize(
    "flood", [b"a\n", b"\r\n", b"A" * 100, b"INVITE sip:1@x SIP/2.0\n", b"l: 65000\r\n", b"OPTIONS " * 3, b"\x00\xff"]
)
def test_floods_are_bounded(flood):
    """What never becomes a message takes bounded memory, and time that grows with its length alone."""
    framer = Framer()
    framer.feed(b"INVITE sip:1@x SIP/2.0\r\n")
    started = time.process_time()
    for _ in range(40):
        framer.feed(flood * (8000 // len(flood)))
        assert len(framer._data) <= stream.MAX_HEAD + stream.MAX_BODY
    assert time.process_time() - started < 20
    assert framer.feed(b"\n\n" + OK + b"\r\n" + OK)[-1] == OK


@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([*WHOLE, b"\r\n", b"SIP/2.0 200", b"\n\n"]))))
def test_any_bytes_in_any_pieces(pieces):
    """Any stream gives the same messages in any pieces, and each of them begins with a start line."""
    found = framed(*pieces)
    assert found == framed(b"".join(pieces))
    assert all(b"SIP/2.0" in message.partition(b"\n")[0] for message in found)


def segments(data, size, first=1000):
    return [((first + i) % 2**32, data[i : i + size]) for i in range(0, len(data), size)]


def ordered(parts, direction=None):
    direction = direction or Direction()
    found = []
    for n, (sequence, data) in enumerate(parts):
        found += direction.segment(n / 1000, sequence, data, length=len(data))
    return [*found, *direction.rest()]


@pytest.mark.parametrize("first", [0, 1000, 2**32 - 700, 2**31 - 5])
@pytest.mark.parametrize("size", [1, 7, 100, 1448])
def test_segments_doubled_and_disordered(first, size):
    """Segments that come twice, overlap or are a little out of order, also where the numbers wrap: all is read."""
    dice = random.Random(size)
    parts = segments(BYTES, size, first)
    disordered = parts[:1]
    for i in range(1, len(parts), 4):
        some = parts[i : i + 4] * 2
        dice.shuffle(some)
        disordered += some
    assert ordered(disordered) == WHOLE
    overlapping = [(sequence, BYTES[i * size : i * size + 2 * size]) for i, (sequence, _) in enumerate(parts)]
    assert ordered(overlapping) == WHOLE


def test_a_segment_that_the_capture_lacks():
    """Whichever segment is missing, no message is invented, and those that do not need it are read."""
    parts = segments(BYTES, 150)
    ends = {message: BYTES.index(message) + len(message) for message in WHOLE}
    for gone in range(1, len(parts)):
        found = ordered(parts[:gone] + parts[gone + 1 :])
        assert set(found) <= set(WHOLE)
        begin, end = gone * 150, gone * 150 + 150
        untouched = [m for m in WHOLE if ends[m] <= begin]
        assert found[: len(untouched)] == untouched
        # behind a gap reading goes on at the next start line, which may stand in the missing one
        assert [m for m in WHOLE if ends[m] - len(m) >= end] == [m for m in found if ends[m] - len(m) >= end]


def test_a_segment_that_was_captured_in_part():
    """A segment longer than the snap length costs its own message and no other."""
    direction = Direction()
    found = list(direction.segment(0, 1, INVITE[:100], length=len(INVITE)))
    found += direction.segment(0, 1 + len(INVITE), OK, length=len(OK))
    assert found == [OK]


def test_a_new_connection_from_the_same_port():
    """SYN begins anew: what was left of the connection before is forgotten."""
    direction = Direction()
    found = list(direction.segment(0, 5, INVITE[:50], length=50))
    found += direction.segment(1, 90000, b"", length=0, begins=True)
    found += direction.segment(2, 90001, OK, length=len(OK))
    assert found == [OK]


def test_waiting_segments_are_bounded():
    """Segments behind one that never comes are let through before they are many, or old."""
    direction = Direction()
    list(direction.segment(0, 0, b"\r\n", length=2))
    for i in range(2000):
        list(direction.segment(i / 1e6, 1000 + 10 * i, b"x" * 5, length=5))
        assert len(direction._waiting) <= 65
    late = Direction()
    assert list(late.segment(0, 0, INVITE[:50], length=50)) == []
    assert list(late.segment(0.1, 5000, OK, length=len(OK))) == []
    assert list(late.segment(2, 5000 + len(OK), TRYING, length=len(TRYING))) == [OK, TRYING]


def tcp_packet(source, destination, sequence, data, flags=0x18):
    tcp = struct.pack("!HHIIBBHHH", source[1], destination[1], sequence, 0, 0x50, flags, 512, 0, 0) + data
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 1, 0x4000, 64, 6, 0,
        socket.inet_aton(source[0]), socket.inet_aton(destination[0]),
    )  # fmt: skip
    return head + tcp


def call_over_tcp(size=100):
    """A call whose signalling goes over TCP, its sound over UDP as ever."""
    there, back, at = 10, 7000, 100.0
    records = []
    for message, ours in ((INVITE, True), (TRYING, False), (OK, False)):
        for begin in range(0, len(message), size):
            piece = message[begin : begin + size]
            ends = (CALLER, PBX) if ours else (PBX, CALLER)
            at += 0.01
            records.append((at, tcp_packet(*ends, there if ours else back, piece)))
            there, back = (there + len(piece), back) if ours else (there, back + len(piece))
    return records


def test_a_call_over_tcp_has_the_same_leg_as_over_udp():
    """The leg of a capture over TCP is that of the same messages over UDP."""
    over_udp = capture([(100, CALLER, PBX, INVITE), (101, PBX, CALLER, TRYING), (102, PBX, CALLER, OK)])
    (wanted,) = over_udp.calls().values()
    for size in (1, 100, 1448):
        (leg,) = Capture.read(pcap(call_over_tcp(size))).calls().values()
        assert [m.first_line for m in leg.messages] == [m.first_line for m in wanted.messages]
        assert (leg.final_status, leg.answered, leg.callee) == (200, True, PBX)
        assert leg.final.media == wanted.final.media
        assert not any(m.repeated for m in leg.messages)


def test_tcp_is_never_sound():
    """Bytes over TCP that look like RTP are none."""
    packet = tcp_packet(PBX_RTP, CALLER_RTP, 1, rtp(1, 160, b"\xd5" * 160) + b"\r\n\r\n")
    assert Capture.read(pcap([*call_over_tcp(), (103.0, packet)]))._rtp == {}


def test_capture_over_tcp_cut_and_flipped():
    """Cut at every tenth offset or with flipped bytes, a capture over TCP is read as far as it goes."""
    data = pcap(call_over_tcp())
    for end in range(0, len(data), 10):
        Capture.read(data[:end])
    dice = random.Random(3)
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(dice.randrange(1, 20)):
            broken[dice.randrange(24, len(broken))] = dice.randrange(256)
        Capture.read(bytes(broken))


def test_many_connections_are_bounded():
    """A capture full of connections is read; each has its message while it is among the last ones."""
    records = [
        (port / 1000, tcp_packet((CALLER[0], port), PBX, 1, INVITE.replace(b"c1", b"%d" % port)))
        for port in range(20000, 22000)
    ]
    assert len(Capture.read(pcap(records)).messages) == 2000
