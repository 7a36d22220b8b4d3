"""``check --recorded``: the calls of the past against the pack, lists and settings of now."""

import csv
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path

import pytest

from pbxguard import config, packs
from pbxguard.guard import Guard, decision_row
from pbxguard.screening.call import Call, Subscriber
from pbxguard.screening.lists import Action, ListEntry
from pbxguard.screening.treatment import ASTERISK
from pbxguard.store import Store

Z0, HK, UK = "13957100001", "+85261234567", "+442079460000"
ACCEPT = '[screening]\naccept_unverified = ["*"]\n'
NOON = datetime(2026, 6, 1, 4, tzinfo=UTC)


@pytest.fixture
def store(state: Path):
    """A store with a subscriber of Zhejiang."""
    state.mkdir()
    with Store.open(state / "pbxguard.db") as opened:
        opened.add_subscriber(Subscriber(Z0, "cm", "zhejiang"))
        yield opened


@pytest.fixture
def record(store: Store) -> Callable[..., None]:
    """Decide calls as the guard does and keep the decisions; a caller stands for its call, a minute apart."""

    def recording(*callers: str, trunk: str = "natl", settings: str = "", **fields: object) -> None:
        site = config.load(Path(settings) if settings else None)
        guard = Guard(store, packs.load(site.pack, site.screening), site, recording=False, trace=True)
        named = site.trunk(trunk)
        assert named is not None
        before = store.count_decisions()
        try:
            rows = []
            for n, cli in enumerate(callers, before):
                call = Call(f"c{n}@h", NOON + timedelta(minutes=n), named, cli, Z0, **fields)
                rows.append(decision_row(guard.decide(call, ASTERISK)))
            store.record(rows)
        finally:
            guard.close()

    return recording


def replay(run, *words, code=0):
    return run("check", "--recorded", *words, code=code)


def counted(run, *words) -> dict:
    return json.loads(replay(run, "--json", *words).stdout)


def changes(told: dict) -> dict[tuple[str, str], int]:
    return {(f"{c['was']} {c['was_reason']}", f"{c['now']} {c['now_reason']}"): c["calls"] for c in told["changes"]}


def test_nothing_changed_and_nothing_differs(run, record) -> None:
    """With the same pack, lists and registry each call gets the verdict and reason that it had."""
    record("13800138000", "95013", "abc", "+8617012345678", "anonymous")
    record(HK, "85261234567", "+8613800138000", trunk="intl")
    told = counted(run)
    assert (told["calls"], told["changes"], told["left_out"], told["shadow"]) == (8, [], {}, [])
    assert sum(cell["calls"] for cell in told["verdicts"]) == 8
    assert "8 recorded calls; another verdict or reason for 0" in replay(run).stdout


def test_what_the_caller_wrote_is_decided_again(run, record, tmp_path) -> None:
    """Asserted identity, diversion and channel of the call count again, on the trunk as it is set up."""
    site = ACCEPT + '[trunks.t]\nkind = "national"\ntrusted = true\n'
    site += '[trunks.u]\nkind = "intl_gateway"\ntrusted = true\n'
    (tmp_path / "site.toml").write_text(site)
    record("13800138000", trunk="t", settings="site.toml", asserted="4008123456")
    record(HK, trunk="u", settings="site.toml", diverted_by=(Z0,))
    told = json.loads(run("--config", "site.toml", "check", "--recorded", "--json").stdout)
    assert (told["calls"], told["changes"]) == (2, [])
    distrusting = site.replace("true", "false")
    (tmp_path / "site.toml").write_text(distrusting)
    told = json.loads(run("--config", "site.toml", "check", "--recorded", "--json").stdout)
    assert changes(told) == {("block dno_inbound_only", "allow default"): 1}


def test_changed_registry_and_lists(run, record, store) -> None:
    """A list entry since then is a difference, in the table of verdicts and in that of reasons, with its calls."""
    record("13800138000", "13800138001", "13800138000", "95013")
    store.add_entry(ListEntry("", "13800138000", Action.BLOCK, "system"))
    told = counted(run)
    assert changes(told) == {("allow default", "block system_blocklist"): 2}
    assert told["changes"][0]["call_ids"] == ["c0@h", "c2@h"]
    assert {(v["was"], v["now"]): v["calls"] for v in told["verdicts"]} == {
        ("allow", "allow"): 2,
        ("allow", "block"): 2,
    }
    said = replay(run).stdout
    assert "4 recorded calls; another verdict or reason for 2" in said
    for text in ("allow default", "block system_blocklist", "c0@h  c2@h"):
        assert text in said


