"""The calls of a run by the scenario that they are from, for tests that ask for one after the other."""

import warnings
from collections.abc import Callable, Sequence

import pytest
from processors import HOST, Host

from pbxguard.lab.evidence import Evidence
from pbxguard.lab.room import STUTTERS_AT
from pbxguard.lab.run import Run
from pbxguard.lab.scenario import Scenario


def in_time(place: Callable[[Sequence[Scenario]], Run], scenarios: Sequence[Scenario], host: Host = HOST) -> Run:
    """A run of *scenarios*; where the host took processors meanwhile, what stuttered is placed again, with a warning.

    Each placing has a folder and a report of its own; the run that is given is the first, with the last calls.

    A call that stutters because the machine stood still says nothing about the lab; one that failed in anything else
    stays failed. On a machine that has its processors nothing is placed twice.
    """
    run = place(scenarios)
    failed = [call for call in run.calls if not call.passed]
    stuttered = {call.scenario for call in failed} - {call.scenario for call in failed if not call.stuttered}
    if not stuttered or run.stolen < STUTTERS_AT:
        return run
    seen = [f"{call.folder}: {'; '.join(call.faults)}" for call in failed if call.scenario in stuttered]
    warnings.warn(
        f"the host took {run.stolen:.0%} of the processors; placed again:\n" + "\n".join(seen), stacklevel=1
    )
    host.wait(look=True)
    again = place([scenario for scenario in scenarios if scenario.name in stuttered])
    placed = {call.scenario for call in again.calls}
    run.calls = [call for call in run.calls if call.scenario not in placed] + again.calls
    return run


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
