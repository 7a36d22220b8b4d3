"""Claims about the set-up scripts, which change nothing on the machine.

Those with the mark ``lab`` need a Docker engine, but no network: they make images of a few bytes from nothing, under
names of their own, and remove them.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pbxguard.lab import doctor
from pbxguard.lab.world import FREESWITCH_IMAGE

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


def test_tools_of_single_tests_that_are_there_are_taken(tree: Path, plain_path: str) -> None:
    """A browser of any name, node and npm that are there: nothing is said, and nothing asked of apt."""
    for name in ("google-chrome", "node", "npm"):
        (Path(plain_path) / name).symlink_to("/bin/true")
    result = run("docker/prepare.sh", "test-tools", cwd=tree, env={"PATH": plain_path})
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_tools_that_cannot_be_had_are_one_line_and_no_failure(opened: Path, plain_path: str) -> None:
    """Without apt-get, and with it but without root and sudo: what is missing, why, what it costs; exit 0."""
    (Path(plain_path) / "npm").symlink_to("/bin/true")
    asked = {"cwd": opened, "env": {"PATH": plain_path}, "user": as_nobody()}
    without = run("docker/prepare.sh", "test-tools", **asked)  # type: ignore[arg-type]
    assert (without.returncode, without.stderr.count("\n")) == (0, 1)
    assert "missing: chromium nodejs, which cannot be installed without apt-get: the tests" in without.stderr
    if (apt := shutil.which("apt-get")) is None:
        pytest.skip("set-up with apt: no apt-get on this machine")
    (Path(plain_path) / "apt-get").symlink_to(apt)
    no_root = run("docker/prepare.sh", "test-tools", **asked)  # type: ignore[arg-type]
    assert (no_root.returncode, no_root.stderr.count("\n")) == (0, 1)
    assert "missing: chromium nodejs, which need root or sudo to be installed: the tests" in no_root.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="set-up with apt: not root")
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="set-up with apt: no apt-get on this machine")
def test_tools_that_apt_does_not_have_are_not_tried_again(tree: Path, plain_path: str) -> None:
    """Each is tried once; the miss is one line, and is tried again after a day."""
    for name in ("apt-get", "apt-config", "dpkg"):
        if found := shutil.which(name):
            (Path(plain_path) / name).symlink_to(found)
    # apt with no source, and which knows no installed package: it can fetch, change and remove nothing
    state = tree.parent / "apt"
    (state / "lists/partial").mkdir(parents=True)
    (state / "status").write_text("")
    lines = {
        "Dir::Etc::SourceList": "/dev/null", "Dir::Etc::SourceParts": "/dev/null", "Dir::State": state,
        "Dir::State::status": state / "status", "Dir::Cache": state / "cache", "Debug::NoLocking": "true",
    }  # fmt: skip
    (state / "conf").write_text("".join(f'{name} "{value}";\n' for name, value in lines.items()))
    env = {"PATH": plain_path, "APT_CONFIG": str(state / "conf")}
    missing = "missing: chromium nodejs npm, which could not be installed here"

    first = run("docker/prepare.sh", "test-tools", cwd=tree, env=env)
    assert first.returncode == 0
    *tried, said = first.stderr.splitlines()
    assert [line.split()[3] for line in tried] == ["chromium", "nodejs", "npm"]
    assert missing in said
    again = run("docker/prepare.sh", "test-tools", cwd=tree, env=env)
    assert (again.returncode, again.stderr.count("\n")) == (0, 1)
    assert f"{missing} less than a day ago" in again.stderr
    old = time.time() - 25 * 3600
    os.utime(tree / ".state/test-tools-miss", (old, old))
    assert "installing chromium" in run("docker/prepare.sh", "test-tools", cwd=tree, env=env).stderr


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


# -- the FreeSWITCH image ------------------------------------------------------------------------------------

BUILDS = "FROM scratch\nCOPY Dockerfile /\n"
# nobody listens on port 1, and the engine asks no other registry for this name
CANNOT = "FROM 127.0.0.1:1/none\n"


class Recipe:
    """A tree whose images have a name of their own, and whose FreeSWITCH is what the test says."""

    def __init__(self, tree: Path, names: str) -> None:
        self.tree = tree
        self.image = f"{names}/freeswitch:latest"
        self.miss = tree / ".state/freeswitch-miss"
        self.change("docker/prepare.sh", "readonly NAMES=pbxguard ", f"readonly NAMES={names} ")

    def change(self, name: str, old: str, new: str) -> None:
        path = self.tree / name
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))

    def write(self, dockerfile: str) -> None:
        (self.tree / "docker/freeswitch/Dockerfile").write_text(dockerfile)

    def prepare(self, stage: str = "freeswitch") -> subprocess.CompletedProcess[str]:
        return run("docker/prepare.sh", stage, cwd=self.tree)

    def docker(self, *words: str) -> str:
        return run("docker", *words, cwd=self.tree).stdout.strip()

    def tags(self) -> list[str]:
        pattern = self.image.replace(":latest", ":*")
        return self.docker(
            "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "--filter", f"reference={pattern}"
        ).split()

    def image_id(self) -> str:
        return self.docker("image", "inspect", "--format", "{{.Id}}", self.image)

    def make_foreign(self) -> str:
        """Somebody's own image under the lab's tag; its id."""
        folder = self.tree / "foreign"
        folder.mkdir()
        (folder / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\nLABEL made=elsewhere\n")
        self.docker("build", "--quiet", "--tag", self.image, str(folder))
        return self.image_id()


@pytest.fixture
def recipe(tree: Path) -> Iterator[Recipe]:
    """A tree in which a FreeSWITCH image can be made, taken and removed; nothing of it is left behind."""
    if shutil.which("docker") is None or run("docker", "version", cwd=tree).returncode != 0:
        pytest.skip("no Docker engine; `make test` sets one up (needs root or sudo)")
    found = Recipe(tree, f"pbxguard-test-{uuid.uuid4().hex[:12]}")
    yield found
    if tags := found.tags():
        found.docker("image", "rm", *tags)
    assert found.tags() == []


def misses(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines that say what is to be done, without those that say what is under way."""
    return [line for line in result.stderr.splitlines() if "make freeswitch" in line]


