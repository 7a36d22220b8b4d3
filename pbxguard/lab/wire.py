"""Reads a capture (pcap) into SIP messages, call legs and the audio that each party was sent.

Knows Ethernet and Linux cooked capture, IPv4, UDP, TCP's segments, SIP, SDP and RTP. Does not know who the addresses
are (``ladder`` is told), where a message ends in a stream (``stream``), how a codec decodes (``codecs``), what ought
to have been heard (``heard``), IPv6, TLS or encrypted media.

Everything in a capture was written by a caller: sizes are bounded, bytes are split before they are decoded,
and what cannot be read is left out, never raised.
"""

import io
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import dpkt
import numpy as np
import numpy.typing as npt

from pbxguard.errors import BadInput, UnknownName
from pbxguard.lab import codecs
from pbxguard.lab.codecs import decode, encode
from pbxguard.lab.stream import Direction

__all__ = [
    "RATE",
    "Address",
    "Capture",
    "Leg",
    "Media",
    "Provisional",
    "RtpPacket",
    "RtpStream",
    "SipMessage",
    "decode",
    "encode",
    "parse_sip",
]

RATE = 8000

MAX_BYTES = 128 * 1024 * 1024
MAX_PACKETS = 500_000
MAX_HEADERS, MAX_HEADER_BYTES, MAX_BODY_BYTES = 256, 8192, 65536
MAX_AUDIO_S = 600
# ``tcpdump -i any`` sees a packet on each interface that it crosses, within microseconds; the earliest SIP
# retransmission comes after T1 = 500 ms (RFC 3261 section 17.1.1.1).
SAME_PACKET_S = 0.02
# RTP timestamps are believed while they agree with the arrival time to this; past it the sender began anew
# (a PBX that switches from ringback to a prompt) or lies.
ADRIFT_S = 2.0
# Media that is still under way when a call ends
TAIL_S = 0.5
_FRAGMENT_GROUPS, _FRAGMENTS_EACH = 64, 64
# Directions of TCP connections that are followed at once
_STREAMS = 256

_LINKS = {1: dpkt.ethernet.Ethernet, 113: dpkt.sll.SLL, 276: dpkt.sll2.SLL2}
# dpkt parses what it finds by trial, each packet inside a packet too: bad bytes end in any of these
_BAD_PACKET = (
    dpkt.Error,
    struct.error,
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
)

_COMPACT = {
    "f": "from",
    "t": "to",
    "i": "call-id",
    "m": "contact",
    "l": "content-length",
    "c": "content-type",
    "v": "via",
    "k": "supported",
}  # RFC 3261 section 7.3.3
_STATUS_LINE = re.compile(rb"SIP/2\.0 ([1-6][0-9]{2})(?: .*)?", re.DOTALL)
_REQUEST_LINE = re.compile(rb"([A-Z]{2,20}) .{1,4096} SIP/2\.0", re.DOTALL)
_TAG = re.compile(r";\s*tag\s*=\s*([^\s;,>]+)", re.IGNORECASE)
_STATIC_CODECS = {0: "PCMU", 3: "GSM", 4: "G723", 8: "PCMA", 9: "G722", 13: "CN", 18: "G729"}  # RFC 3551


class Address(NamedTuple):
    """Where a datagram or a message came from or went to."""

    ip: str
    port: int

    def __str__(self) -> str:
        return f"{self.ip}:{self.port}"


@dataclass(frozen=True, slots=True)
class Media:
    """What an SDP body says about audio (RFC 8866).

    Attributes:
        address: Where its sender wants to receive RTP.
        codecs: Payload type -> encoding name in upper case.
    """

    address: Address
    codecs: dict[int, str]


