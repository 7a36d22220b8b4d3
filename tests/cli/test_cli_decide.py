"""``check`` and ``explain``."""

import contextlib
import csv
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import tempfile
import termios
from datetime import UTC, datetime

import pytest

from pbxguard.store import DecisionRow, Store

Z0 = "13957100001"
HK = "+85261234567"


@pytest.fixture
def zhang(run):
    """A subscriber of Zhejiang who has opened nothing."""
    run("subscribers", "add", Z0, "--operator", "cm", "--province", "zhejiang")


def check(run, *words, code=0, cli=HK, callee=Z0, trunk="intl"):
    return run("check", "--from", cli, "--to", callee, "--trunk", trunk, *words, code=code)


# -- check ----------------------------------------------------------------------------------------------------


def test_check_says_what_and_why(run, zhang) -> None:
    """The answer "block" is an answer: exit code 0, with verdict, reason, rule and what the caller hears."""
    said = check(run).stdout
    assert said.startswith("block  intl_default_off\n")
    for text in ("read as +85261234567 (intl_hk)", "7.default_off", "SIP 603", "intl_default_off (zh and en)"):
        assert text in said


def test_check_as_json(run, zhang) -> None:
    """--json is one JSON value with the documented names."""
    told = json.loads(check(run, "--json", "--at", "2026-06-01T12:00").stdout)
    wanted = {
        "verdict": "block", "reason": "intl_default_off", "labels": [], "sip_status": 603, "class": "intl_hk",
        "prompt": "intl_default_off", "languages": ["zh", "en"], "failed": False, "channel": "voice",
        "at": "2026-06-01T04:00:00+00:00", "cli": HK, "cli_key": HK, "callee": Z0, "callee_key": Z0, "trunk": "intl",
    }  # fmt: skip
    assert {name: told[name] for name in wanted} == wanted


def test_check_has_no_effect(run, zhang, state) -> None:
    """What was only asked is not recorded as a decision."""
    check(run)
    with Store.open(state / "pbxguard.db") as store:
        assert store.count_decisions() == 0


def test_check_at_another_time_and_channel(run, zhang) -> None:
    """--at without an offset is in the site's zone; the default of Zhejiang began at local midnight."""
    assert "intl_origin_notice" in check(run, "--at", "2022-05-19T23:59:59").stdout
    assert "intl_default_off" in check(run, "--at", "2022-05-20").stdout
    assert "intl_origin_notice" in check(run, "--at", "2022-05-19T15:59:59Z").stdout
    assert "intl_default_off" in check(run, "--at", "2022-05-19T16:00Z").stdout
    assert "intl_default_off" in check(run, "--channel", "sms", "--at", "2022-05-19").stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--trunk", "nowhere"), "no trunk 'nowhere' in the settings; there are ent, goip1, intl, natl"),
        (("--at", "yesterday"), "'yesterday' is no ISO 8601 time"),
        (("--at", "0001-01-01"), "'0001-01-01' is no ISO 8601 time"),
        (("--at", "9999-12-31T23:59:59-12:00"), "is no ISO 8601 time"),
        (("--at", "9999-12-31T23:59:59Z"), "is no ISO 8601 time"),
        (("--channel", "fax"), "'fax' is not one of 'voice', 'sms'"),
        (("--batch", "x.csv"), "leave out --from, --to and --json"),
    ],
)
def test_check_of_nonsense(run, words, says) -> None:
    """A wrong option is one clear line, and exit code 2."""
    assert says in check(run, *words, code=2).stderr


def test_check_needs_a_whole_call(run) -> None:
    """Without the three parts of a call the usage is shown."""
    assert "give --from, --to and --trunk, or --batch FILE.csv" in run("check", "--from", HK, code=2).stderr


@pytest.mark.parametrize(
    "cli", ["", "anonymous", "\x1b[31mred", "[red]x[/red]", ":skull:", "%0A", "x" * 5000, "\udcff", "\x9b31m"]
)
def test_check_of_a_hostile_cli(run, zhang, cli) -> None:
    """Whatever is typed for a CLI is shown harmlessly, as text and as JSON."""
    for words in ((), ("--json",)):
        said = check(run, *words, cli=cli).stdout
        assert all(c.isprintable() or c == "\n" for c in said)
    assert json.loads(said)["cli"] == cli[:200]
    if cli.startswith(("[", ":")):
        assert cli in check(run, cli=cli).stdout


