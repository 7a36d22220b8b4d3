"""The lab's own SMS server against the lab's own gateway, on real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pbxguard.errors import BadInput, LabUnavailable, ServiceUnavailable
from pbxguard.lab.goip.box import Box, LinePlan
from pbxguard.lab.goip.control import Device, steady_clock
from pbxguard.lab.goip.endpoint import Timing
from pbxguard.lab.goip.mobile import MobileNetwork
from pbxguard.lab.goip.protocol import Identity
from pbxguard.lab.goip.server import SmsServer
from pbxguard.lab.goip.sims import SimTable
from pbxguard.lab.waiting import wait_for

LIMIT = 15.0
HOSTILE = "a; b\r\nRECEIVE:1;id:x;msg:y\r\n\r\n%0A) ${SHELL(id)} \"' <script> \x01:"


@asynccontextmanager
async def pair(network: MobileNetwork | None = None) -> AsyncIterator[tuple[SmsServer, Device]]:
    box = Box([LinePlan(), LinePlan()], SimTable.fictional(2), clock=steady_clock())
    async with SmsServer("127.0.0.1:0") as server:
        device = Device(
            box, network or MobileNetwork(sending=0.02, report=0.02),
            [Identity(f"goip1-{n}", "goip-pw") for n in (1, 2)],
            server="{}:{}".format(*server.address), listen="127.0.0.1:0", timing=Timing(keepalive=0.2, resend=0.2),
        )  # fmt: skip
        async with device:
            yield server, device


@pytest.mark.parametrize(
    "body", ["hello", "您好 🙂", "长" * 1000, HOSTILE], ids=["short", "Chinese", "long", "hostile"]
)
async def test_a_text_goes_there_and_back_as_it_is(body: str) -> None:
    """What the server sends reaches the mobile network exactly, and what arrives at a SIM reaches the server exactly;
    the delivery report names the text.
    """
    async with pair() as (server, device):
        number = await server.send(device.address(2), "goip-pw", "13800138000", body)
        assert (device.network.sent[-1].body, str(device.network.sent[-1].number)) == (body, number)
        device.text_arrives(1, "10086", body)
        await wait_for(lambda: {n.verb for n in server.notices} >= {"DELIVER", "RECEIVE"}, LIMIT, "both notices")
        notices = {n.verb: n for n in server.notices}
        assert (notices["RECEIVE"]["msg"], notices["RECEIVE"]["srcnum"], notices["RECEIVE"].line) == (
            body, "10086", "goip1-1",
        )  # fmt: skip
        assert (notices["DELIVER"]["sms_no"], notices["DELIVER"]["state"]) == (number, "0")


async def test_lines_are_logged_in_and_a_notice_counts_once() -> None:
    """Keepalives are answered, so the lines are logged in; a repeated notice is acknowledged and kept once."""
    async with pair() as (server, device):
        await wait_for(lambda: all(line.logged_in for line in device.endpoints), LIMIT, "the lines")
        assert server.lines == {f"goip1-{n}": device.address(n) for n in (1, 2)}
        for _ in range(2):
            server.datagram_received(b"STATE:5;id:goip1-1;password:x;gsm_remain_state:IDLE", device.address(1))
        assert len(server.notices) == 1


async def test_what_the_line_refuses_is_told_in_its_own_words() -> None:
    """A wrong password and a text that the network refuses are errors with the line's answer."""
    async with pair(MobileNetwork(sending=0.02, refuses=lambda _number: 500)) as (server, device):
        with pytest.raises(LabUnavailable, match="PASSWORD"):
            await server.send(device.address(1), "wrong", "10086", "hello")
        with pytest.raises(LabUnavailable, match="errorstatus:500"):
            await server.send(device.address(1), "goip-pw", "10086", "hello")


@pytest.mark.parametrize(("to", "body"), [("1 2", "x"), ("", "x"), ("10086", "长" * 1001)])
async def test_what_cannot_be_sent_is_not_sent(to: str, body: str) -> None:
    """A number with a blank would be two words of the protocol, and a text over 3000 bytes none of it."""
    async with SmsServer("127.0.0.1:0") as server:
        with pytest.raises(ValueError, match="3000 bytes"):
            await server.send(("127.0.0.1", 9), "goip-pw", to, body)


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 3000, b"RECEIVE", b"RECEIVE:x;", b"OK", b"OK 99999999999 1", b"reg:1;"]
)
async def test_any_datagram_is_survived(data: bytes) -> None:
    """What is no message of the protocol is left out, and the server goes on."""
    async with pair() as (server, device):
        server.datagram_received(data, ("127.0.0.1", 9))
        await wait_for(lambda: device.endpoints[0].logged_in, LIMIT, "the line")
        assert not server.notices


async def test_it_stays_in_the_lab_and_says_when_a_port_is_taken() -> None:
    """An address outside the lab is refused, and a taken one is named."""
    with pytest.raises(BadInput, match="outside the lab"):
        SmsServer("192.0.2.1:44444")
    async with SmsServer("127.0.0.1:0") as server:
        with pytest.raises(ServiceUnavailable, match="cannot listen on 127"):
            async with SmsServer("{}:{}".format(*server.address)):
                await asyncio.sleep(0)
