"""Tests of pbxguard.lab.bench: figures are read right, the search ends where it should, all is removed."""

import json
import sqlite3
import subprocess
import sys

import pytest
from click.testing import CliRunner

from pbxguard.lab.bench import big, calls, rows
from pbxguard.lab.bench.__main__ import Bench, main
from pbxguard.lab.bench.calls import Search, quantile
from pbxguard.lab.bench.decide import listed_number, measure, subscriber_number
from pbxguard.lab.bench.load import Load, read_statistics
from pbxguard.lab.bench.pbx import CALLEE, Asterisk, Freeswitch
from pbxguard.lab.bench.rig import NoImage, Rig
from pbxguard.screening.call import Subscriber
from pbxguard.screening.lists import Action, ListEntry
from pbxguard.store import Store

HEADER = "CurrentTime;OutgoingCall(P);TotalCallCreated;SuccessfulCall(P);SuccessfulCall(C);Retransmissions(C);\n"


def statistics(path, lines):
    """A file as SIPp writes it: one line a second, (placed, ended well, retransmissions so far)."""
    created = ended = 0
    text = HEADER
    for second, (placed, well, retransmissions) in enumerate(lines):
        created, ended = created + placed, ended + well
        stamp = f"2026-01-01\t00:00:{second:02d}.000000\t{1767225600 + second}.000000"
        text += f"{stamp};{placed};{created};{well};{ended};{retransmissions};\n"
    path.write_text(text)
    return path


def load(rate, *, held):
    """A load that was held, or in which every call failed."""
    return Load(CALLEE, rate, rate, rate, 100, 0 if held else 100, 0)


def test_statistics_are_read_per_second(tmp_path):
    """The rate is that of the seconds in which calls were placed, without the first and the wait for answers."""
    file = statistics(
        tmp_path / "s.csv", [(0, 0, 0), (90, 80, 0), (100, 100, 0), (100, 98, 0), (10, 22, 0), (0, 0, 0)]
    )
    found = read_statistics(file, CALLEE, 100)
    assert (found.offered, found.completed) == (100, 99)
    assert (found.calls, found.failed) == (300, 0)
    assert found.held


@pytest.mark.parametrize(
    ("well", "retransmissions", "held"), [(1000, 0, True), (1000, 1, True), (1000, 2, False), (999, 0, False)]
)
def test_held_means_no_failure_and_next_to_no_retransmission(tmp_path, well, retransmissions, held):
    """One lost packet in a thousand calls is no overload; a failed call is."""
    file = statistics(tmp_path / "s.csv", [(0, 0, 0), (0, 0, 0), (1000, well, retransmissions)])
    assert read_statistics(file, CALLEE, 1000).held is held


@pytest.mark.parametrize("pbx", [Asterisk(), Freeswitch()], ids=lambda pbx: pbx.kind)
@pytest.mark.parametrize("share", [0.07, 0.3, 0.5, 0.95])
def test_search_ends_at_the_limit(pbx, share):
    """Six rounds of bisection leave less than 5 % between what is held and what is not."""
    limit = share * pbx.rates[1]
    search = Search(CALLEE, *pbx.rates)
    for _ in range(6):
        rate = search.next_rate
        search.learn(load(rate, held=rate <= limit))
    assert search.low <= limit < search.high
    assert search.step < 0.05


def test_quantile_is_by_nearest_rank():
    """p50 and p99 of 100 values, and of none."""
    values = range(1, 101)
    assert (quantile(values, 0.5), quantile(values, 0.99)) == (51, 100)
    assert quantile([], 0.5) == float("inf")


def searched(path, low):
    """A search that has ended at *low*."""
    return Search(path, low, low * 1.04)


