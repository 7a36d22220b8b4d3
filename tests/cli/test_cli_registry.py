"""``registry`` and ``subscribers`` on the command line."""

import getpass
import json
import sqlite3

import pytest

from pbxguard.store import EVENT_COLUMNS

Z0 = "13957100001"
HK = "+85261234567"


@pytest.fixture(autouse=True)
def zhang(run):
    """A subscriber of Zhejiang, where calls from abroad are off by default."""
    run("subscribers", "add", Z0, "--operator", "cm", "--province", "zhejiang")


def reason(run, cli=HK, *words):
    told = json.loads(run("check", "--from", cli, "--to", Z0, "--trunk", "intl", "--json", *words).stdout)
    return told["reason"]


# -- registry -------------------------------------------------------------------------------------------------


def test_open_and_close(run) -> None:
    """An opening holds from the next call on, and so does a closing."""
    assert reason(run) == "intl_default_off"
    said = run("registry", "open", "+86" + Z0, "--evidence", "form 7").stdout
    assert said == f"{Z0}: voice of class intl and hmt opened\n"
    assert reason(run) == reason(run, "+12125550100") == "intl_origin_notice"
    assert run("registry", "close", Z0, "--class", "hmt").stdout == f"{Z0}: voice of class hmt closed\n"
    assert (reason(run), reason(run, "+12125550100")) == ("intl_default_off", "intl_origin_notice")


def test_one_caller_and_an_end(run) -> None:
    """--caller opens for that caller only, --until ends it, --at begins it."""
    run("registry", "open", Z0, "--caller", HK, "--at", "2026-01-01", "--until", "2999-01-01")
    assert reason(run) == "intl_origin_notice"
    assert reason(run, "+85261234568") == "intl_default_off"
    assert reason(run, HK, "--at", "2025-12-31T23:59:59") == "intl_default_off"
    assert reason(run, HK, "--at", "2999-01-01") == "intl_default_off"


def test_each_class_and_channel_by_itself(run) -> None:
    """Other countries, and Hong Kong, Macau and Taiwan, are opened one without the other, and so are texts."""
    run("registry", "open", Z0, "--class", "intl")
    assert (reason(run), reason(run, "+12125550100")) == ("intl_default_off", "intl_origin_notice")
    run("registry", "open", Z0, "--class", "hmt", "--channel", "sms")
    assert reason(run) == "intl_default_off"
    run("registry", "open", Z0, "--class", "hmt")
    assert reason(run) == "intl_origin_notice"
    held = json.loads(run("registry", "show", Z0, "--json").stdout)
    assert [(each["class"], each["channel"], each["until"]) for each in held] == [
        ("hmt", "sms", ""), ("hmt", "voice", ""), ("intl", "voice", ""),
    ]  # fmt: skip


def test_one_caller_until_a_date_and_for_good(run) -> None:
    """An opening for one caller that ends, beside one for all: each holds by itself and is closed by itself."""
    run("registry", "open", Z0, "--class", "hmt", "--caller", "0085261234567", "--until", "2999-01-01")
    assert (reason(run), reason(run, "+85261234568")) == ("intl_origin_notice", "intl_default_off")
    run("registry", "open", Z0, "--class", "hmt")
    run("registry", "close", Z0, "--class", "hmt", "--caller", HK)
    assert reason(run) == "intl_origin_notice", "all callers are open"
    run("registry", "close", Z0, "--class", "hmt")
    assert reason(run) == "intl_default_off"


def test_show(run) -> None:
    """What is open or closed now, in local time; without anything a sentence says what applies."""
    assert "has opened and closed nothing" in run("registry", "show", Z0).stdout
    assert json.loads(run("registry", "show", Z0, "--json").stdout) == []
    run("registry", "open", Z0, "--class", "hmt", "--until", "2999-01-01")
    (held,) = json.loads(run("registry", "show", Z0, "--json").stdout)
    assert (held["class"], held["channel"], held["caller"], held["state"], held["until"]) == (
        "hmt", "voice", "(all)", "open", "2999-01-01 00:00:00+08:00",
    )  # fmt: skip
    assert "2999-01-01 00:00:00+08:00" in run("registry", "show", Z0).stdout


def test_history_keeps_every_line(run) -> None:
    """The ledger names who did what, by which way and with what proof; nothing is overwritten."""
    run("registry", "open", Z0, "--class", "hmt", "--evidence", "form 7")
    run("registry", "close", Z0, "--class", "hmt")
    lines = json.loads(run("registry", "history", Z0, "--json").stdout)
    assert [line["what"] for line in lines] == ["open", "close"]
    assert (lines[0]["by"], lines[0]["via"], lines[0]["evidence"]) == (f"cli:{getpass.getuser()}", "cli", "form 7")
    assert "form 7" in run("registry", "history", Z0).stdout


