"""What the code can see in a call: one function for each finding that a rule may name (``rules.FINDINGS``).

A finding says whether, and in a few words what it saw; it never decides. Knows no number, class, province or date.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple
from zoneinfo import ZoneInfo

from pbxguard.screening import lists, registry
from pbxguard.screening.call import Call, Facts, Roaming, Shadow
from pbxguard.screening.lists import Action, ListEntry
from pbxguard.screening.numbering import Form, Number
from pbxguard.screening.optin import DefaultOff
from pbxguard.screening.pack import BAD_LENGTH, ClassRules, Pack, TrunkRules
from pbxguard.screening.privacy import Standing, standing
from pbxguard.screening.punishment import PUNISHMENT_LIST
from pbxguard.screening.reasons import Label
from pbxguard.screening.registry import CallClass, Consent, Verb

_NO_COUNTRY = ("intl_bad_cc", "intl" + BAD_LENGTH)
_CALL_CLASSES: Mapping[str, CallClass] = MappingProxyType({str(member): member for member in CallClass})


@dataclass(frozen=True, slots=True)
class Kind:
    """What many calls have in common: the kind of trunk, and how the CLI is written and classed.

    Attributes:
        of_class: What the number class may do; None where there is no such class.
        number: The CLI is written as a number.
    """

    pack: Pack
    rules: TrunkRules
    form: Form
    number_class: str
    group: str | None
    of_class: ClassRules | None
    number: bool

    @classmethod
    def of(cls, cli: Number, rules: TrunkRules, pack: Pack) -> "Kind":
        """The kind of a call with this CLI on a trunk with these rules."""
        number = cli.form not in (Form.WITHHELD, Form.MISSING, Form.INVALID)
        of_class = pack.class_rules(cli.number_class) if number else None
        return cls(pack, rules, cli.form, cli.number_class, cli.group, of_class, number)

    @property
    def national(self) -> bool:
        return self.number and self.group is None and self.number_class not in _NO_COUNTRY

    @property
    def mobile_is_checked(self) -> bool:
        return self.national and self.rules.national_mobile == "roaming_check"


class Sight:
    """One call with all that a finding may look at; what several findings need is worked out once.

    Args:
        call: The call.
        cli: Its CLI as read.
        callee: The final callee as read.
        callee_keys: Home forms whose lists and consent count, the original callee first.
        presented: From, as read.
        facts: What the store knows.
        kind: What it has in common with others.
        allowlists: Whether an allowlist of a subscriber's own spares the call default-off.
        looked_up: Whether the store was asked; without it the roaming look-up has no answer.
    """

    def __init__(
        self,
        call: Call,
        cli: Number,
        callee: Number,
        callee_keys: tuple[str, ...],
        presented: Number,
        facts: Facts,
        kind: Kind,
        *,
        allowlists: bool = True,
        looked_up: bool = True,
    ) -> None:
        self.call = call
        self.cli = cli
        self.callee = callee
        self.callee_keys = callee_keys
        self.presented = presented
        self.facts = facts
        self.kind = kind
        self.pack = kind.pack
        self.allowlists = allowlists
        self.looked_up = looked_up
        self.entry: ListEntry | None = None
        self.default: DefaultOff | None = None
        #: What callees have opened for this call, and what one has closed; known once step 7 was asked.
        self.opened: tuple[Consent, ...] = ()
        self.closed: Consent | None = None
        self.listed = _counting(facts.listed, kind) if facts.listed else ()
        # Worked out when first asked for; plain attributes, because functools.cached_property takes a lock each time.
        self.shadow: list[Shadow] = []
        self._told: set[str] = set()
        self._own: dict[str, ListEntry] | None = None
        self._bound: Standing | None = None
        self._not_opened: tuple[str, ...] | None = None
        self._opt_ins: str | None = None
        self._dno: tuple[str, ...] | None = None

    # -- lists ---------------------------------------------------------------------------------------------

    def _blocked_globally(self, *, punished: bool) -> bool:
        """An entry of the one sort blocks; an allow entry of the site beats both sorts."""
        if not self.listed:
            return False
        entry = lists.effective(self.listed, self.call.at, "")
        if entry is None or entry.action is Action.ALLOW:
            return False
        if (entry.name == PUNISHMENT_LIST) is not punished:
            ours = [each for each in self.listed if (each.name == PUNISHMENT_LIST) is punished]
            entry = lists.effective(ours, self.call.at, "")
        if entry is None:
            return False
        self.entry = entry
        return True

    def punished(self) -> bool:
        return self._blocked_globally(punished=True)

    def system_listed(self) -> bool:
        return self._blocked_globally(punished=False)

    # -- notes ---------------------------------------------------------------------------------------------

    @property
    def noted(self) -> frozenset[str]:
        """What the site's notes say of this CLI (``lists.NOTES``)."""
        return lists.noted(self.listed, self.call.at) if self.listed else frozenset()

    @property
    def noted_in_shadow(self) -> frozenset[str]:
        """What notes on lists in shadow would say of it."""
        if not (self.facts.listed and self.pack.shadow_lists):
            return frozenset()
        return lists.noted(self.facts.listed, self.call.at) & self.pack.shadow_lists

    @property
    def roaming(self) -> Roaming:
        """Whether the CLI's subscriber is abroad."""
        return self.roaming_by(self.noted)

    def roaming_by(self, noted: Collection[str]) -> Roaming:
        """Whether the subscriber is abroad, were these the notes; two that contradict each other are no answer.

        Of a CLI without a note the trunk's own answer holds. Where the store could not be asked for notes (its
        failure, a late decision) ``no`` is no answer, since it stands for "no note vouches"; ``yes`` is one: the
        site vouches for the trunk.
        """
        found = [name.removeprefix(lists.ROAMING) for name in noted if name.startswith(lists.ROAMING)]
        if not found:
            fixed = self.call.trunk.roaming
            return fixed if self.looked_up or fixed is Roaming.YES else Roaming.UNKNOWN
        return Roaming(found[0]) if len(found) == 1 else Roaming.UNKNOWN

    @property
    def flags(self) -> tuple[Label, ...]:
        """Labels that a detector, or a note of the site, has put on this CLI."""
        return self.flags_by(self.noted)

    def flags_by(self, noted: Collection[str]) -> tuple[Label, ...]:
        """The labels, were these the notes."""
        if lists.SIMBOX in noted:
            return (*self.facts.flags, Label.SIMBOX_SUSPECTED)
        return self.facts.flags

    def tell_roaming_in_shadow(self) -> None:
        """Note the lists in shadow that would have changed the roaming look-up's answer."""
        names = sorted(name for name in self.noted_in_shadow - self._told if name.startswith(lists.ROAMING))
        self._told.update(names)
        if names and self.roaming_by({*self.noted, *names}) is not self.roaming:
            self.shadow += [Shadow(f"list:{name}", str(Action.NOTE), "") for name in names]

    def tell_flags_in_shadow(self) -> None:
        """The same for the label that a note puts on the CLI."""
        if lists.SIMBOX in self.noted_in_shadow - self._told:
            self._told.add(lists.SIMBOX)
            if Label.SIMBOX_SUSPECTED not in self.flags:
                self.shadow.append(Shadow(f"list:{lists.SIMBOX}", "label", str(Label.SIMBOX_SUSPECTED)))

    # -- the lists of the punished -------------------------------------------------------------------------

    def punished_retained(self) -> bool:
        return bool(self.listed) and lists.retained(self.listed, self.call.at) is not None

    @property
    def own(self) -> Mapping[str, ListEntry]:
        """The entry that decides in the own lists of each callee that has one."""
        if self._own is None:
            found = {key: lists.effective(self.listed, self.call.at, key) for key in self.callee_keys}
            self._own = {key: entry for key, entry in found.items() if entry is not None}
        return self._own

    def subscriber_blocked(self) -> bool:
        if not self.listed:
            return False
        self.entry = next((entry for entry in self.own.values() if entry.action is Action.BLOCK), None)
        return self.entry is not None

    def allowed_by_callee(self) -> ListEntry | None:
        entry = self.own.get(self.callee.key or "") if self.listed else None
        return entry if entry is not None and entry.action is Action.ALLOW else None

    # -- bindings, consent ---------------------------------------------------------------------------------

    @property
    def bound(self) -> Standing:
        """How a privacy number stands to the callees: bound to one of them, or not any more, or not known."""
        if self._bound is None:
            x, bindings, at = self.cli.key or "", self.facts.bindings, self.call.at
            found = {standing(bindings, x, callee, at)[0] for callee in self.callee_keys}
            self._bound = next((each for each in (Standing.LIVE, Standing.EXPIRED) if each in found), Standing.NONE)
        return self._bound

    @property
    def unopened(self) -> tuple[str, ...]:
        """Callees that have not opened calls of this group, and whose own list does not allow the CLI."""
        if self._not_opened is None:
            self._not_opened = self._find_unopened()
        return self._not_opened

    def _find_unopened(self) -> tuple[str, ...]:
        call_class = _CALL_CLASSES.get(self.kind.group or "")
        if call_class is None:
            return ()
        keys = self.callee_keys
        if self.allowlists and self.listed:
            keys = tuple(k for k in keys if k not in self.own or self.own[k].action is not Action.ALLOW)
        consents, channel, at = self.facts.consents, self.call.channel, self.call.at
        if not consents:
            return keys
        caller = self.cli.key
        held = {k: registry.opened(consents, k, call_class, channel, caller, at) for k in keys}
        self.opened = tuple([consent for consent in held.values() if consent is not None])
        return tuple([k for k, consent in held.items() if consent is None])

    def closed_by_subscriber(self) -> bool:
        if not self.facts.consents:
            return False
        # Whoever switched calls off is not asked which province that was in.
        call_class = _CALL_CLASSES[self.kind.group or ""]
        for key in self.unopened:
            held = registry.closed(self.facts.consents, key, call_class, self.call.channel, self.call.at)
            if held is not None and held.verb is Verb.CLOSE:
                self.closed = held
                return True
        return False

    def default_off(self) -> bool:
        self.default = next((row for key in self.unopened if (row := self._default_of(key)) is not None), None)
        return self.default is not None

    def _default_of(self, callee: str) -> DefaultOff | None:
        """The row that closes calls of this group to a callee who has opened nothing."""
        subscriber = self.facts.callees.get(callee)
        if subscriber is None:
            return None
        # Effective dates are the site's local ones, half-open.
        local = self.call.at.astimezone(ZoneInfo(self.pack.timezone)).replace(tzinfo=None)
        return self.pack.default_off(
            subscriber.province, subscriber.operator, self.call.channel, self.kind.group or "", local
        )

    @property
    def opt_ins(self) -> str:
        """What callees have opened for this call, in words; their numbers only where there are several."""
        if self._opt_ins is None:
            self._opt_ins = " and ".join([self._opt_in(consent) for consent in self.opened])
        return self._opt_ins

    def _opt_in(self, consent: Consent) -> str:
        whose = f"{consent.number} " if len(self.callee_keys) > 1 else ""
        caller = " for this caller" if consent.caller else ""
        until = f" until {self.pack.local(consent.until)}" if consent.until is not None else ""
        since = self.pack.local(consent.since)
        return f"{whose}opted in to {consent.call_class}{caller} since {since}{until} (registry open)"

    def why_not_off(self) -> str:
        """The opt-ins but for which default-off would refuse this call, in words; "" where it would not."""
        row = next((row for c in self.opened if (row := self._default_of(c.number)) is not None), None)
        if row is None:
            return ""
        who = "" if len(self.callee_keys) > 1 else "the callee "
        return f"{who}{self.opt_ins}, else {self.kind.group} calls are off by default ({_row(row)})"

    # -- the rest ------------------------------------------------------------------------------------------

    def not_allocated(self) -> bool:
        key = self.cli.key
        return key is None or not any(lists.matches(pattern, key) for pattern in self.call.trunk.allocated)

    def not_an_extension(self) -> bool:
        """``allocated`` lists the extensions; without it any digits that are no number of the plan may be one."""
        shown = self.cli.key or self.cli.written
        allocated = self.call.trunk.allocated
        if not allocated:
            return self.cli.key is not None or not shown
        return not any(lists.matches(pattern, shown) for pattern in allocated)

    @property
    def dno_scopes(self) -> tuple[str, ...]:
        """Scopes of the do-not-originate rows that the CLI meets."""
        if self._dno is None:
            self._dno = tuple([row.scope for row in self.pack.dno(self.cli.key, self.cli.written)])
        return self._dno

    def from_pai_disagree(self) -> bool:
        presented, cli = self.presented, self.cli
        return presented is not cli and bool(presented.key and cli.key) and presented.key != cli.key


