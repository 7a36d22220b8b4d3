"""The UDP SMS/control protocol of GOIP gateways: bytes <-> values, from the device's side.

Knows what is in a datagram; does not know what has to be answered (``endpoint``), and has no socket or clock. Source:
the vendor's "GOIP SMS Interface" (sections are quoted), completed from public servers where it says nothing.

Whoever reaches the port writes these datagrams: each is bounded, split as bytes before anything is decoded, and one
that is no message is None, never an exception.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from pbxguard.errors import BadInput
from pbxguard.lab.goip.dialling import MAX_TEXT_NUMBER, is_dialable

__all__ = [
    "MAX_DATAGRAM",
    "MAX_TEXT",
    "NOTICES",
    "Ack",
    "Bulk",
    "Command",
    "Done",
    "Identity",
    "KeepAlive",
    "Message",
    "Notice",
    "Password",
    "Registered",
    "Submit",
    "clean_number",
    "listed",
    "parse",
    "read_notice",
    "reply",
]

#: Longest text of a bulk session, in bytes of UTF-8 (section 3, step 1).
MAX_TEXT = 3000
#: Longest datagram that is looked at: a text, its verb and two numbers; RFC 791's 65,507 are never needed.
MAX_DATAGRAM = 4096
MAX_ARGUMENTS = 8

#: What a device tells of its own accord, and a server acknowledges with ``VERB number OK``.
NOTICES = frozenset({"RECEIVE", "DELIVER", "STATE", "RECORD", "HANGUP", "EXPIRY", "REMAIN", "CELLS", "BCCH", "USSN"})

_INTEGER = re.compile(rb"-?[0-9]{1,19}")
_VERB = re.compile(rb"[A-Za-z_]{2,24}")
_ARGUMENT = re.compile(rb"[!-~]{1,64}")
# node-goip answers `req:`, the specification says `reg:`.
_REGISTERED = re.compile(rb"re[gq]:(-?[0-9]{1,19});status:(-?[0-9]{1,9});?(?:[ -~]{0,64})")
_IDENTITY = re.compile(r"[^\x00-\x20;:\x7f]{1,40}")
_PASSWORD = re.compile(r"[^\x00-\x20;\x7f]{1,40}")
_LINE_ENDS = b"\r\n\0"


@dataclass(frozen=True, slots=True)
class Identity:
    """Authentication id and password of a line.

    Raises:
        BadInput: One could not stand in a message: they have no blank and no semicolon, at most 40 characters.
    """

    id: str
    password: str = field(repr=False)

    def __post_init__(self) -> None:
        if not _IDENTITY.fullmatch(self.id):
            raise BadInput(f"id {self.id[:40]!r} is 1 to 40 characters without blanks, ; and :")
        if not _PASSWORD.fullmatch(self.password):
            raise BadInput("the password of a line is 1 to 40 characters without blanks and ;")


# -- what a server sends ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Registered:
    """``reg:<count>;status:<status>;``: the answer to a keepalive. 0 means ok; 200 is what public servers send."""

    count: int
    status: int

    @property
    def ok(self) -> bool:
        return self.status in (0, 200)


@dataclass(frozen=True, slots=True)
class Ack:
    """``VERB <number> OK``, or ERROR or DISABLE with a text: a notice came to its server."""

    verb: str
    number: int
    ok: bool
    text: str = ""


@dataclass(frozen=True, slots=True)
class Bulk:
    """``MSG <sid> <length> <text>``: a bulk session begins. *text* is None when it is longer than 3000 bytes."""

    sid: int
    text: str | None


@dataclass(frozen=True, slots=True)
class Password:
    """``PASSWORD <sid> <password>``."""

    sid: int
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Submit:
    """``SEND <sid> <tid> <number>``. *to* is "" when it is no number."""

    sid: int
    tid: int
    to: str


@dataclass(frozen=True, slots=True)
class Done:
    """``DONE <sid>``."""

    sid: int


@dataclass(frozen=True, slots=True)
class Command:
    """Any other ``<verb> <sid> <argument> ...``; the arguments are printable ASCII. *rest* has them as they came."""

    verb: str
    sid: int
    arguments: tuple[str, ...] = field(repr=False)  # one of them is the password


Message = Registered | Ack | Bulk | Password | Submit | Done | Command


def parse(data: bytes) -> Message | None:
    """The message in a datagram, or None for anything else."""
    if not data or len(data) > MAX_DATAGRAM:
        return None
    if (found := _REGISTERED.fullmatch(data.rstrip(_LINE_ENDS))) is not None:
        return Registered(int(found[1]), int(found[2]))
    verb, _, rest = data.partition(b" ")
    if not _VERB.fullmatch(verb):
        return None
    if verb == b"MSG":
        return _bulk(rest)
    return _words(verb, rest.rstrip(_LINE_ENDS + b" "))


def _bulk(rest: bytes) -> Bulk | None:
    sid, _, rest = rest.partition(b" ")
    length, blank, body = rest.partition(b" ")
    if not (_INTEGER.fullmatch(sid) and length.isdigit() and len(length) <= 9 and blank):
        return None
    # node-goip counts characters where the specification says bytes, and cuts its own datagram there: what has come
    # is the text, and the length only tells whether the last line end is a part of it.
    text = body if len(body) == int(length) else body.removesuffix(b"\n").removesuffix(b"\r")
    if max(len(text), int(length)) > MAX_TEXT:
        return Bulk(int(sid), None)
    return Bulk(int(sid), text.decode("utf-8", "replace"))


def _words(verb: bytes, rest: bytes) -> Message | None:
    words = rest.split(b" ", MAX_ARGUMENTS + 1)
    if not _INTEGER.fullmatch(words[0]):
        return None
    sid, arguments = int(words[0]), words[1:]
    name = verb.decode("ascii")
    if name in NOTICES:
        ok = bool(arguments) and arguments[0].upper() == b"OK"
        return Ack(name, sid, ok, _printable(b" ".join(arguments))) if arguments else None
    if verb == b"DONE":
        return Done(sid)
    if not all(map(_ARGUMENT.fullmatch, arguments)) or len(arguments) > MAX_ARGUMENTS:
        return Password(sid, "") if verb == b"PASSWORD" else None
    if verb == b"PASSWORD":
        return Password(sid, arguments[0].decode("ascii")) if len(arguments) == 1 else Password(sid, "")
    if verb == b"SEND":
        if len(arguments) != 2 or not _INTEGER.fullmatch(arguments[0]):
            return None
        number = arguments[1].decode("ascii")
        return Submit(sid, int(arguments[0]), number if is_dialable(number, MAX_TEXT_NUMBER) else "")
    return Command(name, sid, tuple(argument.decode("ascii") for argument in arguments))


def _printable(text: bytes) -> str:
    return "".join(c for c in text[:200].decode("utf-8", "replace") if c.isprintable())


# -- what a device sends ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """``req:<count>;...`` (section 2; the fields after iccid are those of real devices' captures).

    Attributes:
        signal: 0 to 31, or 99 for unknown.
        remain: Minutes of talk time left, -1 without limit.
        idle: Minutes since the last call.
    """

    count: int
    number: str
    signal: int
    gsm_up: bool
    voip_up: bool
    state: str
    imei: str
    imsi: str
    iccid: str
    operator: str
    lac: str
    cell_id: str
    remain: int = -1
    idle: int = 0
    enabled: bool = True
    logged_in: bool = False

    def encode(self, identity: Identity) -> bytes:
        login = {True: "LOGIN", False: "LOGOUT"}
        return (
            f"req:{self.count};id:{identity.id};pass:{identity.password};num:{clean_number(self.number)};"
            f"signal:{self.signal};gsm_status:{login[self.gsm_up]};voip_status:{login[self.voip_up]};"
            f"voip_state:{_field(self.state)};remain_time:{self.remain};imei:{self.imei};imsi:{self.imsi};"
            f"iccid:{self.iccid};pro:{_field(self.operator)};idle:{self.idle};disable_status:{int(not self.enabled)};"
            f"SMS_LOGIN:{'Y' if self.logged_in else 'N'};SMB_LOGIN:;CELLINFO:LAC:{self.lac},CELL ID:{self.cell_id};"
            "CGATT:Y;"
        ).encode()


@dataclass(frozen=True, slots=True)
class Notice:
    """``VERB:<number>;id:<id>;password:<password>;<name>:<value>;...``. ``msg`` comes last: free text."""

    verb: str
    number: int
    fields: tuple[tuple[str, str], ...]

    def encode(self, identity: Identity) -> bytes:
        parts = [f"{self.verb}:{self.number}", f"id:{identity.id}", f"password:{identity.password}"]
        for name, value in self.fields:
            parts.append(f"{name}:{value if name == 'msg' else _field(value)}")
        return ";".join(parts).encode("utf-8", "replace")


def read_notice(data: bytes) -> tuple[str, int, dict[str, str]] | None:
    """Verb, number and fields of a notice or keepalive, as a server would read them; None for anything else."""
    head, _, body = data[: MAX_DATAGRAM * 2].partition(b";msg:")
    fields = [part.partition(b":") for part in head.rstrip(b";\r\n").split(b";")]
    verb, _, number = fields[0]
    if not (_VERB.fullmatch(verb) and _INTEGER.fullmatch(number)):
        return None
    found = {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, _, value in fields[1:]}
    if body:
        found["msg"] = body.decode("utf-8", "replace")
    return verb.decode("ascii"), int(number), found


def reply(verb: str, *words: str | int, end: str = "") -> bytes:
    """``VERB word word``: bulk answers end with a line feed (section 3), those to commands do not (section 5)."""
    return (" ".join((verb, *map(str, words))) + end).encode("utf-8", "replace")


def clean_number(number: str) -> str:
    """A caller's number or name as a field can hold it: an alphanumeric sender keeps its letters."""
    return _field(number)[:40]


def _field(value: str) -> str:
    return "".join(c for c in value if c != ";" and c.isprintable())


def listed(items: Iterable[str]) -> str:
    """A list as CELLS has it: each entry ends with a comma."""
    return "".join(f"{item}," for item in items)
