"""Tests of pbxguard.lab.wire: on calls recorded from a real Asterisk, built packets, and hostile bytes."""

import io
import random
import socket
import struct
from pathlib import Path

import dpkt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbxguard import prompts
from pbxguard.errors import BadInput, UnknownName
from pbxguard.lab import heard
from pbxguard.lab.wire import Address, Capture, decode, encode, parse_sip

FRAMES = Path(__file__).parent.parent / "frames"
CALLER, PBX = ("198.18.1.2", 5060), ("198.18.1.10", 5060)
CALLER_RTP, PBX_RTP = ("198.18.1.2", 20000), ("198.18.1.10", 30000)
ETHERNET, SLL, SLL2 = 1, 113, 276


def ip_packets(source, destination, payload, *, number=1, fragment=0):
    """The datagram as IPv4 packets; in pieces of ``fragment`` bytes where that is not 0."""
    udp = struct.pack("!HHHH", source[1], destination[1], 8 + len(payload), 0) + payload
    size = fragment or len(udp)
    packets = []
    for at in range(0, len(udp), size):
        more = at + size < len(udp)
        piece = udp[at : at + size]
        header = struct.pack(
            "!BBHHHBBH4s4s",
            0x45,
            0,
            20 + len(piece),
            number,
            (0x2000 if more else 0) | at // 8,
            64,
            17,
            0,
            socket.inet_aton(source[0]),
            socket.inet_aton(destination[0]),
        )
        packets.append(header + piece)
    return packets


def frame(packet, link):
    """The IPv4 packet as tcpdump writes it for this link type."""
    head = {
        ETHERNET: b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x08\x00",
        SLL: b"\0\0\0\x01\0\x06\x02\0\0\0\0\x01\0\0\x08\x00",
        SLL2: b"\x08\x00\0\0\0\0\0\x02\0\x01\0\x06\x02\0\0\0\0\x01\0\0",
    }
    return head[link] + packet


def pcap(records, link=SLL2):
    """A pcap of (seconds, IPv4 packet)."""
    file = io.BytesIO()
    writer = dpkt.pcap.Writer(file, linktype=link)
    for at, packet in records:
        writer.writepkt(frame(packet, link), ts=at)
    return file.getvalue()


def capture(datagrams, link=SLL2):
    """A capture of (seconds, source, destination, payload)."""
    return Capture.read(pcap([(at, ip_packets(src, dst, data)[0]) for at, src, dst, data in datagrams], link))


def sdp(address, payload_types="8"):
    return (
        f"v=0\r\no=- 1 1 IN IP4 {address[0]}\r\ns=-\r\nc=IN IP4 {address[0]}\r\nt=0 0\r\n"
        f"m=audio {address[1]} RTP/AVP {payload_types}\r\na=rtpmap:101 telephone-event/8000\r\n"
    ).encode()


def sip(
    first,
    *,
    call_id="c1",
    sender='"A" <sip:+85261234567@x>;tag=from1',
    to="<sip:1@y>",
    cseq="1 INVITE",
    body=b"",
    more="",
):
    head = f"{first}\r\nFrom: {sender}\r\nTo: {to}\r\nCall-ID: {call_id}\r\nCSeq: {cseq}\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


INVITE = "INVITE sip:13957100001@y SIP/2.0"
ANSWERED_TO = "<sip:1@y>;tag=to1"


def rtp(sequence, timestamp, payload, *, payload_type=8, ssrc=7):
    return struct.pack("!BBHII", 0x80, payload_type, sequence & 0xFFFF, timestamp & 0xFFFFFFFF, ssrc) + payload