@dataclass(frozen=True, slots=True)
class SipMessage:
    """One SIP request or response as seen on the wire. Every string was written by a peer.

    Attributes:
        at: When it was captured, seconds since the epoch.
        status: Of a response; None for a request.
        method: Of the request, or of the request that is answered (from CSeq); "" where it cannot be read.
        headers: (name, value) in order; names as written, values UTF-8 or else Latin-1.
        repeated: The very same bytes went the same way before: a retransmission.
    """

    at: float
    source: Address
    destination: Address
    first_line: str
    status: int | None
    method: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    repeated: bool = False

    def header(self, name: str) -> str | None:
        """The first value of this header, by its full name in any case, or None."""
        values = self.header_values(name)
        return values[0] if values else None

    def header_values(self, name: str) -> tuple[str, ...]:
        """All values of this header, in order."""
        wanted = name.lower()
        return tuple(value for key, value in self.headers if _COMPACT.get(key.lower(), key.lower()) == wanted)

    @property
    def call_id(self) -> str:
        """The Call-ID, or "" where there is none."""
        return self.header("call-id") or ""

    @property
    def cseq(self) -> int | None:
        """The number in CSeq, or None where it cannot be read."""
        number = (self.header("cseq") or "").split(" ", 1)[0]
        return int(number) if number.isascii() and number.isdigit() and len(number) <= 10 else None

    @property
    def reason_phrase(self) -> str:
        """What follows the status code; "" for a request."""
        return self.first_line[12:] if self.status is not None else ""

    @property
    def from_tag(self) -> str:
        """The tag parameter of From, or ""."""
        return _tag(self.header("from"))

    @property
    def to_tag(self) -> str:
        """The tag parameter of To, or ""; present inside a dialog."""
        return _tag(self.header("to"))

    @property
    def media(self) -> Media | None:
        """What its SDP says about audio, or None where there is none."""
        return _media(self.body)


class RtpPacket(NamedTuple):
    """One RTP packet (RFC 3550 section 5.1)."""

    at: float
    sequence: int
    timestamp: int
    payload_type: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class RtpStream:
    """The packets of one SSRC from one address to another, in order of arrival, none twice.

    Attributes:
        payload_type: The one that most of its packets have, comfort noise and DTMF events aside.
        codec: Its name, from the SDP or RFC 3551.
    """

    ssrc: int
    source: Address
    destination: Address
    payload_type: int
    codec: str
    packets: tuple[RtpPacket, ...]

    @property
    def at(self) -> float:
        """When its first packet was captured, seconds since the epoch."""
        return self.packets[0].at

    @property
    def decoded(self) -> bool:
        """Whether ``samples`` can render it: PCMA, PCMU, GSM and G.722."""
        return self.codec in codecs.DECODED

    @property
    def lost(self) -> int:
        """Packets that are missing between the first and the last, by sequence number."""
        first = self.packets[0].sequence
        offsets = {_signed(packet.sequence - first, 16) for packet in self.packets}
        return max(offsets) - min(offsets) + 1 - len(offsets)

    def samples(self) -> npt.NDArray[np.int16]:
        """The sound at 8 kHz, from its first packet on; gaps are silence. Empty unless ``decoded``."""
        return _render(self)


@dataclass(frozen=True, slots=True)
class Provisional:
    """A 1xx response to the INVITE."""

    at: float
    status: int
    phrase: str
    has_sdp: bool


@dataclass(frozen=True, slots=True)
class Leg:
    """One Call-ID: what the two parties of one INVITE told and sent each other.

    "Caller" and "callee" are the sender and the receiver of its INVITE, so on the leg from the PBX to a
    subscriber the PBX is the caller.

    Attributes:
        messages: All of the Call-ID, in order.
        invite: The INVITE that was acted on: the last outside a dialog (after a 401 or 407 there are two).
        provisionals: 1xx responses to it.
        final: The first final response to it, or None while there is none.
        cancelled: A CANCEL was sent.
        bye: The first BYE, or None.
        streams_to_caller: RTP that reached the caller, early media included.
        streams_to_callee: RTP that reached the callee.
    """

    call_id: str
    messages: tuple[SipMessage, ...]
    invite: SipMessage
    provisionals: tuple[Provisional, ...]
    final: SipMessage | None
    cancelled: bool
    bye: SipMessage | None
    streams_to_caller: tuple[RtpStream, ...]
    streams_to_callee: tuple[RtpStream, ...]

    @property
    def caller(self) -> Address:
        """Where the INVITE came from."""
        return self.invite.source

    @property
    def callee(self) -> Address:
        """Where the INVITE went."""
        return self.invite.destination

    @property
    def final_status(self) -> int | None:
        """The status that ended the ringing, such as 603; None while there is none."""
        return self.final.status if self.final else None

    @property
    def answered(self) -> bool:
        """The INVITE got a 2xx."""
        return self.final_status is not None and 200 <= self.final_status < 300

    @property
    def rang(self) -> bool:
        """The INVITE got a 180 (a callee's phone rings; a 183 alone is not ringing)."""
        return any(provisional.status == 180 for provisional in self.provisionals)

    @property
    def reasons(self) -> tuple[str, ...]:
        """The values of all Reason headers (RFC 3326) of the leg, in order."""
        return tuple(value for message in self.messages for value in message.header_values("reason"))

    @property
    def post_dial_ms(self) -> float | None:
        """From the INVITE to the first response that says more than 100 Trying, in milliseconds.

        That is SRD of RFC 6076 section 4.3 with 183 counted like 180: the caller hears something from then.
        None while there is no such response.
        """
        telling = [provisional.at for provisional in self.provisionals if provisional.status > 100]
        if self.final:
            telling.append(self.final.at)
        return (min(telling) - self.invite.at) * 1000.0 if telling else None

    def audio_to_caller(self) -> npt.NDArray[np.int16]:
        """What the caller was sent, 8 kHz int16, from the first packet on; empty where there was nothing."""
        return _mix(self.streams_to_caller)

    def audio_to_callee(self) -> npt.NDArray[np.int16]:
        """What the callee was sent, 8 kHz int16, from the first packet on; empty where there was nothing."""
        return _mix(self.streams_to_callee)


