"""Rules as data: what a line of ``rules.toml`` may say, read and checked.

A rule names a finding (``FINDINGS``: what the code can see in a call), for which calls it holds, and what follows.
Knows no number, class, province or date: those are the pack's. Does not know how a finding is made (``policy``).
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import date, datetime
from difflib import get_close_matches
from types import MappingProxyType
from typing import cast

from pbxguard.errors import BadPack
from pbxguard.screening.reasons import Label, Reason
from pbxguard.screening.tables import STATUS

FILE = "rules.toml"

STEPS: Mapping[int, str] = MappingProxyType(
    {
        1: "emergency callee",
        2: "charset and form of the CLI",
        3: "trunk rules",
        4: "class rules",
        5: "punishment and system lists, privacy bindings",
        6: "the subscriber's own lists",
        7: "default-off against the opt-in registry",
        8: "labels of class and origin",
        9: "detectors",
    }
)
"""The order of a decision (numbering-cn section 11); step 10 allows. Rules of one step stand in the file's order."""

FACTS_FROM = 5
"""From this step on a rule may need the store; the steps before it hold when the store does not answer.

One of their findings asks it all the same, the roaming look-up (``roams``, ``not_roaming``, ``roaming_unknown``):
without the store it has no answer, unless the trunk's own is ``yes``, and the trunk kind's ``roaming_unknown`` says
what follows.
"""

FINDINGS: Mapping[str, str] = MappingProxyType(
    {
        "any": "every call that the filters let in",
        "callee_class": "the callee is of a class in number_class",
        "cli_not_a_number": "the CLI is neither a number nor a word for a withheld one",
        "cli_withheld": "the network knows the CLI and does not show it",
        "cli_missing": "there is no CLI",
        "form_not_of_trunk": "the CLI is written in a form that is none of the trunk's wire_format",
        "no_such_country": "the CLI claims a country code that does not exist, or has a length it does not have",
        "national_cli": "the CLI is a number of home, valid or not",
        "foreign_cli": "the CLI is a number of another region",
        "roams": "national_mobile is roaming_check, and the look-up says that this number is abroad",
        "not_roaming": "the same, and it says that this number is at home",
        "roaming_unknown": "the same, and it has no answer, such as when the store does not answer",
        "not_allocated": "the trunk shows allocated numbers only, and the CLI is none of them",
        "not_an_extension": "the trunk shows extensions only, and the CLI is none of those allocated to it; where "
        "none are listed, the CLI is a number of the plan, withheld or missing",
        "dno_all": "the CLI is in dno.csv (do not originate) with scope all",
        "dno_intl": "the same, with scope intl; the rule's trunk filter says which trunks that means",
        "dno_enterprise": "the same, with scope enterprise",
        "no_class": "no number class has these national digits in this length",
        "dno_class": "numbers of the class only answer calls (dno)",
        "not_voice_class": "numbers of the class make no voice calls (voice_cli = no)",
        "no_outbound_licence": "the class may call out with a licence only, and the trunk has none (outbound)",
        "punished": "the CLI is on the joint punishment list",
        "punished_retained": "it is the number that a punished person keeps for basic communication",
        "system_listed": "the CLI is on another list of the site, to block",
        "binding_live": "a privacy number is bound to this callee",
        "binding_expired": "the binding of a privacy number to this callee has ended",
        "binding_unknown": "a privacy number of which this site knows no binding to this callee",
        "subscriber_blocked": "a callee's own list blocks the CLI",
        "subscriber_allowed": "the final callee's own list allows the CLI; for who allows it no default-off holds",
        "closed_by_subscriber": "a callee has closed calls of this group",
        "default_off": "calls of this group are off by default here, and a callee has not opened them",
        "class_label": "the class has a label of its own, which is given",
        "from_pai_disagree": "From and the identity that a trusted trunk asserts name two numbers",
        "flagged": "a detector has flagged the CLI with one of labels (with any, where the rule names none)",
    }
)
"""What ``when`` may name, and when it is so."""

NEEDS_FACTS = frozenset(
    {
        "punished",
        "punished_retained",
        "system_listed",
        "binding_live",
        "binding_expired",
        "binding_unknown",
        "subscriber_blocked",
        "subscriber_allowed",
        "closed_by_subscriber",
        "default_off",
        "flagged",
    }
)

