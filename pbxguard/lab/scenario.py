"""Scenarios as data: what is given, which call is placed, what must be observed. Reads TOML; places no call."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pbxguard.errors import BadInput, UnknownName
from pbxguard.lab.topology import CALLERS, PHONES


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
        handler: ``running``, ``killed`` (SIGKILL: nothing listens) or ``frozen`` (SIGSTOP: it accepts and is silent).
    """

    registry: tuple[ConsentGiven, ...] = ()
    lists: tuple[EntryGiven, ...] = ()
    bindings: tuple[BindingGiven, ...] = ()
    handler: Literal["running", "killed", "frozen"] = "running"


class CallStep(_Part):
    """The call; ``callee`` is a number or the name of one of the lab's telephones.

    Attributes:
        raw: The CLI and the display name stand in From exactly as they are.
        headers: More headers of the INVITE.
        session: Session name of the offer, exactly as it is.
        sdp: Put behind the last line of the offer, exactly as it is.
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

    @property
    def number(self) -> str:
        """The called number."""
        return next((p.number for p in PHONES if p.name == self.callee), self.callee)


class Expect(_Part):
    """What must be observed; what is left out is not asked.

    Attributes:
        sip_status: The final status that the caller saw; 487 for a call that the caller gave up.
        prompt: Name of the prompt that the caller heard, or "" for none.
        prompt_cut: The prompt was cut short by the caller; only its beginning must match.
        labels: Exactly these.
        display: Part of the display name that the callee's telephone got.
        shown: The number that it got: the user part of From.
        max_post_dial_ms: The first answer of the PBX (not 100) came within this time.
        two_way_audio: Each side's marker reached the other.
        cli_class: Number class of the CLI.
        cli: The CLI as the guard recorded it, cut at 200 characters.
    """

    verdict: Literal["allow", "block", "failed"]
    reason: str
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


class Step(_Part):
    """One call of a scenario."""

    title: str
    given: Given = Given()
    call: CallStep
    expect: Expect


class Scenario(_Part):
    """One file: its calls are placed one after the other.

    Attributes:
        name: The file's name without suffix.
        title: What a newcomer reads in the table.
        alone: No other call is under way meanwhile (it disturbs the handler).
        together: Its calls are placed at the same time, under what the first step gives.
        demo: ``make demo`` places it too; it tells the story in a minute, and details are for the tests.
    """

    name: str
    title: str
    alone: bool = False
    together: bool = False
    demo: bool = True
    step: tuple[Step, ...]


def load(folder: Path, names: tuple[str, ...] = ()) -> list[Scenario]:
    """Read the scenarios of *folder*, all or those of these names.

    Raises:
        BadInput: A file is wrong (file and key are named), or the folder has none.
        UnknownName: A name is not there.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    if not files:
        raise BadInput(f"{folder}: no scenario (*.toml) here; give another folder with --scenarios")
    unknown = [name for name in names if name not in files]
    if unknown:
        raise UnknownName(f"no scenario {unknown[0]!r} in {folder}; there are {', '.join(files)}")
    return [read(files[name]) for name in (names or files)]


def read(path: Path) -> Scenario:
    """Read one scenario file."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        scenario = Scenario.model_validate({"name": path.stem, **values})
    except OSError as error:
        raise BadInput(f"{path}: cannot read it: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise BadInput(f"{path}: not valid TOML: nested too deep") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{path}: {where}: {first['msg']}") from error
    if not scenario.step:
        raise BadInput(f"{path}: no [[step]]: a scenario places at least one call")
    for step in scenario.step:
        trunks = [caller.name for caller in CALLERS]
        if step.call.trunk not in trunks:
            raise BadInput(f"{path}: trunk {step.call.trunk!r} is not in the lab: {', '.join(trunks)}")
        if step.given.handler != "running" and not scenario.alone:
            raise BadInput(f"{path}: a step disturbs the handler, so the file needs `alone = true`")
    return scenario
