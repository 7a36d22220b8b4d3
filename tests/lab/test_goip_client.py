"""A public SMS server and client for GOIP gateways, npm's goip, talks to the lab's gateway as to a device."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pbxguard.lab.goip.box import Box, LinePlan
from pbxguard.lab.goip.control import Device, steady_clock
from pbxguard.lab.goip.endpoint import Timing
from pbxguard.lab.goip.mobile import MobileNetwork
from pbxguard.lab.goip.protocol import Identity
from pbxguard.lab.goip.sims import SimTable
from pbxguard.lab.goip.web import Web
from pbxguard.lab.waiting import wait_for

CLIENT = Path(__file__).parent / "goip-client"
LIMIT = 15.0
_NO_REGISTRY = re.compile(r"ENOTFOUND|ECONNREFUSED|ECONNRESET|ETIMEDOUT|EAI_AGAIN|ENETUNREACH|E40[134]|E5\d\d")
#: Its second is one whose hexadecimal form has letters: goip's XML parser makes a number of an id without.
START = datetime.fromtimestamp(0x6A52ACC8, UTC)


@pytest.fixture(name="node", scope="module")
def _node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where npm's goip is installed, at the versions that the lock file says."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"npm goip client: no {missing[0]} here; install Node.js (apt-get install nodejs npm)")
    folder = tmp_path_factory.mktemp("goip-client")
    for file in CLIENT.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    done = subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1", "--loglevel=error"],
        cwd=folder, capture_output=True, text=True, timeout=90, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode and _NO_REGISTRY.search(done.stderr):
        pytest.skip("npm goip client: no npm registry answers; set npm's registry to one that does")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


class Server:
    """npm's goip as a process, and what it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []

    async def read(self) -> None:
        assert self.process.stdout
        while line := await self.process.stdout.readline():
            if line.startswith(b"{"):
                self.lines.append(json.loads(line))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line.get("type") == kind]


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Server]:
    process = await asyncio.create_subprocess_exec(
        "node", "server.js", cwd=folder, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    server = Server(process)
    reading = asyncio.create_task(server.read())
    try:
        await wait_for(lambda: bool(server.lines), LIMIT, "npm's goip to listen")
        yield server
    finally:
        assert process.stdin
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), LIMIT)
        finally:
            if process.returncode is None:
                process.kill()
            await reading


def device(server: str, network: MobileNetwork | None = None) -> Device:
    box = Box([LinePlan(), LinePlan()], SimTable.fictional(2), clock=steady_clock(START))
    identities = [Identity(f"goip-{n}", "goip-pw") for n in (1, 2)]
    network = network or MobileNetwork(sending=0.05, report=0.05)
    timing = Timing(keepalive=0.2, resend=0.3)
    return Device(box, network, identities, server=server, listen="127.0.0.1:0", timing=timing)


async def sent(folder: Path, *words: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        "node", "send.js", *words, cwd=folder, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), LIMIT)
    found: dict[str, Any] = json.loads(out)
    return found


async def test_npm_goip_registers_the_lines_and_is_told_everything(node: Path) -> None:
    """The SMS server of npm's goip: keepalives of both lines, a text with its umlauts, a call's STATE, RECORD
    and HANGUP, and it acknowledges each, so that none is lost.
    """
    async with running(node) as server, device(f"127.0.0.1:{server.lines[0]['port']}") as gateway:
        first, second = gateway.endpoints
        await wait_for(lambda: first.logged_in and second.logged_in, LIMIT, "both lines to be registered")
        assert {line["id"] for line in server.of("Req")} == {"goip-1", "goip-2"}
        assert server.of("Req")[0]["gsm_status"] == "login"  # it lowers everything
        assert server.of("Req")[0]["imsi"].startswith("00101")

        gateway.text_arrives(1, "+8613513415667", "Grüße, 你好; two: parts")
        await wait_for(lambda: bool(server.of("Receive")), LIMIT, "the text")
        received = server.of("Receive")[0]
        assert (received["srcnum"], received["password"]) == ("+8613513415667", "goip-pw")
        assert received["msg"].startswith("grüße, 你好")  # it splits at every semicolon

        assert gateway.box.incoming(2, "13800138000")
        gateway.box.connected(2)
        gateway.box.hung_up(2)
        await wait_for(lambda: bool(server.of("Hengup")), LIMIT, "the hang-up")  # its own spelling
        states = [line["gsm_remain_state"] for line in server.of("State")]
        assert states[:2] == ["incoming:13800138000", "active"]
        assert [(line["dir"], line["num"]) for line in server.of("Record")] == [("1", "13800138000")]
        assert server.of("Hengup")[0]["num"] == "13800138000,cause:normal call clearing"
        await wait_for(lambda: second.counters.acknowledged == 5, LIMIT, "five acknowledgements")
        assert (first.counters.acknowledged, first.counters.lost, second.counters.lost) == (1, 0, 0)


