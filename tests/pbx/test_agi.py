"""FastAGI bytes and values, against what a real Asterisk sends and what a hostile caller makes of it."""

import re
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbxguard.errors import PeerProtocolError
from pbxguard.packs import load
from pbxguard.pbx import address, agi
from pbxguard.screening import policy
from pbxguard.screening.call import Allow, Basis, Block, Call, Facts, Label, Reason, Trunk
from pbxguard.screening.numbering import Form, read_cli
from pbxguard.screening.treatment import Treatment

FRAMES = Path(__file__).parents[1] / "frames"
CN = load("cn")
NOW = datetime(2026, 11, 21, tzinfo=UTC)
INTL = Trunk("intl", "intl_gateway")
RECORDED = sorted(FRAMES.glob("agi-*.txt"))


def frame(name: str) -> bytes:
    return (FRAMES / f"agi-{name}.txt").read_bytes()


def head(data: bytes) -> bytes:
    """What the handler reads: up to and including the first empty line."""
    return data[: data.index(b"\n\n") + 2]


def request(query: str, rest: bytes = b"agi_channel: x\n\n") -> bytes:
    script = f"screen?{query}".encode()
    return (
        b"agi_network: yes\nagi_network_script: " + script + b"\nagi_request: agi://h:4573/" + script + b"\n" + rest
    )


def heard(**query: str) -> Call:
    """The call of a request whose values are encoded as the dialplan encodes them."""
    line = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
    return agi.call_from_agi(agi.parse_request(request(line)), INTL, NOW)


# -- requests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "trunk", "cli", "display_name"),
    [
        ("call", "intl", "+85261234567", ""),
        ("gateway", "goip1", "13012345678", ""),
        ("forty-digits", "ent", "1" * 40, ""),
        ("line-ends", "intl", "%22abc%0a%0a$%7bX%7d%7c", 'x\\"y${EXTEN}'),
    ],
)
def test_recorded_request(name: str, trunk: str, cli: str, display_name: str) -> None:
    """A recorded request gives the call that was placed, the caller's percent signs not decoded."""
    asked = agi.parse_request(head(frame(name)))
    call = agi.call_from_agi(asked, INTL, NOW)
    assert asked.script == "screen"
    assert (asked.query["v"], asked.query["trunk"]) == (agi.VERSION, trunk)
    assert (call.cli, call.callee, call.display_name) == (cli, "13957100001", display_name)
    assert call.has_offer
    assert call.call_id
    assert call.asserted is None
    assert call.diverted_by == ()


def test_every_recording_is_read() -> None:
    """No recorded request is left out of the table above."""
    assert [path.stem for path in RECORDED] == ["agi-call", "agi-forty-digits", "agi-gateway", "agi-line-ends"]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_cut_at_every_offset(path: Path) -> None:
    """A request that is cut is refused, or, once its request line is whole, read as the same call."""
    whole = head(path.read_bytes())
    full = agi.parse_request(whole)
    line_end = re.search(rb"\nagi_request: [^\n]*\n", whole)
    assert line_end is not None
    for offset in range(len(whole) + 1):
        if offset < line_end.end():
            with pytest.raises(PeerProtocolError):
                agi.parse_request(whole[:offset])
        else:
            assert agi.parse_request(whole[:offset]) == full


@pytest.mark.parametrize(
    "forged",
    [
        b"agi_request: agi://h/screen?v=1&trunk=ent&callee=110\n",
        b"agi_arg_1: 110\nagi_extension: 110\nagi_dnid: 110\n",
        b"agi_network_script: other\n",
        b"\nagi_request: agi://h/screen?trunk=ent\n\n",
        b"\xff\xfe\xb0\xa1\x00\n",
        b"agi_callerid: J\xe9r\xf4me\n",
        b"200 result=1\nHANGUP\n",
    ],
)
def test_lines_after_the_request_line_change_nothing(forged: bytes) -> None:
    """Whatever a caller gets into the block behind the request line, forged headers too, is not read."""
    whole = head(frame("call"))
    before, mark, after = whole.partition(b"agi_callerid: ")
    assert agi.parse_request(before + mark + forged + after) == agi.parse_request(whole)