def test_check_with_a_damaged_database_gives_no_answer(run, zhang, state) -> None:
    """A guard that cannot decide has no answer: one line and exit code 3, not "allow"."""
    database = state / "pbxguard.db"
    data = bytearray(database.read_bytes())
    pages = data.index(b"cmzhejiang") & ~0xFFF
    data[pages : pages + 4096] = b"\xff" * 4096
    database.write_bytes(data)
    assert "no decision: " in check(run, code=3).stderr
    assert "damaged" in check(run, code=3).stderr


# -- check --batch --------------------------------------------------------------------------------------------

BATCH = f"""\
cli,callee,trunk,channel,at
{HK},{Z0},intl,voice,2026-06-01T12:00
13800138000,{Z0},natl,,
17012345678,{Z0},natl,voice,
anonymous,{Z0},intl,voice,
abc,{Z0},natl,voice,
{HK},13804510001,intl,voice,2026-06-01
"""


def rows(text):
    return list(csv.reader(text.splitlines()))


def test_batch(run, zhang, tmp_path) -> None:
    """The output has the same columns, then class, verdict, reason and labels, row by row."""
    (tmp_path / "calls.csv").write_text(BATCH)
    told = rows(run("check", "--batch", "calls.csv").stdout)
    given = rows(BATCH)
    assert told[0] == [*given[0], "class", "verdict", "reason", "labels"]
    assert [row[:5] for row in told] == given
    assert [row[5:] for row in told[1:]] == [
        ["intl_hk", "block", "intl_default_off", ""],
        ["mobile_cm", "allow", "default", ""],
        ["mobile_mvno_ct", "allow", "default", "mvno"],
        ["withheld", "block", "cli_missing", ""],
        ["invalid", "block", "cli_invalid", ""],
        ["intl_hk", "allow", "intl_origin_notice", "intl_origin_notice"],
    ]


def test_batch_labels_are_split_by_semicolons(run, tmp_path) -> None:
    """Several labels stand in one field, a;b."""
    (tmp_path / "site.toml").write_text(
        '[screening]\naccept_unverified = ["*"]\n[trunks.abroad]\nkind = "intl_gateway"\nroaming = "unknown"\n'
    )
    (tmp_path / "calls.csv").write_text(f"callee,cli\n{Z0},+8617012345678\n")
    told = run("--config", "site.toml", "check", "--batch", "calls.csv", "--trunk", "abroad").stdout
    assert rows(told)[1] == [
        Z0,
        "+8617012345678",
        "mobile_mvno_ct",
        "allow",
        "roaming_unknown",
        "roaming_unknown;mvno",
    ]


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_batch_of_any_editor_and_of_standard_input(run, zhang, tmp_path, start, end) -> None:
    """A byte order mark and CRLF change nothing, from a file and from standard input."""
    data = start + BATCH.replace("\n", end).encode()
    (tmp_path / "calls.csv").write_bytes(data)
    from_file = run("check", "--batch", "calls.csv").stdout
    assert run("check", "--batch", "-", given=data).stdout == from_file
    assert rows(from_file)[1][-3:] == ["block", "intl_default_off", ""]


def test_options_stand_in_for_columns_that_are_missing(run, zhang) -> None:
    """--trunk, --channel and --at hold for rows that do not say; a row's own value wins."""
    data = f"cli,callee,at\n{HK},{Z0},\n{HK},{Z0},2022-05-20\n"
    words = ("check", "--batch", "-", "--trunk", "intl", "--at", "2022-05-19")
    assert [row[5] for row in rows(run(*words, given=data).stdout)[1:]] == ["intl_origin_notice", "intl_default_off"]
    told = run(*words, "--channel", "sms", given=data).stdout
    assert [row[5] for row in rows(told)[1:]] == ["intl_default_off", "intl_default_off"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("", "-:1: no column cli, callee, trunk; the first line must name cli,callee,trunk,channel,at"),
        ("cli,callee\n", "-:1: no column trunk"),
        ("cli,callee,trunk,extra\n", "-:1: unknown or double column 'extra'"),
        ("cli,callee,trunk,cli\n", "-:1: unknown or double column 'cli, cli'"),
        ("cli,callee,trunk\n1,2\n", "-:2: the row has another number of fields than the first line"),
        ("cli,callee,trunk\n1,2,intl,x\n", "-:2: the row has another number of fields than the first line"),
        (f"cli,callee,trunk\n{HK},{Z0},intl\n{HK},{Z0},nowhere\n", "-:3: no trunk 'nowhere' in the settings"),
        (f"cli,callee,trunk,at\n{HK},{Z0},intl,soon\n", "-:2: 'soon' is no ISO 8601 time"),
        (f"cli,callee,trunk,channel\n{HK},{Z0},intl,fax\n", "-:2: 'fax' is not a valid Channel"),
        ("x" * 200_000, "-:1: field larger than field limit"),
        ("cli,callee,trunk\n" + "x" * 200_000, "-:2: field larger than field limit"),
    ],
)
def test_batch_with_a_bad_row(run, data, says) -> None:
    """A bad header or row ends the batch with its line number and exit code 2."""
    result = run("check", "--batch", "-", code=2, given=data)
    assert result.stderr.startswith(f"pbxguard: {says}"), result.stderr


