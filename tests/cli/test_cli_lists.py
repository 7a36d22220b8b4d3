"""``lists`` on the command line."""

import csv
import json

import pytest

from pbxguard.store import LIST_COLUMNS

Z0 = "13957100001"
CALL = ("check", "--to", Z0, "--trunk", "natl", "--json", "--from")


def reason(run, cli):
    return json.loads(run(*CALL, cli).stdout)["reason"]


def table(run, *words):
    return list(csv.reader(run("lists", "export", *words).stdout.splitlines()))


def test_add_show_remove(run) -> None:
    """An entry decides the next call, is shown, and is gone when it is removed."""
    said = run("lists", "add", "+8613012345678", "--reason", "spam").stdout
    assert said == "global list system: block 13012345678\n"
    assert reason(run, "13012345678") == "system_blocklist"
    (shown,) = json.loads(run("lists", "show", "--json").stdout)
    assert (shown["owner"], shown["pattern"], shown["action"], shown["list"], shown["reason"]) == (
        "(global)", "13012345678", "block", "system", "spam",
    )  # fmt: skip
    assert "13012345678" in run("lists", "show").stdout
    assert run("lists", "remove", "13012345678").stdout == "removed 13012345678 from global list system\n"
    assert reason(run, "13012345678") == "default"
    assert "13012345678 is not on global list 'system'" in run("lists", "remove", "13012345678", code=1).stderr


def test_a_subscribers_own_lists(run) -> None:
    """--subscriber is that subscriber's list; allow beats block."""
    run("lists", "add", "130*", "--subscriber", "+86" + Z0)
    assert reason(run, "13012345678") == "subscriber_blocklist"
    said = run("lists", "add", "13012345678", "--allow", "--subscriber", Z0).stdout
    assert said == f"{Z0}'s list own: allow 13012345678\n"
    assert reason(run, "13012345678") == "subscriber_allowlist"
    assert len(json.loads(run("lists", "show", "--subscriber", Z0, "--json").stdout)) == 2
    assert run("lists", "remove", "130*", "--subscriber", Z0).exit_code == 0
    assert "is not on 13957100001's list" in run("lists", "remove", "130*", "--subscriber", Z0, code=1).stderr


def test_punishment_and_expiry(run) -> None:
    """The list "punishment" has its own reason; an expired entry decides nothing."""
    run("lists", "add", "13000000000-13099999999", "--list", "punishment", "--expires", "2999-01-01")
    assert reason(run, "13012345678") == "joint_punishment"
    run("lists", "add", "13000000000-13099999999", "--list", "punishment", "--expires", "2020-01-01")
    assert reason(run, "13012345678") == "default"


def test_show_is_bounded(run) -> None:
    """--limit bounds what is shown, and says how many there are."""
    for n in range(5):
        run("lists", "add", f"1301234567{n}")
    said = run("lists", "show", "--limit", 3).stdout
    assert said.count("system") == 3
    assert "3 of 5; --limit shows more" in said
    assert "x>=1" in run("lists", "show", "--limit", 0, code=2).stderr


@pytest.mark.parametrize(
    "pattern", ["abc", "*", "13*4", "138 0013 8000", "2-1", "1-22", "0086138*", "+999123", "１３８*", ""]
)
def test_bad_pattern(run, pattern) -> None:
    """What is no number, prefix or range is refused in one line, and nothing is stored."""
    run("lists", "add", pattern, code=2)
    run("lists", "remove", pattern, code=2)
    assert len(table(run)) == 1


@pytest.mark.parametrize(
    "words", [("--reason", "a\nb"), ("--source", "x" * 101), ("--list", "a\x1b[31m"), ("--subscriber", "x")]
)
def test_bad_texts(run, words) -> None:
    """Texts that are too long or hold control characters are refused."""
    run("lists", "add", "130*", *words, code=2)
    assert len(table(run)) == 1


