"""Decide one call. The order of the rules is the specification; each step is one function.

Rules are tried in this order, and the first that decides ends it:

1. Emergency callee: allow, whoever calls.
2. Charset and form of the CLI.
3. Trunk rules: missing CLI, missing international prefix, unknown country, national CLI on an international
   trunk (with what the roaming look-up says), foreign CLI on an enterprise trunk, CLI not allocated.
4. Class rules: no class or a wrong length, do-not-originate, a class that makes no voice calls.
5. Punishment and system lists.
6. The subscriber's own blocklist, then the own allowlist (which beats step 7, never 2 to 4).
7. Default-off by region, operator, channel and date, against the opt-in registry.
8. Labels that follow from the class or the origin.
9. Detectors: labels that a detector has put on this caller.
10. Allow.

On a diverted call steps 6 and 7 hold for the original and for the final callee; who diverted is heard on a
trusted trunk only, since any caller can write a Diversion. The trunk and class rules come from the country pack;
this module has no number, province or date of its own. Sources of the rules are the ``source`` columns of the
pack.
"""

from collections.abc import Callable
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from pbxguard.screening import lists, registry
from pbxguard.screening.call import (
    Allow,
    Basis,
    Block,
    Call,
    Channel,
    Facts,
    Label,
    Reason,
    Roaming,
    Verdict,
)
from pbxguard.screening.lists import Action, ListEntry
from pbxguard.screening.numbering import Form, Number, read_callee, read_cli
from pbxguard.screening.pack import BAD_LENGTH, Pack, TrunkRules
from pbxguard.screening.registry import CallClass, Verb

#: Classes of a CLI that claims another country and is no number there.
_NO_COUNTRY = ("intl_bad_cc", "intl" + BAD_LENGTH)

#: The list whose entries are the joint punishment measures (reason ``joint_punishment``).
PUNISHMENT_LIST = "punishment"

#: A verdict that lets a call through takes its reason from the first of these that applies.
_REASON_OF_LABEL = {
    Label.ROAMING_UNKNOWN: Reason.ROAMING_UNKNOWN,
    Label.SIMBOX_SUSPECTED: Reason.SIMBOX_SUSPECTED,
    Label.INTL_ORIGIN_NOTICE: Reason.INTL_ORIGIN_NOTICE,
    Label.VERIFIED_GOV: Reason.VERIFIED_GOV,
    Label.VAS_CALL_CENTRE: Reason.VAS_CALL_CENTRE,
    Label.PRIVACY_NUMBER: Reason.PRIVACY_NUMBER,
}


@dataclass(frozen=True, slots=True)
class Heard:
    """The numbers of one call, read.

    Attributes:
        cli: The CLI that the rules look at: P-Asserted-Identity on a trusted trunk, else From (RFC 3325).
        presented: The From CLI, which is what the callee would see.
        callee: The final callee.
        diverted_by: Those who diverted the call, the original callee first; empty on a trunk that is not trusted.
    """

    cli: Number
    presented: Number
    callee: Number
    diverted_by: tuple[Number, ...] = ()

    @property
    def callee_keys(self) -> tuple[str, ...]:
        """Home forms whose consent counts, the original callee first."""
        return tuple(dict.fromkeys(n.key for n in (*self.diverted_by, self.callee) if n.key))


def read(call: Call, pack: Pack) -> Heard:
    """Read the numbers of *call* as its trunk writes them. Never raises."""
    rules = pack.trunks[call.trunk.kind]
    presented = read_cli(call.cli, pack, rules.wire_format)
    cli = presented
    if call.trunk.trusted and call.asserted is not None:
        asserted = read_cli(call.asserted, pack, rules.wire_format)
        # An unreadable assertion is no better than none, but a readable one outranks From.
        if asserted.key is not None or presented.key is None:
            cli = asserted
    # Whoever writes a Diversion (RFC 5806) chooses whose lists are asked, so the carrier must vouch for it.
    diverted_by = call.diverted_by if call.trunk.trusted else ()
    return Heard(
        cli=cli,
        presented=presented,
        callee=read_callee(call.callee, pack),
        # A URI's parameters (RFC 3966 section 3) are no part of who diverted; nobody dials this string.
        diverted_by=tuple(read_callee(number.partition(";")[0], pack) for number in diverted_by),
    )


def decide(call: Call, heard: Heard, facts: Facts, pack: Pack) -> Verdict:
    """The verdict on *call*. Total: every call gets Allow or Block, and nothing is raised for its contents."""
    return _Decision(call, heard, facts, pack).run()