@dataclass(frozen=True, slots=True)
class _Datagram:
    at: float
    source: Address
    destination: Address
    payload: bytes
    by_tcp: bool = False


@dataclass(frozen=True, slots=True)
class _RtpFlow:
    source: Address
    destination: Address
    ssrc: int


@dataclass(frozen=True)
class Capture:
    """All that was understood of one pcap.

    Attributes:
        messages: SIP messages in order; retransmissions are marked, double sightings left out.
        truncated: There was more than the bounds allow (128 MiB, 500 000 packets).
    """

    messages: tuple[SipMessage, ...]
    truncated: bool = False
    _rtp: dict[_RtpFlow, list[RtpPacket]] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a pcap file; one that is empty, cut off or still being written gives what is there.

        Raises:
            BadInput: It cannot be read, is no pcap, or has a link type other than Ethernet, SLL and SLL2.
        """
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as exc:
            raise BadInput(f"{path}: {exc.strerror or 'cannot be read'}") from exc
        return cls.read(data, name=str(path))

    @classmethod
    def read(cls, data: bytes, name: str = "capture") -> Self:
        """The same from bytes; ``name`` is what an error calls them.

        Raises:
            BadInput: see ``load``.
        """
        if len(data) < 24:  # the file header is not even written yet
            return cls(())
        try:
            reader = dpkt.pcap.Reader(io.BytesIO(data[:MAX_BYTES]))
        except _BAD_PACKET as exc:
            raise BadInput(f"{name}: not a pcap file; record with tcpdump -w") from exc
        link = _LINKS.get(reader.datalink())
        if link is None:
            raise BadInput(f"{name}: link type {reader.datalink()} is not known; record with tcpdump -i any -w FILE")
        frames, more = _frames(reader)
        messages: list[SipMessage] = []
        rtp: dict[_RtpFlow, list[RtpPacket]] = {}
        sent: set[tuple[Address, Address, bytes]] = set()
        for datagram in _seen_once(_datagrams(frames, link)):
            message = parse_sip(datagram.payload, datagram.at, datagram.source, datagram.destination)
            if message:
                key = (datagram.source, datagram.destination, datagram.payload)
                messages.append(replace(message, repeated=True) if key in sent else message)
                sent.add(key)
            elif not datagram.by_tcp:
                _keep_rtp(rtp, datagram)
        return cls(tuple(messages), truncated=more or len(data) > MAX_BYTES, _rtp=rtp)

    def calls(self) -> dict[str, Leg]:
        """The legs by Call-ID, in the order of their INVITEs. Call-IDs without an INVITE are left out."""
        grouped: dict[str, list[SipMessage]] = {}
        for message in self.messages:
            if message.call_id:
                grouped.setdefault(message.call_id, []).append(message)
        legs = {}
        for call_id, messages in grouped.items():
            leg = self._leg(call_id, messages)
            if leg:
                legs[call_id] = leg
        return legs

    def leg(self, call_id: str) -> Leg:
        """The leg of one Call-ID.

        Raises:
            UnknownName: The capture has no INVITE with it.
        """
        leg = self._leg(call_id, [message for message in self.messages if message.call_id == call_id])
        if leg is None:
            raise UnknownName(f"no INVITE with Call-ID {call_id[:200]!r} in this capture")
        return leg

    def _leg(self, call_id: str, messages: list[SipMessage]) -> Leg | None:
        # a re-INVITE has a tag in To, and is about a call that was already decided
        invites = [m for m in messages if m.method == "INVITE" and m.status is None and not m.repeated]
        initial = [m for m in invites if not m.to_tag]
        if not initial:
            return None
        invite = initial[-1]
        responses = [m for m in messages if m.status is not None and m.method == "INVITE"]
        answers = [m for m in responses if m.cseq == invite.cseq]
        final = next((m for m in answers if m.status is not None and m.status >= 200), None)
        to_caller, to_callee = self._streams(messages, invite)
        return Leg(
            call_id=call_id,
            messages=tuple(messages),
            invite=invite,
            provisionals=tuple(
                Provisional(m.at, m.status, m.reason_phrase, m.media is not None)
                for m in answers
                if m.status is not None and m.status < 200 and not m.repeated
            ),
            final=final,
            cancelled=any(m.method == "CANCEL" and m.status is None for m in messages),
            bye=next((m for m in messages if m.method == "BYE" and m.status is None), None),
            streams_to_caller=to_caller,
            streams_to_callee=to_callee,
        )

    def _streams(
        self, messages: list[SipMessage], invite: SipMessage
    ) -> tuple[tuple[RtpStream, ...], tuple[RtpStream, ...]]:
        """RTP of this leg, to the caller and to the callee, by the addresses that their SDP names.

        A PBX uses the same ports again for its next call, so only packets from the time of the leg count.
        """
        callers: set[Address] = set()
        callees: set[Address] = set()
        codecs = dict(_STATIC_CODECS)
        for message in messages:
            media = message.media
            if media:
                (callers if _sent_by_caller(message, invite) else callees).add(media.address)
                codecs.update({number: name for number, name in media.codecs.items() if number >= 96})
        begin, end = messages[0].at, messages[-1].at + TAIL_S
        if not _is_over(messages, invite):
            end = float("inf")
        to_caller: list[RtpStream] = []
        to_callee: list[RtpStream] = []
        for flow, packets in self._rtp.items():
            # the destination decides; the source is the second best, for a party behind address translation
            if flow.destination in callers:
                side = to_caller
            elif flow.destination in callees:
                side = to_callee
            elif flow.source in callees:
                side = to_caller
            elif flow.source in callers:
                side = to_callee
            else:
                continue
            stream = _stream(flow, [packet for packet in packets if begin <= packet.at <= end], codecs)
            if stream:
                side.append(stream)
        return tuple(sorted(to_caller, key=lambda s: s.at)), tuple(sorted(to_callee, key=lambda s: s.at))


def parse_sip(payload: bytes, at: float, source: Address, destination: Address) -> SipMessage | None:
    """A datagram as a SIP message, or None where it is none. Any bytes will do; never fails."""
    start, _, rest = payload.partition(b"\n")
    start = start.rstrip(b"\r")
    if len(start) > MAX_HEADER_BYTES:
        return None
    status_line, request_line = _STATUS_LINE.fullmatch(start), _REQUEST_LINE.fullmatch(start)
    if not status_line and not request_line:
        return None
    end = re.search(rb"(?:\A|\r?\n)\r?\n", rest)
    head, body = (rest[: end.start()], rest[end.end() :]) if end else (rest, b"")
    headers: list[tuple[str, str]] = []
    for line in head.split(b"\n")[:MAX_HEADERS]:
        bounded = line.rstrip(b"\r")[:MAX_HEADER_BYTES]
        if bounded[:1] in (b" ", b"\t") and headers:  # a folded line, RFC 3261 section 7.3.1
            name, value = headers[-1]
            headers[-1] = (name, f"{value} {_text(bounded.strip())}"[:MAX_HEADER_BYTES])
            continue
        key, colon, raw = bounded.partition(b":")
        if colon:
            headers.append((_text(key.strip()), _text(raw.strip())))
    message = SipMessage(
        at=at,
        source=source,
        destination=destination,
        first_line=_text(start),
        status=int(status_line.group(1)) if status_line else None,
        method=request_line.group(1).decode("ascii") if request_line else "",
        headers=tuple(headers),
        body=body[:MAX_BODY_BYTES],
    )
    length = message.header("content-length") or ""
    if length.isascii() and length.isdigit() and len(length) < 9:
        message = replace(message, body=message.body[: int(length)])
    if status_line:
        words = (message.header("cseq") or "").split()
        message = replace(message, method=words[1].upper()[:20] if len(words) > 1 else "")
    return message


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _tag(value: str | None) -> str:
    """The tag after the address; a display name may hold one too, so what is before the last > is skipped."""
    found = _TAG.search((value or "").rpartition(">")[2])
    return found.group(1) if found else ""


def _media(body: bytes) -> Media | None:
    session, own, port, codecs = None, None, 0, dict[int, str]()
    for raw in body.split(b"\n")[:1000]:
        line = raw.rstrip(b"\r")
        if line.startswith(b"m="):
            if port:
                break  # the next medium: what follows is not about audio
            found = re.match(rb"m=audio ([1-9][0-9]{0,4})(?:/[0-9]+)? [A-Z/]+((?: [0-9]{1,3})*)", line)
            if found and int(found.group(1)) < 65536:
                port = int(found.group(1))
                numbers = [int(number) for number in found.group(2).split()]
                codecs = {number: _STATIC_CODECS.get(number, f"payload type {number}") for number in numbers}
            continue
        where = re.match(rb"c=IN IP4 ([0-9]{1,3}(?:\.[0-9]{1,3}){3})", line)
        if where:
            session, own = (session, where.group(1)) if port else (where.group(1), own)
        named = re.match(rb"a=rtpmap:([0-9]{1,3}) ([A-Za-z0-9._-]{1,40})/", line)
        if named and port:
            codecs[int(named.group(1))] = named.group(2).decode("ascii").upper()
    ip = own or session
    return Media(Address(ip.decode("ascii"), port), codecs) if ip and port else None


def _sent_by_caller(message: SipMessage, invite: SipMessage) -> bool:
    """Whether the sender of the INVITE sent this: From names a request's sender, in its response too."""
    if not invite.from_tag or not message.from_tag:
        return message.source == invite.source
    return (message.from_tag == invite.from_tag) == (message.status is None)


