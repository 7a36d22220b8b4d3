"""The PBX under load: a network, two containers and a handler of the bench's own, beside any lab that is up.

Knows how to start and remove them, and what each costs in CPU. SIPp runs in the second container, from the same
image as the PBX. Does not know what is measured.
"""

import os
import shutil
from collections.abc import Mapping
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Self

from pbxguard import prompts
from pbxguard.errors import LabUnavailable
from pbxguard.lab.actors import render
from pbxguard.lab.engine import Container, Engine
from pbxguard.lab.handler import Handler
from pbxguard.lab.topology import LABEL
from pbxguard.lab.waiting import wait_until
from pbxguard.lab.world import ASTERISK_IMAGE
from pbxguard.resources import DIALPLANS
from pbxguard.screening.call import Subscriber
from pbxguard.store import Store

NETWORK = IPv4Network("198.18.8.0/24")
GUARD = (str(NETWORK[1]), 4573)
PBX_ADDRESS, LOAD_ADDRESS = NETWORK[10], NETWORK[20]
PBX, LOAD = "pbxguard-bench", "pbxguard-bench-load"

#: A caller from Hong Kong and a subscriber of a province where such calls are off unless asked for.
CLI, CALLEE = "+85261234567", "13957100001"

#: Extension of the PBX -> what it does with the call.
PATHS = {
    "hangup": "Hangup only",
    "astdb": "AstDB DB_EXISTS",
    CALLEE: "pbxguard",
}

_TICKS = os.sysconf("SC_CLK_TCK")

_SETTINGS = """\
[trunks.bench]
kind = "intl_gateway"
prompt = "none"
"""


class BenchEngine(Engine):
    """The engine, with a label that `pbxguard lab` does not take for a second lab."""

    def _labels(self) -> dict[str, str]:
        return {LABEL: "bench", f"{LABEL}.bench": self.owner}

    def _mine(self) -> list[Any]:
        found = self._client.containers.list(all=True, filters={"label": f"{LABEL}.bench={self.owner}"})
        return list(found)

    def remove_all(self) -> int:
        """Remove the bench's containers and its network; how many things that were."""
        removed = super().remove_all()
        for network in self._client.networks.list(filters={"label": f"{LABEL}.bench={self.owner}"}):
            self._remove_network(network)
            removed += 1
        return removed


class Rig:
    """Everything that a load needs; a context manager that leaves nothing behind, whatever happens in it.

    Args:
        folder: For state, configuration and what SIPp writes; emptied first.

    Raises:
        LabUnavailable: No engine, no image, or the addresses are taken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.output = folder / "output"
        self._engine = BenchEngine(folder)
        self._config = folder / "pbxguard.toml"
        self.handler = Handler(folder, GUARD, self._config)
        self._pbx_pid = 0

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def run(self, *command: str, timeout: float) -> tuple[int, str]:
        """Run a command in the container that makes the load; exit code and output."""
        return self._engine.run(LOAD, *command, timeout=timeout)

    def cli(self, command: str) -> str:
        """What Asterisk's command line answers."""
        return self._engine.run(PBX, "asterisk", "-rx", command)[1]

    def cpu(self) -> Mapping[str, float]:
        """Seconds of CPU that PBX and handler have used, user and system."""
        return {"pbx": _cpu_seconds(self._pbx_pid), "handler": _cpu_seconds(self.handler.pid)}

    def settle(self, limit: float = 20) -> None:
        """Wait until the PBX has no call left."""
        wait_until(
            lambda: "\n0 active channels" in "\n" + self.cli("core show channels count"), limit,
            "the PBX to end its calls", every=0.25,
        )  # fmt: skip

    # -- helpers -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._engine.require_image(ASTERISK_IMAGE)
        self._remove_leftovers()
        shutil.rmtree(self.folder, ignore_errors=True)
        for made in (self.state, self.output):
            made.mkdir(parents=True)
        # SIPp is root in its container, which is nobody of ours where the engine maps users.
        self.output.chmod(0o777)
        self._config.write_text(_SETTINGS, encoding="utf-8")
        with Store.open(self.state / "pbxguard.db") as store:
            store.add_subscriber(Subscriber(CALLEE, "cm", "zhejiang", "zh"))
        shutil.copytree(DIALPLANS / "asterisk", self.folder / "dialplan")
        values = {
            "ami": "no", "secret": "-", "rtp_first": "10000", "rtp_last": "29999", "cli": CLI,
            "guard": f"{GUARD[0]}:{GUARD[1]}", "load_address": str(LOAD_ADDRESS),
        }  # fmt: skip
        etc = render(self.folder / "etc", "bench", values)
        self._engine.network(PBX, NETWORK, internal=True)
        self.handler.start(self.state)
        self._engine.start(
            Container(PBX, ASTERISK_IMAGE, {PBX: PBX_ADDRESS},
                      {etc: "/etc/asterisk", self.folder / "dialplan": "/etc/pbxguard",
                       prompts.prompt_dir(None): "/var/lib/pbxguard/prompts"})
        )  # fmt: skip
        self._engine.start(
            Container(LOAD, ASTERISK_IMAGE, {PBX: LOAD_ADDRESS}, {etc: "/bench", self.output: "/output:rw"},
                      command=("sleep", "infinity"))
        )  # fmt: skip
        wait_until(lambda: "fully booted" in self.cli("core waitfullybooted"), 30, "the PBX of the bench to start")
        self.cli(f"database put blacklist {CLI} 1")
        self._pbx_pid = _child_of(self._engine.pid(PBX))

    def _remove_leftovers(self) -> None:
        self.handler.stop()
        self._engine.remove_all()

    def _remove(self) -> None:
        try:
            self._remove_leftovers()
        finally:
            self._engine.close()


def _child_of(pid: int) -> int:
    """The program that the container's init runs."""
    try:
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    except (OSError, IndexError, ValueError) as error:
        raise LabUnavailable(f"the PBX of the bench ended at once (no child of process {pid})") from error


def _cpu_seconds(pid: int | None) -> float:
    """User and system time of a process, proc(5)."""
    if pid is None:
        raise LabUnavailable("the handler of the bench has ended; see its log")
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError as error:
        raise LabUnavailable(f"process {pid} of the bench has ended") from error
    return (int(fields[11]) + int(fields[12])) / _TICKS
