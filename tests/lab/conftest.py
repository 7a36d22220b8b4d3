"""One lab for all tests that place calls: a state of its own, taken down at the end."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from processors import HOST

from pbxguard.config import Settings
from pbxguard.lab.world import World


def _usable() -> str:
    """Why no lab can be had here, or ""."""
    if os.environ.get("DOCKER_HOST") or Path("/var/run/docker.sock").exists():
        return ""
    if shutil.which("docker") is None:
        return "no Docker engine; `make test` sets one up (needs root or sudo)"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the lab that all share come last: others have one of their own, and an engine holds one.

    FreeSWITCH's scenarios come right before them, when the other half of the tests (`make test`) is through: beside
    much else its calls have gaps.
    """
    items.sort(key=lambda item: (_shares_the_lab(item), item.path.name == "test_freeswitch_lab.py"))


def _shares_the_lab(item: pytest.Item) -> bool:
    found = getattr(item, "_fixtureinfo", None)
    chain = list(found.name2fixturedefs.get("world", ())) if found is not None else []
    while chain and "world" in chain[-1].argnames:  # a fixture that puts something around the shared one
        chain.pop()
    return bool(chain) and chain[-1].scope == "session"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """What is to be heard in time is begun when the machine has its processors; the test's own time begins then."""
    if item.get_closest_marker("lab") is not None:
        HOST.wait()
    return (yield)


@pytest.fixture(name="world", scope="session")
def _world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The lab, up. Where root and Docker are at hand a missing lab is an error, never a skip."""
    if (why := _usable()) and os.geteuid() != 0:
        pytest.skip(why)
    state = tmp_path_factory.mktemp("lab-state")
    with World(Settings(state=state)) as world:
        try:
            world.up()
            yield world
        finally:
            world.down()


@pytest.fixture(name="pbxguard")
def _pbxguard(world: World) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The command line as its users run it, on the state of the lab under test."""

    def run(*arguments: str, timeout: float = 120, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*before, sys.executable, "-m", "pbxguard", *arguments],
            capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL,
            env=os.environ | {"PBXGUARD_STATE": str(world.state), "COLUMNS": "200"},
        )  # fmt: skip

    return run
