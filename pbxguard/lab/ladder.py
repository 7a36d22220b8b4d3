"""Draws the SIP messages of a call as a ladder of text, for a terminal or a file of evidence.

Knows messages and the names of addresses; does not judge a call. Pure: values in, text out.
"""

import unicodedata
from collections.abc import Mapping, Sequence

from pbxguard.lab.wire import Address, SipMessage

__all__ = ["actor_name", "actors_of", "label", "ladder", "note", "printable"]

MAX_MESSAGES = 500
LONGEST_NAME, LONGEST_LABEL, LONGEST_NOTE = 20, 30, 72
# two cells of line on each side of a label, the arrow head, and one that is left free
_ROUND_LABEL = 6
GAP, LEAST_GAP = LONGEST_LABEL + _ROUND_LABEL, 12
_TIME = 14
#: A note with less room than this goes below its message.
_NOTE = 30


def ladder(messages: Sequence[SipMessage], names: Mapping[str, str], width: int = 0) -> str:
    """One line a message: milliseconds since the first, and an arrow between the columns of its two actors.

        12.4 ms  │──INVITE (SDP)──────────▶│                         │  From: <sip:+85261234567@198.18.1.2>

    Text of a peer is made printable and cut, so it can neither move the cursor nor break the columns.

    Args:
        messages: Of one or several legs, in order of time.
        names: Actor by address (``198.18.1.2``, or ``127.0.0.1:5061`` where one address has several); an
            address without a name stands for itself. Columns keep the order of first appearance.
        width: Cells to keep to, as far as the actors have room side by side; 0 for no limit.
    """
    shown = messages[:MAX_MESSAGES]
    if not shown:
        return "(no SIP messages)\n"
    actors = actors_of(shown, names)
    gap = _gap(actors, width)
    lines = [" " * _TIME + "".join(_pad(_cut(name, gap), gap + 1) for name in actors).rstrip()]
    for message in shown:
        begin, end = (actors.index(actor_name(a, names)) for a in (message.source, message.destination))
        row = _row(len(actors), begin, end, label(message, gap - _ROUND_LABEL), gap)
        line = f"{(message.at - shown[0].at) * 1000:10.1f} ms {row}".rstrip()
        room = width - _cells(line) - 2 if width else LONGEST_NOTE
        if not note(message):
            lines.append(line)
        elif room >= min(_NOTE, _cells(note(message))):
            lines.append(f"{line}  {note(message, min(room, LONGEST_NOTE))}")
        else:
            lines += [line, " " * _TIME + note(message, max(_NOTE, min(width - _TIME, LONGEST_NOTE)))]
    if len(messages) > len(shown):
        lines.append(f"({len(messages) - len(shown)} more messages)")
    return "\n".join(lines) + "\n"


def _gap(actors: Sequence[str], width: int) -> int:
    """Cells between two columns, so that all of them have room in that width."""
    if not width or len(actors) < 2:
        return GAP
    return max(LEAST_GAP, min(GAP, (width - _TIME - _cells(actors[-1])) // (len(actors) - 1) - 1))


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


def _cut(text: str, width: int) -> str:
    """Text that is printable already, in at most so many cells."""
    return text if _cells(text) <= width else text[: width - 1] + "…"


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _cells(text))


def actor_name(address: Address, names: Mapping[str, str]) -> str:
    """What an address is called."""
    return printable(names.get(str(address)) or names.get(address.ip) or address.ip, LONGEST_NAME)


def label(message: SipMessage, longest: int = LONGEST_LABEL) -> str:
    """What the message is, in a few words: method or status, with or without SDP, sent again."""
    marks = (" (SDP)" if message.media else "") + (" again" if message.repeated else "")
    what = message.method if message.status is None else f"{message.status} {message.reason_phrase}".rstrip()
    if longest - len(marks) < len("INVITE"):
        marks = ""
    return printable(what, longest - len(marks)) + marks


def note(message: SipMessage, longest: int = LONGEST_NOTE) -> str:
    """What decides or explains the call: who calls, and why it was refused."""
    if message.status is None and message.method == "INVITE":
        return printable(f"From: {message.header('from') or ''}", longest)
    reason = message.header("reason")
    return printable(f"Reason: {reason}", longest) if reason else ""


def _row(columns: int, begin: int, end: int, label: str, gap: int) -> str:
    if begin == end:
        cells = [f" ↺ {label}" if column == begin else "" for column in range(columns)]
        return "".join("│" + _pad(cell, gap) for cell in cells).rstrip()
    left, right = min(begin, end), max(begin, end)
    span = (right - left) * (gap + 1) - 1
    line = "─" * (span - _cells(label) - 3)
    arrow = f"──{label}{line}▶" if begin < end else f"◀{line}{label}──"
    before = ("│" + " " * gap) * left
    after = (" " * gap).join("│" * (columns - right))
    return f"{before}│{arrow}{after}"
