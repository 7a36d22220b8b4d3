"""One rule for what GSM can dial, whichever way a number comes."""

import asyncio

import pytest

from pbxguard.lab.goip.box import Box, Line, LinePlan
from pbxguard.lab.goip.control import Device, steady_clock
from pbxguard.lab.goip.dialling import MAX_TEXT_NUMBER, dialled, is_dialable
from pbxguard.lab.goip.mobile import MobileNetwork
from pbxguard.lab.goip.protocol import Identity, Submit, parse
from pbxguard.lab.goip.sims import SimTable
from pbxguard.lab.goip.web import Web


@pytest.mark.parametrize(
    ("number", "good"),
    [
        ("10086", True),
        ("+8613800138000", True),
        ("*100#", True),
        ("1" * MAX_TEXT_NUMBER, True),
        ("", False),
        ("+", False),
        ("86+138", False),
        ("++86138", False),
        ("anna", False),
        ("138 0013", False),
        ("１３８", False),
    ],
)
def test_one_rule_by_invite_page_and_datagram(number: str, good: bool) -> None:
    """A number that can be dialled is taken by INVITE, send.html and SEND alike; another one by none of them."""
    assert is_dialable(number, MAX_TEXT_NUMBER) is good

    box = Box([LinePlan()], SimTable.fictional(1), clock=steady_clock())
    assert isinstance(box.dial(number), Line) is good

    async def sent() -> str:
        box = Box([LinePlan()], SimTable.fictional(1), clock=steady_clock())
        device = Device(box, MobileNetwork(), [Identity("g-1", "pw")], server="127.0.0.1:44444", listen="127.0.0.1:0")
        web = Web(device, "127.0.0.1:0", "admin", "pw")
        escaped = number.replace("+", "%2B").replace("#", "%23").replace(" ", "%20")
        return web.page("GET", f"/default/en_US/send.html?u=admin&p=pw&l=1&n={escaped}&m=x").body

    assert asyncio.run(sent()).startswith("Sending") is good

    if number and " " not in number:
        message = parse(f"SEND 1 1 {number}\n".encode())
        assert (isinstance(message, Submit) and message.to == number) is good


def test_what_is_forwarded_to_is_cleaned_for_a_keypad() -> None:
    """An operator's way of writing a number is no obstacle, and nothing else of it reaches a dialplan."""
    assert dialled("+86 139-5710(0001)") == "+8613957100001"
    assert dialled("1&Local/x@y") == "1"