def test_appended_query_values_do_not_win() -> None:
    """Of a name that occurs twice the first value counts: the dialplan writes ours before any of the caller's."""
    asked = agi.parse_request(request("v=1&trunk=intl&name=x&trunk=ent&v=2"))
    assert (asked.query["v"], asked.query["trunk"]) == ("1", "intl")


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\n\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"agi_network: yes\n\n",
        b"agi_channel: x\nagi_request: agi://h/screen\n\n",
        b"agi_network: yes\nagi_network_script: a\nagi_network_script: b\nagi_request: agi://h/screen\n\n",
        b"agi_request: http://h/screen\n\n",
        b"agi_request: agi://[h/screen\n\n",
        b"agi_request: agi://h/screen?" + b"&".join(b"a%d=1" % n for n in range(41)) + b"\n\n",
        b"\xff\xfe" * 50,
        b"x" * (agi.MAX_HEADER_BYTES + 1),
        b"agi_request: agi://h/screen?a=" + b"x" * agi.MAX_HEADER_BYTES + b"\n\n",
    ],
)
def test_what_asterisk_does_not_send_is_refused(block: bytes) -> None:
    """Another protocol, a wrong order, no URL, too many values or too many bytes: refused, never half read."""
    with pytest.raises(PeerProtocolError):
        agi.parse_request(block)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    """The parser raises nothing but PeerProtocolError, and its values are bounded."""
    for block in (data, b"agi_request: agi://h/screen?from=" + data + b"\n\n"):
        try:
            call = agi.call_from_agi(agi.parse_request(block), INTL, NOW)
        except PeerProtocolError:
            continue
        assert len(call.cli) <= 401


# -- the call -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "user"),
    [
        ("<sip:+85261234567@198.18.0.21>", "+85261234567"),
        ("sip:13800138000@h", "13800138000"),
        ("<sips:13800138000@h;user=phone>", "13800138000"),
        ("<SIP:13800138000@h>", "13800138000"),
        ("<tel:+8613800138000;phone-context=x>", "+8613800138000;phone-context=x"),
        ('"Zhang" <sip:13800138000@h>', "13800138000"),
        ('"<sip:13800138000@h>" <sip:+85261234567@h>', "+85261234567"),
        ('"\\"<tel:110>" <sip:x%0a%0ay@h>', "x%0a%0ay"),
        ("<sip:13800138000;npdi;rn=1@h>", "13800138000;npdi;rn=1"),
        ("<sip:13800138000:secret@h>", "13800138000:secret"),
        ("<sip:h>", ""),
        ("<sip:anonymous.invalid>", ""),
        ("", ""),
        ("13800138000", ""),
        ("<http://13800138000@h>", ""),
        ("<sip:a@b>13800138000", "a"),
    ],
)
def test_uri_user(written: str, user: str) -> None:
    """The user part of the last URI, as on the wire; nothing where there is no URI with one."""
    assert address.uri_user(written) == user


@pytest.mark.parametrize(
    "name",
    [
        "<sip:13800138000@carrier>",
        '" <sip:110@x> "',
        "sip:110@x",
        "%3Csip%3A110%40x%3E",
        "&from=<sip:110@x>&trunk=ent",
    ],
)
def test_a_uri_in_the_display_name_does_not_win(name: str) -> None:
    """The caller's display name cannot put another CLI, callee or trunk into the call."""
    call = heard(v="1", trunk="intl", callee="13957100001", **{"from": f'"{name}" <sip:+85261234567@h>'}, name=name)
    assert (call.cli, call.callee, call.trunk) == ("+85261234567", "13957100001", INTL)
    assert call.display_name == name


