"""The UDP SMS/control protocol: datagrams whole, cut at every offset and made up; what a line says and answers."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbxguard.errors import BadInput
from pbxguard.lab.goip import commands
from pbxguard.lab.goip.box import Box, DropWanted, Event, LinePlan, State
from pbxguard.lab.goip.endpoint import Address, Endpoint, Outgoing
from pbxguard.lab.goip.mobile import MobileNetwork
from pbxguard.lab.goip.protocol import (
    MAX_DATAGRAM,
    NOTICES,
    Ack,
    Bulk,
    Command,
    Done,
    Identity,
    Message,
    Password,
    Registered,
    Submit,
    parse,
    read_notice,
)
from pbxguard.lab.goip.sims import Rotation, RotationKind, SimTable

SERVER: Address = ("127.0.0.1", 44444)
CLIENT: Address = ("127.0.0.1", 50000)
NOW = 1_270_197_307.0

# -- bytes -> values ----------------------------------------------------------------------------------------

#: Datagrams of the vendor's specification and of public servers' code, and what they mean.
MESSAGES: list[tuple[bytes, Message]] = [
    (b"reg:10;status:0;", Registered(10, 0)),
    (b"reg:100;status:-1;", Registered(100, -1)),
    (b"reg:3;status:200;v:1;", Registered(3, 200)),  # goip-bridge
    (b"req:27;status:200;", Registered(27, 200)),  # node-goip
    (b"RECEIVE 1270197307 OK\n", Ack("RECEIVE", 1270197307, ok=True, text="OK")),
    (b"RECEIVE 1270197307 ERROR no such id", Ack("RECEIVE", 1270197307, ok=False, text="ERROR no such id")),
    (b"STATE -3 OK", Ack("STATE", -3, ok=True, text="OK")),
    (b"USSN 100 DISABLE", Ack("USSN", 100, ok=False, text="DISABLE")),
    (b"MSG 11 5 hello\n", Bulk(11, "hello")),
    (b"MSG 11 6 hello\n", Bulk(11, "hello\n")),  # the line end is counted: it is a part of the text
    (b"MSG 11 11 two  words \n", Bulk(11, "two  words ")),
    ("MSG 11 6 你好\n".encode(), Bulk(11, "你好")),
    ("MSG 11 2 你好\n".encode(), Bulk(11, "你好")),  # counted in characters, as node-goip does
    ("MSG 11 2 你好".encode()[:-1], Bulk(11, "你\N{REPLACEMENT CHARACTER}")),  # and cut there
    (b"MSG 11 0 \n", Bulk(11, "")),
    (b"MSG 11 3000 " + b"x" * 3000 + b"\n", Bulk(11, "x" * 3000)),
    (b"MSG 11 3001 " + b"x" * 3001 + b"\n", Bulk(11, None)),
    (b"PASSWORD 11 password1\n", Password(11, "password1")),
    (b"PASSWORD 11\n", Password(11, "")),
    (b"PASSWORD 11 two words\n", Password(11, "")),
    (b"SEND 11 1 +8613800138000\n", Submit(11, 1, "+8613800138000")),
    (b"SEND 11 1 anna\n", Submit(11, 1, "")),
    (b"DONE 11 \n", Done(11)),  # with the blank of the specification's example
    (b"USSD 111 password1 557*0112220248*10#", Command("USSD", 111, ("password1", "557*0112220248*10#"))),
    (b"get_gsm_num 879901 password1", Command("get_gsm_num", 879901, ("password1",))),
    (b"CF 5 pw 2 3 13800138000 20", Command("CF", 5, ("pw", "2", "3", "13800138000", "20"))),
]

NO_MESSAGES = [
    b"",
    b"\n",
    b"MSG",
    b"MSG 1",
    b"MSG 1 5",
    b"MSG x 5 hello",
    b"MSG 1 -5 hello",
    b"MSG 1 5x hello",
    b"MSG 1 " + b"9" * 400 + b" x",
    b"MSG " + b"1" * 400 + b" 5 hello",
    b"SEND 1 2",
    b"SEND 1 x 10086",
    b"SEND 1 2 10086 3",
    b"DONE",
    b"DONE x",
    b"RECEIVE x OK",
    b"RECEIVE 1",
    b"get_imei",
    b"get_imei \xff\xff pw",
    b"get_imei 1 p\x00w",
    b"get_imei 1 " + b"x" * 65,
    b"get_imei 1 " + b"x " * 9 + b"x",
    b"reg:1",
    b"reg:;status:0;",
    b"reg:1;status:0;\xff",
    b"\xd9\xa1 1 2",
    b"MSG 1 5 " + b"x" * MAX_DATAGRAM,
]


@pytest.mark.parametrize(("data", "message"), MESSAGES)
def test_each_form_of_the_specification_is_read(data: bytes, message: Message) -> None:
    """The vendor's examples and the deviations of public servers give their values."""
    assert parse(data) == message


