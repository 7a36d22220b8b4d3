"""Scenarios as data: what is given, which call is placed, what must be observed. Reads no file; places no call."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pbxguard.lab.goip.plan import MAX_LINES, GatewayPlan
from pbxguard.lab.links import LinkFault
from pbxguard.lab.listening import Sound
from pbxguard.lab.topology import PHONES, TEXT_GATEWAY, members, number_of

#: Bytes of a text: what the protocol of the gateways takes, and what of the PBX's own fits into a line of AMI.
MAX_TEXT, MAX_TEXT_BY_PBX = 3000, 740

#: ``[caller:|callee:|TELEPHONE:]METHOD-or-STATUS.HEADER``
_MESSAGE_KEY = re.compile(r"(?:([A-Za-z0-9_-]+):)?([A-Z]{2,20}|[1-6][0-9x]{2})\.([A-Za-z0-9-]{1,80})")

Codec = Literal["PCMA", "PCMU", "G722", "GSM"]
Pbx = Literal["asterisk", "freeswitch"]
Scalar = str | int | float | bool
DecisionField = Literal[
    "trunk", "cli_raw", "cli_key", "cli_class", "callee_raw", "callee_key", "verdict", "reason", "labels", "rule",
    "detail", "entry", "pack", "lists_version", "sip_status", "prompt", "elapsed_us",
]  # fmt: skip
CdrField = Literal["src", "dst", "disposition", "duration", "billsec", "cause"]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ConsentGiven(Part):
    """A registry event before the call."""

    verb: Literal["open", "close"]
    number: str
    call_class: Annotated[Literal["intl", "hmt"], Field(alias="class")]


class EntryGiven(Part):
    """A list entry before the call; ``retained`` as in a list file."""

    pattern: str
    action: Literal["allow", "block", "note"] = "block"
    subscriber: str | None = None
    list: str | None = None
    retained: bool = False


class BindingGiven(Part):
    """A privacy number bound to a callee before the call, or one whose binding has run out."""

    x: str
    callee: str
    expired: bool = False


class Given(Part):
    """What is there before the call.

    Attributes:
        registry: Opt-in events of subscribers.
        lists: List entries; without ``subscriber`` they hold for all.
        bindings: Privacy numbers.
        handler: ``running``, ``killed`` (SIGKILL: nothing listens) or ``frozen`` (SIGSTOP: it accepts and is silent).
        gateway: Settings of the lab's GOIP gateways, by name; they hold until the scenario ends. What is not said is
            as the lab has it.
    """

    registry: tuple[ConsentGiven, ...] = ()
    lists: tuple[EntryGiven, ...] = ()
    bindings: tuple[BindingGiven, ...] = ()
    handler: Literal["running", "killed", "frozen"] = "running"
    gateway: dict[Literal["goip1", "goip2"], GatewayPlan] = {}


class Disturb(Part):
    """Something that happens to a program while the call is under way.

    Attributes:
        what: ``handler killed`` (SIGKILL, and started again), ``handler frozen`` (SIGSTOP, and thawed), ``pbx
            restart`` (every call ends), or ``registrar restart`` (the PBX knows nobody's registration any more, and
            calls go on). The call after it waits until everybody has registered again.
        when: The moment of the call that ``after`` counts from: its INVITE is at the PBX, the caller was told 180, or
            it was answered.
        after: Seconds from that moment.
        restore_after: Seconds until the handler is there again; left out, at the end of the call.
    """

    what: Literal["handler killed", "handler frozen", "pbx restart", "registrar restart"]
    when: Literal["invite", "ringing", "answered"] = "answered"
    after: Annotated[float, Field(ge=0, le=3600)] = 0.0
    restore_after: Annotated[float, Field(gt=0, le=3600)] | None = None

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.restore_after is not None and not self.what.startswith("handler"):
            raise ValueError(f"restore_after is for the handler; a {self.what} ends when everybody is there again")
        return self


class CallStep(Part):
    """The call; ``callee`` is a number or the name of one of the lab's telephones or ring groups.

    Attributes:
        cli: Calling number as it shall stand on the wire; ``anonymous`` withholds it, "" is none.
        callee: Called number, or the name of a telephone or ring group.
        trunk: Which of the lab's carriers and gateways places the call.
        display_name: Of From.
        hang_up_after: Seconds after which the caller gives up.
        offer: False: an INVITE without SDP. This and the next four are for carriers: a gateway writes its own INVITE.
        raw: The CLI and the display name stand in From exactly as they are.
        headers: More headers of the INVITE.
        session: Session name of the offer, exactly as it is.
        sdp: Put behind the last line of the offer, exactly as it is.
        line: Of a gateway: which line's SIM is rung, or which line's account dials; left out, any that is idle.
        dtmf: Digits that the caller of an answered call types, before its marker.
        talk: False: the caller hangs up as soon as the call is answered, for what does not ask who heard what.
        listen: Seconds that the caller of an answered call listens after its own marker.
        codecs: What a carrier offers, the best first.
    """

    cli: str
    callee: str
    trunk: str
    display_name: str = ""
    hang_up_after: float | None = None
    offer: bool = True
    raw: bool = False
    headers: dict[str, str] = {}
    session: str = ""
    sdp: str = ""
    line: Annotated[int, Field(ge=1, le=MAX_LINES)] | None = None
    dtmf: Annotated[str, Field(pattern=r"^[0-9*#A-D]{0,32}$")] = ""
    talk: bool = True
    listen: Annotated[float, Field(ge=0, le=60)] = 1.0
    codecs: Annotated[tuple[Codec, ...], Field(min_length=1)] = ("PCMA", "PCMU")

    @property
    def number(self) -> str:
        """The called number."""
        return number_of(self.callee)


class By(Part):
    """Until when something happened, in seconds after the INVITE reached the PBX.

    Attributes:
        answer: The call was answered (2xx).
        ringing: The caller's side was told 180.
        final: There was a final status, whichever.
        end: The call was over: refused, or ended by BYE.
    """

    ringing: float | None = None
    answer: float | None = None
    final: float | None = None
    end: float | None = None


class Expect(Part):
    """What must be observed; what is left out is not asked, but for what a verdict means.

    A refused call rings at no telephone and is not answered, nor is one that never reaches the PBX; of a call that is
    let through nobody hears a prompt.

    Attributes:
        verdict: Of the guard; ``failed`` when it gave none and the trunk's failure policy decided, ``none`` for a
            call that never reached the PBX.
        reason: The verdict's reason; ``guard_failed`` when there was no verdict.
        sip_status: The final status that the caller saw; 487 for a call that the caller gave up.
        answered: The call was connected.
        callee_rang: A telephone rang.
        prompt: Name of the prompt that the caller heard, or "" for none.
        prompt_cut: The prompt was cut short by the caller; only its beginning must match.
        labels: Exactly these.
        display: Part of the display name that the callee's telephone got.
        shown: The number that it got: the user part of From.
        max_post_dial_ms: The first answer of the PBX (not 100) came within this time.
        two_way_audio: Each side's marker reached the other.
        cli_class: Number class of the CLI.
        cli: The CLI as the guard recorded it, cut at 200 characters.
        heard: What the caller heard of the prompt that the guard chose, or of the callee's marker when answered:
            ``whole``, ``cut``, ``gaps``, ``wrong`` (another prompt), ``noise``, ``other``, ``silence``, ``nothing``.
        codec: Of the audio that came to the caller from the PBX.
        callee_heard: The same of what the callee heard of the caller's marker.
        origin_status: Final status at the first leg of a call through a gateway: what the GSM caller's network, or
            the switch abroad, got.
        origin_heard: The same as ``heard`` at that first leg, through every codec on the way.
        origin_codec: Of the audio that came there: ``GSM`` on a GSM leg.
        rang: Names of exactly the telephones that rang, in any order.
        by: Until when it happened, in seconds.
        headers: ``"603.Reason" = "regex"``: of a message (status, ``4xx``, or method) on the caller's leg, or on the
            callee's as ``"callee:INVITE.From"``, or on that of one telephone by its name. The regular expression has
            to be found in one of the header's values; ``true`` asks that the header is there, ``false`` that it is
            not.
        decision: Field of the guard's record -> regular expression that is found in it.
        cdr: Field of the PBX's own call detail record -> regular expression that is found in it. ``disposition`` is
            Asterisk's (``ANSWERED``, ``NO ANSWER``, ``FAILED``), ``cause`` FreeSWITCH's.
    """

    verdict: Literal["allow", "block", "failed", "none"]
    reason: str | None = None
    sip_status: int | None = None
    answered: bool | None = None
    callee_rang: bool | None = None
    prompt: str | None = None
    prompt_cut: bool = False
    labels: tuple[str, ...] | None = None
    display: str | None = None
    shown: str | None = None
    max_post_dial_ms: float | None = None
    two_way_audio: bool | None = None
    cli_class: str | None = None
    cli: str | None = None
    heard: Sound | None = None
    codec: Codec | None = None
    callee_heard: Sound | None = None
    origin_status: int | None = None
    origin_heard: Sound | None = None
    origin_codec: str | None = None
    rang: tuple[str, ...] | None = None
    by: By = By()
    headers: dict[str, str | bool] = {}
    decision: dict[DecisionField, str] = {}
    cdr: dict[CdrField, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _what_the_verdict_means(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        verdict, status = values.get("verdict"), values.get("sip_status")
        implied: dict[str, Any] = {}
        if verdict in ("block", "none"):
            implied = {"answered": False} | ({} if values.get("rang") else {"callee_rang": False})
        elif isinstance(status, int):
            implied = {"answered": 200 <= status < 300}
        if verdict in ("allow", "none"):
            implied["prompt"] = ""
        return implied | values

    @field_validator("headers")
    @classmethod
    def _messages(cls, headers: dict[str, str | bool]) -> dict[str, str | bool]:
        for key, wanted in headers.items():
            if not _MESSAGE_KEY.fullmatch(key):
                raise ValueError(
                    f'{key!r} is none of "STATUS.Header", "METHOD.Header", "callee:METHOD.Header", as in "603.Reason"'
                )
            if isinstance(wanted, str):
                _compiled(wanted)
        return headers

    @field_validator("decision", "cdr")
    @classmethod
    def _patterns(cls, fields: dict[str, str]) -> dict[str, str]:
        for wanted in fields.values():
            _compiled(wanted)
        return fields


def message_key(key: str) -> tuple[str, str, str]:
    """Leg (``caller``, ``callee`` or a telephone's name), status or method, and header of a key of ``headers``."""
    found = _MESSAGE_KEY.fullmatch(key)
    if found is None:
        raise ValueError(f"{key!r} names no header of a message")
    return found[1] or "caller", found[2], found[3]


class TextStep(Part):
    """A text through a GOIP gateway.

    Attributes:
        way: How it begins: ``gsm`` reaches the SIM of a line from outside, ``udp`` is sent by the SMS server (bulk
            session), ``http`` by send.html, ``pbx`` by the PBX as MESSAGE to the gateway.
        gateway: Which gateway.
        line: Which of its lines, from 1; any that is free when left out.
        sender: Who sends it: of ``gsm`` a number or name, of ``pbx`` a number or the name of a telephone.
        to: Who gets it: of ``gsm`` the telephone that the line forwards its texts to, "" for none (the SMS server
            gets every one); of the others a mobile number.
        body: The text, exactly.
        repeat: How often the body stands in the text, for long ones.
    """

    way: Literal["gsm", "udp", "http", "pbx"]
    gateway: str = TEXT_GATEWAY
    line: Annotated[int, Field(ge=1, le=MAX_LINES)] | None = None
    sender: str = ""
    to: str = ""
    body: str
    repeat: Annotated[int, Field(ge=1, le=MAX_TEXT)] = 1

    @property
    def whole(self) -> str:
        """The text as it is sent."""
        return self.body * self.repeat

    @property
    def call(self) -> CallStep:
        """The same in a call's words, for tables: who, to whom, by which trunk."""
        senders = {"gsm": "", "udp": "SMS server", "http": "send.html", "pbx": "pbx"}
        return CallStep(cli=self.sender or senders[self.way], callee=self.to or "SMS server", trunk=self.gateway)


class ExpectText(Part):
    """What must become of a text; what is left out is not asked, but for the body, and ``body`` alone is not enough.

    Attributes:
        body: The text as it arrives, wherever it does; as it was sent when left out.
        bodies: The same for one place, where it is another there: ``phone``, ``server``, ``gsm``.
        message: Final status of the MESSAGE between gateway and PBX.
        phone: Name of the telephone that took the MESSAGE from the PBX, "" for none.
        server: Whether the SMS server got it (RECEIVE).
        gsm: Whether the mobile network took it.
        report: TP-Status of the delivery report that the SMS server got (DELIVER); 0 is delivered.
        sender: Whom its receiver was told as sender.
        answer: Regular expression found in what the sender's side was told: ``OK`` over UDP, ``DONE`` over HTTP.
    """

    body: str | None = None
    bodies: dict[Literal["phone", "server", "gsm"], str] = {}
    message: int | None = None
    phone: str | None = None
    server: bool | None = None
    gsm: bool | None = None
    report: int | None = None
    sender: str | None = None
    answer: str | None = None

    @property
    def asks(self) -> bool:
        """Whether it asks anything that a text which arrives nowhere would not have; ``body`` alone does not."""
        where = (self.message, self.phone, self.server, self.gsm, self.report, self.sender)
        return any(each is not None for each in where) or bool(self.answer or self.bodies)

    @field_validator("answer")
    @classmethod
    def _pattern(cls, answer: str | None) -> str | None:
        if answer is not None:
            _compiled(answer)
        return answer


class Step(Part):
    """One call of a scenario, or one text: that has ``text`` and ``expect_text``, and no ``expect``."""

    title: str
    given: Given = Given()
    links: tuple[LinkFault, ...] = ()
    disturb: tuple[Disturb, ...] = ()
    call: CallStep
    expect: Expect | None = None
    text: TextStep | None = None
    expect_text: ExpectText = ExpectText()


class Scenario(Part):
    """One file, or one combination of its matrix: its calls are placed one after the other.

    Attributes:
        name: The file's name without suffix; a combination has ``.`` and its number behind it.
        title: What a newcomer reads in the table.
        alone: No other call is under way meanwhile (it disturbs the handler, a link or the PBX).
        together: Its calls are placed at the same time, under what the first step gives.
        demo: ``make demo`` places it too; it tells the story in a minute, and details are for the tests.
        pbx: It is for this PBX only; None: for each.
    """

    name: str
    title: str
    alone: bool = False
    together: bool = False
    demo: bool = True
    pbx: Pbx | None = None
    step: tuple[Step, ...]


def _compiled(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern[:80]!r} is no regular expression: {error}") from error


def calls_box(scenarios: Iterable[Scenario]) -> bool:
    """Whether any of them calls a telephone of the shared container, so that a lab for them needs it."""
    boxed = {phone.number for phone in PHONES if phone.box}
    return any(boxed & set(members(step.call.number)) for scenario in scenarios for step in scenario.step)
