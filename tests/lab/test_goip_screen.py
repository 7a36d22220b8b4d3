"""What `lab goip` shows: its help, its lines, its last calls and texts, and what a hostile text cannot do to it."""

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner
from rich.console import Console

from pbxguard.lab.goip.box import Box, LinePlan
from pbxguard.lab.goip.cli import goip
from pbxguard.lab.goip.control import Device, steady_clock
from pbxguard.lab.goip.mobile import MobileNetwork
from pbxguard.lab.goip.plan import GatewayPlan
from pbxguard.lab.goip.protocol import Identity
from pbxguard.lab.goip.screen import COLUMNS, DEFAULT_PASSWORD, Entry, Screen
from pbxguard.lab.goip.server import SmsServer
from pbxguard.lab.goip.sims import SimTable
from pbxguard.lab.goip.web import WEB_USER, Web
from pbxguard.lab.waiting import wait_for

LIMIT = 20.0
HOSTILE = "\x1b[31mred\r\n[bold]\x07" + "x" * 500


@pytest.fixture(name="screen")
async def _screen() -> AsyncIterator[Screen]:
    """Two lines on real ports, without SIP; nobody listens at the SMS server's address."""
    plan = GatewayPlan(lines=2)
    box = Box([LinePlan()] * 2, SimTable.fictional(2), clock=steady_clock())
    identities = [Identity(f"goip-{n}", DEFAULT_PASSWORD) for n in (1, 2)]
    network = MobileNetwork(sending=0.05, report=0.05)
    device = Device(box, network, identities, server="127.0.0.1:9", listen="127.0.0.1:0")
    web = Web(device, "127.0.0.1:0", WEB_USER, DEFAULT_PASSWORD)
    screen = Screen(device, web, plan, texts_to="13957100001")
    async with device, web:
        yield screen


def shown(screen: Screen) -> str:
    """The live view at 80 columns."""
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    console.print(screen.live())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def said(screen: Screen) -> list[str]:
    return [entry.said for entry in screen.last]


def test_the_help_explains_what_is_seen() -> None:
    """Every column, every page with its parameters, what a wrong password gets, where a MESSAGE is seen."""
    text = CliRunner().invoke(goip, ["--help"]).output
    for name, says in COLUMNS.items():
        assert re.search(rf"^ +{name} +{re.escape(says)}$", text, re.MULTILINE)
    for words in ("u=USER p=PASSWORD l=LINE n=NUMBER m=TEXT", "send_status.xml", "status.xml", "tcpdump -l -A"):
        assert words in text
    assert "ERROR,user or password error" in text
    assert "lab call --from 13012345678 --to 13957102001 --trunk natl" in text


async def test_the_curl_of_the_help_works_as_it_stands(screen: Screen) -> None:
    """With the defaults its address is one of send.html's that is answered with Sending, and the text arrives."""
    found = re.search(r"curl '(http://127\.0\.0\.1:8086/[^']+)'", CliRunner().invoke(goip, ["--help"]).output)
    assert found
    parts = urlsplit(found[1])
    page = screen.web.page("GET", f"{parts.path}?{parts.query}")
    assert page.body.startswith("Sending,L1 Send SMS to:13957102002")
    await wait_for(lambda: len(screen.last) == 2, LIMIT, "the text to be sent and to arrive")
    assert said(screen) == [
        "text by send.html from 13957102001 to 13957102002: “hello”",
        "text by GSM from 13957102001 to 13957102002, on as MESSAGE to 13957100001: “hello”",
    ]


async def test_the_view_has_the_last_calls_and_texts(screen: Screen) -> None:
    """Who called whom and how it ended, who wrote whom, what and by which way; the newest eight, in 80 columns."""
    box = screen.device.box
    assert "no calls and texts yet" in shown(screen)
    box.incoming(1, "13012345678")
    assert "INCOMING:" in shown(screen)
    box.connected(1)
    box.hung_up(1)
    box.dial("10086", line=2)
    box.hung_up(1, 17)
    screen.device.text_arrives(2, "CMCC", "hello")
    await wait_for(lambda: len(screen.last) == 3, LIMIT, "the text to arrive")
    page = shown(screen)
    assert "line 1  call from 13012345678: Normal call clearing, talked 0 s" in page
    assert "line 1  call to 10086: User busy, not answered" in page
    assert "line 2  text by GSM from CMCC to" in page
    assert all(len(line) <= 80 for line in page.splitlines())
    for n in range(20):
        box.incoming(2, f"1301234560{n % 10}")
        box.hung_up(2)
    assert shown(screen).count("not answered") == 8
    assert [entry["kind"] for entry in screen.status()["last"]] == ["call"] * 8


