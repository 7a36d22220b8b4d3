"""Event socket bytes and values, against what a real FreeSWITCH sends and what a hostile caller makes of it."""

from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from urllib.parse import quote
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbxguard.errors import PeerProtocolError
from pbxguard.packs import load
from pbxguard.pbx import esl
from pbxguard.screening import policy
from pbxguard.screening.call import Allow, Basis, Block, Call, Facts, Label, Reason, Trunk
from pbxguard.screening.treatment import Treatment

DIALPLAN = Path(__file__).parents[2] / "dialplans" / "freeswitch" / "pbxguard.xml"
FRAMES = Path(__file__).parents[1] / "frames"
CN = load("cn")
NOW = datetime(2026, 11, 21, tzinfo=UTC)
INTL = Trunk("intl", "intl_gateway")
RECORDED = sorted(FRAMES.glob("esl-*.bin"))
KINDS = {
    "api": ["api/response"],
    "disconnect": ["command/reply", "text/disconnect-notice"],
    "from-bare": ["text/event-plain"],
    "from-parameter": ["text/event-plain"],
    "hostile": ["text/event-plain"],
    "login": ["auth/request", "command/reply", "command/reply"],
    "no-channel": ["api/response"],
    "rude-rejection": ["text/rude-rejection", "text/disconnect-notice"],
    "screen": ["text/event-plain"],
    "wrong-password": ["auth/request", "command/reply", "text/disconnect-notice"],
}


def recorded(name: str) -> bytes:
    return (FRAMES / f"esl-{name}.bin").read_bytes()


def event(name: str) -> dict[str, str]:
    (frame,) = esl.Reader().feed(recorded(name))
    return frame.event()


def all_of(name: str) -> dict[str, str]:
    """Every header of the event, those too that nobody reads."""
    (frame,) = esl.Reader().feed(recorded(name))
    return esl.parse_headers(frame.body.partition(b"\n\n")[0], fold=False)


def heard(**headers: str) -> Call:
    """The recorded plain call with other headers; ``_`` stands for ``-`` in no name that is used here.

    What FreeSWITCH's own parser found in another From has to be given along: its ``user`` and ``host``.
    """
    headers = {{"user": "variable_sip_from_user", "host": "variable_sip_from_host"}.get(name, name): value
               for name, value in headers.items()}  # fmt: skip
    return esl.call_from_esl(event("screen") | headers, INTL, NOW)


def reason(call: Call) -> Reason:
    return policy.decide(call, policy.read(call, CN), Facts(), CN).reason


# -- frames ---------------------------------------------------------------------------------------------------


def test_every_recording_is_known() -> None:
    """Each recorded file is a whole number of frames of the kinds that its name says."""
    found = {}
    for path in RECORDED:
        reader = esl.Reader()
        found[path.stem.removeprefix("esl-")] = [frame.kind for frame in reader.feed(path.read_bytes())]
        assert not reader.pending, path.name
    assert found == KINDS


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_byte_by_byte(path: Path) -> None:
    """Frames that come in single bytes are the frames that came whole, each at its last byte."""
    data = path.read_bytes()
    reader = esl.Reader()
    assert [frame for byte in data for frame in reader.feed(bytes([byte]))] == esl.Reader().feed(data)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_cut_at_every_offset(path: Path) -> None:
    """A stream that is cut anywhere gives the same frames, and one that ends there is known to be unfinished."""
    data = path.read_bytes()
    whole, ends = esl.Reader().feed(data), _ends(data)
    for offset in range(len(data) + 1):
        reader = esl.Reader()
        first = reader.feed(data[:offset])
        assert reader.pending == (offset not in ends), offset
        assert first + reader.feed(data[offset:]) == whole, offset


def _ends(data: bytes) -> set[int]:
    """Where one frame has ended and the next has not begun."""
    reader, ends = esl.Reader(), {0}
    for offset, byte in enumerate(data, start=1):
        if reader.feed(bytes([byte])):
            ends.add(offset)
    # A line end between frames belongs to none.
    return ends | {end + 1 for end in ends if data[end : end + 1] == b"\n"}


def test_recorded_replies() -> None:
    """Replies keep their text, bodies their bytes."""
    _, accepted, events = esl.Reader().feed(recorded("login"))
    assert accepted.headers["reply-text"] == "+OK accepted"
    assert events.headers["reply-text"].startswith("+OK")
    (epoch,) = esl.Reader().feed(recorded("api"))
    assert epoch.body.isdigit()
    (gone,) = esl.Reader().feed(recorded("no-channel"))
    assert gone.body.startswith(b"-ERR No such channel!\n")


