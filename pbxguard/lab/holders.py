"""Who holds a lock file: processes that have one write what they are into it, for the message of whoever has to wait.

The lock itself is the file's, so what stands here can be wrong for a moment and decides nothing.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_MOST = 4096
#: Characters of a command that are shown.
_SHOWN = 80


@contextmanager
def named(descriptor: int) -> Iterator[None]:
    """This process and its command stand in the open file in this block."""
    mine = f"{os.getpid()} {_command()}"
    _write(descriptor, [*_others(descriptor), mine])
    try:
        yield
    finally:
        _write(descriptor, _others(descriptor))


def others(descriptor: int) -> str:
    """The other processes that stand in the open file and still run, as ``: `pbxguard lab goip` (pid 17)``, or ""."""
    found = [line.partition(" ") for line in _others(descriptor)]
    return ": " + ", ".join(f"`{command}` (pid {pid})" for pid, _, command in found) if found else ""


def _command() -> str:
    words = " ".join(["pbxguard", *sys.argv[1:]])
    plain = "".join(c if c.isprintable() else "?" for c in words)
    return plain if len(plain) <= _SHOWN else plain[: _SHOWN - 3] + "..."


def _others(descriptor: int) -> list[str]:
    lines = os.pread(descriptor, _MOST, 0).decode(errors="replace").splitlines()
    return [line for line in lines if _runs(line.partition(" ")[0])]


def _runs(pid: str) -> bool:
    """Whether that is another process that runs; one of another user does."""
    if not (pid.isascii() and pid.isdigit() and len(pid) < 10) or int(pid) in (0, os.getpid()):
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _write(descriptor: int, lines: list[str]) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()[:_MOST]
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, data, 0)