async def test_a_hostile_text_is_shown_as_text(screen: Screen) -> None:
    """Escape sequences, line ends and markup of a text, its sender and a user name stay on one bounded line."""
    entries: list[Entry] = []
    screen.watcher = entries.append
    screen.device.text_arrives(1, HOSTILE, HOSTILE)
    await wait_for(lambda: bool(screen.last), LIMIT, "the text to arrive")
    screen.web.page("GET", "/default/en_US/send.html?u=%1b%5b31m%0d%0a" + "x" * 500)
    assert [entry.kind for entry in entries] == ["text", "page"]
    for entry in entries:
        assert str(entry).isprintable()
        assert len(str(entry)) < 400
    page = shown(screen)
    assert "\x1b" not in page
    assert "\r" not in page
    assert f"({len(HOSTILE)} characters)" in entries[0].said


async def test_a_wrong_password_is_said(screen: Screen) -> None:
    """Which page, as which user, never the password; a request without any says that."""
    for page in ("send.html", "status.xml"):
        screen.web.page("GET", f"/default/en_US/{page}?u=root&p=secret")
    screen.web.page("GET", "/default/en_US/send.html?n=10086&m=x")
    assert said(screen) == [
        "send.html refused: wrong user or password, as user 'root'",
        "status.xml refused: wrong user or password, as user 'root'",
        "send.html refused: no user and password",
    ]


async def test_a_password_of_ones_own_is_not_shown(screen: Screen) -> None:
    """The address of send.html has the default password, which is no secret, and no other."""
    assert "p=goip&" in screen.heading()[-1]
    screen.web.password = "my-own"
    assert "my-own" not in "".join(screen.heading())
    assert "p=PASSWORD&" in screen.heading()[-1]


async def get(url: str) -> str:
    answer = await asyncio.to_thread(urllib.request.urlopen, url, timeout=LIMIT)
    with answer:
        return str(answer.read().decode())


def start(log: Path, state: Path, server: str) -> "subprocess.Popen[bytes]":
    """The command on any ports, and its output in a file."""
    words = ("--lines", "2", "--server", server, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "pbxguard", "lab", "goip", "--no-sip", *words],
            stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"PBXGUARD_STATE": str(state)},
        )  # fmt: skip


async def test_without_a_terminal_each_change_is_a_line(tmp_path: Path) -> None:
    """A log says what changed on a line, what the printed address of send.html did, and who was refused."""
    log = tmp_path / "log"
    async with SmsServer("127.0.0.1:0") as server:
        process = start(log, tmp_path, "{}:{}".format(*server.address))

        async def until(words: str) -> None:
            await wait_for(lambda: words in log.read_text(), LIMIT, f"{words!r} in the log")

        try:
            for line in (1, 2):
                await until(f"line {line}  the SMS server answers")
            url = next(line for line in log.read_text().splitlines() if line.startswith("a text: ")).split()[-1]
            assert (await get(url)).startswith("Sending,L1 Send SMS to:13957102002")
            await until("line 1  text by send.html from 13957102001 to 13957102002: “hello”")
            await until("line 1  text to 13957102002: delivered")
            await until("line 2  text by GSM from 13957102001 to 13957102002: “hello”")
            assert await get(url.replace("p=goip", "p=wrong")) == "ERROR,user or password error\n"
            await until("send.html refused: wrong user or password, as user 'admin'")
            await server.send(server.lines["goip-2"], "goip", "10086", "by datagram")
            await until("line 2  text by UDP from 13957102002 to 10086: “by datagram”")
            process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(process.wait, LIMIT) == 0
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)