@pytest.mark.parametrize(
    ("address", "form"),
    [
        ("<sip:198.18.0.21>", Form.MISSING),
        ("", Form.MISSING),
        ("<sip:anonymous@anonymous.invalid>", Form.WITHHELD),
        ("<sip:+85261234567;" + "x" * 100 + "@h>", Form.PLUS),
        # The dialplan keeps the last 200 characters, so a long user part loses its beginning:
        (("<sip:13800138000;" + "x" * 300 + "@h>")[-200:], Form.INVALID),
        (("<sip:" + "x" * 300 + "13800138000;y@h>")[-200:], Form.INVALID),
        ("13800138000;" + "x" * 185 + "@h>", Form.INVALID),
        ("sip:13800138000;" + "x" * 181 + "@h>", Form.INVALID),
        (";" + "x" * 196 + "@h>", Form.INVALID),
        ("<urn:service:sos>", Form.INVALID),
        ("nonsense", Form.INVALID),
    ],
)
def test_padding_does_not_make_a_caller_a_withheld_one(address: str, form: Form) -> None:
    """A From that is too long to be read is an invalid CLI; only one without a user part is a missing CLI.

    An interconnect lets calls without a CLI through, so the difference is a way around every list.
    """
    assert read_cli(heard(**{"from": address}).cli, CN).form is form


def test_other_channels_give_their_caller_id() -> None:
    """Where the channel is no PJSIP one, the dialplan sends the caller ID number as it is."""
    assert heard(cli="13800138000").cli == "13800138000"


@pytest.mark.parametrize(
    ("value", "users"),
    [
        ("", ()),
        ('"Li" <sip:13957100001@h>;reason=unconditional', ("13957100001",)),
        ("<sip:13957100002@h>;reason=no-answer, <sip:13957100001@h>", ("13957100001", "13957100002")),
        ("<sip:3@h>,<sip:2@h>,<sip:1@h>", ("1", "2")),
        ('"Smith, John" <tel:13957100001>', ("13957100001",)),
        (",,,nonsense,<sip:h>", ()),
    ],
)
def test_diversion_is_told_original_callee_first(value: str, users: tuple[str, ...]) -> None:
    """Diversion values stand newest first (RFC 5806 section 4); the original callee is never the one left out."""
    assert heard(div=value).diverted_by == users


@pytest.mark.parametrize(
    ("account", "counts"),
    [
        ("goip1", True),
        ("goip1-32", True),
        (None, False),  # a carrier's call
        ("13012345678", False),
        ("+852-61234567", False),
        ("0085261234567;ext=1", False),
        ("anonymous", False),
        ("Anonymous", False),
        ("unknown", False),
        ("", False),
        ("goip1\r\nX: 1", False),
    ],
)
def test_an_unverified_identity_counts_beside_a_gateways_account_only(account: str | None, counts: bool) -> None:
    """``screen=no`` is no more than From, but where a gateway has the name of its account in From."""
    found = address.asserted_user("", "<sip:13800138000@h>;party=calling;screen=no", account=account, raw=True)
    assert found == ("13800138000" if counts else None)


@pytest.mark.parametrize(
    ("pai", "rpid", "asserted"),
    [
        ("<sip:13800138000@h>", "<sip:110@h>", "13800138000"),
        ("", "<sip:13800138000@h>", "13800138000"),
        ("", '"x" <sip:13800138000@h>;party=calling;privacy=full;screen=yes', "13800138000"),
        ("", "<tel:+8613800138000>;screen=yes", "+8613800138000"),
        ("", "<sip:13800138000@h>;party=calling;screen=no", None),
        ("", "<sip:13800138000@h>; Screen = No", None),
        ("", "<sip:13800138000@h>;party=called;screen=yes", None),
        ("", '"<sip:110@h>;screen=yes" <sip:13800138000@h>;screen=no', None),
        ("<sip:carrier.example>", "<sip:13800138000@h>", None),
        ("", "<sip:carrier.example>", None),
        ("", "", None),
    ],
)
def test_asserted_identity(pai: str, rpid: str, asserted: str | None) -> None:
    """P-Asserted-Identity, else a Remote-Party-ID about the caller that its sender does not call unverified."""
    assert heard(pai=pai, rpid=rpid).asserted == asserted
    assert heard(rpid=rpid).asserted == (None if pai else asserted) or pai


@pytest.mark.parametrize(
    ("query", "offer"),
    [
        ({}, True),
        ({"offer": "application/sdp"}, True),
        ({"offer": "Application/SDP"}, True),
        ({"offer": "multipart/mixed;boundary=x"}, True),
        ({"offer": ""}, False),
        ({"offer": "application/isup"}, False),
    ],
)
def test_offer(query: dict[str, str], offer: bool) -> None:
    """A body that is or may hold SDP is an offer; a PBX that does not say is taken to have one."""
    assert heard(**query).has_offer is offer


