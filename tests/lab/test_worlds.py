"""Several worlds of the lab side by side: nothing of one is in another, and none outlives its run."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from placed import call_of, not_made

from pbxguard.config import Settings
from pbxguard.errors import LabUnavailable
from pbxguard.lab import room, run, topology
from pbxguard.lab.callers import Callers, Placing
from pbxguard.lab.engine import Container, Engine
from pbxguard.lab.evidence import Evidence
from pbxguard.lab.goip.plan import GatewayPlan
from pbxguard.lab.links import LinkFault
from pbxguard.lab.scenario import Given, Scenario
from pbxguard.lab.scenariofile import load
from pbxguard.lab.topology import Topology
from pbxguard.lab.waiting import wait_for, wait_until
from pbxguard.lab.world import ASTERISK_IMAGE, World
from pbxguard.resources import SCENARIOS

Run = Callable[..., "subprocess.CompletedProcess[str]"]

lab = [pytest.mark.lab, pytest.mark.timeout(300)]

ALL = [Topology(index) for index in range(topology.MAX_WORLDS)]


def test_world_0_is_the_lab_of_the_readme() -> None:
    """The first world has the addresses and names that users know."""
    home = Topology()

    assert [str(net) for net in (home.carrier, home.access, home.listen)] == [
        "198.18.0.0/24", "198.18.1.0/24", "198.18.2.0/24",
    ]  # fmt: skip
    assert (home.name("pbx"), str(home.guard_address), str(home.pbx_access)) == (
        "pbxguard-pbx", "198.18.0.1", "198.18.1.10",
    )  # fmt: skip
    assert home.callers == topology.CALLERS
    assert home.phones == topology.PHONES


def test_no_two_worlds_share_an_address_or_a_name() -> None:
    """Every address is of one world, in the benchmark range, and an actor has the same name in each."""
    addresses = [address for world in ALL for address in world.names()]
    assert len(set(addresses)) == len(addresses)
    assert all(address.startswith("198.18.") for address in addresses)
    assert all(topology.names()[address] == name for world in ALL for address, name in world.names().items())
    assert len({world.name("pbx") for world in ALL}) == len(ALL)
    nets = [world.network(number) for world in ALL for number in range(16)]
    assert not any(a.overlaps(b) for a in nets for b in nets if a is not b)


def test_a_pbx_of_any_world_is_known_by_its_address() -> None:
    """A capture is read without knowing which world it is from."""
    assert {str(world.pbx_carrier) for world in ALL} | {
        str(world.pbx_access) for world in ALL
    } <= topology.PBX_ADDRESSES


@pytest.mark.parametrize("index", [-1, topology.MAX_WORLDS])
def test_there_are_no_more_worlds(index: int) -> None:
    """A world beyond the range is refused."""
    with pytest.raises(ValueError, match="world"):
        Topology(index)


async def test_work_is_seen_to_its_end_however_often_it_is_cancelled() -> None:
    """A cancelled task waits for the thread that brings a world up, tells it to hurry, and is cancelled then."""
    begun, hurried, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        hurried.wait(10)
        ended.set()

    task = asyncio.create_task(run._finished(work, hurried.set))
    await wait_for(begun.is_set, 5, "the work to begin")
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert ended.is_set()


def scenario(name: str, *, consent: str = "", callee: str = "zhang", steps: int = 1) -> Scenario:
    """A scenario that places calls to *callee*, and changes the consents of *consent*."""
    given = {"registry": [{"verb": "open", "number": consent, "class": "hmt"}]} if consent else {}
    step = {
        "title": name, "given": given, "call": {"cli": "1", "callee": callee, "trunk": "natl"},
        "expect": {"verdict": "allow", "reason": "default", "sip_status": 200},
    }  # fmt: skip
    return Scenario.model_validate({"name": name, "title": name, "step": [step] * steps})


def test_who_changes_a_subscriber_comes_last_and_long_ones_first(tmp_path: Path) -> None:
    """Consents stay changed, so scenarios that change some are dealt after the others; else the longest first."""
    given = [scenario("a", consent="li"), scenario("b"), scenario("c", steps=3), scenario("d", consent="family")]
    deal = run._Deal(given, run.Watch(), tmp_path, 12)

    assert [each.name for _, each in deal._ordinary] == ["c", "b", "a", "d"]
    assert run.changed_by(given[0]) == {"13957100002"}


async def test_nobody_calls_a_number_whose_consents_change(tmp_path: Path) -> None:
    """Two scenarios that change one subscriber take turns, one that only calls somebody else does not wait."""
    stage = object.__new__(run.Stage)
    stage._quiet, stage._used, stage._changing = asyncio.Condition(), Counter(), set()
    order: list[str] = []
    go = asyncio.Event()

    async def one(each: Scenario) -> None:
        async with stage.undisturbed(each):
            order.append(each.name)
            await go.wait()

    async with asyncio.TaskGroup() as group:
        for each in (
            scenario("calls li", callee="li"),
            scenario("changes li", consent="li", callee="li"),
            scenario("calls zhang"),
            scenario("changes li again", consent="li", callee="li"),
        ):
            group.create_task(one(each))
            await wait_for(lambda: bool(order), 1, "the first")
        await wait_for(lambda: len(order) == 2, 1, "the two that do not disturb each other")
        at_first = list(order)
        go.set()

    assert at_first == ["calls li", "calls zhang"]
    assert sorted(order[2:]) == ["changes li", "changes li again"]
    assert not +stage._used
    assert not stage._changing


class Heard(run.Watch):
    """What of a run was told."""

    def __init__(self) -> None:
        self.results: list[Evidence] = []

    def ended(self, world: int, result: Evidence) -> None:
        self.results.append(result)


class Bare(World):
    """A world of which nothing runs; setting its gateways up fails for one of them."""

    def __init__(self) -> None:
        self.net = Topology()
        self.gateways = {c.name: GatewayPlan(caller_id="from") for c in self.net.callers if c.gateway is not None}
        self.tried: list[str] = []
        self.said: list[str] = []
        self.say = self.said.append
        self.broken = ""

    def gateway(self, name: str, plan: GatewayPlan | None = None) -> None:
        self.tried.append(name)
        assert plan is not None
        self.gateways[name] = plan
        if name == self.broken:
            raise LabUnavailable("it does not register")


def bare(tmp_path: Path) -> run.Stage:
    """A stage of a world of which nothing runs."""
    stage = object.__new__(run.Stage)
    stage.world, stage.callers = Bare(), Callers(None, "")  # type: ignore[arg-type]
    stage._unsettled, stage.store_url, stage.state = set(), str(tmp_path / "no" / "such" / "folder.db"), tmp_path
    return stage


async def test_what_cannot_be_given_fails_its_calls_and_not_the_run(tmp_path: Path) -> None:
    """A store that is locked or gone, a gateway that does not come up: each call of the scenario fails with that."""
    stage, watch = bare(tmp_path), Heard()
    plain = scenario("a", consent="li", steps=2)
    found = await run._Playing(stage, plain, tmp_path, watch).evidence()
    assert [(each.scenario, each.passed) for each in found] == [("a", False)] * 2
    assert all("folder.db" in each.faults[0] for each in found)
    assert watch.results == found

    assert isinstance(stage.world, Bare)
    stage.world.broken = "goip1"
    alone = plain.model_copy(update={"alone": True})
    found = await run._Playing(stage, alone, tmp_path, watch).evidence()
    assert [each.faults for each in found] == [("it does not register",)] * 2


async def test_gateways_are_set_up_again_after_a_failure(tmp_path: Path) -> None:
    """One that did not come up is tried again, though its settings are the right ones; a failing reset is said."""
    stage = bare(tmp_path)
    world = stage.world
    assert isinstance(world, Bare)
    world.broken = "goip1"
    await run._put_back(world, "the gateways' settings", stage.set_up({}))
    assert world.said == [
        "the gateways' settings could not be put back: it does not register; `pbxguard lab up` does it"
    ]
    world.broken = ""
    await stage.set_up({})
    await stage.set_up({})
    assert world.tried == ["goip1", "goip1", "goip2"]


def test_a_link_that_cannot_be_made_skips_its_scenario_by_name(tmp_path: Path) -> None:
    """The tests of its calls are skipped with the run's reason; one that has no link is never let off."""
    done = run.Run("x", tmp_path, skipped=[{"scenario": "a", "why": "no sch_netem here"}])
    with pytest.raises(pytest.skip.Exception, match="a: no sch_netem here"):
        call_of(done, "a", 0)
    with pytest.raises(IndexError):
        call_of(done, "b", 0)
    plain = scenario("a")
    with pytest.raises(AssertionError):
        not_made(done, [plain])
    cut = plain.step[0].model_copy(update={"links": (LinkFault(actor="pbx", loss=50),)})
    linked = plain.model_copy(update={"step": (cut,)})
    assert not_made(done, [linked, scenario("b")]) == [linked]