def _is_over(messages: list[SipMessage], invite: SipMessage) -> bool:
    return any(
        message.method == "BYE"
        or (message.method == "INVITE" and message.cseq == invite.cseq and (message.status or 0) >= 300)
        for message in messages
    )


def frames(path: Path) -> tuple[int, list[tuple[float, bytes]]]:
    """Link type and frames, with their times, of a pcap file; 0 and none of one that holds nothing yet.

    Raises:
        BadInput: It is no pcap.
    """
    if not path.is_file() or path.stat().st_size < 24:
        return 0, []
    try:
        reader = dpkt.pcap.Reader(io.BytesIO(path.read_bytes()[:MAX_BYTES]))
    except _BAD_PACKET as exc:
        raise BadInput(f"{path}: not a pcap file; record with tcpdump -w") from exc
    return reader.datalink(), _frames(reader)[0]


def ip_of(link: int, frame: bytes) -> Any | None:
    """The IPv4 packet of a frame of that link type, as dpkt has it, or None."""
    try:
        ip = _LINKS[link](frame).data
    except (KeyError, *_BAD_PACKET):
        return None
    return ip if isinstance(ip, dpkt.ip.IP) else None


def _frames(reader: Any) -> tuple[list[tuple[float, bytes]], bool]:
    """The records of a pcap and whether there were more; a last one that is cut off ends it."""
    frames: list[tuple[float, bytes]] = []
    try:
        for at, frame in reader:
            if len(frames) == MAX_PACKETS:
                return frames, True
            frames.append((float(at), frame))
    except _BAD_PACKET:
        pass
    return frames, False