@pytest.mark.parametrize("data", NO_MESSAGES, ids=lambda data: repr(data[:30]))
def test_what_is_no_message_is_none(data: bytes) -> None:
    """Malformed, oversized and undecodable datagrams are None, not an exception."""
    assert parse(data) is None


@pytest.mark.parametrize("data", [data for data, _ in MESSAGES if len(data) < 200])
def test_a_datagram_cut_at_any_offset_is_read_or_left(data: bytes) -> None:
    """Cut anywhere, from either end, or with any one byte in its place, it is a value or None."""
    for offset in range(len(data) + 1):
        for cut in (
            data[:offset],
            data[offset:],
            *(data[:offset] + bytes([b]) + data[offset + 1 :] for b in range(256)),
        ):
            message = parse(cut)
            assert message is None or isinstance(message, Message)


@given(st.binary(max_size=MAX_DATAGRAM + 100))
def test_any_bytes_are_read_or_left(data: bytes) -> None:
    """No bytes raise."""
    assert parse(data) is None or len(data) <= MAX_DATAGRAM


@given(st.text(max_size=900).filter(lambda text: text.isprintable()), st.integers(-(2**31), 2**31))
def test_a_text_comes_as_it_was_sent(text: str, sid: int) -> None:
    """Any printable text in a bulk request with its length in bytes is read unchanged."""
    body = text.encode()
    assert parse(b"MSG %d %d %b\n" % (sid, len(body), body)) == Bulk(sid, text if len(body) <= 3000 else None)


@pytest.mark.parametrize(
    ("name", "password"), [("", "x"), ("a;b", "x"), ("a:b", "x"), ("a b", "x"), ("a", "x y"), ("a", "")]
)
def test_ids_and_passwords_that_would_break_a_message_are_refused(name: str, password: str) -> None:
    """An id or a password with a separator in it is a configuration error, and the message does not show it."""
    with pytest.raises(BadInput):
        Identity(name, password)
    assert "secret" not in repr(Identity("goip-1", "secret"))


# -- a line -----------------------------------------------------------------------------------------------


