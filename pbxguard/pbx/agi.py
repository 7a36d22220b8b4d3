"""FastAGI as bytes and values: what Asterisk asks, and the one line it is told. No I/O.

The request line is the only trustworthy part of a request. Asterisk writes it before anything of the caller's,
from the dialplan, where every value is URI-encoded. The lines after it hold caller text as it is: a From user
with ``%0A`` ends a line there, and ``%0A%0A`` ends the block (``setup_env`` in res_agi.c prints the caller ID
unescaped). So nothing after the request line is ever read as data.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import parse_qs, urlsplit

from pbxguard.errors import PeerProtocolError
from pbxguard.pbx.address import asserted_user, caller_user, diverted_by, number_shown, private
from pbxguard.screening.call import Call, Trunk, Verdict
from pbxguard.screening.treatment import Treatment

#: The most that Asterisk may send before its empty line. Its dialplan buffers hold 4 KiB a value, and a plain
#: request is about 1.5 KiB.
MAX_HEADER_BYTES = 16 * 1024

#: The most reply lines that are skipped while waiting for the status line: the rest of a header block that a
#: caller cut short with ``%0A%0A`` (about 25 lines), with room.
MAX_REPLY_LINES = 64

#: Version of the query and of the packed verdict; the dialplan checks the first field of the latter.
VERSION = "1"

#: The variable that the dialplan branches on.
VERDICT_VARIABLE = "PBXGUARD_VERDICT"

_REQUEST = re.compile(rb"\A(?:agi_network[^\r\n]*\n){0,2}agi_request: (agi://[^\r\n]*)\n")
_STATUS = re.compile(rb"\A(\d{3})[ -]")

# SIP-I carries the SDP beside the ISUP in a multipart body (RFC 3204).
_OFFER = re.compile(r"sdp|multipart", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class AgiRequest:
    """One FastAGI request: the script name and its query, percent-decoded, from the request line only."""

    script: str
    query: dict[str, str]


def parse_request(block: bytes) -> AgiRequest:
    """Read a header block.

    Args:
        block: What Asterisk sent, up to and including the empty line; at most ``MAX_HEADER_BYTES``.

    Raises:
        PeerProtocolError: It does not start as Asterisk starts it (``agi_network``, ``agi_network_script``,
            ``agi_request``), or the request is no URL.
    """
    if len(block) > MAX_HEADER_BYTES:
        raise PeerProtocolError(f"FastAGI header block of more than {MAX_HEADER_BYTES} bytes")
    found = _REQUEST.match(block)
    if found is None:
        raise PeerProtocolError("FastAGI request does not start with an agi_request line")
    try:
        url = urlsplit(found[1].decode("ascii", "replace"))
        query = parse_qs(url.query, keep_blank_values=True, errors="replace", max_num_fields=40)
    except ValueError as error:
        raise PeerProtocolError("FastAGI request line is not a URL") from error
    # The first value wins: whatever the dialplan wrote stands before anything that could be appended.
    return AgiRequest(url.path.lstrip("/"), {name: values[0] for name, values in query.items()})


def reply_status(line: bytes) -> int | None:
    """The status of a reply line (``200 result=1`` -> 200), or None for a line that is not a reply."""
    found = _STATUS.match(line)
    return int(found[1]) if found else None


def is_usage_start(line: bytes) -> bool:
    """Whether *line* starts a multi-line 520 reply, which ends at ``520 End of proper usage.``."""
    return line.startswith(b"520-")


def set_variable(name: str, value: str) -> str:
    """The command ``SET VARIABLE``, quoted.

    Raises:
        ValueError: The name is not a plain word, or the value holds a line end, which would start another
            command.
    """
    if not name.isidentifier():
        raise ValueError(f"not a variable name: {name!r}")
    if any(c in value for c in "\r\n\0"):
        raise ValueError("a line end in an AGI argument")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'SET VARIABLE {name} "{escaped}"'


def call_from_agi(request: AgiRequest, trunk: Trunk, at: datetime) -> Call:
    """The call that a request describes. Every value is bounded; missing ones are empty.

    Query names: ``from`` is a URI or name-addr as pjsip prints it, its escapes decoded once (``CHANNEL(pjsip,
    remote_uri)``); ``pai`` and ``rpid`` are as they were on the wire, ``div`` one or more Diversion values,
    ``callee`` the dialled extension, ``offer`` the Content-Type of the INVITE's body.
    """
    query = request.query

    def text(name: str, limit: int = 200) -> str:
        return query.get(name, "")[:limit]

    cli = caller_user(text("from", 400)) if "from" in query else text("cli")
    return Call(
        call_id=text("call_id"),
        at=at,
        trunk=trunk,
        cli=cli,
        callee=text("callee"),
        display_name=text("name", 80),
        asserted=asserted_user(
            text("pai"), text("rpid"), account=cli if trunk.kind == "sim_gateway" else None, raw=True
        ),
        diverted_by=diverted_by(text("div", 400), raw=True),
        user_agent=text("ua", 100),
        source=text("source", 64),
        has_offer="offer" not in query or _OFFER.search(text("offer", 100)) is not None,
    )


def number_to_show(request: AgiRequest, call: Call, verdict: Verdict) -> str:
    """The number for the callee's telephone; "" where the message names one caller only, as the PBX shows him.

    Asterisk takes the caller's number from an asserted identity where the endpoint has ``trust_id_inbound``, and from
    From else; the guard may have judged the other one.
    """
    query = request.query
    if not (query.get("pai") or query.get("rpid")):
        return ""
    kept_back = private(query.get("privacy", "")[:100], query.get("rpid", "")[:200])
    return number_shown(call.cli, verdict.basis.cli, kept_back=kept_back)


def pack_verdict(verdict: Verdict, treatment: Treatment, number: str = "") -> str:
    """The one variable that the dialplan gets, fields split by ``|``.

    ``version|allow, withhold or block|status|mode|first prompt|second prompt|reason|labels|display|number``; a
    prompt is ``<language>/<name>``, and ``withhold`` is to connect without the CLI. Every field is of our own making,
    or of ``number_to_show``; a display text with ``|`` or a line end is a pack error and is left out.
    """
    says = [f"{language}/{treatment.prompt}" for language in treatment.languages if treatment.prompt]
    display = treatment.display
    if any(c in display for c in '|"\\\r\n'):
        display = ""
    fields = (
        VERSION,
        ("withhold" if treatment.withhold else "allow") if treatment.connect else "block",
        "" if treatment.status is None else str(treatment.status),
        treatment.mode,
        says[0] if says else "",
        says[1] if len(says) > 1 else "",
        verdict.reason,
        ";".join(verdict.labels),
        display,
        number if treatment.connect and not treatment.withhold else "",
    )
    return "|".join(fields)
