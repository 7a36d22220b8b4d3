"""``serve`` for both kinds of PBX: a process each, which die and come back alone, and ``serve --status``."""

import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Event, Thread
from time import monotonic

import pytest

from pbxguard.pbx.health import heard

FRAMES = Path(__file__).parents[1] / "frames"
LIMIT = 20.0
ACCEPT = '[screening]\naccept_unverified = ["*"]\n'


class Peer(socketserver.BaseRequestHandler):
    """One event socket connection: answers every command as FreeSWITCH did."""

    def handle(self) -> None:
        greeting, accepted, listening, _ = (FRAMES / "esl-login.bin").read_bytes().split(b"\n\n")
        fired = b"Content-Type: command/reply\nReply-Text: +OK 7a1f\n\n"
        echo = (
            b"Content-Length: 53\nContent-Type: text/event-plain\n\n"
            b"Event-Name: CUSTOM\nEvent-Subclass: pbxguard%3A%3Aecho\n\n"
        )
        replies = {b"auth": accepted + b"\n\n", b"event": listening + b"\n\n", b"sendevent": fired}
        with suppress(OSError):
            self.request.sendall(greeting + b"\n\n")
            left = b""
            while data := self.request.recv(65536):
                left = (left + data).lstrip(b"\n")
                while b"\n\n" in left:
                    command, _, left = left.partition(b"\n\n")
                    left = left.lstrip(b"\n")  # FreeSWITCH skips empty lines before a command
                    self.server.commands.append(command.decode())
                    reply = replies.get(command.split()[0], (FRAMES / "esl-api.bin").read_bytes())
                    self.request.sendall(reply + echo * (b"pbxguard::echo" in command.partition(b"\n")[2]))


