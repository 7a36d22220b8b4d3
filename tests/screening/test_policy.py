"""Every call gets the verdict that the specification names, and the order of the rules is the specification."""

import csv
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbxguard import packs
from pbxguard.packs import load
from pbxguard.screening import policy
from pbxguard.screening.call import (
    Allow,
    Block,
    Call,
    Channel,
    Facts,
    Failed,
    Label,
    Reason,
    Roaming,
    Shadow,
    Step,
    Subscriber,
    Trunk,
    Verdict,
)
from pbxguard.screening.lists import Action, ListEntry
from pbxguard.screening.pack import Pack
from pbxguard.screening.privacy import Binding
from pbxguard.screening.registry import CallClass, Consent, ConsentEvent, Verb
from pbxguard.store import Store

CN = load("cn")
SHIPPED = [load(name) for name in packs.shipped()]
NOW = datetime(2026, 6, 1, 4, tzinfo=UTC)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
HK = "+85261234567"

#: The callees of the vectors: Z0 Zhejiang, closed; Z1 sent 1219; ZW allowlists the caller; N0 Heilongjiang;
#: H0 and H1 Henan with texts closed and opened; EM an emergency number.
NUMBERS = {
    "Z0": "13957100001",
    "Z1": "13957100002",
    "ZW": "13957100003",
    "N0": "13904510001",
    "H0": "13803710001",
    "H1": "13803710002",
    "EM": "110",
}
SUBSCRIBERS = [
    Subscriber(NUMBERS["Z0"], "cm", "zhejiang"),
    Subscriber(NUMBERS["Z1"], "cm", "zhejiang"),
    Subscriber(NUMBERS["ZW"], "cm", "zhejiang"),
    Subscriber(NUMBERS["N0"], "cm", "heilongjiang"),
    Subscriber(NUMBERS["H0"], "cm", "henan"),
    Subscriber(NUMBERS["H1"], "cm", "henan"),
]
VECTORS = list(csv.DictReader((files("pbxguard.packs") / "cn" / "vectors.csv").read_text("utf-8").splitlines()))


def entry(pattern: str, action: str = "block", *, owner: str = "", name: str = "system") -> ListEntry:
    return ListEntry(owner, pattern, Action(action), name, source="test")


def opening(number: str, call_class: CallClass, channel: str, **fields: object) -> ConsentEvent:
    values: dict[str, object] = {"verb": Verb.OPEN, "effective_at": LONG_AGO, "recorded_at": LONG_AGO}
    return ConsentEvent(number, call_class, channel, actor="test", via="cli", **(values | fields))


def consent(number: str, verb: str = "open", call_class: str = "hmt", **fields: object) -> Consent:
    return Consent(number, CallClass(call_class), "voice", Verb(verb), **({"since": LONG_AGO} | fields))


def call(cli: str, callee: str = "Z0", kind: str = "intl_gateway", **fields: object) -> Call:
    trunk = {name: fields.pop(name) for name in ("trusted", "allocated", "outbound", "roaming") if name in fields}
    values: dict[str, object] = {"call_id": "test", "at": NOW}
    values |= {"trunk": Trunk(name="t", kind=kind, **trunk), "cli": cli, "callee": NUMBERS.get(callee, callee)}
    return Call(**(values | fields))


def decide(one: Call, facts: Facts | None = None) -> Verdict:
    known = Facts(callees={s.number: s for s in SUBSCRIBERS})
    return policy.decide(one, policy.read(one, CN), facts or known, CN)


def decide_with(pack: Pack, one: Call, known: Facts | None = None, *, trace: bool = False) -> Verdict:
    return policy.decide(one, policy.read(one, pack), known or facts(), pack, trace=trace)


def site(**modes: object) -> Pack:
    """The CN pack with rules in other modes (``shadow=("5.punishment",)``), and lists in shadow."""
    of = {name: mode for mode, names in modes.items() if mode != "lists" for name in names}
    assert set(of) <= {rule.id for rule in CN.rules}
    rules = tuple(replace(rule, mode=of.get(rule.id, rule.mode)) for rule in CN.rules)
    return replace(CN, rules=rules, shadow_lists=frozenset(modes.get("lists", ())))


def facts(*listed: ListEntry, consents: tuple[Consent, ...] = (), flags: tuple[Label, ...] = ()) -> Facts:
    return Facts({s.number: s for s in SUBSCRIBERS}, consents, listed, flags)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    """A database with the subscribers, consents and lists of the vectors."""
    with Store.open(tmp_path_factory.mktemp("vectors") / "guard.db") as opened:
        opened.import_subscribers(SUBSCRIBERS)
        opened.append_many(
            [
                *(opening(NUMBERS["Z1"], each, "voice") for each in CallClass),
                *(opening(NUMBERS["H1"], each, "sms") for each in CallClass),
            ]
        )
        opened.add_entry(entry(HK, "allow", owner=NUMBERS["ZW"], name="own"))
        opened.add_entry(entry("13012345678", name=policy.PUNISHMENT_LIST))
        yield opened


def from_vector(row: dict[str, str]) -> tuple[Call, tuple[Label, ...]]:
    settings = dict(word.split("=") for word in row["setting"].split())
    trunk = Trunk(
        name="t",
        kind=row["trunk"],
        roaming=Roaming(settings.get("roaming", "no")),
        outbound=settings.get("outbound", "no") == "yes",
        allocated=(row["cli"],) if settings.get("allocated") == "yes" else (),
    )
    at = datetime.fromisoformat(row["at"]).replace(tzinfo=ZoneInfo("Asia/Shanghai")).astimezone(UTC)
    flags = (Label.SIMBOX_SUSPECTED,) if settings.get("detector") == "simbox" else ()
    return Call("v", at, trunk, row["cli"], NUMBERS[row["callee"]], Channel(row["channel"])), flags


@pytest.mark.parametrize("row", VECTORS, ids=lambda row: f"{row['n']}-{row['cli']}")
def test_vector(row: dict[str, str], store: Store) -> None:
    """Each of the 44 vectors of the specification gets its class, verdict and reason from a real store."""
    one, flags = from_vector(row)
    heard = policy.read(one, CN)
    kept = store.facts(heard.cli.key, heard.callee_keys)
    verdict = policy.decide(one, heard, Facts(kept.callees, kept.consents, kept.listed, flags), CN)
    assert heard.cli.number_class == row["class"]
    assert isinstance(verdict, Block if row["verdict"] == "block" else Allow), verdict
    assert verdict.reason == row["reason"]
    if row["verdict"] == "label":
        assert row["reason"] in verdict.labels
    assert verdict.basis.pack == CN.name
    assert verdict.basis.rule
    assert verdict.basis.detail.isprintable()


def test_every_vector_is_there() -> None:
    """The specification has 44 vectors, numbered without a gap."""
    assert [int(row["n"]) for row in VECTORS] == list(range(1, 45))


Z0 = NUMBERS["Z0"]
EVERY = (entry("+*"), entry("4*"), entry("+*", owner=Z0, name="own"))
BOTH: list[tuple[Reason, Call, Facts]] = [
    (Reason.EMERGENCY_CALLEE, call("abc", "110"), facts()),
    (Reason.EMERGENCY_CALLEE, call("85261234567", "110"), facts()),
    (Reason.EMERGENCY_CALLEE, call("4008123456", "0571110", "national"), facts(*EVERY)),
    (Reason.EMERGENCY_CALLEE, call(HK, "110"), facts(*EVERY, consents=(consent("110", "close"),))),
    (Reason.CLI_INVALID, call("4008-123456"), facts(*EVERY)),
    (Reason.INTL_PREFIX_MISSING, call("4008123456"), facts(*EVERY)),
    (Reason.DNO_INBOUND_ONLY, call("4008123456", kind="national"), facts(*EVERY)),
    (Reason.SYSTEM_BLOCKLIST, call(HK), facts(*EVERY, flags=(Label.SIMBOX_SUSPECTED,))),
    (Reason.SUBSCRIBER_BLOCKLIST, call(HK), facts(EVERY[2])),
    (Reason.INTL_DEFAULT_OFF, call(HK), facts(flags=(Label.SIMBOX_SUSPECTED,))),
    (Reason.SIMBOX_SUSPECTED, call(HK, "N0"), facts(flags=(Label.SIMBOX_SUSPECTED,))),
    (Reason.INTL_ORIGIN_NOTICE, call(HK, "N0"), facts()),
]


