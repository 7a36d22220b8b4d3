"""Scenario files: what they say is read as meant, variables and matrix too, and what is wrong is one clear line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pbxguard import packs
from pbxguard.cli.main import pbxguard
from pbxguard.errors import BadInput, BadNumber, UnknownName
from pbxguard.lab import scenario, scenariofile, schema
from pbxguard.lab.goip.plan import GatewayPlan
from pbxguard.lab.topology import number_of
from pbxguard.screening.lists import matches, normalise_pattern
from pbxguard.screening.numbering import home_key

FOLDER = Path(__file__).parents[1] / "scenarios"

PLAIN = """\
title = "plain"
[[step]]
title = "one call"
call = { cli = "+85261234567", callee = "zhang", trunk = "intl" }
[step.expect]
verdict = "block"
reason = "intl_default_off"
sip_status = 603
"""

MANY = """\
title = "forms of ${country}"
[vars]
country = "Hong Kong"
status = 603
quick = 0.5
[matrix]
pbx = ["asterisk", "freeswitch"]
cli = ["+85261234567", { cli = "85261234567", status = 480, cut = true }, ""]
cut = [false]
[actors.gateway]
trunk = "intl"
cli = "${cli}"
display_name = "from ${country}"
[actors.victim]
phone = "zhang"
[[step]]
title = "${country} calls"
[step.given]
registry = [{ verb = "open", number = "victim", class = "hmt" }]
lists = [{ pattern = "1*", subscriber = "victim" }]
[step.call]
from = "gateway"
to = "victim"
hang_up_after = "${quick}"
[step.expect]
verdict = "block"
reason = "intl_default_off"
sip_status = "${status}"
prompt_cut = "${cut}"
rang = ["victim"]
headers = { "603.Reason" = "cause=$${x}", "victim:INVITE.From" = "${country}" }
"""


def read(tmp_path: Path, text: str) -> tuple[scenario.Scenario, ...]:
    """The scenarios of a file with this text."""
    path = tmp_path / "x.toml"
    path.write_text(text, encoding="utf-8")
    return scenariofile.read(path)


@pytest.mark.parametrize("text", ["a = " + "[" * 20_000, "a = " + "{a = " * 20_000])
def test_nested_without_end(tmp_path: Path, text: str) -> None:
    """Thousands of nested brackets are refused by file, not raised from the parser's stack."""
    with pytest.raises(BadInput, match=r"x\.toml: not valid TOML: nested too deep"):
        read(tmp_path, text)


def test_a_plain_file_is_one_scenario(tmp_path: Path) -> None:
    """A file without matrix is one scenario under its own name; what it leaves out is not asked."""
    (found,) = read(tmp_path, PLAIN)

    assert (found.name, found.title, found.pbx) == ("x", "plain", None)
    (step,) = found.step
    assert (step.call.number, step.expect.rang, step.expect.headers) == ("13957100001", None, {})


def test_a_file_without_variables_may_hold_dollars(tmp_path: Path) -> None:
    """Where a file declares no variables, `${...}` is text, as in the files of a caller who tries injection."""
    (found,) = read(tmp_path, PLAIN.replace("+85261234567", "${SHELL(id)}"))

    assert found.step[0].call.cli == "${SHELL(id)}"


def test_a_matrix_is_one_scenario_for_each_combination(tmp_path: Path) -> None:
    """Every combination is a scenario of its own; the same one on two PBXs has the same name."""
    found = read(tmp_path, MANY)

    assert [(each.name, each.pbx) for each in found] == [
        (f"x.{number}", pbx) for pbx in ("asterisk", "freeswitch") for number in (1, 2, 3)
    ]
    assert [each.step[0].title for each in found[:3]] == [
        "Hong Kong calls [cli +85261234567, cut False]",
        "Hong Kong calls [cli 85261234567, cut False]",
        "Hong Kong calls [cli (none), cut False]",
    ]


