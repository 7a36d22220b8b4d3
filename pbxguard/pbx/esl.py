"""The FreeSWITCH event socket as bytes and values: frames in, commands out. No I/O.

A frame is split into lines before any of it is percent-decoded, and a line is split at its first ``:`` only:
FreeSWITCH encodes what a caller wrote (``%0A``, U+2028), and whoever decodes first lets the caller write headers of
their own. The first header of a name wins, because ``variable_*`` headers with caller text come last.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from urllib.parse import unquote, unquote_to_bytes

from pbxguard.errors import PeerProtocolError
from pbxguard.pbx.address import asserted_user, diverted_by, number_shown, one_spelling, private, unread
from pbxguard.screening.call import Call, Trunk, Verdict
from pbxguard.screening.treatment import Treatment

#: The most that the header block of a frame may have. FreeSWITCH's own replies have a few hundred bytes.
MAX_HEADER_BYTES = 64 * 1024

#: The most that a frame's body may have. An event of a call with a large SDP has about 12 KiB.
MAX_BODY_BYTES = 1024 * 1024

#: CUSTOM event with which the dialplan asks for a verdict (dialplans/freeswitch/pbxguard.xml).
SUBCLASS = "pbxguard::screen"

#: CUSTOM event that the guard sends to itself, to see whether events come through.
ECHO_SUBCLASS = "pbxguard::echo"

#: Version of the event and of the verdict variable.
VERSION = "1"

#: Global variable: the epoch second (FreeSWITCH's clock) until which the dialplan waits for verdicts.
HEARTBEAT_VARIABLE = "pbxguard_until"

#: The channel variable that the dialplan branches on.
VERDICT_VARIABLE = "pbxguard_verdict"

#: The channel variable that the dialplan sets when it no longer waits for a verdict.
GIVEN_UP_VARIABLE = "pbxguard_given_up"

_UUID = re.compile(r"[0-9a-fA-F-]{8,64}")
_NAME_ADDR = re.compile(r'(?:"(?:[^"\\]|\\.)*"\s*|[^<"]*)<([^>]*)>', re.DOTALL)
_URI = re.compile(r"sips?:(?:(.*)@)?([^@]*)|tel:(.*)", re.DOTALL | re.IGNORECASE)
#: What FreeSWITCH takes for the user of a From that has none.
_NOBODY = "nobody"
_AFTER_HOST = re.compile(r"(?::[0-9]*)?(?:;.*)?\Z", re.DOTALL)
_GOES_ON = re.compile(r"[A-Za-z0-9+._-]")
_LENGTH = re.compile(rb"[0-9]{1,9}")
#: Parameters of From that FreeSWITCH writes over what its parser found (sip_from_user and its like), wherever they
#: seem to stand. What ``user`` may be in a URI (RFC 3261 section 19.1.1) is no user of anybody's.
_OVERWRITES = re.compile(r";\s*(?:host|display|user(?!\s*=\s*(?:phone|ip|dialstring)\b))\s*(?:=|;|\Z)", re.IGNORECASE)
#: What ends a variable, a quote or a word of a command, or begins a variable's name.
_NOT_IN_A_NAME = re.compile(r"[\x00-\x1f\x7f;'\"\\<>${}]")


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: its own headers, and what it carries.

    Attributes:
        headers: Of the frame, by lower-case name.
        body: As it was sent.
    """

    headers: dict[str, str]
    body: bytes = b""

    @property
    def kind(self) -> str:
        """Its Content-Type."""
        return self.headers.get("content-type", "")

    def event(self) -> dict[str, str]:
        """What we read of the event that a ``text/event-plain`` frame carries, by name as FreeSWITCH writes it."""
        return parse_headers(self.body.partition(b"\n\n")[0], fold=False, wanted=_WANTED)


