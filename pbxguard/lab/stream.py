"""SIP over TCP: from segments as they were captured to whole messages (RFC 3261 section 18.3).

Knows sequence numbers and where a message ends; does not know what is in a message (``wire``), nor who sent it.
A capture mostly begins in the middle of a connection, and may lack packets: what cannot be put together is left
out, and reading goes on at the next start line. Everything was written by a peer, so nothing is kept without bound.
"""

import re
from collections.abc import Iterator

#: Of one message; what is longer is not kept.
MAX_HEAD, MAX_BODY = 65536, 65536
#: Segments that wait for an earlier one, and seconds that they do; then the earlier one is missing in the capture.
_WAITING, _PATIENCE_S = 64, 1.0
#: A start line is no longer than this.
_START = 8192

_END = re.compile(rb"\r?\n\r?\n")
_LENGTH = re.compile(rb"^(?:content-length|l)[ \t]*:[ \t]*([0-9]{1,9})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_FIRST_LINE = re.compile(rb"(?:SIP/2\.0 [1-6][0-9]{2}(?: [^\r\n]*)?|[A-Z]{2,20} [^\r\n]{1,4096} SIP/2\.0)\r?\n")
_BLANK = re.compile(rb"[\r\n]*")
_SEQUENCES = 1 << 32


class Framer:
    """Cuts a stream of bytes into SIP messages, however it is fed."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._searched = 0  # up to where there is no end of a head
        self._size = 0  # of the message that is under way, once its head is there
        self._skip = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are complete with *data*, in order."""
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        self._data += data[skipped:]
        found = []
        while (message := self._next()) is not None:
            found.append(message)
        return found

    def gap(self) -> None:
        """Bytes are missing here: the message that was under way is given up."""
        self._data.clear()
        self._searched = self._size = self._skip = 0

    def _next(self) -> bytes | None:
        while not self._size:
            if not self._searched and not self._starts():
                return None
            head = _END.search(self._data, max(0, self._searched - 3), MAX_HEAD)
            if head is not None:
                # It must be there over TCP; a message without is taken to have no body.
                length = _LENGTH.search(self._data, 0, head.end())
                body = int(length[1]) if length else 0
                self._size = head.end() + (body if body <= MAX_BODY else 0)
                self._skip = body if body > MAX_BODY else 0
            elif len(self._data) < MAX_HEAD:
                self._searched = len(self._data)
                return None
            else:
                self.gap()  # whoever sends this is not worth a search for more
        if len(self._data) < self._size:
            return None
        message = bytes(self._data[: self._size])
        gone = min(self._skip, len(self._data) - self._size)
        del self._data[: self._size + gone]
        self._skip -= gone
        self._searched = self._size = 0
        return message

    def _starts(self) -> bool:
        """Whether the data begins with a start line now that all before one is dropped."""
        while True:
            # Keep-alives between messages (RFC 5626 section 3.5.1)
            del self._data[: _BLANK.match(self._data).end()]  # type: ignore[union-attr]  # matches nothing too
            if b"\n" not in self._data and len(self._data) < _START:
                return False
            if _FIRST_LINE.match(self._data):
                return True
            self._drop_line()

    def _drop_line(self) -> None:
        line = self._data.find(b"\n") + 1
        del self._data[: line or len(self._data)]
        self._searched = 0


class Direction:
    """What one end of a TCP connection sent, put in order by its sequence numbers (RFC 9293 section 3.4)."""

    def __init__(self) -> None:
        self._framer = Framer()
        self._next: int | None = None
        self._waiting: dict[int, tuple[bytes, int, float]] = {}

    def segment(self, at: float, sequence: int, data: bytes, *, length: int, begins: bool = False) -> Iterator[bytes]:
        """The messages that are complete with this segment.

        Args:
            at: When it was captured, seconds.
            sequence: Number of its first byte.
            data: What was captured of it.
            length: How much there was of it.
            begins: It has SYN: a new connection between the same addresses.
        """
        if begins:
            self._framer = Framer()
            self._waiting.clear()
            self._next = (sequence + 1) % _SEQUENCES
            return
        if not length:
            return  # an acknowledgement
        if self._next is None:
            self._next = sequence
        self._waiting.setdefault(sequence, (data[:length], length, at))
        yield from self._in_order()
        oldest = min((when for _, _, when in self._waiting.values()), default=at)
        if len(self._waiting) > _WAITING or at - oldest > _PATIENCE_S:
            yield from self.rest()

    def rest(self) -> Iterator[bytes]:
        """The messages behind what is missing for good."""
        while self._waiting:
            here = self._next or 0
            self._next = min(self._waiting, key=lambda sequence: (sequence - here) % _SEQUENCES)
            self._framer.gap()
            yield from self._in_order()

    def _in_order(self) -> Iterator[bytes]:
        while (found := self._first()) is not None:
            sequence, offset = found
            data, length, _ = self._waiting.pop(sequence)
            if offset >= length:
                continue  # sent again, or seen twice
            yield from self._framer.feed(data[offset:])
            if len(data) < length:
                self._framer.gap()
            self._next = (sequence + length) % _SEQUENCES

    def _first(self) -> tuple[int, int] | None:
        """A waiting segment that begins at or before what comes next, and how far before."""
        for sequence in self._waiting:
            offset = ((self._next or 0) - sequence) % _SEQUENCES
            if offset < _SEQUENCES // 2:
                return sequence, offset
        return None
