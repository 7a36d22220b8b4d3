"""The gateway on real sockets: UDP ports, keepalive and resend by the clock, HTTP pages, and what it must survive."""

import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pbxguard.errors import BadInput, ServiceUnavailable
from pbxguard.lab.goip.address import lab_address
from pbxguard.lab.goip.box import Box, LinePlan
from pbxguard.lab.goip.control import Device, steady_clock
from pbxguard.lab.goip.endpoint import Address, Timing
from pbxguard.lab.goip.mobile import Arrived, Happened, MobileNetwork, Report, Sent
from pbxguard.lab.goip.protocol import Identity, read_notice
from pbxguard.lab.goip.sims import SimTable
from pbxguard.lab.goip.web import MAX_CONNECTIONS, Web
from pbxguard.lab.waiting import wait_for

LIMIT = 10.0


class Peer(asyncio.DatagramProtocol):
    """An SMS server or client on a real socket: what it got, from where."""

    def __init__(self) -> None:
        self.got: list[tuple[bytes, Address]] = []
        self.answers = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    @property
    def address(self) -> str:
        return "{}:{}".format(*self.transport.get_extra_info("sockname"))

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self.got.append((data, addr))
        found = read_notice(data)
        if not self.answers or found is None:
            return
        verb, number, _ = found
        self.transport.sendto(
            f"reg:{number};status:0;".encode() if verb == "req" else f"{verb} {number} OK".encode(), addr
        )

    def of(self, verb: str) -> list[tuple[int, dict[str, str], Address]]:
        read = [(read_notice(data), source) for data, source in self.got]
        return [(found[1], found[2], source) for found, source in read if found and found[0] == verb]


async def peer() -> Peer:
    _, protocol = await asyncio.get_running_loop().create_datagram_endpoint(Peer, local_addr=("127.0.0.1", 0))
    return protocol


@pytest.fixture(name="server")
async def _server() -> AsyncIterator[Peer]:
    server = await peer()
    yield server
    server.transport.close()
    await asyncio.sleep(0)


@pytest.fixture(name="client")
async def _client() -> AsyncIterator[Peer]:
    client = await peer()
    yield client
    client.transport.close()
    await asyncio.sleep(0)


def make(server: str, *, lines: int = 2, timing: Timing | None = None, **network: Any) -> Device:
    box = Box([LinePlan()] * lines, SimTable.fictional(lines), clock=steady_clock())
    return Device(
        box,
        MobileNetwork(**({"sending": 0.05, "report": 0.05} | network)),
        [Identity(f"goip-{n + 1}", "pw") for n in range(lines)],
        server=server,
        listen="127.0.0.1:0",
        timing=timing or Timing(keepalive=0.1, resend=0.1),
    )


async def asked(client: Peer, device: Device, data: bytes, line: int = 1) -> bytes:
    """The next answer to a datagram."""
    before = len(client.got)
    client.transport.sendto(data, device.address(line))
    await wait_for(lambda: len(client.got) > before, LIMIT, f"an answer to {data[:40]!r}", every=0.005)
    answer, source = client.got[before]
    assert source == device.address(line)
    return answer


# -- UDP --------------------------------------------------------------------------------------------------


async def test_each_line_has_its_port_and_registers(server: Peer) -> None:
    """32 lines on 32 ports keep telling the server that they are there; answers to the source register them all."""
    async with make(server.address, lines=32) as device:
        await wait_for(lambda: all(e.logged_in for e in device.endpoints), LIMIT, "32 lines to be registered")
        await wait_for(lambda: len(server.of("req")) >= 96, LIMIT, "three keepalives of each line")
        sources = {(fields["id"], source) for _, fields, source in server.of("req")}
        assert sources == {(f"goip-{n}", device.address(n)) for n in range(1, 33)}


async def test_a_server_that_comes_late_gets_everything(server: Peer) -> None:
    """Unanswered notices are resent 3 times; one that answers the second stops the resending."""
    server.answers = False
    async with make(server.address, timing=Timing(keepalive=30, resend=0.1)) as device:
        device.text_arrives(2, "10086", "first")
        await wait_for(lambda: len(server.of("RECEIVE")) == 4, LIMIT, "three resends")
        await wait_for(lambda: device.endpoints[1].counters.lost == 1, LIMIT, "the notice to be given up")
        device.text_arrives(2, "10086", "second")
        await wait_for(lambda: len(server.of("RECEIVE")) == 6, LIMIT, "one resend")
        server.answers = True
        await wait_for(lambda: device.endpoints[1].counters.acknowledged == 1, LIMIT, "the acknowledgement")
        assert {fields["msg"] for _, fields, _ in server.of("RECEIVE")} == {"first", "second"}


