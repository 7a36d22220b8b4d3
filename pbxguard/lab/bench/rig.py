"""The PBX under load: a network, two containers and a handler of the bench's own, beside any lab that is up.

Knows how to start and remove them, and what each costs in CPU. SIPp runs in the second container, from the image of
Asterisk. Does not know what is measured.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pbxguard.errors import LabUnavailable
from pbxguard.lab.bench.pbx import CALLEE, LOAD, LOAD_ADDRESS, NETWORK, PBX, Pbx
from pbxguard.lab.engine import Container, Engine
from pbxguard.lab.handler import Handler
from pbxguard.lab.topology import LABEL
from pbxguard.lab.waiting import wait_until
from pbxguard.lab.world import ASTERISK_IMAGE
from pbxguard.resources import DIALPLANS
from pbxguard.screening.call import Subscriber
from pbxguard.store import Store

#: What SIPp does.
SCENARIOS = Path(__file__).parents[1] / "etc" / "bench-load"

_TICKS = os.sysconf("SC_CLK_TCK")

_SETTINGS = """\
[screening]
accept_unverified = ["*"]
[trunks.bench]
kind = "intl_gateway"
prompt = "none"
"""


class BenchEngine(Engine):
    """The engine, with a label that `pbxguard lab` does not take for a second lab."""

    def _labels(self) -> dict[str, str]:
        return {LABEL: "bench", f"{LABEL}.bench": self.owner}

    def _mine(self) -> list[Any]:
        return self._containers(f"{LABEL}.bench={self.owner}")

    def remove_all(self) -> int:
        """Remove the bench's containers and its network; how many things that were."""
        removed = super().remove_all()
        for network in self._client.networks.list(filters={"label": f"{LABEL}.bench={self.owner}"}):
            self._remove_network(network)
            removed += 1
        return removed


class NoImage(LabUnavailable):
    """The PBX is one that this machine need not have."""


class Rig:
    """Everything that a load needs; a context manager that leaves nothing behind, whatever happens in it.

    Args:
        folder: For state, configuration and what SIPp writes; emptied first.
        pbx: The one that is called.

    Raises:
        NoImage: No image of an optional PBX.
        LabUnavailable: No engine, no image, or the addresses are taken.
    """

    def __init__(self, folder: Path, pbx: Pbx) -> None:
        self.folder = folder
        self.pbx = pbx
        self.state = folder / "state"
        self.output = folder / "output"
        self._engine = BenchEngine(folder)
        self._config = folder / "pbxguard.toml"
        address, secret = pbx.handler
        self.handler = Handler(folder, address, self._config, pbx.kind, secret)
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

    def cpu(self) -> Mapping[str, float]:
        """Seconds of CPU that PBX and handler have used, user and system."""
        return {"pbx": _cpu_seconds(self._pbx_pid), "handler": _cpu_seconds(self.handler.pid)}

    def settle(self, limit: float = 20) -> None:
        """Wait until the PBX has no call left."""
        wait_until(lambda: self.pbx.idle(self._ask), limit, f"{self.pbx.title} to end its calls", every=0.25)

    # -- helpers -------------------------------------------------------------------------------------------

    def _ask(self, *command: str) -> str:
        return self._engine.run(PBX, *command)[1]

    def _require_images(self) -> None:
        self._engine.require_image(ASTERISK_IMAGE)
        if not self.pbx.optional:
            return
        try:
            self._engine.require_image(self.pbx.image)
        except LabUnavailable as error:
            raise NoImage(f"no image {self.pbx.image}; tag one of FreeSWITCH 1.10.12 or later so") from error

    def _start(self) -> None:
        self._require_images()
        self._remove_leftovers()
        shutil.rmtree(self.folder, ignore_errors=True)
        for made in (self.state, self.output):
            made.mkdir(parents=True)
        # SIPp is root in its container, which is nobody of ours where the engine maps users.
        self.output.chmod(0o777)
        self._config.write_text(_SETTINGS, encoding="utf-8")
        with Store.open(self.state / "pbxguard.db") as store:
            store.add_subscriber(Subscriber(CALLEE, "cm", "zhejiang", "zh"))
        dialplan = self.folder / "dialplan"
        shutil.copytree(DIALPLANS / self.pbx.kind, dialplan)
        pbx = self.pbx.container(self.folder / "etc", dialplan)
        self._engine.network(PBX, NETWORK, internal=True)
        self._engine.start(pbx)
        self._engine.start(
            Container(LOAD, ASTERISK_IMAGE, {PBX: LOAD_ADDRESS}, {SCENARIOS: "/bench", self.output: "/output:rw"},
                      command=("sleep", "infinity"))
        )  # fmt: skip
        wait_until(lambda: self.pbx.up(self._ask), 30, f"{self.pbx.title} to start")
        self.pbx.prepare(self._ask)
        self.handler.start(self.state)
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