def test_history_of_nobody(run) -> None:
    """A number without a line is told so; a script gets an empty list."""
    assert run("registry", "history", Z0).stdout == f"the ledger has no line about {Z0}\n"
    assert json.loads(run("registry", "history", Z0, "--json").stdout) == []


def verified(run, *words, code=0):
    return json.loads(run("registry", "verify", "--json", *words, code=code).stdout)


def test_verify(run, state) -> None:
    """Count and head of a whole ledger; a changed event is named, with exit code 1."""
    assert verified(run) == {
        "ok": True, "events": 0, "head": "0" * 64, "states": 0, "fault": None, "event": None, "number": None,
    }  # fmt: skip
    run("registry", "open", Z0)
    head = verified(run)["head"]
    said = run("registry", "verify").stdout
    assert said == f"2 events, head {head}\n2 rows of state follow from them\n"
    raw = sqlite3.connect(state / "pbxguard.db")
    with raw:
        raw.execute("DROP TRIGGER consent_event_no_update")
        raw.execute("UPDATE consent_event SET evidence = 'form 8' WHERE id = 2")
    raw.close()
    told = run("registry", "verify", code=1)
    assert told.stdout == ""
    assert told.stderr.count("\n") == 1
    assert "event 2 ('13957100001') was changed after it was written (1 events before it are whole" in told.stderr
    found = verified(run, code=1)
    assert (found["ok"], found["events"], found["event"], found["number"]) == (False, 1, 2, Z0)


def test_verify_against_a_noted_head(run, state) -> None:
    """A head that was noted is found in the ledger as it grows, and misses what was cut off."""
    run("registry", "open", Z0)
    noted = verified(run)["head"]
    run("registry", "close", Z0)
    assert "; the noted head is in it" in run("registry", "verify", "--head", noted, "--count", 2).stdout
    assert verified(run, "--head", noted.upper())["ok"]
    assert "not the noted one" in run("registry", "verify", "--head", noted, "--count", 1, code=1).stderr
    assert "cut off" in run("registry", "verify", "--head", noted, "--count", 9, code=1).stderr
    assert "not in this ledger" in verified(run, "--head", "ab" * 32, code=1)["fault"]
    assert "64 hexadecimal digits" in run("registry", "verify", "--head", "abc", code=2).stderr
    assert "give --head too" in run("registry", "verify", "--count", 3, code=2).stderr


def test_export_and_import_again(run, tmp_path, monkeypatch) -> None:
    """An export imported elsewhere is the same ledger with the same head; a second time it adds nothing."""
    run("registry", "open", Z0, "--caller", HK, "--until", "2999-01-01", "--evidence", '短信 "7", ok')
    run("registry", "close", Z0, "--class", "hmt")
    text = run("registry", "export").stdout
    assert text.splitlines()[0] == ",".join(EVENT_COLUMNS)
    said = run("registry", "export", "all.csv").stdout
    assert said == f"wrote 3 events to all.csv (columns {','.join(EVENT_COLUMNS)})\n"
    assert (tmp_path / "all.csv").read_text(encoding="utf-8") == text
    before, shown = verified(run), run("registry", "show", Z0, "--json").stdout
    monkeypatch.setenv("PBXGUARD_STATE", str(tmp_path / "other"))
    restore = ("registry", "import", "all.csv", "--restore")
    assert run(*restore, "--dry-run").stdout == "would append 3 events\n"
    assert verified(run)["events"] == 0
    assert run(*restore).stdout == "appended 3 events\n"
    assert verified(run) == before
    assert run("registry", "show", Z0, "--json").stdout == shown
    assert run("registry", "import", "all.csv").stdout == "appended 0 events; 3 are in the ledger already\n"
    assert run("registry", "export").stdout == text
    assert not list(tmp_path.glob("*.part"))