class Rig:
    """A box of three lines whose first line's endpoint is asked; the clock is the test's."""

    def __init__(self, *, ntp: bool = True, rotation: Rotation | None = None, **network: float) -> None:
        self.now = NOW
        self.box = Box(
            [LinePlan()] * 3,
            SimTable.fictional(4),
            clock=lambda: datetime.fromtimestamp(self.now, UTC),
            rotation=rotation,
        )
        self.network = MobileNetwork(sending=network.get("sending", 2.0), report=network.get("report", 3.0))
        self.line = Endpoint(
            self.box, 1, self.network, Identity("goip-1", "pw"), now=self.now, ntp=ntp, sees=lambda a: a == SERVER
        )
        self.to_server: list[bytes] = []
        self.to_client: list[bytes] = []
        self.dropped: list[Event] = []
        self.box.watch(self._event)

    def _event(self, event: Event) -> None:
        if isinstance(event, DropWanted):
            self.dropped.append(event)
        if event.line == 1:
            self._out(self.line.happened(event, self.now))

    def _out(self, outgoing: list[Outgoing]) -> None:
        for data, to in outgoing:
            (self.to_server if to is None else self.to_client).append(data)

    def hear(self, data: bytes, source: Address = CLIENT) -> list[bytes]:
        """What comes back to the source for a datagram."""
        self.to_client.clear()
        self._out(self.line.received(data, source, self.now))
        return list(self.to_client)

    def wait(self, seconds: float, step: float = 0.5) -> list[bytes]:
        """What goes to the server meanwhile; what is pushed to a client is in ``to_client``."""
        self.to_server.clear()
        self.to_client.clear()
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + step, until)
            self.box.tick()
            for happened in self.network.due(self.now):
                self._out(self.line.happened(happened, self.now))
            self._out(self.line.due(self.now))
        return list(self.to_server)

    def session(self, sid: int = 11, text: bytes = b"hello", source: Address = CLIENT) -> None:
        assert self.hear(b"MSG %d %d %b\n" % (sid, len(text), text), source) == [b"PASSWORD %d\n" % sid]
        assert self.hear(b"PASSWORD %d pw\n" % sid, source) == [b"SEND %d\n" % sid]


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    rig._out(rig.line.due(rig.now))
    yield rig
    # Whatever a test has done: the line still answers.
    assert rig.hear(b"get_imei 999 pw") == [b"get_imei 999 " + rig.box.line(1).shown_imei.encode()]


def notices(sent: list[bytes], *verbs: str) -> list[tuple[str, dict[str, str]]]:
    """Those notices among datagrams, without their numbers."""
    read = [found for data in sent if (found := read_notice(data))]
    return [(verb, fields) for verb, _, fields in read if not verbs or verb in verbs]


def test_keepalive(rig: Rig) -> None:
    """One at once and one every 30 s, counted from 1, with every field of a device's capture."""
    found = read_notice(rig.to_server[0])
    assert found is not None
    verb, count, fields = found
    sim = rig.box.sims[0]
    assert (verb, count) == ("req", 1)
    assert fields == {
        "id": "goip-1", "pass": "pw", "num": sim.msisdn, "signal": str(sim.signal), "gsm_status": "LOGIN",
        "voip_status": "LOGOUT", "voip_state": "IDLE", "remain_time": "-1", "imei": sim.imei, "imsi": sim.imsi,
        "iccid": sim.iccid, "pro": sim.operator, "idle": "0", "disable_status": "0", "SMS_LOGIN": "N",
        "SMB_LOGIN": "", "CELLINFO": f"LAC:{sim.cell.lac},CELL ID:{sim.cell.cell_id}", "CGATT": "Y",
    }  # fmt: skip
    assert [read_notice(data)[1] for data in rig.wait(90)] == [2, 3, 4]  # type: ignore[index]


@pytest.mark.parametrize("answer", [b"reg:1;status:0;", b"reg:1;status:200;v:1;", b"req:1;status:200;"])
def test_a_server_is_there_while_it_answers(rig: Rig, answer: bytes) -> None:
    """Any of the three public forms registers the line; three keepalives without an answer end it."""
    assert rig.hear(answer, SERVER) == []
    assert rig.line.logged_in
    assert "SMS_LOGIN:Y" in rig.wait(30)[0].decode()
    rig.wait(90)
    assert not rig.line.logged_in


def test_only_the_server_answers_for_the_server(rig: Rig) -> None:
    """A reg or an OK from another address, for a keepalive not sent yet, or with an error status, does not count."""
    rig.hear(b"reg:1;status:0;", CLIENT)
    rig.hear(b"reg:2;status:0;", SERVER)
    assert not rig.line.logged_in
    rig.hear(b"reg:1;status:0;", SERVER)
    rig.hear(b"reg:1;status:-1;", SERVER)
    assert not rig.line.logged_in


