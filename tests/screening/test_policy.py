"""Every call gets the verdict that the specification names, and the order of the rules is the specification."""

import csv
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbxguard.packs import load
from pbxguard.screening import policy
from pbxguard.screening.call import (
    Allow,
    Block,
    Call,
    Channel,
    Facts,
    Label,
    Reason,
    Roaming,
    Subscriber,
    Trunk,
    Verdict,
)
from pbxguard.screening.lists import Action, ListEntry
from pbxguard.screening.registry import CallClass, Consent, ConsentEvent, Verb
from pbxguard.store import Store

CN = load("cn")
NOW = datetime(2026, 6, 1, 4, tzinfo=UTC)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
HK = "+85261234567"

#: The callees of the vectors: Z0 Zhejiang, closed; Z1 sent 1219; ZW allowlists the caller; N0 Heilongjiang;
#: H0 and H1 Henan with texts closed and opened; EM an emergency number.
NUMBERS = {
    "Z0": "13957100001",
    "Z1": "13957100002",
    "ZW": "13957100003",
    "N0": "13804510001",
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


def test_anonymise_never_shows_the_spoofed_number() -> None:
    """A pack that asks to anonymise national numbers from abroad gets a refusal while no adapter can do that."""
    rules = CN.trunks["intl_gateway"]
    for action, kind in (("anonymise", Block), ("block", Block), ("label", Allow), ("pass", Allow)):
        pack = _with_rule(rules, national_fixed=action)
        one = call("+861065551234")
        assert type(policy.decide(one, policy.read(one, pack), facts(), pack)) is kind, action


def _with_rule(rules, **changed):
    from dataclasses import replace

    return replace(CN, trunks={**CN.trunks, rules.kind: replace(rules, **changed)})


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
    assert early is None or early == verdict
