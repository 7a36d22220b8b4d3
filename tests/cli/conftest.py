"""The command line as a user has it: a state folder of its own, no settings of this machine."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pbxguard.cli.main import pbxguard

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state folder; it is made by the first command that needs it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PBXGUARD_CONFIG", raising=False)
    monkeypatch.setenv("PBXGUARD_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "state"


@pytest.fixture
def run(state: Path) -> Run:
    """Run a command in this process; anything but the expected exit code fails, and so does any traceback."""

    def running(*words: object, code: int = 0, given: str | bytes | None = None) -> Result:
        result = CliRunner().invoke(pbxguard, [str(word) for word in words], input=given)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        if code in (2, 3) and not result.stderr.startswith("Usage:"):
            assert result.stderr.startswith("pbxguard: "), result.stderr
            # What stands below the one line is a list that belongs to its remedy.
            assert all(line.startswith("  ") for line in result.stderr.splitlines()[1:]), result.stderr
        return result

    return running


@pytest.fixture
def program(state: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """Start the command as a process of its own."""

    def starting(*words: object, **more: object) -> subprocess.Popen[bytes]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | more
        command = [sys.executable, "-m", "pbxguard", *(str(word) for word in words)]
        return subprocess.Popen(command, env=dict(os.environ), **options)

    return starting
