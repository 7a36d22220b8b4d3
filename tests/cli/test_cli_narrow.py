"""The command line for who is new to it, at a terminal of 80 columns: what to begin with, and nothing cut in two."""

import os
import re
import subprocess
import sys

import click
import pytest

from pbxguard.cli.context import FIRST_STEPS
from pbxguard.cli.main import pbxguard

CHECK = ("check", "--from", "+85261234567", "--to", "13957100001", "--trunk", "intl")


def groups(group: click.Group, *path: str) -> list[tuple[str, ...]]:
    """Every group of commands, by the words that name it."""
    found = [path]
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            found += groups(command, *path, name)
    return found


def printed(*words: str, columns: int | None) -> str:
    """What the program prints in that many columns, None: into a pipe, where nobody says how many."""
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-m", "pbxguard", *words], capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL, env=environment | ({} if columns is None else {"COLUMNS": str(columns)}),
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


@pytest.mark.parametrize("path", groups(pbxguard), ids=" ".join)
def test_no_summary_of_a_command_is_cut(path: tuple[str, ...]) -> None:
    """At 80 columns the help of a group has one whole line for each of its commands."""
    told = printed(*path, "--help", columns=80).partition("Commands:\n")[2]

    assert told
    summaries = told.partition("\n\n")[0].splitlines()
    assert not [line for line in summaries if "..." in line or len(line) > 80]


@pytest.mark.parametrize("path", [(), ("lab",)], ids=["pbxguard", "lab"])
def test_help_says_what_to_begin_with(path: tuple[str, ...]) -> None:
    """The help ends with the first steps in their order, and each of them is a command."""
    told = printed(*path, "--help", columns=80)
    verbs = re.findall(r"^ +pbxguard lab (\w+)", told, re.MULTILINE)

    assert verbs == ["up", "softphones", "call", "show", "down"]
    assert [line.strip() for line in told.splitlines()[-5:]] == [line.strip() for line in FIRST_STEPS.splitlines()]
    lab = pbxguard.get_command(click.Context(pbxguard), "lab")
    assert isinstance(lab, click.Group)
    assert set(verbs) <= set(lab.list_commands(click.Context(lab)))


@pytest.mark.parametrize("columns", [None, 40, 60, 80, 100])
@pytest.mark.parametrize("words", [CHECK, ("lists", "show"), ("registry", "history", "13957100001")], ids=" ".join)
def test_no_word_is_broken(run, words: tuple[str, ...], columns: int | None) -> None:
    """However narrow the terminal, each number, name and word of a table stands there whole; no table is wider.

    Nor is one broken in a pipe.
    """
    run("lists", "add", "+85261234567", "--allow", "--subscriber", "13957100001", "--reason", "an aunt in Hong Kong")
    run("registry", "open", "13957100001", "--class", "hmt", "--evidence", "hotline-2026-11-21-0017")
    changing = re.compile(r"check-|\d\.\d|\d:\d|^\d{1,6}$")  # of this very moment, and what it took
    whole, narrow = (
        {word for word in re.sub("[│┃]", " ", printed(*words, columns=width)).split() if not changing.search(word)}
        for width in (400, columns)
    )
    lines = [line for line in printed(*words, columns=columns).splitlines() if "│" in line]

    plain = {word for word in whole if word.isascii() and word[0].isalnum()} - {"what", "value"}  # headings
    assert plain
    assert plain <= narrow
    assert columns is None or max(map(len, lines), default=0) <= columns


def test_a_pipe_gets_whole_rows(run, monkeypatch) -> None:
    """Where nobody says how wide it is, a table is as wide as its words are, so that a row can be searched for."""
    monkeypatch.delenv("COLUMNS")
    entries = ("lists", "add", "+85261234567", "--allow", "--subscriber", "13957100001", "--reason", "aunt")
    run(*entries)
    done = subprocess.run(
        [sys.executable, "-m", "pbxguard", "lists", "show"], capture_output=True, text=True, check=True,
        stdin=subprocess.DEVNULL, env=dict(os.environ),
    )  # fmt: skip

    assert any(
        "13957100001" in line and "+85261234567" in line and "aunt" in line for line in done.stdout.splitlines()
    )


def test_a_time_has_its_offset() -> None:
    """The time of a call is told with its offset from UTC."""
    assert re.search(r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+08:00\b", printed(*CHECK, columns=200))