def _datagrams(frames: Iterable[tuple[float, bytes]], link: Any) -> Iterator[_Datagram]:
    """UDP datagrams over IPv4, put together again where they were fragmented, and SIP messages over TCP."""
    fragments: dict[tuple[bytes, bytes, int], dict[int, tuple[bytes, bool]]] = {}
    streams: dict[tuple[Address, Address], Direction] = {}
    at = 0.0
    for at, frame in frames:
        try:
            ip = link(frame).data
            if not isinstance(ip, dpkt.ip.IP) or ip.p not in (dpkt.ip.IP_PROTO_UDP, dpkt.ip.IP_PROTO_TCP):
                continue
            raw, source, destination = bytes(ip.data), ip.src, ip.dst
            if ip.p == dpkt.ip.IP_PROTO_TCP:
                yield from _messages(streams, at, ip, raw)
                continue
            if ip.mf or ip.offset:
                key = (source, destination, ip.id)
                whole = _reassemble(fragments, key, int(ip.offset) * 8, raw, more=bool(ip.mf))
                if whole is None:
                    continue
                raw = whole
            if len(raw) < 8:
                continue
            sport, dport, length = struct.unpack_from("!HHH", raw)
            yield _Datagram(at, _address(source, sport), _address(destination, dport), raw[8 : max(length, 8)])
        except _BAD_PACKET:
            continue
    for (source, destination), stream in streams.items():
        for message in stream.rest():
            yield _Datagram(at, source, destination, message, by_tcp=True)


