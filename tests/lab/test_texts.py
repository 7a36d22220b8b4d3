"""Texts and calls through a gateway of the lab: what its SMS server is told, and what a hostile text may not do."""

import asyncio
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import pytest
from click.testing import CliRunner

from pbxguard.lab import evidence, report
from pbxguard.lab.callers import Callers, Placing
from pbxguard.lab.capture import capturing
from pbxguard.lab.evidence import Evidence
from pbxguard.lab.goip.cli import goip as goip_command
from pbxguard.lab.goip.endpoint import Timing
from pbxguard.lab.goip.server import SmsServer
from pbxguard.lab.goip.sms import Texts
from pbxguard.lab.run import run_scenarios
from pbxguard.lab.scenario import ExpectText
from pbxguard.lab.scenariofile import load
from pbxguard.lab.waiting import wait_for, wait_until
from pbxguard.lab.wire import Capture
from pbxguard.lab.world import World

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

SCENARIOS = Path(__file__).parents[1] / "scenarios"
LIMIT = 60.0
TAG = "00aa11bb22cc33dd"
#: A text with line ends, AMI headers, dialplan functions and markup.
(HOSTILE,) = load(SCENARIOS, ("text-hostile",))


async def test_an_sms_server_sees_a_real_call_as_its_ladder_has_it(world: World, tmp_path: Path) -> None:
    """A call from GSM through goip1: INCOMING before the PBX gets the INVITE, ACTIVE and RECORD after its 200, HANGUP
    and IDLE with the BYE; the SMS server gets the five in this order, each once.
    """
    at: dict[str, float] = {}
    host = world.net.guard_address
    async with (
        SmsServer(f"{host}:0") as server,
        Callers.open(world.engine, world.passwords.ami, world.net, world.gateways) as callers,
    ):
        gateway = await callers.gateway("goip1")
        where = "{}:{}".format(*server.address)
        async with Texts.open(
            gateway,
            server=where, listen=f"{host}:0", http=f"{host}:0", password="pw", timing=Timing(keepalive=0.5),
        ) as texts:  # fmt: skip
            device = texts.device
            await wait_for(lambda: device.endpoints[2].logged_in, LIMIT, "line 3 to be logged in")
            gateway.box.watch(lambda event: at.setdefault(f"{type(event).__name__} {event}"[:22], time.time()))
            async with capturing(world.engine, world.watcher, world.root / "captures", TAG) as path:
                await callers.place(Placing(TAG, "goip1", "13012345678", "13957100003", line=3))
                await wait_for(lambda: len(server.notices) >= 5, LIMIT, "five notices")
                capture = Capture.load(path)
    told = [
        (n.verb, n["gsm_remain_state"] or n["num"]) for n in server.notices if n.line == "goip1-3"
    ]  # fmt: skip
    assert told == [
        ("STATE", "INCOMING:13012345678"),
        ("STATE", "ACTIVE"),
        ("RECORD", "13012345678"),
        ("HANGUP", "13012345678,cause:Normal call clearing"),
        ("STATE", "IDLE"),
    ]
    legs = evidence.legs_of(capture, TAG)
    assert legs is not None
    assert legs.caller.final is not None
    assert legs.caller.bye is not None
    happened = list(at.values())  # INCOMING, ACTIVE, RECORD, HANGUP, IDLE
    assert len(happened) == 5
    assert happened[0] <= legs.caller.invite.at <= legs.caller.final.at <= happened[1]
    assert happened[1] <= happened[2] < happened[3] <= happened[4]
    # The gateway sends BYE and tells its box at once; which of the two is seen first is nobody's promise.
    assert abs(legs.caller.bye.at - happened[3]) < 1 < legs.caller.bye.at - happened[2]


@pytest.fixture(name="hostile", scope="module")
def _hostile(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Evidence]]:
    """The run of the hostile texts, and one that expects another body."""
    step = HOSTILE.step[0].model_copy(
        update={"expect_text": ExpectText(body="another", phone="li"), "title": "broken"}
    )
    broken = HOSTILE.model_copy(update={"name": "broken", "step": (step,)})
    run = asyncio.run(run_scenarios(world, [HOSTILE, broken], tmp_path_factory.mktemp("texts")))
    report.write(run, "cn")
    return run.folder, run.calls


