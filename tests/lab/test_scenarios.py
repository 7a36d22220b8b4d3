"""Every scenario is placed as a real call; what the caller saw and heard is compared with what is expected."""

import asyncio
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
from placed import call_of, in_time, not_made

from pbxguard import prompts
from pbxguard.config import Settings
from pbxguard.errors import LabUnavailable
from pbxguard.lab import callers, cli, evidence, report, room, vectors
from pbxguard.lab.callers import Callers, Placing
from pbxguard.lab.evidence import Evidence
from pbxguard.lab.run import Run, run_scenarios
from pbxguard.lab.scenario import Scenario
from pbxguard.lab.scenariofile import load
from pbxguard.lab.wire import Address, Capture, RtpPacket
from pbxguard.lab.world import World

FILES = load(Path(__file__).parents[1] / "scenarios")
SCENARIOS = [scenario for scenario in FILES if scenario.pbx in (None, "asterisk")]
STEPS = [(scenario.name, number, step) for scenario in SCENARIOS for number, step in enumerate(scenario.step)]

VECTORS = vectors.scenarios(Settings())

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]


def lacking(run: Run) -> int:
    """How many calls this machine could not make."""
    return sum(len(scenario.step) for scenario in not_made(run, SCENARIOS))


@pytest.fixture(name="run", scope="session")
def _run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All scenarios, placed by three worlds side by side."""
    folder = tmp_path_factory.mktemp("evidence")

    def place(files: Sequence[Scenario]) -> Run:
        with World(world.settings, index=1) as second, World(world.settings, index=2) as third:
            run = asyncio.run(run_scenarios(world, files, folder, calls=room.calls(3), beside=[second, third]))
            report.write(run, "cn")
            return run

    return in_time(place, FILES)


@pytest.fixture(name="refused", scope="session")
def _refused(run: Run) -> list[Evidence]:
    """The calls whose caller heard a whole prompt."""
    return [c for c in run.calls if c.expected and c.expected.prompt and not c.expected.prompt_cut]


@pytest.mark.parametrize(
    ("name", "number", "title"), [(name, number, step.title) for name, number, step in STEPS],
    ids=[f"{name}-{number + 1}" for name, number, _ in STEPS],
)  # fmt: skip
def test_call_goes_as_expected(run: Run, name: str, number: int, title: str) -> None:
    """The call has the expected verdict, status, prompt, labels, display and audio."""
    call = call_of(run, name, number)

    assert call.title == title
    assert call.faults == ()


@pytest.fixture(name="vector_run", scope="session")
def _vector_run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The voice vectors of the CN pack, placed."""
    folder = tmp_path_factory.mktemp("vectors")

    def place(calls: Sequence[Scenario]) -> Run:
        with World(world.settings, index=1) as second:
            return asyncio.run(run_scenarios(world, calls, folder, calls=room.calls(2), beside=[second]))

    return in_time(place, VECTORS)


@pytest.mark.parametrize("title", [step.title for scenario in VECTORS for step in scenario.step])
def test_vector_goes_as_the_pack_says(vector_run: Run, title: str) -> None:
    """A voice vector of the pack, placed as a real call, has its class, verdict, reason and status on the wire.

    A connected one is heard both ways, a refused one hears the prompt of its reason.
    """
    (call,) = [c for c in vector_run.calls if c.title == title]

    assert call.faults == ()


def test_refused_callers_hear_the_prompt_as_early_media(refused: list[Evidence]) -> None:
    """A refusal is 183 with SDP, the whole prompt, then the status: no 200 OK, and no callee that rings."""
    assert len(refused) >= 15
    for call in refused:
        assert call.observed.early_media, call.title
        assert not call.observed.answered, call.title
        assert not call.observed.callee_rang, call.title
        assert not call.observed.q850_zero, call.title
        assert call.observed.prompt_score >= 0.9, call.title


def test_no_other_prompt_matches_what_was_heard(refused: list[Evidence]) -> None:
    """What a caller heard scores as wrong against every prompt but the right one."""
    assert max(call.observed.other_score for call in refused) < 0.3