def test_body_with_empty_lines_is_one_body() -> None:
    """A body is counted, not searched for an end (G12)."""
    body = b"a\n\nContent-Type: auth/request\n\n"
    data = b"Content-Type: api/response\nContent-Length: %d\n\n%b" % (len(body), body)
    (frame,) = esl.Reader().feed(data)
    assert (frame.kind, frame.body) == ("api/response", body)


def test_body_of_an_event_is_no_header() -> None:
    """What follows the event's empty line is its body, not one more header (G12)."""
    inner = b"Event-Name: CUSTOM\nUnique-ID:\nContent-Length: 9\n\nPbxguard-Version: 1\n"
    data = b"Content-Length: %d\nContent-Type: text/event-plain\n\n%b" % (len(inner), inner)
    (frame,) = esl.Reader().feed(data)
    assert frame.event() == {"Event-Name": "CUSTOM", "Unique-ID": ""}


def test_headers_that_are_parsed_are_those_that_are_read() -> None:
    """An event has what a call is read from, and of the hundred others nothing."""
    read = set()

    class Noted(dict[str, str]):
        def get(self, name: str, other: str = "") -> str:  # type: ignore[override]
            read.add(name)
            return super().get(name, other)

    found = Noted(
        all_of("hostile") | {"variable_sip_Remote-Party-ID": "<sip:1@h>", "variable_pbxguard_callee": "13957100002"}
    )
    esl.shown_variables(found, esl.call_from_esl(found, INTL, NOW), Allow(Reason.DEFAULT, Basis("r", "d")))
    assert esl.call_from_esl(found, INTL, NOW).callee == "13957100002"
    read.add("variable_sip_req_user")
    esl.channel_uuid(found)
    block = "".join(f"{name}: {quote(value)}\n" for name, value in found.items()).encode()
    frame = esl.Frame({}, block + b"\n")
    # The adapter itself reads the other four.
    own = {"Event-Name", "Event-Subclass", "Pbxguard-Version", "variable_pbxguard_trunk"}
    assert set(frame.event()) == (read & set(found)) | own
    assert frame.event() == {name: found[name] for name in frame.event()}


def test_dialplan_waits_as_the_release_expects() -> None:
    """The wait is a ``sleep`` right after the event: an application that starts forgets a break that came before it.

    What the failure branch sets is what the release looks for, and a second screening forgets it.
    """
    found = {each.attrib["name"]: each for each in ET.parse(DIALPLAN).iter("extension")}
    steps = {name: [(a.attrib["application"], a.attrib.get("data", "")) for a in each.iter("action")]
             for name, each in found.items()}  # fmt: skip
    assert [application for application, _ in steps["pbxguard-screen"]] == ["event", "sleep", "execute_extension"]
    ((application, data), *_) = steps["pbxguard-none"]
    assert (application, f"{esl.GIVEN_UP_VARIABLE}=1" in data.split()) == ("multiset", True)
    ((application, data),) = steps["pbxguard-forget"]
    assert {esl.VERDICT_VARIABLE, esl.GIVEN_UP_VARIABLE} <= set(data.split())
    assert all(f"${{{name}}}" in next(found["pbxguard-forget"].iterfind("condition[2]")).attrib["field"]
               for name in data.split())  # fmt: skip


def test_release() -> None:
    """The wait's end is FreeSWITCH's to judge: only while it sleeps and has not given up is the channel named."""
    uuid = "0bb3f4a6-5a0e-4f8f-a0c4-0a5b0a5c7c11"
    assert esl.release(uuid).decode() == (
        f"api expand uuid_break ${{cond('${{uuid_getvar({uuid} current_application)}}"
        f"${{uuid_getvar({uuid} pbxguard_given_up)}}' == 'sleep_undef_' ? {uuid} : none)}}\n\n"
    )


@pytest.mark.parametrize(
    "length", ["-1", "+5", "x", "1e3", "", "0x10", "5 5", "%", "²", "1048577", "9" * 9, "9" * 99]
)
def test_bad_length(length: str) -> None:
    """A length that is no number or too large ends the connection, before anything is kept for it."""
    with pytest.raises(PeerProtocolError, match="an event socket body of "):
        esl.Reader().feed(b"Content-Type: api/response\nContent-Length: " + length.encode() + b"\n\n")


