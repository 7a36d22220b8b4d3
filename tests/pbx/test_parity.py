"""The same INVITE gives the same call on both PBXs: what each was measured to hand on, read by its adapter.

The rows were recorded from Asterisk 22.10.1 (the query of the dialplan) and FreeSWITCH 1.10.12 (the headers of the
screening event, as they are encoded there), both called by SIPp with the same From.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

import pytest

from pbxguard.packs import load
from pbxguard.pbx import agi, esl
from pbxguard.screening import policy
from pbxguard.screening.call import Call, Facts, Reason, Trunk

CN = load("cn")
NOW = datetime(2026, 11, 22, tzinfo=UTC)
INTL = Trunk("intl", "intl_gateway")
TRUSTED = Trunk("natl", "national", trusted=True)
HOST = "198.18.0.21"


@dataclass(frozen=True)
class Row:
    """One caller.

    Attributes:
        wire: The user part of From, as SIPp sent it.
        uri: That of Asterisk's remote_uri.
        full: That of FreeSWITCH's sip_full_from, as encoded in the event.
        user: FreeSWITCH's sip_from_user, likewise.
        cli: What both are read as.
    """

    wire: str
    uri: str
    full: str
    user: str
    cli: str


HK = "85261234567"
ROWS = [
    Row("%31%33%38%30%30%31%33%38%30%30%30", "13800138000", "13800138000", "13800138000", "13800138000"),
    Row(f"%2B{HK}", f"+{HK}", f"%2B{HK}", f"%2B{HK}", f"+{HK}"),
    Row(f"%2b{HK}", f"+{HK}", f"%2B{HK}", f"%2B{HK}", f"+{HK}"),
    Row(f"+{HK};phone-context=+86", f"+{HK};phone-context=+86", f"%2B{HK}", f"%2B{HK}%3Bphone-context%3D%2B86",
        f"+{HK}"),
    Row(f"+{HK}%3Bisub=1", f"+{HK};isub=1", f"%2B{HK}", f"%2B{HK}%3Bisub%3D1", f"+{HK}"),
    Row(f"+{HK};x=%2b%2B%0A", f"+{HK};x=++%0a", f"%2B{HK}%3Bx%3D%2B%2B%0A", f"%2B{HK}%3Bx%3D%2B%2B%0A", f"+{HK}"),
    Row(f"%252B{HK}", f"%2B{HK}", f"%252B{HK}", f"%2B{HK}", f"%2B{HK}"),
    Row(f"%252b{HK}", f"%2b{HK}", f"%252b{HK}", f"%252b{HK}", f"%2b{HK}"),
    Row(f"+{HK}%252500", f"+{HK}%2500", f"%2B{HK}%252500", f"%2B{HK}%2500", f"+{HK}%2500"),
    Row("+852%2061234567", "+852%2061234567", "%2B852%2061234567", "%2B852%2061234567", "+852%2061234567"),
    Row(f"+{HK}%00", f"+{HK}%00", f"%2B{HK}%00", f"%2B{HK}", f"+{HK}%00"),
    Row("a%40b", "a%40b", "a%40b", "a%40b", "a%40b"),
    Row("%C3%A9%0a1", "%c3%a9%0a1", "%C3%A9%0A1", "%C3%A9%0A1", "%c3%a9%0a1"),
    Row("+852-6123-4567", "+852-6123-4567", "%2B852-6123-4567", "%2B852-6123-4567", "+852-6123-4567"),
    Row(f"+{HK}:secret", f"+{HK}:secret", f"%2B{HK}%3Asecret", f"%2B{HK}", f"+{HK}:secret"),
    Row(f"+{HK}&a=$b,c?d/e", f"+{HK}&a=$b,c?d/e", f"%2B{HK}%26a%3D$b,c%3Fd/e", f"%2B{HK}%26a%3D$b,c%3Fd/e",
        f"+{HK}&a=$b,c?d/e"),
    Row(f"%23+{HK}", f"%23+{HK}", f"%23%2B{HK}", f"%23%2B{HK}", f"%23+{HK}"),
]  # fmt: skip


def on_asterisk(uri: str, trunk: Trunk = INTL, **query: str) -> Call:
    query = {"from": f"<sip:{uri}@{HOST}>", "callee": "13957100001", "offer": "application/sdp"} | query
    line = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
    script = f"screen?{line}".encode()
    block = b"agi_network: yes\nagi_network_script: %b\nagi_request: agi://h:4573/%b\n\n" % (script, script)
    return agi.call_from_agi(agi.parse_request(block), trunk, NOW)


def on_freeswitch(full: str, user: str, trunk: Trunk = INTL, **headers: str) -> Call:
    lines = {
        "variable_sip_from_user": user,
        "variable_sip_from_host": HOST,
        "variable_sip_full_from": f"%3Csip%3A{full}%40{HOST}%3E%3Btag%3D1",
        "variable_sip_req_user": "13957100001",
        "variable_switch_r_sdp": "v%3D0",
    } | headers
    block = "\n".join(f"{name}: {value}" for name, value in lines.items()).encode()
    return esl.call_from_esl(esl.parse_headers(block, fold=False), trunk, NOW)


def reason(call: Call) -> Reason:
    return policy.decide(call, policy.read(call, CN), Facts(), CN).reason


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.wire)
def test_same_cli(row: Row) -> None:
    """An escaped digit or plus is what it stands for; parameters are cut; every other escape is no number."""
    asterisk, freeswitch = on_asterisk(row.uri), on_freeswitch(row.full, row.user)
    assert (asterisk.cli, freeswitch.cli) == (row.cli, row.cli)
    assert reason(asterisk) is reason(freeswitch)
    # Asterisk gives the source port, the call-id and the rest in words of its own: nothing else may differ.
    assert asterisk.callee == freeswitch.callee
    assert asterisk.has_offer == freeswitch.has_offer


def test_declared_difference() -> None:
    """A closing bracket is the one sign that differs: Asterisk's dialplan must take it out. No number has one."""
    asterisk, freeswitch = on_asterisk("+852(6123_4567"), on_freeswitch("%2B852(6123)4567", "%2B852(6123)4567")
    assert (asterisk.cli, freeswitch.cli) == ("+852(6123_4567", "+852(6123)4567")
    assert reason(asterisk) is reason(freeswitch) is Reason.CLI_INVALID