async def test_no_server_at_all() -> None:
    """Where nobody listens (ICMP unreachable), the lines go on and answer."""
    free = await peer()
    address = free.address
    free.transport.close()
    await asyncio.sleep(0)
    client = await peer()
    async with make(address) as device:
        await wait_for(lambda: device.endpoints[0]._count >= 5, LIMIT, "five keepalives into nowhere")
        assert await asked(client, device, b"get_gsm_state 1 pw") == b"get_gsm_state 1 IDLE"
    client.transport.close()


async def test_a_bulk_session_over_the_wire(server: Peer, client: Peer) -> None:
    """MSG, PASSWORD, SEND, WAIT, OK, DONE on real sockets; the text is in the network, its report at the server."""
    async with make(server.address) as device:
        text = "你好, two parts; and more"
        body = text.encode()
        assert await asked(client, device, b"MSG 7 %d %b\n" % (len(body), body)) == b"PASSWORD 7\n"
        assert await asked(client, device, b"PASSWORD 7 pw\n") == b"SEND 7\n"
        assert await asked(client, device, b"SEND 7 1 +8613800138000\n") == b"WAIT 7 1\n"
        await wait_for(lambda: client.got[-1][0] == b"OK 7 1 1\n", LIMIT, "OK")
        assert await asked(client, device, b"DONE 7\n") == b"DONE 7\n"
        assert [sent.body for sent in device.network.sent] == [text]
        await wait_for(lambda: bool(server.of("DELIVER")), LIMIT, "the delivery report")


async def test_a_text_from_line_to_line(server: Peer) -> None:
    """A text to the number of another SIM of the box arrives there, as RECEIVE from the sender's number."""
    async with make(server.address) as device:
        seen: list[Happened] = []
        device.watch(seen.append)
        text = device.send(1, "+86" + device.box.sims[1].msisdn, "hello neighbour")
        await wait_for(lambda: bool(server.of("RECEIVE")), LIMIT, "the text")
        _, fields, source = server.of("RECEIVE")[0]
        assert (fields["id"], fields["srcnum"], fields["msg"]) == (
            "goip-2", device.box.sims[0].msisdn, "hello neighbour",
        )  # fmt: skip
        assert source == device.address(2)
        await wait_for(lambda: len(seen) == 3, LIMIT, "all that is told to who watches")
        msisdns = [sim.msisdn for sim in device.box.sims]
        assert seen == [Sent(text, 0), Report(text, 0), Arrived(msisdns[1], msisdns[0], "hello neighbour")]


async def test_a_text_that_is_not_delivered_does_not_arrive(server: Peer) -> None:
    """Its report has the network's TP-Status, and the other SIM gets no RECEIVE."""
    async with make(server.address, status=lambda _number: 69) as device:
        device.send(1, device.box.sims[1].msisdn, "hello")
        await wait_for(lambda: bool(server.of("DELIVER")), LIMIT, "the report")
        assert server.of("DELIVER")[0][1]["state"] == "69"
        assert device.network.next_due() is None
        assert not server.of("RECEIVE")


async def test_what_happened_before_the_ports_were_open_is_told_then(server: Peer) -> None:
    """A call that rings while the gateway starts is no error; its STATE is sent like one that was lost."""
    device = make(server.address, timing=Timing(keepalive=30, resend=0.1))
    device.box.incoming(2, "10086")
    async with device:
        await wait_for(lambda: bool(server.of("STATE")), LIMIT, "the notice")
        assert server.of("STATE")[0][1]["gsm_remain_state"] == "INCOMING:10086"


async def test_the_clock_is_the_tests(server: Peer) -> None:
    """With a clock that stands still nothing is resent; moved on by hand, all that is due is sent soon."""
    now = datetime(2026, 11, 21, tzinfo=UTC)
    box = Box([LinePlan()], SimTable.fictional(1), clock=lambda: now)
    server.answers = False
    async with Device(box, MobileNetwork(), [Identity("goip-1", "pw")], server=server.address, listen="127.0.0.1:0"):
        await wait_for(lambda: len(server.of("req")) == 1, LIMIT, "the first keepalive")
        for count in range(2, 4):
            now += timedelta(seconds=30)
            await wait_for(lambda count=count: len(server.of("req")) == count, LIMIT, "the next keepalive")  # type: ignore[misc]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(min_size=1, max_size=5000), min_size=1, max_size=20))
