"""How the lines of the consent ledger are chained: each carries the hash of the one before, and its own.

Knows bytes and SHA-256. Does not know where lines are kept (``ledger``) or how a ledger is checked (``audit``).

The hash of a line is SHA-256 (FIPS 180-4) over these bytes, one after the other:

1. ``pbxguard consent 1`` and a line feed (the 1 is the version of this encoding);
2. the hash of the line before, 32 bytes; 32 zero bytes for the first;
3. each of ``FIELDS`` in that order: its length in bytes in decimal, a colon, its bytes, a comma (a netstring).
   A text is in UTF-8, a time is whole microseconds since 1970 UTC in decimal, and a time that is not there
   (consent for good) is ``-,``.

No two different lines give the same bytes: every part has a fixed length or says its own.
"""

from collections.abc import Sequence
from hashlib import sha256

FIELDS = (
    "number",
    "call_class",
    "channel",
    "caller",
    "verb",
    "effective_at",
    "until",
    "recorded_at",
    "actor",
    "via",
    "evidence",
)
"""The columns of a line that are hashed, in this order; its id is not: the order is in the chain itself."""

GENESIS = bytes(32)
"""What stands for the hash before the first line, and the head of an empty ledger."""

_TAG = b"pbxguard consent 1\n"


def link(previous: bytes, values: Sequence[str | int | None]) -> bytes:
    """Give the hash of a line, 32 bytes.

    Args:
        previous: The hash of the line before, 32 bytes.
        values: The line's ``FIELDS`` as they are stored.
    """
    parts = [_TAG, previous]
    for value in values:
        if value is None:
            parts.append(b"-,")
        else:
            data = (value if type(value) is str else str(value)).encode()
            parts.append(b"%d:%b," % (len(data), data))
    return sha256(b"".join(parts)).digest()