class FakeFreeSWITCH(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    commands: list[str]


@pytest.fixture
def switch() -> Iterator[int]:
    """The port of an event socket."""
    with FakeFreeSWITCH(("127.0.0.1", 0), Peer) as server:
        server.commands = _TOLD[server.server_address[1]] = []
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


#: What each event socket was told, by its port.
_TOLD: dict[int, list[str]] = {}


def switch_commands(port: int) -> list[str]:
    return _TOLD[port]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def serving(program, tmp_path: Path, state: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start ``pbxguard serve`` with a FreeSWITCH in the settings."""
    started: list[subprocess.Popen[bytes]] = []

    def start(port: int, agi: int | None = None) -> subprocess.Popen[bytes]:
        (tmp_path / "pbxguard.toml").write_text(
            f"{ACCEPT}[asterisk]\nport = {agi or free_port()}\n[freeswitch.a]\nport = {port}\n"
        )
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
    """Whether the process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


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
    until(lambda: [one.kind for one in heard(state) if "not connected: a (F" in one.detail], "the FreeSWITCH handler")
    until(lambda: "asterisk" in pids(state), "the Asterisk handler")
    shown = table(run("serve", "--status", code=1).stdout)
    assert shown["asterisk"][0] == "ready"
    assert shown["freeswitch"][0] == "not ready"
    assert shown["freeswitch"][2].startswith("not connected: a (FreeSWITCH at 127.0.0.1:")
    assert shown["freeswitch"][2].endswith(" does not take a connection: Connection refused)")
    until(lambda: "no event socket" in (tmp_path / "log").read_text(), "a try")
    running.terminate()
    assert running.wait(LIMIT) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_status_of_nothing(run) -> None:
    """Without a handler --status says so with exit code 1."""
    assert table(run("serve", "--status", code=1).stdout) == {"asterisk": ["not running", "-", ""]}


def test_status_of_a_handler_that_was_killed(serving, switch, state, run) -> None:
    """A health file whose process is gone is not taken for a handler."""
    running = serving(switch)
    until(lambda: set(pids(state)) == {"asterisk", "freeswitch"}, "both handlers")
    (told,) = [one for one in heard(state) if one.kind == "freeswitch"]
    running.send_signal(signal.SIGSTOP)  # else the next handler would write the file
    try:
        os.kill(told.pid, signal.SIGKILL)
        until(lambda: not alive(told.pid), "the end of the handler")
        assert json.loads((state / "serve-freeswitch.json").read_text()) == asdict(told)
        assert table(run("serve", "--status", code=1).stdout)["freeswitch"][0] == "not running"
    finally:
        running.send_signal(signal.SIGCONT)


def test_status_of_a_pid_that_was_used_again(run, state) -> None:
    """A health file whose pid is that of another process by now is not taken for a handler."""
    state.mkdir()
    told = {"kind": "asterisk", "pid": os.getpid(), "ready": True, "detail": "FastAGI", "started": 1}
    (state / "serve-asterisk.json").write_text(json.dumps(told))
    assert table(run("serve", "--status", code=1).stdout)["asterisk"] == ["not running", str(os.getpid()), ""]


def test_settings_that_only_a_handler_finds_wrong(program, state, tmp_path, switch) -> None:
    """A handler that refuses the settings at its start ends all with exit code 2, and its line says what is wrong."""
    (tmp_path / "pbxguard.toml").write_text(
        f"{ACCEPT}[asterisk]\nport = {free_port()}\n[freeswitch.a]\nport = {switch}\n"
        "[store]\nurl = 'postgresql://h/db'\n"
    )
    running = program("serve")
    _, said = running.communicate(timeout=LIMIT)
    assert running.returncode == 2
    lines = said.decode().splitlines()
    plain = {line for line in lines if not line.startswith("{")}
    assert len(plain) == 1
    assert "store: this version keeps its data in SQLite, not postgresql" in plain.pop()
    refused = [line for line in map(json.loads, (line for line in lines if line.startswith("{")))
               if line["event"] == "handler refuses the settings; all is stopped"]  # fmt: skip
    assert refused
    assert "store: this version keeps its data in SQLite" in refused[0]["why"]


def test_port_in_use_is_tried_again(serving, switch, state, run, tmp_path) -> None:
    """A handler whose port is taken is tried again with pauses; --status says why; the other kind serves meanwhile.

    Once the port is free it comes up.
    """
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        running = serving(switch, port)
        until(lambda: len([d for d in logged(tmp_path) if d["event"] == "handler died"]) == 2, "two deaths")
        until(lambda: "freeswitch" in pids(state), "the FreeSWITCH handler")
        found = pids(state)
        deaths = [line for line in logged(tmp_path) if line["event"] == "handler died"]
        assert [(line["kind"], line["code"], line["again_in_s"]) for line in deaths] == [
            ("asterisk", 3, 0.2), ("asterisk", 3, 1.0)]  # fmt: skip
        shown = table(run("serve", "--status", code=1).stdout)
        assert shown["freeswitch"][0] == "ready"
        if shown["asterisk"][2] != "starting":
            assert shown["asterisk"][:2] == ["not ready", str(running.pid)]
            why = f"started again in 1 s; cannot listen for FastAGI on 127.0.0.1:{port}: Address already in use; "
            assert shown["asterisk"][2].startswith(why)
    until(lambda: set(pids(state)) == {"asterisk", "freeswitch"}, "both handlers")
    assert pids(state)["freeswitch"] == found["freeswitch"]
    running.terminate()
    assert running.wait(LIMIT) == 0
    assert heard(state) == []


def test_settings_that_turn_wrong(serving, switch, state, tmp_path) -> None:
    """Settings that are wrong when a handler is started again do not end the other one: somebody mends them."""
    running = serving(switch)
    until(lambda: set(pids(state)) == {"asterisk", "freeswitch"}, "both handlers")
    before = pids(state)
    good = (tmp_path / "pbxguard.toml").read_text()
    (tmp_path / "pbxguard.toml").write_text("[moon]\n")
    os.kill(before["freeswitch"], signal.SIGKILL)
    until(lambda: [line for line in logged(tmp_path) if line.get("code") == 2], "a handler that refuses them")
    assert running.poll() is None
    assert pids(state)["asterisk"] == before["asterisk"]
    (tmp_path / "pbxguard.toml").write_text(good)
    until(lambda: set(pids(state)) == {"asterisk", "freeswitch"}, "both handlers again")
    assert pids(state)["asterisk"] == before["asterisk"]


_HELD = """
import sys, time
from pathlib import Path
from pbxguard.cli.main import main
from pbxguard.guard import Guard
def wait(guard):
    Path("warming").touch()
    while not Path("go").exists():
        time.sleep(0.01)
Guard.warm_up = wait
main()
"""


def test_nobody_is_told_before_the_warm_up(program, switch, state, tmp_path, run) -> None:
    """Until the guard is warm nobody is connected to, no heartbeat is sent, nothing listens, and nothing is ready."""
    port = free_port()
    for kind, option, at in (("freeswitch", "--esl", switch), ("asterisk", "--listen", port)):
        command = [sys.executable, "-c", _HELD, "serve", "--only", kind, option, f"127.0.0.1:{at}"]
        (tmp_path / "go").unlink(missing_ok=True)
        (tmp_path / "warming").unlink(missing_ok=True)
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=tmp_path) as running:
            try:
                until((tmp_path / "warming").exists, "the warm-up")
                (one,) = [one for one in heard(state) if one.kind == kind]
                assert (one.alive, one.ready, one.detail) == (True, False, "starting")
                with socket.socket() as probe:
                    assert probe.connect_ex(("127.0.0.1", port)) != 0
                if kind == "freeswitch":
                    assert switch_commands(switch) == []
                (tmp_path / "go").touch()
                until(lambda kind=kind: kind in pids(state), "ready")
                if kind == "freeswitch":
                    assert any("global_setvar pbxguard_until=" in one for one in switch_commands(switch))
            finally:
                running.terminate()
                running.wait(LIMIT)


def test_sigterm_takes_the_heartbeat_back(program, switch) -> None:
    """On SIGTERM the last word to FreeSWITCH is that no call need wait any more."""
    running = program("serve", "--only", "freeswitch", "--esl", f"127.0.0.1:{switch}")
    until(lambda: any("global_setvar" in one for one in switch_commands(switch)), "a heartbeat")
    running.terminate()
    running.communicate(timeout=LIMIT)
    assert running.returncode == 0
    assert switch_commands(switch)[-1] == "api global_setvar pbxguard_until=0"


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
