"""Scenarios as data: what is given, which call is placed, what must be observed. Reads TOML; places no call."""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pbxguard import prompts
from pbxguard.errors import BadInput, UnknownName
from pbxguard.lab.goip.plan import MAX_LINES, GatewayPlan
from pbxguard.lab.links import LinkFault
from pbxguard.lab.listening import Sound
from pbxguard.lab.topology import CALLERS, GROUPS, PHONES, TEXT_GATEWAY, members, number_of

#: Most calls that the matrix of one file makes.
MAX_COMBINATIONS = 500
#: Bytes of a text: what the protocol of the gateways takes, and what of the PBX's own fits into a line of AMI.
MAX_TEXT, MAX_TEXT_BY_PBX = 3000, 740

_NAME = r"[A-Za-z_][A-Za-z0-9_-]*"
_WHOLE = re.compile(r"\$\{(" + _NAME + r")\}")
_PART = re.compile(r"\$\$\{|\$\{([^}]*)\}")
#: ``[caller:|callee:|TELEPHONE:]METHOD-or-STATUS.HEADER``
_MESSAGE_KEY = re.compile(r"(?:([A-Za-z0-9_-]+):)?([A-Z]{2,20}|[1-6][0-9x]{2})\.([A-Za-z0-9-]{1,80})")