async def test_npm_goip_sends_a_text_over_udp(node: Path) -> None:
    """The client of npm's goip: its bulk session ends with OK and the sms_no, the network has the text, and the
    delivery report goes to the server.
    """
    async with running(node) as server, device(f"127.0.0.1:{server.lines[0]['port']}") as gateway:
        port = str(gateway.address(2)[1])
        answer = await sent(node, "udp", port, "goip-pw", "10086", "hello from node")
        text = gateway.network.sent[-1]
        assert (text.line, text.to, text.body) == (2, "10086", "hello from node")
        assert (answer["telid"], answer["sms_no"]) == ("1", str(text.number))
        await wait_for(lambda: bool(server.of("Deliver")), LIMIT, "the delivery report")
        report = server.of("Deliver")[0]
        assert (report["sms_no"], report["state"], report["num"]) == (str(text.number), "0", "10086")


async def test_npm_goip_is_told_of_a_wrong_password_and_of_a_refused_text(node: Path) -> None:
    """The client fails with the gateway's own ERROR: PASSWORD, and the error status of the mobile network."""
    network = MobileNetwork(sending=0.05, refuses=lambda number: 500 if number == "10010" else 0)
    async with device("127.0.0.1:44444", network) as gateway:
        port = str(gateway.address(1)[1])
        wrong = await sent(node, "udp", port, "wrong", "10086", "hello")
        refused = await sent(node, "udp", port, "goip-pw", "10010", "hello")
        assert re.fullmatch(r"sendAuthRequest: ERROR \d+ PASSWORD\n", wrong["failed"])
        assert re.fullmatch(r"sendNumberRequest: ERROR \d+ 1 errorstatus:500\n", refused["failed"])
        assert not gateway.network.sent


async def test_what_npm_goip_cuts_off_is_not_invented(node: Path) -> None:
    """The client cuts a datagram with other than ASCII in it at its number of characters: the gateway sends what
    came, and the session goes on.
    """
    async with device("127.0.0.1:44444") as gateway:
        answer = await sent(node, "udp", str(gateway.address(1)[1]), "goip-pw", "10086", "abc你好")
        assert answer["telid"] == "1"
        body = gateway.network.sent[-1].body
        assert body.startswith("abc")
        assert body != "abc你好"


async def test_npm_goip_sends_a_text_over_http(node: Path) -> None:
    """The client over the pages: send.html takes any text, send_status.xml says DONE; a wrong password fails."""
    async with device("127.0.0.1:44444") as gateway, Web(gateway, "127.0.0.1:0", "admin", "web-pw") as web:
        url = "http://{}:{}".format(*web.address())
        answer = await sent(node, "http", url, "2", "admin", "web-pw", "+8610086", "你好 & <bye>")
        assert (answer["status"], answer["raw"]) == ("send", f"Sending,L2 Send SMS to:+8610086; ID:{answer['id']}")
        assert int(answer["id"], 16) - START.timestamp() < timedelta(minutes=2).total_seconds()
        assert gateway.network.sent[-1].body == "你好 & <bye>"
        wrong = await sent(node, "http", url, "2", "admin", "wrong", "10086", "hello")
        assert wrong["failed"].strip() == "ERROR,user or password error"