ACTIONS = ("block", "allow", "label", "pass", "anonymise")
MODES = ("enforce", "shadow", "off")
_CHANNELS = ("voice", "sms")
_LABELS_OF_THEIR_OWN = ("class_label", "flagged")
_TEXT = re.compile(r"[ -~]{1,200}")
_ID = re.compile(r"([1-9])\.[a-z][a-z0-9_]{0,39}")
_PATTERN = re.compile(r"!?[a-z0-9][a-z0-9_]{0,39}\*?")
_TRUNK_KEY = re.compile(r"trunk\.([a-z][a-z_]{0,39})")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        id: ``STEP.name``, such as ``3.national_mobile``.
        step: 1 to 9, from the id (``STEPS``).
        when: Name of a finding.
        trunk: Trunk kinds for which it holds; this and the next three hold patterns: ``name``, ``prefix*``, or
            either with ``!`` before it for all but those. Empty means all.
        channel: ``voice``, ``sms``.
        number_class: Classes of the CLI, of the callee where ``when`` is ``callee_class``.
        group: ``intl``, ``hmt``.
        action: ``block``, ``allow``, ``label`` (go on, with the labels), ``pass`` (go on; its reason counts when
            nothing refuses the call), ``anonymise`` (go on, and withhold the CLI from the callee), or
            ``trunk.KEY``: what that key of the trunk's kind says.
        reason: Of a verdict that it gives.
        labels: What action ``label`` adds.
        detail: One plain sentence: what was found.
        legal_basis: Law and article, "" where there is none.
        source: Where the rule is from; ``status`` says whether that is confirmed, ``checked_on`` when it was read.
        mode: ``enforce``, ``shadow`` (noted, no effect) or ``off``.
        where: File and line.
    """

    id: str
    step: int
    when: str
    action: str
    detail: str
    source: str
    status: str
    checked_on: date
    trunk: tuple[str, ...] = ()
    channel: tuple[str, ...] = ()
    number_class: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    reason: Reason | None = None
    labels: tuple[Label, ...] = ()
    legal_basis: str = ""
    mode: str = "enforce"
    where: str = ""

    @property
    def fixed(self) -> bool:
        """It is of step 1: nobody may switch it off or put it to shadow."""
        return self.step == 1

    @property
    def trunk_key(self) -> str:
        """KEY of an action ``trunk.KEY``, else ""."""
        return self.action.partition(".")[2]

    @property
    def may_block(self) -> bool:
        """It blocks, or may, where the trunk's kind says so; a rule without a reason cannot."""
        return self.action == "block" or bool(self.trunk_key and self.reason)

    def bad(self, key: str, why: str) -> BadPack:
        """The error for a key of this rule that does not fit the rest of the pack."""
        return BadPack(f"{self.where}: rule {self.id}: {key}: {why}")


def lets_in(patterns: tuple[str, ...], name: str) -> bool:
    """Whether a filter holds for this name: none of its ``!`` patterns, and one of the others if it has any."""
    wanted = [pattern for pattern in patterns if pattern[0] != "!"]
    return not any(_is(pattern[1:], name) for pattern in patterns if pattern[0] == "!") and (
        not wanted or any(_is(pattern, name) for pattern in wanted)
    )


def filter_hits(pattern: str, names: Iterable[str]) -> bool:
    """Whether a pattern of a filter, with or without ``!``, means any of these names."""
    return any(_is(pattern.removeprefix("!"), name) for name in names)


def _is(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def read_rules(text: str) -> tuple[Rule, ...]:
    """Read ``rules.toml``: a table ``[defaults]`` and one ``[[rule]]`` each, in the order in which they are tried.

    ``[defaults]`` gives source, status, checked_on and legal_basis for rules that do not say. Rules are sorted by
    step; within a step they keep the file's order.

    Raises:
        BadPack: With file and line, for a key that is missing, unknown or out of its range, a finding or action
            that there is not, an id that is there twice, or a finding that needs the store before step 5.
    """
    lines = text.splitlines()
    try:
        root: dict[str, object] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"at line ([0-9]+)", str(error))
        raise BadPack(f"{FILE} line {at[1] if at else max(len(lines), 1)}: not TOML ({error})") from error
    starts = [number for number, line in enumerate(lines, 1) if re.match(r"\s*\[\[\s*rule\s*\]\]", line)]
    for key in root:
        if key not in ("defaults", "rule"):
            raise BadPack(f"{FILE} line {_line(lines, key, 1)}: {key}: unknown; it has [defaults] and [[rule]]")
    tables, defaults = root.get("rule"), root.get("defaults", {})
    if not isinstance(tables, list) or not tables or len(tables) != len(starts):
        raise BadPack(f"{FILE} line 1: one [[rule]] or more is expected, each under a heading of its own")
    head = next((n for n, line in enumerate(lines, 1) if re.match(r"\s*\[\s*defaults\s*\]", line)), 1)
    if not isinstance(defaults, dict) or not set(defaults) <= _DEFAULTS:
        raise BadPack(f"{FILE} line {head}: [defaults] may have {', '.join(sorted(_DEFAULTS))}")
    rules: dict[str, Rule] = {}
    for start, table in zip(starts, tables, strict=True):
        rule = _Reader(lines, start, {**defaults, **cast("dict[str, object]", table)}).rule()
        if rule.id in rules:
            raise rule.bad("id", f"is there already, at {rules[rule.id].where}")
        rules[rule.id] = rule
    return tuple(sorted(rules.values(), key=lambda rule: rule.step))


_DEFAULTS = frozenset({"source", "status", "checked_on", "legal_basis"})
_KEYS = frozenset(field.name for field in fields(Rule)) - {"step", "where"}