@pytest.mark.parametrize(("reason", "one", "known"), BOTH)
def test_the_earlier_step_decides(reason: Reason, one: Call, known: Facts) -> None:
    """Where several steps would decide, the earliest one does; each line takes one step away."""
    assert decide(one, known).reason == reason


def test_rules_are_numbered_in_their_order() -> None:
    """The rule ids that a verdict names begin with the number of their step, and rise as steps are taken away."""
    numbers = [int(decide(one, known).basis.rule.partition(".")[0]) for _, one, known in BOTH]
    assert all(a <= b for a, b in pairwise(numbers))
    assert set(numbers) == {1, 2, 3, 4, 5, 6, 7, 10}


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (call("abc"), Reason.CLI_INVALID),
        (call("+8613800138000"), Reason.NATIONAL_CLI_ON_INTL_TRUNK),
        (call("95201234", kind="enterprise"), Reason.CLI_NOT_ALLOCATED),
        (call("4008123456", kind="national"), Reason.DNO_INBOUND_ONLY),
        (call("106912345678", kind="national"), Reason.CLASS_NOT_VOICE),
        (call("955881", kind="national"), Reason.CLI_INVALID),
    ],
)
def test_allowlists_never_beat_form_trunk_and_class(one: Call, reason: Reason) -> None:
    """Neither the callee's nor the site's allowlist lets through what steps 2 to 4 refuse."""
    heard = policy.read(one, CN)
    pattern = heard.cli.key or one.cli
    allowed = [entry(pattern, "allow", owner=owner, name="own") for owner in ("", Z0)]
    assert decide(one, facts(*allowed)).reason == reason


def test_own_allowlist_does_not_beat_a_system_list() -> None:
    """Step 5 comes before step 6: a subscriber cannot invite a punished caller."""
    own = entry("13012345678", "allow", owner=Z0, name="own")
    for name, reason in (("punishment", Reason.JOINT_PUNISHMENT), ("system", Reason.SYSTEM_BLOCKLIST)):
        verdict = decide(call("13012345678", kind="national"), facts(own, entry("130*", name=name)))
        assert verdict.reason == reason
        assert verdict.basis.entry == entry("130*", name=name)


def test_allow_beats_block_for_one_owner() -> None:
    """Of two entries of one owner that match, the one that allows decides; expired ones do not count."""
    block, allow = entry(HK, owner=Z0, name="own"), entry("+852*", "allow", owner=Z0, name="own")
    verdict = decide(call(HK), facts(block, allow))
    assert (type(verdict), verdict.reason) == (Allow, Reason.SUBSCRIBER_ALLOWLIST)
    assert verdict.basis.entry == allow
    past = ListEntry(Z0, "+852*", Action.ALLOW, "own", expires_at=NOW)
    assert decide(call(HK), facts(block, past)).reason == Reason.SUBSCRIBER_BLOCKLIST
    assert isinstance(
        decide(call("13012345678", kind="national"), facts(entry("130*"), entry("13*", "allow"))), Allow
    )


def test_allowlisted_foreign_call_keeps_its_origin_label() -> None:
    """The allowlist connects a call from abroad, and the callee is told all the same (Art. 13)."""
    verdict = decide(call(HK, "ZW"), facts(entry(HK, "allow", owner=NUMBERS["ZW"], name="own")))
    assert verdict.labels == (Label.INTL_ORIGIN_NOTICE,)


def test_mvno_is_a_tag_and_no_verdict() -> None:
    """A caller of a virtual operator is let through for the default reason, with the tag for the log."""
    verdict = decide(call("17012345678", kind="national"))
    assert (type(verdict), verdict.reason, verdict.labels) == (Allow, Reason.DEFAULT, (Label.MVNO,))


@pytest.mark.parametrize("cli", ["abc", "", "anonymous", "+8613800138000", "1" * 300, "%0A", HK, "13012345678"])
@pytest.mark.parametrize("callee", ["110", "119", "120", "122", "0571110"])
@pytest.mark.parametrize("kind", sorted(CN.trunks))
def test_emergency_callee_beats_everything(cli: str, callee: str, kind: str) -> None:
    """An emergency number receives every call, with or without the store's help."""
    one = call(cli, callee, kind)
    verdict = decide(one, facts(*EVERY, entry("13*", name="punishment")))
    assert (type(verdict), verdict.reason) == (Allow, Reason.EMERGENCY_CALLEE)
    assert policy.decide_without_facts(one, policy.read(one, CN), CN) == verdict


# -- diverted calls -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("open_for", "reason"),
    [
        ((), Reason.INTL_DEFAULT_OFF),
        (("Z0",), Reason.INTL_DEFAULT_OFF),
        (("Z1",), Reason.INTL_DEFAULT_OFF),
        (("Z0", "Z1"), Reason.INTL_ORIGIN_NOTICE),
    ],
)
def test_a_diverted_call_needs_the_consent_of_both(open_for: tuple[str, ...], reason: Reason) -> None:
    """The original and the final callee must both have opened calls of the class."""
    consents = tuple(consent(NUMBERS[name]) for name in open_for)
    one = call(HK, "Z1", diverted_by=(NUMBERS["Z0"],), trusted=True)
    assert decide(one, facts(consents=consents)).reason == reason


def opted_in(one: Call, known: Facts, pack: Pack = CN) -> str:
    """What a verdict says of opt-ins, which is the same with a trace and without."""
    verdict = decide_with(pack, one, known, trace=True)
    assert decide_with(pack, one, known).basis.opted_in == verdict.basis.opted_in
    assert verdict.basis.opted_in in verdict.basis.detail
    return verdict.basis.opted_in


def test_an_opt_in_is_named_where_it_is_what_lets_the_call_through() -> None:
    """Class, date and end of the opt-in, for one caller where it is; both numbers where the call was diverted."""
    may, june = datetime(2026, 4, 30, 16, tzinfo=UTC), datetime(2026, 6, 30, 16, tzinfo=UTC)
    since = "since 2026-05-01 00:00:00+08:00"
    off = "else hmt calls are off by default (zhejiang, cm, voice: closed from 2022-05-20)"
    held = consent(Z0, since=may)
    assert opted_in(call(HK), facts(consents=(held,))) == f"the callee opted in to hmt {since} (registry open), {off}"
    held = replace(held, caller=HK, until=june)
    assert f"hmt for this caller {since} until 2026-07-01 00:00:00+08:00 (" in opted_in(
        call(HK), facts(consents=(held,))
    )
    other = NUMBERS["Z1"]
    both = (consent(Z0, since=may), consent(other, since=may))
    told = opted_in(call(HK, "Z1", diverted_by=(Z0,), trusted=True), facts(consents=both))
    assert (
        told
        == f"{Z0} opted in to hmt {since} (registry open) and {other} opted in to hmt {since} (registry open), {off}"
    )


@pytest.mark.parametrize(
    ("one", "listed", "modes"),
    [
        (call(HK, "N0"), (), {}),
        (call(HK, at=datetime(2022, 5, 1, tzinfo=UTC)), (), {}),
        (call("13012345678", kind="national"), (), {}),
        (call(HK), (entry(HK, "allow", owner=NUMBERS["Z0"], name="own"),), {}),
        (call(HK), (), {"shadow": ("7.default_off",)}),
        (call(HK), (), {"off": ("7.closed", "7.default_off")}),
        (call(HK), (entry(HK),), {}),
    ],
    ids=["province", "before", "national", "allowlist", "shadow", "off", "blocked"],
)
def test_an_opt_in_without_effect_is_not_the_cause(one: Call, listed: tuple[ListEntry, ...], modes: dict) -> None:
    """Where the call would pass without it, or does not pass with it, no opt-in is named."""
    consents = tuple(consent(NUMBERS[name]) for name in ("Z0", "N0"))
    assert opted_in(one, facts(*listed, consents=consents), site(**modes)) == ""


