"""What holds for every test."""

import logging
from collections.abc import Iterator

import hypothesis
import pytest
import structlog

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