def test_entries_hold_at_the_time_of_the_call(run, record, store) -> None:
    """An entry that begins or ends between two calls is there for the one and not for the other."""
    record("13800138000", "13800138000", "13800138000")
    store.add_entry(
        ListEntry("", "13800138000", Action.BLOCK, "system", since=NOON + timedelta(seconds=30),
                  expires_at=NOON + timedelta(minutes=2))
    )  # fmt: skip
    assert counted(run)["changes"][0]["call_ids"] == ["c1@h"]


def test_time_range(run, record, store) -> None:
    """--since is inclusive, --until exclusive, both in the site's zone unless they say otherwise."""
    record(*["13800138000"] * 5)
    assert counted(run, "--since", "2026-06-01T12:01", "--until", "2026-06-01T04:03Z")["calls"] == 2
    assert counted(run, "--since", "2026-06-01T12:05")["calls"] == 0
    assert "0 recorded calls" in replay(run, "--since", "2026-06-01T12:05").stdout


def test_list_on_trial(run, record, store, tmp_path) -> None:
    """A list file counts as if it were imported, over entries that it would overwrite, and nothing is imported."""
    store.import_entries(
        [
            ListEntry("", "13800138001", Action.BLOCK, "system"),
            ListEntry("", "13800138002", Action.ALLOW, "system"),
            ListEntry("", "13800138002", Action.BLOCK, "system2"),
        ]
    )
    record("13800138000", "13800138001", "13800138002", UK)
    (tmp_path / "new.csv").write_text("pattern,action\n1380013800*,block\n13800138001,allow\n13800138002,block\n")
    version = store.lists_version()
    told = counted(run, "--with-list", "new.csv")
    assert changes(told) == {
        ("allow default", "block system_blocklist"): 2,
        ("block system_blocklist", "allow default"): 1,
    }
    assert store.lists_version() == version
    assert counted(run)["changes"] == []


def test_list_on_trial_with_a_bad_row(run, record, tmp_path) -> None:
    """A trial list is read as strictly as an import."""
    record("13800138000")
    (tmp_path / "new.csv").write_text("pattern\nabc\n")
    assert "new.csv" in replay(run, "--with-list", "new.csv", code=2).stderr
    assert "none.csv" in replay(run, "--with-list", "none.csv", code=2).stderr


def test_without_a_list(run, record, store) -> None:
    """A list can be taken away on trial; one that is not there is named."""
    store.import_entries([ListEntry("", "138*", Action.BLOCK, "feed"), ListEntry("", "139*", Action.BLOCK, "system")])
    record("13800138000", "13900139000")
    assert changes(counted(run, "--without-list", "feed")) == {("block system_blocklist", "allow default"): 1}
    assert "nothing is on a list of that name" in replay(run, "--without-list", "fed", code=2).stderr


def test_pack_and_settings_on_trial(run, record, tmp_path) -> None:
    """A settings file on trial brings its pack; what its rules in shadow would do is told beside the changes."""
    record("95013", "13800138000")
    folder = tmp_path / "trial"
    shutil.copytree(str(files("pbxguard.packs") / "cn"), folder)
    rules = (folder / "rules.toml").read_text(encoding="utf-8")
    (folder / "rules.toml").write_text(
        rules + '\n[[rule]]\nid = "4.no_call_centres"\nwhen = "any"\nnumber_class = ["svc95_vas"]\n'
        'action = "block"\nreason = "class_not_voice"\ndetail = "on trial"\nsource = "test"\n',
        encoding="utf-8",
    )
    accept = 'pack = "./trial"\n' + ACCEPT
    (tmp_path / "trial.toml").write_text(accept + '[trunks.natl]\nkind = "national"\n')
    told = json.loads(run("--config", "trial.toml", "check", "--recorded", "--json").stdout)
    assert changes(told) == {("allow vas_call_centre", "block class_not_voice"): 1}
    shadow = accept + 'shadow_rules = ["4.no_call_centres"]\n[trunks.natl]\nkind = "national"\n'
    (tmp_path / "trial.toml").write_text(shadow)
    told = json.loads(run("--config", "trial.toml", "check", "--recorded", "--json").stdout)
    assert told["changes"] == []
    assert told["shadow"] == [
        {"rule": "4.no_call_centres", "verdict": "block", "reason": "class_not_voice", "calls": 1,
         "call_ids": ["c0@h"]}
    ]  # fmt: skip
    assert "4.no_call_centres" in run("--config", "trial.toml", "check", "--recorded").stdout