def test_a_hostile_text_arrives_and_does_nothing_else(world: World, hostile: tuple[Path, list[Evidence]]) -> None:
    """Line ends, headers, functions and quotes arrive byte for byte by each way; no PBX or gateway logged a part
    of it as a line or command of its own, and nothing ran.
    """
    _, calls = hostile
    assert [call.faults for call in calls if call.scenario == HOSTILE.name] == [()] * 4
    for actor in ("pbx", "goip1"):
        log = world.engine.logs(world.container(actor), 400)
        assert "X-Evil" not in log
        assert "uid=" not in log


def test_a_hostile_text_stays_text_in_the_report(hostile: tuple[Path, list[Evidence]]) -> None:
    """report.html has no tag of a text's, junit.xml parses, report.json has the text as it is."""
    folder, _ = hostile
    page = (folder / "report.html").read_text()
    assert "<script>alert" not in page
    assert "alert(1)" in page
    rows: list[dict[str, Any]] = json.loads((folder / "report.json").read_text())["calls"]
    text = HOSTILE.step[0].text
    assert text is not None
    assert {row["channel"] for row in rows} == {"sms"}
    assert rows[0]["observed"]["bodies"] == {"server": text.whole, "phone": text.whole}
    assert (rows[0]["trunk"], rows[0]["way"], rows[0]["expected"]["message"]) == ("goip1", "gsm", 202)


def test_a_broken_text_scenario_says_what_differs(
    hostile: tuple[Path, list[Evidence]], pbxguard: "Callable[..., subprocess.CompletedProcess[str]]"
) -> None:
    """Expected and observed of each, in the evidence, in junit.xml and in `lab show`, which has the ladder too."""
    folder, calls = hostile
    (broken,) = [call for call in calls if call.scenario == "broken"]
    assert broken.faults[0] == "phone: expected 'li', observed 'zhang'"
    assert {fault.partition(":")[0] for fault in broken.faults[1:]} == {"body at phone", "body at server"}
    failure = (folder / "junit.xml").read_text()
    assert "phone: expected" in failure
    assert "text: the telephone of zhang and the SMS server got it, MESSAGE 202" in failure
    shown = pbxguard("lab", "show", "broken", "--evidence", str(folder.parent)).stdout
    assert "MESSAGE" in shown
    assert "202 Accepted" in shown
    assert "expected 'li', observed 'zhang'" in shown