def test_a_connected_call_leaks_no_prompt(run: Run) -> None:
    """Whoever is connected hears the callee and no prompt."""
    connected = [call for call in run.calls if call.observed.answered]

    assert connected
    assert all(call.observed.prompt == "" for call in connected)


def test_packets_are_numbered_through(run: Run) -> None:
    """Whoever sends sound on a leg numbers its packets from the first to the last, whatever it was the sound of.

    Where one number does not follow the other, the next Asterisk that transcodes makes up thousands of frames, or
    drops what comes. On an undisturbed line no packet is lost, nor its number corrupted.
    """
    calls = [call for call in run.calls if call.observed.answered and call.folder and not call.disturbed]
    senders = 0
    for call in calls:
        capture = Capture.load(call.folder / "call.pcap")  # type: ignore[operator]  # asked above
        legs = evidence.legs_of(capture, capture.leg(call.call_id).invite.header(evidence.TAG) or "")
        assert legs is not None
        sent: dict[tuple[str, Address, Address], list[RtpPacket]] = defaultdict(list)
        for leg in evidence.every_leg(capture, legs):
            for stream in (*leg.streams_to_caller, *leg.streams_to_callee):
                sent[leg.call_id, stream.source, stream.destination] += stream.packets
        senders += len(sent)
        for way, packets in sent.items():
            packets.sort()
            for before, after in itertools.pairwise(packets):
                jump = (after.sequence - before.sequence + 32768) % 65536 - 32768
                assert abs(jump) < 50, (call.title, *way, before.at, after.at, jump)
    assert senders >= 120


def test_every_call_leaves_its_evidence(run: Run) -> None:
    """Wire, ladder, audio and result of each call are there, and the decision wherever the guard made one."""
    for call in run.calls:
        assert call.folder is not None
        names = {path.name for path in call.folder.iterdir()}
        assert {"call.pcap", "ladder.txt", "result.json"} <= names
        assert ("heard-by-caller.wav" in names) == (call.text is None), call.title
        assert ("decision.json" in names) == call.observed.recorded, call.title
        assert call.observed.recorded or call.observed.verdict in ("failed", "none", "unscreened"), call.title


def test_report_json_is_the_contract(run: Run) -> None:
    """report.json has the fields that scripts hold on to."""
    found = json.loads((run.folder / "report.json").read_text())

    assert set(found) >= {"run", "pbx", "passed", "failed", "skipped", "calls"}
    assert found["passed"] + found["failed"] == len(STEPS) - lacking(run)
    assert found["skipped"] == run.skipped
    wanted = {"verdict", "reason", "sip_status", "answered", "callee_rang", "prompt", "prompt_score", "post_dial_ms"}
    for call in found["calls"]:
        assert set(call) >= {
            "scenario",
            "call_id",
            "channel",
            "cli",
            "callee",
            "trunk",
            "expected",
            "observed",
            "passed",
        }
        assert set(call["observed"]) >= wanted


def test_what_is_for_the_other_pbx_is_skipped_by_name(run: Run) -> None:
    """What is for FreeSWITCH alone is not placed here, and named with the reason; what both have is no gap."""
    not_here = {scenario.name for scenario in not_made(run, SCENARIOS)}
    elsewhere = [skipped["scenario"] for skipped in run.skipped if skipped["scenario"] not in not_here]
    here = {scenario.name for scenario in SCENARIOS}
    assert elsewhere == [s.name for s in FILES if s.pbx == "freeswitch" and s.name not in here]
    assert run.skipped[0]["why"] == "it is for freeswitch, and this run is on asterisk"


