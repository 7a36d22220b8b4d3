"""The README says what the code does: names, tables and examples are compared with what they describe.

``python tests/test_docs.py`` writes the generated tables into the README; a person writes the rest.
"""

import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from pbxguard import errors, packs
from pbxguard.cli.main import pbxguard
from pbxguard.config import FreeswitchSettings, Settings, TrunkSettings
from pbxguard.lab import record
from pbxguard.lab.scenariofile import load
from pbxguard.resources import DIALPLANS
from pbxguard.screening.call import Basis, Block, Failed, Label, Reason, Trunk
from pbxguard.screening.lists import Action
from pbxguard.screening.rules import Rule
from pbxguard.screening.treatment import _SHOWN, ASTERISK, FREESWITCH, Capabilities, Treatment, treatment_for
from pbxguard.store import LIST_COLUMNS

README = Path(__file__).resolve().parent.parent / "README.md"
DIALPLAN = (DIALPLANS / "asterisk" / "pbxguard.conf").read_text(encoding="utf-8")
PACK = packs.load("cn")


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that can be run, with the words that run it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from commands(found, *path, name)
        else:
            yield " ".join((*path, name)), found


def settings(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every setting by its dotted name, with its default; ``trunks`` as ``trunks.NAME``."""
    for name, field in model.model_fields.items():
        if name == "trunks":
            yield from settings(TrunkSettings, "trunks.NAME.")
        elif name == "freeswitch":
            yield from settings(FreeswitchSettings, "freeswitch.NAME.")
        elif isinstance(field.default, BaseModel):
            yield from settings(type(field.default), f"{prefix}{name}.")
        else:
            yield prefix + name, None if field.is_required() else field.default


def as_toml(value: object) -> str:
    """A default as it would stand in the settings file; "" where there is none."""
    match value:
        case None:
            return ""
        case bool():
            return f"`{str(value).lower()}`"
        case int():
            return f"`{value}`"
        case tuple():
            return f"`{list(value)}`"
    return f'`"{value}"`'


def fences(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def examples(text: str) -> list[list[str]]:
    """The words of each ``pbxguard`` command in the shell examples, without program and global option."""
    lines = re.findall(r"^pbxguard (?:--config \S+ )?(.*)", "".join(fences(text, "sh")), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def exit_codes(text: str) -> list[tuple[int, list[str]]]:
    """The examples in the table of exit codes: the code, and the words behind ``pbxguard``."""
    rows = re.findall(r"^\| (\d) \| .* \| (.*) \|$", text, re.MULTILINE)
    return [(int(code), shlex.split(line)) for code, cell in rows for line in re.findall(r"`pbxguard (.*?)`", cell)]


# -- generated tables --------------------------------------------------------------------------------------


def treated(reason: Reason, capabilities: Capabilities, *, hostile_ok: bool = False) -> Treatment:
    basis = Basis(rule="", detail="")
    return treatment_for(
        Failed("") if reason is Reason.GUARD_FAILED else Block(reason, basis),
        trunk=Trunk("t", "national", fail="closed", hostile_ok=hostile_ok),
        capabilities=capabilities,
        pack=PACK,
        language="zh",
    )


def refuses(name: str) -> bool:
    return name in set(Reason) and PACK.reason_group(name) != "pass"


def rules_behind(name: str) -> list[Rule]:
    """The rules of the pack that give a reason or a label; what a kind of trunk anonymises is seen in all packs."""
    if refuses(name):
        return [rule for rule in PACK.rules if rule.reason == name and rule.may_block]
    of_class = {rules.label for tag in PACK.tags if (rules := PACK.class_rules(tag))}
    anonymising = {
        rule.id
        for pack in map(packs.load, packs.shipped())
        for rule in pack.rules
        if "anonymise" in (rule.action, *(getattr(kind, rule.trunk_key or "kind") for kind in pack.trunks.values()))
    }
    return [
        rule
        for rule in PACK.rules
        if (rule.reason == name and not rule.may_block)
        or name in rule.labels
        or (rule.when == "class_label" and name in of_class)
        or (rule.when == "flagged" and name == Label.SIMBOX_SUSPECTED)
        or (name == Label.CLI_ANONYMISED and rule.id in anonymising)
    ]


def reasons() -> str:
    """Every reason and label, what it says, what the caller gets on each PBX, and the rules behind it."""
    lines = [
        "| reason or label | what it says | the caller hears | Asterisk | FreeSWITCH | rules | legal basis |",
        "|---|---|---|---|---|---|---|",
    ]
    names = [str(name) for name in dict.fromkeys((*Reason, *Label))]
    for name in sorted(names, key=lambda name: (not refuses(name), name not in set(Reason))):
        found = rules_behind(name)
        laws = "; ".join(dict.fromkeys(rule.legal_basis for rule in found if rule.legal_basis))
        ids = ", ".join(rule.id for rule in found) or NO_RULE.get(name, "none yet")
        lines.append(f"| `{name}` | {what_it_says(name)} | {' | '.join(outcome(name))} | {ids} | {laws} |")
    return "\n".join(lines)


NO_RULE = {Reason.DEFAULT: "10.allow", Reason.GUARD_FAILED: "the trunk's `fail`"}


def what_it_says(name: str) -> str:
    """The text of a reason, and what the callee's display shows of a label."""
    text = PACK.text(name, "en").removeprefix("The call was refused because ") if name in set(Reason) else ""
    if name not in set(Label):
        return text
    shown = " / ".join(PACK.display(name, language) for language in ("zh", "en"))
    return f"{text} Display: {shown}".strip() if name in _SHOWN else f"{text} (log only)".strip()


def outcome(name: str) -> tuple[str, str, str]:
    """What the caller hears, and the SIP status on each PBX."""
    if not refuses(name):
        return ("ringing", "", "")
    reason = Reason(name)
    asterisk, hostile = treated(reason, ASTERISK), treated(reason, ASTERISK, hostile_ok=True)
    freeswitch = treated(reason, FREESWITCH)
    contact = treated(reason, replace(FREESWITCH, contact_url="https://example.com/"))
    return (
        f"`{asterisk.prompt}`",
        f"{asterisk.status}" + (f" ({hostile.status})" if hostile.status != asterisk.status else ""),
        f"{freeswitch.status}" + (f" ({contact.status})" if contact.status != freeswitch.status else ""),
    )


GENERATED: dict[str, Callable[[], str]] = {"reasons": reasons}


def between(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name}: from tests/test_docs.py -->\n\n).*?(\n\n<!-- end -->)", re.DOTALL)


