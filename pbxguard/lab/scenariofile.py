"""Scenario files: TOML, variables and matrix made into scenarios; what is wrong is named with what was meant."""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pbxguard import prompts
from pbxguard.errors import BadInput, UnknownName
from pbxguard.lab.cast import Actor, Cast, StepInFile, near
from pbxguard.lab.scenario import Expect, ExpectText, Pbx, Scalar, Scenario, Step, message_key
from pbxguard.screening.pack import Pack

#: Most calls that the matrix of one file makes.
MAX_COMBINATIONS = 500

_NAME = r"[A-Za-z_][A-Za-z0-9_-]*"
_WHOLE = re.compile(r"\$\{(" + _NAME + r")\}")
_PART = re.compile(r"\$\$\{|\$\{([^}]*)\}")


class ScenarioFile(BaseModel, frozen=True, extra="forbid"):
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
            raise UnknownName(f"no scenario {name[:80]!r} in {folder}; {near(name, files)}")
        scenarios = read(files[stem])
        chosen = [scenario for scenario in scenarios if name in (stem, scenario.name)]
        if not chosen:
            there = ", ".join(dict.fromkeys(scenario.name for scenario in scenarios))
            raise UnknownName(f"no scenario {name[:80]!r} in {folder}; that file has {there}")
        found |= {(scenario.name, scenario.pbx): scenario for scenario in chosen}
    return list(found.values())


def require_reasons(scenarios: Iterable[Scenario], pack: Pack) -> None:
    """Every reason that a scenario expects is one of the country pack's; a call is placed for none that is not.

    Raises:
        BadInput: One is not; the step is named, with what was probably meant.
    """
    for scenario in scenarios:
        for number, step in enumerate(scenario.step, start=1):
            reason = step.expect.reason if step.expect is not None else None
            if reason and reason not in pack.reasons:
                said = f"no reason {reason[:80]!r} in the country pack {pack.id}; {near(reason, pack.reasons)}"
                raise BadInput(f"{scenario.name}: step {number}: expect.reason: {said}")


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
            raise BadInput(f"{where}: no variable {name[:80]!r} in [vars] or [matrix]; {near(name, variables)}")
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
    cast = Cast(file.actors, where)
    expect, given = step.expect, step.given
    call, text = cast.step(step)
    if expect is None:
        expect = Expect(verdict="allow")  # of a text, and not used
    if expect.prompt and expect.prompt not in prompts.names():
        raise BadInput(f"{where}: no prompt {expect.prompt[:80]!r}; {near(expect.prompt, prompts.names())}")
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


def _first(error: ValidationError) -> str:
    """The first thing that is wrong: where it stands, and what was probably meant."""
    # A key that is written wrong is also one that is missing.
    first = min(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    loc = first["loc"]
    if first["type"] == "extra_forbidden":
        key = str(loc[-1])
        return f"{_where(loc[:-1])}unknown key {key[:80]!r}; {near(key, _keys_at(loc[:-1]))}"
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
