"""Whether a handler process is there and ready, told by a small file in the state folder.

A file rather than a port: it needs no address, survives a frozen process, and a dead one is told by its pid and
the time when it started: a pid is used again.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pbxguard.errors import PbxguardError


@dataclass(frozen=True, slots=True)
class Health:
    """What one handler process says of itself.

    Attributes:
        kind: ``asterisk`` or ``freeswitch``.
        ready: It serves: it listens, or it is connected to every FreeSWITCH of the settings.
        detail: In words; of a process that has ended on an error, why.
        started: When it started, clock ticks since the machine did (proc(5), field 22 of ``/proc/PID/stat``).
    """

    kind: str
    pid: int
    ready: bool
    detail: str
    started: int = 0

    @property
    def alive(self) -> bool:
        """Whether that process is (still) there, and not another one with its pid."""
        return _started(self.pid) == self.started


def _started(pid: int) -> int | None:
    """When the process started; None for one that is not there or has ended and is not yet waited for."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The program's name stands in brackets and may hold any; state is field 3, the first after it.
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


@contextmanager
def told(folder: Path, kind: str) -> Iterator["Teller"]:
    """Say in *folder* how this process is, for as long as the block lasts."""
    teller = Teller(folder / f"serve-{kind}.json", kind)
    try:
        yield teller
    except PbxguardError as error:
        # Left behind for `serve --status` and for the supervisor, which starts the next.
        teller.say(str(error), ready=False)
        raise
    except BaseException:
        teller.take_back()
        raise
    else:
        teller.take_back()


@dataclass(frozen=True, slots=True)
class Teller:
    """Writes one file; a folder that cannot be written costs the file, never a call."""

    path: Path
    kind: str

    def say(self, detail: str, *, ready: bool) -> None:
        """Write it, in place of what was said before."""
        if not ready and self._another_serves():
            return
        pid = os.getpid()
        with suppress(OSError):
            new = self.path.with_suffix(".new")
            new.write_text(json.dumps(asdict(Health(self.kind, pid, ready, detail, _started(pid) or 0))))
            new.replace(self.path)

    def take_back(self) -> None:
        """Leave no file behind."""
        if self._another_serves():
            return
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def last(self) -> Health | None:
        """What was said last, by whichever process."""
        return _read(self.path)

    def _another_serves(self) -> bool:
        """Whether the file is that of a process that serves: one that could not take its port leaves it alone."""
        last = self.last()
        return last is not None and last.ready and last.pid != os.getpid() and last.alive


def heard(folder: Path) -> list[Health]:
    """What the handler processes of that state folder said last."""
    found = [_read(path) for path in sorted(folder.glob("serve-*.json"))]
    return [one for one in found if one is not None]


def _read(path: Path) -> Health | None:
    with suppress(OSError, ValueError, TypeError):
        one = Health(**json.loads(path.read_text()))
        if type(one.pid) is int and 0 < one.pid < 2**31:
            return one
    return None