# -- claims ------------------------------------------------------------------------------------------------


@pytest.fixture
def readme() -> str:
    return README.read_text(encoding="utf-8")


def test_every_reason_and_label_has_a_rule_or_a_cause() -> None:
    """Each refusal but that of a detector to come has rules behind it; no rule gives what the table does not have."""
    missing = [name for name in (*Reason, *Label) if not rules_behind(name) and name not in NO_RULE]
    assert missing == [Reason.SEGMENT_BREAKER]
    assert {rule.id for name in (*Reason, *Label) for rule in rules_behind(name)} == {rule.id for rule in PACK.rules}


@pytest.mark.parametrize("name", GENERATED)
def test_generated_tables_are_those_of_the_code(readme: str, name: str) -> None:
    """The reasons, prompts, statuses, rules and labels in the README are those of pack, policy and treatment."""
    found = between(name).search(readme)
    assert found, f"the README has no table {name}"
    assert found[0] == f"{found[1]}{GENERATED[name]()}{found[2]}", "run: python tests/test_docs.py"


def test_every_command_has_an_example(readme: str) -> None:
    """Every command and sub-command stands in a shell example."""
    shown = [" ".join(words) for words in examples(readme)]
    missing = [name for name, _ in commands(pbxguard) if not any(f"{line} ".startswith(f"{name} ") for line in shown)]
    assert not missing


def test_every_example_is_a_command_with_options_that_exist(readme: str) -> None:
    """No example names a command or an option that there is not."""
    known = dict(commands(pbxguard))
    wrong = []
    for words in examples(readme):
        name = next((n for n in (" ".join(words[:2]), words[0]) if n in known), None)
        options = {o for p in known[name].params for o in (*p.opts, *p.secondary_opts)} if name else set()
        wrong += [" ".join(words) for word in words if not name or (word.startswith("--") and word not in options)]
    assert not wrong


def test_every_example_of_a_scenario_has_one(readme: str, tmp_path: Path) -> None:
    """What `lab run` and `lab show` name is a scenario of the lab, of one call where one is shown; `lab record` can
    make a file of its name.
    """
    firsts = [command.epilog.splitlines()[0] for _, command in commands(pbxguard) if command.epilog]
    helps = [first.removeprefix("Example: pbxguard ") for first in firsts]
    found = [words[1:3] for words in (*examples(readme), *map(shlex.split, helps)) if words[:1] == ["lab"]]
    named = [(words[0], words[1]) for words in found if len(words) == 2 and not words[1].startswith("-")]
    steps = {scenario.name: len(scenario.step) for scenario in load(README.parent / "tests" / "scenarios")}
    calls = {f"{name}-{n + 1}" if many > 1 else name for name, many in steps.items() for n in range(many)}
    assert {verb for verb, _ in named} >= {"run", "show", "record"}
    assert {name for verb, name in named if verb == "run"} <= steps.keys()
    assert {name for verb, name in named if verb == "show"} <= calls
    for name in (name for verb, name in named if verb == "record"):
        assert record.target(tmp_path, name, force=False) == tmp_path / f"{name}.toml"


def test_every_setting_is_listed_with_its_default(readme: str) -> None:
    """The settings table has every setting with its default, and no other."""
    rows = re.findall(r"^\| `([a-z_]+|[a-z]+\.[\w.]+)` \| (`[^|]*`)? ?\| [^|]+\|$", readme, re.MULTILINE)
    reasons_and_labels = {*Reason, *Label}
    assert {n: d for n, d in rows if n not in reasons_and_labels} == {n: as_toml(d) for n, d in settings()}


