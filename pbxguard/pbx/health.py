"""Whether a handler process is there and ready, told by a small file in the state folder.

A file rather than a port: it needs no address, survives a frozen process, and a dead one is told by its pid.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Health:
    """What one handler process says of itself.

    Attributes:
        kind: ``asterisk`` or ``freeswitch``.
        ready: It serves: it listens, or it is connected to every FreeSWITCH of the settings.
        detail: In words.
    """

    kind: str
    pid: int
    ready: bool
    detail: str

    @property
    def alive(self) -> bool:
        """Whether that process is (still) there."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


@contextmanager
def told(folder: Path, kind: str) -> Iterator["Teller"]:
    """Say in *folder* how this process is, for as long as the block lasts."""
    teller = Teller(folder / f"serve-{kind}.json", kind)
    try:
        yield teller
    finally:
        with suppress(OSError):
            teller.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Teller:
    """Writes one file; a folder that cannot be written costs the file, never a call."""

    path: Path
    kind: str

    def say(self, detail: str, *, ready: bool) -> None:
        with suppress(OSError):
            new = self.path.with_suffix(".new")
            new.write_text(json.dumps(asdict(Health(self.kind, os.getpid(), ready, detail))))
            new.replace(self.path)


def heard(folder: Path) -> list[Health]:
    """What the handler processes of that state folder said last."""
    found = []
    for path in sorted(folder.glob("serve-*.json")):
        with suppress(OSError, ValueError, TypeError):
            one = Health(**json.loads(path.read_text()))
            # 0 and less are groups of processes to the system, and always there.
            if type(one.pid) is int and 0 < one.pid < 2**31:
                found.append(one)
    return found
