"""``serve`` for both kinds of PBX: a process each, which die and come back alone, and ``serve --status``."""

import json
import os
import signal
import socket
import socketserver
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Event, Thread
from time import monotonic

import pytest

from pbxguard.pbx.health import Health, heard

FRAMES = Path(__file__).parents[1] / "frames"
LIMIT = 20.0


class Peer(socketserver.BaseRequestHandler):
    """One event socket connection: answers every command as FreeSWITCH did."""

    def handle(self) -> None:
        greeting, accepted, listening, _ = (FRAMES / "esl-login.bin").read_bytes().split(b"\n\n")
        replies = {b"auth": accepted + b"\n\n", b"event": listening + b"\n\n"}
        with suppress(OSError):
            self.request.sendall(greeting + b"\n\n")
            left = b""
            while data := self.request.recv(65536):
                *commands, left = (left + data).split(b"\n\n")
                for command in commands:
                    reply = replies.get(command.split()[0], (FRAMES / "esl-api.bin").read_bytes())
                    self.request.sendall(reply)


class FakeFreeSWITCH(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


@pytest.fixture
def switch() -> Iterator[int]:
    """The port of an event socket."""
    with FakeFreeSWITCH(("127.0.0.1", 0), Peer) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def serving(program, tmp_path: Path, state: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start ``pbxguard serve`` with a FreeSWITCH in the settings."""
    started: list[subprocess.Popen[bytes]] = []

    def start(port: int) -> subprocess.Popen[bytes]:
        (tmp_path / "pbxguard.toml").write_text(f"[asterisk]\nport = {free_port()}\n[freeswitch.a]\nport = {port}\n")
        with (tmp_path / "log").open("wb") as log:
            started.append(program("serve", stdout=log, stderr=log))
        return started[-1]

    yield start
    for running in started:
        if running.poll() is None:
            running.terminate()
        try:
            running.wait(LIMIT)
        finally:
            for pid in pids(state).values():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def pids(state: Path) -> dict[str, int]:
    """The handlers that are there and ready."""
    return {one.kind: one.pid for one in heard(state) if one.ready and one.alive}


def until(condition: Callable[[], object], what: str) -> None:
    began = monotonic()
    while not condition():
        assert monotonic() - began < LIMIT, f"{what}: not within {LIMIT} s"
        Event().wait(0.02)


def alive(pid: int) -> bool:
    return Health("", pid, ready=True, detail="").alive


def table(shown: str) -> dict[str, list[str]]:
    """The rows of --status by handler: state, pid, detail."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    return {row[0]: row[1:] for row in rows}


def logged(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "log").read_text().splitlines() if line.startswith("{")]


def test_a_process_for_each_kind(serving, switch, state, run) -> None:
    """Both kinds of PBX are served, each by a process of its own, and --status says so with exit code 0."""
    running = serving(switch)
    until(lambda: set(pids(state)) == {"asterisk", "freeswitch"}, "both handlers")
    found = pids(state)
    assert len({running.pid, *found.values()}) == 3
    shown = table(run("serve", "--status").stdout)
    assert shown["asterisk"][:2] == ["ready", str(found["asterisk"])]
    assert shown["freeswitch"] == ["ready", str(found["freeswitch"]), "connected to every FreeSWITCH"]


@pytest.mark.parametrize(("kind", "other"), [("asterisk", "freeswitch"), ("freeswitch", "asterisk")])
def test_one_that_dies_comes_back_alone(serving, switch, state, tmp_path, kind, other) -> None:
    """A handler that is killed is started again, the other one goes on in the same process."""
    serving(switch)
    until(lambda: set(pids(state)) == {kind, other}, "both handlers")
    before = pids(state)
    os.kill(before[kind], signal.SIGKILL)
    until(lambda: pids(state).get(kind) not in (None, before[kind]), "a new handler")
    assert pids(state)[other] == before[other]
    (death,) = [line for line in logged(tmp_path) if line["event"] == "handler died"]
    assert (death["kind"], death["code"], death["again_in_s"]) == (kind, -signal.SIGKILL, 0.2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_all(serving, switch, state, number) -> None:
    """SIGTERM and SIGINT end every process with exit code 0, and leave no health file."""
    running = serving(switch)
    until(lambda: set(pids(state)) == {"asterisk", "freeswitch"}, "both handlers")
    found = pids(state)
    running.send_signal(number)
    assert running.wait(LIMIT) == 0
    assert [pid for pid in found.values() if alive(pid)] == []
    assert heard(state) == []


def test_ends_while_freeswitch_is_away(serving, state, run, tmp_path) -> None:
    """With FreeSWITCH away Asterisk is served, --status names the missing one with exit code 1; all end cleanly."""
    running = serving(free_port())
    until(lambda: len([one for one in heard(state) if one.alive]) == 2 and "asterisk" in pids(state), "both handlers")
    shown = table(run("serve", "--status", code=1).stdout)
    assert shown["asterisk"][0] == "ready"
    assert (shown["freeswitch"][0], shown["freeswitch"][2]) == ("not ready", "not connected: a")
    until(lambda: "no event socket" in (tmp_path / "log").read_text(), "a try")
    running.terminate()
    assert running.wait(LIMIT) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_status_of_nothing(run) -> None:
    """Without a handler --status says so with exit code 1."""
    assert table(run("serve", "--status", code=1).stdout) == {"asterisk": ["not running", "-", ""]}


def test_status_of_a_handler_that_was_killed(serving, switch, state, run) -> None:
    """A health file whose process is gone is not taken for a handler."""
    serving(switch)
    until(lambda: set(pids(state)) == {"asterisk", "freeswitch"}, "both handlers")
    (told,) = [one for one in heard(state) if one.kind == "freeswitch"]
    os.kill(told.pid, signal.SIGKILL)
    until(lambda: not alive(told.pid), "the end of the handler")
    (state / "serve-freeswitch.json").write_text(json.dumps(asdict(told)))
    assert table(run("serve", "--status", code=1).stdout)["freeswitch"][0] == "not running"


def test_handlers_end_with_their_supervisor(serving, switch, state) -> None:
    """A supervisor that is killed leaves no handler that would keep the port from the next one."""
    running = serving(switch)
    until(lambda: set(pids(state)) == {"asterisk", "freeswitch"}, "both handlers")
    found = pids(state)
    running.kill()
    running.wait(LIMIT)
    until(lambda: not any(alive(pid) for pid in found.values()), "the end of the handlers")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", '{"kind": "asterisk"}', '{"kind":"asterisk","pid":"x"}', "\x00"]
)
def test_status_with_a_damaged_file(run, state, text) -> None:
    """A health file that is none is passed over."""
    state.mkdir()
    (state / "serve-asterisk.json").write_text(text)
    assert "not running" in run("serve", "--status", code=1).stdout


@pytest.mark.parametrize("pid", [0, -1, "1", None, 2**70, True])
def test_status_with_a_wrong_pid(run, state, pid) -> None:
    """A process id that can be none is not taken for a handler."""
    state.mkdir()
    told = {"kind": "asterisk", "pid": pid, "ready": True, "detail": ""}
    (state / "serve-asterisk.json").write_text(json.dumps(told))
    assert "not running" in run("serve", "--status", code=1).stdout


def test_freeswitch_alone_needs_one(run) -> None:
    """--only freeswitch without one in the settings is a clear error with the remedy."""
    assert "add [freeswitch.NAME]" in run("serve", "--only", "freeswitch", code=2).stderr


def test_esl_option(program, switch, state) -> None:
    """--esl serves one FreeSWITCH without any settings."""
    running = program("serve", "--only", "freeswitch", "--esl", f"127.0.0.1:{switch}")
    until(lambda: set(pids(state)) == {"freeswitch"}, "the handler")
    running.terminate()
    _, said = running.communicate(timeout=LIMIT)
    assert running.returncode == 0
    assert [line for line in map(json.loads, said.splitlines()) if line["event"] == "serving FreeSWITCH"]