def arrived(rig: Rig, body: str = "just a test", sender: str = "+8613513415667") -> bytes:
    """The RECEIVE of a text that arrives."""
    rig.network.arrive(rig.box.sims[0].msisdn, sender, body, rig.now)
    rig.to_server.clear()
    for happened in rig.network.due(rig.now):
        rig._out(rig.line.happened(happened, rig.now))
    (data,) = rig.to_server
    return data


def test_receive_is_resent_every_3_s_and_3_times(rig: Rig) -> None:
    """The same datagram after 3, 6 and 9 s, then it is lost; the specification's form."""
    first = arrived(rig)
    assert first == b"RECEIVE:1270197307;id:goip-1;password:pw;srcnum:+8613513415667;msg:just a test"
    resent = [rig.wait(1) for _ in range(14)]
    assert [at for at, sent in enumerate(resent, 1) if first in sent] == [3, 6, 9]
    assert (rig.line.counters.resent, rig.line.counters.lost) == (3, 1)


@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        (b"RECEIVE 1270197307 OK\n", (1, 0)),
        (b"RECEIVE 1270197307 ERROR no such id", (0, 1)),
        (b"RECEIVE 1 OK", (0, 0)),
    ],
)
def test_an_answer_ends_the_resending(rig: Rig, answer: bytes, counts: tuple[int, int]) -> None:
    """OK and ERROR end it, the answer to another number does not."""
    first = arrived(rig)
    rig.wait(4)
    rig.hear(answer, SERVER)
    assert (first in rig.wait(10)) == (counts == (0, 0))
    assert (rig.line.counters.acknowledged, rig.line.counters.refused) == counts


def test_a_text_is_the_last_field_and_free(rig: Rig) -> None:
    """Separators, line ends and other scripts in a text reach the server; those in a sender's name are left out."""
    data = arrived(rig, "a;b:c\nmsg:你好", "Bank;msg:evil\r\n")
    found = read_notice(data)
    assert found is not None
    assert found[2]["msg"] == "a;b:c\nmsg:你好"
    assert found[2]["srcnum"] == "Bankmsg:evil"


def test_the_notices_of_calls(rig: Rig) -> None:
    """STATE at each change, RECORD at the answer, HANGUP with its cause, REMAIN after an outgoing call."""
    rig.to_server.clear()
    rig.box.incoming(1, "13800138000")
    rig.box.connected(1)
    rig.box.hung_up(1)
    rig.box.dial("10086")
    rig.box.alerting(1)
    rig.box.connected(1)
    rig.box.hung_up(1, 17)
    told = [(verb, {k: v for k, v in f.items() if k not in ("id", "password")}) for verb, f in notices(rig.to_server)]
    assert told == [
        ("STATE", {"gsm_remain_state": "INCOMING:13800138000"}),
        ("STATE", {"gsm_remain_state": "ACTIVE"}),
        ("RECORD", {"dir": "1", "num": "13800138000"}),
        ("HANGUP", {"num": "13800138000,cause:Normal call clearing"}),
        ("STATE", {"gsm_remain_state": "IDLE"}),
        ("STATE", {"gsm_remain_state": "DIALING:10086"}),
        ("STATE", {"gsm_remain_state": "ALERTING:10086"}),
        ("STATE", {"gsm_remain_state": "CONNECTED:10086"}),
        ("RECORD", {"dir": "2", "num": "10086"}),
        ("HANGUP", {"num": "10086,cause:User busy"}),
        ("REMAIN", {"gsm_remain_time": "-1"}),
        ("STATE", {"gsm_remain_state": "IDLE"}),
    ]
    numbers = [found[1] for data in rig.to_server if (found := read_notice(data))]
    assert numbers == list(range(int(NOW), int(NOW) - 12, -1))  # "count with the current time stamp decreasing"


