"""What a gateway makes of a GSM caller's number: the vendor's ``CID Prefix`` rules. Knows nothing of SIP."""

import re
from dataclasses import dataclass
from typing import Self

from pbxguard.errors import BadInput

__all__ = ["CidPrefix"]

MAX_RULES = 20
_RULE = re.compile(r"(?P<begin>[0-9+]{0,20}):(?:-(?P<less>\+?[0-9]{1,20}))?(?:\+(?P<more>\+?[0-9]{1,20}))?")


@dataclass(frozen=True, slots=True)
class CidPrefix:
    """Rules ``a:-b+c``, split by ``|``: a number that begins with *a* loses the prefix *b* and gets *c* before it.

    ``9:-9+852`` makes 85226124567 of 926124567 (GoIP User Manual, "CID Prefix"; the number of its own example has a
    digit too many), ``1:++86|0:-0++86`` E.164 of national
    numbers. The first rule that fits counts (assumed: the manual
    does not say); an empty *a* fits every number.

    Attributes:
        rules: (begins with, taken off, put before).
    """

    rules: tuple[tuple[str, str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the setting as the gateway's page has it.

        Raises:
            BadInput: A rule has another form; it is named.
        """
        parts = [part for part in text.split("|") if part]
        if len(parts) > MAX_RULES:
            raise BadInput(f"CID prefix: at most {MAX_RULES} rules, not {len(parts)}")
        rules = []
        for part in parts:
            found = _RULE.fullmatch(part)
            if found is None or not (found["less"] or found["more"]):
                raise BadInput(f"CID prefix: {part[:40]!r} has not the form a:-b+c, as in 9:-9+852")
            rules.append((found["begin"], found["less"] or "", found["more"] or ""))
        return cls(tuple(rules))

    def apply(self, number: str) -> str:
        """The number as the SIP side gets it; a withheld one ("") stays so."""
        for begin, less, more in self.rules:
            if number and number.startswith(begin):
                return more + number.removeprefix(less)
        return number