@dataclass(frozen=True, slots=True)
class _Reader:
    """One [[rule]] and where it stands."""

    lines: list[str]
    start: int
    table: dict[str, object]

    def rule(self) -> Rule:
        for key in self.table:
            if key not in _KEYS:
                raise self.bad(key, f"unknown key{near(key, _KEYS)}")
        name = self.text("id")
        found = _ID.fullmatch(name)
        if found is None:
            raise self.bad("id", f"{name!r} is not a step from 1 to 9, a dot and a name, such as 5.system_list")
        reason = self.text("reason", "")
        rule = Rule(
            id=name,
            step=int(found[1]),
            when=self.one_of("when", FINDINGS),
            action=self.action(),
            detail=self.text("detail"),
            source=self.text("source"),
            status=self.one_of("status", STATUS),
            checked_on=self.day("checked_on"),
            trunk=self.patterns("trunk"),
            channel=self.patterns("channel"),
            number_class=self.patterns("number_class"),
            group=self.patterns("group"),
            reason=Reason(self.one_of("reason", tuple(Reason))) if reason else None,
            labels=tuple(Label(label) for label in self.words("labels", tuple(Label))),
            legal_basis=self.text("legal_basis", ""),
            mode=self.one_of("mode", MODES) if "mode" in self.table else "enforce",
            where=f"{FILE} line {self.start}",
        )
        self.check(rule)
        return rule

    def check(self, rule: Rule) -> None:
        """Refuse what the keys say together and cannot be meant."""
        if rule.step < FACTS_FROM and rule.when in NEEDS_FACTS:
            raise self.bad("when", f"{rule.when} needs the store, so its rule is of step {FACTS_FROM} or later")
        if rule.when == "callee_class" and not rule.number_class:
            raise self.bad("when", "callee_class needs number_class")
        if rule.fixed and (rule.action != "allow" or rule.mode != "enforce"):
            raise self.bad("action", "rules of step 1 allow, always: nobody is kept from an emergency number")
        if rule.reason is None and rule.action in ("block", "allow"):
            raise self.bad("reason", "is missing; a rule that decides needs one")
        labelling = rule.action == "label" or rule.trunk_key or rule.when == "flagged"
        if rule.labels and not labelling:
            raise self.bad("labels", "only a rule that labels has some")
        if rule.action == "label" and not rule.labels and rule.when not in _LABELS_OF_THEIR_OWN:
            raise self.bad("labels", "is missing; say which")
        for pattern in rule.channel:
            if pattern not in _CHANNELS:
                raise self.bad("channel", f"{pattern!r} is none of {', '.join(_CHANNELS)}")

    def action(self) -> str:
        value = self.text("action")
        if value not in ACTIONS and _TRUNK_KEY.fullmatch(value) is None:
            raise self.bad("action", f"{value!r} is none of {', '.join(ACTIONS)}, trunk.KEY{near(value, ACTIONS)}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        if key not in self.table:
            if default is None:
                raise BadPack(f"{FILE} line {self.start}: key '{key}' is missing")
            return default
        value = self.table[key]
        if not isinstance(value, str) or _TEXT.fullmatch(value) is None:
            raise self.bad(key, f"{value!r} is not 1 to 200 printable ASCII characters")
        return value

    def one_of(self, key: str, choices: Iterable[str]) -> str:
        value, known = self.text(key), tuple(choices)
        if value not in known:
            raise self.bad(key, f"{value!r} is none of {', '.join(known)}{near(value, known)}")
        return value

    def words(self, key: str, choices: tuple[str, ...]) -> tuple[str, ...]:
        words = self.strings(key)
        for word in words:
            if word not in choices:
                raise self.bad(key, f"{word!r} is none of {', '.join(choices)}{near(word, choices)}")
        return words

    def patterns(self, key: str) -> tuple[str, ...]:
        words = self.strings(key)
        for word in words:
            if _PATTERN.fullmatch(word) is None:
                raise self.bad(key, f"{word!r} is not a name, a name with * at its end, or one of these after !")
        return words

    def strings(self, key: str) -> tuple[str, ...]:
        value = self.table.get(key, [])
        given = key in self.table
        if not isinstance(value, list) or (given and not value) or not all(isinstance(item, str) for item in value):
            raise self.bad(key, "a list of strings is expected")
        return tuple(value)

    def day(self, key: str) -> date:
        value = self.table.get(key)
        if value is None:
            raise BadPack(f"{FILE} line {self.start}: key '{key}' is missing")
        if not isinstance(value, date) or isinstance(value, datetime):
            raise self.bad(key, f"{value!r} is not a date such as 2026-11-21, without quotes")
        return value

    def bad(self, key: str, why: str) -> BadPack:
        return BadPack(f"{FILE} line {_line(self.lines, key, self.start)}: {key}: {why}")


def near(word: str, known: Iterable[str]) -> str:
    """The end of an error about a mistyped name: which known ones are like it."""
    close = get_close_matches(word, list(known), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _line(lines: list[str], key: str, start: int) -> int:
    """The line of a key in the table that starts there, else the line of its start."""
    assigned = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=")
    for number in range(start, len(lines) + 1):
        if number > start and lines[number - 1].lstrip().startswith("["):
            break
        if assigned.match(lines[number - 1]):
            return number
    return start
