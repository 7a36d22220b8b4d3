"""``registry cutover`` on the command line."""

import csv
import json
import signal
from datetime import UTC, datetime, timedelta

import pytest

from pbxguard.screening.call import Subscriber
from pbxguard.store import DecisionRow, Store

HK, US = "+85261234567", "+12125550100"
COHORT = ("--province", "zhejiang", "--operator", "cm")
CUTOVER = ("registry", "cutover")


def number(n):
    return f"139571{n:05d}"


def call(n, cli=HK, hours=1.0):
    return DecisionRow(
        call_id=f"{n}-{cli}-{hours}", at=datetime.now(UTC) - timedelta(hours=hours), channel="voice", trunk="intl",
        cli_raw=cli, cli_key=cli, cli_class="intl_hk" if cli == HK else "intl_us", callee_raw=number(n),
        callee_key=number(n), verdict="allow", reason="intl_origin_notice",
    )  # fmt: skip


@pytest.fixture
def site(run, state):
    """Five subscribers of China Mobile in Zhejiang: one has opened, one has closed; some had calls."""
    run("registry", "open", number(1))
    run("registry", "close", number(2))
    with Store.open(state / "pbxguard.db") as store:
        store.import_subscribers(Subscriber(number(n), "cm", "zhejiang") for n in range(5))
        store.import_subscribers([Subscriber(number(9), "cu", "hebei")])
        store.record([call(0), call(0, hours=2), call(0, US), call(1), call(3, US), call(4, hours=24 * 40), call(9)])


def lines(run):
    return len(run("registry", "export").stdout.splitlines()) - 1


def status(run, name="zj"):
    return json.loads(run(*CUTOVER, "--status", name, "--json").stdout)


def held(run, n):
    shown = json.loads(run("registry", "show", number(n), "--json").stdout)
    return {each["class"]: each["state"] for each in shown}


def test_dry_run_is_the_default(run, site, tmp_path) -> None:
    """It tells who has answered, who not, and who would have lost which calls, and changes nothing."""
    before = lines(run)
    said = run(*CUTOVER, *COHORT, "--effective", "2022-05-20").stdout
    assert "zhejiang cm: voice of class intl and hmt, from 2022-05-20 00:00:00+08:00 on; a dry run" in said
    assert "3 subscribers would be closed; 2 of them would have lost 4 calls in the last 30 days" in said
    assert "wrote" not in said
    told = json.loads(run(*CUTOVER, *COHORT, "--effective", "2022-05-20", "--json").stdout)
    assert told["cohort"] == {
        "province": "zhejiang",
        "operator": "cm",
        "channel": "voice",
        "classes": ["intl", "hmt"],
    }
    assert told["effective"] == "2022-05-19T16:00:00+00:00"
    assert told["answers"] == [
        {"class": each, "open": 1, "closed": 1, "ended": 0, "never": 3} for each in ("intl", "hmt")
    ]
    assert told["losing"] == {"subscribers": 2, "calls": 4, "by_class": {"intl": 2, "hmt": 2}}
    assert [(each["number"], each["calls"]) for each in told["top"]] == [
        (number(0), {"intl": 1, "hmt": 2}), (number(3), {"intl": 1, "hmt": 0}),
    ]  # fmt: skip
    assert lines(run) == before
    assert list(tmp_path.glob("*.csv")) == []


def test_dry_run_can_be_narrowed_and_written(run, site, tmp_path) -> None:
    """--days, --top and --class bound what is looked at; --csv writes all who would be closed."""
    told = json.loads(run(*CUTOVER, *COHORT, "--days", 60, "--class", "hmt", "--top", 1, "--json").stdout)
    assert told["losing"] == {"subscribers": 2, "calls": 3, "by_class": {"hmt": 3}}
    assert len(told["top"]) == 1
    said = run(*CUTOVER, *COHORT, "--top", 1, "--csv", "all.csv").stdout
    assert "1 of 2; --top shows more" in said
    assert "wrote 3 subscribers to all.csv" in said
    with (tmp_path / "all.csv").open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert [(row["number"], row["classes"], row["intl"], row["hmt"]) for row in rows] == [
        (number(0), "intl hmt", "1", "2"), (number(3), "intl hmt", "1", "0"), (number(4), "intl hmt", "0", "0"),
    ]  # fmt: skip
    assert rows[0]["last_call"]
    assert not rows[2]["last_call"]
    assert "none/x.csv: cannot write it" in run(*CUTOVER, "--csv", "none/x.csv", code=2).stderr
    assert not list(tmp_path.glob("**/*.part"))


