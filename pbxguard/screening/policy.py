"""Decide one call: the pack's rules, tried in ten fixed steps. The order is the specification.

1. Emergency callee: allow, whoever calls.
2. Charset and form of the CLI.
3. Trunk rules: missing CLI, missing international prefix, unknown country, national CLI on an international
   trunk (with what the roaming look-up says), foreign CLI on an enterprise trunk, CLI not allocated, CLI that is
   no extension.
4. Class rules: do-not-originate, no class or a wrong length, a class that makes no voice calls.
5. Punishment and system lists, privacy bindings.
6. The subscriber's own blocklist, then the own allowlist (which beats step 7, never 2 to 4).
7. Default-off by region, operator, channel and date, against the opt-in registry.
8. Labels that follow from the class or the origin.
9. Detectors: labels that a detector has put on this caller.
10. Allow.

Within a step the rules stand in the order of the pack's ``rules.toml``, and the first that blocks or allows ends
it. On a diverted call steps 6 and 7 hold for the original and for the final callee; who diverted is heard on a
trusted trunk only, since any caller can write a Diversion. This module knows steps and actions; what can be seen in
a call is known to ``findings``, which findings matter to ``rules``, and numbers, provinces and dates to the pack.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pbxguard.screening import lists
from pbxguard.screening.call import (
    Allow,
    Basis,
    Block,
    Call,
    Facts,
    Failed,
    Label,
    Reason,
    Shadow,
    Step,
    Verdict,
)
from pbxguard.screening.findings import FOUND, Kind, Sight
from pbxguard.screening.lists import Action, ListEntry
from pbxguard.screening.numbering import Number, read_callee, read_cli
from pbxguard.screening.pack import Pack
from pbxguard.screening.punishment import PUNISHMENT_LIST
from pbxguard.screening.rules import FACTS_FROM, Rule, lets_in

#: A verdict that lets a call through takes its reason from the first of these that applies.
_REASON_OF_LABEL = {
    Label.CLI_ANONYMISED: Reason.CLI_ANONYMISED,
    Label.ROAMING_UNKNOWN: Reason.ROAMING_UNKNOWN,
    Label.SIMBOX_SUSPECTED: Reason.SIMBOX_SUSPECTED,
    Label.INTL_ORIGIN_NOTICE: Reason.INTL_ORIGIN_NOTICE,
    Label.PUNISHED_RETAINED: Reason.PUNISHED_RETAINED,
    Label.VERIFIED_GOV: Reason.VERIFIED_GOV,
    Label.VAS_CALL_CENTRE: Reason.VAS_CALL_CENTRE,
    Label.PRIVACY_NUMBER: Reason.PRIVACY_NUMBER,
}


@dataclass(frozen=True, slots=True)
class Heard:
    """The numbers of one call, read.

    Attributes:
        cli: The CLI that the rules look at: the identity that a trusted trunk asserts, else From (RFC 3325).
        presented: The From CLI, which is what the callee would see.
        callee: The final callee.
        diverted_by: Those who diverted the call, the original callee first; empty on a trunk that is not trusted.
        tags: What list patterns and the store may know the CLI by besides its number: its class, its group, its
            region (``region:hk``), and ``privacy`` where bindings may say something about it.
    """

    cli: Number
    presented: Number
    callee: Number
    diverted_by: tuple[Number, ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def callee_keys(self) -> tuple[str, ...]:
        """Home forms whose consent counts, the original callee first."""
        if not self.diverted_by:
            return (self.callee.key,) if self.callee.key else ()
        return tuple(dict.fromkeys(n.key for n in (*self.diverted_by, self.callee) if n.key))


def read(call: Call, pack: Pack) -> Heard:
    """Read the numbers of *call* as its trunk writes them. Never raises."""
    trunk, at = call.trunk, call.at
    wire_format = pack.trunks[trunk.kind].wire_format
    presented = read_cli(call.cli, pack, wire_format, cli_prefixes=trunk.cli_prefixes, at=at)
    cli = presented
    if trunk.trusted and call.asserted is not None:
        asserted = read_cli(call.asserted, pack, wire_format, cli_prefixes=trunk.cli_prefixes, at=at)
        # An unreadable assertion is no better than none, but a readable one outranks From.
        if asserted.key is not None or presented.key is None:
            cli = asserted
    # Whoever writes a Diversion (RFC 5806) chooses whose lists are asked, so the carrier must vouch for it.
    diverted_by = call.diverted_by if trunk.trusted else ()
    return Heard(
        cli=cli,
        presented=presented,
        callee=read_callee(call.callee, pack, at=at),
        # A URI's parameters (RFC 3966 section 3) are no part of who diverted; nobody dials this string.
        diverted_by=tuple([read_callee(number.partition(";")[0], pack, at=at) for number in diverted_by]),
        tags=_tags(cli, pack),
    )


def _tags(cli: Number, pack: Pack) -> tuple[str, ...]:
    tags = [cli.number_class]
    if cli.group is not None:
        tags.append(cli.group)
    if cli.region is not None:
        tags.append(f"region:{cli.region}")
    rules = pack.class_rules(cli.number_class)
    if rules is not None and (rules.privacy or rules.privacy_legacy):
        tags.append("privacy")
    return tuple(tags)


def decide(
    call: Call,
    heard: Heard,
    facts: Facts,
    pack: Pack,
    *,
    trace: bool = False,
    stopwatch: Callable[[], int] = int,
) -> Verdict:
    """The verdict on *call*. Total: every call gets Allow or Block, and nothing is raised for its contents.

    Args:
        call: The call.
        heard: Its numbers (``read``).
        facts: What the store knows about them.
        pack: The rules, with the modes that the site chose.
        trace: Put every rule that was asked into ``Basis.steps``; the verdict is the same.
        stopwatch: Nanoseconds, for the trace; without one its steps take none.
    """
    plan = _plan_for(call, heard.cli, pack)
    run = _Run(call, heard, facts, plan)
    verdict = run.traced(plan.whole, stopwatch) if trace else run.through(plan.live)
    return verdict or run.allow()


def decide_without_facts(call: Call, heard: Heard, pack: Pack, why: str = "") -> Verdict:
    """The verdict of steps 1 to 4, which need nothing from the store, or ``Failed`` where it must be asked.

    For a guard whose store does not answer: an emergency number is called all the same, a CLI that no rule lets
    through stays outside, and one that must be withheld is withheld (the labels of ``Failed``) whatever the failure
    policy says.

    The roaming look-up of step 3 is notes in the store, so here it has no answer, unless the trunk's own is ``yes``.
    What then follows is the trunk kind's ``roaming_unknown``: ``block`` refuses the call; with ``label`` (all shipped
    packs) it is ``Failed`` with that label, with ``pass`` without, and the trunk's failure policy decides.
    """
    plan = _plan_for(call, heard.cli, pack)
    run = _Run(call, heard, None, plan)
    return run.through(plan.pure) or run.failed(why)


_NEVER = 99
_Act = Literal["block", "allow", "label", "pass", "anonymise"]

#: Findings that rest on notes of the site (``lists.NOTES``).
_ROAMING = frozenset({"roams", "not_roaming", "roaming_unknown"})


class _Item(NamedTuple):
    """One rule as it stands for calls of one kind."""

    rule: Rule
    act: _Act
    shadow: bool
    test: Callable[[Sight], bool] | None
    seen: str
    saw: Callable[[Sight], str] | None
    labels: tuple[Label, ...]

    def sees(self, sight: Sight) -> str:
        """What it rests on."""
        return self.seen if self.saw is None else self.saw(sight)


class _Plan(NamedTuple):
    """The rules for calls of one kind, in order.

    Attributes:
        live: Those that can do something.
        pure: Those of them that need no facts; without shadow.
        whole: All of the pack, for a trace: what may do something, or the step that is the same for all such calls.
        allowlists: Whether a subscriber's own allowlist is in force.
        default_off: Whether default-off is in force, so that an opt-in is what lets a call through.
    """

    kind: Kind
    live: tuple[_Item, ...]
    pure: tuple[_Item, ...]
    whole: tuple[_Item | Step, ...]
    allowlists: bool
    default_off: bool


def _plan_for(call: Call, cli: Number, pack: Pack) -> _Plan:
    # The key has as many values as the pack has kinds and classes, whatever a caller writes.
    key = (call.trunk.kind, call.channel, cli.form, cli.number_class, cli.group)
    plan: _Plan | None = pack.plans.get(key)
    if plan is None:
        plan = pack.plans[key] = _compile(call.trunk.kind, call.channel, cli, pack)
    return plan


def _compile(trunk: str, channel: str, cli: Number, pack: Pack) -> _Plan:
    kind = Kind.of(cli, pack.trunks[trunk], pack)
    whole: list[_Item | Step] = []
    for rule in pack.rules:
        finding = FOUND[rule.when]
        if rule.mode == "off":
            whole.append(Step(rule.id, "switched off", "skipped", 0))
        elif other := _not_for(rule, trunk, channel, kind):
            whole.append(Step(rule.id, f"for another {other}", "skipped", 0))
        elif not finding.of_kind(kind):
            whole.append(Step(rule.id, finding.kind_saw(kind), "passes", 0))
        elif rule.trunk_key and _act(rule, kind) == "pass":
            seen = f"{finding.kind_saw(kind)}, {rule.trunk_key} {getattr(kind.rules, rule.trunk_key)}".lower()
            whole.append(Step(rule.id, seen, "passes", 0))
        else:
            labels = rule.labels
            if rule.when == "class_label" and kind.of_class is not None:
                labels = (Label(kind.of_class.label), *labels)
            act, seen, test = _act(rule, kind), finding.kind_saw(kind), _test(rule)
            if pack.shadow_lists and test is not None and _acts_on_notes(rule, act):
                test = _telling_of_shadow(test, roaming=rule.when in _ROAMING)
            whole.append(_Item(rule, act, rule.mode == "shadow", test, seen, finding.saw, labels))
    # A rule that lets the call go on and gives no reason is for the trace only.
    live = tuple([i for i in whole if isinstance(i, _Item) and not (i.act == "pass" and i.rule.reason is None)])
    return _Plan(
        kind=kind,
        live=live,
        pure=tuple([item for item in live if item.rule.step < FACTS_FROM and not item.shadow]),
        whole=tuple(whole),
        allowlists=any(i.rule.when == "subscriber_allowed" and not i.shadow for i in live),
        default_off=any(i.rule.when == "default_off" and i.act == "block" and not i.shadow for i in live),
    )


def _not_for(rule: Rule, trunk: str, channel: str, kind: Kind) -> str:
    """The filter of a rule that keeps calls of this kind out, or ""."""
    classes = () if rule.when == "callee_class" else rule.number_class
    tried = (
        ("trunk", rule.trunk, trunk),
        ("channel", rule.channel, channel),
        ("number_class", classes, kind.number_class),
        ("group", rule.group, kind.group or ""),
    )
    return next((name for name, patterns, value in tried if not lets_in(patterns, value)), "")


def _act(rule: Rule, kind: Kind) -> _Act:
    """What follows from a rule on trunks of this kind."""
    value = getattr(kind.rules, rule.trunk_key) if rule.trunk_key else rule.action
    if value is True:
        value = "label"
    for act in ("block", "allow", "label", "anonymise"):
        if value == act and (act != "block" or rule.reason is not None):
            return act
    # Among them roaming_check: the findings of the look-up have rules of their own.
    return "pass"


def _test(rule: Rule) -> Callable[[Sight], bool] | None:
    if rule.when == "callee_class":
        patterns = rule.number_class
        exact = frozenset(patterns)
        if not any(pattern[0] == "!" or pattern[-1] == "*" for pattern in patterns):
            return lambda sight: sight.callee.number_class in exact
        return lambda sight: lets_in(patterns, sight.callee.number_class)
    if rule.when == "flagged" and rule.labels:
        wanted = frozenset(rule.labels)
        return lambda sight: not wanted.isdisjoint(sight.flags)
    return FOUND[rule.when].of_call


def _acts_on_notes(rule: Rule, act: _Act) -> bool:
    if rule.when == "flagged":
        return not rule.labels or Label.SIMBOX_SUSPECTED in rule.labels
    return rule.when in _ROAMING and (act != "pass" or rule.reason is not None)


def _telling_of_shadow(test: Callable[[Sight], bool], *, roaming: bool) -> Callable[[Sight], bool]:
    """The test, which also notes what notes on lists in shadow would have changed; once for a call."""

    def told(sight: Sight) -> bool:
        if roaming:
            sight.tell_roaming_in_shadow()
        else:
            sight.tell_flags_in_shadow()
        return test(sight)

    return told


class _Run:
    """One run through the rules; holds what they have added up to so far."""

    def __init__(self, call: Call, heard: Heard, facts: Facts | None, plan: _Plan) -> None:
        """``facts`` is None where the store was not asked."""
        looked_up = facts is not None
        facts = facts or Facts()
        self.heard = heard
        self.plan = plan
        self.pack = plan.kind.pack
        self.sight = Sight(
            call,
            heard.cli,
            heard.callee,
            heard.callee_keys,
            heard.presented,
            facts,
            plan.kind,
            allowlists=plan.allowlists,
            looked_up=looked_up,
        )
        self.labels: list[Label] = []
        self.reason: Reason | None = None
        self.entry: ListEntry | None = None
        self.shadow = self.sight.shadow
        self.steps: list[Step] = []
        # Lists in shadow are asked where the real ones are, so that they say nothing about a call that ended before.
        self._shadow_from = FACTS_FROM if self.pack.shadow_lists and facts.listed else _NEVER

    def through(self, items: tuple[_Item, ...]) -> Verdict | None:
        """The first verdict of the rules, or None where they all let the call go on."""
        sight, shadow_from = self.sight, self._shadow_from
        for item in items:
            if item.rule.step >= shadow_from:
                shadow_from = self._shadow_lists(item.rule.step)
            if item.test is not None and not item.test(sight):
                continue
            verdict = self._apply(item)
            if verdict is not None:
                return verdict
        return None

    def traced(self, whole: tuple[_Item | Step, ...], stopwatch: Callable[[], int]) -> Verdict | None:
        """As ``through`` with every rule, and what each saw and took."""
        sight, steps, shadow_from = self.sight, self.steps, self._shadow_from
        last = stopwatch()
        for item in whole:
            if not isinstance(item, _Item):
                steps.append(item)
                continue
            if item.rule.step >= shadow_from:
                shadow_from = self._shadow_lists(item.rule.step)
            found = item.test is None or item.test(sight)
            seen, now = item.seen if item.saw is None else item.saw(sight), stopwatch()
            steps.append(Step(item.rule.id, seen, _outcome(item) if found else "passes", now - last))
            last = now
            if found:
                verdict = self._apply(item)
                if verdict is not None:
                    return verdict
        return None

    def _apply(self, item: _Item) -> Verdict | None:
        rule, act = item.rule, item.act
        if item.shadow:
            decides = act in ("block", "allow", "pass")
            reason = rule.reason if decides else next(iter(item.labels), rule.reason)
            if act != "pass" or reason is not None:
                self.shadow.append(Shadow(rule.id, act, str(reason or "")))
            self.sight.entry = None
            return None
        if act == "block":
            return Block(rule.reason or Reason.CLI_INVALID, self._basis(item, self.sight.entry), self._labels())
        if act == "allow":
            return Allow(rule.reason or Reason.DEFAULT, self._basis(item, None), self._labels())
        if act == "label":
            self.labels += self._given(item)
        elif act == "anonymise":
            self.labels.append(Label.CLI_ANONYMISED)
        elif self.reason is None:
            self.reason = rule.reason
            if rule.when == "subscriber_allowed":
                self.entry = self.sight.allowed_by_callee()
        # The entry that a rule found explains that rule, and no later refusal.
        self.sight.entry = None
        return None

    def _given(self, item: _Item) -> tuple[Label, ...]:
        if item.rule.when != "flagged":
            return item.labels
        flags = self.sight.flags
        return tuple([flag for flag in flags if flag in item.labels]) if item.labels else flags

    def _shadow_lists(self, step: int) -> int:
        """Note what lists in shadow would have done: the global ones from step 5, the callees' from step 6.

        Gives the step from which it is to be asked again.
        """
        sight, shadow = self.sight, self.pack.shadow_lists
        owners: tuple[str, ...] = ("",) if self._shadow_from == FACTS_FROM else ()
        if step > FACTS_FROM:
            owners += sight.callee_keys
        self._shadow_from = FACTS_FROM + 1
        for owner in owners:
            entry = lists.effective(sight.facts.listed, sight.call.at, owner)
            if entry is None or entry.name not in shadow:
                continue
            if entry.action is Action.BLOCK:
                if sight.kind.of_class is not None and sight.kind.of_class.never_block:
                    continue
                reason = Reason.SUBSCRIBER_BLOCKLIST if owner else Reason.SYSTEM_BLOCKLIST
                if entry.name == PUNISHMENT_LIST and not owner:
                    reason = Reason.JOINT_PUNISHMENT
            else:
                reason = Reason.SUBSCRIBER_ALLOWLIST if owner else Reason.DEFAULT
            self.shadow.append(Shadow(f"list:{entry.name}", str(entry.action), str(reason)))
        return FACTS_FROM + 1 if step == FACTS_FROM else _NEVER

    # -- verdicts ------------------------------------------------------------------------------------------

    def allow(self) -> Allow:
        """Step 10."""
        labels, reason = self._labels(), self.reason
        if Label.CLI_ANONYMISED in labels:
            reason = Reason.CLI_ANONYMISED
        elif reason is None:
            reason = Reason.DEFAULT
            if labels:
                reason = next((each for label, each in _REASON_OF_LABEL.items() if label in labels), reason)
        basis = self._basis(None, self.entry)
        return Allow(reason, basis, labels)

    def failed(self, why: str) -> Failed:
        """No verdict, with what was read and the labels that hold all the same."""
        heard = self.heard
        basis = Basis(
            rule="0.guard_failed",
            detail="the guard could not decide",
            cli=heard.cli,
            callee=heard.callee,
            pack=self.pack.name,
        )
        return Failed(why, basis, self._labels())

    def _labels(self) -> tuple[Label, ...]:
        return tuple(dict.fromkeys(self.labels)) if self.labels else ()

    def _basis(self, item: _Item | None, entry: ListEntry | None) -> Basis:
        rule = "10.allow" if item is None else item.rule.id
        opted_in = ""
        if item is not None:
            detail = f"{item.rule.detail} ({item.sees(self.sight)})"
        else:
            detail = "no rule refuses this call"
            if self.sight.opened and self.plan.default_off and (opted_in := self.sight.why_not_off()):
                detail = f"{detail}: {opted_in}"
        steps = tuple([*self.steps, Step(rule, detail, "decides", 0)] if item is None and self.steps else self.steps)
        basis = entry.legal_basis if entry is not None else ""
        if not basis and item is not None:
            basis = item.rule.legal_basis
        heard = self.heard
        shadow, pack = tuple(self.shadow), self.pack.name
        return Basis(rule, detail, heard.cli, heard.callee, entry, pack, steps, shadow, basis, opted_in)


def _outcome(item: _Item) -> str:
    if item.shadow:
        return "shadow"
    if item.act in ("block", "allow"):
        return "decides"
    return "passes" if item.act == "pass" else "labels"