def test_nobody() -> None:
    """A From without a user is a missing CLI on both, whatever FreeSWITCH calls it.

    With an empty one, ``<sip:@host>``, which is no URI, only FreeSWITCH takes the call: Asterisk drops the INVITE.
    """
    assert on_freeswitch("", "nobody").cli == ""
    bare = {"from": f"<sip:{HOST}>"}, {"variable_sip_full_from": f"%3Csip%3A{HOST}%3E%3Btag%3D1"}
    assert on_asterisk("", **bare[0]).cli == on_freeswitch("", "nobody", **bare[1]).cli == ""


@pytest.mark.parametrize(
    ("full", "user"),
    [
        ("13800138000%3E", "13800138000%3E"),
        ("057186554321%40198.18.0.21%3E", "057186554321%40198.18.0.21%3E"),
        ("13800138000%40x", "13800138000%40x"),
    ],
)
def test_escaped_frame_is_refused_on_both(full: str, user: str) -> None:
    """A bracket or @ that the caller escaped ends no user part: measured before, FreeSWITCH's call had the number."""
    assert reason(on_asterisk(full.lower())) is reason(on_freeswitch(full, user)) is Reason.CLI_INVALID


def test_number_in_the_display_name() -> None:
    """From: "a%22 <sip:13800138000@h>" <sip:57186554321@h> is not a call of 13800138000 on either PBX."""
    forged = f"%22a%22%20%3Csip%3A13800138000%40{HOST}%3E%22%20%3Csip%3A57186554321%40{HOST}%3E%3Btag%3D1"
    call = on_freeswitch("", "57186554321", variable_sip_full_from=forged)
    assert reason(call) is Reason.CLI_INVALID
    assert (
        on_asterisk("", **{"from": f'"a%22 <sip:13800138000@{HOST}>" <sip:57186554321@{HOST}>'}).cli == "57186554321"
    )


@pytest.mark.parametrize(
    ("header", "value", "asserted"),
    [
        ("<sip:+8613800138000@h>", "%2B8613800138000", "+8613800138000"),
        ("<sip:%2B8613800138000@h>", "%2B8613800138000", "+8613800138000"),
        ("<sip:+8613800138000;phone-context=x@h>", "%2B8613800138000%3Bphone-context%3Dx", "+8613800138000"),
        ("<sip:%2531@h>", "%2531", "%31"),
        ("<sip:1%0A2@h>", "1%0A2", "1%0a2"),
    ],
)
def test_same_asserted_identity(header: str, value: str, asserted: str) -> None:
    """P-Asserted-Identity, which Asterisk gives as on the wire and FreeSWITCH as its user part, is the same."""
    asterisk = on_asterisk("057186554321", TRUSTED, pai=header)
    freeswitch = on_freeswitch("057186554321", "057186554321", TRUSTED, **{"variable_sip_P-Asserted-Identity": value})
    assert (asterisk.asserted, freeswitch.asserted) == (asserted, asserted)
    assert reason(asterisk) is reason(freeswitch)


def test_same_diversion() -> None:
    """Diversion with escapes names the same numbers, the original callee first."""
    header = "<sip:%2B8613957100002@h>;reason=unknown,<sip:13957100003@h>"
    asterisk = on_asterisk("057186554321", TRUSTED, div=header)
    freeswitch = on_freeswitch("057186554321", "057186554321", TRUSTED, variable_sip_h_Diversion=quote(header, "%"))
    assert asterisk.diverted_by == freeswitch.diverted_by == ("13957100003", "+8613957100002")


def test_same_bounds() -> None:
    """Both keep as much of a display name and a User-Agent."""
    asterisk = on_asterisk("1", name="x" * 64, ua="y" * 60)
    freeswitch = on_freeswitch("1", "1", variable_sip_from_display="x" * 99, variable_sip_user_agent="y" * 99)
    assert (asterisk.display_name, asterisk.user_agent) == (freeswitch.display_name, freeswitch.user_agent)
