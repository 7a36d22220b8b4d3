"""``serve`` as a process: it answers, ends cleanly, and says why it cannot start."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from threading import Event
from time import monotonic

import pytest

from pbxguard.lab.waiting import wait_until
from pbxguard.store import Store

FRAMES = Path(__file__).parents[1] / "frames"
LIMIT = 20.0


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def serving(program):
    """A running ``pbxguard serve``, its port, and the end of it."""
    started: list[subprocess.Popen[bytes]] = []

    def start(host: str = "127.0.0.1") -> tuple[subprocess.Popen[bytes], int]:
        port = free_port()
        running = program("serve", "--listen", f"{host}:{port}")
        started.append(running)
        for line in running.stderr:
            if json.loads(line)["event"] == "serving FastAGI":
                return running, port
        raise AssertionError(f"it ended with {running.wait()}")

    yield start
    for running in started:
        running.kill()
        running.communicate()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=LIMIT)


def takes_calls(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_and_ends_cleanly(serving, state, run, number) -> None:
    """It answers a call, finishes what is under way when it is told to end, records it, and ends with 0."""
    run("subscribers", "add", "13957100001", "--operator", "cm", "--province", "zhejiang")
    running, port = serving()
    frame = (FRAMES / "agi-call.txt").read_bytes()
    with connect(port) as peer:
        peer.sendall(frame[:500])
        # Connections are accepted in their order: once a later one is closed for nonsense, this one is under way.
        with connect(port) as later:
            later.sendall(b"nonsense\n\n")
            assert later.recv(1) == b""
        running.send_signal(number)
        began = monotonic()
        while takes_calls(port):
            assert monotonic() - began < LIMIT, "still taking calls"
            Event().wait(0.02)
        peer.sendall(frame[500:])
        with peer.makefile("rb") as answers:
            assert answers.readline().startswith(b'SET VARIABLE PBXGUARD_VERDICT "1|block|603|early|')
        peer.sendall(b"200 result=1\n")
        assert running.wait(LIMIT) == 0
    lines = [json.loads(line) for line in running.stderr]
    assert [line["event"] for line in lines if line["level"] != "info"] == ["FastAGI request refused"]
    assert "call decided" in [line["event"] for line in lines]
    with Store.open(state / "pbxguard.db") as store:
        assert [row.reason for row in store.recent()] == ["intl_default_off"]


_STUCK = """
import sys, threading
from pbxguard.cli.main import main
from pbxguard.store import Store
Store.facts = lambda *_: threading.Event().wait()
main()
"""


def test_ends_while_the_store_hangs(state) -> None:
    """A decision that waits for a stalled disk for ever does not keep SIGTERM from ending the server."""
    port = free_port()
    command = [sys.executable, "-c", _STUCK, "serve", "--listen", f"127.0.0.1:{port}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as running:
        try:
            assert any(json.loads(line)["event"] == "serving FastAGI" for line in running.stderr)
            with connect(port) as peer:
                peer.sendall((FRAMES / "agi-call.txt").read_bytes())
                with peer.makefile("rb") as answers:
                    assert b"guard_failed" in answers.readline()
                peer.sendall(b"200 result=1\n")
            running.send_signal(signal.SIGTERM)
            assert running.wait(LIMIT) == 0
        finally:
            running.kill()


def test_port_in_use(program) -> None:
    """A port that is taken is one clear line and exit code 3."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        running = program("serve", "--listen", f"127.0.0.1:{port}")
        out, said = running.communicate(timeout=LIMIT)
    assert running.returncode == 3
    assert out == b""
    text = said.decode()
    assert text.startswith(f"pbxguard: cannot listen for FastAGI on 127.0.0.1:{port}: ")
    assert "in use" in text
    assert text.endswith("stop the program that has this port or set [asterisk] port\n")
    assert text.count("\n") == 1


@pytest.mark.parametrize("address", ["4573", "h:", ":4573", "h:0", "h:65536", "h:x", "h:-1", "h:²", "h:٤"])
def test_bad_address(run, address) -> None:
    """What is no HOST:PORT is wrong usage."""
    assert "is not HOST:PORT, such as 127.0.0.1:4573" in run("serve", "--listen", address, code=2).stderr


def test_address_of_another_machine(program) -> None:
    """An address that this machine does not have is named, with exit code 3."""
    running = program("serve", "--listen", "192.0.2.1:4573")
    _, said = running.communicate(timeout=LIMIT)
    assert said.decode().startswith("pbxguard: cannot listen for FastAGI on 192.0.2.1:4573: ")
    assert (running.returncode, said.count(b"\n")) == (3, 1)


def test_wrong_trunk_stops_it_before_it_listens(run, tmp_path) -> None:
    """A trunk of a kind that the pack does not have is found at the start, not at the first call."""
    (tmp_path / "pbxguard.toml").write_text('[screening]\naccept_unverified = ["*"]\n[trunks.a]\nkind = "moon"')
    assert ":4: trunks.a.kind: 'moon' is no kind of trunk in pack cn" in run("serve", code=2).stderr


def test_damaged_database_stops_it(program, state) -> None:
    """A file that is no database is found at the start."""
    state.mkdir()
    (state / "pbxguard.db").write_bytes(b"x" * 5000)
    running = program("serve", "--listen", f"127.0.0.1:{free_port()}")
    _, said = running.communicate(timeout=LIMIT)
    assert b"not a pbxguard database" in said
    assert (running.returncode, said.count(b"\n")) == (3, 1)


def test_old_decisions_go_at_the_start(serving, state, run) -> None:
    """Decisions past keep_decisions_days are removed by the server itself, beside its calls."""
    from datetime import UTC, datetime, timedelta

    from pbxguard.store import DecisionRow

    state.mkdir()
    with Store.open(state / "pbxguard.db") as store:
        for name, days in (("old", 181), ("young", 179)):
            at = datetime.now(UTC) - timedelta(days=days)
            store.record([DecisionRow(name, at, "voice", "intl", "", None, "", "", None, "allow", "default")])
    running, _ = serving()
    with Store.open(state / "pbxguard.db") as store:
        wait_until(lambda: [row.call_id for row in store.recent()] == ["young"], LIMIT, "the old one to go")
    running.send_signal(signal.SIGTERM)
    assert running.wait(LIMIT) == 0