def test_without_the_time_ids_are_negative_and_an_answer_is_told_twice() -> None:
    """A device whose NTP server does not answer, as NiceLabs notes: servers have to leave out the second RECORD."""
    rig = Rig(ntp=False)
    rig.box.incoming(1, "13800138000")
    rig.box.connected(1)
    numbers = [found[:2] for data in rig.to_server if (found := read_notice(data))]
    assert numbers == [("STATE", 0), ("STATE", -1), ("RECORD", -2), ("RECORD", -3)]
    rig.hear(b"RECORD -3 OK", SERVER)
    assert rig.line.counters.acknowledged == 1


def test_another_sim_is_told_at_once() -> None:
    """A keepalive with the new SIM follows its change."""
    rig = Rig(rotation=Rotation(RotationKind.ROUND_ROBIN))
    rig.box.dial("10086")
    rig.to_server.clear()
    rig.box.hung_up(1)
    found = read_notice(rig.to_server[-1])
    assert found is not None
    assert (found[0], found[2]["imsi"]) == ("req", rig.box.sims[3].imsi)


# -- bulk sessions ------------------------------------------------------------------------------------------


def test_the_session_of_the_specification(rig: Rig) -> None:
    """Its example, step by step: two numbers, WAIT, OK when sent, the report, DONE."""
    rig.session()
    assert rig.hear(b"SEND 11 1 +8613800138000\n") == [b"WAIT 11 1\n"]
    assert rig.hear(b"SEND 11 1 +8613800138000\n") == [b"WAIT 11 1\n"]
    rig.wait(2)
    assert rig.to_client == [b"OK 11 1 1\n"]  # told without being asked, as public servers wait for it
    assert rig.hear(b"SEND 11 1 +8613800138000\n") == [b"OK 11 1 1\n"]
    assert rig.hear(b"SEND 11 2 +8613800138001\n") == [b"WAIT 11 2\n"]
    told = notices(rig.wait(6), "DELIVER")
    assert [(f["sms_no"], f["state"], f["num"]) for _, f in told[:1]] == [("1", "0", "+8613800138000")]
    assert rig.hear(b"DONE 11 \n") == [b"DONE 11\n"]
    assert rig.hear(b"DONE 11\n") == [b"DONE 11\n"]
    assert [text.to for text in rig.network.sent] == ["+8613800138000", "+8613800138001"]
    assert {text.body for text in rig.network.sent} == {"hello"}


def test_a_wrong_password_may_be_tried_again(rig: Rig) -> None:
    """ERROR PASSWORD, and the session waits for the next; nothing is sent before the right one."""
    rig.hear(b"MSG 11 5 hello\n")
    for wrong in (b"PASSWORD 11 wrong\n", b"PASSWORD 11\n", b"PASSWORD 11 pw pw\n", b"PASSWORD 11 \xff\n"):
        assert rig.hear(wrong) == [b"ERROR 11 PASSWORD\n"]
    assert rig.hear(b"SEND 11 1 10086\n") == [b"PASSWORD 11\n"]
    assert rig.hear(b"PASSWORD 11 pw\n") == [b"SEND 11\n"]
    assert rig.network.next_due() is None


def test_a_session_belongs_to_who_began_it(rig: Rig) -> None:
    """Another address cannot use an open session, nor put another text into it, by its id."""
    rig.session()
    other: Address = ("127.0.0.1", 50001)
    assert rig.hear(b"SEND 11 1 10086\n", other) == [b"ERROR 11 no such session\n"]
    assert rig.hear(b"MSG 11 4 evil\n", other) == [b"PASSWORD 11\n"]
    assert rig.hear(b"SEND 11 1 10086\n", other) == [b"PASSWORD 11\n"]
    assert rig.hear(b"DONE 11\n", other) == [b"DONE 11\n"]
    assert rig.hear(b"SEND 11 1 10086\n") == [b"WAIT 11 1\n"]
    rig.wait(3)
    assert [text.body for text in rig.network.sent] == ["hello"]


