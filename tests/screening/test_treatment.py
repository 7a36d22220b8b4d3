"""What a verdict becomes on the wire."""

from dataclasses import replace

import pytest

from pbxguard.packs import load
from pbxguard.prompts import prompt_dir
from pbxguard.screening.call import Allow, Basis, Block, Failed, Label, Reason, Trunk
from pbxguard.screening.numbering import Number, read_cli
from pbxguard.screening.treatment import ASTERISK, Capabilities, Treatment, treatment_for

CN = load("cn")
TRUNK = Trunk("t", "intl_gateway")
REFUSALS = [reason for reason in Reason if CN.reason_group(reason) not in ("pass", "failed")]
URL = "https://redress.example/jcard.json"
MAKES_CALL_INFO = Capabilities("other", call_info=True)
HAS_CONTACT = Capabilities("other", call_info=True, contact_url=URL)


def basis(cli: str = "+85261234567") -> Basis:
    number: Number = read_cli(cli, CN)
    return Basis("7.test", "test", cli=number)


def treat(verdict, trunk: Trunk = TRUNK, capabilities: Capabilities = ASTERISK, **options) -> Treatment:
    return treatment_for(verdict, trunk=trunk, capabilities=capabilities, pack=CN, **({"language": "zh"} | options))


def blocked(reason: Reason, cli: str = "+85261234567") -> Block:
    return Block(reason, basis(cli))


@pytest.mark.parametrize(
    ("reason", "cli", "status", "prompt", "languages"),
    [
        (Reason.INTL_DEFAULT_OFF, "+85261234567", 603, "intl_default_off", ("zh", "en")),
        (Reason.INTL_DEFAULT_OFF, "+12125550100", 603, "intl_default_off", ("en", "zh")),
        (Reason.SUBSCRIBER_BLOCKLIST, "13012345678", 607, "subscriber_blocklist", ("zh",)),
        (Reason.SUBSCRIBER_BLOCKLIST, "+12125550100", 607, "subscriber_blocklist", ("en", "zh")),
        (Reason.SYSTEM_BLOCKLIST, "+12125550100", 603, "system_blocklist", ("zh",)),
        (Reason.CLI_INVALID, "abc", 603, "system_blocklist", ("zh",)),
        (Reason.CLI_MISSING, "anonymous", 433, "cli_missing", ("zh", "en")),
        (Reason.CLI_MISSING, "", 433, "cli_missing", ("zh", "en")),
    ],
)
def test_refusal(reason: Reason, cli: str, status: int, prompt: str, languages: tuple[str, ...]) -> None:
    """Each reason group has its SIP status and its prompt, the caller's language first (DESIGN section 3)."""
    assert treat(blocked(reason, cli)) == Treatment(
        connect=False, status=status, mode="early", prompt=prompt, languages=languages
    )


@pytest.mark.parametrize("reason", REFUSALS)
@pytest.mark.parametrize("capabilities", [ASTERISK, MAKES_CALL_INFO, HAS_CONTACT])
@pytest.mark.parametrize("hostile_ok", [False, True])
def test_every_refusal_is_right_on_the_wire(reason: Reason, capabilities: Capabilities, hostile_ok: bool) -> None:
    """No refusal is a 200, 404 or 503, each has a prompt that is there, and stock Asterisk sends no Call-Info."""
    done = treat(blocked(reason), replace(TRUNK, hostile_ok=hostile_ok), capabilities)
    assert not done.connect
    assert done.status in {433, 480, 603, 607, 608}
    for language in done.languages:
        assert (prompt_dir(None) / language / f"{done.prompt}.wav").is_file()
    if not capabilities.call_info:
        assert done.call_info == ""


def test_every_reason_has_a_group() -> None:
    """Nothing that a policy can answer is unknown to the table."""
    assert {CN.reason_group(reason) for reason in Reason} == {
        "pass", "not_opted_in", "own_block", "system", "withheld", "failed",
    }  # fmt: skip
    assert CN.reason_group(Reason.GUARD_FAILED) == "failed"


@pytest.mark.parametrize(
    ("reason", "capabilities", "hostile_ok", "status", "call_info"),
    [
        (Reason.INTL_DEFAULT_OFF, ASTERISK, True, 603, ""),
        (Reason.INTL_DEFAULT_OFF, MAKES_CALL_INFO, True, 603, ""),
        (Reason.INTL_DEFAULT_OFF, HAS_CONTACT, False, 608, URL),
        (Reason.SYSTEM_BLOCKLIST, ASTERISK, False, 603, ""),
        (Reason.SYSTEM_BLOCKLIST, ASTERISK, True, 608, ""),
        (Reason.SYSTEM_BLOCKLIST, MAKES_CALL_INFO, False, 608, ""),
        (Reason.SYSTEM_BLOCKLIST, HAS_CONTACT, False, 608, URL),
        (Reason.SUBSCRIBER_BLOCKLIST, HAS_CONTACT, True, 607, ""),
        (Reason.CLI_MISSING, HAS_CONTACT, True, 433, ""),
        (Reason.INTL_DEFAULT_OFF, Capabilities("a", contact_url=URL), False, 603, ""),
    ],
)
def test_608_goes_where_it_may(
    reason: Reason, capabilities: Capabilities, hostile_ok: bool, status: int, call_info: str
) -> None:
    """608 carries the contact for redress where one can be sent (RFC 8688); without one only to marked trunks."""
    done = treat(blocked(reason), replace(TRUNK, hostile_ok=hostile_ok), capabilities)
    assert (done.status, done.call_info) == (status, call_info)


def test_failure_follows_the_trunk() -> None:
    """A failed decision connects on an open trunk, and is "try later" on a closed one."""
    assert treat(Failed("x")) == Treatment(connect=True)
    assert treat(Failed("x"), replace(TRUNK, fail="closed")) == Treatment(
        connect=False, status=480, mode="early", prompt="guard_failed", languages=("zh",)
    )