def decide_without_facts(call: Call, heard: Heard, pack: Pack) -> Verdict | None:
    """The verdict of steps 1 to 4, which need nothing from the store, or None where it must be asked.

    For a guard whose store does not answer: an emergency number is called all the same, and a CLI that no
    rule lets through stays outside.
    """
    return _Decision(call, heard, Facts(), pack).run_without_facts()


class _Decision:
    """One run through the rules; holds what the steps have in common."""

    def __init__(self, call: Call, heard: Heard, facts: Facts, pack: Pack) -> None:
        self.call = call
        self.heard = heard
        self.cli = heard.cli
        self.facts = facts
        self.pack = pack
        self.rules: TrunkRules = pack.trunks[call.trunk.kind]
        self.labels: list[Label] = []
        self.reason: Reason | None = None
        self.entry: ListEntry | None = None

    def run(self) -> Verdict:
        for step in _STEPS:
            verdict = step(self)
            if verdict is not None:
                return verdict
        return self._allow("10.allow", "no rule refuses this call")

    def run_without_facts(self) -> Verdict | None:
        return next((verdict for step in _WITHOUT_FACTS if (verdict := step(self)) is not None), None)

    # -- the ten steps -------------------------------------------------------------------------------------

    def emergency(self) -> Verdict | None:
        callee = self.heard.callee
        if callee.number_class != "emergency":
            return None
        self.reason = Reason.EMERGENCY_CALLEE
        return self._allow("1.emergency", "emergency numbers receive every call")

    def charset_and_form(self) -> Verdict | None:
        if self.cli.form is Form.INVALID:
            return self._block(Reason.CLI_INVALID, "2.form", "the CLI is not a telephone number")
        return None

    def trunk_rules(self) -> Verdict | None:
        cli, rules = self.cli, self.rules
        if cli.form in (Form.WITHHELD, Form.MISSING):
            if rules.cli_missing == "block":
                return self._block(Reason.CLI_MISSING, "3.cli_missing", f"the CLI is {cli.form} on this trunk")
            return None
        if rules.wire_format and cli.form not in rules.wire_format:
            return self._block(
                Reason.INTL_PREFIX_MISSING,
                "3.prefix",
                f"this trunk must write numbers as {' or '.join(sorted(rules.wire_format))}; this one is {cli.form}",
            )
        if cli.number_class in _NO_COUNTRY:
            return self._block(Reason.CLI_INVALID, "3.country_code", "no country has this country code or length")
        if cli.group is None and (refusal := self._national_from_abroad()):
            return refusal
        if rules.cli == "allocated_only":
            return self._enterprise()
        return None

    def _national_from_abroad(self) -> Verdict | None:
        mobile = self.cli.number_class.startswith("mobile_")
        action = self.rules.national_mobile if mobile else self.rules.national_fixed
        if action == "roaming_check":
            roaming = self.call.trunk.roaming
            if roaming is Roaming.YES:
                self.reason = Reason.ROAMER_VERIFIED
                return None
            action = self.rules.roaming_unknown if roaming is Roaming.UNKNOWN else "block"
        if action == "label":
            self.labels.append(Label.ROAMING_UNKNOWN)
        if action in ("label", "pass"):
            return None
        # "anonymise" ends here too: no adapter can withhold a CLI yet, and showing it would be the spoof.
        return self._block(
            Reason.NATIONAL_CLI_ON_INTL_TRUNK,
            "3.national_cli",
            "a national CLI arrived on an international trunk and nobody vouches for it as a roamer",
        )

    def _enterprise(self) -> Verdict | None:
        if self.cli.group is not None and self.rules.foreign_cli == "block":
            return self._block(
                Reason.FOREIGN_CLI_ON_ENTERPRISE_TRUNK,
                "3.foreign_cli",
                "an enterprise trunk shows a foreign CLI",
            )
        key = self.cli.key
        if key is None or not any(lists.matches(pattern, key) for pattern in self.call.trunk.allocated):
            return self._block(
                Reason.CLI_NOT_ALLOCATED, "3.allocated", "the CLI is not among those allocated to this trunk"
            )
        return None

    def class_rules(self) -> Verdict | None:
        cli = self.cli
        if cli.form in (Form.WITHHELD, Form.MISSING) or cli.group is not None:
            return None
        rules = self.pack.class_rules(cli.number_class)
        if rules is None:
            return self._block(Reason.CLI_INVALID, "4.class", "no number class has these digits in this length")
        voice = self.call.channel is Channel.VOICE
        if voice and rules.dno:
            return self._block(Reason.DNO_INBOUND_ONLY, "4.dno", "numbers of this class only answer calls")
        if voice and rules.voice_cli == "no":
            return self._block(Reason.CLASS_NOT_VOICE, "4.not_voice", "numbers of this class make no voice calls")
        if (
            voice
            and rules.voice_cli == "outbound_licence"
            and self.rules.cli == "allocated_only"
            and not self.call.trunk.outbound
        ):
            return self._block(
                Reason.VAS_INBOUND_ONLY,
                "4.inbound_only",
                "call-centre codes on this trunk only receive calls",
            )
        return None

    def system_lists(self) -> Verdict | None:
        entry = lists.effective(self.facts.listed, self.call.at, "")
        if entry is None or entry.action is Action.ALLOW:
            return None
        self.entry = entry
        reason = Reason.JOINT_PUNISHMENT if entry.name == PUNISHMENT_LIST else Reason.SYSTEM_BLOCKLIST
        return self._block(reason, "5.system_list", f"the CLI is on the list {entry.name!r}")

    def subscriber_lists_and_consent(self) -> Verdict | None:
        """Steps 6 and 7, for the original callee and for the final one."""
        allowed: ListEntry | None = None
        for number in self.heard.callee_keys:
            entry = lists.effective(self.facts.listed, self.call.at, number)
            if entry is not None and entry.action is Action.BLOCK:
                self.entry = entry
                return self._block(
                    Reason.SUBSCRIBER_BLOCKLIST, "6.subscriber_block", "the subscriber blocks this CLI"
                )
            if entry is not None:
                if number == self.heard.callee.key:
                    self.reason = self.reason or Reason.SUBSCRIBER_ALLOWLIST
                    allowed = entry
                continue
            verdict = self._consent(number)
            if verdict is not None:
                return verdict
        # Named only now, and only the final callee's: that of another explains neither answer.
        self.entry = allowed
        return None

    def _consent(self, number: str) -> Verdict | None:
        if self.cli.group is None:
            return None
        consents, at, channel = self.facts.consents, self.call.at, self.call.channel
        call_class = CallClass(self.cli.group)
        if registry.opened(consents, number, call_class, channel, self.cli.key, at):
            return None
        closed = registry.closed(consents, number, call_class, channel, at)
        if closed is not None and closed.verb is Verb.CLOSE:
            # Whoever switched calls off is not asked which province that was in.
            return self._off("the subscriber switched off calls of this class")
        subscriber = self.facts.callees.get(number)
        if subscriber is None:
            return None
        # Effective dates are the site's local ones, half-open.
        local = at.astimezone(ZoneInfo(self.pack.timezone)).replace(tzinfo=None)
        if self.pack.default_off(subscriber.province, subscriber.operator, channel, call_class, local):
            return self._off("calls of this class are off here by default, and the subscriber has not opened them")
        return None

    def _off(self, detail: str) -> Verdict:
        return self._block(Reason.INTL_DEFAULT_OFF, "7.default_off", detail)

    def class_labels(self) -> Verdict | None:
        if self.cli.group is not None:
            if self.rules.origin_notice:
                self.labels.append(Label.INTL_ORIGIN_NOTICE)
        elif self.cli.key is not None:
            rules = self.pack.class_rules(self.cli.number_class)
            if rules is not None and rules.label:
                self.labels.append(Label(rules.label))
        presented = self.heard.presented
        if presented.key and self.cli.key and presented.key != self.cli.key:
            self.labels.append(Label.FROM_PAI_DISAGREE)
        return None

    def detectors(self) -> Verdict | None:
        self.labels.extend(self.facts.flags)
        return None

    # -- verdicts ------------------------------------------------------------------------------------------

    def _allow(self, rule: str, detail: str) -> Allow:
        reason = self.reason
        if reason is None:
            reason = next((r for label, r in _REASON_OF_LABEL.items() if label in self.labels), Reason.DEFAULT)
        return Allow(reason, self._basis(rule, detail), tuple(dict.fromkeys(self.labels)))

    def _block(self, reason: Reason, rule: str, detail: str) -> Block:
        return Block(reason, self._basis(rule, detail), tuple(dict.fromkeys(self.labels)))

    def _basis(self, rule: str, detail: str) -> Basis:
        return Basis(
            rule=rule,
            detail=detail,
            cli=self.cli,
            callee=self.heard.callee,
            entry=self.entry,
            pack=self.pack.name,
        )


_WITHOUT_FACTS: tuple[Callable[[_Decision], Verdict | None], ...] = (
    _Decision.emergency,
    _Decision.charset_and_form,
    _Decision.trunk_rules,
    _Decision.class_rules,
)
_STEPS = (
    *_WITHOUT_FACTS,
    _Decision.system_lists,
    _Decision.subscriber_lists_and_consent,
    _Decision.class_labels,
    _Decision.detectors,
)