@pytest.mark.parametrize("last", [f"{HK},{Z0},nowhere,", f"{HK},{Z0},intl,soon", f"{HK},{Z0}", "x" * 200_000])
def test_bad_row_of_a_file_leaves_no_half_of_an_answer(run, tmp_path, last) -> None:
    """A file is checked as a whole first; standard input, which is read once, is answered up to its bad row."""
    data = f"cli,callee,trunk,at\n{HK},{Z0},intl,\n{last}\n"
    (tmp_path / "calls.csv").write_text(data)
    from_file = run("check", "--batch", "calls.csv", code=2)
    assert from_file.stdout == ""
    assert from_file.stderr.startswith("pbxguard: calls.csv:3: ")
    assert len(rows(run("check", "--batch", "-", given=data, code=2).stdout)) == 2
    assert "checked as a whole" in " ".join(run("check", "--help").stdout.split())


def test_batch_of_a_named_pipe(program, run, tmp_path) -> None:
    """What can be read only once, such as a shell's <(...), is answered like standard input."""
    run("subscribers", "add", Z0, "--operator", "cm", "--province", "zhejiang")
    os.mkfifo(tmp_path / "calls")
    running = program("check", "--batch", "calls")
    (tmp_path / "calls").write_text(BATCH)
    said, _ = running.communicate(timeout=60)
    assert (running.returncode, len(rows(said.decode()))) == (0, 7)


def test_batch_says_at_its_end_how_many_and_how_fast(program, run, zhang, tmp_path) -> None:
    """Where standard error is no terminal there is one line, at the end; after an error there is none."""
    (tmp_path / "calls.csv").write_text(BATCH)
    running = program("check", "--batch", "calls.csv")
    _, said = running.communicate(timeout=60)
    assert re.fullmatch(r"6 rows in \d+\.\d s, [\d,]+ rows/s\n", said.decode())
    (tmp_path / "calls.csv").write_text(BATCH + "x\n")
    assert "rows/s" not in run("check", "--batch", "calls.csv", code=2).stderr


def test_batch_on_a_terminal_shows_a_bar(program, zhang, tmp_path) -> None:
    """On a terminal a bar with the rows, their speed and the time left is drawn, and taken away again."""
    with (tmp_path / "calls.csv").open("w") as file:
        file.write("cli,callee,trunk\n" + f"13800138000,{Z0},natl\n" * 20_000)
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
        with (tmp_path / "out.csv").open("wb") as out:
            running = program("check", "--batch", "calls.csv", stderr=theirs, stdout=out)
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # the end of a pseudo-terminal
            while data := os.read(ours, 65536):
                said += data
        assert running.wait(60) == 0
    finally:
        os.close(ours)
    assert re.search(rb"deciding.*\d rows.*/s.*\d:\d\d", said)
    assert b"20,000 rows in " in said
    assert len((tmp_path / "out.csv").read_bytes().splitlines()) == 20_001


def test_batch_answers_each_row_of_a_stream_as_it_arrives(program, zhang) -> None:
    """Whoever writes a row to standard input can read its answer before writing the next one."""
    running = program("check", "--batch", "-", stdin=subprocess.PIPE)
    try:
        running.stdin.write(b"cli,callee,trunk\n")
        for cli, answer in ((HK, b"intl_default_off"), ("+8613800138000", b"national_cli_on_intl_trunk")):
            running.stdin.write(f"{cli},{Z0},intl\n".encode())
            running.stdin.flush()
            if cli == HK:
                assert running.stdout.readline().startswith(b"cli,callee,trunk,class")
            assert answer in running.stdout.readline()
        running.stdin.close()
        assert running.wait(60) == 0
    finally:
        running.kill()
        running.stdout.close()
        running.stderr.close()
        running.wait()


