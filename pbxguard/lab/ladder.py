"""Draws the SIP messages of a call as a ladder of text, for a terminal or a file of evidence.

Knows messages and the names of addresses; does not judge a call. Pure: values in, text out.
"""

import unicodedata
from collections.abc import Mapping, Sequence

from pbxguard.lab.wire import Address, SipMessage

__all__ = ["actor_name", "actors_of", "label", "ladder", "note", "printable"]

MAX_MESSAGES = 500
LONGEST_NAME, LONGEST_LABEL, LONGEST_NOTE = 20, 30, 72
# label, its two spaces of line on each side and the arrow head
GAP = LONGEST_LABEL + 6


def ladder(messages: Sequence[SipMessage], names: Mapping[str, str]) -> str:
    """One line a message: milliseconds since the first, and an arrow between the columns of its two actors.

        12.4 ms  │──INVITE (SDP)──────────▶│                         │  From: <sip:+85261234567@198.18.1.2>

    Text of a peer is made printable and cut, so it can neither move the cursor nor break the columns.

    Args:
        messages: Of one or several legs, in order of time.
        names: Actor by address (``198.18.1.2``, or ``127.0.0.1:5061`` where one address has several); an
            address without a name stands for itself. Columns keep the order of first appearance.
    """
    shown = messages[:MAX_MESSAGES]
    if not shown:
        return "(no SIP messages)\n"
    actors = actors_of(shown, names)
    lines = [" " * 14 + "".join(_pad(name, GAP + 1) for name in actors).rstrip()]
    for message in shown:
        begin, end = (actors.index(actor_name(a, names)) for a in (message.source, message.destination))
        row = _row(len(actors), begin, end, label(message))
        extra = note(message)
        lines.append(f"{(message.at - shown[0].at) * 1000:10.1f} ms {row}{'  ' + extra if extra else ''}".rstrip())
    if len(messages) > len(shown):
        lines.append(f"({len(messages) - len(shown)} more messages)")
    return "\n".join(lines) + "\n"


def actors_of(messages: Sequence[SipMessage], names: Mapping[str, str]) -> list[str]:
    """The names of senders and receivers, in the order of their first appearance."""
    return list(dict.fromkeys(actor_name(a, names) for m in messages for a in (m.source, m.destination)))


def printable(text: str, width: int) -> str:
    r"""The text in at most so many terminal cells, with everything escaped that does not simply print.

    Control characters, line ends, bidirectional overrides, unassigned code points and marks that combine with
    their neighbours become ``\x1b`` or ``\u202e``.
    """
    cells = 0
    shown: list[str] = []
    for character in text[: width + 1]:
        plain = character == " " or (
            character.isprintable() and unicodedata.category(character)[0] not in "CM" and character != "\\"
        )
        piece = character if plain else _escape(character)
        size = _cells(piece)
        if cells + size > width:
            while shown and cells + 1 > width:
                cells -= _cells(shown.pop())
            return "".join(shown) + "…"
        shown.append(piece)
        cells += size
    return "".join(shown)


def _escape(character: str) -> str:
    point = ord(character)
    if character == "\\":
        return "\\\\"
    if point < 0x100:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def _cells(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _cells(text))


def actor_name(address: Address, names: Mapping[str, str]) -> str:
    """What an address is called."""
    return printable(names.get(str(address)) or names.get(address.ip) or address.ip, LONGEST_NAME)


def label(message: SipMessage) -> str:
    """What the message is, in a few words: method or status, with or without SDP, sent again."""
    marks = (" (SDP)" if message.media else "") + (" again" if message.repeated else "")
    what = message.method if message.status is None else f"{message.status} {message.reason_phrase}".rstrip()
    return printable(what, LONGEST_LABEL - len(marks)) + marks


def note(message: SipMessage) -> str:
    """What decides or explains the call: who calls, and why it was refused."""
    if message.status is None and message.method == "INVITE":
        return printable(f"From: {message.header('from') or ''}", LONGEST_NOTE)
    reason = message.header("reason")
    return printable(f"Reason: {reason}", LONGEST_NOTE) if reason else ""


def _row(columns: int, begin: int, end: int, label: str) -> str:
    if begin == end:
        cells = [f" ↺ {label}" if column == begin else "" for column in range(columns)]
        return "".join("│" + _pad(cell, GAP) for cell in cells).rstrip()
    left, right = min(begin, end), max(begin, end)
    span = (right - left) * (GAP + 1) - 1
    line = "─" * (span - _cells(label) - 3)
    arrow = f"──{label}{line}▶" if begin < end else f"◀{line}{label}──"
    before = ("│" + " " * GAP) * left
    after = (" " * GAP).join("│" * (columns - right))
    return f"{before}│{arrow}{after}"