def test_a_refusal_says_since_when_the_class_is_closed() -> None:
    """Whoever closed a class is told as the cause, with the date; the end of the calendar in any zone is no error."""
    held = consent(Z0, "close", since=datetime(2026, 4, 30, 16, tzinfo=UTC))
    detail = decide(call(HK), facts(consents=(held,))).basis.detail
    assert detail.endswith("(closed hmt since 2026-05-01 00:00:00+08:00 (registry close))")
    first, last = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, tzinfo=UTC)
    told = opted_in(call(HK), facts(consents=(consent(Z0, since=first, until=last),)))
    assert " until 9999-12-31 23:00:00+00:00 (" in told


def test_blocklist_of_the_original_callee_holds_for_a_diverted_call() -> None:
    """Diverting does not get a caller around the original callee's own blocklist."""
    for written in (Z0, f"{Z0};user=phone", f"+86{Z0}"):
        one = call("13012345678", "N0", "national", diverted_by=(written,), trusted=True)
        verdict = decide(one, facts(entry("13012345678", owner=Z0, name="own")))
        assert verdict.reason == Reason.SUBSCRIBER_BLOCKLIST


def test_diversion_counts_on_trusted_trunks_only() -> None:
    """A caller who writes a Diversion neither borrows another subscriber's lists nor is refused by them."""
    for action in ("allow", "block"):
        one = call(HK, "N0", diverted_by=(Z0,))
        assert policy.read(one, CN).callee_keys == (NUMBERS["N0"],)
        verdict = decide(one, facts(entry(HK, action, owner=Z0, name="own")))
        assert (verdict.reason, verdict.basis.entry) == (Reason.INTL_ORIGIN_NOTICE, None)


def test_allowlist_of_who_diverted_explains_no_verdict() -> None:
    """The reason and the entry of an allowed call are those of the final callee's own list."""
    theirs, own = (entry(HK, "allow", owner=NUMBERS[name], name="own") for name in ("Z0", "N0"))
    one = call(HK, "N0", diverted_by=(Z0,), trusted=True)
    verdict = decide(one, facts(theirs))
    assert (verdict.reason, verdict.basis.entry) == (Reason.INTL_ORIGIN_NOTICE, None)
    verdict = decide(one, facts(theirs, own))
    assert (verdict.reason, verdict.basis.entry) == (Reason.SUBSCRIBER_ALLOWLIST, own)


def test_allowlist_of_one_callee_does_not_explain_the_refusal_of_the_other() -> None:
    """A refusal for the final callee's missing consent names no entry of the original callee."""
    one = call(HK, "Z1", diverted_by=(Z0,), trusted=True)
    verdict = decide(one, facts(entry(HK, "allow", owner=Z0, name="own")))
    assert verdict.reason == Reason.INTL_DEFAULT_OFF
    assert verdict.basis.entry is None


# -- P-Asserted-Identity --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trusted", "asserted", "key", "labels"),
    [
        (True, HK, HK, (Label.INTL_ORIGIN_NOTICE, Label.FROM_PAI_DISAGREE)),
        (True, "+12125550100", "+12125550100", (Label.INTL_ORIGIN_NOTICE,)),
        (True, "0012125550100", "+12125550100", (Label.INTL_ORIGIN_NOTICE,)),
        (True, "nobody", "+12125550100", (Label.INTL_ORIGIN_NOTICE,)),
        (True, None, "+12125550100", (Label.INTL_ORIGIN_NOTICE,)),
        (False, HK, "+12125550100", (Label.INTL_ORIGIN_NOTICE,)),
    ],
)
def test_asserted_identity_counts_on_trusted_trunks_only(
    trusted: bool, asserted: str | None, key: str, labels: tuple[Label, ...]
) -> None:
    """A readable assertion of a trusted trunk outranks From, and a difference is a label (RFC 3325)."""
    one = call("+12125550100", "N0", trusted=trusted, asserted=asserted)
    verdict = decide(one)
    assert verdict.basis.cli is not None
    assert verdict.basis.cli.key == key
    assert verdict.labels == labels


def test_asserted_identity_stands_in_for_an_anonymous_caller() -> None:
    """A caller who withholds the number towards the callee is screened by what the trusted carrier asserts."""
    assert decide(call("anonymous", trusted=True, asserted=HK)).reason == Reason.INTL_DEFAULT_OFF
    assert decide(call("anonymous", trusted=False, asserted=HK)).reason == Reason.CLI_MISSING


# -- default-off and consent ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        ("2022-05-19T15:59:59.999999+00:00", Reason.INTL_ORIGIN_NOTICE),
        ("2022-05-19T16:00:00+00:00", Reason.INTL_DEFAULT_OFF),
    ],
)
def test_default_off_begins_at_local_midnight(at: str, reason: Reason) -> None:
    """Zhejiang's default holds from 2022-05-20 00:00 in Shanghai, which is 16:00 UTC the day before; half-open."""
    assert decide(call(HK, at=datetime.fromisoformat(at))).reason == reason


def test_default_off_is_for_one_operator_and_channel() -> None:
    """Zhejiang's row for voice names one operator; another one's subscriber receives the call."""
    other = Facts({Z0: Subscriber(Z0, "ct", "zhejiang")})
    assert decide(call(HK), other).reason == Reason.INTL_ORIGIN_NOTICE
    assert decide(call(HK, kind="sms_intl", channel=Channel.SMS), other).reason == Reason.INTL_DEFAULT_OFF


def test_unknown_callee_has_no_default() -> None:
    """A number that is no subscriber here is of no known province: the call goes on, with its origin label."""
    assert decide(call(HK), Facts()).reason == Reason.INTL_ORIGIN_NOTICE


def test_national_calls_need_no_consent() -> None:
    """Default-off is about calls from abroad only, closed ledger or not."""
    closed = (consent(Z0, "close"), consent(Z0, "close", "intl"))
    assert decide(call("13800138000", kind="national"), facts(consents=closed)).reason == Reason.DEFAULT


def test_explicit_close_holds_where_no_default_does() -> None:
    """Whoever switched calls off in Heilongjiang gets none, though that province has no default."""
    closed = facts(consents=(consent(NUMBERS["N0"], "close"),))
    assert decide(call(HK, "N0"), closed).reason == Reason.INTL_DEFAULT_OFF
    assert decide(call("+12125550100", "N0"), closed).reason == Reason.INTL_ORIGIN_NOTICE


def test_consent_for_one_caller_is_for_that_caller() -> None:
    """An opening for one caller lets that caller through and nobody else, however the CLI is written."""
    one = facts(consents=(consent(Z0, caller=HK),))
    assert decide(call(HK), one).reason == Reason.INTL_ORIGIN_NOTICE
    assert decide(call("0085261234567"), one).reason == Reason.INTL_ORIGIN_NOTICE
    assert decide(call("+85261234568"), one).reason == Reason.INTL_DEFAULT_OFF


@pytest.mark.parametrize(("shift", "reason"), [(0, Reason.INTL_DEFAULT_OFF), (1, Reason.INTL_ORIGIN_NOTICE)])
def test_consent_ends_at_its_until(shift: int, reason: Reason) -> None:
    """``until`` is exclusive: at that very moment the default holds again."""
    until = NOW + timedelta(microseconds=shift)
    assert decide(call(HK), facts(consents=(consent(Z0, until=until),))).reason == reason


def test_consent_is_for_one_class() -> None:
    """Opening Hong Kong, Macau and Taiwan opens no other country."""
    opened = facts(consents=(consent(Z0),))
    assert decide(call(HK), opened).reason == Reason.INTL_ORIGIN_NOTICE
    assert decide(call("+12125550100"), opened).reason == Reason.INTL_DEFAULT_OFF


