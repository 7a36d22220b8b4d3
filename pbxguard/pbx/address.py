"""SIP addresses as a PBX hands them on: whose number they name. No I/O; every string is the caller's."""

import re
from urllib.parse import unquote

from pbxguard.screening.numbering import Number

_URI = re.compile(r"(?:sips?:([^@>]*)@|tel:([^>?]*))", re.IGNORECASE)
_HOST_ONLY = re.compile(r"sips?:[^@]*\Z", re.IGNORECASE)  # a URI needs no user part (RFC 3261 section 25.1)
_CUT = "\N{HORIZONTAL ELLIPSIS}"

#: Characters of a user part that are kept; no number has as many.
_MOST = 200

#: What a telephone shows of whoever shows no number.
ANONYMOUS = "anonymous"

#: A From user that is no number and may be shown as it is: nothing in it means anything to a PBX.
_PLAIN = re.compile(r"[A-Za-z0-9+._-]{1,64}")
_DIGIT = re.compile(r"[0-9]")
#: What asks for an asserted identity to be kept back: Privacy (RFC 3323 section 4.2, RFC 3325 section 9.3), or the
#: privacy of a Remote-Party-ID.
_PRIVATE = re.compile(r"(?:^|[;,\s])(?:id|user)(?=$|[;,\s])", re.IGNORECASE)
#: A name and no number, nor one of those that a withheld number has.
_WITHHELD = "anonymous|unknown|unavailable|restricted|withheld|private"
_ACCOUNT = re.compile(rf"(?!{_WITHHELD})[a-z][a-z0-9._-]{{0,63}}", re.IGNORECASE)
_PRIVATE_RPID = re.compile(r";\s*privacy\s*=\s*\"?(?:full|uri)", re.IGNORECASE)

#: What pjsip does not print as it is in a user part but as ``%`` and two lower-case digits: all but unreserved and
#: user-unreserved of RFC 3261 section 25.1, the colon before a password, and the percent sign itself.
_ESCAPED = re.compile(r"[^A-Za-z0-9_.!~*'()&=+$,;?/:%-]")


def uri_user(address: str) -> str:
    """The user part of a name-addr (``"name" <sip:user@host>``, ``<tel:number>``), as on the wire; "" without one.

    The last ``<`` counts: a display name may hold another URI, a URI cannot hold ``<``.
    """
    found = _URI.match(address.rpartition("<")[2])
    return "" if found is None else found[1] or found[2] or ""


def caller_user(address: str, *, raw: bool = False) -> str:
    """The user part of From; of an address that is no URI, something that no rule takes for a number.

    The dialplan keeps the end of a long address, so a caller who pads the user part would else count as one
    who shows no number at all, which an interconnect lets through.

    Args:
        address: A name-addr, or "" for none.
        raw: As it was on the wire; else a SIP stack has decoded its escapes once, which is to be done only once.
    """
    uri = address.rpartition("<")[2]
    cut = ">" in address and "<" not in address
    if address and (cut or not (_URI.match(uri) or _HOST_ONLY.match(uri))):
        return unread(address)
    user = uri_user(address)
    return one_spelling(unquote(user) if raw else user)


def asserted_user(pai: str, rpid: str, *, account: str | None = None, raw: bool = False) -> str | None:
    """The user part of what the network says of the caller: P-Asserted-Identity, else Remote-Party-ID, else None.

    Of Remote-Party-ID (draft-ietf-sip-privacy-04) only one about the caller counts, and not one of which its sender
    says that nobody verified it (``screen=no``): that is no more than From. A GOIP gateway writes so of the GSM
    caller, with the name of its account in From (GoIP User Manual, "Use Remote Party ID"): there it counts. Who sent
    it is judged elsewhere.

    Args:
        pai: P-Asserted-Identity, a name-addr or, as FreeSWITCH hands it on, the user part alone.
        rpid: Remote-Party-ID.
        account: The user part of From, for a call of a GOIP gateway; None for one of somebody else.
        raw: As in ``caller_user``.
    """
    if pai:
        if raw or ":" in pai or "<" in pai:
            return caller_user(pai, raw=raw) or None
        return one_spelling(pai) or None
    said = rpid.rpartition(">")[2].lower().replace(" ", "").split(";")
    unverified = "screen=no" in said and not (account and _ACCOUNT.fullmatch(account))
    if not rpid or unverified or "party=called" in said:
        return None
    return caller_user(rpid, raw=raw) or None


def private(privacy: str, rpid: str) -> bool:
    """Whether the caller's network says that the callee may not see an asserted identity.

    Args:
        privacy: The value of Privacy.
        rpid: Remote-Party-ID.
    """
    return bool(_PRIVATE.search(privacy) or _PRIVATE_RPID.search(rpid))


def number_shown(presented: str, judged: Number | None, *, kept_back: bool) -> str:
    """What the callee's telephone is to show: the number that was judged, as it was on the wire, never another one.

    An asserted number is shown in place of the one in From only where From shows a number at all and nothing asks
    for privacy: who calls anonymously on a trusted trunk stays anonymous to the callee (RFC 3325 section 7).

    Args:
        presented: The user part of From (``Call.cli``).
        judged: The CLI of the verdict, or None where none was read.
        kept_back: As ``private`` says.
    """
    of_from = judged is None or judged.raw == presented[:_MOST]
    if judged is not None and judged.written and (of_from or (_DIGIT.search(presented) and not kept_back)):
        return judged.written
    return presented if of_from and _PLAIN.fullmatch(presented) else ANONYMOUS


def unread(address: str) -> str:
    """An address that nobody can read, as something that no rule takes for a number."""
    return _CUT + address


def one_spelling(user: str) -> str:
    """A user part whose escapes were decoded, in the one spelling that the calls of both PBXs have: pjsip's.

    ``%31`` is 1, and what was ``%0A`` is ``%0a`` and never a line end; ``%2531`` was decoded to ``%31`` and stays
    that, which is no number. Parameters are cut (RFC 3966 section 3).
    """
    user = user.partition(";")[0]
    spelled = _ESCAPED.sub(lambda c: "".join(f"%{byte:02x}" for byte in c[0].encode("utf-8", "replace")), user)
    return spelled[:_MOST]


def diverted_by(values: str, *, raw: bool = False) -> tuple[str, ...]:
    """Users of Diversion values, the original callee first: RFC 5806 section 4 puts the newest one first.

    Args:
        values: Of all Diversion headers, with commas.
        raw: As in ``caller_user``.
    """
    users = [user for part in values.split(",") if (user := uri_user(part))]
    return tuple(one_spelling(unquote(user) if raw else user) for user in users[::-1][:2])