def test_variables_are_filled_in_with_their_type(tmp_path: Path) -> None:
    """A string that is one variable becomes the value, number and truth value too; in a longer one it is text."""
    first, second, third = (each.step[0] for each in read(tmp_path, MANY)[:3])

    assert [each.call.cli for each in (first, second, third)] == ["+85261234567", "85261234567", ""]
    assert [each.expect.sip_status for each in (first, second, third)] == [603, 480, 603]
    assert first.call.hang_up_after == 0.5
    assert first.expect.prompt_cut is False
    assert first.call.display_name == "from Hong Kong"
    assert first.expect.headers["caller:603.Reason"] == "cause=${x}"


def test_actors_stand_for_who_they_are(tmp_path: Path) -> None:
    """An actor's name stands for the lab's telephone wherever somebody is called, given or expected."""
    step = read(tmp_path, MANY)[0].step[0]

    assert (step.call.trunk, step.call.callee) == ("intl", "zhang")
    assert step.given.registry[0].number == "zhang"
    assert step.given.lists[0].subscriber == "zhang"
    assert step.expect.rang == ("zhang",)
    assert step.expect.headers["zhang:INVITE.From"] == "Hong Kong"


WRONG = [
    ("sip_status = 603", "sip_staus = 603", "step 1: expect: unknown key 'sip_staus'; did you mean sip_status"),
    ('title = "plain"', 'titel = "plain"', "unknown key 'titel'; did you mean title?"),
    ("callee =", "calle =", "step 1: call: unknown key 'calle'; did you mean callee?"),
    ("[step.expect]", "given = { regstry = [] }\n[step.expect]", "step 1: given: unknown key 'regstry'; did you"),
    ('"zhang"', '"zang"', "step 1: 'zang' is neither a number nor a telephone of the lab; did you mean zhang"),
    ('"intl" }', '"int" }', "step 1: trunk 'int' is not in the lab; did you mean intl"),
    ('verdict = "block"', "", "step 1: expect: key 'verdict' is missing"),
    ("603", '"soon"', "step 1: expect.sip_status: Input should be a valid integer"),
    ('"block"', '"blocked"', "Input should be 'allow', 'block', 'failed' or 'none', not 'blocked'"),
    ("sip_status", 'prompt = "intl_defaultoff"\nsip_status', "no prompt 'intl_defaultoff'; did you mean intl"),
    ("sip_status", 'headers = { "603" = "x" }\nsip_status', "step 1: expect.headers: '603' is none of"),
    ("sip_status", 'headers = { "603.A" = "[" }\nsip_status', "'[' is no regular expression"),
    ("sip_status", 'headers = { "zang:INVITE.A" = true }\nsip_status', "'zang' is neither a number nor"),
    ('trunk = "intl"', 'trunk = "goip1", codecs = ["GSM"]', "call.codecs: goip1 is a gateway, which writes"),
    ('trunk = "intl"', 'trunk = "intl", raw = true, codecs = ["GSM"]', "call.codecs: a call with `raw` offers"),
    ('trunk = "intl"', 'trunk = "intl", codecs = ["opus"]', "call.codecs.0: Input should be 'PCMA', 'PCMU', 'G722'"),
    ("sip_status", 'decision = { rul = "x" }\nsip_status', "step 1: expect.decision"),
    ('cli = "+85261234567", ', "", "step 1: the call has no `cli`"),
    ('callee = "zhang", ', "", "step 1: the call has no `callee`"),
    ('callee = "zhang", ', 'from = "scammer", ', "step 1: no actor 'scammer' in [actors]; there are none"),
    (PLAIN.partition("[[step]]")[1] + PLAIN.partition("[[step]]")[2], "step = []", "no [[step]]"),
    ("[[step]]", "[matrix]\nx = []\n[[step]]", "matrix.x: no value"),
    ("[[step]]", '[matrix]\npbx = ["asterix"]\n[[step]]', "matrix.pbx: 'asterix' is none of asterisk, freeswitch"),
    ("one call", 'one call"\ngiven = { handler = "killed" }\n# "', "the file needs `alone = true`"),
]  # fmt: skip