Pbx = Literal["asterisk", "freeswitch"]
Scalar = str | int | float | bool
DecisionField = Literal[
    "trunk", "cli_raw", "cli_key", "cli_class", "callee_raw", "callee_key", "verdict", "reason", "labels", "rule",
    "detail", "entry", "pack", "lists_version", "sip_status", "prompt", "elapsed_us",
]  # fmt: skip
CdrField = Literal["src", "dst", "disposition", "duration", "billsec", "cause"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ConsentGiven(_Part):
    """A registry event before the call."""

    verb: Literal["open", "close"]
    number: str
    call_class: Annotated[Literal["intl", "hmt"], Field(alias="class")]


class EntryGiven(_Part):
    """A list entry before the call; ``retained`` as in a list file."""

    pattern: str
    action: Literal["allow", "block", "note"] = "block"
    subscriber: str | None = None
    list: str | None = None
    retained: bool = False


class BindingGiven(_Part):
    """A privacy number bound to a callee before the call, or one whose binding has run out."""

    x: str
    callee: str
    expired: bool = False


class Given(_Part):
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


class Disturb(_Part):
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


class CallStep(_Part):
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

    @property
    def number(self) -> str:
        """The called number."""
        return number_of(self.callee)


class By(_Part):
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


class Expect(_Part):
    """What must be observed; what is left out is not asked.

    Attributes:
        verdict: Of the guard; ``failed`` when it gave none and the trunk's failure policy decided, ``none`` for a
            call that never reached the PBX.
        reason: The verdict's reason; ``guard_failed`` when there was no verdict, "" for a call that never reached
            the PBX.
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
    reason: str = ""
    sip_status: int
    answered: bool = False
    callee_rang: bool = False
    prompt: str = ""
    prompt_cut: bool = False
    labels: tuple[str, ...] | None = None
    display: str | None = None
    shown: str | None = None
    max_post_dial_ms: float | None = None
    two_way_audio: bool | None = None
    cli_class: str | None = None
    cli: str | None = None
    heard: Sound | None = None
    callee_heard: Sound | None = None
    origin_status: int | None = None
    origin_heard: Sound | None = None
    origin_codec: str | None = None
    rang: tuple[str, ...] | None = None
    by: By = By()
    headers: dict[str, str | bool] = {}
    decision: dict[DecisionField, str] = {}
    cdr: dict[CdrField, str] = {}

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


class TextStep(_Part):
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


class ExpectText(_Part):
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


class Step(_Part):
    """One call of a scenario, or one text: that has ``text`` and ``expect_text``, and no ``expect``."""

    title: str
    given: Given = Given()
    links: tuple[LinkFault, ...] = ()
    disturb: tuple[Disturb, ...] = ()
    call: CallStep
    expect: Expect | None = None
    text: TextStep | None = None
    expect_text: ExpectText = ExpectText()


class Scenario(_Part):
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


class Actor(_Part):
    """Who takes part, by a name of the file's own: who calls has ``trunk`` and ``cli``, who is called ``phone``.

    Attributes:
        trunk: Which of the lab's carriers and gateways the calls of this actor come from.
        cli: The calling number of this actor.
        display_name: Of From.
        phone: Number or name of one of the lab's telephones or ring groups.
    """

    trunk: str | None = None
    cli: str | None = None
    display_name: str | None = None
    phone: str | None = None


class CallInFile(CallStep):
    """The call; ``callee`` is a number or the name of one of the lab's telephones or ring groups.

    Attributes:
        from: The actor who calls, instead of ``cli`` and ``trunk``.
        to: The actor who is called, instead of ``callee``.
    """

    cli: str = ""
    callee: str = ""
    trunk: str = ""
    sender: Annotated[str | None, Field(alias="from")] = None
    receiver: Annotated[str | None, Field(alias="to")] = None


class StepInFile(_Part):
    """One call of a scenario, or one text.

    Attributes:
        title: What a newcomer reads in the table; the file's title when left out.
        given: What is there before the call; it stays for the calls after it.
        links: What befalls the lines while the call is placed, the line between PBX and guard and the name servers
            too. Everything is put right after the call.
        disturb: What happens to the handler and the PBX while the call is under way.
        call: The call.
        expect: What must be observed of the call.
        text: A text instead of a call.
        expect_text: What must become of the text.
    """

    title: str = ""
    given: Given = Given()
    links: tuple[LinkFault, ...] = ()
    disturb: tuple[Disturb, ...] = ()
    call: CallInFile | None = None
    expect: Expect | None = None
    text: TextStep | None = None
    expect_text: ExpectText | None = None


class ScenarioFile(_Part):
    """A call scenario of `pbxguard lab run`.

    Attributes:
        title: What a newcomer reads in the table.
        alone: No other call is under way meanwhile; needed where a step disturbs the handler, a link or the PBX.
        together: The calls are placed at the same time, under what the first step gives, links and disturbances too.
        demo: `make demo` places the calls too; it tells the story in a minute, and details are for the tests.
        vars: Variables: ``${name}`` in any string stands for the value; a string that is nothing else becomes the
            value, number or truth value too. ``$${`` is a plain ``${`` in files with variables.
        matrix: Variables with several values each: the calls are placed for every combination. A value may be a table
            that sets several variables. The variable ``pbx`` (asterisk, freeswitch) says for which PBX a combination
            is.
        actors: Who takes part, by names of your own.
        step: The calls.
    """

    title: str
    alone: bool = False
    together: bool = False
    demo: bool = True
    vars: dict[str, Scalar] = {}
    matrix: dict[str, tuple[Scalar | dict[str, Scalar], ...]] = {}
    actors: dict[str, Actor] = {}
    step: tuple[StepInFile, ...]


class _Variables(BaseModel):
    """The part of a file that is read before anything is filled in."""

    vars: dict[str, Scalar] = {}
    matrix: dict[str, tuple[Scalar | dict[str, Scalar], ...]] = {}


def load(folder: Path, names: tuple[str, ...] = ()) -> list[Scenario]:
    """Read the scenarios of *folder*, all or those of these names; ``NAME.3`` is one combination of a matrix.

    Raises:
        BadInput: A file is wrong (file and key are named), or the folder has none.
        UnknownName: A name is not there.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    if not files:
        raise BadInput(f"{folder}: no scenario (*.toml) here; give another folder with --scenarios")
    found: dict[tuple[str, str | None], Scenario] = {}
    for name in names or tuple(files):
        stem = name if name in files else re.sub(r"\.\d{1,4}$", "", name)
        if stem not in files:
            raise UnknownName(f"no scenario {name[:80]!r} in {folder}; {_near(name, files)}")
        scenarios = read(files[stem])
        chosen = [scenario for scenario in scenarios if name in (stem, scenario.name)]
        if not chosen:
            there = ", ".join(dict.fromkeys(scenario.name for scenario in scenarios))
            raise UnknownName(f"no scenario {name[:80]!r} in {folder}; that file has {there}")
        found |= {(scenario.name, scenario.pbx): scenario for scenario in chosen}
    return list(found.values())


def calls_box(scenarios: Iterable[Scenario]) -> bool:
    """Whether any of them calls a telephone of the shared container, so that a lab for them needs it."""
    boxed = {phone.number for phone in PHONES if phone.box}
    return any(boxed & set(members(step.call.number)) for scenario in scenarios for step in scenario.step)


def read(path: Path) -> tuple[Scenario, ...]:
    """The scenarios of one file: one, or as many as its matrix has combinations.

    Raises:
        BadInput: The file is wrong; file and key are named, with what was probably meant.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot read it: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise BadInput(f"{path}: not valid TOML: nested too deep") from error
    return tuple(_scenarios(path, values))


def _scenarios(path: Path, values: Mapping[str, Any]) -> Iterator[Scenario]:
    try:
        head = _Variables.model_validate({key: values[key] for key in ("vars", "matrix") if key in values})
    except ValidationError as error:
        raise BadInput(f"{path}: {_first(error)}") from error
    rest = {key: value for key, value in values.items() if key not in ("vars", "matrix")}
    numbers: dict[tuple[str, ...], int] = {}
    for chosen, variables in _combinations(path, head):
        told = f" [{', '.join(f'{name}={value}' for name, value in chosen.items())}]" if chosen else ""
        filled = _fill(rest, variables, f"{path}{told}") if values.keys() & {"vars", "matrix"} else rest
        try:
            file = ScenarioFile.model_validate(filled)
        except ValidationError as error:
            raise BadInput(f"{path}{told}: {_first(error)}") from error
        pbx = _pbx(path, variables["pbx"]) if "pbx" in head.matrix and "pbx" in variables else None
        # The same call on two PBXs has the same name, so that the two are seen beside each other.
        others = {name: value for name, value in chosen.items() if name != "pbx"}
        number = numbers.setdefault(tuple(others.values()), len(numbers) + 1)
        steps = tuple(
            _step(each, file, f"{path}{told}: step {n}", others) for n, each in enumerate(file.step, start=1)
        )
        if not steps:
            raise BadInput(f"{path}: no [[step]]: a scenario places at least one call")
        if not file.alone and any(step.given.handler != "running" for step in steps):
            raise BadInput(f"{path}: a step disturbs the handler, so the file needs `alone = true`")
        if not file.alone and any(step.given.gateway for step in steps):
            raise BadInput(f"{path}: a step sets a gateway up, so the file needs `alone = true`")
        if not file.alone and any(step.links or step.disturb for step in steps):
            said = "a step has `links` or `disturb`, which other calls would feel too"
            raise BadInput(f"{path}: {said}, so the file needs `alone = true`")
        if file.together and any(step.links or step.disturb for step in steps[1:]):
            said = "the steps are placed `together`, so what befalls links and programs stands in the first one"
            raise BadInput(f"{path}: {said}")
        yield Scenario(
            name=f"{path.stem}.{number}" if others else path.stem,
            title=_titled(file.title, others),
            alone=file.alone,
            together=file.together,
            demo=file.demo,
            pbx=pbx,
            step=steps,
        )


def _combinations(path: Path, head: _Variables) -> Iterator[tuple[dict[str, str], dict[str, Scalar]]]:
    """Of each combination how its values read, by the axis' name, and all its variables."""
    total = 1
    for name, values in head.matrix.items():
        total *= len(values)
        if not values:
            raise BadInput(f"{path}: matrix.{name}: no value, so there would be no call; leave it out or give one")
    if total > MAX_COMBINATIONS:
        raise BadInput(f"{path}: matrix: {total} combinations; at most {MAX_COMBINATIONS}, so split the file")
    for chosen in product(*head.matrix.values()):
        told: dict[str, str] = {}
        variables = dict(head.vars)
        for name, value in zip(head.matrix, chosen, strict=True):
            several = value if isinstance(value, dict) else {name: value}
            told[name] = str(several.get(name, next(iter(several.values()), ""))) or "(none)"
            variables |= several
        yield told, variables


def _pbx(path: Path, value: Scalar) -> Pbx:
    for known in get_args(Pbx):
        if value == known:
            return known  # type: ignore[no-any-return]
    raise BadInput(f"{path}: matrix.pbx: {str(value)[:80]!r} is none of {', '.join(get_args(Pbx))}")


def _titled(title: str, chosen: Mapping[str, str]) -> str:
    """The title, and behind it what of the combination it does not say."""
    more = [f"{name} {value}" for name, value in chosen.items() if value not in title]
    return f"{title} [{', '.join(more)}]" if more else title


def _fill(value: Any, variables: Mapping[str, Scalar], where: str) -> Any:
    """*value* with its variables filled in."""

    def known(name: str) -> Scalar:
        if name not in variables:
            raise BadInput(f"{where}: no variable {name[:80]!r} in [vars] or [matrix]; {_near(name, variables)}")
        return variables[name]

    if isinstance(value, str):
        if whole := _WHOLE.fullmatch(value):
            return known(whole[1])
        return _PART.sub(lambda found: "${" if found[1] is None else str(known(found[1])), value)
    if isinstance(value, dict):
        return {key: _fill(each, variables, where) for key, each in value.items()}
    return [_fill(each, variables, where) for each in value] if isinstance(value, list) else value


def _step(step: StepInFile, file: ScenarioFile, where: str, chosen: Mapping[str, str]) -> Step:
    """The step with its actors put in; whoever and whatever it names is there."""
    cast = _Cast(file.actors, where)
    expect, given = step.expect, step.given
    call, text = cast.step(step)
    if expect is None:
        expect = Expect(verdict="allow", reason="", sip_status=0)  # of a text, and not used
    if expect.prompt and expect.prompt not in prompts.names():
        raise BadInput(f"{where}: no prompt {expect.prompt[:80]!r}; {_near(expect.prompt, prompts.names())}")
    headers = {}
    for key, wanted in expect.headers.items():
        leg, message, header = message_key(key)
        who = leg if leg in ("caller", "callee") else cast.phone(leg)
        headers[f"{who}:{message}.{header}"] = wanted
    return Step(
        title=_titled(step.title or file.title, chosen),
        given=given.model_copy(
            update={
                "registry": tuple(
                    each.model_copy(update={"number": cast.phone(each.number)}) for each in given.registry
                ),
                "lists": tuple(
                    each.model_copy(update={"subscriber": cast.phone(each.subscriber) if each.subscriber else None})
                    for each in given.lists
                ),
                "bindings": tuple(
                    each.model_copy(update={"callee": cast.phone(each.callee)}) for each in given.bindings
                ),
            }
        ),
        links=tuple(map(cast.link, step.links)),
        disturb=step.disturb,
        call=call,
        expect=None
        if text is not None
        else expect.model_copy(
            update={"headers": headers, "rang": None if expect.rang is None else tuple(map(cast.phone, expect.rang))}
        ),
        text=text,
        expect_text=step.expect_text or ExpectText(),
    )


class _Cast:
    """Who the actors of one file are; *where* begins every complaint."""

    def __init__(self, actors: Mapping[str, Actor], where: str) -> None:
        self._actors = actors
        self._where = where

    def actor(self, name: str) -> Actor:
        if name not in self._actors:
            raise self._wrong(f"no actor {name[:80]!r} in [actors]; {_near(name, self._actors)}")
        return self._actors[name]

    def phone(self, who: str) -> str:
        """Name or number of a telephone, which *who* is or whose actor it is."""
        found = self._actors[who].phone if who in self._actors else who
        if found is None:
            raise self._wrong(f"{who!r} is called, so [actors.{who}] needs `phone`")
        names = [each.name for each in (*PHONES, *GROUPS)]
        if not re.fullmatch(r"[0-9+*#]{1,40}", found) and found not in names:
            said = f"{found[:80]!r} is neither a number nor a telephone of the lab"
            raise self._wrong(f"{said}; {_near(found, names)}")
        return found

    def link(self, fault: LinkFault) -> LinkFault:
        """The fault with the lab's own names of actor and peer."""
        if fault.address is not None:
            raise self._wrong("links: `address` is another in every world; `peer` says which link is meant")
        peer = None if fault.peer is None else self._member(fault.peer, "peer", ("guard",))
        return fault.model_copy(update={"actor": self._member(fault.actor, "actor"), "peer": peer})

    def _member(self, who: str, key: str, more: tuple[str, ...] = ()) -> str:
        """Name of the lab's container that *who* is, or whose actor it is."""
        actor = self._actors.get(who, Actor())
        found = actor.trunk or actor.phone or who
        found = next((each.name for each in PHONES if each.number == found), found)
        known = ["pbx", *more, *(c.name for c in CALLERS), *(p.name for p in PHONES if p.address is not None)]
        if found not in known:
            said = f"links: {key} {found[:80]!r} is nobody in the lab who has a link"
            raise self._wrong(f"{said}; {_near(found, known)}")
        return found

    def call(self, call: CallInFile) -> CallStep:
        caller = Actor() if call.sender is None else self.actor(call.sender)
        if call.receiver is not None:
            self.actor(call.receiver)
        values: dict[str, Any] = {name: getattr(call, name) for name in CallStep.model_fields}
        for name in {"cli", "trunk", "display_name"} - call.model_fields_set:
            values[name] = getattr(caller, name)
        if values["cli"] is None or not (call.sender or "cli" in call.model_fields_set):
            raise self._wrong('the call has no `cli`; "" is a call without one')
        trunks = [each.name for each in CALLERS if each.calls]
        if values["trunk"] not in trunks:
            said = (
                f"trunk {values['trunk'][:80]!r} is not in the lab" if values["trunk"] else "the call has no `trunk`"
            )
            raise self._wrong(f"{said}; {_near(values['trunk'] or '', trunks)}")
        carriers = [each.name for each in CALLERS if each.calls and each.gateway is None]
        if values["trunk"] not in carriers and (key := _by_hand(values)):
            raise self._wrong(
                f"call.{key}: {values['trunk']} is a gateway, which writes the INVITE itself; "
                f"`{key}` is for calls of a carrier: {', '.join(carriers)}"
            )
        callee = call.receiver or call.callee
        if not callee:
            raise self._wrong("the call has no `callee`: a number, or the name of a telephone")
        return CallStep(**values | {"callee": self.phone(callee), "display_name": values["display_name"] or ""})

    def step(self, step: StepInFile) -> tuple[CallStep, TextStep | None]:
        """The call of a step; of a text its words in a call's, and the text."""
        if step.text is not None:
            for key in ("call", "expect"):
                if getattr(step, key) is not None:
                    raise self._wrong(f"a step with `text` has no `{key}`: what is expected stands in `expect_text`")
            expected = step.expect_text or ExpectText()
            text = self.text(step.text, expected)
            if not expected.asks:
                raise self._wrong(
                    "`expect_text` asks nothing that could be missing, so a text that is lost would pass; give one "
                    "of message, phone, server, gsm, report, sender, answer, bodies"
                )
            return text.call, text
        if step.call is None or step.expect is None:
            raise self._wrong(f"key {'call' if step.call is None else 'expect'!r} is missing; or give `text`")
        if step.expect_text is not None:
            raise self._wrong("`expect_text` is for a step with `text`; a call has `expect`")
        return self.call(step.call), None

    def text(self, text: TextStep, expected: ExpectText) -> TextStep:
        """The text with its actors put in, when all that it names is there and it can be sent that way."""
        gateways = {each.name: each for each in CALLERS if each.gateway is not None}
        if text.gateway not in gateways:
            raise self._wrong(f"text.gateway: {text.gateway[:80]!r} is none; {_near(text.gateway, gateways)}")
        most = MAX_TEXT_BY_PBX if text.way == "pbx" else MAX_TEXT
        size = len(text.whole.encode("utf-8", "replace"))
        if not 1 <= size <= most or "\0" in text.whole:
            raise self._wrong(f"text.body: {size} bytes, or a NUL; a text of way {text.way} has 1 to {most}")
        to, sender = text.to, text.sender
        if text.way == "gsm":
            if not (1 <= len(sender) <= 40 and sender.isprintable() and ";" not in sender):
                raise self._wrong("text.sender: who sends it to the SIM, 1 to 40 characters without a semicolon")
            to = self.phone(to) if to else ""
        else:
            if not re.fullmatch(r"[0-9+*#]{1,32}", to):
                raise self._wrong(f"text.to: {to[:80]!r} is no number; way {text.way} sends to a mobile number")
            if text.way != "pbx" and sender:
                raise self._wrong(f"text.sender: of way {text.way} the sender is the SIM of the line; leave it out")
        if text.way == "pbx":
            sender = self.phone(sender or PHONES[0].name)
        if (to if text.way == "gsm" else text.way == "pbx") and gateways[text.gateway].registers_at != "pbx":
            raise self._wrong(f"text.gateway: {text.gateway} is no trunk of the PBX, so no MESSAGE goes between them")
        phones = [each.name for each in PHONES]
        if expected.phone and expected.phone not in phones:
            raise self._wrong(f"expect_text.phone: {expected.phone[:80]!r} is none; {_near(expected.phone, phones)}")
        return text.model_copy(update={"to": to, "sender": sender})

    def _wrong(self, said: str) -> BadInput:
        return BadInput(f"{self._where}: {said}")


def _by_hand(values: Mapping[str, Any]) -> str:
    """The first key that says how the INVITE is written, or ""."""
    default = CallStep.model_fields
    keys = ("headers", "raw", "session", "sdp", "offer")
    return next((key for key in keys if values[key] != default[key].default), "")


def _compiled(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern[:80]!r} is no regular expression: {error}") from error


def _near(word: str, known: Iterable[str]) -> str:
    """Which known word was probably meant, else all that there are."""
    there = sorted(known)
    near = get_close_matches(word.lower(), there, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(there) or 'none'}"


def _first(error: ValidationError) -> str:
    """The first thing that is wrong: where it stands, and what was probably meant."""
    # A key that is written wrong is also one that is missing.
    first = min(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    loc = first["loc"]
    if first["type"] == "extra_forbidden":
        key = str(loc[-1])
        return f"{_where(loc[:-1])}unknown key {key[:80]!r}; {_near(key, _keys_at(loc[:-1]))}"
    if first["type"] == "missing":
        return f"{_where(loc[:-1])}key {loc[-1]!r} is missing"
    said = str(first["msg"]).removeprefix("Value error, ")
    got = first["input"]
    seen = f", not {str(got)[:80]!r}" if isinstance(got, Scalar) and first["type"] != "value_error" else ""
    return f"{_where(loc)}{said}{seen}"


def _where(loc: tuple[int | str, ...]) -> str:
    words = [f"step {part + 1}" if before == "step" and isinstance(part, int) else str(part)
             for before, part in zip(("", *loc), loc, strict=False) if part != "step"]  # fmt: skip
    return ": ".join((*words[:1], ".".join(words[1:]))).rstrip(": ") + ": " if words else ""


def _keys_at(loc: tuple[int | str, ...]) -> list[str]:
    """The keys that a table at this place may have."""
    here: Any = ScenarioFile
    for part in loc:
        if isinstance(part, str) and isinstance(here, type) and issubclass(here, BaseModel):
            fields = {field.alias or name: field for name, field in here.model_fields.items()}
            here = _model_in(fields[part].annotation) if part in fields else here
    return [field.alias or name for name, field in here.model_fields.items()]


def _model_in(annotation: Any) -> Any:
    """The model that a field's type is or holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for each in get_args(annotation) if (found := _model_in(each)) is not None), None)
