"""The log: one JSON line each, numbers masked where the site says so, and no line that a caller starts."""

import json
import subprocess
import sys

import pytest

from pbxguard.log import mask

_SCRIPT = """
import asyncio, logging, structlog
from pbxguard import log
log.configure(level={level!r}, mask_numbers={masked})
out = structlog.get_logger()
hostile = 'a\\r\\n{{"event": "forged"}}\\x1b[31m\\u2028\\udcff\\x00'
out.info("call decided", cli="13800138000", cli_key=None, name=hostile, call_id=hostile)
logging.getLogger("library").warning("peer sent %s", hostile)
logging.getLogger("panoramisk.fast_agi").info("Received FastAGI request from %r", hostile)
out.debug("quiet")
try:
    raise ValueError(hostile)
except ValueError:
    out.exception("failed")
    logging.getLogger("library").exception("failed too")
"""


def logged(*, level: str = "info", masked: bool = False) -> list[dict]:
    """What a program of its own writes to standard error, line by line; nothing goes to standard output."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT.format(level=level, masked=masked)],
        capture_output=True,
        check=True,
        timeout=30,
    )
    assert done.stdout == b""
    assert done.stderr.isascii()
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_line_ends_of_a_caller_start_no_line() -> None:
    """A caller's line ends, escape codes and half characters stay inside their JSON string, of all loggers."""
    lines = logged()
    assert [line["event"][:9] for line in lines] == ["call deci", "peer sent", "failed", "failed to"]
    assert lines[0]["name"] == lines[0]["call_id"]
    assert '\r\n{"event": "forged"}' in lines[0]["name"]
    assert lines[0]["cli"] == "13800138000"
    for line in lines:
        assert line["level"] in ("info", "warning", "error")
        assert line["timestamp"].endswith("Z")


def test_errors_come_with_their_traceback() -> None:
    """An exception is one line with its traceback as text, in our log and in a library's."""
    for line in logged()[2:]:
        assert line["exception"].startswith("Traceback")
        assert "ValueError" in line["exception"]


def test_level() -> None:
    """Below the level nothing is written; panoramisk's requests are heard from WARNING up only."""
    assert "quiet" in [line["event"] for line in logged(level="debug")]
    assert not [line for line in logged(level="debug") if "FastAGI" in line["event"]]
    assert [line["event"][:6] for line in logged(level="error")] == ["failed", "failed"]


def test_masked_numbers() -> None:
    """With mask_numbers the log shows the first three and the last four characters."""
    assert logged(masked=True)[0]["cli"] == "138****8000"
    assert logged(masked=True)[0]["cli_key"] is None


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        ("+85261234567", "+85*****4567"),
        ("13800138000", "138****8000"),
        ("95588", "*****"),
        ("1234567", "*******"),
        ("", ""),
        (None, None),
    ],
)
@pytest.mark.parametrize("key", ["cli", "cli_key", "callee", "callee_key", "asserted"])
def test_mask(key: str, number: str | None, shown: str | None) -> None:
    """Short numbers are hidden whole; what is no number is left alone."""
    assert mask(None, "info", {key: number, "reason": "13800138000"}) == {key: shown, "reason": "13800138000"}
