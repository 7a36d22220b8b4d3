"""What a GSM telephone can dial, for calls and texts alike. Knows nothing of numbering plans, SIP or who wrote it.

Other rules are other questions, and stay where they are: what of a sender's name fits into a field of the SMS
protocol (``protocol.clean_number``: "CMCC" keeps its letters), what is a SIM's own number (``commands``, ``sims``: a
plus and digits, as HLRs have them), and what a site makes of a caller's number (``callerid``).
"""

import re

__all__ = ["CHARACTERS", "MAX_TEXT_NUMBER", "dialled", "is_dialable"]

#: Digits, * and # of the keypad, and the plus of an international number (3GPP TS 27.007 section 6.2). The gateway's
#: dialplan filters by them too, because there a number stands in a URL and in an AMI event before it gets here.
CHARACTERS = "0123456789*#+"
#: The longest number that a text can go to, its plus not counted.
MAX_TEXT_NUMBER = 32
_DIALABLE = re.compile(r"\+?[0-9*#]+")


def is_dialable(number: str, longest: int) -> bool:
    """Whether it can be dialled as it stands; *longest* does not count a leading plus."""
    return _DIALABLE.fullmatch(number) is not None and len(number.removeprefix("+")) <= longest


def dialled(number: str) -> str:
    """What is left of it for a keypad: ``+86 139-5710`` as +861395710."""
    return "".join(character for character in number if character in CHARACTERS)