def test_import_is_ours(run, tmp_path) -> None:
    """Whatever a file says, its events are an import of now by who imports; --restore takes them as they stand."""
    columns = "number,class,verb,effective_at,recorded_at,actor,via\n"
    forged = "2020-01-01T00:00Z,subscriber,sms\n"
    (tmp_path / "in.csv").write_text(f"{columns}{Z0},hmt,open,2020-01-01T00:00Z,{forged}")
    run("registry", "import", "in.csv")
    (line,) = json.loads(run("registry", "history", Z0, "--json").stdout)
    assert (line["by"], line["via"]) == (f"cli:{getpass.getuser()}", "import")
    assert line["recorded"] > "2026"
    assert "appended 0 events" in run("registry", "import", "in.csv").stdout
    (tmp_path / "reset.csv").write_text(f"{columns}{Z0},intl,reset,2020-01-01T00:00Z,{forged}")
    assert "line 2: column verb: only the undoing" in run("registry", "import", "reset.csv", code=2).stderr
    run("registry", "import", "reset.csv", "--restore")
    assert json.loads(run("registry", "history", Z0, "--json").stdout)[1]["via"] == "sms"


def test_act_with_an_older_date_is_said_to_change_nothing(run) -> None:
    """Who opens today and closes from last year on has it open still, and reads so."""
    run("registry", "open", Z0, "--class", "hmt")
    said = run("registry", "close", Z0, "--class", "hmt", "--at", "2020-01-01").stdout
    assert "note: class hmt stays open since" in said
    assert "note:" not in run("registry", "close", Z0, "--class", "hmt").stdout
    assert reason(run) == "intl_default_off"


def test_short_import(run, tmp_path) -> None:
    """Four columns are enough, numbers are read as typed, and the ledger says who imported."""
    (tmp_path / "in.csv").write_text(f"number,class,verb,effective_at\n+86{Z0},hmt,open,2026-01-01T00:00+08:00\n")
    run("registry", "import", "in.csv")
    assert reason(run) == "intl_origin_notice"
    (line,) = json.loads(run("registry", "history", Z0, "--json").stdout)
    assert (line["by"], line["via"], line["effective"]) == (
        f"cli:{getpass.getuser()}",
        "import",
        "2026-01-01 00:00:00+08:00",
    )


def test_import_is_all_or_nothing(run, tmp_path) -> None:
    """Bad rows are named by line on one line, and nothing is appended."""
    (tmp_path / "in.csv").write_text(
        "number,class,verb,effective_at\n"
        f"{Z0},hmt,open,2026-01-01T00:00+08:00\nabc,hmt,open,2026-01-01T00:00Z\n{Z0},hmt,open,2026-01-01\n"
    )
    said = run("registry", "import", "in.csv", code=2).stderr
    assert "2 bad rows, nothing was imported: line 3: 'abc' is not a number" in said
    assert "line 4: column effective_at: '2026-01-01' has no time zone" in said
    assert verified(run)["events"] == 0
    assert "does not exist" in run("registry", "import", "none.csv", code=2).stderr


def test_export_to_where_nothing_can_be_written(run, tmp_path) -> None:
    """A folder that is not there is named, and nothing half-written stays."""
    assert "none/x.csv: cannot write it: No such file" in run("registry", "export", "none/x.csv", code=2).stderr
    assert not list(tmp_path.glob("**/*.part"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("open", Z0, "--until", "soon"), "'soon' is no ISO 8601 time"),
        (("open", Z0, "--at", "2026-13-01"), "is no ISO 8601 time"),
        (("open", Z0, "--until", "2020-01-01"), "--until 2020-01-01 is not after the time it takes effect"),
        (("open", Z0, "--at", "2026-01-02", "--until", "2026-01-02"), "is not after the time it takes effect"),
        (("open", "abc"), "'abc' is not a number"),
        (
            ("close", "+999123"),
            "'+999123' is no telephone number: no country has this code (intl_bad_cc); write it as ",
        ),
        (("open", "123"), "numbers that begin like it are longer or shorter (gov_service_bad_length); write it as "),
        (("open", "1"), "'1' is no telephone number: no number here begins like it (invalid); write it as dialled "),
        (("open", Z0, "--caller", "x"), "'x' is not a number"),
        (("open", Z0, "--class", "moon"), "'moon' is not one of"),
        (("open", Z0, "--evidence", "a\x1b[31m"), "control character"),
        (("open", Z0, "--evidence", "x" * 501), "longer than 500 characters"),
        (("show", "12"), "'12' is no telephone number"),
        (("history", ""), "'' is not a number"),
    ],
)
def test_bad_registry_commands(run, words, says) -> None:
    """A wrong number, date or class is one clear line; the ledger is as it was."""
    assert says in run("registry", *words, code=2).stderr
    assert json.loads(run("registry", "history", Z0, "--json").stdout) == []