def test_largest_body() -> None:
    """A body at the limit is read."""
    data = b"Content-Length: %d\n\n" % esl.MAX_BODY_BYTES
    (frame,) = esl.Reader().feed(data + bytes(esl.MAX_BODY_BYTES))
    assert len(frame.body) == esl.MAX_BODY_BYTES


def test_endless_header_block() -> None:
    """A header block over the limit is refused while it comes, not gathered for ever."""
    reader = esl.Reader()
    reader.feed(b"a" * esl.MAX_HEADER_BYTES)
    with pytest.raises(PeerProtocolError, match="header block of more than 65536 bytes"):
        reader.feed(b"a")


def test_header_block_over_the_limit_in_one_piece() -> None:
    """The limit holds for a block whose end came along, too."""
    with pytest.raises(PeerProtocolError):
        esl.Reader().feed(b"a" * (esl.MAX_HEADER_BYTES + 10) + b"\n\n")


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_any_bytes(pieces: list[bytes]) -> None:
    """Whatever the peer sends is frames or a protocol error, and never anything else."""
    reader = esl.Reader()
    try:
        for piece in pieces:
            for frame in reader.feed(piece):
                frame.event()
    except PeerProtocolError:
        pass


@given(st.data())
def test_changed_recordings(data: st.DataObject) -> None:
    """A recorded stream with any piece replaced is frames, calls or a protocol error."""
    whole = data.draw(st.sampled_from(RECORDED)).read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    piece = data.draw(st.binary(max_size=30) | st.sampled_from([b"\n", b"\n\n", b":", b"%", b"%0A", b"\xff", b"\0"]))
    try:
        for frame in esl.Reader().feed(whole[:start] + piece + whole[end:]):
            call = esl.call_from_esl(frame.event(), INTL, NOW)
            assert max(len(text) for text in (call.cli, call.callee, call.call_id, call.display_name)) <= 404
            esl.channel_uuid(frame.event())
    except PeerProtocolError:
        pass


# -- hostile callers ------------------------------------------------------------------------------------------


def test_hostile_caller_writes_no_header() -> None:
    """From user, display name, X- header and SDP with line ends, as FreeSWITCH encodes them, forge nothing (G1)."""
    found = all_of("hostile")
    plain = all_of("screen")
    assert set(found) - set(plain) == {
        "variable_sip_P-Asserted-Identity",
        "variable_sip_Privacy",
        "variable_sip_cid_type",
        "variable_sip_from_display",
        "variable_sip_h_Diversion",
        "variable_sip_h_X-Evil",
    }
    assert set(plain) <= set(found)
    # FreeSWITCH itself takes the number from P-Asserted-Identity.
    assert found["Caller-Caller-ID-Number"] == "+8613800138000"
    assert esl.channel_uuid(found) == found["variable_uuid"]
    assert "\nCaller-Caller-ID-Number: 914" in found["variable_switch_r_sdp"]
    assert found["variable_sip_h_X-Evil"].startswith("a\nCaller-Caller-ID-Number: 913\n")


def test_hostile_caller_has_an_invalid_number() -> None:
    """The hostile From user is what the policy sees, whole, and it is refused as no number."""
    call = esl.call_from_esl(event("hostile"), INTL, NOW)
    assert call.cli == "1%0aCaller-Caller-ID-Number:%20911"
    assert call.display_name == "x\u2028Caller-Caller-ID-Number: 912\x85Unique-ID: 00000000"
    assert reason(call) is Reason.CLI_INVALID


def test_plain_call() -> None:
    """The recorded plain call is read whole."""
    call = esl.call_from_esl(event("screen"), INTL, NOW)
    assert call == Call(
        call_id="1-7@198.18.9.21",
        at=NOW,
        trunk=INTL,
        cli="+85261234567",
        callee="13957100001",
        user_agent="sipp",
        source="198.18.9.21:5060",
    )
    assert reason(call) is Reason.INTL_ORIGIN_NOTICE


def test_asserted_and_diverted() -> None:
    """P-Asserted-Identity, Privacy and Diversion come along."""
    call = esl.call_from_esl(event("hostile"), INTL, NOW)
    assert (call.asserted, call.diverted_by) == ("+8613800138000", ("13957100002",))


