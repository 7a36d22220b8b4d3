"""The whole scenario matrix on a real FreeSWITCH: the same files, the same results but for what is declared.

It has a lab of its own, which is down again before another test brings the Asterisk lab up.
"""

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from own_phone import OwnPhone
from placed import call_of, in_time

from pbxguard.config import Settings
from pbxguard.errors import LabUnavailable
from pbxguard.lab import room, vectors
from pbxguard.lab.callers import Callers
from pbxguard.lab.evidence import Evidence
from pbxguard.lab.run import Run, Stage, run_scenarios
from pbxguard.lab.scenario import CallStep, Scenario
from pbxguard.lab.scenariofile import load
from pbxguard.lab.world import FREESWITCH_IMAGE, World
from pbxguard.screening.treatment import ASTERISK, FREESWITCH, refusal

FILES = load(Path(__file__).parents[1] / "scenarios")
SCENARIOS = [scenario for scenario in FILES if scenario.pbx in (None, "freeswitch")]
STEPS = [(scenario.name, number) for scenario in SCENARIOS for number in range(len(scenario.step))]
VECTORS = vectors.scenarios(Settings())

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]


@pytest.fixture(name="switch", scope="module")
def _switch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The lab with FreeSWITCH, up; skipped where no image of it is there."""
    if shutil.which("docker") is None and not Path("/var/run/docker.sock").exists():
        pytest.skip("no Docker engine; `make test` sets one up (needs root or sudo)")
    with World(Settings(state=tmp_path_factory.mktemp("fs-state")), pbx="freeswitch") as world:
        try:
            world.engine.require_image(FREESWITCH_IMAGE)
        except LabUnavailable:
            pytest.skip(
                f"FreeSWITCH scenarios: no image {FREESWITCH_IMAGE}; tag one of FreeSWITCH 1.10.12 or later so"
            )
        try:
            world.up()
            yield world
        finally:
            world.down()


@pytest.fixture(name="run", scope="module")
def _run(switch: World, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All scenarios on FreeSWITCH, placed by two worlds side by side."""
    folder = tmp_path_factory.mktemp("fs-evidence")
    return in_time(partial(_beside, switch, folder), SCENARIOS)


def _beside(switch: World, folder: Path, chosen: Sequence[Scenario]) -> Run:
    """Placed by two worlds; the second is there for this only."""
    with World(switch.settings, pbx="freeswitch", index=1) as second:
        return asyncio.run(run_scenarios(switch, chosen, folder, calls=room.calls(2), beside=[second]))


@pytest.mark.parametrize(("name", "number"), STEPS, ids=[f"{name}-{number + 1}" for name, number in STEPS])
def test_call_goes_as_on_asterisk(run: Run, name: str, number: int) -> None:
    """The call has the verdict, prompt, labels and audio that it has on Asterisk, and its declared status."""
    call = call_of(run, name, number)

    assert call.faults == ()


def test_two_worlds_share_the_scenarios(run: Run) -> None:
    """A second world with FreeSWITCH comes up beside the first and takes its part."""
    assert set(run.dealt.values()) == {0, 1}


@pytest.fixture(name="vector_run", scope="module")
def _vector_run(switch: World, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The voice vectors of the CN pack on FreeSWITCH, placed."""
    folder = tmp_path_factory.mktemp("fs-vectors")
    return in_time(partial(_beside, switch, folder), VECTORS)


@pytest.mark.parametrize("title", [step.title for scenario in VECTORS for step in scenario.step])
def test_vector_goes_as_on_asterisk(vector_run: Run, title: str) -> None:
    """A voice vector of the pack has its verdict and prompt on FreeSWITCH too, and its declared status."""
    (call,) = [c for c in vector_run.calls if c.title == title]

    assert call.faults == ()


async def _call(switch: World, number: str, folder: Path) -> Evidence:
    async with Callers.open(switch.engine, switch.passwords.ami) as callers:
        stage = Stage(switch, switch.state, callers)
        return await stage.call(
            CallStep(cli="13800138000", callee=number, trunk="natl"), folder, scenario="", title=""
        )


async def test_a_telephone_that_was_restarted_is_the_one_that_rings(switch: World, tmp_path: Path) -> None:
    """Of two registrations of one account the newest alone gets the INVITE, and the PBX tells its address."""
    number = "13957100011"
    with OwnPhone(switch, number) as old:
        assert switch.contacts()[number] == old.address
    with OwnPhone(switch, number) as new:
        told = switch.contacts()[number]
        call = await _call(switch, number, tmp_path / "call")

    assert told == new.address != old.address
    assert call.observed.sip_status == 486
    assert len(set(new.invites)) == 1


def test_the_version_is_told(switch: World) -> None:
    """The lab says which FreeSWITCH it talks to."""
    assert "FreeSWITCH" in switch.version()


def test_nothing_stays_on_the_switch(switch: World, run: Run) -> None:
    """After all calls, those of the killed and the frozen handler too, no channel is left."""
    assert run.calls
    assert "0 total." in switch.fs_cli("show channels")


GROUPS = ["not_opted_in", "own_block", "system", "withheld", "failed"]


@pytest.mark.parametrize("group", GROUPS)
def test_adapters_differ_only_where_declared(group: str) -> None:
    """Between the two PBXs a refusal differs by 608 for system refusals, and by nothing else."""
    ours, theirs = refusal(group, ASTERISK), refusal(group, FREESWITCH)

    assert ours == theirs or (group, ours[0], theirs[0]) == ("system", 603, 608)