def test_export_and_import_again(run, tmp_path) -> None:
    """An export holds every column, and importing it elsewhere gives the same lists."""
    run("lists", "add", "130*", "--legal-basis", "Art. 31", "--expires", "2999-01-01T00:00+08:00")
    run("lists", "add", "13012345678", "--allow", "--subscriber", Z0, "--reason", '境外, "家"')
    run("lists", "add", "13000000000-13099999999", "--list", "punishment")
    before = table(run)
    assert tuple(before[0]) == LIST_COLUMNS
    said = run("lists", "export", "all.csv").stdout
    assert said == f"wrote 3 entries to all.csv (columns {','.join(LIST_COLUMNS)})\n"
    assert not list(tmp_path.glob("*.part"))
    for pattern, words in (("130*", ()), ("13012345678", ("--subscriber", Z0))):
        run("lists", "remove", pattern, *words)
    assert run("lists", "import", "all.csv").stdout == "imported 3 rows: 2 new, 1 overwritten\n"
    assert table(run) == before
    assert len(table(run, "--list", "punishment")) == 2
    assert len(table(run, "--subscriber", Z0)) == 2


def test_export_to_where_nothing_can_be_written(run, tmp_path) -> None:
    """A folder that is not there is named, and nothing half-written stays."""
    assert "none/x.csv: cannot write it: No such file" in run("lists", "export", "none/x.csv", code=2).stderr
    assert not list(tmp_path.glob("**/*.part"))


def test_import_is_all_or_nothing(run, tmp_path) -> None:
    """One bad row keeps the whole file out; the error names every bad line."""
    (tmp_path / "list.csv").write_text("pattern,action\n13012345678,block\nabc,block\n131*,maybe\n132*,\n")
    said = run("lists", "import", "list.csv", code=2).stderr
    assert "line 3" in said
    assert "line 4" in said
    assert "nothing was imported" in said
    assert len(table(run)) == 1