# -- single rules ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cli", ["+999123456", "+8521234", "+852612345678901", "00852", "+1", "+0123456789"])
@pytest.mark.parametrize("kind", ["intl_gateway", "national", "enterprise", "sim_gateway"])
def test_no_foreign_number_is_refused_on_every_trunk(cli: str, kind: str) -> None:
    """A CLI of no country, or of a length that its country does not have, is invalid, also for who opted in."""
    opened = tuple(consent(Z0, "open", each) for each in CallClass)
    verdict = decide(call(cli, kind=kind), facts(consents=opened))
    assert (type(verdict), verdict.reason) == (Block, Reason.CLI_INVALID)


@pytest.mark.parametrize(
    "cli",
    [
        "1380013a000",
        "138 0013 8000",
        "138*",
        "#31#13800138000",
        "１３８００１３８０００",
        "1" * 25,
        "%31",
        '"',
        "+",
        "--",
    ],
)
def test_what_is_no_number_is_refused(cli: str) -> None:
    """Letters, spaces, stars, full-width digits and 25 digits are no CLI (specification, section 12)."""
    assert decide(call(cli, kind="national")).reason == Reason.CLI_INVALID


def test_95_code_calls_out_where_its_trunk_has_the_licence() -> None:
    """An allocated 95 code on an enterprise trunk with the outbound licence is let through and labelled."""
    one = call("95201234", kind="enterprise", allocated=("95201*",), outbound=True)
    assert decide(one).labels == (Label.VAS_CALL_CENTRE,)


def test_what_a_trunk_switch_says_happens() -> None:
    """A national number from abroad is refused, connected without CLI, labelled or let through, as the kind says."""
    rules = CN.trunks["intl_gateway"]
    for action, kind, labels in (
        ("block", Block, ()),
        ("anonymise", Allow, (Label.CLI_ANONYMISED,)),
        ("label", Allow, (Label.ROAMING_UNKNOWN,)),
        ("pass", Allow, ()),
    ):
        verdict = decide_with(_with_rule(rules, national_fixed=action), call("+861065551234"))
        assert (type(verdict), verdict.labels) == (kind, labels), action
        assert (verdict.reason == Reason.CLI_ANONYMISED) == (action == "anonymise")


def _with_rule(rules, **changed) -> Pack:
    return replace(CN, trunks={**CN.trunks, rules.kind: replace(rules, **changed)})


# -- what a site chooses ----------------------------------------------------------------------------------------


def test_a_rule_that_is_off_decides_nothing() -> None:
    """Without the rule the call goes on to the rules after it, and nothing is noted."""
    one = call("4008123456", kind="national")
    assert decide(one).reason == Reason.DNO_INBOUND_ONLY
    verdict = decide_with(site(off=("4.dno",)), one)
    assert (type(verdict), verdict.reason, verdict.basis.shadow) == (Allow, Reason.DEFAULT, ())


def test_a_rule_in_shadow_is_noted_and_has_no_effect() -> None:
    """The verdict is that of the other rules; what the rule would have decided stands beside it."""
    one = call("4008123456", kind="national")
    verdict = decide_with(site(shadow=("4.dno", "8.origin_notice")), one)
    assert (type(verdict), verdict.reason) == (Allow, Reason.DEFAULT)
    assert verdict.basis.shadow == (Shadow("4.dno", "block", "dno_inbound_only"),)
    verdict = decide_with(site(shadow=("8.origin_notice",)), call(HK, "N0"))
    assert (verdict.labels, verdict.basis.shadow) == ((), (Shadow("8.origin_notice", "label", "intl_origin_notice"),))


def test_what_comes_after_the_verdict_is_in_no_shadow() -> None:
    """A rule in shadow would not have decided a call that an earlier rule refuses."""
    verdict = decide_with(site(shadow=("7.default_off",)), call("abc"))
    assert (verdict.reason, verdict.basis.shadow) == (Reason.CLI_INVALID, ())
    one = call(HK)
    verdict = decide_with(site(shadow=("7.default_off",), lists=("own",)), one, facts(entry(HK)))
    assert (verdict.reason, verdict.basis.shadow) == (Reason.SYSTEM_BLOCKLIST, ())


def test_an_allowlist_rule_in_shadow_spares_nobody() -> None:
    """With the rule in shadow the subscriber's allowlist does not beat default-off either."""
    listed = facts(entry(HK, "allow", owner=Z0, name="own"))
    assert decide(call(HK), listed).reason == Reason.SUBSCRIBER_ALLOWLIST
    for mode in ("shadow", "off"):
        verdict = decide_with(site(**{mode: ("6.subscriber_allow",)}), call(HK), listed)
        assert (verdict.reason, verdict.basis.entry) == (Reason.INTL_DEFAULT_OFF, None)


@pytest.mark.parametrize(
    ("listed", "reason", "shadow"),
    [
        ((entry("130*", name="new"),), Reason.DEFAULT, Shadow("list:new", "block", "system_blocklist")),
        ((entry("130*", name="punishment"),), Reason.DEFAULT, Shadow("list:punishment", "block", "joint_punishment")),
        ((entry("130*", owner=Z0, name="own"),), Reason.DEFAULT, Shadow("list:own", "block", "subscriber_blocklist")),
        (
            (entry("130*", "allow", name="new"), entry("13012345678")),
            Reason.SYSTEM_BLOCKLIST,
            Shadow("list:new", "allow", "default"),
        ),
        ((entry("130*", name="new"), entry("13012345678")), Reason.SYSTEM_BLOCKLIST, None),
        ((entry("13012345678", name="new"), entry("130*")), Reason.SYSTEM_BLOCKLIST,
         Shadow("list:new", "block", "system_blocklist")),
    ],
)  # fmt: skip
def test_a_list_in_shadow(listed: tuple[ListEntry, ...], reason: Reason, shadow: Shadow | None) -> None:
    """Its entries decide nothing; where one of them would have been the one that decides, that is noted."""
    pack = site(lists=("new", "punishment", "own"))
    verdict = decide_with(pack, call("13012345678", kind="national"), facts(*listed))
    assert verdict.reason == reason
    assert verdict.basis.shadow == (() if shadow is None else (shadow,))


