"""``registry`` and ``subscribers`` on the command line."""

import getpass
import json

import pytest

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


def test_show(run) -> None:
    """What is open or closed now, in local time; without anything a sentence says what applies."""
    assert "has opened and closed nothing" in run("registry", "show", Z0).stdout
    assert json.loads(run("registry", "show", Z0, "--json").stdout) == []
    run("registry", "open", Z0, "--class", "hmt", "--until", "2999-01-01")
    (held,) = json.loads(run("registry", "show", Z0, "--json").stdout)
    assert (held["class"], held["channel"], held["caller"], held["state"], held["until"]) == (
        "hmt", "voice", "(all)", "open", "2999-01-01 00:00:00",
    )  # fmt: skip
    assert "2999-01-01 00:00:00" in run("registry", "show", Z0).stdout


def test_history_keeps_every_line(run) -> None:
    """The ledger names who did what, by which way and with what proof; nothing is overwritten."""
    run("registry", "open", Z0, "--class", "hmt", "--evidence", "form 7")
    run("registry", "close", Z0, "--class", "hmt")
    lines = json.loads(run("registry", "history", Z0, "--json").stdout)
    assert [line["what"] for line in lines] == ["open", "close"]
    assert (lines[0]["by"], lines[0]["via"], lines[0]["evidence"]) == (f"cli:{getpass.getuser()}", "cli", "form 7")
    assert "form 7" in run("registry", "history", Z0).stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("open", Z0, "--until", "soon"), "'soon' is no ISO 8601 time"),
        (("open", Z0, "--at", "2026-13-01"), "is no ISO 8601 time"),
        (("open", Z0, "--until", "2020-01-01"), "--until 2020-01-01 is not after the time it takes effect"),
        (("open", Z0, "--at", "2026-01-02", "--until", "2026-01-02"), "is not after the time it takes effect"),
        (("open", "abc"), "'abc' is not a number"),
        (("close", "+999123"), "is no number that can call here"),
        (("open", Z0, "--caller", "x"), "'x' is not a number"),
        (("open", Z0, "--class", "moon"), "'moon' is not one of"),
        (("open", Z0, "--evidence", "a\x1b[31m"), "control character"),
        (("show", "12"), "'12' is no number"),
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