MEANT = [
    ({"verdict": "block"}, {"answered": False, "callee_rang": False}),
    ({"verdict": "block", "sip_status": 603, "rang": ("zhang",)}, {"answered": False}),
    ({"verdict": "none"}, {"answered": False, "callee_rang": False, "prompt": ""}),
    ({"verdict": "allow"}, {"prompt": ""}),
    ({"verdict": "allow", "sip_status": 200}, {"answered": True, "prompt": ""}),
    ({"verdict": "allow", "sip_status": 486}, {"answered": False, "prompt": ""}),
    ({"verdict": "failed", "sip_status": 480}, {"answered": False}),
    ({"verdict": "block", "answered": True, "callee_rang": True}, {}),
]


@pytest.mark.parametrize(("asked", "meant"), MEANT)
def test_what_is_not_asked_is_not_judged(asked: dict[str, Any], meant: dict[str, Any]) -> None:
    """Only what a verdict and a status mean is judged unasked: a refused call rings nowhere, an allowed one has no
    prompt; what the file says counts before that.
    """
    expected = scenario.Expect.model_validate(asked)
    left = {name for name, field in scenario.Expect.model_fields.items() if field.default is None}
    assert {name: getattr(expected, name) for name in left if getattr(expected, name) is not None} == {
        name: value for name, value in (meant | asked).items() if name in left
    }


def test_a_reason_that_no_pack_has_costs_no_call(tmp_path: Path) -> None:
    """A misspelt reason is found before a call is placed, with step and what was probably meant."""
    (found,) = read(tmp_path, PLAIN.replace("default_off", "default"))
    said = "step 1: expect.reason: no reason 'intl_default' in the country pack cn; did you mean intl_default_off"
    with pytest.raises(BadInput, match=re.escape(said)):
        scenariofile.require_reasons([found], packs.load("cn"))
    scenariofile.require_reasons(scenariofile.load(FOLDER), packs.load("cn"))