def test_uri_in_a_parameter_of_from() -> None:
    """The number is that of From's URI, which the telephone shows, not that of a parameter behind it."""
    found = all_of("from-parameter")
    assert '"<sip:13800138000@h>"' in found["variable_sip_full_from"]
    assert esl.call_from_esl(found, INTL, NOW).cli == found["Caller-Caller-ID-Number"] == "+85261234567"


def test_from_without_brackets() -> None:
    """A From that is a bare URI (RFC 3261 section 20.20) has its number too; its parameters are not the URI's."""
    assert esl.call_from_esl(event("from-bare"), INTL, NOW).cli == "+85261234567"


@pytest.mark.parametrize(
    ("sender", "cli"),
    [
        (r'"a\" <sip:110@h>" <sip:5@h>;tag=1', "5"),
        ('"<sip:110@h>" <sip:5@h>;tag=1', "5"),
        ('<sip:5@h>;tag=1;x=">"', "5"),
        ('sip:5@h;x="<sip:110@h>"', "5"),
        ("Bob <sip:5@h>", "5"),
        ("<tel:+85261234567>;tag=1", "+85261234567"),
        ("<sip:5@h;user=phone>;tag=1", "5"),
        ('"Anonymous" <sip:anonymous@anonymous.invalid>;tag=1', "anonymous"),
        ("<sip:198.18.9.21>;tag=1", ""),
    ],
)
def test_forms_of_from(sender: str, cli: str) -> None:
    """Each form of From that FreeSWITCH prints gives the user part of its one URI."""
    host = {"anonymous": "anonymous.invalid", "": "198.18.9.21"}.get(cli, "h")
    assert heard(variable_sip_full_from=sender, user=cli, host=host).cli == cli


@pytest.mark.parametrize(
    ("sender", "user", "host"),
    [
        ('"a" <sip:13800138000@h>" <sip:5@h>;tag=1', "5", "h"),  # "a%22 <sip:...>" <sip:5@h>
        ('"a" <sip:5123@h>" <sip:5@h>;tag=1', "5", "h"),
        ('"a" <tel:13800138000>" <sip:5@h>;tag=1', "5", "h"),
        ('"a" <sip:h>" <sip:5@h>;tag=1', "5", "h"),
        ('"a" <sip:13800138000@h>" <sip:h>;tag=1', "", "h"),
        ("<sip:1>@h>;tag=1", "1", "h"),  # <sip:1%3E@h>
        ("<sip:13800138000@x>@h>;tag=1", "13800138000", "h"),
        ("<sip:13800138000@x@h>;tag=1", "13800138000", "h"),  # ...%40x@h
        ("<sip:5@h;x=@y>;tag=1", "5", "h"),
        ("<sip:5@h>;tag=1", "5", ""),
        ("<sip:5@h>;tag=1", "6", "h"),
    ],
)
def test_escapes_that_look_like_the_frame_of_an_address(sender: str, user: str, host: str) -> None:
    """A quote, bracket or @ that the caller wrote as an escape names no other number: what cannot be told is refused.

    FreeSWITCH hands such an escape on as it would encode the sign itself; its own parser saw the real one.
    """
    call = heard(variable_sip_full_from=sender, user=user, host=host)
    assert reason(call) is Reason.CLI_INVALID


@pytest.mark.parametrize(
    "sender", ["", "<", ">", "<>", "\n", "x", '"', '"a', "<sip:" + "1" * 300 + "@h>;tag=1", "<http://5@h>"]
)
def test_from_that_is_none(sender: str) -> None:
    """What is no From, or too long for a number, is an invalid number and not a withheld one."""
    call = heard(variable_sip_full_from=sender)
    assert len(call.cli) <= 404
    assert reason(call) is Reason.CLI_INVALID


def test_first_header_wins() -> None:
    """A header that comes again later does not replace the first."""
    found = esl.parse_headers(b"A: 1\nB: 2\nA: 3\na: 4", fold=False)
    assert found == {"A": "1", "B": "2", "a": "4"}
    assert esl.parse_headers(b"A: 1\na: 4") == {"a": "1"}


@pytest.mark.parametrize("end", ["%0A", "%0D%0A", "%E2%80%A8", "\u2028", "\x85", "\x0b", "\x0c", "\r"])
def test_only_a_line_feed_ends_a_line(end: str) -> None:
    """No other line end, encoded or not, starts a header."""
    found = esl.parse_headers(f"variable_x: a{end}Caller-Caller-ID-Number: 911".encode(), fold=False)
    assert list(found) == ["variable_x"]