def test_five_sessions_at_once_and_90_s(rig: Rig) -> None:
    """A sixth is refused; one that says DONE, or nothing for 90 s, makes room."""
    for sid in range(5):
        rig.session(sid)
    assert rig.hear(b"MSG 9 5 hello\n") == [b"ERROR 9 too many sessions\n"]
    assert rig.hear(b"MSG 3 5 hello\n") == [b"SEND 3\n"]  # a repeated request is no new session
    rig.hear(b"DONE 4\n")
    rig.session(9)
    rig.wait(89)
    assert rig.hear(b"MSG 10 5 hello\n") == [b"ERROR 10 too many sessions\n"]
    rig.hear(b"SEND 9 1 10086\n")
    rig.wait(1)
    assert rig.hear(b"SEND 0 1 10086\n") == [b"ERROR 0 no such session\n"]
    assert rig.hear(b"SEND 9 1 10086\n") == [b"WAIT 9 1\n"]


def test_the_last_ten_numbers_are_remembered(rig: Rig) -> None:
    """The eleventh tid pushes out the first, which then is a new one and sends again."""
    rig.session()
    for tid in range(11):
        rig.hear(b"SEND 11 %d 10086\n" % tid)
    rig.wait(30)
    assert rig.hear(b"SEND 11 1 10086\n")[0].startswith(b"OK 11 1 ")
    assert rig.hear(b"SEND 11 0 10086\n") == [b"WAIT 11 0\n"]


def test_texts_that_fail(rig: Rig) -> None:
    """No number, a line out of the network, a number that the network refuses: its +CMS ERROR; too long: ERROR."""
    rig.network.refuses = lambda number: 500 if number == "10010" else 0
    rig.session()
    assert rig.hear(b"SEND 11 1 anna\n") == [b"ERROR 11 1 errorstatus:304\n"]
    rig.hear(b"SEND 11 2 10010\n")
    rig.wait(2)
    assert rig.to_client == [b"ERROR 11 2 errorstatus:500\n"]
    rig.hear(b"svr_reboot_module 1 pw")
    assert rig.hear(b"SEND 11 3 10086\n") == [b"ERROR 11 3 errorstatus:38\n"]
    assert rig.hear(b"MSG 12 3001 x\n") == [b"ERROR 12 the text is longer than 3000 bytes\n"]
    assert not rig.network.sent


def test_one_text_after_the_other(rig: Rig) -> None:
    """A line needs its 2 s for each text, whoever asked for it."""
    rig.session()
    for tid in range(3):
        rig.hear(b"SEND 11 %d 10086\n" % tid)
    done = []
    for _ in range(7):
        rig.wait(1)
        done.append(len(rig.network.sent))
    assert done == [0, 1, 1, 2, 2, 3, 3]