def _counting(listed: tuple[ListEntry, ...], kind: Kind) -> tuple[ListEntry, ...]:
    """The entries that count: no list in shadow, and no blocking of a number that no list may hold."""
    shadow, spared = kind.pack.shadow_lists, kind.of_class is not None and kind.of_class.never_block
    if not (shadow or spared):
        return listed
    return tuple([e for e in listed if e.name not in shadow and not (spared and e.action is Action.BLOCK)])


class Finding(NamedTuple):
    """How one finding is made.

    Attributes:
        of_kind: Whether it can be at all, for calls of this kind.
        kind_saw: What that rests on, a few words; never text that the caller wrote.
        of_call: Whether it is, for this call; None where the kind says it all.
        saw: What that rests on, where there is an ``of_call``.
    """

    of_kind: Callable[[Kind], bool]
    kind_saw: Callable[[Kind], str]
    of_call: Callable[[Sight], bool] | None = None
    saw: Callable[[Sight], str] | None = None


def _always(_: Kind) -> bool:
    return True


def _form(kind: Kind) -> str:
    return f"form {kind.form}"


def _class(kind: Kind) -> str:
    return f"class {kind.number_class}"


def _forms(kind: Kind) -> str:
    return f"form {kind.form}, the trunk writes {' or '.join(sorted(kind.rules.wire_format))}"