@pytest.mark.parametrize(
    "headers", [{}, {"Unique-ID": "x; uuid_kill all"}, {"Unique-ID": "a" * 65}, {"Unique-ID": ""}]
)
def test_no_channel(headers: dict[str, str]) -> None:
    """A command is never made for a channel whose name is not one."""
    with pytest.raises(PeerProtocolError, match="without a channel"):
        esl.channel_uuid(headers)


@pytest.mark.parametrize("text", ["<sip:9@h>,", " ", '"', '\\"', "<", "a ", "sip:", "\n"])
def test_everything_is_bounded(text: str) -> None:
    """However much a caller writes, little of it is kept, and it takes no time to read."""
    many = dict.fromkeys(event("hostile"), '"' + text * 20_000) | {"variable_sip_Privacy": text * 20_000}
    many["variable_sip_full_from"] = text * 20_000
    began = monotonic()
    call = esl.call_from_esl(many, INTL, NOW)
    assert monotonic() - began < 0.5
    texts = (call.call_id, call.cli, call.callee, call.display_name, call.asserted or "", call.source)
    assert max(map(len, (*texts, call.user_agent, *call.diverted_by))) <= 404


def test_no_offer() -> None:
    """An INVITE without SDP is known, since no early media can reach it."""
    assert not heard(variable_switch_r_sdp="").has_offer


# -- commands -------------------------------------------------------------------------------------------------


def test_command() -> None:
    """Words are joined by spaces, and an empty line ends a command."""
    assert esl.command("api", "uuid_break", "x") == b"api uuid_break x\n\n"


@pytest.mark.parametrize("end", ["\n", "\r", "\0", "\r\n"])
def test_command_refuses_line_ends(end: str) -> None:
    """A line end in a word would be a second command (G13)."""
    with pytest.raises(ValueError, match="line end"):
        esl.command("api", f"uuid_break x{end}{end}bgapi fsctl shutdown")


def test_send_event() -> None:
    """An event is its name and headers, a line each; a line end in one is refused."""
    assert esl.send_event("PRESENCE_PROBE") == b"sendevent PRESENCE_PROBE\n\n"
    assert esl.send_event("CUSTOM", Event_Subclass="a::b") == b"sendevent CUSTOM\nEvent-Subclass: a::b\n\n"
    with pytest.raises(ValueError, match="line end"):
        esl.send_event("CUSTOM", Event_Subclass="a\n\nbgapi shutdown")


def test_block_variables() -> None:
    """A refusal's status, prompts in their order and Call-Info come as variables, the verdict as the last one."""
    verdict = Block(Reason.SYSTEM_BLOCKLIST, Basis("r", "d"))
    treatment = Treatment(False, 608, "early", "system_blocklist", ("en", "zh"), call_info="https://a.example/c")
    values = esl.verdict_variables(verdict, treatment)
    assert values == {
        "pbxguard_reason": "system_blocklist",
        "pbxguard_status": "608 Rejected",
        "pbxguard_mode": "early",
        "pbxguard_say1": "en/system_blocklist.wav",
        "pbxguard_say2": "zh/system_blocklist.wav",
        "pbxguard_call_info": "https://a.example/c",
        "pbxguard_verdict": "1-block",
    }
    assert list(values)[-1] == esl.VERDICT_VARIABLE


def test_allow_variables() -> None:
    """A call that goes on has its labels and what the telephone shows."""
    verdict = Allow(Reason.DEFAULT, Basis("r", "d"), (Label.MVNO, Label.INTL_ORIGIN_NOTICE))
    values = esl.verdict_variables(verdict, Treatment(True, display="境外来电 香港"))
    assert values["pbxguard_labels"] == "mvno+intl_origin_notice"
    assert values["pbxguard_display"] == "境外来电 香港"
    assert values["pbxguard_verdict"] == "1-allow"
    assert "pbxguard_status" not in values


def test_call_that_connects_without_cli() -> None:
    """The dialplan has a branch of its own for it, so that an older one takes it for no verdict and shows nothing."""
    verdict = Allow(Reason.CLI_ANONYMISED, Basis("r", "d"), (Label.CLI_ANONYMISED,))
    assert esl.verdict_variables(verdict, Treatment(True, withhold=True))["pbxguard_verdict"] == "1-withhold"