def test_every_trunk_kind_is_named(readme: str) -> None:
    """The README names the trunk kinds that a site can declare."""
    assert [kind for kind in PACK.trunks if f"`{kind}`" not in readme] == []


def test_example_settings_are_valid(readme: str) -> None:
    """The settings file in the README is one that pbxguard reads, with kinds that the pack has."""
    import tomllib

    found = fences(readme, "toml")
    assert found
    for text in found:
        site = Settings.model_validate(tomllib.loads(text))
        assert {trunk.kind for trunk in site.trunks.values()} <= set(PACK.trunks)


def test_dialplan_lines_are_those_of_the_dialplan_file(readme: str) -> None:
    """What the README tells to put into extensions.conf is what the dialplan's own comment tells."""
    head = re.search(r"call one subroutine\.\n;\n(.*?)\n;\n; The subroutine", DIALPLAN, re.DOTALL)
    assert head
    wanted = "\n".join(line.removeprefix(";").removeprefix("   ") for line in head[1].splitlines())
    assert wanted in "\n".join(fences(readme, "ini"))


def test_every_dialplan_variable_is_described(readme: str) -> None:
    """Every variable that a user may set or read in the dialplan has a row in the README."""
    names = set(re.findall(r"PBXGUARD_[A-Z]+", DIALPLAN))
    assert names
    assert sorted(name for name in names if f"| `{name}` |" not in readme) == []


def test_every_environment_variable_is_described(readme: str) -> None:
    """Every environment variable that the settings look at is named."""
    source = inspect.getsource(inspect.getmodule(Settings) or Settings)
    names = set(re.findall(r'environ\.get\("(\w+)"\)', source))
    assert names
    assert sorted(name for name in names if f"`{name}`" not in readme) == []


def test_every_exit_code_is_described(readme: str) -> None:
    """The table of exit codes has 0, 1 and those of the errors, and no other."""
    parent = errors.PbxguardError
    codes = {parent.exit_code, *(kind.exit_code for kind in parent.__subclasses__())}
    assert {int(code) for code in re.findall(r"^\| (\d) \|", readme, re.MULTILINE)} == {0, 1} | codes


def test_examples_of_exit_codes_are_commands(readme: str) -> None:
    """Each code has examples, of commands that there are; tests/lab/test_one_call.py runs them."""
    found = exit_codes(readme)
    known = dict(commands(pbxguard))

    assert {code for code, _ in found} == {0, 1, 2, 3}
    assert [words for _, words in found if not {words[0], " ".join(words[:2])} & known.keys()] == []


def test_list_file_columns_are_described(readme: str) -> None:
    """The README names every column of a list file, and both actions."""
    assert ",".join(LIST_COLUMNS) in readme
    assert all(f"`{action}`" in readme for action in Action)


def test_make_targets_exist(readme: str) -> None:
    """Every `make` target in the README is one of the Makefile, and every one of it is in the README."""
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE)) - {"help"}
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", readme, re.MULTILINE)) - {"help"} == targets


def test_the_story_stands_before_the_tables(readme: str) -> None:
    """A newcomer reads how-to chapters in the order of the first hour; tables of more than ten rows come later."""
    chapters = re.findall(r"^## (.*)$", readme, re.MULTILINE)
    assert chapters[:3] == ["Hear a rejection", "The lab", "Add the guard to your Asterisk"]
    how_to = readme.partition("\n## What a caller hears\n")[0]
    assert all(f"\n## {chapter}\n" in how_to for chapter in ("Add the guard to your Asterisk", "Command line"))
    assert max(len(table.splitlines()) for table in re.findall(r"(?:^\|.*\n)+", how_to, re.MULTILINE)) <= 12
    first_hour = fences(readme.partition("\n## The lab\n")[2].partition("\n## ")[0], "sh")[0]
    verbs = re.findall(r"^pbxguard lab ([a-z]+)", first_hour, re.MULTILINE)
    assert verbs == ["up", "softphones", "call", "run", "show", "down"]
    assert "report.html" in first_hour


def test_links_within_the_readme_lead_somewhere(readme: str) -> None:
    """Every link to a chapter names one that there is."""
    chapters = re.findall(r"^#+ (.*)$", readme, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", chapter.lower()).replace(" ", "-") for chapter in chapters}
    links = re.findall(r"\]\(#([^)]*)\)", readme)
    assert links
    assert {*links} <= anchors


def test_files_of_the_map_exist(readme: str) -> None:
    """Every path in the map of the files is there."""
    section = readme.partition("## Map of the files")[2].partition("\n## ")[0]
    paths = re.findall(r"^(\S+)  ", "".join(fences(section, "text")), re.MULTILINE)
    assert paths
    assert [path for path in paths if not (README.parent / path).exists()] == []


def write() -> None:
    """Put the generated tables into the README."""
    text = README.read_text(encoding="utf-8")
    for name, table in GENERATED.items():
        found = between(name).search(text)
        assert found, f"the README has no table {name}"
        text = text.replace(found[0], f"{found[1]}{table()}{found[2]}")
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