# -- commands -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("get_gsm_num 879901 pw", "get_gsm_num 879901 13957102001"),
        ("set_gsm_num 879902 13800138001 pw", "set_gsm_num 879902 13800138001 ok"),
        ("get_exp_time 1 pw", "get_exp_time 1 -1"),
        ("set_exp_time 2 60 pw", "set_exp_time 2 60 ok"),
        ("get_remain_time 3 pw", "get_remain_time 3 -1"),
        ("reset_remain_time 4 pw", "reset_remain_time 4 ok"),
        ("get_gsm_state 5 pw", "get_gsm_state 5 IDLE"),
        ("svr_drop_call 6 pw", "svr_drop_call 6 ok"),
        ("svr_reboot_module 7 pw", "svr_reboot_module 7 ok"),
        ("svr_reboot_dev 8 pw", "svr_reboot_dev 8 ok"),
        ("CF 9 pw 2 3 13800138000 20", "CFOK 9"),
        ("CF 9 pw 6 3 13800138000 20", "CFERROR 9"),
        ("CW 10 pw 1", "CWOK 10"),
        ("USSD 111 pw *100#", "USSD 111 Your balance is 23.45"),
        ("USSD 112 pw *999#", "USSDERROR 112 no answer from the network"),
        ("USSDEXIT 113 pw", "USSDEXIT 113"),
        ("get_imei 11 pw", "get_imei 11 001012000000012"),
        ("set_imei 12 490154203237518 pw", "set_imei 12 490154203237518 ok"),
        ("get_out_call_interval 13 pw", "get_out_call_interval 13 0"),
        ("set_out_call_interval 14 20 pw", "set_out_call_interval 14 20 ok"),
        ("module_ctl_i 15 1 pw", "module_ctl_i 15 ok"),
        ("module_ctl 16 122 pw", "module_ctl 16 ok"),
        ("set_base_cell 17 5e60 pw", "set_base_cell 17 5e60 ok"),
        ("get_cells_list 18 pw", "get_cells_list 18 ok"),
        ("CURCELL 19 pw", "CURCELL 19 5E01"),
        ("get_imei 20 wrong", "ERROR 20 password error"),
        ("get_imei 21", "ERROR 21 wrong number of arguments"),
        ("set_imei 22 49015420323751 pw", "ERROR 22 bad value"),
        ("module_ctl 23 12 pw", "ERROR 23 bad value"),
        ("set_exp_time 24 99999999 pw", "ERROR 24 bad value"),
        ("USSD 25 wrong *100#", "USSDERROR 25 password error"),
        ("CF 26 wrong 2 3", "CFERROR 26"),
    ],
)
def test_each_command_has_its_answer(asked: str, answer: str) -> None:
    """Sections 5 to 10 of the specification: the answer of a good and of a bad command, without a line end."""
    assert Rig().hear(asked.encode()) == [answer.encode()]


def test_no_command_is_done_with_another_password() -> None:
    """Every verb that there is, with a wrong password: an error, and box, line and network are as before."""
    rig = Rig()
    before = [(line.state, line.shown_imei, line.enabled, line.gsm_up, line.shown_number) for line in rig.box.lines]
    for verb in commands._COMMANDS:
        for words in ("wrong", "1 wrong", "wrong 1", "wrong 1 1", "222 wrong"):
            (answer,) = rig.hear(f"{verb} 7 {words}".encode())
            assert b"ERROR" in answer
    assert before == [
        (line.state, line.shown_imei, line.enabled, line.gsm_up, line.shown_number) for line in rig.box.lines
    ]
    assert rig.to_server == []


def test_what_is_set_is_shown(rig: Rig) -> None:
    """Number, IMEI, cell, talk time and interval are in the next keepalive, and in the answer to GSM."""
    for command in (
        "set_gsm_num 1 13800138001 pw", "set_imei 2 490154203237518 pw", "set_base_cell 3 5e60 pw",
        "set_exp_time 4 60 pw", "set_out_call_interval 5 20 pw",
    ):  # fmt: skip
        rig.hear(command.encode())
    assert notices(rig.to_server, "EXPIRY")[0][1]["exp"] == "60"
    fields = notices(rig.wait(30), "req")[0][1]
    assert (fields["num"], fields["imei"], fields["remain_time"]) == ("13800138001", "490154203237518", "60")
    assert fields["CELLINFO"].endswith("CELL ID:5E60")
    assert rig.hear(b"GSM 77 pw") == [
        (
            b"GSM:77;get_gsm_num:13800138001;get_exp_time:60;get_remain_time:60;get_gsm_state:IDLE;"
            b"imei:490154203237518;out_call_interval:20;module_down:0"
        )
    ]