def test_unknown_subscriber_is_mentioned(run) -> None:
    """Opening for a number that is no subscriber works, and says what is missing."""
    assert "note: 13804510001 is no subscriber here yet" in run("registry", "open", "13804510001").stdout


def test_user_without_a_name(run, monkeypatch) -> None:
    """In a container the user may be a number without a name; the ledger then has the number."""

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(getpass, "getuser", nameless)
    run("registry", "open", Z0)
    assert json.loads(run("registry", "history", Z0, "--json").stdout)[0]["by"].removeprefix("cli:").isdigit()


# -- subscribers ----------------------------------------------------------------------------------------------


def test_subscriber_add_show_change_remove(run) -> None:
    """A subscriber is stored under the home form, changed by adding again, and removed."""
    said = run("subscribers", "add", "008613804510001", "--operator", "ct", "--province", "heilongjiang").stdout
    assert said == "subscriber 13804510001: ct, heilongjiang, zh\n"
    run("subscribers", "add", "13804510001", "--operator", "cu", "--province", "hebei", "--language", "en")
    (one,) = json.loads(run("subscribers", "show", "13804510001", "--json").stdout)
    assert one == {"number": "13804510001", "operator": "cu", "province": "hebei", "language": "en"}
    assert len(json.loads(run("subscribers", "show", "--json").stdout)) == 2
    assert "hebei" in run("subscribers", "show").stdout
    assert run("subscribers", "remove", "13804510001").stdout == "removed 13804510001\n"
    assert "13804510001 is no subscriber here" in run("subscribers", "remove", "13804510001", code=1).stderr
    assert "13804510001 is no subscriber here" in run("subscribers", "show", "13804510001", code=2).stderr


def test_subscriber_of_nowhere(run) -> None:
    """A province that the pack does not know is refused with those it knows."""
    words = ("subscribers", "add", Z0, "--operator", "cm", "--province", "atlantis")
    assert "province 'atlantis' is not in pack cn; it has anhui" in run(*words, code=2).stderr


def test_subscribers_import_and_export(run, tmp_path) -> None:
    """An export is imported as it is; language is Chinese where the file does not say."""
    (tmp_path / "in.csv").write_bytes(
        b"\xef\xbb\xbfnumber,operator,province,language\r\n+8613804510001,ct,heilongjiang,en\r\n13803710001,cu,henan,\r\n"
    )
    assert (
        run("subscribers", "import", "in.csv", "--dry-run").stdout == "2 subscribers are fine; nothing was changed\n"
    )
    assert len(json.loads(run("subscribers", "show", "--json").stdout)) == 1
    assert run("subscribers", "import", "in.csv").stdout == "imported 2 subscribers\n"
    text = run("subscribers", "export").stdout
    assert text.splitlines() == [
        "number,operator,province,language",
        "13803710001,cu,henan,zh",
        "13804510001,ct,heilongjiang,en",
        f"{Z0},cm,zhejiang,zh",
    ]
    (tmp_path / "out.csv").write_text(text)
    run("subscribers", "import", "out.csv")
    assert run("subscribers", "export").stdout == text


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("", ":1: the first line must name number,operator,province,language"),
        ("number,operator\n", ":1: the first line must name"),
        ("number,operator,province,lang\n", ":1: the first line must name"),
        (
            "number,operator,province\n13803710001,cu,henan\nabc,cm,zhejiang\n",
            "in.csv: 1 bad rows, nothing was imported: line 3: 'abc' is not a number",
        ),
        (
            "number,operator,province\n13804510001,xx,zhejiang\n",
            "line 2: operator 'xx' is not one of cm, cu, ct, cbn",
        ),
        ("number,operator,province\n13804510001,cm,x\n", "line 2: province 'x' is not in pack cn"),
        ("number,operator,province\n13804510001,cm\n", "line 2: another number of fields than the first line"),
        ("number,operator,province\n13804510001,cm,hebei,en\n", "line 2: another number of fields"),
        ("number,operator,province,language\n13804510001,cm,hebei,fr\n", "line 2: language 'fr' is not zh or en"),
        ("number,operator,province\n" + "x" * 200_000, ":2: field larger than field limit"),
        ("number,operator,province\n" + "a,b,c\n" * 30, "and 10 more"),
    ],
)
def test_subscribers_import_is_all_or_nothing(run, tmp_path, data, says) -> None:
    """A bad row keeps the good ones out too, and is named by line, on one line."""
    (tmp_path / "in.csv").write_text(data)
    assert says in run("subscribers", "import", "in.csv", code=2).stderr
    assert len(json.loads(run("subscribers", "show", "--json").stdout)) == 1