def test_hostile_datagrams_never_stop_it(datagrams: list[bytes]) -> None:
    """After any datagrams on a real socket, the next command is answered."""

    async def attack() -> None:
        client = await peer()
        async with make("127.0.0.1:44444", lines=1) as device:
            for data in datagrams:
                client.transport.sendto(data, device.address(1))
            for data in (b"MSG 1 5 hello\n", b"PASSWORD 1 pw\n", b"SEND 1 1 10086\n"):
                client.transport.sendto(data[: len(datagrams[0]) % len(data)], device.address(1))
            client.transport.sendto(b"get_imei 424242 pw", device.address(1))
            await wait_for(
                lambda: any(data.startswith(b"get_imei 424242 ") for data, _ in client.got),
                LIMIT,
                "an answer",
                every=0.001,
            )
        client.transport.close()
        await asyncio.sleep(0)

    asyncio.run(attack())


async def test_a_port_that_is_taken_is_named(server: Peer) -> None:
    """One line says which line, which port and what to do; nothing stays open."""
    box = Box([LinePlan()], SimTable.fictional(1), clock=steady_clock())
    device = Device(box, MobileNetwork(), [Identity("g", "p")], server="127.0.0.1:1", listen=server.address)
    with pytest.raises(ServiceUnavailable, match=rf"line 1 cannot listen on {re.escape(server.address)}.*--listen"):
        await device.__aenter__()


@pytest.mark.parametrize(
    "text", ["0.0.0.0:1", "10.0.0.1:44444", "192.168.1.1:1", "8.8.8.8:53", "[::1]:1", "198.20.0.1:1"]
)
def test_it_stays_in_the_lab(text: str) -> None:
    """Addresses outside loopback and 198.18.0.0/15 are refused for server, lines and pages."""
    with pytest.raises(BadInput, match=r"outside the lab|no IPv4 address"):
        lab_address(text, "--server")
    with pytest.raises(BadInput):
        make(text)
    device = make("127.0.0.1:44444")
    with pytest.raises(BadInput):
        Web(device, text, "admin", "pw")
    assert lab_address("localhost:80", "x") == ("127.0.0.1", 80)
    assert lab_address("198.19.255.254:80", "x") == ("198.19.255.254", 80)


@pytest.mark.parametrize(
    "text", ["127.0.0.1", "127.0.0.1:x", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:-1", ":80", ""]
)
def test_what_is_no_address_is_named(text: str) -> None:
    """Without a host or a port in range it is a usage error."""
    with pytest.raises(BadInput):
        lab_address(text, "--server")


# -- HTTP -------------------------------------------------------------------------------------------------


@pytest.fixture(name="web")
async def _web(server: Peer) -> AsyncIterator[Web]:
    async with make(server.address) as device, Web(device, "127.0.0.1:0", "admin", "web-pw") as web:
        yield web


async def get(web: Web, target: str, **headers: str) -> tuple[int, str]:
    """Status and body of a page, fetched by the standard library's client."""
    request = urllib.request.Request("http://{}:{}{}".format(*web.address(), target), headers=headers)

    def fetch() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=LIMIT) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(fetch)


async def raw(web: Web, data: bytes) -> bytes:
    """What comes back for these bytes, until the gateway closes."""
    reader, writer = await asyncio.open_connection(*web.address())
    writer.write(data)
    writer.write_eof()
    try:
        async with asyncio.timeout(LIMIT):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


PAGES = "/default/en_US"
LOGIN = "u=admin&p=web-pw"


async def test_send_html_and_its_status(web: Web) -> None:
    """Sending with an id of 8 hexadecimal digits; STARTED, a second text gets busy, then DONE; the text as it was."""
    web.device.network.sending = 0.3
    status, body = await get(web, f"{PAGES}/send.html?{LOGIN}&l=2&n=%2B8613800138000&m=a%26b%3Cc%3E+%E4%BD%A0")
    assert (status, body[:-9]) == (200, "Sending,L2 Send SMS to:+8613800138000; ID:")
    identity = body.strip()[-8:]
    assert int(identity, 16)
    _, xml = await get(web, f"{PAGES}/send_status.xml?{LOGIN}")
    assert f"<id2>{identity}</id2>\n<status2>STARTED</status2>\n<error2></error2>" in xml
    assert "<id1></id1>\n<status1></status1>" in xml
    assert (await get(web, f"{PAGES}/send.html?{LOGIN}&l=2&n=10086&m=x"))[1] == "ERROR,L2 busy\n"
    await wait_for(lambda: bool(web.device.network.sent), LIMIT, "the text to be sent")
    _, xml = await get(web, f"{PAGES}/send_status.xml?{LOGIN}")
    assert "<status2>DONE</status2>\n<error2></error2>" in xml
    assert web.device.network.sent[0].body == "a&b<c> 你"