def test_cells_follow_their_request(rig: Rig) -> None:
    """get_cells_list is answered, then CELLS comes with numbers that each end with a comma."""
    rig.to_server.clear()
    rig.hear(b"get_cells_list 1 pw")
    ((verb, fields),) = notices(rig.to_server)
    assert verb == "CELLS"
    assert all(cell.isdecimal() for cell in fields["lists"].removesuffix(",").split(","))


def test_a_call_is_dropped_once_for_a_repeated_request(rig: Rig) -> None:
    """The same request again within its repeat time is answered but not done; a later one is."""
    rig.box.incoming(1, "10010")
    assert rig.hear(b"svr_drop_call 5 pw") == rig.hear(b"svr_drop_call 5 pw") == [b"svr_drop_call 5 ok"]
    assert len(rig.dropped) == 1
    rig.wait(20)
    rig.hear(b"svr_drop_call 5 pw")
    assert len(rig.dropped) == 2


def test_modules_are_switched(rig: Rig) -> None:
    """module_ctl has a digit for each line: on, off, as it is; a line that is off is logged out."""
    rig.hear(b"module_ctl 1 202 pw")
    assert [line.enabled for line in rig.box.lines] == [True, False, True]
    rig.hear(b"module_ctl_i 2 2 pw")
    fields = notices(rig.wait(30), "req")[0][1]
    assert (fields["gsm_status"], fields["disable_status"]) == ("LOGOUT", "1")
    rig.hear(b"module_ctl 3 111 pw")
    assert all(rig.box.free(line) for line in rig.box.lines)


def test_a_module_starts_anew(rig: Rig) -> None:
    """BUSY, then IDLE after its time, both told."""
    rig.box.restart = timedelta(seconds=20)
    rig.to_server.clear()
    rig.hear(b"svr_reboot_module 1 pw")
    told = notices(rig.to_server + rig.wait(21), "STATE")
    assert {fields["gsm_remain_state"] for _, fields in told} == {"BUSY", "IDLE"}
    assert rig.box.line(1).state is State.IDLE


# -- hostile datagrams --------------------------------------------------------------------------------------

_words = st.sampled_from(
    [
        *commands._COMMANDS,
        *NOTICES,
        "MSG",
        "PASSWORD",
        "SEND",
        "DONE",
        "reg:1;status:0;",
        "pw",
        "-1",
        "0",
        "1",
        "11",
        "5",
    ]
)
_grammar = st.lists(_words | st.text(max_size=8), max_size=7).map(
    lambda words: " ".join(words).encode("utf-8", "replace")
)


@given(st.lists(st.tuples(_grammar | st.binary(max_size=200), st.sampled_from([SERVER, CLIENT])), max_size=60))
def test_no_sequence_of_datagrams_stops_a_line(datagrams: list[tuple[bytes, Address]]) -> None:
    """After any datagrams, of the protocol's words and of none, a line answers, and holds no more than its bounds."""
    rig = Rig()
    for data, source in datagrams:
        rig.hear(data, source)
        rig.wait(1, step=1)
        assert len(rig.line._sessions) <= 5
        assert len(rig.line._answers) <= 16
        assert all(len(session.numbers) <= 10 for session in rig.line._sessions.values())
    rig.wait(120, step=5)
    assert rig.hear(b"get_exp_time 1 pw")[0].startswith(b"get_exp_time 1 ")
    rig.session(77)


def test_a_flood_of_texts_is_bounded(rig: Rig) -> None:
    """10,000 numbers in open sessions: the line has at most 100 texts under way, and 256 notices wait."""
    rig.session()
    answers = [rig.hear(b"SEND 11 %d 10086\n" % tid)[0] for tid in range(10_000)]
    assert answers[99:101] == [b"WAIT 11 99\n", b"ERROR 11 100 errorstatus:1\n"]
    assert len(rig.network._events) <= 200
    rig.wait(1000, step=10)
    assert len(rig.network.sent) == 100
    assert len(rig.line._pending) <= 256
    assert len(rig.line._awaited) == 0