def test_dry_run_and_replace(run, tmp_path) -> None:
    """--dry-run says what would change and changes nothing; --replace makes the file the whole list."""
    run("lists", "add", "130*", "--list", "feed")
    run("lists", "add", "139*")
    (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbfpattern\r\n131*\r\n132*\r\n131*\r\n")
    words = ("lists", "import", "list.csv", "--list", "feed", "--replace")
    assert run(*words, "--dry-run").stdout == "would import 3 rows: 2 new, 1 overwritten, 1 removed first\n"
    assert [row[0] for row in table(run)[1:]] == ["130*", "139*"]
    assert run(*words).stdout == "imported 3 rows: 2 new, 1 overwritten, 1 removed first\n"
    assert sorted(row[0] for row in table(run)[1:]) == ["131*", "132*", "139*"]
    assert len(table(run, "--list", "feed")) == 3


def test_import_of_a_file_that_is_not_there(run, tmp_path) -> None:
    """A missing file or a folder is wrong usage."""
    assert "does not exist" in run("lists", "import", "none.csv", code=2).stderr
    assert "is a directory" in run("lists", "import", tmp_path, code=2).stderr


def test_a_subscriber_refuses_classes_and_regions(run) -> None:
    """400, 950, other countries, Hong Kong: checked against the pack, decided by the CLI's class."""
    for pattern in ("400*", "950*", "class:svc95_vas", "class:hmt", "region:us"):
        assert run("lists", "add", pattern, "--subscriber", Z0).stdout == f"{Z0}'s list own: block {pattern}\n"
    assert len(table(run, "--subscriber", Z0)) == 6
    assert reason(run, "95013") == "subscriber_blocklist"
    assert reason(run, "95588") == "default"
    assert json.loads(run(*CALL, "+12125550100").stdout)["reason"] == "subscriber_blocklist"
    said = run("lists", "add", "class:svc95vas", "--subscriber", Z0, code=2).stderr
    assert "no such class or region; near are class:svc95_vas" in said
    run("lists", "remove", "class:svc95_vas", "--subscriber", Z0)
    run("lists", "remove", "950*", "--subscriber", Z0)
    assert reason(run, "95013") == "vas_call_centre"


def test_entries_come_and_go_by_date(run) -> None:
    """--since is inclusive, --expires exclusive, both in the site's zone; show says which hold."""
    run("lists", "add", "130*", "--since", "2026-06-01", "--expires", "2026-07-01", "--document", "A 1")
    call = ("check", "--to", Z0, "--trunk", "natl", "--json", "--from", "13012345678", "--at")
    expected = {"2026-05-31T23:59:59": "default", "2026-06-01": "system_blocklist", "2026-07-01": "default",
                "2026-05-31T16:00:00+00:00": "system_blocklist"}  # fmt: skip
    for at, wanted in expected.items():
        assert json.loads(run(*call, at).stdout)["reason"] == wanted, at
    run("lists", "add", "131*", "--since", "2999-01-01")
    (first, second) = json.loads(run("lists", "show", "--json").stdout)
    assert (first["state"], first["since"], first["document"]) == ("expired", "2026-06-01 00:00:00+08:00", "A 1")
    assert (second["state"], second["since"]) == ("to come", "2999-01-01 00:00:00+08:00")
    assert "Asia/Shanghai" in run("lists", "show").stdout
    said = run("lists", "add", "132*", "--since", "2026-07-01", "--expires", "2026-07-01", code=2).stderr
    assert "--expires 2026-07-01 is not after --since 2026-07-01" in said


PUNISHED, KEPT = "13012345678", "13112345678"


def shown(run, *words):
    return {row["pattern"]: row for row in json.loads(run("lists", "show", *words, "--json").stdout)}


def test_punish_and_lift(run) -> None:
    """A measure blocks for its term, a second adds its own; the kept number is not blocked; lifting is at once."""
    words = ("lists", "punish", PUNISHED, "--from", "2026-06-01", "--document", "A 1", "--retained", KEPT)
    said = run(*words, "--basis", "convicted").stdout
    assert said == (f"{PUNISHED} is punished from 2026-06-01 00:00:00+08:00 until 2029-06-01 00:00:00+08:00; "
                    f"kept: {KEPT}\n")  # fmt: skip
    assert reason(run, PUNISHED) == "joint_punishment"
    assert reason(run, KEPT) == "punished_retained"
    assert "is on the list already" in run(*words, "--basis", "convicted", code=2).stderr
    run("lists", "punish", PUNISHED, "--from", "2027-01-01", "--basis", "convicted", "--document", "B 2")
    rows = shown(run, "--list", "punishment")
    assert {row["expires"] for row in rows.values()} == {"2031-06-01 00:00:00+08:00"}
    assert rows[PUNISHED]["document"] == rows[KEPT]["document"] == "A 1; B 2"
    assert rows[PUNISHED]["legal_basis"].endswith("convicted 3 years + convicted 3 years")
    assert (rows[PUNISHED]["state"], rows[KEPT]["state"]) == ("holds", "kept")
    said = run("lists", "lift", PUNISHED, "--reason", "appeal 7 passed").stdout
    assert said == f"lifted {PUNISHED} from global list punishment: it holds no more\n"
    assert reason(run, PUNISHED) == reason(run, KEPT) == "default"
    rows = shown(run)
    assert {(row["state"], row["lift_reason"]) for row in rows.values()} == {("lifted", "appeal 7 passed")}
    assert "holds no more on" in run("lists", "lift", PUNISHED, "--reason", "again", code=1).stderr
    assert "is not on" in run("lists", "lift", "13912345678", "--reason", "x", code=1).stderr


def test_one_measure_entered_twice_does_not_double_the_term(run) -> None:
    """The same command again is refused with the remedy, with and without a document; the term stays."""
    words = ("lists", "punish", PUNISHED, "--from", "2026-06-01", "--basis", "police")
    run(*words)
    assert "a further measure needs its own --document" in run(*words, code=2).stderr
    assert (
        "a measure from 2026-06-01 is on the list, without a document"
        in run(*words, "--document", "A 1", code=2).stderr
    )
    assert shown(run)[PUNISHED]["expires"] == "2028-06-01 00:00:00+08:00"


def test_import_into_a_list_is_confined_to_it(run, tmp_path) -> None:
    """With --list a row of another list or of a subscriber is an error by line; without, it goes where it says."""
    rows = f"1*,note,,roaming_yes\n13800138000,block,,vendor\n+*,allow,{Z0},\n"
    (tmp_path / "in.csv").write_text("pattern,action,owner,name\n" + rows)
    for more in ((), ("--replace",), ("--dry-run",)):
        said = run("lists", "import", "in.csv", "--list", "vendor", *more, code=2).stderr
        assert "2 bad rows, nothing was imported: line 2: column name: 'roaming_yes' is not the list" in said
        assert f"line 4: column owner: '{Z0}': the list that is imported is global" in said
    assert shown(run) == {}
    run("lists", "import", "in.csv")
    assert {row["list"] for row in shown(run).values()} == {"roaming_yes", "vendor", "system"}


@pytest.mark.parametrize("pack", ["de", "gb"])
def test_prefix_of_home_is_that_of_the_pack(run, tmp_path, pack) -> None:
    """A prefix with the pack's own country code would match nothing and is refused; China's is a foreign one."""
    own = {"de": "+49", "gb": "+44"}[pack]
    (tmp_path / "pbxguard.toml").write_text(f'[screening]\npack = "{pack}"\naccept_unverified = ["*"]\n')
    assert run("lists", "add", "+86*").stdout == "global list system: block +86*\n"
    assert f"(not {own}138*)" in run("lists", "add", f"{own}30*", code=2).stderr
    (tmp_path / "in.csv").write_text(f"pattern\n+8613*\n{own}30*\n")
    assert "1 bad rows, nothing was imported: line 3" in run("lists", "import", "in.csv", code=2).stderr
    assert list(shown(run)) == ["+86*"]


@pytest.mark.parametrize(
    ("column", "time"), [("since", "0001-01-01T00:00:00+14:00"), ("expires_at", "9999-12-31T23:59:59-12:00")]
)
def test_time_outside_the_calendar_is_a_bad_row(run, tmp_path, column, time) -> None:
    """A time that is in no year of the calendar in UTC is an error by line; calls are decided as before."""
    (tmp_path / "in.csv").write_text(f"pattern,name,{column}\nclass:intl,system,{time}\n")
    assert f"line 2: column {column}: " in run("lists", "import", "in.csv", code=2).stderr
    assert shown(run) == {}


def test_first_and_last_moment_are_shown(run, tmp_path) -> None:
    """Times that the site's zone does not have are shown as they are in UTC; the entry holds, and comes back."""
    (tmp_path / "in.csv").write_text(
        "pattern,since,expires_at\n13800138000,0001-01-01T00:00:00Z,9999-12-31T23:59:59Z\n"
    )
    run("lists", "import", "in.csv")
    assert reason(run, "13800138000") == "system_blocklist"
    assert shown(run)["13800138000"]["expires"] == "9999-12-31 23:59:59+00:00"
    run("lists", "export", "out.csv")
    run("lists", "import", "out.csv", "--replace")
    assert reason(run, "13800138000") == "system_blocklist"


def test_what_cannot_be_punished_or_kept(run) -> None:
    """The same number twice, a number that is punished itself, an emergency number: one line, nothing stored."""
    words = ("lists", "punish", PUNISHED, "--from", "2026-06-01", "--basis", "police")
    assert "cannot be punished and kept" in run(*words, "--retained", PUNISHED, code=2).stderr
    run("lists", "punish", KEPT, "--from", "2026-06-01", "--basis", "police")
    assert "it is on the list itself" in run(*words, "--retained", KEPT, code=2).stderr
    assert "no list may block" in run("lists", "punish", "110", *words[3:], code=2).stderr
    assert "does not match the format" in run(*words[:3], "--from", "June", *words[5:], code=2).stderr
    assert list(shown(run)) == [KEPT]


@pytest.mark.parametrize("pattern", ["110", "119", "10086", "0571110", "110*", "119-120"])
def test_numbers_that_no_list_may_block(run, tmp_path, pattern) -> None:
    """An entry of nothing but emergency and operator numbers is refused, by hand and by import."""
    assert "which no list may block" in run("lists", "add", pattern, code=2).stderr
    (tmp_path / "list.csv").write_text(f"pattern\n{pattern}\n")
    assert "line 2: column pattern: " in run("lists", "import", "list.csv", code=2).stderr
    assert len(table(run)) == 1
    assert run("lists", "add", pattern, "--allow").exit_code == 0


def test_broad_prefix_passes_over_numbers_that_no_list_may_block(run) -> None:
    """1* is accepted and blocks mobiles; a call from an operator's own number gets through."""
    run("lists", "add", "1*")
    assert reason(run, "13012345678") == "system_blocklist"
    assert reason(run, "10086") != "system_blocklist"