def test_a_text_that_is_for_nobody_is_looked_for(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that forwards where it should forward to nobody is found out: the wire is watched for that too."""

    def to_zhang(self: Texts, line: int, number: str, tag: str = "") -> AbstractContextManager[None]:
        assert number == ""
        return forwarding(self, line, "13957100001", tag)

    forwarding = Texts.forwarding
    monkeypatch.setattr(Texts, "forwarding", to_zhang)
    (scenario,) = load(SCENARIOS, ("text-from-gsm",))
    step = next(step for step in scenario.step if step.expect_text.phone == "")
    run = asyncio.run(run_scenarios(world, [scenario.model_copy(update={"step": (step,)})], tmp_path))
    (call,) = run.calls

    assert call.faults == ("phone: expected none, observed 'zhang'",)


def goip(world: World, *words: str, stdout: int | IO[str] = subprocess.PIPE) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "pbxguard", "lab", "goip", *words],
        stdout=stdout, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PBXGUARD_STATE": str(world.state), "COLUMNS": "200"},
    )  # fmt: skip


def test_lab_goip_takes_over_a_gateway_of_the_lab(
    world: World, pbxguard: "Callable[..., subprocess.CompletedProcess[str]]", tmp_path: Path
) -> None:
    """`lab goip` has goip1 with its own lines registered; a GSM caller rings one of its SIMs and reaches a telephone,
    and the table has the call; nobody else may drive it meanwhile; at its end the lab's own gateway is back.
    """
    ports = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
    process = goip(world, "--actor", "goip1", "--lines", "6", "--forward", "zhao", "--json", *ports)
    states: list[str] = []
    try:
        assert process.stdout
        first = json.loads(process.stdout.readline())
        assert (first["actor"], len(first["lines"])) == ("goip1", 6)
        assert all(line["voip"] for line in first["lines"])
        number = first["lines"][4]["number"]

        call = pbxguard("lab", "call", "--from", "13012345678", "--to", number, "--trunk", "natl",
                        "--evidence", str(tmp_path), "--json")  # fmt: skip
        seen = json.loads(call.stdout)["observed"]
        assert (seen["verdict"], seen["answered"], seen["two_way_audio"]) == ("allow", True, True)

        other = pbxguard("lab", "goip", "--actor", "goip1", *ports)
        assert (other.returncode, len(other.stderr.splitlines())) == (3, 1)
        assert "goip1 is at work for another" in other.stderr
        through = pbxguard("lab", "call", "--from", "13012345678", "--to", "zhao", "--trunk", "goip1",
                           "--evidence", str(tmp_path))  # fmt: skip
        assert through.returncode == 1
        assert "goip1 is at work for another" in through.stdout
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=LIMIT)
        states += [json.loads(line)["lines"][4]["state"] for line in out.splitlines()]
        assert process.returncode == 0, errors
    finally:
        process.kill()
        process.communicate()
    assert {"ACTIVE", "IDLE"} <= set(states)
    with World(world.settings) as again:
        assert again.lines_registered("goip1")
        assert not again.gateway_in_use("goip1")


def test_the_log_of_lab_goip_has_call_and_text_and_its_help_says_how_a_message_is_seen(
    world: World, pbxguard: "Callable[..., subprocess.CompletedProcess[str]]", tmp_path: Path
) -> None:
    """Without a terminal: each state of a real call and its end, a text by the printed address of send.html and where
    it went; the tcpdump that the help names shows it arriving at the telephone as MESSAGE.
    """
    command = re.search(
        r"docker exec -it pbxguard-pbx (tcpdump .*)", CliRunner().invoke(goip_command, ["--help"]).output
    )
    assert command
    run = functools.partial(world.engine.run, world.watcher)
    words = ("--actor", "goip1", "--lines", "2", "--forward", "zhang", "--sms-forward", "zhang")
    log = tmp_path / "log"
    with log.open("w") as file:
        process = goip(world, *words, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", stdout=file)

    def until(words: str) -> None:
        wait_until(lambda: words in log.read_text(), LIMIT, f"{words!r} in the log")

    try:
        until("goip-2")
        call = pbxguard("lab", "call", "--from", "13012345678", "--to", "13957102001", "--trunk", "natl",
                        "--evidence", str(tmp_path))  # fmt: skip
        assert call.returncode == 0
        until("line 1  INCOMING:13012345678")
        until("line 1  ACTIVE")
        until("line 1  call from 13012345678: Normal call clearing, talked ")

        run("sh", "-c", f"timeout 60 {command[1]} > /tmp/seen 2>&1 &")
        wait_until(lambda: "listening on" in run("cat", "/tmp/seen")[1], LIMIT, "tcpdump to listen")
        url = next(line for line in log.read_text().splitlines() if line.startswith("a text: ")).split()[-1]
        with urllib.request.urlopen(url, timeout=LIMIT) as answer:
            assert answer.read().startswith(b"Sending,L1")
        until("line 2  text by GSM from 13957102001 to 13957102002, on as MESSAGE to 13957100001: “hello”")
        wait_until(lambda: "hello" in run("cat", "/tmp/seen")[1], LIMIT, "the MESSAGE on the wire")
        assert " MESSAGE sip:13957100001" in run("cat", "/tmp/seen")[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 0
    finally:
        process.kill()
        process.communicate()


def test_lab_goip_says_what_is_in_its_way(world: World, tmp_path: Path) -> None:
    """No lab up, a port that is taken, an address outside the lab, a telephone that is none: one line each, and the
    gateway is as before.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for words, code, said in (
            (("--http", f"127.0.0.1:{port}", "--listen", "127.0.0.1:0"), 3, "choose another --http"),
            (("--server", "192.0.2.1:44444"), 2, "outside the lab"),
            (("--forward", "zhing"), 2, "neither a number nor a telephone"),
            (("--cid-prefix", "x"), 2, "has not the form"),
            (("--no-sip", "--actor", "goip1"), 2, "leave out --actor"),
        ):
            process = goip(world, *words)
            _, errors = process.communicate(timeout=LIMIT)
            assert process.returncode == code, errors
            assert said in errors.splitlines()[-1]
    process = subprocess.Popen(
        [sys.executable, "-m", "pbxguard", "lab", "goip", "--actor", "goip1"],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"PBXGUARD_STATE": str(tmp_path)},
    )  # fmt: skip
    _, errors = process.communicate(timeout=LIMIT)
    assert (process.returncode, "the lab is not up" in errors) == (3, True)
