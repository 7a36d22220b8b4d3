"""rules.toml: what it may say, and that every mistake is named with file and line."""

import re
from contextlib import suppress
from datetime import date
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pbxguard.screening
from pbxguard import packs
from pbxguard.errors import BadPack
from pbxguard.screening import rules
from pbxguard.screening.findings import FOUND
from pbxguard.screening.reasons import Label, Reason
from pbxguard.screening.rules import FINDINGS, NEEDS_FACTS, Rule, filter_hits, lets_in, read_rules

HEAD = '[defaults]\nsource = "test"\nstatus = "verified"\nchecked_on = 2026-11-21\n'
GOOD = {
    "id": '"5.some_list"',
    "when": '"system_listed"',
    "action": '"block"',
    "reason": '"system_blocklist"',
    "detail": '"on a list"',
}


def written(**changed: str | None) -> str:
    """A file of one rule: the good one with these keys changed, or left out where they are None."""
    keys = {name: value for name, value in (GOOD | changed).items() if value is not None}
    return HEAD + "\n[[rule]]\n" + "\n".join(f"{name} = {value}" for name, value in keys.items()) + "\n"


def refused(text: str) -> str:
    with pytest.raises(BadPack) as error:
        read_rules(text)
    message = str(error.value)
    assert message.startswith("rules.toml line ")
    assert "\n" not in message
    return message


def test_a_rule_is_read_whole() -> None:
    """Every key of a rule arrives, and what the defaults give it."""
    (rule,) = read_rules(
        written(
            trunk='["intl_*", "!internal"]',
            channel='["voice"]',
            number_class='["!mobile_*"]',
            group='["hmt"]',
            legal_basis='"Art. 13"',
            mode='"shadow"',
            source='"here"',
        )
    )
    assert rule == Rule(
        id="5.some_list",
        step=5,
        when="system_listed",
        action="block",
        detail="on a list",
        source="here",
        status="verified",
        checked_on=date(2026, 11, 21),
        trunk=("intl_*", "!internal"),
        channel=("voice",),
        number_class=("!mobile_*",),
        group=("hmt",),
        reason=Reason.SYSTEM_BLOCKLIST,
        legal_basis="Art. 13",
        mode="shadow",
        where="rules.toml line 6",
    )


def test_rules_are_sorted_by_step_and_keep_their_order_within_one() -> None:
    """The steps are fixed, so a rule of step 3 that stands last is tried before those of step 5."""
    first, second = written(), written(id='"5.another"')[len(HEAD) :]
    third = written(id='"3.early"', when='"national_cli"')[len(HEAD) :]
    assert [rule.id for rule in read_rules(first + second + third)] == ["3.early", "5.some_list", "5.another"]


@pytest.mark.parametrize(
    ("changed", "line", "message"),
    [
        ({"id": None}, 6, "key 'id' is missing"),
        ({"when": None}, 6, "key 'when' is missing"),
        ({"detail": None}, 6, "key 'detail' is missing"),
        ({"id": '"system_list"'}, 7, "id: 'system_list' is not a step from 1 to 9"),
        ({"id": '"10.allow"'}, 7, "id: '10.allow' is not a step from 1 to 9"),
        ({"id": "5"}, 7, "id: 5 is not 1 to 200 printable"),
        ({"when": '"system_list"'}, 8, "did you mean system_listed"),
        ({"action": '"blok"'}, 9, "did you mean block?"),
        ({"action": '"trunk.X"'}, 9, "'trunk.X' is none of block, allow, label, pass, anonymise, trunk.KEY"),
        ({"reason": '"system_blocklst"'}, 10, "did you mean system_blocklist"),
        ({"reason": None}, 6, "reason: is missing"),
        ({"detail": '"a\\nb"'}, 11, "detail: 'a\\nb' is not 1 to 200 printable ASCII characters"),
        ({"verdict": '"block"'}, 12, "verdict: unknown key"),
        ({"status": '"maybe"'}, 12, "status: 'maybe' is none of verified, unverified"),
        ({"checked_on": '"2026-11-21"'}, 12, "checked_on: '2026-11-21' is not a date"),
        ({"mode": '"quiet"'}, 12, "mode: 'quiet' is none of enforce, shadow, off"),
        ({"trunk": '"intl"'}, 12, "trunk: a list of strings is expected"),
        ({"trunk": "[]"}, 12, "trunk: a list of strings is expected"),
        ({"trunk": '["*"]'}, 12, "trunk: '*' is not a name"),
        ({"number_class": '["a*b"]'}, 12, "number_class: 'a*b' is not a name"),
        ({"channel": '["fax"]'}, 12, "channel: 'fax' is none of voice, sms"),
        ({"labels": '["mvno"]'}, 12, "labels: only a rule that labels has some"),
        ({"action": '"label"', "labels": '["mvn"]'}, 12, "did you mean mvno?"),
        ({"action": '"label"'}, 6, "labels: is missing"),
        ({"id": '"4.early"'}, 8, "when: system_listed needs the store, so its rule is of step 5 or later"),
        ({"when": '"callee_class"'}, 8, "when: callee_class needs number_class"),
        ({"id": '"1.refuse"', "when": '"any"'}, 9, "action: rules of step 1 allow, always"),
        ({"id": '"1.e"', "when": '"any"', "action": '"allow"', "mode": '"off"'}, 9, "rules of step 1 allow, always"),
    ],
)
def test_a_wrong_rule_is_named(changed: dict[str, str | None], line: int, message: str) -> None:
    """File, line and key of what is wrong, what would be right, and the like of a mistyped name."""
    found = refused(written(**changed))
    assert found.startswith(f"rules.toml line {line}: ")
    assert message in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: one [[rule]] or more is expected"),
        ("rule = 5", "line 1: one [[rule]] or more is expected"),
        ("[[rule]", "line 1: not TOML"),
        (HEAD + "[[rules]]\n", "rules: unknown; it has [defaults] and [[rule]]"),
        ("[defaults]\ntrunk = ['x']\n" + written()[len(HEAD) :], "line 1: [defaults] may have checked_on"),
        ("rule = [{id = 'x'}]", "line 1: one [[rule]] or more is expected"),
        (written() + written()[len(HEAD) :], "rule 5.some_list: id: is there already, at rules.toml line 6"),
    ],
)
def test_a_wrong_file_is_named(text: str, message: str) -> None:
    """A file without rules, without form or with a rule twice is refused with its line."""
    assert message in refused(text)


