"""Claims about the set-up scripts that hold without an engine, a network or a change to the machine."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parent.parent
# What the scripts call before they install anything: no sudo, docker, apt-get or Python among them.
PLAIN_TOOLS = [
    "awk",
    "bash",
    "cat",
    "cut",
    "dirname",
    "env",
    "find",
    "flock",
    "getent",
    "grep",
    "head",
    "id",
    "make",
    "mkdir",
    "printenv",
    "rm",
    "sed",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "tail",
    "tr",
    "xargs",
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what set-up needs, where it may write."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(TREE / name, copy / name)
    shutil.copytree(TREE / "docker", copy / "docker")
    return copy


@pytest.fixture
def plain_path(tmp_path: Path) -> str:
    """A PATH on which nothing can be installed."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in PLAIN_TOOLS:
        found = shutil.which(name)
        assert found, f"{name} is missing on this machine"
        (tools / name).symlink_to(found)
    return str(tools)


@pytest.fixture
def opened(tree: Path) -> Iterator[Path]:
    """The copy, for a user who is not root: every folder above it can be entered, and it can be written."""
    closed = []
    for folder in (tree, *tree.parents):
        mode = folder.stat().st_mode & 0o7777
        if not mode & 0o001:
            closed.append((folder, mode))
            folder.chmod(mode | 0o011)
    tree.chmod(0o777)
    yield tree
    for folder, mode in closed:
        folder.chmod(mode)


