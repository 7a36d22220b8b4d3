"""What all commands have in common: help, trouble in one line, and output that goes where it belongs."""

import importlib.metadata
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pbxguard.cli.main import pbxguard
from pbxguard.store import Store

Z0 = "13957100001"
HK = "+85261234567"
CHECK = ("check", "--from", HK, "--to", Z0, "--trunk", "intl")
COMMANDS = [
    ("subscribers", "show"),
    ("registry", "show", Z0),
    ("lists", "show"),
    ("privacy", "show"),
    ("explain", "c1"),
    CHECK,
]


def every_command(group=pbxguard, *path):
    for name, command in sorted(group.commands.items()):
        yield (*path, name)
        if hasattr(command, "commands"):
            yield from every_command(command, *path, name)


@pytest.mark.parametrize("words", [(), *every_command()], ids=" ".join)
def test_help(run, words, state) -> None:
    """Every command explains itself, with and without settings, and touches nothing."""
    said = run(*words, "--help").stdout
    assert said.startswith("Usage: pbxguard")
    assert run(*words, "-h").stdout == said
    assert not state.exists()


def test_families_are_the_documented_ones() -> None:
    """The commands are those of the contract (DESIGN section 7)."""
    assert set(pbxguard.commands) == {"check", "explain", "subscribers", "registry", "lists", "privacy", "serve"}
    assert set(pbxguard.commands["subscribers"].commands) == {"add", "remove", "show", "import", "export"}
    assert {"add", "remove", "show", "import", "export"} <= set(pbxguard.commands["lists"].commands)
    assert {"open", "close", "show", "history"} <= set(pbxguard.commands["registry"].commands)


def test_version(run) -> None:
    """--version names the installed version."""
    assert importlib.metadata.version("pbxguard") in run("--version").stdout


def test_without_the_lab_extra(state) -> None:
    """Where docker is not installed, help works and the lab says what it needs, with exit code 3."""
    script = "import sys; sys.modules['docker'] = None; from pbxguard.cli import main; main()"

    def asked(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, *words], check=False, capture_output=True, text=True, timeout=60
        )

    assert asked("--help").returncode == 0
    assert "pbxguard[lab]" in asked("--help").stdout
    for words in (("lab",), ("lab", "up", "--listen", "x"), ("lab", "--help")):
        done = asked(*words)
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr == "pbxguard: the lab needs docker; install pbxguard[lab]\n"


# -- settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_broken_settings(run, tmp_path, words) -> None:
    """Broken TOML or an unknown key is one line with the file, and exit code 2; no database is made."""
    (tmp_path / "site.toml").write_text("[guard\n")
    assert "site.toml: not valid TOML" in run("--config", "site.toml", *words, code=2).stderr
    (tmp_path / "pbxguard.toml").write_text("[guard]\nspeed = 1\n")
    assert "pbxguard.toml:2: guard.speed: no setting has this name" in run(*words, code=2).stderr
    assert "none.toml: cannot read the settings" in run("--config", "none.toml", *words, code=2).stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('pack = "xx"', "no country pack 'xx'"),
        (
            '[trunks.intl]\nkind = "moon"',
            "pbxguard.toml:2: trunks.intl.kind: 'moon' is no kind of trunk in pack cn, which ",
        ),
        (
            '[trunks.intl]\nkind = "enterprise"\nallocated = ["abc"]',
            ":3: trunks.intl.allocated: 'abc' is not a number",
        ),
        (
            '[trunks.intl]\nkind = "enterprise"\nallocated = ["+8657186554321"]',
            ":3: trunks.intl.allocated: write '+8657186554321' as dialled at home: '057186554321'",
        ),
        ("[trunks]", "no trunk 'intl' in the settings; there are none"),
    ],
)
def test_settings_that_do_not_fit_the_pack(run, tmp_path, text, says) -> None:
    """A pack, kind or number that is not there is named, before any call is decided."""
    (tmp_path / "pbxguard.toml").write_text(f"{text}\n[screening]\naccept_unverified = ['*']\n")
    assert says in run(*CHECK, code=2).stderr


def test_mistyped_kind_is_told_first_and_alone(run, tmp_path) -> None:
    """A kind that is nearly one that there is is guessed, and not hidden behind the refusals not yet accepted; once
    it is right those are listed, in lines to copy.
    """
    settings = tmp_path / "pbxguard.toml"
    settings.write_text('[trunks.intl]\nkind = "intl_gatewy"\n')
    said = run(*CHECK, code=2).stderr
    assert said.startswith(
        "pbxguard: pbxguard.toml:2: trunks.intl.kind: 'intl_gatewy' is no kind of trunk in pack cn"
    )
    assert "did you mean intl_gateway" in said
    assert ("accept_unverified" in said, said.count("\n")) == (False, 1)
    settings.write_text('[trunks.intl]\nkind = "intl_gateway"\n')
    head, _, listed = run(*CHECK, code=2).stderr.partition("\n")
    assert 'write accept_unverified = ["*"] under [screening] in the settings' in head
    settings.write_text(f'[trunks.intl]\nkind = "intl_gateway"\n[screening]\n{listed}')
    assert run(*CHECK).stdout