def others(world: World) -> list[str]:
    """What of other worlds than the first runs."""
    return [name for name in world.engine.running() if re.match(r"pbxguard-\d", name)]


class TestReal:
    """With containers."""

    pytestmark = lab

    def test_scenarios_are_dealt_to_worlds(self, world: World, pbxguard: Run, tmp_path: Path) -> None:
        """Two worlds share a run, each with what it needs; all is as expected, and the second is gone afterwards."""
        before = world.handler.pid
        done = pbxguard(
            "lab", "run", "consent", "block-subscriber", "handler-1-killed", "allow-subscriber", "block-exact",
            "--jobs", "2", "--evidence", str(tmp_path), timeout=200,
        )  # fmt: skip

        assert done.returncode == 0, done.stdout + done.stderr
        (report,) = [json.loads(path.read_text()) for path in tmp_path.glob("*/report.json")]
        assert (report["passed"], report["failed"]) == (9, 0)
        assert set(report["dealt"].values()) == {0, 1}
        assert report["dealt"]["handler-1-killed"] == 1
        assert world.is_up()
        assert world.handler.pid not in (None, before)
        assert world.handler.healthy(world.state)
        assert world.engine.worlds() == {0}
        assert not list((world.root / "worlds").glob("*"))

    async def test_a_world_that_does_not_come_up_leaves_its_part_to_the_others(
        self, world: World, tmp_path: Path
    ) -> None:
        """The run goes on without it, and says so."""

        class Lame(World):
            def up(self, listen: str | None = None) -> None:
                raise LabUnavailable(f"nothing for {listen}")

        class Board(run.Watch):
            said: ClassVar[list[tuple[int, str]]] = []

            def say(self, world: int, what: str) -> None:
                self.said.append((world, what))

        chosen = [each for each in load(SCENARIOS) if each.name == "cancel"]
        with Lame(Settings(state=world.state), index=1) as lame:
            async with asyncio.timeout(60):
                done = await run.run_scenarios(world, chosen, tmp_path, beside=[lame], watch=Board())

        assert [call.faults for call in done.calls] == [()]
        assert set(done.dealt.values()) == {0}
        assert (1, "did not come up: nothing for None") in Board.said
        assert (0, "waiting for the other worlds") in Board.said

    def test_what_a_killed_run_leaves_is_found_by_its_label(self, world: World) -> None:
        """Containers, networks and handler of a killed run's world are removed; the first world is not touched."""
        kept = set(world.engine.running())
        engine = Engine(world.lab.parent, 3)
        net = Topology(3)
        try:
            engine.network(net.name("carrier"), net.carrier, internal=True)
            left = Container(net.name("intl"), ASTERISK_IMAGE, {net.name("carrier"): net.carrier[21]},
                             command=("sleep", "300"))  # fmt: skip
            engine.start(left)
        finally:
            engine.close()
        with World(Settings(state=world.state), index=3) as crashed:
            program = (sys.executable, "-c", "import time; time.sleep(300)", "serve")
            child = subprocess.Popen(program)
            (crashed.root / "handler.pid").write_bytes(f"{child.pid}\n{crashed.state}".encode())
        assert world.engine.worlds() == {0, 3}
        assert "world 3" in {row.name for row in world.status()}

        removed = world.down_others()

        assert removed == 3
        assert child.wait(5) == -signal.SIGTERM
        assert world.engine.worlds() == {0}
        assert set(world.engine.running()) == kept
        assert world.down_others() == 0

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_an_ended_run_takes_its_worlds_down(self, world: World, tmp_path: Path, number: signal.Signals) -> None:
        """Ctrl-C or SIGTERM while a second world comes up takes that down; the lab that was up stays as it was."""
        running = subprocess.Popen(
            [sys.executable, "-m", "pbxguard", "lab", "run", "--jobs", "2", "--evidence", str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL,
            env=os.environ | {"PBXGUARD_STATE": str(world.state), "COLUMNS": "200"},
        )  # fmt: skip
        with running:
            wait_until(
                lambda: len(others(world)) >= 3 or running.poll() is not None, 150, "containers of the second world"
            )
            ended = running.poll()
            running.send_signal(number)
            said, _ = running.communicate(timeout=90)

        assert ended is None, said
        assert running.returncode == (1 if number == signal.SIGINT else 128 + number), said
        assert "Traceback" not in said, said[-3000:]
        assert world.engine.worlds() == {0}
        assert world.is_up()
        assert world.handler.healthy(world.state)

    def test_an_interrupted_run_leaves_the_gateways_as_they_were(
        self, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ctrl-C in a scenario that sets a gateway up: the lab has its own settings again, and no error but that."""

        async def interrupted(self: Callers, call: Placing) -> None:
            assert world.gateways["goip1"].caller_id == "rpid"
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()

        monkeypatch.setattr(Callers, "place", interrupted)
        given = Given.model_validate({"gateway": {"goip1": {"caller_id": "rpid"}}})
        plain = scenario("a")
        step = plain.step[0].model_copy(update={"given": given})
        one = plain.model_copy(update={"alone": True, "step": (step,)})
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(run.run_scenarios(world, [one], tmp_path))

        assert world.gateways["goip1"] == world.net.caller("goip1").gateway
        assert world.lines_registered("goip1")
        assert world.handler.healthy(world.state)

    def test_too_many_worlds_are_one_clear_line(self, pbxguard: Run) -> None:
        """More worlds than the machine has room for are refused before anything starts."""
        if len(os.sched_getaffinity(0)) * room.WORLDS_PER_CPU >= topology.MAX_WORLDS:
            pytest.skip("this machine has room for as many worlds as there are")
        done = pbxguard("lab", "run", "--jobs", str(topology.MAX_WORLDS))

        assert (done.returncode, done.stdout) == (3, "")
        assert re.match(r"pbxguard: --jobs 16 is too much for .*; give at most --jobs \d+$", done.stderr.strip())