@pytest.mark.parametrize(("target", "asks"), [("test", True), ("lab", True), ("bench", True), ("demo", False)])
def test_only_what_may_use_freeswitch_asks_for_it(target: str, asks: bool) -> None:
    """`make demo` places its calls on Asterisk and does not spend time on an image of FreeSWITCH."""
    result = run("make", "--dry-run", "--no-print-directory", target, cwd=TREE, env={"MAKEFLAGS": ""})
    assert result.returncode == 0
    assert ("images freeswitch" in result.stdout) is asks


@pytest.mark.lab
def test_an_image_that_is_there_is_taken(recipe: Recipe) -> None:
    """Whoever made it: an image under the lab's tag is taken as it is, and nothing is built or said."""
    made = recipe.make_foreign()
    recipe.write(BUILDS)
    result = recipe.prepare()
    assert (result.returncode, result.stderr) == (0, "")
    assert recipe.image_id() == made
    assert recipe.tags() == [recipe.image]
    told = recipe.prepare("freeswitch-now")
    assert told.returncode == 0
    assert recipe.image in told.stderr
    assert recipe.image_id() == made


@pytest.mark.lab
def test_an_image_that_cannot_be_built_is_one_line_and_not_tried_again(recipe: Recipe) -> None:
    """A miss costs one line with the remedy and exit 0; it is tried again after a day, or for another recipe."""
    recipe.write(CANNOT)
    first = recipe.prepare()
    assert first.returncode == 0
    assert "building the image" in first.stderr
    assert len(misses(first)) == 1
    assert recipe.image in misses(first)[0]
    assert "scenarios are skipped" in misses(first)[0]

    again = recipe.prepare()
    assert again.returncode == 0
    assert again.stderr.splitlines() == misses(again)
    assert len(misses(again)) == 1

    old = time.time() - 25 * 3600
    os.utime(recipe.miss, (old, old))
    assert "building the image" in recipe.prepare().stderr
    assert "building the image" not in recipe.prepare().stderr
    recipe.write(CANNOT + "# another\n")
    assert "building the image" in recipe.prepare().stderr


@pytest.mark.lab
def test_who_asks_for_the_image_gets_a_try_and_an_exit_code(recipe: Recipe) -> None:
    """`freeswitch-now` tries whatever was missed before; a miss is exit 3, a success ends the waiting."""
    recipe.write(CANNOT)
    recipe.prepare()
    result = recipe.prepare("freeswitch-now")
    assert result.returncode == 3
    assert "building the image" in result.stderr
    assert len(misses(result)) == 1
    recipe.write(BUILDS)
    assert recipe.prepare("freeswitch-now").returncode == 0
    assert not recipe.miss.exists()