def refused_call(media, *, begin=100.0, call_id="c1"):
    """INVITE, 183 with SDP, this early media to the caller [(seconds after begin, datagram)], 603, ACK."""
    last = max([at for at, _ in media], default=0.0)
    return [
        (begin, CALLER, PBX, sip(INVITE, body=sdp(CALLER_RTP), call_id=call_id)),
        (begin + 0.001, PBX, CALLER, sip("SIP/2.0 100 Trying", call_id=call_id)),
        (
            begin + 0.0125,
            PBX,
            CALLER,
            sip("SIP/2.0 183 Session Progress", to=ANSWERED_TO, body=sdp(PBX_RTP), call_id=call_id),
        ),
        *[(begin + at, PBX_RTP, CALLER_RTP, data) for at, data in media],
        (
            begin + last + 0.02,
            PBX,
            CALLER,
            sip("SIP/2.0 603 Decline", to=ANSWERED_TO, call_id=call_id, more="Reason: Q.850;cause=21\r\n"),
        ),
        (
            begin + last + 0.03,
            CALLER,
            PBX,
            sip("ACK sip:1@y SIP/2.0", to=ANSWERED_TO, cseq="1 ACK", call_id=call_id),
        ),
    ]


def packets_of(sound, *, first=1000, timestamp=50000, ssrc=7, payload_type=8):
    """[(seconds, RTP datagram)]: 20 ms each, the first 20 ms after the call began."""
    coded = encode(sound, payload_type)
    return [
        (
            0.02 + i * 0.02,
            rtp(
                first + i,
                timestamp + i * 160,
                coded[i * 160 : (i + 1) * 160],
                ssrc=ssrc,
                payload_type=payload_type,
            ),
        )
        for i in range(len(coded) // 160)
    ]


@pytest.fixture(scope="module")
def sound():
    return heard.marker("wire", seconds=1.0)


# recorded calls


def test_recorded_refusal_is_read_as_it_was():
    """A call refused by a real Asterisk: 183 with SDP, the whole prompt to the caller, the status, no 200."""
    (leg,) = Capture.load(FRAMES / "call-refused.pcap").calls().values()
    assert [(p.status, p.has_sdp) for p in leg.provisionals] == [(100, False), (183, True)]
    assert leg.final_status == 403
    assert (leg.answered, leg.rang, leg.cancelled, leg.bye) == (False, False, False, None)
    assert leg.reasons == ("Q.850;cause=21",)
    assert leg.post_dial_ms is not None
    assert 0 < leg.post_dial_ms < 1000
    references = {name: heard.load_wav(prompts.path(name, "zh")) for name in prompts.names()}
    name, found = heard.best(leg.audio_to_caller(), references)
    assert name == "cli_missing"
    assert found.score >= 0.95
    assert len(leg.audio_to_callee()) == 0


def test_recorded_call_has_both_legs_and_audio_both_ways():
    """A call that a real Asterisk connected: two legs, 180, 200, BYE; each end heard the other's marker."""
    legs = list(Capture.load(FRAMES / "call-connected.pcap").calls().values())
    assert [(leg.caller.ip, leg.callee.ip) for leg in legs] == [
        ("127.0.0.2", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.3"),
    ]
    caller, callee = heard.marker("caller"), heard.marker("callee")
    for leg in legs:
        assert (leg.final_status, leg.answered, leg.rang, leg.cancelled) == (200, True, True, False)
        assert leg.bye is not None
        assert heard.match(leg.audio_to_callee(), caller).score >= 0.95
        assert heard.match(leg.audio_to_caller(), callee).score >= 0.95
        assert heard.match(leg.audio_to_caller(), caller).score <= 0.1
        assert [stream.lost for stream in leg.streams_to_caller] == [0]


def test_recorded_cancel_is_no_refusal():
    """A caller who hung up during the prompt: CANCEL, 487, and only the beginning of the prompt was heard."""
    (leg,) = Capture.load(FRAMES / "call-cancelled.pcap").calls().values()
    assert (leg.final_status, leg.cancelled, leg.answered) == (487, True, False)
    assert heard.match(leg.audio_to_caller(), heard.load_wav(prompts.path("cli_missing", "zh"))).score < 0.5


# messages


@pytest.mark.parametrize("link", [ETHERNET, SLL, SLL2])
def test_link_types(link, sound):
    """Ethernet, LINUX_SLL and LINUX_SLL2 captures of one call read the same."""
    leg = capture(refused_call(packets_of(sound)), link).leg("c1")
    assert leg.final_status == 603
    assert leg.reasons == ("Q.850;cause=21",)
    assert leg.post_dial_ms == pytest.approx(12.5, abs=0.01)
    assert len(leg.audio_to_caller()) == len(sound)


def test_compact_and_folded_headers():
    """Compact names, odd case and folded lines mean the same as the full form (RFC 3261 section 7.3)."""
    raw = (
        b"INVITE sip:1@y SIP/2.0\r\nf: <sip:a@x>;tag=1\r\nT:<sip:1@y>\r\ni: abc\r\ncseq: 7 INVITE\r\n"
        b"v: one\r\nVia: two\r\nSubject: a\r\n b\r\nl: 2\r\n\r\nhi there"
    )
    message = parse_sip(raw, 1.0, Address(*CALLER), Address(*PBX))
    assert message is not None
    assert (message.call_id, message.cseq, message.method) == ("abc", 7, "INVITE")
    assert message.header_values("via") == ("one", "two")
    assert (message.header("FROM"), message.from_tag, message.to_tag) == ("<sip:a@x>;tag=1", "1", "")
    assert message.header("subject") == "a b"
    assert message.body == b"hi"


def test_caller_names_in_any_encoding():
    """UTF-8 names are read as such; GBK and Latin-1 bytes do not raise and do not reach the next header."""
    for name, read in (("王", "王"), ("é".encode("latin-1"), "é")):
        coded = name.encode() if isinstance(name, str) else name
        raw = b"INVITE sip:1@y SIP/2.0\r\nFrom: " + coded + b" <sip:a@x>\r\nCall-ID: k\r\n\r\n"
        message = parse_sip(raw, 1.0, Address(*CALLER), Address(*PBX))
        assert message is not None
        assert message.header("from") == f"{read} <sip:a@x>"
        assert message.call_id == "k"


def test_fragmented_invite():
    """A large INVITE that IP fragmented is put together, in whatever order its pieces came."""
    invite = sip(INVITE, body=sdp(CALLER_RTP), more="X-Long: " + "x" * 4000 + "\r\n")
    pieces = ip_packets(CALLER, PBX, invite, fragment=1480)
    assert len(pieces) == 3
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        found = Capture.read(pcap([(1.0 + i / 1000, pieces[k]) for i, k in enumerate(order)]))
        assert [message.method for message in found.messages] == ["INVITE"]
        assert found.messages[0].media is not None


def test_fragments_that_never_end_are_bounded():
    """First fragments without end neither raise nor hide a later whole message."""
    flood = [(1.0 + i / 1e4, ip_packets(CALLER, PBX, b"x" * 3000, number=i, fragment=1480)[0]) for i in range(500)]
    whole = (2.0, ip_packets(CALLER, PBX, sip(INVITE))[0])
    assert len(Capture.read(pcap([*flood, whole])).messages) == 1


def test_second_sighting_and_retransmission():
    """One packet seen on two interfaces counts once; the same message half a second later is a repeat."""
    invite = sip(INVITE)
    found = capture([(1.0, CALLER, PBX, invite), (1.0001, CALLER, PBX, invite), (1.5, CALLER, PBX, invite)])
    assert [message.repeated for message in found.messages] == [False, True]
    assert found.leg("c1").invite.at == pytest.approx(1.0)


def test_digest_challenge_is_not_the_outcome():
    """After a 401 the INVITE with credentials counts: its status, and the delay from it."""
    leg = capture(
        [
            (1.0, CALLER, PBX, sip(INVITE)),
            (1.01, PBX, CALLER, sip("SIP/2.0 401 Unauthorized", to=ANSWERED_TO)),
            (1.02, CALLER, PBX, sip("ACK sip:1@y SIP/2.0", to=ANSWERED_TO, cseq="1 ACK")),
            (1.03, CALLER, PBX, sip(INVITE, cseq="2 INVITE")),
            (1.04, PBX, CALLER, sip("SIP/2.0 180 Ringing", to=ANSWERED_TO, cseq="2 INVITE")),
            (1.50, PBX, CALLER, sip("SIP/2.0 200 OK", to=ANSWERED_TO, cseq="2 INVITE")),
            (1.60, CALLER, PBX, sip(INVITE, to=ANSWERED_TO, cseq="3 INVITE")),
            (1.61, PBX, CALLER, sip("SIP/2.0 488 Not Acceptable Here", to=ANSWERED_TO, cseq="3 INVITE")),
        ]
    ).leg("c1")
    assert (leg.final_status, leg.answered, leg.rang) == (200, True, True)
    assert leg.post_dial_ms == pytest.approx(10.0, abs=0.01)


def test_call_id_without_invite():
    """A MESSAGE is among the messages but is no call; asking for an unknown Call-ID names it."""
    found = capture([(1.0, CALLER, PBX, sip("MESSAGE sip:1@y SIP/2.0", cseq="1 MESSAGE"))])
    assert [message.method for message in found.messages] == ["MESSAGE"]
    assert found.calls() == {}
    with pytest.raises(UnknownName, match="c1"):
        found.leg("c1")


# media


def test_g711_values():
    """The corners of both tables are those of ITU-T G.711, and every level survives encoding."""
    assert decode(b"\xd5\x55\xaa\x2a", 8).tolist() == [8, -8, 32256, -32256]
    assert decode(b"\xff\x80\x00", 0).tolist() == [0, 32124, -32124]
    for kind in (0, 8):
        levels = decode(bytes(range(256)), kind)
        assert np.array_equal(decode(encode(levels, kind), kind), levels)


@pytest.mark.parametrize("payload_type", [0, 8])
def test_audio_is_whole(sound, payload_type):
    """PCMU and PCMA early media come out sample for sample as they were coded."""
    leg = capture(refused_call(packets_of(sound, payload_type=payload_type))).leg("c1")
    assert np.array_equal(leg.audio_to_caller(), decode(encode(sound, payload_type), payload_type))
    assert leg.streams_to_caller[0].at == pytest.approx(100.02)


def test_reordered_doubled_and_lost_packets(sound):
    """Order is put right, doubles count once, and a lost packet is 20 ms of silence in its place."""
    media = packets_of(sound)
    times = [at for at, _ in media]
    data = [packet for _, packet in media]
    data[10], data[11] = data[11], data[10]
    data[0], data[1] = data[1], data[0]
    lost = data.index(media[20][1])
    shuffled = [(at, packet) for i, (at, packet) in enumerate(zip(times, data, strict=True)) if i != lost]
    shuffled.insert(30, (shuffled[30][0] + 0.001, shuffled[29][1]))
    leg = capture(refused_call(sorted(shuffled, key=lambda item: item[0]))).leg("c1")
    expected = decode(encode(sound, 8), 8)
    expected[20 * 160 : 21 * 160] = 0
    assert np.array_equal(leg.audio_to_caller(), expected)
    assert leg.streams_to_caller[0].lost == 1


def test_counters_wrap(sound):
    """Sequence numbers and timestamps that wrap around in mid-prompt change nothing."""
    media = packets_of(sound, first=65530, timestamp=2**32 - 800)
    leg = capture(refused_call(media)).leg("c1")
    assert np.array_equal(leg.audio_to_caller(), decode(encode(sound, 8), 8))
    assert leg.streams_to_caller[0].lost == 0


def test_sender_begins_anew(sound):
    """A timestamp that jumps by hours (ringback gives way to the prompt) leaves no hours of silence."""
    media = packets_of(sound)
    after = [(at + 1.5, rtp(2000 + i, 3_000_000_000 + i * 160, packet[12:])) for i, (at, packet) in enumerate(media)]
    audio = capture(refused_call(media + after)).leg("c1").audio_to_caller()
    assert len(audio) / 8000 == pytest.approx(2.5, abs=0.01)
    assert heard.match(audio[12000:], sound).score >= 0.95


def test_two_streams_follow_each_other(sound):
    """Ringback and prompt under two SSRCs lie where they were heard."""
    second = [(at + 1.5, packet) for at, packet in packets_of(sound, ssrc=8)]
    audio = capture(refused_call(packets_of(sound) + second)).leg("c1").audio_to_caller()
    assert len(audio) / 8000 == pytest.approx(2.5, abs=0.01)


def test_g729_is_named_not_guessed(sound):
    """A stream that nobody here can decode is there, with its codec's name, and gives no samples."""
    media = [(at, rtp(i, i * 160, b"\xd0" * 20, payload_type=18)) for i, (at, _) in enumerate(packets_of(sound))]
    leg = capture(refused_call(media)).leg("c1")
    assert [stream.codec for stream in leg.streams_to_caller] == ["G729"]
    assert not leg.streams_to_caller[0].decoded
    assert len(leg.audio_to_caller()) == 0


def test_rtcp_and_dtmf_are_no_audio(sound):
    """Sender reports and telephone events between the packets do not sound."""
    events = [
        (0.5, rtp(5000, 1, b"\x01\x0a\x00\xa0", payload_type=101, ssrc=9)),
        (0.51, b"\x80\xc8\x00\x06" + bytes(24)),
    ]
    leg = capture(refused_call(sorted(packets_of(sound) + events, key=lambda item: item[0]))).leg("c1")
    assert np.array_equal(leg.audio_to_caller(), decode(encode(sound, 8), 8))


def test_ports_that_are_used_again(sound):
    """Two calls, one after the other, on the same ports: each has its own audio only."""
    other = heard.marker("other", seconds=1.0)
    records = refused_call(packets_of(sound)) + refused_call(packets_of(other, ssrc=8), begin=110.0, call_id="c2")
    found = capture(records)
    assert heard.match(found.leg("c1").audio_to_caller(), sound).score >= 0.95
    assert heard.match(found.leg("c2").audio_to_caller(), other).score >= 0.95
    assert len(found.leg("c1").streams_to_caller) == len(found.leg("c2").streams_to_caller) == 1


def test_display_name_cannot_swap_the_sides(sound):
    """A display name that holds a tag of its own does not turn caller into callee."""
    sender = '"x;tag=to1" <sip:1@x;tag=no>;tag=from1'
    records = [
        (at, src, dst, data.replace(b'"A" <sip:+85261234567@x>;tag=from1', sender.encode()))
        for at, src, dst, data in refused_call(packets_of(sound))
    ]
    leg = capture(records).leg("c1")
    assert len(leg.audio_to_caller()) == len(sound)
    assert len(leg.audio_to_callee()) == 0


def test_invite_without_sdp():
    """An INVITE without an offer has no media, and its call is still read."""
    leg = capture(
        [(1.0, CALLER, PBX, sip(INVITE)), (1.1, PBX, CALLER, sip("SIP/2.0 603 Decline", to=ANSWERED_TO))]
    ).leg("c1")
    assert leg.invite.media is None
    assert leg.final_status == 603


# files and attackers


def test_files_that_are_not_captures(tmp_path):
    """Empty and just-opened files hold nothing yet; anything else is named in one line."""
    file = tmp_path / "x.pcap"
    file.write_bytes(b"")
    assert Capture.load(file).messages == ()
    file.write_bytes(pcap([]))
    assert Capture.load(file).calls() == {}
    file.write_bytes(b"no capture at all, but text")
    with pytest.raises(BadInput, match=r"x\.pcap: not a pcap"):
        Capture.load(file)
    file.write_bytes(pcap([])[:20] + struct.pack("=I", 105))
    with pytest.raises(BadInput, match="link type"):
        Capture.load(file)
    with pytest.raises(BadInput, match=r"none\.pcap"):
        Capture.load(tmp_path / "none.pcap")


def test_capture_cut_at_every_offset():
    """A file that ends anywhere, as one that is being written does, gives the messages that are whole."""
    data = pcap([(at, ip_packets(src, dst, packet)[0]) for at, src, dst, packet in refused_call([])])
    counts = []
    for end in range(len(data) + 1):
        found = Capture.read(data[:end])
        counts.append(len(found.messages))
        for leg in found.calls().values():
            leg.audio_to_caller()
    assert counts[-1] == 5
    assert counts == sorted(counts)


@pytest.mark.parametrize("protocol", [0, 4])
def test_packets_inside_packets(protocol):
    """IP in IP, three thousand deep, hides neither itself in an error nor the message after it."""
    nested = b""
    for _ in range(3000):
        head = struct.pack("!BBHHHBBHII", 0x45, 0, 20 + len(nested), 1, 0, 64, protocol, 0, 1, 2)
        nested = head + nested
    data = pcap([(1.0, nested), (2.0, ip_packets(CALLER, PBX, sip(INVITE))[0])])
    assert len(Capture.read(data).messages) == 1


def test_messages_cut_at_every_offset():
    """A recorded SIP message that is cut anywhere never raises, nor do its parts."""
    recorded = Capture.load(FRAMES / "call-connected.pcap").messages
    for message in recorded:
        head = "\r\n".join([message.first_line, *(f"{name}: {value}" for name, value in message.headers)])
        raw = head.encode() + b"\r\n\r\n" + message.body
        for end in range(len(raw)):
            read_all(parse_sip(raw[:end], 1.0, message.source, message.destination))


def test_flipped_bytes_never_raise():
    """A recorded call with bytes changed anywhere in the file is read, or refused as no capture."""
    recorded = (FRAMES / "call-cancelled.pcap").read_bytes()
    dice = random.Random(22)
    for _ in range(300):
        data = bytearray(recorded)
        for _ in range(dice.choice((1, 5, 50, 500))):
            data[dice.randrange(len(data))] = dice.randrange(256)
        try:
            found = Capture.read(bytes(data))
        except BadInput:
            continue
        for leg in found.calls().values():
            leg.audio_to_caller()
            leg.audio_to_callee()
            _ = leg.post_dial_ms, leg.reasons


def read_all(message):
    if message is not None:
        _ = (
            message.call_id,
            message.cseq,
            message.media,
            message.from_tag,
            message.to_tag,
            message.reason_phrase,
        )


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(
        [
            b"",
            b"SIP/2.0 200 ",
            b"INVITE x SIP/2.0\r\n",
            b"INVITE x SIP/2.0\r\nv=0\r\n\r\nc=IN IP4 1.1.1.1\nm=audio ",
        ]
    ),
    st.binary(max_size=400),
)
def test_any_bytes_as_sip(start, rest):
    """Whatever a datagram holds, parsing it and asking for its parts never raises."""
    read_all(parse_sip(start + rest, 0.0, Address(*CALLER), Address(*PBX)))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=20), st.sampled_from([ETHERNET, SLL, SLL2]))
def test_any_bytes_as_rtp_or_frames(datagrams, link):
    """Whatever is sent to a caller's RTP port during a call, or stands in a frame, never raises."""
    media = [(0.02 + i / 100, b"\x80" + data) for i, data in enumerate(datagrams)]
    leg = capture(refused_call(media), link).leg("c1")
    assert len(leg.audio_to_caller()) <= 600 * 8000
    file = io.BytesIO()
    writer = dpkt.pcap.Writer(file, linktype=link)
    for data in datagrams:
        writer.writepkt(data, ts=1.0)
        writer.writepkt(frame(data, link), ts=1.0)
    Capture.read(file.getvalue())