@dataclass(slots=True)
class Reader:
    """Cuts a byte stream into frames, however it arrives.

    Raises (from ``feed``):
        PeerProtocolError: A block over the limits or a length that is no number; close the connection.
    """

    _buffer: bytearray = field(default_factory=bytearray)
    _headers: dict[str, str] | None = None
    _wanted: int = 0

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes, give the frames that are complete now."""
        self._buffer += data
        frames = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    @property
    def pending(self) -> bool:
        """Whether the stream ended inside a frame, if it ended here."""
        return bool(self._buffer) or self._headers is not None

    def _next(self) -> Frame | None:
        if self._headers is None:
            while self._buffer.startswith(b"\n"):
                del self._buffer[:1]
            end = self._buffer.find(b"\n\n", 0, MAX_HEADER_BYTES + 2)
            if end < 0:
                if len(self._buffer) > MAX_HEADER_BYTES:
                    raise PeerProtocolError(f"an event socket header block of more than {MAX_HEADER_BYTES} bytes")
                return None
            block = bytes(self._buffer[:end])
            del self._buffer[: end + 2]
            self._headers = parse_headers(block)
            self._wanted = _length(self._headers.get("content-length"))
        if len(self._buffer) < self._wanted:
            return None
        frame = Frame(self._headers, bytes(self._buffer[: self._wanted]))
        del self._buffer[: self._wanted]
        self._headers, self._wanted = None, 0
        return frame


def _length(text: str | None) -> int:
    if text is None:
        return 0
    if not _LENGTH.fullmatch(text.encode()) or int(text) > MAX_BODY_BYTES:
        raise PeerProtocolError(f"an event socket body of {text[:20]!r} bytes")
    return int(text)


#: The headers of an event that are read. It has more than a hundred, and decoding them all is a quarter of what a
#: call costs the handler.
_WANTED = frozenset(
    b"""Event-Name Event-Subclass Pbxguard-Version Unique-ID variable_pbxguard_trunk
    variable_sip_P-Asserted-Identity variable_sip_Remote-Party-ID variable_sip_h_Diversion variable_sip_call_id
    variable_sip_full_from variable_sip_from_host variable_sip_from_user variable_sip_from_display
    variable_sip_req_user variable_pbxguard_callee variable_sip_Privacy Caller-Caller-ID-Number
    Caller-Caller-ID-Name variable_sip_user_agent variable_sip_received_ip variable_sip_received_port
    variable_switch_r_sdp""".split()
)


def parse_headers(block: bytes, *, fold: bool = True, wanted: frozenset[bytes] | None = None) -> dict[str, str]:
    """Read a header block: lines first, then each value percent-decoded; the first of a name wins.

    Args:
        block: Without the empty line.
        fold: Names in lower case.
        wanted: Read these alone, by name as it was sent.
    """
    found: dict[str, str] = {}
    for line in block.split(b"\n"):
        name, colon, value = line.partition(b":")
        if not colon or (wanted is not None and name not in wanted):
            continue
        key = name.strip().decode("utf-8", "replace")
        text = unquote_to_bytes(value.strip()).decode("utf-8", "replace")
        found.setdefault(key.lower() if fold else key, text)
    return found


def command(*words: str) -> bytes:
    """One command of the event socket.

    Raises:
        ValueError: A word holds a line end, which would start a header of its own.
    """
    line = " ".join(words)
    if any(c in line for c in "\r\n\0"):
        raise ValueError("a line end in an event socket command")
    return line.encode() + b"\n\n"


def send_event(name: str, **headers: str) -> bytes:
    """The command that fires an event; an underscore in a header's name stands for a hyphen.

    Raises:
        ValueError: A value holds a line end.
    """
    lines = [f"sendevent {name}", *(f"{key.replace('_', '-')}: {value}" for key, value in headers.items())]
    return b"".join(command(line)[:-1] for line in lines) + b"\n"


def release(uuid: str) -> bytes:
    """The command that ends a channel's wait for the verdict, and nothing else that it may be at by now.

    FreeSWITCH looks first (``current_application`` is of its core's making): a verdict that is late must not cut
    short a prompt, nor a pause of the user's own dialplan. Elsewhere ``uuid_break`` gets no channel's name.

    Args:
        uuid: As ``channel_uuid`` read it; it is put into an expression.
    """
    now, given_up = (f"${{uuid_getvar({uuid} {name})}}" for name in ("current_application", GIVEN_UP_VARIABLE))
    return command("api", "expand", "uuid_break", f"${{cond('{now}{given_up}' == 'sleep_undef_' ? {uuid} : none)}}")


def channel_uuid(event: dict[str, str]) -> str:
    """The channel of an event.

    Raises:
        PeerProtocolError: There is none, or it is not one.
    """
    uuid = event.get("Unique-ID", "")
    if not _UUID.fullmatch(uuid):
        raise PeerProtocolError("an event without a channel")
    return uuid


def _caller(event: dict[str, str]) -> str:
    """The user part of From's URI, without display name and parameters, which may hold another one in quotes.

    FreeSWITCH does not encode a ``%`` that the caller wrote, so an encoded quote or bracket of his cannot be told
    from a real one. What is read here must therefore be what FreeSWITCH's own parser found before that: its user,
    which it cuts at the first character that is odd, and its host.
    """
    sender = event.get("variable_sip_full_from", "")
    found = _NAME_ADDR.match(sender)
    uri = (found[1] if found else sender.partition(";")[0])[-200:]
    parts = _URI.fullmatch(uri)
    if parts is None:
        return unread(f"<{uri}>")
    user, host, tel = parts.groups("")
    if not tel and event.get("variable_sip_from_host", "") != _AFTER_HOST.sub("", host):
        return unread(f"<{uri}>")
    if _OVERWRITES.search(sender):
        return unread(f"<{uri}>")
    user, known = user or tel, event.get("variable_sip_from_user", "")
    if not user and known in ("", _NOBODY):
        return ""
    # The parameters in its user are those that it may leave out of the whole.
    known = known.partition(";")[0]
    # Decoded once or, where FreeSWITCH has decoded it before the event did, twice.
    if not any(text.startswith(known) and not _GOES_ON.match(text, len(known)) for text in (user, unquote(user))):
        return unread(f"<{uri}>")
    return one_spelling(user)


def call_from_esl(event: dict[str, str], trunk: Trunk, at: datetime) -> Call:
    """The call that a screening event describes; every value is bounded.

    The callee is ``pbxguard_callee``, which a dialplan sets where it is not the one of the INVITE.
    """

    def text(name: str, limit: int = 200) -> str:
        return event.get(name, "")[:limit]

    diversion = event.get("variable_sip_h_Diversion", "")[-400:]
    # Not sip_from_user: FreeSWITCH decodes it and cuts it at the first odd character.
    cli = _caller(event)
    return Call(
        call_id=text("variable_sip_call_id"),
        at=at,
        trunk=trunk,
        cli=cli,
        callee=text("variable_pbxguard_callee", 64) or text("variable_sip_req_user", 64),
        display_name=text("variable_sip_from_display", 64),
        asserted=asserted_user(
            event.get("variable_sip_P-Asserted-Identity", "")[-200:],
            event.get("variable_sip_Remote-Party-ID", "")[-200:],
            account=cli if trunk.kind == "sim_gateway" else None,
        ),
        diverted_by=diverted_by(diversion),
        user_agent=text("variable_sip_user_agent", 60),
        source=f"{text('variable_sip_received_ip', 45)}:{text('variable_sip_received_port', 5)}",
        has_offer=bool(event.get("variable_switch_r_sdp")),
    )


def _word(treatment: Treatment) -> str:
    """What the dialplan branches on."""
    if not treatment.connect:
        return "block"
    return "withhold" if treatment.withhold else "allow"


def shown_variables(event: dict[str, str], call: Call, verdict: Verdict) -> dict[str, str]:
    """The caller's number and name for the callee's telephone, where FreeSWITCH would show others; else nothing.

    FreeSWITCH shows what Remote-Party-ID, P-Asserted-Identity or P-Preferred-Identity says, whoever wrote it.
    """
    rpid = event.get("variable_sip_Remote-Party-ID", "")[-200:]
    kept_back = private(event.get("variable_sip_Privacy", "")[:100], rpid)
    number = number_shown(call.cli, verdict.basis.cli, kept_back=kept_back)
    name = call.display_name or number
    if (event.get("Caller-Caller-ID-Number", ""), event.get("Caller-Caller-ID-Name", "")) == (number, name):
        return {}
    return {"pbxguard_number": number, "pbxguard_name": _NOT_IN_A_NAME.sub("", name).strip() or number}


def verdict_variables(
    verdict: Verdict, treatment: Treatment, shown: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """The channel variables of a verdict; none holds ``;``, a quote or a line end.

    All are of our own making but *shown*, which is what ``shown_variables`` says.
    """
    says = [f"{language}/{treatment.prompt}.wav" for language in treatment.languages if treatment.prompt]
    phrases = {
        433: "Anonymity Disallowed",
        480: "Temporarily Unavailable",
        603: "Decline",
        607: "Unwanted",
        608: "Rejected",
    }
    values = {
        "pbxguard_reason": str(verdict.reason),
        "pbxguard_labels": "+".join(verdict.labels),
        "pbxguard_display": treatment.display,
        "pbxguard_status": f"{treatment.status} {phrases.get(treatment.status, 'Declined')}"
        if treatment.status
        else "",
        "pbxguard_mode": treatment.mode,
        "pbxguard_say1": says[0] if says else "",
        "pbxguard_say2": says[1] if len(says) > 1 else "",
        "pbxguard_call_info": treatment.call_info,
        **(shown if treatment.connect and not treatment.withhold else {}),
        # A text of ours stands in for the caller's name everywhere: the name may pose as one.
        **({"pbxguard_name": treatment.display} if treatment.display and "pbxguard_name" in shown else {}),
        # Last: the dialplan looks for this one.
        VERDICT_VARIABLE: f"{VERSION}-{_word(treatment)}",
    }
    return {name: "" if any(c in value for c in ";\r\n\0'\\") else value for name, value in values.items() if value}