def run(
    *command: str, cwd: Path, env: dict[str, str] | None = None, user: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run to its end without a terminal; `env` replaces single variables of the environment."""
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def as_nobody() -> int | None:
    """The user id of a user without rights: another one for root, this one (None) for all others."""
    return 65534 if os.geteuid() == 0 else None


def test_make_alone_lists_every_target_with_one_line() -> None:
    """`make` without a target is `make help`: one line for each target there is, and nothing is done."""
    phony = re.search(r"^\.PHONY: (.*)$", (TREE / "Makefile").read_text(), re.MULTILINE)
    assert phony
    result = run("make", "--no-print-directory", cwd=TREE, env={"MAKEFLAGS": ""})
    assert result.returncode == 0
    listed = [line.split()[1] for line in result.stdout.splitlines()]
    assert listed == phony[1].split()
    assert all(len(line.split()) > 3 for line in result.stdout.splitlines())


@pytest.mark.parametrize("script", ["docker/prepare.sh", "docker/base/build.sh", ".ci/run"])
def test_scripts_can_be_run_and_parse(script: str) -> None:
    """Each script is executable, parses, and stops at the first command that fails."""
    assert os.access(TREE / script, os.X_OK)
    assert run("bash", "-n", script, cwd=TREE).returncode == 0
    assert "set -euo pipefail" in (TREE / script).read_text()


@pytest.mark.parametrize("words", [[], ["enginge"], ["venv", "bogus"], ["tag"], ["tag", "nosuch"], ["run"]])
def test_a_wrong_stage_is_a_usage_error_and_nothing_is_done(tree: Path, words: list[str]) -> None:
    """A stage that does not exist costs one line and exit 2, also when the stages before it exist."""
    result = run("docker/prepare.sh", *words, cwd=tree)
    assert result.returncode == 2
    assert result.stderr.startswith("pbxguard set-up: usage: ")
    assert result.stderr.count("\n") == 1
    assert not (tree / ".venv").exists()


def test_image_tag_follows_its_folder_and_no_other(tree: Path) -> None:
    """An image's tag changes with any file of its folder, with no other folder, and not with the place."""

    def tag(image: str, cwd: Path = tree) -> str:
        return run("docker/prepare.sh", "tag", image, cwd=cwd).stdout.strip()

    asterisk, softphone = tag("asterisk"), tag("softphone")
    assert re.fullmatch(r"pbxguard/asterisk:[0-9a-f]{12}", asterisk)
    assert asterisk == tag("asterisk", TREE)
    with (tree / "docker/asterisk/Dockerfile").open("a") as dockerfile:
        dockerfile.write("# changed\n")
    assert tag("asterisk") != asterisk
    assert tag("softphone") == softphone
    (tree / "docker/softphone/new").write_text("")
    assert tag("softphone") != softphone


def test_without_engine_root_and_sudo_one_line_says_what_is_needed(opened: Path, plain_path: str) -> None:
    """No engine, not root, no sudo: one line that names docker.io and root, and exit 3."""
    if Path("/var/run/docker.sock").exists() and os.geteuid() != 0 and shutil.which("docker"):
        pytest.skip("this user reaches an engine")
    env = {"PATH": plain_path, "DOCKER_HOST": ""}
    result = run("docker/prepare.sh", "engine", cwd=opened, env=env, user=as_nobody())
    assert result.returncode == 3
    assert "docker.io" in result.stderr
    assert "root" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_endpoint_elsewhere_is_shown_and_not_used(opened: Path, plain_path: str) -> None:
    """A DOCKER_HOST on another machine is named, and the local socket is used in its place."""
    env = {"PATH": plain_path, "DOCKER_HOST": "tcp://192.0.2.9:2375"}
    result = run("docker/prepare.sh", "engine", cwd=opened, env=env, user=as_nobody())
    first = result.stderr.splitlines()[0]
    assert "tcp://192.0.2.9:2375 is not local" in first
    assert "unix:///var/run/docker.sock" in first
    told = run("docker/prepare.sh", "run", "printenv", "DOCKER_HOST", cwd=opened, env=env)
    assert told.stdout.strip() == "unix:///var/run/docker.sock"


def test_a_local_socket_that_is_asked_for_is_used(tree: Path) -> None:
    """A DOCKER_HOST that is a local socket is kept (rootless engines); no answer there is exit 3."""
    env = {"DOCKER_HOST": f"unix://{tree}/none.sock"}
    result = run("docker/prepare.sh", "engine", cwd=tree, env=env)
    assert result.returncode == 3
    assert f"unix://{tree}/none.sock" in result.stderr
    assert result.stderr.count("\n") == 1


def test_make_stops_at_a_failed_set_up(tree: Path, plain_path: str) -> None:
    """A target whose set-up fails fails too, says why in one line, and its command is not started."""
    result = run(
        str(shutil.which("make")),
        "--no-print-directory",
        "test",
        cwd=tree,
        env={"MAKEFLAGS": "", "PATH": plain_path},
    )
    assert result.returncode == 2
    first, *rest = result.stderr.splitlines()
    assert first.startswith("pbxguard set-up: Python 3.11 or later is missing")
    assert all("Error 3" in line for line in rest)
    assert result.stdout == ""


def test_run_hands_on_words_and_exit_code(tree: Path) -> None:
    """`run` passes words with blanks and quotes as they are, and the command's exit code back."""
    script = """printf '%s|' "$@"; exit 7"""
    result = run("docker/prepare.sh", "run", "sh", "-c", script, "sh", "a b", "it's", "*", cwd=tree)
    assert result.returncode == 7
    assert result.stdout == "a b|it's|*|"


def test_stopping_an_engine_that_set_up_did_not_start_does_nothing(tree: Path) -> None:
    """`engine-stop` without a record is silent; a recorded number that is another program is left alone."""
    assert run("docker/prepare.sh", "engine-stop", cwd=tree).stderr == ""
    other = subprocess.Popen(["sleep", "60"])
    try:
        (tree / ".state").mkdir(exist_ok=True)
        (tree / ".state/dockerd.pid").write_text(f"{other.pid}\n")
        result = run("docker/prepare.sh", "engine-stop", cwd=tree)
        assert (result.returncode, result.stderr) == (0, "")
        assert other.poll() is None
        assert not (tree / ".state/dockerd.pid").exists()
    finally:
        other.kill()
        other.wait()


def test_nothing_names_a_package_mirror_or_proxy() -> None:
    """The set-up takes mirror and proxy from the machine: no script or Dockerfile names a host."""
    for path in (TREE / "Makefile", TREE / ".ci/run", *(TREE / "docker").rglob("*")):
        if path.is_file():
            assert not re.search(r"(https?|ftp)://\w", path.read_text()), path