def test_wrong_choice_names_the_settings_file(run, tmp_path) -> None:
    """A rule that the pack does not have is told with the file that names it."""
    (tmp_path / "site.toml").write_text("[screening]\nrules_off = ['5.punishmnt']\n")
    said = run("--config", "site.toml", *CHECK, code=2).stderr
    assert said.startswith(
        "pbxguard: site.toml: screening.rules_off: '5.punishmnt' is no rule of this pack; near are"
    )


# -- state ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("content", "says"),
    [(b"this is no database, " * 500, "not a pbxguard database"), (b"", None)],
)
def test_file_that_is_no_database(run, state, words, content, says) -> None:
    """A file that is no database is one line and exit code 3, and is left as it was."""
    state.mkdir()
    path = state / "pbxguard.db"
    path.write_bytes(content)
    if says is None:
        run(*words, code=1 if words[0] == "explain" else 0)
    else:
        assert says in run(*words, code=3).stderr
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    "words",
    [
        ("subscribers", "add", Z0, "--operator", "cm", "--province", "zhejiang"),
        ("registry", "open", Z0),
        ("lists", "add", "130*"),
        ("lists", "remove", "130*"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_locked_database(run, state, words, monkeypatch) -> None:
    """While another program writes, a change is refused in one line with exit code 3, and reading goes on."""
    monkeypatch.setattr("pbxguard.store.sqlite.BUSY_TIMEOUT_MS", 20)
    state.mkdir()
    Store.open(state / "pbxguard.db").close()
    other = sqlite3.connect(state / "pbxguard.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        assert "the database is locked by another program that writes to it; try again" in run(*words, code=3).stderr
        run(*CHECK)
    finally:
        other.close()


def test_state_folder_that_cannot_be_made(run, tmp_path, monkeypatch) -> None:
    """A state folder below a file is named, with the remedy."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "x"):
        monkeypatch.setenv("PBXGUARD_STATE", str(path))
        said = run(*CHECK, code=2).stderr
        assert f"cannot make the state folder {path}: " in said
        assert "set PBXGUARD_STATE" in said


def test_database_elsewhere(run, tmp_path) -> None:
    """store.url of the settings names the database; a folder that is not there is said to be none."""
    accept = '[screening]\naccept_unverified = ["*"]\n'
    (tmp_path / "pbxguard.toml").write_text(f'{accept}[store]\nurl = "{tmp_path}/none/x.db"')
    assert f"the folder {tmp_path}/none is not there" in run(*CHECK, code=3).stderr
    (tmp_path / "pbxguard.toml").write_text(f'{accept}[store]\nurl = "postgresql://h/x"')
    assert "keeps its data in SQLite" in run(*CHECK, code=2).stderr


# -- output ---------------------------------------------------------------------------------------------------


def test_reader_that_goes_away(program, run, tmp_path) -> None:
    """A reader that has had enough (`| head -1`) is no error: nothing on standard error, exit code 0."""
    (tmp_path / "list.csv").write_text("pattern\n" + "".join(f"{13000000000 + n}\n" for n in range(20_000)))
    run("lists", "import", "list.csv")
    exporting = program("lists", "export")
    assert exporting.stdout.readline().startswith(b"pattern,")
    exporting.stdout.close()
    assert exporting.stderr.read() == b""
    assert exporting.wait(30) == 0
    exporting.stderr.close()


@pytest.mark.parametrize("words", [("lists", "export"), (*CHECK, "--json"), ("subscribers", "export")])
def test_full_disk_under_the_output(program, words) -> None:
    """Output that cannot be written is one line and exit code 3."""
    with Path("/dev/full").open("wb") as full:
        running = program(*words, stdout=full)
        _, said = running.communicate(timeout=30)
    assert said.decode().startswith("pbxguard: No space left on device")
    assert said.count(b"\n") == 1
    assert running.returncode == 3


def test_answers_and_complaints_are_kept_apart(program) -> None:
    """Standard output holds the answer alone; complaints go to standard error."""
    out, said = (done := program(*CHECK, "--json")).communicate(timeout=30)
    assert json.loads(out)["verdict"] == "allow"
    assert (said, done.returncode) == (b"", 0)
    out, said = (done := program("explain", os.fsdecode(b"x\xff"))).communicate(timeout=30)
    assert (out, done.returncode) == (b"", 1)
    assert b"x\\udcff" in said