@pytest.mark.parametrize(
    ("noted", "roaming", "reason", "shadow"),
    [
        (("roaming_yes",), Roaming.NO, Reason.NATIONAL_CLI_ON_INTL_TRUNK, ("list:roaming_yes",)),
        (("roaming_yes",), Roaming.YES, Reason.ROAMER_VERIFIED, ()),
        (("roaming_no",), Roaming.YES, Reason.ROAMER_VERIFIED, ("list:roaming_no",)),
        (("roaming_no", "roaming_yes"), Roaming.NO, Reason.NATIONAL_CLI_ON_INTL_TRUNK,
         ("list:roaming_no", "list:roaming_yes")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("trace", [False, True])
def test_a_roaming_list_in_shadow(
    noted: tuple[str, ...], roaming: Roaming, reason: Reason, shadow: tuple[str, ...], trace: bool
) -> None:
    """Its notes are no answer; where they would have changed the answer of the look-up, that is noted."""
    known = facts(*(entry("13800138000", "note", name=name) for name in noted))
    one = call("+8613800138000", "N0", roaming=roaming)
    verdict = decide_with(site(lists=noted), one, known, trace=trace)
    assert (verdict.reason, verdict.basis.shadow) == (reason, tuple(Shadow(name, "note", "") for name in shadow))
    nobody_asks = decide_with(site(lists=noted), replace(one, cli="13800138000"), known, trace=trace)
    assert (nobody_asks.reason, nobody_asks.basis.shadow) == (Reason.INTL_PREFIX_MISSING, ())


@pytest.mark.parametrize("trace", [False, True])
def test_a_list_of_sim_boxes_in_shadow(trace: bool) -> None:
    """Its notes label no call, and the label is noted; a flag of a detector labels all the same."""
    pack, note = site(lists=("simbox_suspected",)), entry("13012345678", "note", name="simbox_suspected")
    one = call("13012345678", kind="national")
    verdict = decide_with(pack, one, facts(note), trace=trace)
    assert (verdict.reason, verdict.labels) == (Reason.DEFAULT, ())
    assert verdict.basis.shadow == (Shadow("list:simbox_suspected", "label", "simbox_suspected"),)
    verdict = decide_with(pack, one, facts(note, flags=(Label.SIMBOX_SUSPECTED,)), trace=trace)
    assert (verdict.reason, verdict.basis.shadow) == (Reason.SIMBOX_SUSPECTED, ())


def test_a_rule_in_shadow_explains_no_later_refusal() -> None:
    """A refusal by a later rule names neither the entry that the rule in shadow found nor that entry's law."""
    own = replace(entry("+1*", owner=Z0, name="own"), legal_basis="own law")
    verdict = decide_with(site(shadow=("6.subscriber_block",)), call("+12125550100"), facts(own))
    assert (verdict.reason, verdict.basis.entry, verdict.basis.legal_basis) == (Reason.INTL_DEFAULT_OFF, None, "")
    assert verdict.basis.shadow == (Shadow("6.subscriber_block", "block", "subscriber_blocklist"),)
    punished = replace(entry(X700, name="punishment"), legal_basis="its law")
    known = replace(facts(punished), bindings=(bound(X700, -60, 0),))
    verdict = decide_with(site(shadow=("5.punishment",)), call(X700, kind="national"), known)
    assert (verdict.reason, verdict.basis.entry) == (Reason.PRIVACY_BINDING_EXPIRED, None)
    assert verdict.basis.legal_basis != "its law"


def test_a_rule_that_only_labels_explains_no_later_refusal() -> None:
    """Nor does a later refusal name the entry for which an earlier rule gave a label."""
    labelling = {"action": "label", "labels": (Label.SIMBOX_SUSPECTED,), "reason": None}
    rules = tuple(replace(r, **labelling) if r.id == "6.subscriber_block" else r for r in CN.rules)
    own = entry("+1*", owner=Z0, name="own")
    verdict = decide_with(replace(CN, rules=rules), call("+12125550100"), facts(own))
    assert (verdict.reason, verdict.basis.entry) == (Reason.INTL_DEFAULT_OFF, None)
    assert verdict.labels == (Label.SIMBOX_SUSPECTED,)


@pytest.mark.parametrize("trace", [False, True])
def test_a_rule_in_shadow_that_lets_go_on_is_noted(trace: bool) -> None:
    """The allowlist of a subscriber and a verified roamer are seen in shadow too, with the reason they would give."""
    own = facts(entry("+1*", "allow", owner=Z0, name="own"))
    verdict = decide_with(site(shadow=("6.subscriber_allow",)), call("+12125550100"), own, trace=trace)
    assert verdict.reason == Reason.INTL_DEFAULT_OFF
    assert verdict.basis.shadow == (Shadow("6.subscriber_allow", "pass", "subscriber_allowlist"),)
    roamer = call("+8613800138000", "N0", roaming=Roaming.YES)
    verdict = decide_with(site(shadow=("3.roamer",)), roamer, trace=trace)
    assert verdict.basis.shadow == (Shadow("3.roamer", "pass", "roamer_verified"),)


def test_punishment_in_shadow_hides_no_other_list() -> None:
    """A number on two lists is still refused for the other one."""
    known = facts(entry("13012345678", name="punishment"), entry("130*"))
    one = call("13012345678", kind="national")
    assert decide(one, known).reason == Reason.JOINT_PUNISHMENT
    assert decide_with(site(shadow=("5.punishment",)), one, known).reason == Reason.SYSTEM_BLOCKLIST
    assert decide_with(site(lists=("punishment",)), one, known).reason == Reason.SYSTEM_BLOCKLIST


# -- lists ------------------------------------------------------------------------------------------------------


def test_entries_come_and_go_by_date() -> None:
    """An entry holds from ``since`` (inclusive) to ``expires_at`` (exclusive), by the time of the call."""
    one = call("13012345678", kind="national")
    for since, ends, blocked in ((0, 1, True), (1, 2, False), (-1, 0, False), (None, None, True)):
        dated = replace(
            entry("13012345678", name="punishment"),
            since=None if since is None else NOW + timedelta(microseconds=since),
            expires_at=None if ends is None else NOW + timedelta(microseconds=ends),
        )
        assert isinstance(decide(one, facts(dated)), Block) is blocked


def test_the_number_that_a_punished_person_keeps() -> None:
    """Its calls go on with a label, though the range around it is punished; another list blocks it all the same."""
    kept = replace(entry("13012345678", name="punishment"), retained=True)
    one = call("13012345678", kind="national")
    verdict = decide(one, facts(kept, entry("130*", name="punishment")))
    assert (type(verdict), verdict.reason) == (Allow, Reason.PUNISHED_RETAINED)
    assert verdict.labels == (Label.PUNISHED_RETAINED,)
    assert decide(one, facts(kept, entry("130*"))).reason == Reason.SYSTEM_BLOCKLIST
    assert decide(one, facts(replace(kept, expires_at=NOW))).reason == Reason.DEFAULT


@pytest.mark.parametrize("cli", ["10086", "057110086", "110", "0571110"])
def test_no_list_blocks_an_operator_or_emergency_number(cli: str) -> None:
    """Neither a list of the site nor a subscriber's own can hold them, whatever was imported."""
    heard = policy.read(call(cli, kind="national"), CN).cli
    assert heard.key is not None
    listed = [entry(p, owner=o, name=n) for p, o, n in (("1*", "", "system"), (heard.key, "", "punishment"),
                                                        ("*", "", "system"), (heard.key, Z0, "own"))]  # fmt: skip
    verdict = decide(call(cli, kind="national"), facts(*listed))
    assert verdict.reason not in (Reason.SYSTEM_BLOCKLIST, Reason.JOINT_PUNISHMENT, Reason.SUBSCRIBER_BLOCKLIST)


def test_tags_by_which_lists_may_know_a_caller() -> None:
    """Class, group and region of the CLI, and whether bindings may say something about it."""
    assert policy.read(call(HK), CN).tags == ("intl_hk", "hmt", "region:hk")
    assert policy.read(call("95013", kind="national"), CN).tags == ("svc95_vas", "region:cn")
    assert policy.read(call("700123456789012", kind="national"), CN).tags[-1] == "privacy"
    assert policy.read(call("anonymous"), CN).tags == ("withheld",)


def test_a_subscriber_may_refuse_a_class(tmp_path: Path) -> None:
    """Own lists of classes and regions (refuse 950, 951, international, HK) hold for that subscriber alone."""
    with Store.open(tmp_path / "guard.db") as store:
        for pattern in ("class:svc95_vas", "region:hk"):
            store.add_entry(entry(pattern, owner=NUMBERS["N0"], name="own"))
        for cli, callee, blocked in (("95013", "N0", True), (HK, "N0", True), ("95013", "Z1", False),
                                     ("+85362345678", "N0", False), ("13800138000", "N0", False)):  # fmt: skip
            one = call(cli, callee, "national")
            heard = policy.read(one, CN)
            verdict = policy.decide(one, heard, store.facts(heard.cli.key, heard.callee_keys, heard.tags), CN)
            assert (verdict.reason == Reason.SUBSCRIBER_BLOCKLIST) is blocked, (cli, callee)


@given(st.permutations([entry(HK), entry("+852*", "allow"), entry("+85*"), entry("+8526*", "allow", name="vip"),
                        entry(HK, owner=Z0, name="own"), entry("+*", "allow", owner=Z0, name="own")]))  # fmt: skip
def test_allow_beats_block_in_any_order(listed: list[ListEntry]) -> None:
    """However the entries are read from the store, the allowing one of each owner wins."""
    verdict = decide(call(HK), facts(*listed))
    assert (type(verdict), verdict.reason) == (Allow, Reason.SUBSCRIBER_ALLOWLIST)
    blocking = [each for each in listed if each.action is Action.BLOCK]
    assert decide(call(HK), facts(*blocking)).reason == Reason.SYSTEM_BLOCKLIST


# -- privacy numbers --------------------------------------------------------------------------------------------

X700 = "700123456789012"
X170 = "17012345678"


def bound(x: str, since: int, until: int | None, callee: str = Z0) -> Binding:
    """A binding from and to so many seconds from the call."""
    ends = None if until is None else NOW + timedelta(seconds=until)
    return Binding(x, "13800138000", callee, NOW + timedelta(seconds=since), ends, 600)


@pytest.mark.parametrize(
    ("x", "bindings", "reason", "labels"),
    [
        (X700, (), Reason.PRIVACY_NUMBER, (Label.PRIVACY_NUMBER,)),
        (X700, (bound(X700, -60, 60),), Reason.PRIVACY_NUMBER, (Label.PRIVACY_NUMBER,)),
        (X700, (bound(X700, -60, None),), Reason.PRIVACY_NUMBER, (Label.PRIVACY_NUMBER,)),
        (X700, (bound(X700, -60, 0),), Reason.PRIVACY_BINDING_EXPIRED, ()),
        (X700, (bound(X700, -60, -1), bound(X700, -1, 60)), Reason.PRIVACY_NUMBER, (Label.PRIVACY_NUMBER,)),
        (X700, (bound(X700, -60, -1, "13900000000"),), Reason.PRIVACY_NUMBER, (Label.PRIVACY_NUMBER,)),
        (X170, (), Reason.DEFAULT, (Label.MVNO,)),
        (X170, (bound(X170, -60, 60),), Reason.PRIVACY_NUMBER, (Label.PRIVACY_NUMBER, Label.MVNO)),
        (X170, (bound(X170, -60, 0),), Reason.PRIVACY_BINDING_EXPIRED, ()),
    ],
)
def test_privacy_numbers(x: str, bindings: tuple[Binding, ...], reason: Reason, labels: tuple[Label, ...]) -> None:
    """A live binding to this callee passes, an ended one does not; of one that is not known the rule decides."""
    verdict = decide(call(x, kind="national"), replace(facts(), bindings=bindings))
    assert (verdict.reason, verdict.labels) == (reason, labels)


def test_a_binding_holds_for_who_diverted_too() -> None:
    """X is bound to the callee that was dialled, wherever that one diverts to."""
    one = call(X700, "N0", "national", diverted_by=(Z0,), trusted=True)
    known = replace(facts(), bindings=(bound(X700, -60, 0),))
    assert decide(one, known).reason == Reason.PRIVACY_BINDING_EXPIRED
    assert decide(replace(one, diverted_by=()), known).reason == Reason.PRIVACY_NUMBER


# -- trunks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roaming", "unknown", "kind", "reason"),
    [
        (Roaming.YES, "label", Allow, Reason.ROAMER_VERIFIED),
        (Roaming.NO, "label", Block, Reason.NATIONAL_CLI_ON_INTL_TRUNK),
        (Roaming.UNKNOWN, "label", Allow, Reason.ROAMING_UNKNOWN),
        (Roaming.UNKNOWN, "block", Block, Reason.NATIONAL_CLI_ON_INTL_TRUNK),
        (Roaming.UNKNOWN, "pass", Allow, Reason.DEFAULT),
    ],
)
def test_roaming_look_up(roaming: Roaming, unknown: str, kind: type, reason: Reason) -> None:
    """A national mobile from abroad: yes passes, no is refused, and for no answer the trunk kind has a switch."""
    pack = _with_rule(CN.trunks["intl_gateway"], roaming_unknown=unknown)
    verdict = decide_with(pack, call("+8613800138000", roaming=roaming))
    assert (type(verdict), verdict.reason) == (kind, reason)
    assert decide_with(pack, call("+861065551234", roaming=roaming)).reason == Reason.NATIONAL_CLI_ON_INTL_TRUNK


@pytest.mark.parametrize(
    ("roaming", "unknown", "kind", "labels"),
    [
        (Roaming.NO, "label", Failed, (Label.ROAMING_UNKNOWN,)),
        (Roaming.NO, "pass", Failed, ()),
        (Roaming.NO, "block", Block, ()),
        (Roaming.UNKNOWN, "label", Failed, (Label.ROAMING_UNKNOWN,)),
        (Roaming.YES, "label", Failed, ()),
        (Roaming.YES, "block", Failed, ()),
    ],
)
def test_without_facts_the_roaming_look_up_has_no_answer(
    roaming: Roaming, unknown: str, kind: type, labels: tuple[Label, ...]
) -> None:
    """A note may vouch for the roamer, so without the store ``no`` is no answer: the trunk kind's switch decides.

    A trunk whose own answer is ``yes`` keeps it; national numbers that nobody looks up are refused all the same.
    """
    pack = _with_rule(CN.trunks["intl_gateway"], roaming_unknown=unknown)
    one = call("+8613800138000", roaming=roaming)
    found = policy.decide_without_facts(one, policy.read(one, pack), pack, "the disk is full")
    assert (type(found), found.labels) == (kind, labels)
    fixed = replace(one, cli="+861065551234")
    assert isinstance(policy.decide_without_facts(fixed, policy.read(fixed, pack), pack), Block)
    blocking = _with_rule(CN.trunks["intl_gateway"], national_mobile="block")
    assert isinstance(policy.decide_without_facts(one, policy.read(one, blocking), blocking), Block)


@pytest.mark.parametrize("pack", SHIPPED, ids=lambda pack: pack.id)
def test_no_pack_refuses_a_roamer_for_want_of_the_store(pack: Pack) -> None:
    """A call that a note lets through is in no shipped pack refused because the note cannot be read."""
    for kind, rules in pack.trunks.items():
        if rules.national_mobile != "roaming_check":
            continue
        for cli in pack.examples:
            one = call(f"+{pack.cc}{cli.removeprefix(pack.trunk_prefix)}", kind=kind)
            heard = policy.read(one, pack)
            note = ListEntry("", heard.cli.key or "", Action.NOTE, "roaming_yes")
            if isinstance(policy.decide(one, heard, Facts(listed=(note,)), pack), Allow):
                assert isinstance(policy.decide_without_facts(one, heard, pack), Failed), (kind, cli)


def test_a_failure_of_the_store_does_not_show_a_withheld_cli() -> None:
    """What steps 3 and 4 say about the CLI holds without the store: the failed verdict carries the label."""
    pack = _with_rule(CN.trunks["intl_gateway"], national_fixed="anonymise")
    one = call("+861065551234")
    failed = policy.decide_without_facts(one, policy.read(one, pack), pack, "the disk is full")
    assert isinstance(failed, Failed)
    assert (failed.why, failed.labels) == ("the disk is full", (Label.CLI_ANONYMISED,))


@pytest.mark.parametrize("kind", ["national", "sim_gateway"])
def test_withheld_and_missing_go_on_where_the_kind_lets_them(kind: str) -> None:
    """Both are told apart in the record; where cli_missing is ``label`` the withheld one says so."""
    for cli in ("anonymous", ""):
        assert decide(call(cli, kind=kind)).reason == Reason.DEFAULT
        pack = _with_rule(CN.trunks[kind], cli_missing="label")
        assert decide_with(pack, call(cli, kind=kind)).labels == (Label.CLI_WITHHELD,)


def test_gateway_prefix_is_cut_before_the_cli_is_read() -> None:
    """A SIM gateway that writes its port before the CLI is declared once, and the number counts."""
    plain = call("8001#13012345678", kind="sim_gateway")
    assert decide(plain).reason == Reason.CLI_INVALID
    trunk = replace(plain.trunk, cli_prefixes=("8001#", "8001"))
    heard = policy.read(replace(plain, trunk=trunk), CN)
    assert (heard.cli.key, heard.cli.number_class) == ("13012345678", "mobile_cu")


def test_internal_trunk_shows_extensions() -> None:
    """An extension is no public number, and is let through where the kind of trunk has extensions."""
    assert decide(call("101", kind="internal")).reason == Reason.DEFAULT
    assert decide(call("101", kind="national")).reason == Reason.CLI_INVALID


@pytest.mark.parametrize("pack", SHIPPED, ids=lambda pack: pack.id)
@pytest.mark.parametrize("cli", ["emergency", "anonymous", ""])
def test_internal_trunk_shows_no_public_number(pack: Pack, cli: str) -> None:
    """Without a list of extensions any other digits are one; a number of the plan, or none at all, is not."""
    assert pack.trunks["internal"].cli == "extension"
    raw = min(pack.emergency) if cli == "emergency" else cli
    verdict = decide_with(pack, call(raw, kind="internal"))
    assert (verdict.reason, verdict.basis.rule) == (Reason.CLI_NOT_ALLOCATED, "3.extension")
    assert isinstance(decide_with(pack, call("10", kind="internal")), Allow)


@pytest.mark.parametrize(
    ("cli", "allocated", "passes"),
    [
        ("95588", (), False),
        ("13800138000", (), False),
        ("8101", (), True),
        ("8101", ("81*",), True),
        ("8201", ("81*",), False),
        ("8201", ("81*", "8200-8299"), True),
        ("82011", ("8200-8299",), False),
        ("anonymous", ("81*",), False),
        ("", ("81*",), False),
        ("95588", ("81*",), False),
        ("13800138000", ("13800138000",), True),
    ],
)
def test_listed_extensions_and_no_others(cli: str, allocated: tuple[str, ...], passes: bool) -> None:
    """Where the trunk lists its extensions, a CLI is one of them; a public number that is listed is one too."""
    one = call(cli, kind="internal", allocated=allocated)
    verdict = decide(one)
    assert isinstance(verdict, Allow) is passes
    assert passes or verdict.basis.rule == "3.extension"
    assert isinstance(policy.decide_without_facts(one, policy.read(one, CN), CN), Failed if passes else Block)


def test_an_extension_is_the_asserted_one_of_a_trusted_trunk() -> None:
    """A telephone that withholds its name towards the callee is known by what the trusted PBX asserts."""
    assert isinstance(decide(call("anonymous", kind="internal", trusted=True, asserted="101")), Allow)
    assert isinstance(decide(call("anonymous", kind="internal", asserted="101")), Block)


def test_do_not_originate_has_a_scope() -> None:
    """A number that is allocated to no customer, or never calls from abroad, is refused there and nowhere else."""
    operator = call("10086", kind="enterprise", allocated=("10086",))
    assert decide(operator).basis.rule == "4.dno_enterprise"
    assert decide(call("10086", kind="national")).reason == Reason.DEFAULT
    off = ("3.national_cli", "3.national_mobile", "3.not_roaming")
    verdict = decide_with(site(off=off), call("+8657196110"))
    assert (verdict.reason, verdict.basis.rule) == (Reason.DNO_LISTED, "4.dno_intl")
    assert decide(call("057196110", kind="national")).reason == Reason.VERIFIED_GOV


# -- dates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("local", "reason"),
    [
        ("2022-05-06T23:59:59.999999", Reason.INTL_ORIGIN_NOTICE),
        ("2022-05-07T00:00:00", Reason.INTL_DEFAULT_OFF),
    ],
)
def test_texts_are_off_from_local_midnight(local: str, reason: Reason) -> None:
    """The date is that of the site's zone, whatever zone the time of the call is written in."""
    at = datetime.fromisoformat(local).replace(tzinfo=ZoneInfo("Asia/Shanghai"))
    for zone in ("UTC", "America/New_York", "Asia/Shanghai"):
        one = call(HK, "H0", "sms_intl", channel=Channel.SMS, at=at.astimezone(ZoneInfo(zone)))
        assert decide(one).reason == reason


def test_international_and_hmt_open_separately_for_good_until_and_for_one() -> None:
    """The three ways to open, each for one group of calls."""
    us, other = "+12125550100", "+85261234568"
    for_good = facts(consents=(consent(Z0, call_class="intl"),))
    until = facts(consents=(consent(Z0, until=NOW + timedelta(days=1)),))
    for_one = facts(consents=(consent(Z0, caller=HK),))
    opened = {
        (name, cli)
        for name, known in (("good", for_good), ("until", until), ("one", for_one))
        for cli in (us, HK, other)
        if isinstance(decide(call(cli), known), Allow)
    }
    assert opened == {("good", us), ("until", HK), ("until", other), ("one", HK)}
    later = call(HK, at=NOW + timedelta(days=1))
    assert decide(later, until).reason == Reason.INTL_DEFAULT_OFF


def test_a_cut_over_that_was_taken_back_leaves_the_default() -> None:
    """Who is reset has never answered: closed where the default is closed, open where it is open."""
    for callee, kind in (("Z0", Block), ("N0", Allow)):
        assert isinstance(decide(call(HK, callee), facts(consents=(consent(NUMBERS[callee], "reset"),))), kind)


# -- trace ------------------------------------------------------------------------------------------------------


def test_trace_tells_every_rule_in_order() -> None:
    """Each rule up to the deciding one, with what it saw; the others are not asked."""
    verdict = decide_with(CN, call(HK), trace=True)
    steps = verdict.basis.steps
    ids = [rule.id for rule in CN.rules]
    assert [step.rule for step in steps] == ids[: ids.index("7.default_off") + 1]
    assert steps[-1]._replace(ns=0) == Step(
        "7.default_off", "zhejiang, cm, voice: closed from 2022-05-20", "decides", 0
    )
    by_rule = {step.rule: step for step in steps}
    assert by_rule["3.prefix"].saw == "form plus, the trunk writes idd00 or plus"
    assert by_rule["4.inbound_only"].outcome == "skipped"
    assert by_rule["5.system_list"][1:3] == ("no entries", "passes")
    assert {step.outcome for step in steps} == {"decides", "passes", "skipped"}


def test_trace_of_a_call_that_goes_on() -> None:
    """All rules, then the tenth step; a label and a rule in shadow are told from what passes."""
    pack = site(shadow=("7.default_off",), off=("5.system_list",))
    verdict = decide_with(pack, call(HK), trace=True)
    outcomes = {step.rule: step.outcome for step in verdict.basis.steps}
    assert list(outcomes) == [*(rule.id for rule in CN.rules), "10.allow"]
    assert (outcomes["7.default_off"], outcomes["8.origin_notice"]) == ("shadow", "labels")
    assert (outcomes["5.system_list"], outcomes["10.allow"]) == ("skipped", "decides")


def test_verdict_names_its_legal_basis() -> None:
    """That of the list entry where it has one, else that of the rule."""
    assert decide(call("abc")).basis.legal_basis.endswith("Art. 13")
    one, row = call("13012345678", kind="national"), entry("13012345678")
    assert decide(one, facts(replace(row, legal_basis="court order 7"))).basis.legal_basis == "court order 7"
    assert "Art. 32" in decide(one, facts(row)).basis.legal_basis


# -- totality -------------------------------------------------------------------------------------------------

_numbers = st.one_of(
    st.text(max_size=40),
    st.from_regex(r"\+?[0-9]{0,26}", fullmatch=True),
    st.sampled_from(["anonymous", "+852", "00", "0", "+86", "95", "400", "110", "sip:a@anonymous.invalid", ";", "+"]),
    st.builds(
        lambda a, b: a + b, st.sampled_from(["+86", "0086", "0", "95", "400", "+852", "106"]), st.text("0123456789")
    ),
)
_entries = st.builds(
    entry,
    st.sampled_from([HK, "+852*", "13*", "13000000000-13999999999"]),
    st.sampled_from(["allow", "block"]),
    owner=st.sampled_from(["", Z0]),
    name=st.sampled_from(["system", "punishment", "own"]),
)
_NOTES = ["roaming_yes", "roaming_no", "roaming_unknown", "simbox_suspected"]
_notes = st.builds(entry, st.just("+*"), st.just("note"), name=st.sampled_from(_NOTES))


_bindings = st.builds(
    lambda x, b, since, until: Binding(x, "", b, NOW + since, None if until is None else NOW + until),
    st.sampled_from([X700, X170]),
    st.sampled_from([Z0, NUMBERS["N0"]]),
    st.timedeltas(timedelta(days=-2), timedelta(days=2)),
    st.none() | st.timedeltas(timedelta(days=-2), timedelta(days=2)),
)
_consents = st.builds(
    consent,
    st.sampled_from([Z0, NUMBERS["N0"]]),
    st.sampled_from(["open", "close", "reset"]),
    st.sampled_from(["intl", "hmt"]),
)


@st.composite
def _questions(draw, pack: Pack) -> tuple[Call, Facts]:
    """Any call on any trunk of a pack, and anything that a store may know about it."""
    one = Call(
        call_id="c",
        at=NOW + draw(st.timedeltas(timedelta(days=-9000), timedelta(days=9000))),
        trunk=Trunk(
            name="t",
            kind=draw(st.sampled_from(sorted(pack.trunks))),
            trusted=draw(st.booleans()),
            allocated=tuple(draw(st.lists(st.sampled_from(["0571*", HK, "95201*"]), max_size=2))),
            outbound=draw(st.booleans()),
            roaming=draw(st.sampled_from(list(Roaming))),
            cli_prefixes=tuple(draw(st.lists(st.sampled_from(["8001#", "0"]), max_size=1))),
        ),
        cli=draw(_numbers),
        callee=draw(_numbers | st.sampled_from([Z0, NUMBERS["N0"]])),
        channel=draw(st.sampled_from(list(Channel))),
        asserted=draw(st.none() | _numbers),
        diverted_by=tuple(draw(st.lists(_numbers, max_size=2))),
    )
    known = Facts(
        callees={number: Subscriber(number, draw(st.sampled_from(["cm", "ct"])), "zhejiang") for number in (Z0,)},
        consents=tuple(draw(st.lists(_consents, max_size=3))),
        listed=tuple(draw(st.lists(_entries | _notes, max_size=4))),
        flags=tuple(draw(st.lists(st.sampled_from(list(Label)), max_size=2))),
        bindings=tuple(draw(st.lists(_bindings, max_size=2))),
    )
    return one, known


@pytest.mark.parametrize("pack", SHIPPED, ids=lambda pack: pack.id)
@given(data=st.data())
def test_every_pack_decides_every_call(pack: Pack, data: st.DataObject) -> None:
    """decide() is total for all packs; a trace changes no verdict, nor does a rule or list in shadow."""
    one, known = data.draw(_questions(pack))
    verdict = decide_with(pack, one, known)
    assert isinstance(verdict, Allow | Block)
    assert (pack.reason_group(verdict.reason) == "pass") == isinstance(verdict, Allow)
    assert verdict.basis.detail.isascii()
    assert verdict.basis.detail.isprintable()
    traced = decide_with(pack, one, known, trace=True)
    assert replace(traced, basis=replace(traced.basis, steps=())) == verdict
    assert all(step.saw.isascii() and step.saw.isprintable() for step in traced.basis.steps)
    some_mode = st.sampled_from(["enforce", "shadow", "off"])
    modes = {rule.id: data.draw(some_mode) for rule in pack.rules if not rule.fixed}
    lists = frozenset(data.draw(st.lists(st.sampled_from(["system", "punishment", "own", *_NOTES]))))
    _shadow_changes_nothing(pack, one, known, modes, lists)


def _shadow_changes_nothing(
    pack: Pack, one: Call, known: Facts, modes: dict[str, str], lists: frozenset[str]
) -> None:
    """The verdict is that of a site where the rules in shadow are off and the lists in shadow are empty."""
    chosen = tuple(replace(rule, mode=modes.get(rule.id, "enforce")) for rule in pack.rules)
    trial = replace(pack, rules=chosen, shadow_lists=lists)
    shadow = decide_with(trial, one, known)
    without = tuple(replace(rule, mode="off") if rule.mode == "shadow" else rule for rule in chosen)
    unlisted = replace(known, listed=tuple(each for each in known.listed if each.name not in lists))
    off = decide_with(replace(pack, rules=without), one, unlisted)
    assert replace(shadow, basis=replace(shadow.basis, shadow=())) == off
    assert off.basis.shadow == ()
    traced = decide_with(trial, one, known, trace=True)
    assert replace(traced, basis=replace(traced.basis, steps=())) == shadow


@pytest.mark.parametrize(
    ("one", "listed", "rules", "in_shadow"),
    [
        (call("+8613800138000"), (entry("13800138000", "note", name="roaming_yes"),), (), ("roaming_yes",)),
        (call("13012345678", kind="national"), (entry("13012345678", "note", name="simbox_suspected"),), (),
         ("simbox_suspected",)),
        (call("+12125550100"), (entry("+1*", owner=Z0, name="own"),), ("6.subscriber_block",), ()),
        (call("+12125550100"), (entry("+1*", "allow", owner=Z0, name="own"),), ("6.subscriber_allow",), ()),
    ],
)  # fmt: skip
def test_shadow_changes_nothing(
    one: Call, listed: tuple[ListEntry, ...], rules: tuple[str, ...], in_shadow: tuple[str, ...]
) -> None:
    """Notes and rules in shadow have no effect on verdict, labels, entry and legal basis, where they once had one."""
    _shadow_changes_nothing(CN, one, facts(*listed), dict.fromkeys(rules, "shadow"), frozenset(in_shadow))


@given(
    cli=_numbers,
    callee=_numbers,
    asserted=st.none() | _numbers,
    diverted=st.lists(_numbers, max_size=2),
    kind=st.sampled_from(sorted(CN.trunks)),
    trusted=st.booleans(),
    roaming=st.sampled_from(list(Roaming)),
    channel=st.sampled_from(list(Channel)),
    listed=st.lists(_entries, max_size=3),
    flags=st.lists(st.sampled_from(list(Label)), max_size=2),
)
def test_every_call_gets_a_verdict(
    cli, callee, asserted, diverted, kind, trusted, roaming, channel, listed, flags
) -> None:
    """decide() is total: whatever the caller writes, there is an Allow or a Block, and its texts are ours."""
    one = call(
        cli, callee, kind, trusted=trusted, roaming=roaming, asserted=asserted, channel=channel,
        diverted_by=tuple(diverted),
    )  # fmt: skip
    verdict = decide(one, facts(*listed, flags=tuple(flags)))
    assert isinstance(verdict, Allow | Block)
    assert (CN.reason_group(verdict.reason) == "pass") == isinstance(verdict, Allow)
    assert verdict.basis.detail.isascii()
    assert verdict.basis.detail.isprintable()
    early = policy.decide_without_facts(one, policy.read(one, CN), CN)
    assert isinstance(early, Failed) or early == verdict


@pytest.mark.parametrize(
    ("noted", "kind", "reason"),
    [
        (("roaming_yes",), Allow, Reason.ROAMER_VERIFIED),
        (("roaming_no",), Block, Reason.NATIONAL_CLI_ON_INTL_TRUNK),
        (("roaming_unknown",), Allow, Reason.ROAMING_UNKNOWN),
        ((), Block, Reason.NATIONAL_CLI_ON_INTL_TRUNK),
        (("roaming_yes", "roaming_no"), Allow, Reason.ROAMING_UNKNOWN),
    ],
)
def test_roaming_is_looked_up_in_the_notes(noted: tuple[str, ...], kind: type, reason: Reason) -> None:
    """The site's notes answer before the trunk's own answer (no); two that contradict are no answer."""
    listed = tuple(ListEntry("", "13800138000", Action.NOTE, name) for name in noted)
    verdict = decide_with(CN, call("+8613800138000"), Facts(listed=listed))
    assert (type(verdict), verdict.reason) == (kind, reason)


def test_a_note_labels_a_sim_box() -> None:
    """A CLI that the site has noted as a SIM box's is let through with that label and reason."""
    listed = (ListEntry("", "16713800001", Action.NOTE, "simbox_suspected"),)
    verdict = decide_with(CN, call("16713800001", kind="sim_gateway"), Facts(listed=listed))
    assert isinstance(verdict, Allow)
    assert (verdict.reason, Label.SIMBOX_SUSPECTED in verdict.labels) == (Reason.SIMBOX_SUSPECTED, True)
