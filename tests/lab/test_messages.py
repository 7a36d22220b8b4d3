"""What the wire shows of a text, and what a scenario file may say about one."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbxguard.errors import BadInput, LabUnavailable
from pbxguard.lab import messages, texts
from pbxguard.lab.goip.sms import forwarded, read_forwarded
from pbxguard.lab.messages import TextObserved, done, legs
from pbxguard.lab.scenario import ExpectText, TextStep
from pbxguard.lab.scenariofile import read
from pbxguard.lab.wire import Address, Capture, SipMessage, parse_sip

TAG = "00112233445566ff"
GATEWAY, PBX, PHONE = (
    Address("198.18.0.31", 5060), Address("198.18.0.10", 5060), Address("198.18.1.101", 5060),
)  # fmt: skip


def request(
    source: Address, target: Address, call_id: str, cseq: int = 1, body: bytes = b"10086\nhello"
) -> SipMessage:
    data = (
        f"MESSAGE sip:13957100001@x SIP/2.0\r\nFrom: <sip:goip1@y>;tag=a\r\nCall-ID: {call_id}\r\n"
        f"CSeq: {cseq} MESSAGE\r\nX-Pbxguard-Call: {TAG}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    found = parse_sip(data, float(cseq), source, target)
    assert found is not None
    return found


def answer(to: SipMessage, status: int) -> SipMessage:
    data = f"SIP/2.0 {status} x\r\nCall-ID: {to.call_id}\r\nCSeq: {to.cseq} MESSAGE\r\n\r\n".encode()
    found = parse_sip(data, to.at + 0.1, to.destination, to.source)
    assert found is not None
    return found


def test_a_challenge_is_not_the_end() -> None:
    """401, the MESSAGE again, 202, and the leg to the telephone with its 200: two legs, each once."""
    first, second = request(GATEWAY, PBX, "a"), request(GATEWAY, PBX, "a", 2)
    on = request(PBX, PHONE, "b", 3)
    wire = [first, answer(first, 401), second, answer(second, 202), on]
    assert not done(legs(Capture(tuple(wire)), TAG), relayed=True)

    found = legs(Capture((*wire, answer(on, 200))), TAG)

    assert [(leg.source, leg.target, leg.sender, leg.status, leg.copies) for leg in found] == [
        ("goip1", "pbx", "goip1", 202, 1), ("pbx", "zhang", "goip1", 200, 1),
    ]  # fmt: skip
    assert done(found, relayed=True)


def test_a_text_that_is_delivered_twice_is_a_fault() -> None:
    """Two MESSAGEs to one telephone (other Call-IDs) are two deliveries; a retransmission is none."""
    one, two = request(PBX, PHONE, "b"), request(PBX, PHONE, "c", 2)
    again = replace(one, repeated=True)
    assert [leg.copies for leg in legs(Capture((one, again)), TAG)] == [1]
    found = legs(Capture((one, two)), TAG)
    assert [leg.copies for leg in found] == [2]
    step, seen = TextStep(way="gsm", body="hello"), TextObserved(phone="zhang", copies=2)
    assert messages.faults(step, ExpectText(), seen) == ("phone: expected the text once, observed 2 MESSAGEs",)


def test_a_refused_text_goes_no_further() -> None:
    """After a 404 of the PBX nothing more is waited for."""
    sent = request(GATEWAY, PBX, "a")
    assert done(legs(Capture((sent, answer(sent, 404))), TAG), relayed=True)


def test_every_difference_is_told_with_expected_and_observed() -> None:
    """Status, place, report, sender, answer and body, each by name; a long body is cut."""
    step = TextStep(way="gsm", body="长", repeat=1000)
    expected = ExpectText(message=202, phone="zhang", server=True, gsm=False, report=0, sender="1", answer="^OK$")
    seen = TextObserved("ERROR", 404, "li", copies=1, gsm=True, sender="2", bodies={"server": "x"})
    found = messages.faults(step, expected, seen)
    assert [fault.partition(":")[0] for fault in found] == [
        "message", "phone", "server", "gsm", "report", "sender", "answer", "body at server",
    ]  # fmt: skip
    assert found[0] == "message: expected 202, observed 404"
    assert found[-1].endswith("(1000 characters), observed 'x'")
    assert len(found[-1]) < 200


@given(st.text(), st.text())
def test_a_forwarded_text_is_read_back(sender: str, body: str) -> None:
    """Whatever the sender is called, the text after the first line is the text."""
    assert read_forwarded(forwarded(sender, body))[1] == body


async def test_a_page_that_does_not_come_is_one_clear_line() -> None:
    """An answer other than 200, nobody there, or no HTTP at all: the page and why, without the password in it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 503 busy\r\n\r\n" if b"/busy" in asked else b"*\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    for page, said in (("busy", "503"), ("odd", "*")):
        with pytest.raises(LabUnavailable, match=re.escape(said)) as error:
            await asyncio.to_thread(texts._page, f"http://{host}:{port}/{page}?p=secret")
        assert "secret" not in str(error.value)
    server.close()
    await server.wait_closed()
    with pytest.raises(LabUnavailable, match="refused"):
        await asyncio.to_thread(texts._page, f"http://{host}:{port}/gone")


