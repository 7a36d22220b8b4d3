"""Wire images: what a gateway's SIP looks like, as data. Each value says what it rests on.

Knows the fields and their checks; what Asterisk makes of them is the business of who configures it.
"""

import tomllib
from enum import StrEnum
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pbxguard.errors import BadConfig, UnknownName

__all__ = ["CallerId", "Dtmf", "Evidence", "Fact", "Profile", "load", "read", "shipped"]

T = TypeVar("T")


class Evidence(StrEnum):
    """What a value rests on."""

    VENDOR = "V"  # vendor manual or specification, read
    CODE = "C"  # public code or its documentation, read
    REVERSED = "R"  # reverse engineering by others, no second source
    STANDARD = "S"  # an RFC; the note names it
    ASSUMED = "?"  # nobody says it; chosen here


class CallerId(StrEnum):
    """The three modes of "Caller ID, GSM to SIP" in the vendor manual, and a variant of the second."""

    ACCOUNT = "account"  # disabled: From is the SIP account
    RPID = "rpid"  # From stays the account, Remote-Party-ID has the CLI
    PAI = "pai"  # the same with P-Asserted-Identity: so a reverse engineering calls that header
    FROM = "from"  # the CLI as SIP caller id


class Dtmf(StrEnum):
    """How digits are sent."""

    INBAND = "inband"
    RFC4733 = "rfc4733"
    INFO = "info"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fact(_Strict, Generic[T]):
    """One value, what it rests on, and where that is said."""

    value: T
    evidence: Evidence
    note: Annotated[str, Field(min_length=3, max_length=300)]


def _one_line(text: str) -> str:
    # It becomes a header or a line of SDP.
    if not text.isprintable():
        raise ValueError("has a character that is not printable; a header is one line")
    return text


Header = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_one_line)]
Token = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.!%*+`'~-]{1,40}$")]
Codec = Literal["alaw", "ulaw", "g729", "g723", "gsm", "g722", "opus"]


class Profile(_Strict):
    """One wire image.

    Attributes:
        title: One line for people.
        user_agent: User-Agent of its requests, Server of its responses.
        sdp_session: ``s=`` of its SDP (RFC 8866 section 5.3).
        sdp_origin_user: User name in ``o=``.
        allow: Methods of its Allow header.
        headers: Further headers of its INVITE, by name.
        codecs: In the order of its offer.
        ptime: Milliseconds.
        event_payload: Payload type of telephone-event.
        progress: Provisional responses to an INVITE, in order.
        caller_id: What From and Remote-Party-ID are at the factory's setting.
        dtmf: How digits are sent.
        dtmf_info_ms: Duration that an INFO names.
        register_s: Re-register period in seconds.
        options_s: Period of the OPTIONS keepalive in seconds; 0 for none.
        rtp_timeout_s: Seconds without RTP after which it says BYE; 0 for never.
        busy_status: What a busy GSM subscriber becomes.
        busy_phrase: And its reason phrase.
        sip_port: The port it listens on.
        transport: Transport of its SIP.
    """

    title: Annotated[str, Field(min_length=3, max_length=100), AfterValidator(_one_line)]
    user_agent: Fact[Header]
    sdp_session: Fact[Header]
    sdp_origin_user: Fact[Token]
    allow: Fact[tuple[Token, ...]]
    headers: Fact[dict[Token, Header]]
    codecs: Fact[Annotated[tuple[Codec, ...], Field(min_length=1)]]
    ptime: Fact[Literal[10, 20, 30, 40, 60]]
    event_payload: Fact[Annotated[int, Field(ge=96, le=127)]]
    progress: Fact[Annotated[tuple[Literal[180, 183], ...], Field(min_length=1, max_length=2)]]
    caller_id: Fact[CallerId]
    dtmf: Fact[Dtmf]
    dtmf_info_ms: Fact[Annotated[int, Field(ge=40, le=2000)]]
    register_s: Fact[Annotated[int, Field(ge=0, le=86400)]]
    options_s: Fact[Annotated[int, Field(ge=0, le=3600)]]
    rtp_timeout_s: Fact[Annotated[int, Field(ge=0, le=3600)]]
    busy_status: Fact[Literal[480, 486, 603]]
    busy_phrase: Fact[Header]
    sip_port: Fact[Annotated[int, Field(ge=1, le=65535)]]
    transport: Fact[Literal["udp", "tcp"]]


def shipped() -> tuple[str, ...]:
    """Names of the profiles that come with pbxguard, sorted."""
    return tuple(sorted(entry.name[:-5] for entry in files(__name__).iterdir() if entry.name.endswith(".toml")))


@lru_cache(maxsize=16)
def load(name: str) -> Profile:
    """A shipped profile by its name, or one of your own by the path of its file (with a slash or .toml).

    Raises:
        UnknownName: There is none of that name.
        BadConfig: The file is wrong or cannot be read; the message names file, key and remedy.
    """
    file: Traversable
    if "/" in name or name.endswith(".toml"):
        file = Path(name)
    elif name in shipped():
        file = files(__name__) / f"{name}.toml"
    else:
        raise UnknownName(
            f"no profile {name[:40]!r}; there are {', '.join(shipped())}, or give a file such as ./my.toml"
        )
    try:
        text = file.read_bytes().decode()
    except OSError as error:
        raise BadConfig(f"profile {name}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise BadConfig(f"profile {name}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    return read(text, name)


def read(text: str, name: str) -> Profile:
    """The profile in the text of a TOML file.

    Raises:
        BadConfig: It is none; the message names *name* and the key.
    """
    try:
        return Profile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise BadConfig(f"profile {name}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BadConfig(
            f"profile {name}: {key}: {first['msg']}; every value stands as {{value, evidence, note}}"
        ) from error