@pytest.mark.lab
def test_a_registry_that_is_silent_has_its_time(recipe: Recipe) -> None:
    """A registry that takes the connection and says nothing ends with the limit, as any other miss."""
    recipe.change("docker/prepare.sh", "readonly FREESWITCH_LIMIT=90 ", "readonly FREESWITCH_LIMIT=2 ")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        recipe.write(f"FROM 127.0.0.1:{silent.getsockname()[1]}/none\n")
        begin = time.monotonic()
        result = recipe.prepare()
        took = time.monotonic() - begin
    assert result.returncode == 0
    assert len(misses(result)) == 1
    assert 2 <= took < 10


@pytest.mark.lab
def test_an_image_made_here_follows_its_recipe(recipe: Recipe) -> None:
    """One that set-up built is labelled, kept, made anew for a new recipe, and kept when that cannot be had."""
    recipe.write(BUILDS)
    assert recipe.prepare().returncode == 0
    made = recipe.image_id()
    assert recipe.docker("image", "inspect", "--format", "{{.Config.Labels}}", recipe.image) == "map[pbxguard:image]"
    assert recipe.prepare().stderr == ""

    recipe.write(BUILDS + "LABEL newer=yes\n")
    assert recipe.prepare().returncode == 0
    newer = recipe.image_id()
    assert newer != made

    recipe.write(CANNOT)
    result = recipe.prepare()
    assert result.returncode == 0
    assert "going on with the older" in result.stderr
    assert recipe.image_id() == newer


@pytest.mark.lab
def test_clean_removes_what_was_made_here_and_nothing_else(recipe: Recipe) -> None:
    """`make clean` removes the images that set-up built, and leaves somebody's own under the same name."""
    recipe.write(BUILDS)
    recipe.prepare()
    assert len(recipe.tags()) == 2
    foreign = recipe.make_foreign()
    recipe.miss.write_text("")
    result = run("make", "--no-print-directory", "clean", cwd=recipe.tree, env={"MAKEFLAGS": ""})
    assert result.returncode == 0
    assert recipe.tags() == [recipe.image]
    assert recipe.image_id() == foreign
    assert not recipe.miss.exists()


@pytest.mark.lab
def test_doctor_says_which_freeswitch_there_is(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor names the remedy for no image, and an image without FreeSWITCH in it; a fault only when wanted."""
    monkeypatch.setattr(doctor, "FREESWITCH_IMAGE", recipe.image)
    missing = doctor._freeswitch_image(wanted=True)
    assert not missing.ok
    assert recipe.image in missing.what
    assert "make freeswitch" in missing.remedy
    spared = doctor._freeswitch_image(wanted=False)
    assert spared.ok
    assert "make freeswitch" in spared.what

    made = recipe.make_foreign().removeprefix("sha256:")
    empty = doctor._freeswitch_image(wanted=True)
    assert not empty.ok
    assert made[:12] in empty.what
    assert "not built here" in empty.what
    assert "runs no FreeSWITCH" in empty.what


@pytest.mark.lab
def test_doctor_asks_the_program_for_its_version(recipe: Recipe) -> None:
    """Of a real image the doctor tells tag, id and the version that FreeSWITCH itself says."""
    found = recipe.docker("image", "ls", "--quiet", FREESWITCH_IMAGE)
    if not found:
        pytest.skip(f"no FreeSWITCH image {FREESWITCH_IMAGE}; `make freeswitch` builds it")
    finding = doctor._freeswitch_image(wanted=True)
    assert finding.ok
    assert re.match(r"FreeSWITCH 1\.\d+\.\d+", finding.what)
    assert FREESWITCH_IMAGE in finding.what
    assert found in finding.what


SKIPPING = """
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_call(number):
    pytest.skip("no image of FreeSWITCH; some remedy")

def test_other():
    pytest.skip("of no interest")
"""


@pytest.mark.parametrize(("count", "said"), [(0, ""), (1, "1 FreeSWITCH test was"), (3, "3 FreeSWITCH tests were")])
def test_skipped_freeswitch_tests_are_the_last_line(tmp_path: Path, count: int, said: str) -> None:
    """When FreeSWITCH tests are skipped, the very last line says how many, why, and the remedy; else nothing does."""
    shutil.copy(TREE / "tests/conftest.py", tmp_path / "conftest.py")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(SKIPPING.format(count=count))
    result = run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", cwd=tmp_path)
    last = result.stdout.splitlines()[-1]
    if not said:
        assert "FreeSWITCH" not in last
        return
    assert last.startswith(f"{said} skipped: no image of FreeSWITCH; ")
    assert "make freeswitch" in last
    assert FREESWITCH_IMAGE in last
