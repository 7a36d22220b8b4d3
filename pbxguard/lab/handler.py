"""The guard as the lab runs it: `pbxguard serve` as a process of its own that can be killed and frozen."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pbxguard.errors import LabUnavailable
from pbxguard.lab.waiting import wait_until
from pbxguard.pbx import health

# The child writes the file and then becomes the handler: there is no moment at which it runs and nobody knows.
_LAUNCH = 'printf "%s\\n%s" $$ "$2" >"$1" && shift 2 && exec "$@"'


class Handler:
    """One handler process, known by a pid file, so that any later command finds it.

    Args:
        folder: For pid file (process id, line end, the state folder it runs on) and log.
        address: Host and port on which it listens for FastAGI, or on which FreeSWITCH does for it.
        pbx: ``asterisk`` or ``freeswitch``.
        secret: Password of the event socket.
        config: The site's settings file, or None for the lab's own.

    Attributes:
        program: What is started; tests put one that counts what it holds.
    """

    def __init__(
        self, folder: Path, address: tuple[str, int], config: Path | None, pbx: str = "asterisk", secret: str = ""
    ) -> None:
        self.address = address
        self.program: tuple[str, ...] = (sys.executable, "-m", "pbxguard")
        self._pbx = pbx
        self._secret = secret
        self._config = config
        self._pid_file = folder / "handler.pid"
        self.log_file = folder / "handler.log"

    @property
    def pid(self) -> int | None:
        """Process id while it runs or is stopped, else None. A reused pid is told apart by its command line."""
        found = self._found()
        return found[0] if found else None

    def healthy(self, state: Path) -> bool:
        """Whether it runs on that state folder, is not stopped (SIGSTOP), and listens."""
        found = self._found()
        # The kernel accepts connections for a stopped process, so that alone says nothing.
        return found is not None and found[1] not in "Tt" and found[2] == _state(state) and self.answers()

    def _found(self) -> tuple[int, str, bytes] | None:
        """Process id, process state (proc(5)) and state folder of the one that the pid file names."""
        try:
            number, _, state = self._pid_file.read_bytes().partition(b"\n")
            pid = int(number)
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            process_state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (OSError, ValueError, IndexError):
            return None
        return (pid, process_state, state) if b"serve" in command.split(b"\0") and process_state != "Z" else None

    def start(self, state: Path) -> None:
        """Start it on the given state folder and wait until it answers.

        Raises:
            LabUnavailable: It ended or did not listen in time; the message has its last log line.
        """
        self.stop()
        host, port = self.address
        if self._pbx == "asterisk" and self.answers():
            raise LabUnavailable(
                f"another program listens on {host}:{port}; stop it, or set [asterisk] port in the settings"
            )
        command = [*self.program]
        if self._config is not None:
            command += ["--config", str(self._config)]
        command += [
            "serve",
            "--only",
            self._pbx,
            "--listen" if self._pbx == "asterisk" else "--esl",
            f"{host}:{port}",
        ]
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            process = subprocess.Popen(
                ["/bin/sh", "-c", _LAUNCH, "sh", self._pid_file, _state(state), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"PBXGUARD_STATE": str(state), "PBXGUARD_ESL_PASSWORD": self._secret},
            )

        def up() -> bool:
            if process.poll() is not None:
                raise LabUnavailable(f"the handler ended at once: {self._last_line()}")
            return self.answers() and any(h.pid == process.pid and h.ready for h in health.heard(state))

        try:
            wait_until(up, 15, "the handler to listen", every=0.05)
        finally:
            _forget(process)

    def stop(self) -> None:
        """End it: SIGTERM, then SIGKILL. Quiet when it does not run."""
        pid = self.pid
        if pid is not None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                wait_until(lambda: self.pid is None, 5, "the handler to end", every=0.02)
            except LabUnavailable:
                self.signal(signal.SIGKILL)
                wait_until(lambda: self.pid is None, 5, "the handler to end", every=0.02)
        self._pid_file.unlink(missing_ok=True)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, when it runs."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, number)

    def answers(self) -> bool:
        """Whether something listens on its address."""
        try:
            with socket.create_connection(self.address, timeout=0.5):
                return True
        except OSError:
            return False

    @contextmanager
    def killed(self, state: Path) -> Iterator[None]:
        """The handler is dead in this block (SIGKILL), and back after it."""
        self.signal(signal.SIGKILL)
        wait_until(lambda: self.pid is None, 5, "the handler to die", every=0.02)
        try:
            yield
        finally:
            self.start(state)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The handler accepts connections and answers nothing in this block (SIGSTOP)."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def _last_line(self) -> str:
        try:
            lines = self.log_file.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1][:300] if lines else f"see {self.log_file}"


def _state(folder: Path) -> bytes:
    return os.fsencode(folder.resolve())


def _forget(process: "subprocess.Popen[bytes]") -> None:
    # Popen warns about a child that is still running when it is collected; this one is meant to outlive us.
    process.returncode = 0