def _messages(
    streams: dict[tuple[Address, Address], Direction], at: float, ip: Any, raw: bytes
) -> Iterator[_Datagram]:
    """The SIP messages that are complete with this TCP segment (RFC 9293 section 3.1)."""
    if len(raw) < 20 or ip.mf or ip.offset:  # TCP does not let its segments be fragmented
        return
    sport, dport, sequence, _, offset, flags = struct.unpack_from("!HHIIBB", raw)
    begin = max(20, offset >> 4 << 2)
    key = (_address(ip.src, sport), _address(ip.dst, dport))
    if key not in streams and len(streams) >= _STREAMS:
        streams.pop(next(iter(streams)))
    stream = streams.setdefault(key, Direction())
    length = max(0, int(ip.len) - ip.hl * 4 - begin)
    for message in stream.segment(at, sequence, raw[begin:], length=length, begins=bool(flags & dpkt.tcp.TH_SYN)):
        yield _Datagram(at, *key, message, by_tcp=True)


def _address(ip: bytes, port: int) -> Address:
    return Address(".".join(map(str, ip)), port)


def _reassemble(
    groups: dict[tuple[bytes, bytes, int], dict[int, tuple[bytes, bool]]],
    key: tuple[bytes, bytes, int],
    offset: int,
    data: bytes,
    *,
    more: bool,
) -> bytes | None:
    """The whole payload once its last piece has come (RFC 791 section 3.2), else None."""
    if key not in groups and len(groups) >= _FRAGMENT_GROUPS:
        groups.pop(next(iter(groups)))
    pieces = groups.setdefault(key, {})
    if len(pieces) < _FRAGMENTS_EACH:
        pieces[offset] = (data, more)
    whole = b""
    for begin in sorted(pieces):
        piece, goes_on = pieces[begin]
        if begin != len(whole):
            return None
        whole += piece
        if not goes_on:
            del groups[key]
            return whole
    return None


def _seen_once(datagrams: Iterable[_Datagram]) -> Iterator[_Datagram]:
    """Leaves out second sightings of one packet, on another interface of the same machine."""
    seen: dict[tuple[Address, Address, bytes], float] = {}
    for datagram in datagrams:
        key = (datagram.source, datagram.destination, datagram.payload)
        before = seen.get(key)
        seen[key] = datagram.at
        if before is None or not 0 <= datagram.at - before < SAME_PACKET_S:
            yield datagram


def _keep_rtp(rtp: dict[_RtpFlow, list[RtpPacket]], datagram: _Datagram) -> None:
    data = datagram.payload
    # RTCP shares the first byte; its types 192 to 223 stand where RTP has marker and type (RFC 5761)
    if len(data) < 12 or data[0] >> 6 != 2 or 192 <= data[1] <= 223:
        return
    first, second, sequence, timestamp, ssrc = struct.unpack_from("!BBHII", data)
    begin, end = 12 + 4 * (first & 15), len(data)
    if first & 0x10 and begin + 4 <= len(data):
        begin += 4 + 4 * int(struct.unpack_from("!H", data, begin + 2)[0])
    if first & 0x20:
        end -= data[-1]
    packet = RtpPacket(datagram.at, sequence, timestamp, second & 0x7F, data[begin : max(begin, end)])
    rtp.setdefault(_RtpFlow(datagram.source, datagram.destination, ssrc), []).append(packet)