def test_remote_party_id() -> None:
    """It stands in where there is no P-Asserted-Identity, unless its sender calls it unverified."""
    plain = {k: v for k, v in event("hostile").items() if k != "variable_sip_P-Asserted-Identity"}
    for params, asserted in (("screen=yes;privacy=off", "13012345678"), ("party=calling;screen=no", None)):
        rpid = {"variable_sip_Remote-Party-ID": f'"x" <sip:13012345678@h>;{params}'}
        assert esl.call_from_esl(plain | rpid, INTL, NOW).asserted == asserted
        assert esl.call_from_esl(event("hostile") | rpid, INTL, NOW).asserted == "+8613800138000"


@given(st.text(), st.text(), st.text(), st.integers(300, 699), st.booleans())
def test_no_variable_ends_another(display: str, url: str, prompt: str, status: int, connect: bool) -> None:
    """Whatever a pack or a setting holds, no value holds what ends a variable, a quote or a command."""
    treatment = Treatment(connect, status, "early", prompt, ("zh",), display, url)
    values = esl.verdict_variables(Block(Reason.DEFAULT, Basis("r", "d")), treatment)
    assert not any(c in value for value in values.values() for c in ";\r\n\0'\\")
    packed = ";".join(f"{key}={value}" for key, value in values.items())
    assert esl.command("api", "uuid_setvar_multi", "x", packed).count(b"\n") == 2
    assert values["pbxguard_verdict"] == f"1-{'allow' if connect else 'block'}"


# -- what the callee sees -------------------------------------------------------------------------------------


ENT = Trunk("ent", "enterprise", allocated=("0571865543*",))
NATL = Trunk("natl", "national", trusted=True)


def shown(trunk: Trunk, **headers: str) -> tuple[Call, dict[str, str]]:
    """The recorded call of a number of Hangzhou on that trunk, with these headers, and what it is shown as."""
    sender = {
        "variable_sip_full_from": "<sip:057186554321@h>;tag=1",
        "variable_sip_from_user": "057186554321",
        "variable_sip_from_host": "h",
        "Caller-Caller-ID-Number": "057186554321",
        "Caller-Caller-ID-Name": "057186554321",
    }
    event_ = event("screen") | sender | headers
    call = esl.call_from_esl(event_, trunk, NOW)
    verdict = policy.decide(call, policy.read(call, CN), Facts(), CN)
    assert isinstance(verdict, Allow)
    return call, esl.shown_variables(event_, call, verdict)


def test_number_that_freeswitch_shows_anyway() -> None:
    """A call whose message names one caller costs the dialplan nothing."""
    assert shown(ENT)[1] == {}
    # An assertion that says the same.
    assert shown(NATL, **{"variable_sip_P-Asserted-Identity": "057186554321"})[1] == {}


@pytest.mark.parametrize("said", ["variable_sip_P-Asserted-Identity", "variable_sip_P-Preferred-Identity", "x"])
def test_callee_sees_the_number_that_was_judged(said: str) -> None:
    """On a trunk that is not trusted it is From's, whatever header FreeSWITCH has taken another one from."""
    other = {said: "95588", "Caller-Caller-ID-Number": "95588", "Caller-Caller-ID-Name": "Bank"}
    call, values = shown(ENT, **other)
    assert (call.cli, values["pbxguard_number"]) == ("057186554321", "057186554321")
    assert values["pbxguard_name"] == "057186554321"
    packed = esl.verdict_variables(Allow(Reason.DEFAULT, Basis("r", "d")), Treatment(True), values)
    assert packed["pbxguard_number"] == "057186554321"
    assert list(packed)[-1] == esl.VERDICT_VARIABLE


def test_callee_sees_what_a_trusted_carrier_asserts() -> None:
    """The asserted number is the one that was judged, and the name is From's."""
    _, values = shown(
        NATL,
        **{"variable_sip_P-Asserted-Identity": "13800138001", "Caller-Caller-ID-Number": "13800138001",
           "Caller-Caller-ID-Name": "Bank", "variable_sip_from_display": "Ming"},
    )  # fmt: skip
    assert values == {"pbxguard_number": "13800138001", "pbxguard_name": "Ming"}


