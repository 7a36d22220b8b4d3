"""The JSON schema of a scenario file, for completion and hover texts in an editor. Reads no scenario.

``scenario.schema.json`` beside this file is what it makes; a test holds the two together.
"""

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from pbxguard import prompts
from pbxguard.lab.scenario import Pbx
from pbxguard.lab.scenariofile import ScenarioFile
from pbxguard.lab.topology import CALLERS, GROUPS, PHONES

#: The published file.
FILE = Path(__file__).with_name("scenario.schema.json")

_VARIABLE = {
    "type": "string",
    "pattern": r"^\$\{[A-Za-z_][A-Za-z0-9_-]*\}$",
    "title": "a variable of [vars] or [matrix]",
}


def text() -> str:
    """The schema as it is published."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a scenario file."""
    found: dict[str, Any] = ScenarioFile.model_json_schema(by_alias=True)
    models = {model.__name__: model for model in _models(ScenarioFile)}
    for name, part in {**found["$defs"], "ScenarioFile": found}.items():
        if name not in models:
            part.pop("description", None)  # an enumeration: the key that has it says what it is
            continue
        model = models[name]
        said = _attributes(model)
        part["description"] = _plain((model.__doc__ or "").partition("\n\n")[0])
        for key, value in part["properties"].items():
            part["properties"][key] = _loose(value) if key not in ("vars", "matrix") else dict(value)
            if key in said:
                part["properties"][key]["description"] = said[key]
            part["properties"][key].pop("title", None)
    parts = found["$defs"]
    del parts["LinkFault"]["properties"]["address"]  # another in every world
    # Who calls and who is called: by number and trunk, or by actor.
    parts["CallInFile"]["allOf"] = [
        {"anyOf": [{"required": ["cli", "trunk"]}, {"required": ["from"]}]},
        {"anyOf": [{"required": ["callee"]}, {"required": ["to"]}]},
    ]
    names = {
        "trunk": [caller.name for caller in CALLERS if caller.calls],
        "callee": [each.name for each in (*PHONES, *GROUPS)],
        "phone": [each.name for each in (*PHONES, *GROUPS)],
        "prompt": list(prompts.names()),
    }
    links = ["pbx", *names["trunk"], *(phone.name for phone in PHONES if phone.address)]
    names |= {"actor": links, "peer": ["guard", *links]}
    for part in (parts["CallInFile"], parts["Actor"], parts["Expect"], parts["LinkFault"]):
        for key in part["properties"].keys() & names.keys():
            # Offered by the editor; other values are the reader's to judge (numbers, variables).
            part["properties"][key]["examples"] = names[key]
    found["properties"]["matrix"]["properties"] = {
        "pbx": {"type": "array", "items": {"enum": list(get_args(Pbx))}, "description": "For which PBX."}
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "pbxguard lab scenario"} | found


def _models(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The model and all that its fields hold."""

    def inside(annotation: Any) -> list[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return _models(annotation)
        return [each for part in get_args(annotation) for each in inside(part)]

    return [model, *(each for field in model.model_fields.values() for each in inside(field.annotation))]


def _attributes(model: type[BaseModel]) -> dict[str, str]:
    """What the docstrings say about each key; a model's own word before its parent's."""
    found: dict[str, str] = {}
    for each in reversed(model.__mro__):
        _, _, listed = (each.__doc__ or "").partition("Attributes:\n")
        for key, said in re.findall(r"^        (\w+): (.+(?:\n {12,}.+)*)", listed, re.MULTILINE):
            found[key] = _plain(said)
    return found


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")


def _loose(value: dict[str, Any]) -> dict[str, Any]:
    """A variable may stand for whatever is no text: in TOML it is a string there."""
    value = deepcopy(value)
    kept = {key: value.pop(key) for key in ("default", "description") if key in value}
    if "items" in value and "$ref" not in value["items"]:
        value["items"] = _loose(value["items"])
    if value.get("type") in ("integer", "number", "boolean") or "enum" in value:
        value = {"anyOf": [value, dict(_VARIABLE)]}
    elif any(each.get("type") in ("integer", "number", "boolean") for each in value.get("anyOf", ())):
        value["anyOf"] = [*(each for each in value["anyOf"] if each.get("type") != "null"), dict(_VARIABLE)]
    elif "anyOf" in value:
        # TOML has no null.
        value["anyOf"] = [each for each in value["anyOf"] if each.get("type") != "null"]
        if len(value["anyOf"]) == 1:
            value = value["anyOf"][0]
    if kept.get("default", 0) is None:
        del kept["default"]
    return value | kept