def test_a_fault_has_expected_observed_and_elapsed(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever breaks a scenario reads what was expected and observed, how long the call took, and how to see more."""
    (scenario,) = [s for s in SCENARIOS if s.name == "block-exact"]
    step = scenario.step[0]
    wrong = step.expect.model_copy(update={"sip_status": 486, "rang": ("zhang",), "headers": {"caller:200.A": True}})
    broken = scenario.model_copy(update={"step": (step.model_copy(update={"expect": wrong}),)})
    run = asyncio.run(run_scenarios(world, [broken], tmp_path))

    status, rang, header = run.calls[0].faults
    assert re.fullmatch(r"sip_status: expected 486, observed \d{3}", status)
    assert rang == "rang: expected zhang, observed none"
    assert header.startswith("headers caller:200.A: expected a 200 message, observed INVITE, 100, 183")
    cli._summary(run)
    told, *_ = said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"✗ {world.pbx}: {scenario.name}: .*, \d+\.\d s", told)
    assert said[1:4] == [f"    {fault}" for fault in run.calls[0].faults]
    assert said[4] == f"    pbxguard lab show {run.calls[0].folder}"


def test_nothing_left_to_run_is_an_error(world: World, tmp_path: Path) -> None:
    """A run of no scenario, or of none for this PBX, is an error and leaves no folder."""
    elsewhere = [s for s in FILES if s.pbx == "freeswitch"]
    for none in ([], elsewhere):
        with pytest.raises(LabUnavailable, match="no scenario was selected"):
            asyncio.run(run_scenarios(world, none, tmp_path))

    assert not list(tmp_path.iterdir())


def test_a_call_that_does_not_end_in_time_is_a_failure(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time-out is a failure with limit and elapsed time, and what was on the wire until then is kept."""

    async def impatient(self: Callers, call: Placing) -> None:
        await place(self, call, limit=1.0)

    place = Callers.place
    monkeypatch.setattr(Callers, "place", impatient)
    monkeypatch.setattr(callers._Originator, "_on_event", lambda *_: None)  # the end of the call is never told
    scenario = [s for s in SCENARIOS if s.name == "default-off"]
    run = asyncio.run(run_scenarios(world, scenario, tmp_path))
    (call,) = run.calls

    assert run.failed == 1
    assert call.faults[0] == "end of the call from intl: expected within 1 s, observed none after 11 s"
    assert call.folder is not None
    assert (call.folder / "call.pcap").stat().st_size > 10_000


def test_html_report_shows_hostile_text_as_text(run: Run) -> None:
    """What a caller wrote is escaped in the page; the page has no script but its own."""
    page = (run.folder / "report.html").read_text()
    template = (Path(report.__file__).parent / "templates" / "report.html").read_text()

    assert "abc%22%27DEF" in page
    assert page.lower().count("<script") == template.count("<script")


def test_junit_lists_every_call(run: Run) -> None:
    """junit.xml has one case a call."""
    assert (run.folder / "junit.xml").read_text().count("<testcase ") == len(STEPS) - lacking(run) + len(run.skipped)


def test_the_wrong_prompt_is_found_out(world: World, tmp_path: Path) -> None:
    """When the PBX plays another prompt than the verdict asks for, the call fails with that as its cause."""
    sounds = world.root / "prompts" / "zh"
    right, wrong = sounds / "system_blocklist.wav", sounds / "cli_missing.wav"
    kept = right.read_bytes()
    scenario = [s for s in SCENARIOS if s.name == "national-cli-from-abroad"]
    try:
        right.write_bytes(wrong.read_bytes())
        run = asyncio.run(run_scenarios(world, scenario, tmp_path))
    finally:
        right.write_bytes(kept)

    assert run.failed == 1
    assert any("observed cli_missing (" in fault for fault in run.calls[0].faults)


def test_silence_instead_of_the_prompt_is_found_out(world: World, tmp_path: Path) -> None:
    """A refusal whose prompt file is missing on the PBX is a failure, although the status is right."""
    sound = world.root / "prompts" / "zh" / "system_blocklist.wav"
    kept = sound.read_bytes()
    scenario = [s for s in SCENARIOS if s.name == "national-cli-from-abroad"]
    try:
        sound.unlink()
        run = asyncio.run(run_scenarios(world, scenario, tmp_path))
    finally:
        sound.write_bytes(kept)

    assert run.calls[0].observed.sip_status == 603
    assert any("observed no audio at all" in fault for fault in run.calls[0].faults)


def test_legs_of_another_call_do_not_count(run: Run) -> None:
    """A capture holds the calls that were under way at the time; only the tagged one is looked at."""
    folder = run.calls[0].folder
    assert folder is not None

    assert evidence.legs_of(Capture.load(folder / "call.pcap"), "0" * 16) is None
    assert set(prompts.names()) >= {call.observed.prompt for call in run.calls if call.observed.prompt}