@given(st.text() | st.text(alphabet='[]="\n .#rule5idaction').map(lambda text: HEAD + "[[rule]]\n" + text))
def test_any_text_is_rules_or_one_error(text: str) -> None:
    """Whatever a file holds, it is read or refused with one line that names it."""
    with suppress(BadPack):
        assert read_rules(text)
        return
    refused(text)


@pytest.mark.parametrize(
    ("patterns", "inside", "outside"),
    [
        ((), ("mobile_cm", ""), ()),
        (("fixed",), ("fixed",), ("fixed_bad_length", "")),
        (("mobile_*",), ("mobile_cm", "mobile_"), ("mobile", "fixed")),
        (("!mobile_*",), ("fixed", "", "invalid"), ("mobile_cm",)),
        (("mobile_*", "!mobile_mvno_*"), ("mobile_cm",), ("mobile_mvno_cm", "fixed")),
        (("!fixed", "!iot"), ("mobile_cm",), ("fixed", "iot")),
    ],
)
def test_filters(patterns: tuple[str, ...], inside: tuple[str, ...], outside: tuple[str, ...]) -> None:
    """A filter lets in the names and prefixes that it lists, and all but those after an exclamation mark."""
    assert all(lets_in(patterns, name) for name in inside)
    assert not any(lets_in(patterns, name) for name in outside)


def test_what_a_filter_means() -> None:
    """A pattern that means nothing in a pack can be told, with or without its exclamation mark."""
    assert filter_hits("!mobile_*", ("fixed", "mobile_cm"))
    assert filter_hits("fixed", ("fixed",))
    assert not filter_hits("!mobil", ("mobile_cm",))


def test_every_finding_is_made_and_explained() -> None:
    """What a rule may name, what the code can see, and what is said about it are the same names."""
    assert set(FOUND) == set(FINDINGS)
    assert set(FINDINGS) >= NEEDS_FACTS


SHIPPED = sorted(str(path) for path in Path(str(files("pbxguard.packs"))).glob("*/rules.toml"))


@pytest.mark.parametrize("path", SHIPPED)
def test_shipped_rules(path: str) -> None:
    """Every shipped file is read; each rule has a source, and each one that refuses is confirmed by it."""
    found = read_rules(Path(path).read_text("utf-8"))
    assert {rule.step for rule in found} == set(range(1, 10))
    assert all(rule.mode == "enforce" for rule in found)
    assert [rule.id for rule in found if rule.action == "block" and rule.status != "verified"] == []


def test_every_reason_and_label_has_a_rule_behind_it() -> None:
    """No reason of a refusal and no label is without a rule, but those that a guard or a detector gives."""
    shipped = packs.load("cn")
    reasons = {rule.reason for rule in shipped.rules if rule.reason is not None and rule.may_block}
    refusals = {reason for reason in Reason if shipped.reason_group(reason) != "pass"}
    assert refusals - reasons == {Reason.GUARD_FAILED, Reason.SEGMENT_BREAKER}
    labels = {label for rule in shipped.rules for label in rule.labels}
    of_classes = {rules.label for rules in shipped._plan.classes.values()}
    assert set(Label) - labels - of_classes == {Label.SIMBOX_SUSPECTED, Label.CLI_ANONYMISED}


def test_the_code_of_the_policy_names_nothing_of_a_country() -> None:
    """No province, operator, class or trunk kind of any shipped pack stands in the code that decides."""
    folder = Path(pbxguard.screening.__file__).parent
    for name in packs.shipped():
        pack = packs.load(name)
        scopes = {"all", "intl", "enterprise"}  # of dno.csv; which trunks one means stands in rules.toml
        theirs = pack.provinces | pack.operators | set(pack._plan.classes) | set(pack.trunks)
        theirs -= scopes | {"any"}  # an operator of Germany, and every call
        for module in ("policy.py", "findings.py", "rules.py"):
            words = set(re.findall(r'"([a-z0-9_*]+)"', (folder / module).read_text("utf-8")))
            assert not words & theirs, f"{module} knows {words & theirs} of {name}"


def test_rules_have_the_steps_that_are_documented() -> None:
    """The order in the policy's own words has the steps that a rule can be of."""
    from pbxguard.screening import policy

    numbered = re.findall(r"^(\d+)\. ", policy.__doc__ or "", re.MULTILINE)
    assert [int(number) for number in numbered] == [*rules.STEPS, 10]