def test_recorded_shadow_hits(run, record, store, tmp_path) -> None:
    """--shadow counts what was noted with the calls; explain shows it for one."""
    store.import_entries([ListEntry("", "138*", Action.BLOCK, "feed")])
    shadow = ACCEPT + 'shadow_lists = ["feed"]\n[trunks.natl]\nkind = "national"\n'
    (tmp_path / "site.toml").write_text(shadow)
    record("13800138000", "13900139000", "13800138000", settings="site.toml")
    told = counted(run, "--shadow")
    assert told == {
        "calls": 3,
        "shadow": [
            {"rule": "list:feed", "verdict": "block", "reason": "system_blocklist", "calls": 2,
             "call_ids": ["c0@h", "c2@h"]}
        ],
    }  # fmt: skip
    assert "list:feed" in replay(run, "--shadow").stdout
    assert "nothing in shadow would" in replay(run, "--shadow", "--until", "2026-06-01").stdout
    assert "list:feed would block (system_blocklist)" in run("explain", "c0@h").stdout
    assert json.loads(run("explain", "c0@h", "--json").stdout)["shadow"][0]["rule"] == "list:feed"
    checked = run("--config", "site.toml", "check", "--from", "13800138000", "--to", Z0, "--trunk", "natl").stdout
    assert "list:feed would block" in checked


def test_all_changes_in_a_file(run, record, store, tmp_path) -> None:
    """--csv has every call that differs, --samples says how many the table names."""
    record(*["13800138000"] * 6, "95013")
    store.add_entry(ListEntry("", "13800138000", Action.BLOCK, "system"))
    said = replay(run, "--csv", "changes.csv", "--samples", "2").stdout
    assert "c0@h  c1@h  ..." in said
    assert "wrote 6 calls to changes.csv" in said
    rows = list(csv.DictReader((tmp_path / "changes.csv").read_text().splitlines()))
    assert [row["call_id"] for row in rows] == [f"c{n}@h" for n in range(6)]
    assert (rows[0]["was"], rows[0]["now"], rows[0]["now_rule"]) == ("allow", "block", "5.system_list")
    assert "cannot write it" in replay(run, "--csv", "nowhere/x.csv", code=2).stderr
    assert not list(tmp_path.glob("*.part"))


def test_calls_of_a_trunk_that_is_gone(run, record, tmp_path) -> None:
    """They are left out and counted."""
    record("13800138000", trunk="goip1")
    record("13800138000", "95013")
    (tmp_path / "site.toml").write_text(ACCEPT + '[trunks.natl]\nkind = "national"\n')
    result = run("--config", "site.toml", "check", "--recorded")
    assert "1 calls of trunk 'goip1' are left out: the settings have no such trunk" in result.stderr
    assert "2 recorded calls" in result.stdout


def test_failed_decisions_are_compared(run, record, store) -> None:
    """A decision that failed is a row of its own: what the call would have got."""
    from dataclasses import replace

    record("4008123456")
    store.record([replace(store.recent(1)[0], call_id="f@h", verdict="failed", reason="guard_failed")])
    assert changes(counted(run)) == {("failed guard_failed", "block dno_inbound_only"): 1}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--recorded", "--trunk", "natl"), "--recorded has its calls from the record"),
        (("--recorded", "--batch", "x.csv"), "--recorded has its calls from the record"),
        (("--since", "2026-01-01"), "go with --recorded"),
        (("--shadow",), "go with --recorded"),
        (("--without-list", "x"), "go with --recorded"),
        (("--recorded", "--shadow", "--csv", "x.csv"), "--shadow counts what was noted"),
        (("--recorded", "--since", "soon"), "'soon' is no ISO 8601 time"),
    ],
)
def test_options_that_do_not_go_together(run, words, says) -> None:
    """A wrong combination is one clear line, and exit code 2."""
    assert says in " ".join(run("check", *words, code=2).stderr.split())


HOSTILE = "\x1b]0;owned\x07\r\n\u202eevil[red]x[/red]"


def test_hostile_text_is_shown_harmlessly(run, record, store) -> None:
    """What a caller wrote into Call-ID and CLI reaches the terminal as plain text."""
    from dataclasses import replace

    record(HOSTILE)
    store.record([replace(store.recent(1)[0], call_id=HOSTILE, reason="default", verdict="allow", trunk="natl")])
    for words in ((), ("--json",)):
        said = replay(run, *words).stdout
        assert all(c.isprintable() or c == "\n" for c in said)
        assert "evil[red]x[/red]" in said