def _national(kind: Kind) -> bool:
    return kind.national


def _foreign(kind: Kind) -> bool:
    return kind.group is not None


def _on_form(form: Form) -> Finding:
    return Finding(lambda kind: kind.form is form, _form)


def _roaming(wanted: Roaming) -> Finding:
    return Finding(
        lambda kind: kind.mobile_is_checked,
        lambda kind: f"national_mobile {kind.rules.national_mobile}",
        lambda sight: sight.roaming is wanted,
        lambda sight: f"roaming {sight.roaming}",
    )


def _dno(scope: str) -> Finding:
    return Finding(lambda kind: kind.number, _form, lambda sight: scope in sight.dno_scopes, _dno_scopes)


def _dno_scopes(sight: Sight) -> str:
    scopes = sight.dno_scopes
    return f"in dno.csv for {' and '.join(sorted(set(scopes)))}" if scopes else "not in dno.csv"


def _bound(wanted: Standing, *, legacy: bool) -> Finding:
    def of_kind(kind: Kind) -> bool:
        known = kind.of_class
        return known is not None and (known.privacy or (legacy and known.privacy_legacy))

    return Finding(of_kind, _class, lambda sight: sight.bound is wanted, lambda sight: f"binding {sight.bound}")


def _of_class(holds: Callable[[ClassRules], bool]) -> Finding:
    return Finding(lambda kind: kind.of_class is not None and holds(kind.of_class), _class)