@pytest.mark.parametrize(
    "asks", [{"variable_sip_Privacy": "id"}, {"variable_sip_Privacy": "header;ID"},
             {"variable_sip_Remote-Party-ID": "<sip:13800138001@h>;screen=yes;privacy=full"}],
)  # fmt: skip
def test_asserted_number_that_is_kept_back(asks: dict[str, str]) -> None:
    """RFC 3325 section 7: who asked for privacy is not shown to the callee because his carrier vouches for him."""
    other = {"variable_sip_P-Asserted-Identity": "13800138001", "Caller-Caller-ID-Number": "13800138001"}
    assert shown(NATL, **other | asks)[1]["pbxguard_number"] == "anonymous"


def test_withheld_caller_stays_withheld() -> None:
    """From says anonymous and the carrier who: the second is judged, and the callee sees neither number."""
    nobody = {"variable_sip_full_from": '"Anonymous" <sip:anonymous@h>;tag=1', "variable_sip_from_user": "anonymous"}
    other = {"variable_sip_P-Asserted-Identity": "13800138001", "Caller-Caller-ID-Number": "13800138001"}
    assert shown(NATL, **nobody | other)[1]["pbxguard_number"] == "anonymous"


def test_long_name_is_cut() -> None:
    """What the posing check has not seen is not shown."""
    name = "x" * 64 + "posing"
    _, values = shown(ENT, **{"variable_sip_from_display": name, "Caller-Caller-ID-Name": name})
    assert values["pbxguard_name"] == "x" * 64


@given(st.text(), st.text())
def test_shown_variables_hold_nothing_that_ends_one(name: str, user: str) -> None:
    """Whatever the caller wrote, number and name hold nothing that ends a variable or names one."""
    found = event("screen") | {"variable_sip_from_display": name, "Caller-Caller-ID-Name": "x"}
    call = esl.call_from_esl(found | {"variable_sip_full_from": f"<sip:{user}@h>"}, INTL, NOW)
    values = esl.shown_variables(found, call, Allow(Reason.DEFAULT, Basis("r", "d")))
    assert all(value and not set(value) & set(";\r\n\0'\"\\$<>{}") for value in values.values())


def test_blocked_and_withheld_calls_show_nothing() -> None:
    """The dialplan gets no number where none is to be shown."""
    verdict, values = Block(Reason.DEFAULT, Basis("r", "d")), {"pbxguard_number": "1", "pbxguard_name": "1"}
    for treatment in (Treatment(False, 603), Treatment(True, withhold=True)):
        assert "pbxguard_number" not in esl.verdict_variables(verdict, treatment, values)


def test_text_of_ours_replaces_the_name_everywhere() -> None:
    """A caller's name that poses as a label is in no variable, so that no later display update shows it."""
    values = {"pbxguard_number": "95588", "pbxguard_name": "境外来电"}
    packed = esl.verdict_variables(Allow(Reason.DEFAULT, Basis("r", "d")), Treatment(True, display="95588"), values)
    assert packed["pbxguard_name"] == "95588"


FORGED = '"" <sip:+85261234567@c>" <sip:95588@gw>'  # "%22 <sip:...>" <sip:95588@gw>


@pytest.mark.parametrize(
    "sender",
    [
        f"{FORGED};user=+85261234567;host=c;tag=1",
        f"{FORGED};HOST=c;User=+85261234567",
        '"a\\" <sip:95588@gw>;host=c;user=+85261234567;x=" <sip:+85261234567@c>"',  # "a%5C" <sip:95588@gw>;...
        "<sip:+85261234567@c>;display=Police",
        "<sip:+85261234567@c>;host",
    ],
)
def test_parameters_that_freeswitch_takes_for_the_address(sender: str) -> None:
    """A parameter of From named user, host or display overwrites what FreeSWITCH's parser found: it is refused."""
    call = heard(variable_sip_full_from=sender, user="+85261234567", host="c")
    assert reason(call) is Reason.CLI_INVALID


@pytest.mark.parametrize("uri", ["sip:+85261234567@c;user=phone", "sip:+85261234567@c;user=ip;userx=1"])
def test_user_of_a_uri_is_no_such_parameter(uri: str) -> None:
    """``;user=phone`` (RFC 3261 section 19.1.1) is in most calls of a carrier."""
    assert heard(variable_sip_full_from=f"<{uri}>;tag=1", user="+85261234567", host="c").cli == "+85261234567"


def test_callee_of_a_second_screening() -> None:
    """What the dialplan names outranks the Request-URI, which a voice menu leaves as it was."""
    assert heard().callee == "13957100001"
    assert heard(variable_pbxguard_callee="13957100002").callee == "13957100002"
