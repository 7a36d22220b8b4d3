"""SIP addresses as a PBX hands them on: whose number they name. No I/O; every string is the caller's."""

import re

_URI = re.compile(r"(?:sips?:([^@>]*)@|tel:([^>?]*))", re.IGNORECASE)
_HOST_ONLY = re.compile(r"sips?:[^@]*\Z", re.IGNORECASE)  # a URI needs no user part (RFC 3261 section 25.1)
_CUT = "\N{HORIZONTAL ELLIPSIS}"


def uri_user(address: str) -> str:
    """The user part of a name-addr (``"name" <sip:user@host>``, ``<tel:number>``), as on the wire; "" without one.

    The last ``<`` counts: a display name may hold another URI, a URI cannot hold ``<``. Percent signs stay:
    decoding is what turns hostile text into a number (``numbering`` refuses them).
    """
    found = _URI.match(address.rpartition("<")[2])
    return "" if found is None else found[1] or found[2] or ""


def caller_user(address: str) -> str:
    """The user part of From; of an address that is no URI, something that no rule takes for a number.

    The dialplan keeps the end of a long address, so a caller who pads the user part would else count as one
    who shows no number at all, which an interconnect lets through.
    """
    uri = address.rpartition("<")[2]
    cut = ">" in address and "<" not in address
    if address and (cut or not (_URI.match(uri) or _HOST_ONLY.match(uri))):
        return _CUT + address
    return uri_user(address)


def asserted_user(pai: str, rpid: str) -> str | None:
    """The user part of what the network says of the caller: P-Asserted-Identity, else Remote-Party-ID, else None.

    Of Remote-Party-ID (draft-ietf-sip-privacy-04) only one about the caller counts, and not one of which its sender
    says that nobody verified it (``screen=no``): that is no more than From. Who sent it is judged elsewhere.
    """
    if pai:
        # FreeSWITCH hands on the user part alone.
        return (uri_user(pai) if ":" in pai or "<" in pai else pai) or None
    said = rpid.rpartition(">")[2].lower().replace(" ", "").split(";")
    if not rpid or "screen=no" in said or "party=called" in said:
        return None
    return uri_user(rpid) or None


def diverted_by(values: str) -> tuple[str, ...]:
    """Users of Diversion values, the original callee first: RFC 5806 section 4 puts the newest one first."""
    users = [user for part in values.split(",") if (user := uri_user(part))]
    return tuple(users[::-1][:2])
