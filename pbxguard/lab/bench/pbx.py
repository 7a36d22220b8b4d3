"""The two PBXs of the bench: how each is configured, started and asked, and its three ways to refuse a call.

Knows configuration, commands and names; starts nothing and does not know what is measured.
"""

import secrets
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network
from pathlib import Path
from typing import Protocol

from pbxguard import prompts
from pbxguard.lab.actors import render
from pbxguard.lab.engine import Container
from pbxguard.lab.topology import ESL_PORT
from pbxguard.lab.world import ASTERISK_IMAGE, FREESWITCH_IMAGE

NETWORK = IPv4Network("198.18.8.0/24")
HOST, PBX_ADDRESS, LOAD_ADDRESS = NETWORK[1], NETWORK[10], NETWORK[20]
PBX, LOAD = "pbxguard-bench", "pbxguard-bench-load"

#: A caller from Hong Kong and a subscriber of a province where such calls are off unless asked for.
CLI, CALLEE = "+85261234567", "13957100001"

#: Runs a command in the PBX's container; what it printed.
Run = Callable[..., str]


class Pbx(Protocol):
    """What the bench has to know of a PBX.

    Attributes:
        kind: As `pbxguard serve --only` has it.
        title: For people, and for the names of the rows.
        optional: Where its image is not on the machine, its rows say so, and nothing has failed.
        paths: Extension -> what it does with the call. ``CALLEE`` is the guard's.
        bare: The path that decides nothing.
        rival: The path that the guard is measured against, and its name in the rows.
        rates: Calls a second between which every path's limit is looked for.
        delay_goals: Added post-dial delay in milliseconds, by quantile (DESIGN section 9).
        handler: Address that the handler listens on or connects to, and the password for it.
    """

    kind: str
    title: str
    image: str
    optional: bool
    paths: Mapping[str, str]
    bare: str
    rival: tuple[str, str]
    rates: tuple[float, float]
    delay_goals: Mapping[float, float]
    handler: tuple[tuple[str, int], str]

    def container(self, etc: Path, dialplan: Path) -> Container:
        """Its container; *etc* is its folder for the configuration, to be filled here."""

    def up(self, run: Run) -> bool:
        """Whether it has started and takes calls."""

    def prepare(self, run: Run) -> None:
        """What is to be done once before the first call."""

    def idle(self, run: Run) -> bool:
        """Whether it has no call left."""


class Asterisk:
    """FastAGI against AstDB, which is what FreePBX's blacklist asks."""

    kind = "asterisk"
    title = "Asterisk"
    image = ASTERISK_IMAGE
    optional = False
    paths: Mapping[str, str] = {"hangup": "Hangup only", "astdb": "AstDB DB_EXISTS", CALLEE: "pbxguard"}
    bare = "hangup"
    rival = ("astdb", "the same PBX, AstDB DB_EXISTS")
    rates = (150.0, 2400.0)
    delay_goals: Mapping[float, float] = {0.5: 2, 0.99: 10}
    handler = ((str(HOST), 4573), "")

    def container(self, etc: Path, dialplan: Path) -> Container:
        values = {"guard": "{}:{}".format(*self.handler[0]), "secret": "-"}
        render(etc, ("bench",), _COMMON | values)
        return Container(PBX, self.image, {PBX: PBX_ADDRESS}, _mounts(etc, "/etc/asterisk", dialplan))

    def up(self, run: Run) -> bool:
        return "fully booted" in run("asterisk", "-rx", "core waitfullybooted")

    def prepare(self, run: Run) -> None:
        run("asterisk", "-rx", f"database put blacklist {CLI} 1")

    def idle(self, run: Run) -> bool:
        return "\n0 active channels" in "\n" + run("asterisk", "-rx", "core show channels count")


class Freeswitch:
    """The event socket against mod_blacklist."""

    kind = "freeswitch"
    title = "FreeSWITCH"
    image = FREESWITCH_IMAGE
    optional = True
    paths: Mapping[str, str] = {"bare": "respond only", "blacklist": "mod_blacklist", CALLEE: "pbxguard"}
    bare = "bare"
    rival = ("blacklist", "the same PBX, mod_blacklist")
    rates = (60.0, 960.0)
    delay_goals: Mapping[float, float] = {0.99: 30}

    def __init__(self) -> None:
        self._secret = secrets.token_urlsafe(12)
        self.handler = ((str(PBX_ADDRESS), ESL_PORT), self._secret)

    def container(self, etc: Path, dialplan: Path) -> Container:
        render(etc, ("bench-freeswitch",), _COMMON | {"secret": self._secret, "pbx_address": str(PBX_ADDRESS)})
        # The local image has it below /opt, a distribution's package on PATH. -nosql: see freeswitch.xml.
        start = (
            "PATH=$PATH:/opt/freeswitch/bin exec freeswitch -nf -np -nonat -nosql -c "
            "-conf /etc/freeswitch-bench -log /tmp -db /tmp -run /tmp"
        )
        mounts = _mounts(etc, "/etc/freeswitch-bench", dialplan)
        return Container(PBX, self.image, {PBX: PBX_ADDRESS}, mounts, command=("sh", "-c", start))

    def up(self, run: Run) -> bool:
        return "RUNNING" in self._ask(run, "sofia status")

    def prepare(self, run: Run) -> None:
        pass

    def idle(self, run: Run) -> bool:
        return "\n0 session(s) - " in self._ask(run, "status")

    def _ask(self, run: Run, command: str) -> str:
        shell = f"PATH=$PATH:/opt/freeswitch/bin exec fs_cli -p '{self._secret}' -x '{command}'"
        return run("sh", "-c", shell)


#: What `--pbx` names.
PBXS: Mapping[str, Callable[[], Pbx]] = {"asterisk": Asterisk, "freeswitch": Freeswitch}

_COMMON = {
    "ami": "no", "rtp_first": "10000", "rtp_last": "29999", "cli": CLI, "load_address": str(LOAD_ADDRESS),
}  # fmt: skip


def _mounts(etc: Path, where: str, dialplan: Path) -> Mapping[Path, str]:
    return {etc: where, dialplan: "/etc/pbxguard", prompts.prompt_dir(None): "/var/lib/pbxguard/prompts"}