def test_every_value_is_bounded() -> None:
    """No value of a call is longer than its place in log and database."""
    long = "<sip:" + "9" * 390 + "@h>"
    names = ("from", "callee", "call_id", "name", "pai", "rpid", "div", "ua", "source")
    call = heard(**dict.fromkeys(names, long))
    asserted = heard(pai="sip:" + "9" * 150 + "@" + "h" * 300).asserted or ""
    for text in (call.cli, call.callee, call.call_id, call.display_name, asserted, call.source, call.user_agent):
        assert len(text) <= 401
    assert len(call.asserted or "") <= 401


# -- replies and commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"200 result=1\n", 200),
        (b"200 result= (timeout)\n", 200),
        (b"510 Invalid or unknown command\n", 510),
        (b"511 Command Not Permitted on a dead channel or intercept routine\n", 511),
        (b"520-Invalid command syntax.  Proper usage follows:\n", 520),
        (b"520 End of proper usage.\n", 520),
        (b"100 Trying...\n", 100),
        (b"HANGUP\n", None),
        (b"agi_callingpres: 0\n", None),
        (b"2000 x\n", None),
        (b" 200 result=1\n", None),
        (b"\n", None),
        (b"\xff\n", None),
    ],
)
def test_reply_status(line: bytes, status: int | None) -> None:
    """A reply begins with three digits and a space or hyphen; nothing else is one."""
    assert agi.reply_status(line) == status
    assert agi.is_usage_start(line) == line.startswith(b"520-")


@pytest.mark.parametrize(
    ("value", "command"),
    [
        ("1|allow", 'SET VARIABLE A "1|allow"'),
        ('a"b', 'SET VARIABLE A "a\\"b"'),
        ("a\\b", 'SET VARIABLE A "a\\\\b"'),
        ('\\"', 'SET VARIABLE A "\\\\\\""'),
        ("", 'SET VARIABLE A ""'),
        ("境外来电", 'SET VARIABLE A "境外来电"'),
    ],
)
def test_set_variable_quotes(value: str, command: str) -> None:
    """Quotes and backslashes are escaped as ast_app_parse in Asterisk reads them."""
    assert agi.set_variable("A", value) == command


@pytest.mark.parametrize(
    ("name", "value"), [("A", "a\nEXEC System x"), ("A", "a\r"), ("A", "a\0"), ("A B", "x"), ("A\n", "x"), ("", "x")]
)
def test_set_variable_refuses_line_ends(name: str, value: str) -> None:
    """A line end would be another command, so it is refused and not escaped."""
    with pytest.raises(ValueError, match=r"variable name|line end"):
        agi.set_variable(name, value)


BASIS = Basis("7.default_off", "test")


@pytest.mark.parametrize(
    ("verdict", "treatment", "packed"),
    [
        (
            Allow(Reason.INTL_ORIGIN_NOTICE, BASIS, (Label.INTL_ORIGIN_NOTICE, Label.MVNO)),
            Treatment(connect=True, display="境外来电 中国香港"),
            "1|allow||none|||intl_origin_notice|intl_origin_notice;mvno|境外来电 中国香港|",
        ),
        (
            Block(Reason.INTL_DEFAULT_OFF, BASIS),
            Treatment(connect=False, status=603, mode="early", prompt="intl_default_off", languages=("zh", "en")),
            "1|block|603|early|zh/intl_default_off|en/intl_default_off|intl_default_off|||",
        ),
        (
            Block(Reason.CLI_MISSING, BASIS),
            Treatment(connect=False, status=433),
            "1|block|433|none|||cli_missing|||",
        ),
        (
            Allow(Reason.CLI_ANONYMISED, BASIS, (Label.CLI_ANONYMISED,)),
            Treatment(connect=True, withhold=True),
            "1|withhold||none|||cli_anonymised|cli_anonymised||",
        ),
        (Allow(Reason.DEFAULT, BASIS), Treatment(connect=True, display="a|b"), "1|allow||none|||default|||"),
        (Allow(Reason.DEFAULT, BASIS), Treatment(connect=True, display="a\nb"), "1|allow||none|||default|||"),
    ],
)
def test_pack_verdict(verdict, treatment: Treatment, packed: str) -> None:
    """The fields that the dialplan cuts, each in its place; a display text that would split them is left out."""
    assert agi.pack_verdict(verdict, treatment) == packed