@pytest.mark.parametrize(
    ("pbx", "name"),
    [(Asterisk(), "AstDB DB_EXISTS"), (Freeswitch(), "mod_blacklist")],
    ids=["asterisk", "freeswitch"],
)
def test_the_ratio_is_that_of_the_guard_and_its_rival(pbx, name):
    """Calls/s held by the guard over those of what an operator has already; every path's own figure beside it."""
    held = {pbx.bare: 500, pbx.rival[0]: 400, CALLEE: 380}
    found = calls.rate_rows(pbx, {path: searched(path, low) for path, low in held.items()})
    assert found[0].what == f"calls/s held with a screened reject, {pbx.title}"
    assert name in found[0].against
    assert (found[0].goal, found[0].value, found[0].met) == (">= 0.9", 0.95, True)
    assert [row.value for row in found[1:]] == [500, 400, 380]


@pytest.mark.parametrize(
    ("pbx", "judged"),
    [(Asterisk(), [("<= 2", False), ("<= 10", True)]), (Freeswitch(), [("", None), ("<= 30", True)])],
    ids=["asterisk", "freeswitch"],
)
def test_added_delay_is_judged_by_the_goals_of_the_pbx(pbx, judged):
    """Asterisk has goals for p50 and p99, FreeSWITCH for p99; its p50 is a figure."""
    found = calls.delay_result(pbx, [6.0] * 100, [1.0] * 100)
    assert [(row.goal, row.met) for row in found] == judged
    assert [row.value for row in found] == [5, 5]


@pytest.mark.parametrize("part", ["a", "b", "c"])
def test_a_goal_that_cannot_be_measured_has_the_same_name(part):
    """A row without a value can be told to be the one that another machine has with a value."""
    pbx = Freeswitch()
    if part == "a":
        measured = calls.rate_rows(pbx, {path: searched(path, 300) for path in pbx.paths})
    elif part == "c":
        measured = calls.delay_result(pbx, [2.0], [1.0])
    else:
        measured = [calls.overload_row(pbx, CALLEE, load(600, held=True), 400)]
    wanted = {(row.what, row.against, row.goal, row.unit) for row in measured if row.goal}
    found = calls.goals(pbx, part, "no image")
    assert {(row.what, row.against, row.goal, row.unit) for row in found} == wanted
    assert {(row.value, row.met, row.why) for row in found} == {(None, None, "no image")}


def test_a_machine_without_freeswitch_has_not_failed():
    """Its goals become rows that name the remedy, the run counts as complete, and Asterisk is still to come."""
    pbxs = [Freeswitch(), Asterisk()]
    bench = Bench(["cpu", "c", "a", "b"], pbxs)
    bench.leave_out(pbxs[0], "tag an image")
    assert [row.why for row in bench.rows] == ["tag an image"] * 3
    assert bench.left == ["cpu asterisk", "c asterisk", "a asterisk", "b asterisk"]
    assert bench.incomplete is False


def test_goals_are_judged_both_ways():
    """At the goal is met, past it is not; without a value it is neither."""
    assert rows.at_least("a", "w", "x", 0.9, 0.9, "ratio").met is True
    assert rows.at_least("a", "w", "x", 0.9, 0.89, "ratio").met is False
    assert rows.at_most("c", "w", "x", 2, 2.0, "ms").met is True
    assert rows.at_most("c", "w", "x", 2, 2.1, "ms").met is False
    assert rows.unmeasured("f", "w", "x", "<= 1", "s", "no clock").met is None


def test_json_has_the_agreed_form(tmp_path):
    """Every row has what, against, goal, value, unit and met; one without a value says why."""
    found = [rows.figure("a", "w", 1.23456, "ms"), rows.unmeasured("f", "v", "-", "<= 1", "s", "no clock")]
    path = tmp_path / "new" / "bench.json"
    rows.write(path, found, {"machine": rows.machine()})
    content = json.loads(path.read_text())
    assert content["machine"]["cpus"] >= 1
    assert content["rows"] == [
        {"what": "w", "against": "-", "goal": "", "value": 1.235, "unit": "ms", "met": None},
        {"what": "v", "against": "-", "goal": "<= 1", "value": None, "unit": "s", "met": None, "why": "no clock"},
    ]


