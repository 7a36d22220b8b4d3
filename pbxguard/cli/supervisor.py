"""Keeps one process per kind of PBX running; one that dies comes back without touching the other.

What becomes of a handler that ends by itself:

- Exit code 2 of the first handler of its kind: the settings are wrong, and no further try can mend them. Everything
  is stopped, and the supervisor ends with 2; the handler's own line says what is wrong.
- Anything else (3: the database or the port is not there; a crash; a signal): it is started again after 0.2, 1, 5,
  and from then on every 15 s, for ever, with a line in the log each time. So is one that finds the settings wrong
  after its kind has run already: somebody is at work on the file, and the other kind still takes calls.

Meanwhile ``serve --status`` shows the kind as not ready, and why.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import structlog

from pbxguard.errors import BadConfig, ServiceUnavailable
from pbxguard.pbx import health

log = structlog.get_logger()

#: Set for a process that the supervisor started: its standard input ends when the supervisor does.
SUPERVISED = "PBXGUARD_SUPERVISED"

#: Seconds before a process that died is started again; the last one repeats.
BACK_OFF = (0.2, 1.0, 5.0, 15.0)

#: Exit codes with which a process has said why.
_OUR_ERRORS = (BadConfig.exit_code, ServiceUnavailable.exit_code)

#: A process that lived this long is not counted as failing at its start.
_STEADY_S = 30.0


def run(arguments: Sequence[str], kinds: Sequence[str], folder: Path) -> int:
    """Run ``pbxguard ARGUMENTS --only KIND`` for each kind until SIGTERM or SIGINT; the exit code.

    All get SIGTERM then, finish the calls that are under way, and are waited for.

    Args:
        arguments: Those of the command line.
        kinds: ``asterisk``, ``freeswitch``.
        folder: The state folder, for the health files.
    """
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    keepers = [_Keeper(arguments, kind, stop, health.Teller(folder / f"serve-{kind}.json", kind)) for kind in kinds]
    threads = [threading.Thread(target=keeper.run, name=keeper.kind) for keeper in keepers]
    for thread in threads:
        thread.start()
    while not stop.wait(0.5):
        pass
    for thread in threads:
        thread.join()
    return max(keeper.code for keeper in keepers)


def end_with_supervisor() -> None:
    """In a process that was started by ``run``: end as on SIGTERM when the supervisor is gone.

    Else one that was killed would leave handlers that keep the port from those of the next.
    """
    if os.environ.get(SUPERVISED) is None:
        return

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="supervised", daemon=True).start()


@dataclass
class _Keeper:
    """Keeps the process of one kind.

    Attributes:
        code: With which the supervisor is to end.
    """

    arguments: Sequence[str]
    kind: str
    stop: threading.Event
    teller: health.Teller
    code: int = 0

    def run(self) -> None:
        """Until it is told to stop, or the settings are no good."""
        deaths, first = 0, True
        while not self.stop.is_set():
            started = time.monotonic()
            process = self._serve()
            if self.stop.is_set():
                break
            why = self._why(process)
            if first and process.returncode == BadConfig.exit_code:
                log.error("handler refuses the settings; all is stopped", kind=self.kind, why=why)
                self.code = BadConfig.exit_code
                self.stop.set()
                return
            first = False
            deaths = 0 if time.monotonic() - started > _STEADY_S else deaths + 1
            pause = BACK_OFF[min(deaths, len(BACK_OFF)) - 1] if deaths else BACK_OFF[0]
            log.error("handler died", kind=self.kind, code=process.returncode, why=why, again_in_s=pause)
            self.teller.say(f"started again in {pause:g} s; {why}", ready=False)
            self.stop.wait(pause)
        self.teller.take_back()

    def _serve(self) -> "subprocess.Popen[bytes]":
        """Run one process until it ends, or until we are told to stop and have ended it."""
        command = [sys.executable, "-m", "pbxguard", *self.arguments, "--only", self.kind]
        with subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | {SUPERVISED: "1"}) as process:
            log.info("handler started", kind=self.kind, pid=process.pid)
            while process.poll() is None and not self.stop.wait(0.1):
                pass
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
        return process

    def _why(self, process: "subprocess.Popen[bytes]") -> str:
        """What the process said when it ended on an error, else how it ended."""
        code = process.returncode
        last = self.teller.last()
        if code in _OUR_ERRORS and last is not None and last.pid == process.pid and not last.ready:
            return last.detail
        return f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