def _stream(flow: _RtpFlow, packets: list[RtpPacket], codecs: dict[int, str]) -> RtpStream | None:
    unique: dict[tuple[int, int], RtpPacket] = {}
    for packet in packets:
        unique.setdefault((packet.sequence, packet.timestamp), packet)
    counts: dict[int, int] = {}
    for packet in unique.values():
        name = codecs.get(packet.payload_type, "")
        if name not in ("CN", "TELEPHONE-EVENT"):
            counts[packet.payload_type] = counts.get(packet.payload_type, 0) + 1
    if not counts:
        return None
    most = max(counts, key=lambda number: counts[number])
    name = codecs.get(most, f"payload type {most}")
    return RtpStream(flow.ssrc, flow.source, flow.destination, most, name, tuple(unique.values()))


def _signed(value: int, bits: int) -> int:
    """A difference of two counters that wrap around, as the nearer way."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _render(stream: RtpStream) -> npt.NDArray[np.int16]:
    """Packets laid out by RTP timestamp, so that order of arrival and jitter do not matter."""
    decoders = {name: found for name in codecs.DECODED if (found := codecs.decoder(name))}
    placed: list[tuple[int, str, int, RtpPacket]] = []
    anchor: tuple[int, int] | None = None  # (timestamp, sample) that others are counted from
    end = 0
    for packet in stream.packets:
        codec = (
            stream.codec if packet.payload_type == stream.payload_type else _STATIC_CODECS.get(packet.payload_type)
        )
        length = decoders[codec].length(packet.payload) if codec in decoders else 0
        if not codec or not length:
            continue
        arrived = round((packet.at - stream.at) * RATE)
        if anchor is None:
            anchor = (packet.timestamp, arrived)
        at = anchor[1] + _signed(packet.timestamp - anchor[0], 32)
        if abs(at - arrived) > ADRIFT_S * RATE:
            anchor = (packet.timestamp, max(arrived, end))
            at = anchor[1]
        if at + length > MAX_AUDIO_S * RATE:
            continue
        placed.append((at, codec, length, packet))
        end = max(end, at + length)
    if not placed:
        return np.zeros(0, np.int16)
    begin = min(0, *(entry[0] for entry in placed)) if len(placed) > 1 else min(0, placed[0][0])
    sound = np.zeros(end - begin, np.int16)
    for codec, decoder in decoders.items():
        # A decoder leans on the packets before, so they come in the sender's order, whatever the network did.
        first = stream.packets[0].sequence
        ours = sorted((e for e in placed if e[1] == codec), key=lambda e: _signed(e[3].sequence - first, 16))
        samples = decoder.decode(entry[3].payload for entry in ours)
        for (at, _, length, _), piece in zip(ours, _pieces(samples, [e[2] for e in ours]), strict=True):
            sound[at - begin : at - begin + length] = piece
    return sound


def _pieces(samples: npt.NDArray[np.int16], lengths: list[int]) -> list[npt.NDArray[np.int16]]:
    """The samples cut into these lengths."""
    return np.split(samples, np.cumsum(lengths)[:-1]) if lengths else []


def _mix(streams: tuple[RtpStream, ...]) -> npt.NDArray[np.int16]:
    """Streams laid out by the time of their first packets; where two overlap, both sound."""
    heard = [(stream.at, stream.samples()) for stream in streams if stream.decoded]
    if not heard:
        return np.zeros(0, np.int16)
    first = min(at for at, _ in heard)
    places = [(min(round((at - first) * RATE), MAX_AUDIO_S * RATE), samples) for at, samples in heard]
    sound = np.zeros(max(place + len(samples) for place, samples in places), np.int32)
    for place, samples in places:
        sound[place : place + len(samples)] += samples
    return np.clip(sound, -32768, 32767).astype(np.int16)
