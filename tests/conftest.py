"""What holds for every test."""

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import hypothesis
import pytest
import structlog
from xdist.scheduler import LoadScopeScheduling

# pytest-xdist tells its processes of a terminal of 80 columns, which no test has.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

# A busy machine makes an example slow, never wrong: speed is measured by `make bench`.
hypothesis.settings.register_profile("pbxguard", deadline=None)
hypothesis.settings.load_profile("pbxguard")


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """A test that sets up the log leaves it as it was for the next one."""
    before, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)


class Halves(LoadScopeScheduling):  # type: ignore[misc]
    """For two processes (`make test`): one has the lab and what must be in time, the other all else.

    An engine holds one lab, and its tests stay in order.
    """

    def _split_scope(self, nodeid: str) -> str:
        return half_of(self.config.rootpath / nodeid.partition("::")[0])


@cache
def half_of(path: Path) -> str:
    """Which half of the tests a file is of: ``lab`` where one of them is marked so, else ``rest``.

    What keeps deadlines of its own, links and adapters, goes with the lab: the other half gives way. The browser of
    the report's tests goes there too, because it does not.
    """
    in_time = path.name in {"test_links.py", "test_report.py"} or path.parent.name == "pbx"
    return "lab" if in_time or "mark.lab" in path.read_text(encoding="utf-8") else "rest"


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Halves:
    return Halves(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What is not the lab's gives way to it: a call that stutters is heard to stutter."""
    if "PYTEST_XDIST_WORKER" in os.environ and os.nice(0) == 0 and half_of(item.path) == "rest":
        os.nice(10)
        # Linux shares processors out among sessions first, and a nice value counts within one (sched(7)).
        with suppress(OSError):
            os.setsid()
            Path("/proc/self/autogroup").write_text("10", encoding="ascii")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Say at the very end, after pytest's own last line, that FreeSWITCH was not tested, why, and the remedy."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    skipped = [
        (report.nodeid, report.longrepr[2].removeprefix("Skipped: ").split(";")[0])
        for report in reporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    ]
    reasons = [reason for test, reason in skipped if "freeswitch" in f"{test} {reason}".casefold()]
    if not reasons:
        return
    tests = "1 FreeSWITCH test was" if len(reasons) == 1 else f"{len(reasons)} FreeSWITCH tests were"
    reporter.write_line(
        f"{tests} skipped: {'; '.join(sorted(set(reasons)))}; `make freeswitch` builds the image, "
        "or tag one of FreeSWITCH 1.10.12 or later as pbxguard/freeswitch:latest",
        yellow=True,
    )