def test_caller_without_offer_hears_nothing() -> None:
    """Without SDP in the INVITE no early media can arrive: the refusal is silent, with the same status."""
    assert treat(blocked(Reason.INTL_DEFAULT_OFF), has_offer=False) == Treatment(connect=False, status=603)
    answered = treat(blocked(Reason.INTL_DEFAULT_OFF), replace(TRUNK, prompt="answer"), has_offer=False)
    assert (answered.mode, answered.prompt) == ("answer", "intl_default_off")


@pytest.mark.parametrize("mode", ["early", "answer", "none"])
def test_prompt_mode_is_the_trunks(mode: str) -> None:
    """A trunk chooses early media, a billable answer, or silence; the status stays."""
    done = treat(blocked(Reason.SUBSCRIBER_BLOCKLIST), replace(TRUNK, prompt=mode))
    assert (done.status, done.mode, bool(done.prompt)) == (607, mode, mode != "none")


def test_used_up_prompt_budget_is_silence() -> None:
    """Past its budget a trunk gets the status alone (RFC 8688 section 6)."""
    done = treat(blocked(Reason.INTL_DEFAULT_OFF), may_prompt=False)
    assert (done.status, done.mode, done.prompt) == (603, "none", "")


@pytest.mark.parametrize(
    ("labels", "language", "display"),
    [
        ((), "zh", ""),
        ((Label.INTL_ORIGIN_NOTICE,), "zh", "境外来电 中国香港"),
        ((Label.INTL_ORIGIN_NOTICE,), "en", "Call from abroad Hong Kong"),
        ((Label.INTL_ORIGIN_NOTICE, Label.SIMBOX_SUSPECTED), "en", "Suspected SIM box"),
        ((Label.VERIFIED_GOV,), "zh", "政府服务"),
        ((Label.ROAMING_UNKNOWN,), "en", "Abroad, roaming not verified"),
        ((Label.MVNO, Label.RESERVED_RANGE, Label.FROM_PAI_DISAGREE), "zh", ""),
    ],
)
def test_display(labels: tuple[Label, ...], language: str, display: str) -> None:
    """The callee sees the weightiest label in the own language; tags for the log are not shown."""
    done = treat(Allow(Reason.DEFAULT, basis(), labels), language=language)
    assert done == Treatment(connect=True, display=display)


@pytest.mark.parametrize("verdict", [Allow(Reason.CLI_ANONYMISED, basis(), (Label.CLI_ANONYMISED, Label.MVNO)),
                                     Failed("x", labels=(Label.CLI_ANONYMISED,))])  # fmt: skip
def test_anonymised_call_connects_without_cli(verdict) -> None:
    """The callee sees neither number nor name, whatever the caller wrote there, and also when the guard failed."""
    assert treat(verdict, display_name="境外来电") == Treatment(connect=True, withhold=True)


ALLOW = Allow(Reason.DEFAULT, basis("13800138000"))


@pytest.mark.parametrize("verdict", [ALLOW, Failed("x", ALLOW.basis)], ids=["allow", "failed"])
@pytest.mark.parametrize(
    "name",
    [
        "Government",
        "GOVERNMENT hotline",
        "Call  centre",
        "Call\u00a0centre",
        "Callcentre",
        "Gov\u200bern\u00adment",
        "G\u2060o\ufeffvernment\u202c",
        "Gove\u0301rnme\u0308nt",
        "G\u00f3vernm\u00eant",
        "\uff27\uff4f\uff56\uff45\uff52\uff4e\uff4d\uff45\uff4e\uff54",
        "\U0001d406overnment",
        "Gov.ern-ment",
        "政\u200b府服务",
        "政 府 服 务",
        "政\ufe00府\u3164服\u115f务",
        "【境外来电】",
        "x" * 70 + "Government",
    ],
)
def test_a_name_that_poses_as_a_label_is_replaced(name: str, verdict) -> None:
    """Neither case, blanks, zero-width characters, accents nor styled letters get a label past the check.

    It is made for a call that is allowed and for one that the failure policy lets through.
    """
    assert treat(verdict, display_name=name) == Treatment(connect=True, display="13800138000")


@pytest.mark.parametrize("verdict", [ALLOW, Failed("x")], ids=["allow", "failed"])
@pytest.mark.parametrize(
    "name", ["", "Zhang San", "张三", "\u200b", "Governor", "Centre", "\ufdfa" * 80, "G\u043evernment", "政府服務"]
)
def test_other_names_are_left_to_the_caller(name: str, verdict) -> None:
    """A name that has no label in it stays; the last two show what the check says that it does not catch."""
    assert treat(verdict, display_name=name) == Treatment(connect=True)


def test_a_posing_name_without_a_number_is_blotted_out() -> None:
    """Where no CLI was read there is no number to show in its place."""
    assert treat(Failed("x"), display_name="Government").display == "-"


def test_a_failed_decision_shows_what_the_rules_could_tell() -> None:
    """A label that holds without the store is shown to the callee like any other; a closed trunk refuses."""
    failed = Failed("x", basis("13800138000"), (Label.ROAMING_UNKNOWN,))
    assert treat(failed) == Treatment(connect=True, display="境外来电 漫游未核实")
    assert not treat(failed, replace(TRUNK, fail="closed")).connect


def test_no_display_breaks_the_packed_verdict() -> None:
    """No label or region name of the pack holds what splits or ends the packed verdict."""
    texts = [CN.display(label, language) for label in Label for language in ("zh", "en")]
    texts += [name for region in CN.regions.values() for name in region.names.values()]
    assert not [text for text in texts if set(text) & set('|"\\\r\n')]