def test_generated_numbers_are_all_different():
    """No number of a big list is there twice, which would make it a smaller list."""
    assert len({listed_number(place) for place in range(50_000)}) == 50_000


def test_decisions_are_timed_on_the_real_rules(tmp_path):
    """Half of the callers are on the list and refused for it; the others are let through by consent."""
    path = tmp_path / "store" / "pbxguard.db"
    path.parent.mkdir()
    with Store.open(path) as store:
        store.import_entries(ListEntry("", listed_number(place), Action.BLOCK, "system") for place in range(100))
        store.import_subscribers(Subscriber(subscriber_number(place), "cm", "zhejiang", "zh") for place in range(100))
    took = measure(str(path), 200, 100)
    assert sum(took["reasons"].values()) == 200
    assert set(took["reasons"]) == {"system_blocklist", "intl_default_off"}
    assert 0 < took["p50_us"] <= took["p99_us"] <= took["max_us"]


def test_consents_of_the_bench_let_calls_through(tmp_path):
    """Subscribers opted in by the quick way get the calls from Hong Kong that no list blocks, with the notice."""
    store = tmp_path / "store" / "pbxguard.db"
    found = big.import_rows(tmp_path, 2000, lambda _: None)
    assert any(row.goal == "<= 2" for row in found)
    found = big.decision_rows(tmp_path, 2000, lambda _: None)
    assert [row.unit for row in found] == ["us", "us", "MB"]
    with sqlite3.connect(store) as connection:
        assert connection.execute("SELECT count(*) FROM consent_state").fetchone() == (2000,)
    connection.close()
    took = measure(str(store), 200, 2000)
    assert set(took["reasons"]) == {"system_blocklist", "intl_origin_notice"}


def test_unknown_part_is_a_usage_error():
    """`--only` names the parts that there are and ends with 2."""
    result = CliRunner().invoke(main, ["--only", "a,zz"])
    assert result.exit_code == 2
    assert "the parts are" in result.output


def test_unknown_pbx_is_a_usage_error():
    """`--pbx` is asterisk, freeswitch or both."""
    assert CliRunner().invoke(main, ["--pbx", "kamailio"]).exit_code == 2


def test_without_an_engine_the_rows_say_why(tmp_path, monkeypatch):
    """No Docker engine: exit 3, the JSON is written, and each row of the calls has the reason."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.setenv("PBXGUARD_STATE", str(tmp_path / "state"))
    output = tmp_path / "bench.json"
    command = [sys.executable, "-m", "pbxguard.lab.bench", "--only", "c", "--quick", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    found = {row["what"]: row for row in json.loads(output.read_text())["rows"]}
    for title in ("Asterisk", "FreeSWITCH"):
        row = found[f"added post-dial delay, {title}"]
        assert row["value"] is None
        assert "no Docker engine answers" in row["why"]


@pytest.mark.lab
@pytest.mark.parametrize("make", [Asterisk, Freeswitch], ids=["asterisk", "freeswitch"])
def test_a_load_is_refused_by_each_path_and_nothing_stays(tmp_path, make):
    """The PBX of the bench refuses every call on all three paths, the guard's CPU is seen, and all is removed."""
    from pbxguard.lab.bench.load import place
    from pbxguard.lab.bench.rig import BenchEngine

    pbx = make()
    try:
        with Rig(tmp_path / "calls", pbx) as rig:
            for path in pbx.paths:
                found = place(rig, path, 20, 2, answers=True)
                assert (found.calls, found.failed) == (40, 0), path
                assert len(found.answers_ms) == 40
                rig.settle()
            assert rig.cpu()["handler"] > 0
    except NoImage as error:
        pytest.skip(f"bench of FreeSWITCH: {error}")
    assert rig.handler.pid is None
    engine = BenchEngine(tmp_path / "calls")
    try:
        assert engine.remove_all() == 0
    finally:
        engine.close()