def write(tmp_path: Path, step: str) -> Path:
    path = tmp_path / "one.toml"
    path.write_text(f'title = "one"\n[[step]]\n{step}\n')
    return path


GOOD = '[step.text]\nway = "gsm"\nsender = "10086"\nto = "zhang"\nbody = "hello"\n'


def test_a_text_is_a_row_like_a_call(tmp_path: Path) -> None:
    """A step with a text has a call's words for tables, and nothing that is expected of a call."""
    (scenario,) = read(write(tmp_path, GOOD + '[step.expect_text]\nphone = "zhang"\n'))
    step = scenario.step[0]
    assert (step.call.cli, step.call.number, step.call.trunk) == ("10086", "13957100001", "goip1")
    assert step.expect is None
    assert step.expect_text.phone == "zhang"


@pytest.mark.parametrize(
    "asked", ['phone = ""', "server = false", "gsm = true", "report = 0", 'sender = "1"', 'answer = "OK"',
              'bodies = { phone = "x" }', "message = 202"],
)  # fmt: skip
def test_a_text_that_is_lost_is_a_fault_or_what_was_asked(tmp_path: Path, asked: str) -> None:
    """Whatever a file may ask on its own, a text that goes anywhere else than asked does not pass."""
    (scenario,) = read(write(tmp_path, GOOD + f"[step.expect_text]\n{asked}\n"))
    (step,) = scenario.step
    assert step.text is not None
    lost = TextObserved()
    stray = TextObserved("", 404, "li", 1, server=True, bodies={"phone": "hello"})
    assert messages.faults(step.text, step.expect_text, lost) or messages.faults(step.text, step.expect_text, stray)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (GOOD + "[step.expect]\nverdict = 'allow'\nreason = ''\nsip_status = 200\n", "with `text` has no `expect`"),
        ("title = 'x'", "key 'call' is missing; or give `text`"),
        (GOOD.replace("zhang", "zhing"), "did you mean zhang"),
        (GOOD + 'gateway = "goip3"', "goip3' is none; did you mean goip"),
        (GOOD + 'gateway = "goip2"', "goip2 is no trunk of the PBX"),
        (GOOD.replace('"10086"', '"a;b"'), "without a semicolon"),
        (GOOD.replace('"hello"', '""'), "0 bytes"),
        (GOOD + "repeat = 1000", "5000 bytes"),
        (GOOD.replace('"gsm"', '"udp"'), "text.to: 'zhang' is no number"),
        (GOOD.replace('"gsm"', '"udp"').replace("zhang", "10086"), "leave it out"),
        (GOOD.replace('"gsm"', '"pbx"').replace("zhang", "1") + "repeat = 200", "a text of way pbx has 1 to 740"),
        (GOOD.replace('"gsm"', '"sms"'), "'gsm', 'udp', 'http' or 'pbx'"),
        (GOOD + '[step.expect_text]\nphone = "zhing"', "did you mean zhang"),
        (GOOD + '[step.expect_text]\nanswer = "("', "no regular expression"),
        (GOOD, "step 1: `expect_text` asks nothing that could be missing"),
        (GOOD + '[step.expect_text]\nbody = "hello"', "a text that is lost would pass; give one of message, phone"),
        (GOOD + '[step.expect_text]\nanswer = ""', "asks nothing that could be missing"),
    ],
)  # fmt: skip
def test_a_wrong_text_is_named(tmp_path: Path, step: str, said: str) -> None:
    """Each mistake in a step with a text is one line that says what is wrong and what was probably meant."""
    with pytest.raises(BadInput) as error:
        read(write(tmp_path, step))
    assert said in str(error.value)