@pytest.mark.parametrize(("old", "new", "said"), WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    """A mistake is one line with file, step and key, and with what was probably meant."""
    assert old in PLAIN
    with pytest.raises(BadInput) as error:
        read(tmp_path, PLAIN.replace(old, new))

    message = str(error.value)
    assert message.startswith(f"{tmp_path}/x.toml: ")
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize("trunk", ["goip1", "goip2"])
@pytest.mark.parametrize(
    "key", ['headers = { A = "b" }', "raw = true", 'session = "x"', 'sdp = "a=x"', "offer = false"]
)
def test_nobody_writes_the_invite_of_a_gateway(tmp_path: Path, trunk: str, key: str) -> None:
    """What is put into an INVITE by hand is for carriers: of a gateway's call it would go past the gateway."""
    text = PLAIN.replace('trunk = "intl"', f'trunk = "intl", {key}')
    assert read(tmp_path, text)
    with pytest.raises(BadInput) as error:
        read(tmp_path, text.replace("intl", trunk, 1))
    assert str(error.value).endswith(
        f"step 1: call.{key.split(maxsplit=1)[0]}: {trunk} is a gateway, which writes the INVITE itself; "
        f"`{key.split(maxsplit=1)[0]}` is for calls of a carrier: intl, natl, ent"
    )


def test_a_variable_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A variable that is written wrong is named with the combination, and with those that there are."""
    with pytest.raises(
        BadInput, match=r"\[pbx=asterisk.*no variable 'staus' in \[vars\] or \[matrix\]; did you mean stat"
    ):
        read(tmp_path, MANY.replace("${status}", "${staus}"))


def test_a_matrix_without_end_is_refused(tmp_path: Path) -> None:
    """A matrix of a million combinations is refused before any is made."""
    axis = str([str(number) for number in range(100)])
    with pytest.raises(BadInput, match="1000000 combinations; at most 500"):
        read(tmp_path, f"[matrix]\na = {axis}\nb = {axis}\nc = {axis}\n")


def test_one_combination_by_name(tmp_path: Path) -> None:
    """`NAME` is all of a file, `NAME.2` one combination of it, for each PBX; another number is not known."""
    (tmp_path / "many.toml").write_text(MANY)

    assert len(scenariofile.load(tmp_path)) == len(scenariofile.load(tmp_path, ("many",))) == 6
    assert [each.name for each in scenariofile.load(tmp_path, ("many.2", "many.2"))] == ["many.2", "many.2"]
    with pytest.raises(UnknownName, match=r"no scenario 'many\.9'.*that file has many\.1, many\.2, many\.3"):
        scenariofile.load(tmp_path, ("many.9",))
    with pytest.raises(UnknownName, match=r"no scenario 'mani'.*did you mean many"):
        scenariofile.load(tmp_path, ("mani",))


def test_no_scenario_is_an_error(tmp_path: Path) -> None:
    """An empty folder is an error, never a run of nothing."""
    with pytest.raises(BadInput, match="no scenario"):
        scenariofile.load(tmp_path)


def test_the_published_schema_is_up_to_date() -> None:
    """`pbxguard/lab/scenario.schema.json` is what `pbxguard lab schema` prints."""
    assert schema.FILE.read_text(encoding="utf-8") == schema.text(), (
        "regenerate it: pbxguard lab schema > pbxguard/lab/scenario.schema.json"
    )


def test_the_command_prints_the_schema() -> None:
    """`pbxguard lab schema` prints the very bytes, for a file of the reader's own."""
    done = CliRunner().invoke(pbxguard, ["lab", "schema"])

    assert (done.exit_code, done.stdout) == (0, schema.text())


def test_the_schema_knows_every_key_and_says_what_it_is() -> None:
    """Every key of every table has a description for the editor, and no table takes unknown keys."""
    found = schema.schema()
    tables = {name: part for name, part in {**found["$defs"], "file": found}.items() if "enum" not in part}
    for name, part in tables.items():
        assert part["additionalProperties"] is False, name
        assert part["description"], name
        if name not in ("ConsentGiven", "EntryGiven", "BindingGiven"):
            for key, value in part["properties"].items():
                assert value.get("description"), f"{name}.{key}"
    assert json.dumps(found)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_names_the_schema(path: Path) -> None:
    """The first line of each shipped scenario is the comment that editors complete by, and it leads to the file."""
    first = path.read_text(encoding="utf-8").splitlines()[0]

    assert first.startswith("#:schema ")
    assert (path.parent / first.removeprefix("#:schema ")).resolve() == schema.FILE.resolve()
    assert scenariofile.read(path)


def home_form(number: str) -> str:
    """The number as lists have it; what is none, as it is."""
    try:
        return home_key(number, packs.load("cn"))
    except BadNumber:
        return number


def test_no_scenario_blocks_the_caller_of_another() -> None:
    """A list entry stays for the later calls of a run, so its numbers call nobody else's: any order will do.

    Numbers, prefixes and ranges; two that give the same entry do not mind each other, and texts are not screened yet.
    """
    found = scenariofile.load(FOLDER)
    entries = {
        (
            each.name,
            normalise_pattern(entry.pattern, home_form, home="+86"),
            entry.subscriber and number_of(entry.subscriber),
        )
        for each in found
        for step in each.step
        for entry in step.given.lists
        if ":" not in entry.pattern
    }
    assert len(entries) >= 20
    met = [
        (each.name, step.title, giver, pattern)
        for each in found
        for step in each.step
        for giver, pattern, subscriber in entries
        if step.text is None and matches(pattern, home_form(step.call.cli))
        if subscriber in (None, step.call.number)
        if (each.name, pattern, subscriber) not in entries
    ]
    assert met == []


def test_the_examples_of_the_manual_are_scenarios(tmp_path: Path) -> None:
    """Each TOML block of tests/scenarios/README.md is a file that the lab reads."""
    blocks = re.findall(r"```toml\n(.*?)```", (FOLDER / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        path = tmp_path / f"example-{number}.toml"
        path.write_text(block, encoding="utf-8")
        assert scenariofile.read(path)


def test_the_manual_names_every_setting_of_a_gateway() -> None:
    """What can be set up of a gateway stands in tests/scenarios/README.md."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [name for name in GatewayPlan.model_fields if f"`{name}" not in text] == []