def test_apply_status_and_undo(run, site) -> None:
    """Closing in batches, what was done, a batch taken back, then all; the ledger stays whole throughout."""
    words = (*CUTOVER, "--name", "zj", *COHORT, "--effective", "2022-05-20", "--apply", "--batch-size", 2)
    assert run(*words).stdout == "zj: closed 3 subscribers (6 events) in 2 batches; finished\n"
    assert [held(run, n) for n in range(5)] == [
        {"hmt": "close", "intl": "close"}, {"hmt": "open", "intl": "open"}, *[{"hmt": "close", "intl": "close"}] * 3,
    ]  # fmt: skip
    told = status(run)
    assert (told["state"], told["not_answered"], told["effective"]) == ("finished", 0, "2022-05-19T16:00:00+00:00")
    assert [(b["batch"], b["subscribers"], b["events"], b["undone"]) for b in told["batches"]] == [
        (1, 2, 4, None), (2, 1, 2, None),
    ]  # fmt: skip
    assert (
        "zj: zhejiang cm: voice of class intl and hmt, from 2022-05-20 00:00:00+08:00 on; finished"
        in run(*CUTOVER, "--status", "zj").stdout
    )
    run("registry", "open", number(3), "--class", "hmt")
    said = run(*CUTOVER, "--undo", "zj:1").stdout
    assert said == "zj:1: undone 2 subscribers (4 events) in 1 batches; 1 events left alone: opened or closed since\n"
    assert (held(run, 0), held(run, 3), held(run, 4)) == ({}, {"hmt": "open"}, {"hmt": "close", "intl": "close"})
    assert "the defaults of its province apply" in run("registry", "show", number(0)).stdout
    history = json.loads(run("registry", "history", number(0), "--json").stdout)
    assert [(each["what"], each["by"]) for each in history] == [("close", "cutover:zj")] * 2 + [
        ("reset", "cutover:zj")
    ] * 2
    assert json.loads(run(*CUTOVER, "--undo", "zj", "--json").stdout)["undone"] is True
    assert (held(run, 2), held(run, 4)) == ({"hmt": "close", "intl": "close"}, {})
    assert status(run)["state"] == "undone"
    before = lines(run)
    run(*CUTOVER, "--undo", "zj")
    assert lines(run) == before
    assert "cut-over zj was undone" in run(*CUTOVER, "--name", "zj", "--apply", code=2).stderr
    assert run("registry", "verify").exit_code == 0


def test_name_alone_goes_on(run, site) -> None:
    """A cut-over that was begun is taken up by its name; other options than its own are refused."""
    words = (*CUTOVER, "--name", "zj", "--apply")
    assert (
        run(*words, *COHORT, "--class", "hmt").stdout
        == "zj: closed 3 subscribers (3 events) in 1 batches; finished\n"
    )
    before = lines(run)
    assert run(*words).stdout.endswith("zj: closed 0 subscribers (0 events) in 0 batches; finished\n")
    assert json.loads(run(*words, "--json").stdout)["finished"] is True
    assert "another cohort or date" in run(*words, "--province", "hebei", code=2).stderr
    assert lines(run) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--apply", *COHORT), "--apply needs a --name"),
        (("--apply", "--name", "a b"), "a name is letters, digits, points and hyphens"),
        (("--apply", "--name", "zj", "--effective", "2999-01-01"), "its date is still to come"),
        (("--apply", "--name", "zj", "--csv", "x.csv"), "--csv belongs to the dry run"),
        (("--apply", "--undo", "zj"), "three different things"),
        (("--undo", "zj"), "no cut-over 'zj'; there are none"),
        (("--undo", "zj:x"), "'x' is no number of a batch"),
        (("--status", "zj"), "no cut-over 'zj'"),
        (("--province", "atlantis"), "province 'atlantis' is not in pack cn"),
        (("--effective", "soon"), "'soon' is no ISO 8601 time"),
        (("--batch-size", "0"), "1<=x<=100000"),
    ],
)
def test_bad_cutovers(run, words, says) -> None:
    """Wrong usage is one clear line with the remedy, and closes nobody."""
    assert says in run(*CUTOVER, *words, code=2).stderr
    assert lines(run) == 0


def test_unknown_batch(run, site) -> None:
    """A batch that is not there is named with how many there are."""
    run(*CUTOVER, "--name", "zj", *COHORT, "--apply")
    assert "cut-over zj has no batch 7; it has 1" in run(*CUTOVER, "--undo", "zj:7", code=2).stderr


@pytest.mark.parametrize("number_of_signal", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_between_batches(run, program, state, number_of_signal) -> None:
    """Ctrl-C ends a run after the batch that it is at, with exit code 1; the next run closes the others once each."""
    run("registry", "show", number(0))
    with Store.open(state / "pbxguard.db") as store:
        store.import_subscribers(Subscriber(number(n), "cm", "zhejiang") for n in range(3000))
    process = program(*CUTOVER, "--name", "zj", *COHORT, "--apply", "--batch-size", 1)
    with Store.open(state / "pbxguard.db") as store:
        until = datetime.now(UTC) + timedelta(seconds=60)
        while store.head()[0] < 4:
            assert datetime.now(UTC) < until, "no batch in a minute"
            assert process.poll() is None, process.communicate()
    process.send_signal(number_of_signal)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert b"interrupted between batches; `pbxguard registry cutover --name zj --apply` goes on" in said
    assert b"Traceback" not in said
    done = status(run)
    assert done["state"] == "not finished"
    assert 0 < len(done["batches"]) < 3000
    assert done["not_answered"] == 3000 - len(done["batches"])
    said = run(*CUTOVER, "--name", "zj", "--apply").stdout
    assert f"going on after batch {len(done['batches'])}" in said
    assert f"closed {done['not_answered']} subscribers" in said
    told = json.loads(run("registry", "verify", "--json").stdout)
    assert (told["events"], told["states"]) == (6000, 6000)
