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
