"""The calls of a run by the scenario that they are from, for tests that ask for one after the other."""

import pytest

from pbxguard.lab.evidence import Evidence
from pbxguard.lab.run import Run
from pbxguard.lab.scenario import Scenario


def call_of(run: Run, name: str, number: int) -> Evidence:
    """The call of a scenario's step, from 0; where the run skipped that scenario, so does the test, by its reason."""
    calls = [call for call in run.calls if call.scenario == name]
    why = next((each["why"] for each in run.skipped if each["scenario"] == name), "")
    if why and not calls:
        pytest.skip(f"{name}: {why}")
    return calls[number]


def not_made(run: Run, scenarios: list[Scenario]) -> list[Scenario]:
    """Those of *scenarios* that this machine could not make: the links of each are what it lacks."""
    found = [each for each in scenarios if each.name in {skipped["scenario"] for skipped in run.skipped}]
    assert all(any(step.links for step in each.step) for each in found), [each.name for each in found]
    return found