def _listed(of_call: Callable[[Sight], bool]) -> Finding:
    return Finding(_always, _class, of_call, _entry)


def _entry(sight: Sight) -> str:
    if not sight.facts.listed:
        return "no entries"
    found = sight.entry or sight.allowed_by_callee()
    return f"{found.action} on list {found.name!a}" if found is not None else f"{len(sight.facts.listed)} entries"


def _consents(sight: Sight) -> str:
    held = sight.closed
    if held is not None:
        return f"closed {held.call_class} since {sight.pack.local(held.since)} (registry close)"
    return sight.opt_ins or "nothing closed for such calls"


def _default(sight: Sight) -> str:
    row = sight.default
    if row is not None:
        return _row(row)
    if sight.opt_ins:
        return sight.opt_ins
    return "no default for this subscriber" if sight.facts.callees else "the callee is no subscriber of this site"


def _row(row: DefaultOff) -> str:
    return f"{row.province}, {row.operator}, {row.channel}: closed from {row.effective_from:%Y-%m-%d}"


def _flags(sight: Sight) -> str:
    return f"flags {' '.join(sight.flags)}" if sight.flags else "no flags"


FOUND: Mapping[str, Finding] = MappingProxyType(
    {
        "any": Finding(_always, _class),
        "callee_class": Finding(
            _always, _class, lambda _: True, lambda sight: f"callee class {sight.callee.number_class}"
        ),
        "cli_not_a_number": _on_form(Form.INVALID),
        "cli_withheld": _on_form(Form.WITHHELD),
        "cli_missing": _on_form(Form.MISSING),
        "form_not_of_trunk": Finding(
            lambda kind: kind.number and bool(kind.rules.wire_format) and kind.form not in kind.rules.wire_format,
            _forms,
        ),
        "no_such_country": Finding(lambda kind: kind.number_class in _NO_COUNTRY, _class),
        "national_cli": Finding(_national, _class),
        "foreign_cli": Finding(_foreign, _class),
        "roams": _roaming(Roaming.YES),
        "not_roaming": _roaming(Roaming.NO),
        "roaming_unknown": _roaming(Roaming.UNKNOWN),
        "not_allocated": Finding(
            lambda kind: kind.number and kind.rules.cli == "allocated_only",
            lambda kind: f"cli {kind.rules.cli}",
            Sight.not_allocated,
            lambda sight: f"{len(sight.call.trunk.allocated)} ranges allocated",
        ),
        "not_an_extension": Finding(
            lambda kind: kind.rules.cli == "extension",
            lambda kind: f"cli {kind.rules.cli}",
            Sight.not_an_extension,
            lambda sight: f"class {sight.cli.number_class}, {len(sight.call.trunk.allocated)} ranges of extensions",
        ),
        "dno_all": _dno("all"),
        "dno_intl": _dno("intl"),
        "dno_enterprise": _dno("enterprise"),
        "no_class": Finding(lambda kind: kind.national and kind.of_class is None, _class),
        "dno_class": _of_class(lambda known: known.dno),
        "not_voice_class": _of_class(lambda known: known.voice_cli == "no"),
        "no_outbound_licence": Finding(
            lambda kind: kind.of_class is not None and kind.of_class.voice_cli == "outbound_licence",
            _class,
            lambda sight: not sight.call.trunk.outbound,
            lambda sight: f"outbound {str(sight.call.trunk.outbound).lower()}",
        ),
        "punished": _listed(Sight.punished),
        "punished_retained": _listed(Sight.punished_retained),
        "system_listed": _listed(Sight.system_listed),
        "binding_live": _bound(Standing.LIVE, legacy=True),
        "binding_expired": _bound(Standing.EXPIRED, legacy=True),
        "binding_unknown": _bound(Standing.NONE, legacy=False),
        "subscriber_blocked": _listed(Sight.subscriber_blocked),
        "subscriber_allowed": _listed(lambda sight: sight.allowed_by_callee() is not None),
        "closed_by_subscriber": Finding(_foreign, _class, Sight.closed_by_subscriber, _consents),
        "default_off": Finding(_foreign, _class, Sight.default_off, _default),
        "class_label": _of_class(lambda known: bool(known.label)),
        "from_pai_disagree": Finding(
            lambda kind: kind.number,
            _form,
            Sight.from_pai_disagree,
            lambda sight: "one identity" if sight.presented is sight.cli else "From and an asserted identity",
        ),
        "flagged": Finding(_always, _class, lambda sight: bool(sight.flags), _flags),
    }
)
