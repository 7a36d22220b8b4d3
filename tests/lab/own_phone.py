"""An engineer's own telephone on this host: a small SIP client of its own, which registers and meets an INVITE."""

import hashlib
import re
import secrets
import socket
import threading
from types import TracebackType
from typing import Self

from pbxguard.lab import topology
from pbxguard.lab.world import World

#: What it does with an INVITE, and with the CANCEL of it.
SILENT, BUSY, RINGS = "silent", "busy", "rings"


class OwnPhone:
    """Registered under one of the free accounts while it is open, from a UDP port of its own.

    Args:
        behaviour: ``SILENT`` answers nothing, ``BUSY`` 486, ``RINGS`` 180 and no more.

    Attributes:
        address: Where it is reached, as ``198.18.1.1:40000``.
        invites: Call-IDs of the INVITEs that came.
    """

    def __init__(self, world: World, number: str, behaviour: str = BUSY) -> None:
        self._server = str(world.net.pbx_access)
        self._password = world.passwords.phones[number]
        self.number = number
        self.behaviour = behaviour
        self.invites: list[str] = []
        self._registered = threading.Event()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect((self._server, topology.SIP_PORT))
        self._socket.settimeout(0.2)
        self.address = "{}:{}".format(*self._socket.getsockname())
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._call_id, self._cseq = secrets.token_hex(8), 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._register("")
        assert self._registered.wait(20), f"{self.number} was not registered"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """End as a program that is killed: the registrar is told nothing."""
        self._closed.set()
        self._thread.join(10)
        self._socket.close()

    def dial(self, number: str) -> None:
        """Send an INVITE for that number, once, and leave its answers be."""
        self._send("INVITE", f"sip:{number}@{self._server}", secrets.token_hex(8), 1, number)

    def _register(self, authorization: str) -> None:
        self._cseq += 1
        extra = f"Expires: 60\r\n{authorization}"
        self._send("REGISTER", f"sip:{self._server}", self._call_id, self._cseq, self.number, extra)

    def _send(self, method: str, uri: str, call_id: str, cseq: int, callee: str, extra: str = "") -> None:
        sender = f"<sip:{self.number}@{self._server}>"
        via = f"SIP/2.0/UDP {self.address};rport;branch=z9hG4bK{secrets.token_hex(8)}"
        self._socket.send(
            f"{method} {uri} SIP/2.0\r\nVia: {via}\r\n"
            f"Max-Forwards: 70\r\nFrom: {sender};tag={self._call_id}\r\nTo: <sip:{callee}@{self._server}>\r\n"
            f"Call-ID: {call_id}\r\nCSeq: {cseq} {method}\r\nContact: <sip:{self.number}@{self.address}>\r\n"
            f"{extra}Content-Length: 0\r\n\r\n".encode()
        )

    def _serve(self) -> None:
        while not self._closed.is_set():
            try:
                text = self._socket.recv(65536).decode(errors="replace")
            except (TimeoutError, ConnectionError):
                continue
            if text.startswith("SIP/2.0 401") and "REGISTER" in text:
                self._register(self._answer(text))
            elif text.startswith("SIP/2.0 200") and "REGISTER" in text:
                self._registered.set()
            elif text.startswith("INVITE "):
                self.invites.append(_value(text, "Call-ID"))
                if self.behaviour != SILENT:
                    self._reply(text, "486 Busy Here" if self.behaviour == BUSY else "180 Ringing")
                self._invite = text
            elif text.startswith("CANCEL ") and self.behaviour != SILENT:
                self._reply(text, "200 OK")
                self._reply(self._invite, "487 Request Terminated")

    def _answer(self, challenge: str) -> str:
        """The Authorization of RFC 2617 section 3.2.2, with the qop that the registrar asks for."""
        told = dict(re.findall(r'(\w+)="([^"]*)"', _value(challenge, "WWW-Authenticate")))
        uri, nonce = f"sip:{self._server}", secrets.token_hex(4)

        def digest(text: str) -> str:
            return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

        ours, asked = digest(f"{self.number}:{told['realm']}:{self._password}"), digest(f"REGISTER:{uri}")
        response = digest(f"{ours}:{told['nonce']}:00000001:{nonce}:auth:{asked}")
        opaque = f', opaque="{told["opaque"]}"' if "opaque" in told else ""
        return (
            f'Authorization: Digest username="{self.number}", realm="{told["realm"]}", nonce="{told["nonce"]}", '
            f'uri="{uri}", response="{response}", algorithm=MD5, cnonce="{nonce}", qop=auth, nc=00000001{opaque}\r\n'
        )

    def _reply(self, request: str, status: str) -> None:
        head = "".join(
            f"{line}{';tag=own' if line.startswith('To:') and 'tag=' not in line else ''}\r\n"
            for line in request.split("\r\n\r\n", maxsplit=1)[0].split("\r\n")
            if line.startswith(("Via:", "From:", "To:", "Call-ID:", "CSeq:"))
        )
        self._socket.send(f"SIP/2.0 {status}\r\n{head}Content-Length: 0\r\n\r\n".encode())


def _value(text: str, header: str) -> str:
    found = re.search(rf"^{header}: *(.*?)\r?$", text, re.MULTILINE)
    return found[1] if found else ""
