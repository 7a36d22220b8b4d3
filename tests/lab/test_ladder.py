"""Tests of pbxguard.lab.ladder: what a reader of evidence sees, whatever a caller wrote."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbxguard.lab.ladder import ladder, printable
from pbxguard.lab.wire import Address, Capture, parse_sip

FRAMES = Path(__file__).parent.parent / "frames"
NAMES = {"127.0.0.2": "intl", "127.0.0.1": "pbx", "127.0.0.3": "13957100002"}
A, B = Address("198.18.1.2", 5060), Address("198.18.1.10", 5060)


def width(line):
    """Terminal cells of a line."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


def invite(sender):
    """An INVITE with this From value, as bytes on the wire."""
    message = parse_sip(b"INVITE sip:1@y SIP/2.0\r\nFrom: " + sender + b"\r\nCall-ID: 1\r\n\r\n", 5.0, A, B)
    assert message is not None
    return message


def statuses(messages):
    """What a reader looks for in each line: the method or the status."""
    return [message.method if message.status is None else str(message.status) for message in messages]


def test_refused_call_reads_from_top_to_bottom():
    """A recorded refusal: actors as columns, time from the first message, arrows by direction, SDP marked."""
    lines = ladder(Capture.load(FRAMES / "call-refused.pcap").messages, NAMES).splitlines()
    assert lines[0].split() == ["intl", "pbx"]
    assert lines[1].split("ms")[0].strip() == "0.0"
    assert "──INVITE (SDP)──" in lines[1]
    assert "▶│" in lines[1]
    assert "+85261234567" in lines[1]
    assert "│◀" in lines[3]
    assert "183 Session Progress (SDP)──│" in lines[3]
    assert "403 Forbidden" in lines[4]
    assert "Reason: Q.850;cause=21" in lines[4]
    assert len(lines) == 6


def test_both_legs_of_a_call_share_the_ladder():
    """A connected call: three columns, and each leg's arrows end at its own two actors."""
    lines = ladder(Capture.load(FRAMES / "call-connected.pcap").messages, NAMES).splitlines()
    assert lines[0].split() == ["intl", "pbx", "13957100002"]
    columns = [position for position, character in enumerate(lines[2]) if character == "│"]
    assert len(columns) == 3
    ringing = [line for line in lines if "180 Ringing" in line]
    assert [line.index("◀") for line in ringing] == [columns[1] + 1, columns[0] + 1]


@pytest.mark.parametrize("columns", [60, 80, 100, 120])
@pytest.mark.parametrize("name", ["call-refused", "call-connected", "call-cancelled"])
def test_ladder_keeps_to_the_width_of_a_terminal(name, columns):
    """However narrow the terminal, no line is longer, no message is left out, and every actor has a column."""
    messages = Capture.load(FRAMES / f"{name}.pcap").messages
    lines = ladder(messages, NAMES, columns).splitlines()
    rows = [line for line in lines if " ms " in line[:14]]

    assert [line for line in lines if width(line) > columns] == []
    assert len(rows) == len(messages)
    assert all(label in text for text, label in zip(rows, statuses(messages), strict=True))
    actors = len(lines[0].split())
    assert all(row.split("From")[0].count("│") == actors for row in rows)


def test_ladder_with_more_actors_than_there_is_room_for():
    """Where the columns cannot fit, they are as narrow as they get, and the labels are still there."""
    names = {"198.18.1.2": "a-name-that-is-long", "198.18.1.10": "b"}
    (_, row, note) = ladder([invite(b"<sip:1@x>")], names, 20).splitlines()

    assert "INVITE" in row
    assert note.strip() == "From: <sip:1@x>"


def test_addresses_without_names_and_with_ports():
    """An address without a name stands for itself; a name for address and port beats one for the address."""
    text = ladder([invite(b"<sip:1@x>")], {"198.18.1.2": "any", "198.18.1.2:5060": "goip1"})
    assert text.splitlines()[0].split() == ["goip1", "198.18.1.10"]


def test_message_of_an_actor_to_itself():
    """Two programs at one address share a column, and their messages are still shown."""
    assert "↺ INVITE" in ladder([invite(b"<sip:1@x>")], {"198.18.1.2": "host", "198.18.1.10": "host"})


def test_caller_cannot_move_the_cursor():
    """Escape sequences, line ends, overrides and wide characters in a name stay inside line and width."""
    hostile = "\x1b[2J\x07\x85\u202egnp\u200b王王王".encode() + b"\xff\x00" + "王".encode() * 90
    text = ladder([invite(hostile)], {})
    assert len(text.splitlines()) == 2
    assert "\x1b" not in text
    assert "\\x1b[2J" in text
    assert "a\\u0300" in ladder([invite("a\u0300".encode())], {})  # marks pile up on their neighbour
    assert all(width(line) < 170 for line in text.splitlines())


def test_nothing_and_very_much():
    """No message says so; a flood of messages is cut, and the rest is counted."""
    assert ladder([], {}) == "(no SIP messages)\n"
    assert ladder([invite(b"<sip:1@x>")] * 600, {}).endswith("(100 more messages)\n")


@given(st.text(max_size=60), st.integers(min_value=1, max_value=30))
def test_printable_is_printable_and_bounded(text, cells):
    """Any text comes out printable, in no more cells than there is room for."""
    shown = printable(text, cells)
    assert width(shown) <= cells
    assert shown.isprintable() or shown == ""
    assert len(shown.splitlines()) <= 1
