"""Keeps one process per kind of PBX running; one that dies comes back without touching the other."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

import structlog

log = structlog.get_logger()

#: Set for a process that the supervisor started: its standard input ends when the supervisor does.
SUPERVISED = "PBXGUARD_SUPERVISED"

#: Seconds before a process that died is started again; the last one repeats.
BACK_OFF = (0.2, 1.0, 5.0, 15.0)

#: A process that lived this long is not counted as failing at its start.
_STEADY_S = 30.0


def run(arguments: Sequence[str], kinds: Sequence[str]) -> int:
    """Run ``pbxguard ARGUMENTS --only KIND`` for each kind until SIGTERM or SIGINT; the exit code.

    Both get SIGTERM then, finish the calls that are under way, and are waited for.
    """
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    threads = [threading.Thread(target=_keep, args=(arguments, kind, stop), name=kind) for kind in kinds]
    for thread in threads:
        thread.start()
    while not stop.wait(0.5):
        pass
    for thread in threads:
        thread.join()
    return 0


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


def _keep(arguments: Sequence[str], kind: str, stop: threading.Event) -> None:
    deaths = 0
    while not stop.is_set():
        started = time.monotonic()
        command = [sys.executable, "-m", "pbxguard", *arguments, "--only", kind]
        with subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | {SUPERVISED: "1"}) as process:
            log.info("handler started", kind=kind, pid=process.pid)
            while process.poll() is None and not stop.wait(0.1):
                pass
            if stop.is_set():
                process.terminate()
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                return
        deaths = 0 if time.monotonic() - started > _STEADY_S else deaths + 1
        pause = BACK_OFF[min(deaths, len(BACK_OFF)) - 1] if deaths else BACK_OFF[0]
        log.error("handler died", kind=kind, code=process.returncode, again_in_s=pause)
        stop.wait(pause)
