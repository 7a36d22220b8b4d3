"""The texts of a gateway at work: what reaches a SIM goes to SIP as MESSAGE, a MESSAGE goes out by a SIM.

Knows the form of those MESSAGEs and how a text gets through AMI; the SMS/control protocol is ``control``'s, the pages
are ``web``'s, the mobile network is ``mobile``'s, and calls are ``gateway``'s, which knows nothing of this module.

A text that reaches a SIM goes to the "SMS Forward Number" of its line as the vendor's manual has it (GoIP User
Manual, appendix "SMS To VoIP"): text/plain, From is the line's account, and the number of the GSM sender is the first
line of the body, the text what follows. That the two are parted by one line feed is assumed, and so is the other way:
the user of the Request-URI is the number that the text goes to.
"""

import base64
import binascii
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Self
from urllib.parse import unquote_to_bytes

from pbxguard.lab.ami import Fields
from pbxguard.lab.goip.control import Device
from pbxguard.lab.goip.dialling import MAX_TEXT_NUMBER, dialled, is_dialable
from pbxguard.lab.goip.endpoint import Timing
from pbxguard.lab.goip.gateway import Gateway
from pbxguard.lab.goip.mobile import Arrived, Happened, MobileNetwork, Text
from pbxguard.lab.goip.protocol import Identity, clean_number
from pbxguard.lab.goip.web import WEB_USER, Web

__all__ = ["Texts", "forwarded", "read_forwarded"]

#: A line of AMI has 1024 bytes at most, its name included; five pieces hold the longest text and its sender.
_PIECE, _PIECES = 660, 5
_NO_PIECE = "AA=="
#: Texts from SIP that are kept to be looked at.
_KEPT = 1000


class Texts:
    """The texts of a gateway while the SMS/control protocol and the pages are around its lines.

    Attributes:
        gateway: The gateway.
        device: Its lines at the SMS server.
        web: Its pages.
        from_sip: Texts that came as MESSAGE, with the lab's own tag of each.
    """

    def __init__(self, gateway: Gateway, device: Device, web: Web) -> None:
        self.gateway, self.device, self.web = gateway, device, web
        self.from_sip: deque[tuple[str, Text]] = deque(maxlen=_KEPT)
        self._forward: dict[int, tuple[str, str]] = {}
        device.watch(self._on_text)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, gateway: Gateway, *, server: str, listen: str, http: str, password: str, user: str = WEB_USER,
        ids: str = "", network: MobileNetwork | None = None, timing: Timing | None = None,
    ) -> AsyncIterator[Self]:  # fmt: skip
        """Have protocol and pages around the lines of *gateway* in this block; texts need them.

        Args:
            gateway: At work; one such block at a time.
            server: ``HOST:PORT`` of the SMS server.
            listen: ``HOST:PORT`` of line 1, the others have the ports behind it; port 0 for any.
            http: ``HOST:PORT`` of the pages.
            password: Of every line, and of the pages.
            user: Of the pages.
            ids: Line 2 says ``IDS-2``; the gateway's name unless given.
            network: What texts end in.
            timing: Of the protocol.

        Raises:
            BadInput: An address is outside the lab.
            ServiceUnavailable: An address is taken, or not of this machine.
        """
        lines = gateway.box.lines
        identities = [Identity(f"{ids or gateway.name}-{line.number}", password) for line in lines]
        device = Device(
            gateway.box, network or MobileNetwork(), identities, server=server, listen=listen, timing=timing
        )
        web = Web(device, http, user, password)
        texts = cls(gateway, device, web)
        async with device, web:
            with gateway.hearing("UserEvent", texts._on_message):
                yield texts

    @contextmanager
    def forwarding(self, line: int, number: str, tag: str = "") -> Iterator[None]:
        """Have a line forward its texts to *number* ("SMS Forward Number") in this block.

        Args:
            line: Its number; one such block at a time for each.
            number: Who gets the MESSAGE at the SIP server; "" for nobody.
            tag: The lab's own id of the text, hex digits.
        """
        self._forward[self.gateway.box.line(line).number] = dialled(number), tag
        try:
            yield
        finally:
            self._forward.pop(line, None)

    def _on_text(self, happened: Happened) -> None:
        if not isinstance(happened, Arrived):
            return
        line = next((each for each in self.gateway.box.lines if each.sim.msisdn == happened.msisdn), None)
        number, tag = self._forward.get(line.number, ("", "")) if line is not None else ("", "")
        if line is None or not number:
            return
        body = forwarded(happened.sender, happened.body).encode("utf-8", "replace")
        body = body.replace(b"\0", b"?")  # Asterisk's end of a text
        pieces = [
            base64.b64encode(body[at : at + _PIECE]).decode() for at in range(0, len(body), _PIECE)
        ][:_PIECES]  # fmt: skip
        pieces += [_NO_PIECE] * (_PIECES - len(pieces))
        values = {f"TEXT{n}": piece for n, piece in enumerate(pieces, start=1)}
        values |= {"TEXT_ACCOUNT": self.gateway.account_of(line.number), "TEXT_TO": number, "LAB_TAG": tag}
        self.gateway.order(
            "Originate", Channel="Local/send@text-out", Application="NoOp", Timeout="10000", Async="true",
            Variable=[f"{name}={value}" for name, value in values.items()],
        )  # fmt: skip

    def _on_message(self, event: Fields) -> None:
        """A MESSAGE reached one of the accounts; a line of it sends the text, also while it has a call."""
        if event.get("UserEvent") != "GoipText":
            return
        try:
            quoted = base64.b64decode(event.get("Text", ""), validate=True)
        except binascii.Error:
            return
        whole = event.get("Length", "") == str(len(quoted))
        to, box = event.get("To", ""), self.gateway.box
        numbers = self.gateway.accounts.get(event.get("Account", ""), tuple(line.number for line in box.lines))
        lines = [line for line in map(box.line, numbers) if line.gsm_up and line.enabled]
        if not (whole and is_dialable(to, MAX_TEXT_NUMBER) and lines):
            return
        # Assumed: the manual does not say which line of an account it is.
        line = min(lines, key=lambda each: (self.device.network.busy(each.number), each.number))
        body = unquote_to_bytes(quoted).decode("utf-8", "replace")
        self.from_sip.append((event.get("Tag", ""), self.device.send(line.number, to, body, way="MESSAGE")))


def forwarded(sender: str, body: str) -> str:
    """The body of a MESSAGE about a text of that GSM sender."""
    return f"{clean_number(sender)}\n{body}"


def read_forwarded(body: str) -> tuple[str, str]:
    """Sender and text of such a body; the sender is "" where it has no second line."""
    sender, feed, text = body.partition("\n")
    return (sender, text) if feed else ("", body)