def test_dialplan_cuts_the_fields_that_are_packed() -> None:
    """The dialplan reads the same variable, version and number of fields as are written."""
    dialplan = (Path(__file__).parents[2] / "dialplans/asterisk/pbxguard.conf").read_text("utf-8")
    cut = {int(n) for n in re.findall(r"CUT\(PBXGUARD_VERDICT,\|,(\d+)\)", dialplan)}
    packed = agi.pack_verdict(Allow(Reason.DEFAULT, BASIS), Treatment(connect=True))
    assert cut == set(range(1, packed.count("|") + 2))
    assert f'CUT({agi.VERDICT_VARIABLE},|,1)}}" = "{agi.VERSION}"' in dialplan
    assert f"v={agi.VERSION}&trunk=" in dialplan


# -- what the callee sees -------------------------------------------------------------------------------------

ENT = Trunk("ent", "enterprise", allocated=("0571865543*",))
NATL = Trunk("natl", "national", trusted=True)
OTHER = "<sip:13800138001@h>"


def shown(trunk: Trunk, user: str = "057186554321", **query: str) -> str:
    """The number for the telephone, of a call with this From user."""
    values = {"from": f"<sip:{user}@h>", "callee": "13957100001", "offer": "application/sdp"} | query
    line = "&".join(f"{name}={quote(value, safe='')}" for name, value in values.items())
    asked = agi.parse_request(request(line))
    call = agi.call_from_agi(asked, trunk, NOW)
    return agi.number_to_show(asked, call, policy.decide(call, policy.read(call, CN), Facts(), CN))


@pytest.mark.parametrize(
    ("trunk", "query", "number"),
    [
        (ENT, {}, ""),
        (ENT, {"pai": OTHER}, "057186554321"),
        (ENT, {"rpid": f"{OTHER};screen=no"}, "057186554321"),
        (ENT, {"pai": OTHER, "user": "anonymous"}, "anonymous"),
        (NATL, {}, ""),
        (NATL, {"pai": OTHER}, "13800138001"),
        (NATL, {"rpid": f"{OTHER};party=calling;screen=yes"}, "13800138001"),
        (NATL, {"pai": "<sip:%2B8613800138001;x=y@h>"}, "+8613800138001"),
        (NATL, {"pai": OTHER, "privacy": "id"}, "anonymous"),
        (NATL, {"pai": OTHER, "privacy": "critical; id"}, "anonymous"),
        (NATL, {"pai": OTHER, "privacy": "none"}, "13800138001"),
        (NATL, {"rpid": f"{OTHER};privacy=full;screen=yes"}, "anonymous"),
        (NATL, {"pai": OTHER, "user": "anonymous"}, "anonymous"),
        (NATL, {"pai": "<sip:057186554321@h>", "privacy": "id"}, "057186554321"),
    ],
)
def test_callee_sees_the_number_that_was_judged(trunk: Trunk, query: dict[str, str], number: str) -> None:
    """Where the message names two callers; an asserted one is kept back where From or Privacy asks for it."""
    assert shown(trunk, **query) == number


@given(st.text(), st.text())
def test_number_shown_is_one_word(user: str, asserted: str) -> None:
    """Whatever the caller wrote, it splits no field and no command."""
    for judged in (None, read_cli(user, CN), read_cli(asserted, CN)):
        assert re.fullmatch(r"[A-Za-z0-9+._-]{1,64}", address.number_shown(user, judged, kept_back=False))


def test_number_is_packed_for_a_call_that_is_shown() -> None:
    """It is the tenth field, and empty where the callee sees no call or no number."""
    allowed = Allow(Reason.DEFAULT, BASIS)
    assert agi.pack_verdict(allowed, Treatment(connect=True), "13800138001").endswith("|13800138001")
    for treatment in (Treatment(connect=True, withhold=True), Treatment(connect=False, status=603)):
        assert agi.pack_verdict(allowed, treatment, "13800138001").endswith("|")
