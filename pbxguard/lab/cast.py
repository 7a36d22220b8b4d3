"""Who the actors of a scenario file are in the lab: its telephones, trunks and gateways. Reads no file."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import Field

from pbxguard.errors import BadInput
from pbxguard.lab.links import LinkFault
from pbxguard.lab.scenario import (
    MAX_TEXT,
    MAX_TEXT_BY_PBX,
    CallStep,
    Disturb,
    Expect,
    ExpectText,
    Given,
    Part,
    TextStep,
)
from pbxguard.lab.topology import CALLERS, GROUPS, PHONES


class Actor(Part):
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


class StepInFile(Part):
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


class Cast:
    """Who the actors of one file are; *where* begins every complaint."""

    def __init__(self, actors: Mapping[str, Actor], where: str) -> None:
        self._actors = actors
        self._where = where

    def actor(self, name: str) -> Actor:
        if name not in self._actors:
            raise self._wrong(f"no actor {name[:80]!r} in [actors]; {near(name, self._actors)}")
        return self._actors[name]

    def phone(self, who: str) -> str:
        """Name or number of a telephone, which *who* is or whose actor it is."""
        found = self._actors[who].phone if who in self._actors else who
        if found is None:
            raise self._wrong(f"{who!r} is called, so [actors.{who}] needs `phone`")
        names = [each.name for each in (*PHONES, *GROUPS)]
        if not re.fullmatch(r"[0-9+*#]{1,40}", found) and found not in names:
            said = f"{found[:80]!r} is neither a number nor a telephone of the lab"
            raise self._wrong(f"{said}; {near(found, names)}")
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
            raise self._wrong(f"{said}; {near(found, known)}")
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
            raise self._wrong(f"{said}; {near(values['trunk'] or '', trunks)}")
        carriers = [each.name for each in CALLERS if each.calls and each.gateway is None]
        if values["trunk"] not in carriers and (key := _by_hand(values)):
            raise self._wrong(
                f"call.{key}: {values['trunk']} is a gateway, which writes the INVITE itself; "
                f"`{key}` is for calls of a carrier: {', '.join(carriers)}"
            )
        if call.codecs != CallStep.model_fields["codecs"].default and (key := _by_hand(values)) != "codecs":
            raise self._wrong(f"call.codecs: a call with `{key}` offers PCMA only; leave one of the two out")
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
            raise self._wrong(f"text.gateway: {text.gateway[:80]!r} is none; {near(text.gateway, gateways)}")
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
            raise self._wrong(f"expect_text.phone: {expected.phone[:80]!r} is none; {near(expected.phone, phones)}")
        return text.model_copy(update={"to": to, "sender": sender})

    def _wrong(self, said: str) -> BadInput:
        return BadInput(f"{self._where}: {said}")


def _by_hand(values: Mapping[str, Any]) -> str:
    """The first key that says how the INVITE is written, or ""."""
    default = CallStep.model_fields
    keys = ("headers", "raw", "session", "sdp", "offer", "codecs")
    return next((key for key in keys if values[key] != default[key].default), "")


def near(word: str, known: Iterable[str]) -> str:
    """Which known word was probably meant, else all that there are."""
    there = sorted(known)
    near = get_close_matches(word.lower(), there, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(there) or 'none'}"
