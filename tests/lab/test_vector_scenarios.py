"""The pack's vectors read as scenarios: nothing is left out, and what the lab cannot do is said."""

import pytest

from pbxguard import packs
from pbxguard.config import Settings, TrunkSettings
from pbxguard.errors import BadInput
from pbxguard.lab import vectors

ROWS = [row for row in packs.table("cn", "vectors.csv") if row["channel"] == "voice"]


def test_every_voice_vector_is_a_call() -> None:
    """Each voice row of the pack's one file of vectors is one call, expected as the row says."""
    steps = [step for scenario in vectors.scenarios(Settings()) for step in scenario.step]
    assert sorted(int(step.title.split(":")[0].split()[1]) for step in steps) == [int(row["n"]) for row in ROWS]
    known = {step.title.split(":")[0].split()[1]: step for step in steps}
    for row in ROWS:
        step = known[row["n"]]
        assert (step.call.cli, step.expect.cli_class, step.expect.reason) == (row["cli"], row["class"], row["reason"])
        assert step.expect.sip_status == int(row["sip_status"])
        assert (step.expect.verdict == "block") == (row["verdict"] == "block") == (row["sip_status"] != "200")


def test_rows_of_one_cli_take_turns() -> None:
    """What is noted of a CLI before one call would be there in another: such rows are steps of one scenario."""
    found = vectors.scenarios(Settings())
    clis = [{step.call.cli for step in scenario.step} for scenario in found]
    assert all(len(each) == 1 for each in clis)
    assert len({next(iter(each)) for each in clis}) == len(found)


def test_a_trunk_that_the_lab_lacks_is_named() -> None:
    """A site whose settings have no trunk of a row's kind is told which row and which kind."""
    settings = Settings(trunks={"only": TrunkSettings(kind="national")})
    with pytest.raises(BadInput, match=r"vector \d+: the lab has no trunk of kind intl_gateway"):
        vectors.scenarios(settings)