@pytest.mark.parametrize("path", ["", "/", "/default/en_US", "/default/en_US/", "/default/zh_CN/?u=x"])
async def test_a_bare_address_lists_the_pages(web: Web, path: str) -> None:
    """Whoever opens `/` or a folder is told of every page and its parameters, without a login or a secret."""
    status, body = await get(web, path)
    assert status == 200
    for page in ("send.html?u=&p=&l=LINE&n=NUMBER&m=TEXT", "send_status.xml?u=&p=", "status.xml?u=&p=[&type=list]"):
        assert page in body
    assert "web-pw" not in body


@pytest.mark.parametrize("path", ["/default", "/default/en_US/x.html", "/send.html", "/default/en_US//send.html"])
async def test_what_is_no_page_says_where_they_are(web: Web, path: str) -> None:
    """404, as before, and where the list is."""
    assert await get(web, path) == (404, "no such page; / lists them\n")


async def test_a_text_that_the_network_refuses(web: Web) -> None:
    """DONE with its error, as devices say it."""
    web.device.network.refuses = lambda _number: 500
    await get(web, f"{PAGES}/send.html?{LOGIN}&n=10086&m=x")
    await wait_for(lambda: web._sendings[1].state == "DONE", LIMIT, "the text to fail")
    assert "<status1>DONE</status1>\n<error1>500</error1>" in (await get(web, f"{PAGES}/send_status.xml?{LOGIN}"))[1]


async def test_status_xml(web: Web) -> None:
    """Every line's state, one element a line; type=list is the short form, HTTP Basic is a login too."""
    web.device.box.registered(2, up=True)
    web.device.box.incoming(1, "10086")
    _, brief = await get(web, f"{PAGES}/status.xml?type=list&{LOGIN}")
    rows = brief.splitlines()
    for row in (
        "<l1_gsm_sim>Y</l1_gsm_sim>", "<l1_gsm_status>Y</l1_gsm_status>", "<l1_line_state>INCOMING</l1_line_state>",
        "<l1_gsm_cur_oper>CHINA MOBILE</l1_gsm_cur_oper>", "<l1_status_line>N</l1_status_line>",
        "<l2_status_line>Y</l2_status_line>", "<l1_gsm_signal>19</l1_gsm_signal>",
    ):  # fmt: skip
        assert row in rows
    assert "imsi" not in brief
    basic = "Basic " + base64.b64encode(b"admin:web-pw").decode()
    line = web.device.box.line(1)
    line.placed = replace(line.placed, sim=replace(line.sim, operator="A&B <C>"))
    _, long = await get(web, f"{PAGES}/status.xml", Authorization=basic)
    assert ET.fromstring(long).findtext("l1_gsm_cur_oper") == "A&B <C>"
    assert f"<l1_gsm_imsi>{web.device.box.sims[0].imsi}</l1_gsm_imsi>" in long


@pytest.mark.parametrize(
    "login", ["", "u=admin", "u=admin&p=", "u=admin&p=web-pw2", "u=Admin&p=web-pw", "u=%FF&p=%00"]
)
async def test_no_page_without_the_password(web: Web, login: str) -> None:
    """send.html says so in its body with status 200, as devices do; the XML pages are 401; no text is sent."""
    assert await get(web, f"{PAGES}/send.html?{login}&n=10086&m=x") == (200, "ERROR,user or password error\n")
    for page in ("send_status.xml", "status.xml"):
        assert (await get(web, f"{PAGES}/{page}?{login}"))[0] == 401
    assert (await get(web, f"{PAGES}/status.xml", Authorization="Basic !!"))[0] == 401
    assert web.device.network.next_due() is None


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("l=3&n=10086&m=x", "ERROR,no such line"),
        ("l=x&n=10086&m=x", "ERROR,no such line"),
        ("n=anna&m=x", "ERROR,invalid phone number"),
        ("m=x", "ERROR,invalid phone number"),
        ("n=10086&m=", "ERROR,no text"),
        ("n=10086&m=" + "%E4%BD%A0" * 1001, "ERROR,no text, or one longer"),
    ],
)
async def test_bad_texts_are_refused(web: Web, query: str, says: str) -> None:
    """No line, no number, no or too long a text: ERROR and its reason."""
    assert (await get(web, f"{PAGES}/send.html?{LOGIN}&{query}"))[1].startswith(says)