def test_batch_leaves_no_temporary_file(run, zhang, tmp_path, monkeypatch) -> None:
    """The answers wait in a temporary file that is gone afterwards, also after an error."""
    (tmp_path / "spool").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spool"))
    (tmp_path / "calls.csv").write_text(BATCH)
    assert len(rows(run("check", "--batch", "calls.csv").stdout)) == 7
    (tmp_path / "calls.csv").write_text(BATCH + "x\n")
    assert run("check", "--batch", "calls.csv", code=2).stdout == ""
    assert not list((tmp_path / "spool").iterdir())


def test_batch_answers_are_those_of_single_checks(run, zhang, tmp_path) -> None:
    """Each row has the class, verdict, reason and labels that check gives for its call alone."""
    callers = (HK, "0085261234567", "85261234567", "13800138000", "+8613800138000", "95013", "057196110", "955881",
               "4008123456", "anonymous", "", "abc", "700123456789012", "1440012345678", "+999123456")  # fmt: skip
    calls = [(cli, Z0, trunk, "voice", "2026-06-01T12:00") for cli in callers for trunk in ("intl", "natl", "ent")]
    with (tmp_path / "calls.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("cli", "callee", "trunk", "channel", "at"), *calls * 30])
    found = rows(run("check", "--batch", "calls.csv").stdout)[1:]
    assert len(found) == 1350
    for call, row in zip(calls, found, strict=False):
        told = json.loads(check(run, "--json", "--at", call[4], cli=call[0], trunk=call[2]).stdout)
        assert row[5:] == [told["class"], told["verdict"], told["reason"], ";".join(told["labels"])]


def test_batch_with_a_line_that_never_ends(run, tmp_path) -> None:
    """A line of megabytes is refused before it fills the memory."""
    (tmp_path / "calls.csv").write_bytes(b"cli,callee,trunk\n" + b"x" * 3_000_000)
    assert "a line is longer than" in run("check", "--batch", "calls.csv", code=2).stderr


def test_batch_file_that_is_not_there(run, tmp_path) -> None:
    """A missing file or a folder is named."""
    assert "none.csv: cannot read it: No such file" in run("check", "--batch", "none.csv", code=2).stderr
    assert "cannot read it: Is a directory" in run("check", "--batch", tmp_path, code=2).stderr


# -- explain --------------------------------------------------------------------------------------------------

ROW = DecisionRow(
    "c1@h", datetime(2026, 6, 1, 4, tzinfo=UTC), "voice", "intl", HK, HK, "intl_hk", Z0, Z0, "block",
    "system_blocklist", rule="5.system_list", detail="the CLI is on the list 'system'",
    entry="+852* on list 'system' (source: feed)",
    pack="cn 2026.11", lists_version="3", sip_status=603, prompt="system_blocklist",
    extra={
        "connected": False, "display": "", "languages": ["zh"], "legal_basis": "Art. 13", "asserted": "95588",
        "diverted_by": ["13957100009"], "shadow": [["list:feed", "block", "system_blocklist"]],
        "steps": [["2.form", "passes", "form plus", 900], ["5.system_list", "decides", "+852* on 'system'", 12_300]],
    },
)  # fmt: skip


@pytest.fixture
def recorded(state):
    """A store with these decisions."""

    def record(**changed) -> None:
        from dataclasses import replace

        state.mkdir(exist_ok=True)
        with Store.open(state / "pbxguard.db") as store:
            store.record([replace(ROW, **changed)])

    return record


def test_explain(run, recorded) -> None:
    """A recorded decision is told with rule, list entry and the local time."""
    recorded()
    said = run("explain", "c1@h").stdout
    assert said.startswith("block  system_blocklist\n")
    for text in ("2026-06-01 12:00:00", "+852* on list 'system' (source: feed)", "5.system_list, pack cn 2026.11"):
        assert text in said
    told = json.loads(run("explain", "c1@h", "--json").stdout)
    assert (told["verdict"], told["entry"], told["failed"]) == ("block", ROW.entry, False)


def test_explain_says_all_that_was_recorded(run, recorded) -> None:
    """Each rule with what it saw and took, the legal basis, what was in shadow, and the notice of a refusal."""
    recorded()
    said = " ".join(run("explain", "c1@h").stdout.replace("│", " ").split())
    for text in (
        "legal basis Art. 13", "asserted 95588", "diverted by 13957100009", "lists version 3",
        "2.form passes form plus 0.9", "5.system_list decides +852* on 'system' 12.3",
        "in shadow list:feed would block (system_blocklist)", "notice (zh)", "notice (en)",
    ):  # fmt: skip
        assert text in said
    told = json.loads(run("explain", "c1@h", "--json").stdout)
    assert told["steps"][1] == {
        "rule": "5.system_list",
        "outcome": "decides",
        "saw": "+852* on 'system'",
        "ns": 12300,
    }
    assert told["shadow"] == [{"rule": "list:feed", "verdict": "block", "reason": "system_blocklist"}]
    assert (told["legal_basis"], told["asserted"]) == ("Art. 13", "95588")
    assert all(told["notice"][language][part] for language in ("zh", "en") for part in ("reason", "remedy", "papers"))


def test_explain_says_where_a_rule_is_from(run, recorded) -> None:
    """The source of the rule is told where the pack is still the one that decided."""
    from pbxguard import packs

    pack = packs.load("cn")
    recorded(pack=pack.name)
    recorded(call_id="c2@h", pack="cn 2020.01")
    source = next(rule.source for rule in pack.rules if rule.id == ROW.rule)
    assert json.loads(run("explain", "c1@h", "--json").stdout)["source"].startswith(source)
    assert json.loads(run("explain", "c2@h", "--json").stdout)["source"] == ""


def test_explain_a_call_that_went_through(run, recorded) -> None:
    """A call that was let through has no notice."""
    recorded(verdict="allow", reason="default", sip_status=None, extra=ROW.extra | {"connected": True})
    assert json.loads(run("explain", "c1@h", "--json").stdout)["notice"] is None
    assert "notice" not in run("explain", "c1@h").stdout


def test_explain_by_the_beginning_of_a_call_id(run, recorded) -> None:
    """The beginning is enough where one Call-ID has it; where several do they are listed, and it is a no."""
    recorded(call_id="abc-1@h")
    recorded(call_id="abc-1@h")
    recorded(call_id="abd%_@h")
    assert json.loads(run("explain", "abc", "--json").stdout)["call_id"] == "abc-1@h"
    assert json.loads(run("explain", "abd%", "--json").stdout)["call_id"] == "abd%_@h"
    said = run("explain", "ab", code=1)
    assert "several Call-IDs begin with ab" in said.stderr
    assert "abc-1@h" in said.stderr
    assert "abd%_@h" in said.stderr
    for nothing in ("%", "_", "c-1@h", ""):
        assert "no decision is recorded" in run("explain", nothing, code=1).stderr


@pytest.mark.parametrize(("connected", "word"), [(True, "allow"), (False, "block")])
def test_explain_a_failed_decision(run, recorded, connected, word) -> None:
    """A decision that failed is told as what its trunk's policy did to the call."""
    extra = ROW.extra | {"connected": connected}
    recorded(verdict="failed", reason="guard_failed", cli_class="", cli_key=None, rule="0.guard_failed", extra=extra)
    assert run("explain", "c1@h").stdout.startswith(f"{word}  guard_failed\n")
    told = json.loads(run("explain", "c1@h", "--json").stdout)
    assert (told["verdict"], told["failed"]) == (word, True)


def test_explain_an_unknown_call(run, recorded) -> None:
    """An unknown Call-ID is a no: exit code 1, with the newest ones to choose from."""
    assert "nor for any other" in run("explain", "c2@h", code=1).stderr
    recorded()
    said = run("explain", "c2@h", code=1)
    assert "no decision is recorded for the Call-ID c2@h; the newest ones are:" in said.stderr
    assert "c1@h  2026-06-01 12:00:00+08:00  system_blocklist" in said.stderr
    assert said.stdout == ""


HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\n\u202eevil\x9b31m[red]x[/red][link=http://x]y"


def test_explain_shows_hostile_text_harmlessly(run, recorded) -> None:
    """Escape codes, line ends, bidi marks and markup of a caller reach the terminal as plain text."""
    written = {"asserted": HOSTILE, "display_name": HOSTILE, "diverted_by": [HOSTILE]}
    recorded(call_id=HOSTILE, cli_raw=HOSTILE, callee_raw=HOSTILE, extra=ROW.extra | written)
    for words in ((), ("--json",)):
        result = run("explain", HOSTILE, *words)
        assert all(c.isprintable() or c == "\n" for c in result.output)
        assert "[red]x[/red][link=http://x]y" in result.stdout
    result = run("explain", HOSTILE + "2", code=1)
    assert all(c.isprintable() or c == "\n" for c in result.output)
    assert "[red]x[/red]" in result.stderr