async def test_a_line_out_of_the_network_says_so(web: Web) -> None:
    """GSM logout, as devices say it."""
    web.device.box.enable(1, on=False)
    assert (await get(web, f"{PAGES}/send.html?{LOGIN}&n=10086&m=x"))[1] == "ERROR,L1 GSM logout\n"


HOSTILE = [
    b"",
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET /x HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x00\xa5" * 50,
    b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    b"POST /default/en_US/send.html HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 40_000,
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET //evil/../send.html?%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET http://[/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /default/en_US/status.xml?" + b"a=b&" * 100 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /x HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade, close\r\n\r\n",
]


async def test_hostile_requests_never_stop_the_pages(web: Web) -> None:
    """Malformed, oversized and cut-off requests get an error or a closed connection; the pages go on."""
    for data in HOSTILE:
        answer = await raw(web, data)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), data[:40]
    good = b"GET /default/en_US/status.xml?u=admin&p=web-pw HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    for offset in range(len(good)):
        answer = await raw(web, good[:offset])
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert (await raw(web, good)).startswith(b"HTTP/1.1 200")
    assert not web._open


async def test_a_request_byte_by_byte_and_two_on_one_connection(web: Web) -> None:
    """A request is read in any pieces, and a connection serves more than one."""
    reader, writer = await asyncio.open_connection(*web.address())
    for _ in range(2):
        for byte in b"GET /default/en_US/send_status.xml?u=admin&p=web-pw HTTP/1.1\r\nHost: x\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
        async with asyncio.timeout(LIMIT):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            length = next(line for line in head.lower().splitlines() if line.startswith(b"content-length"))
            await reader.readexactly(int(length.split()[1]))
    writer.close()


async def test_who_holds_connections_does_not_get_more(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections past the bound are closed at once; silent ones end after their time, then there is room again."""
    monkeypatch.setattr("pbxguard.lab.goip.web.IDLE_S", 0.5)
    held = [await asyncio.open_connection(*web.address()) for _ in range(MAX_CONNECTIONS)]
    await wait_for(lambda: len(web._open) == MAX_CONNECTIONS, LIMIT, "the connections to be taken")
    assert await raw(web, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == b""
    await wait_for(lambda: not web._open, LIMIT, "silent connections to end")
    assert (await get(web, f"{PAGES}/status.xml?{LOGIN}"))[0] == 200
    for _, writer in held:
        writer.close()


# -- command line -------------------------------------------------------------------------------------------


def run(*words: str, state: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "pbxguard", "lab", "goip", "--no-sip", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PBXGUARD_STATE": str(state), "COLUMNS": "200"},
    )  # fmt: skip


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
async def test_the_command_runs_until_it_is_ended(tmp_path: Path, server: Peer, ending: signal.Signals) -> None:
    """`lab goip --json` says where its lines are, registers them, says so, and ends with 0 at SIGINT and SIGTERM."""
    words = ("--lines", "3", "--server", server.address, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--json")
    process = run(
        *words, "--id", "box", "--password", "pw", "--mode", "trunk", "--profile", "generic", state=tmp_path
    )
    try:
        assert process.stdout
        first = json.loads(await asyncio.to_thread(process.stdout.readline))
        assert (first["profile"], first["mode"], first["server"]) == ("generic", "trunk", server.address)
        await wait_for(lambda: len(server.of("req")) == 3, LIMIT, "the keepalives")
        shown = first
        while not all(line["sms_server"] for line in shown["lines"]):
            shown = json.loads(await asyncio.to_thread(process.stdout.readline))
        assert [line["id"] for line in shown["lines"]] == ["box-1", "box-2", "box-3"]
        assert {"{}:{}".format(*source) for _, _, source in server.of("req")} == {
            line["udp"] for line in first["lines"]
        }
        process.send_signal(ending)
        assert await asyncio.to_thread(process.wait, LIMIT) == 0
        assert process.stderr
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--server", "192.168.1.1:44444"), "outside the lab"),
        (("--http", "0.0.0.0:80"), "outside the lab"),
        (("--profile", "nokia"), "there are dbl, generic"),
        (("--id", "a;b"), "id 'a;b"),
        (("--password", ""), "password of a line"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    """One line and exit code 2."""
    process = run(*words, state=tmp_path)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert says in errors
    assert len(errors.splitlines()) == 1
