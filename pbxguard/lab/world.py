"""One world of the lab as a whole: up, down, status. Joins containers, configuration, handler and seed data."""

import csv
import fcntl
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pbxguard.cli.context import make_folder
from pbxguard.config import Settings
from pbxguard.errors import LabUnavailable
from pbxguard.lab import actors, holders, topology
from pbxguard.lab.engine import Container, Engine
from pbxguard.lab.goip.plan import GatewayPlan
from pbxguard.lab.handler import Handler
from pbxguard.lab.topology import CALLERS, MAX_WORLDS, PHONES, Topology
from pbxguard.lab.waiting import wait_until
from pbxguard.screening.call import Subscriber
from pbxguard.store import Store

ASTERISK_IMAGE = "pbxguard/asterisk:latest"
FREESWITCH_IMAGE = "pbxguard/freeswitch:latest"
SOFTPHONE_IMAGE = "pbxguard/softphone:latest"

#: File of the PBX's call detail records, and where in a row what stands.
_CDR = {
    "asterisk": (
        "/var/log/asterisk/cdr-csv/Master.csv",
        {"src": 1, "dst": 2, "duration": 12, "billsec": 13, "disposition": 14},
    ),
    "freeswitch": ("/tmp/cdr-csv/Master.csv", {"src": 0, "dst": 1, "cause": 2, "duration": 3, "billsec": 4}),  # noqa: S108
}

#: FreeSWITCH's SIP profiles, one a network.
_PROFILES = ("carrier", "access")
#: Seconds that a gateway has to register by itself again, and any program before it is started anew.
_SILENT_FOR, _STUCK_FOR = 5.0, 20.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of ``lab status``."""

    name: str
    role: str
    address: str
    state: str


class Missing:
    """Since when somebody has been missing without a break, as far as the PBX said so each time it was asked."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def for_long(self, names: Collection[str], now: float) -> set[str]:
        """Of *names*, who are missing *now* (seconds of any clock), those who have been for more than 20 s.

        A PBX that did not answer has named nobody: who was missing before begins anew.
        """
        self._since = {name: self._since.get(name, now) for name in names}
        return {name for name, since in self._since.items() if now - since > _STUCK_FOR}


class World:
    """The lab of one state folder. Use as a context manager, which closes the connection to the engine.

    Args:
        settings: The site's settings; the lab guards with them.
        config: Path of the settings file, for the handler process.
        say: Gets one line per step of work that takes time.
        pbx: ``asterisk`` or ``freeswitch``; without it the one that was last up.
        index: Which world: 0 is the lab of ``lab up``; the others have all of their own, the state too.

    Attributes:
        gateways: How each GOIP gateway is configured.
        give_up: Set from another thread, it ends an ``up`` that is under way.
        all_phones: ``up`` starts the telephones that few calls go to as well.

    Raises:
        LabUnavailable: No Docker engine answers.
        BadConfig: The state folder cannot be made, or the lab's passwords in it are damaged.
    """

    def __init__(
        self,
        settings: Settings,
        config: Path | None = None,
        say: Say = lambda _: None,
        pbx: str | None = None,
        index: int = 0,
    ) -> None:
        self.net = Topology(index)
        self.lab = settings.state_dir / "lab"
        self.root = self.lab
        owner = settings.state_dir
        if index:
            self.root = self.lab / "worlds" / str(index)
            settings = settings.model_copy(update={"state": self.root / "state"})
        self.settings = settings
        self.state = settings.state_dir
        self.say = say
        self.give_up = threading.Event()
        self.all_phones = True
        make_folder(self.root)
        self.passwords = actors.Secrets.load(self.root / "secrets.json")
        kept = self.root / "pbx-kind"
        self.pbx = pbx or (kept.read_text() if kept.is_file() else "asterisk")
        if self.pbx == "freeswitch":
            address, secret = (str(self.net.pbx_carrier), topology.ESL_PORT), self.passwords.ami
        else:
            address, secret = (str(self.net.guard_address), settings.asterisk.port), ""
        self.handler = Handler(self.root, address, config, self.pbx, secret)
        self.gateways = {c.name: c.gateway for c in self.net.callers if c.gateway is not None}
        self.engine = Engine(owner, index)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    # -- up and down ---------------------------------------------------------------------------------------

    def up(self, listen: str | None = None) -> None:
        """Have every actor running, registered and reachable; quick when it already is."""
        with self._locked():
            self._have_engine_alone()
            kind = self.root / "pbx-kind"
            if self.is_up() and kind.is_file() and (up := kind.read_text()) != self.pbx:
                raise LabUnavailable(f"this lab is up with {up}; take it down first: pbxguard lab down")
            self.require_images()
            if listen and self.pbx == "freeswitch":
                raise LabUnavailable("--listen is for the Asterisk lab; leave out --pbx freeswitch")
            kind.write_text(self.pbx)
            # A lab that is published stays so until it is taken down.
            published = self.root / "listen"
            if listen is None and published.is_file() and self.is_up():
                listen = published.read_text().strip()
            published.unlink(missing_ok=True)
            if listen:
                published.write_text(listen)
            folders = actors.write(
                self.root, self.passwords, self.settings, self.handler.address, listen, self.pbx, self.net,
                self.gateways,
            )  # fmt: skip
            self.engine.network(self.container("carrier"), self.net.carrier, internal=True)
            self.engine.network(self.container("access"), self.net.access, internal=True)
            if listen:
                self.engine.network(self.container("listen"), self.net.listen, internal=False)
            containers = self._containers(folders, listen)
            started = self._start(*containers)
            if started:
                self.say(
                    f"started {', '.join(started)}" if self.net.index == 0 else f"started world {self.net.index}"
                )
            with_guard = self.net.index == 0  # the others are there for one run, which starts theirs on its own state
            if with_guard:
                self.seed(self.settings.store_url)
                if not self.handler.healthy(self.state):
                    self.handler.start(self.state)
                    self.say(f"started the handler on {self.handler.address[0]}:{self.handler.address[1]}")
            self.wait_ready(with_guard=with_guard, restart=True)

    def _start(self, pbx: Container, *others: Container) -> list[str]:
        """Have these running; names of those that were not."""
        started = [pbx.name] if self.engine.start(pbx) else []
        # A telephone that finds nobody at its first try registers again only after a while.
        wait_until(self._booted, 20, "the PBX to start")
        # A new PBX knows no telephone, and those that registered at the old one would wait for a minute; so would a
        # gateway whose registrar is new.
        fresh = bool(started)
        registrars = {self.container(c.name): self.container(c.registers_at) for c in self.net.callers}
        # One after the other: Engine 20.10 loses count of a network's endpoints when several are made at once
        # and then never lets the network go ("has active endpoints").
        for one in others:
            if self._wanted() and self.engine.start(one, anew=fresh or registrars.get(one.name) in started):
                started.append(one.name)
        return started

    def down(self) -> int:
        """Take the world down, its handler too; world 0 with every other of the lab. How many things that were.

        What a killed process left is found by its label and its pid file.
        """
        with self._locked():
            removed = self._stop_handler()
            if self.net.index:
                removed += self.engine.remove_all()
                shutil.rmtree(self.root, ignore_errors=True)
                return removed
            removed += self.down_others(containers=False)
            removed += self.engine.remove_lab()
            for name in ("pbx", *(c.name for c in CALLERS), *(p.container for p in PHONES), "captures"):
                shutil.rmtree(self.root / name, ignore_errors=True)
            for kept in ("listen", "pbx-kind"):
                (self.root / kept).unlink(missing_ok=True)
            return removed

    def down_others(self, *, containers: bool = True) -> int:
        """Take down every world of this lab but the first, as a killed ``lab run --jobs`` leaves them."""
        removed = 0
        folders = {int(p.name): p for p in (self.lab / "worlds").glob("*") if p.name.isdigit()}
        found = self.engine.worlds() if containers else set()
        for index in sorted((folders.keys() | found) - {0}):
            if index < MAX_WORLDS:
                with World(self.settings, pbx=self.pbx, index=index) as other:
                    removed += other._stop_handler()
                    removed += other.engine.remove_all() if containers else 0
        shutil.rmtree(self.lab / "worlds", ignore_errors=True)
        return removed

    def _stop_handler(self) -> int:
        running = self.handler.pid is not None
        self.handler.stop()
        return int(running)

    @contextmanager
    def busy(self, *, alone: bool) -> Iterator[None]:
        """Use the lab in this block: *alone* as scenarios do, which restart the handler, or beside single calls.

        Raises:
            LabUnavailable: Another process uses it in a way that does not go together.
        """
        descriptor = os.open(self.root / "busy", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError as error:
                who = holders.others(descriptor)
                raise LabUnavailable(
                    f"another `pbxguard lab` command uses this lab at the moment{who}; wait for it, or end it"
                ) from error
            with holders.named(descriptor):
                yield
        finally:
            os.close(descriptor)

    def require_images(self) -> None:
        """Raise when an image that this lab needs is not there."""
        pbx = (FREESWITCH_IMAGE,) if self.pbx == "freeswitch" else ()
        for image in (ASTERISK_IMAGE, SOFTPHONE_IMAGE, *pbx):
            self.engine.require_image(image)

    def is_up(self) -> bool:
        """Whether the PBX of this lab runs."""
        return self.container("pbx") in self.engine.running()

    def require_up(self) -> None:
        if not self.is_up():
            raise LabUnavailable("the lab is not up; `pbxguard lab up` starts it")

    @property
    def watcher(self) -> str:
        """The container that captures: it sees the PBX's network, and has tcpdump."""
        return self.container("watch" if self.pbx == "freeswitch" else "pbx")

    def container(self, actor: str) -> str:
        """Name of an actor's container or of a network."""
        return self.net.name(actor)

    def server(self) -> str:
        """Address at which telephones register: the published one, else the lab's own network."""
        listen = self.root / "listen"
        return listen.read_text().strip() if listen.is_file() else str(self.net.pbx_access)

    def seed(self, store_url: str) -> None:
        """Have the lab's subscribers in the store; those that are there keep what the operator set."""
        with Store.open(store_url) as store:
            for phone in PHONES:
                if store.subscriber(phone.number) is None:
                    store.add_subscriber(Subscriber(phone.number, phone.operator, phone.province, phone.language))

    def fs_cli(self, command: str) -> str:
        """What FreeSWITCH answers to a command of its console; "" when it does not."""
        shell = f"PATH=$PATH:/opt/freeswitch/bin exec fs_cli -p {self.passwords.ami} -x '{command}'"
        code, text = self.engine.run(self.container("pbx"), "sh", "-c", shell)
        return text if code == 0 else ""

    def console(self, command: str) -> str:
        """What the PBX answers to a command of its own console; "" when it does not."""
        if self.pbx == "freeswitch":
            return self.fs_cli(command)
        code, text = self.engine.run(self.container("pbx"), "asterisk", "-rx", command)
        return text if code == 0 else ""

    def version(self) -> str:
        """Which PBX answers, and its version."""
        said = self.console("version" if self.pbx == "freeswitch" else "core show version").strip()
        return said.splitlines()[0] if said else ""

    def channels(self) -> int | None:
        """How many channels the PBX has, or None while it does not answer."""
        command = "show channels count" if self.pbx == "freeswitch" else "core show channels count"
        found = re.search(r"^(\d+) (?:active channels?|total)", self.console(command), re.MULTILINE)
        return int(found[1]) if found else None

    def cdr(self, tag: str) -> dict[str, str]:
        """The PBX's own call detail record of the call with that tag; empty when there is none (yet)."""
        if not re.fullmatch(r"[0-9a-f]{1,32}", tag):
            return {}
        file, columns = _CDR[self.pbx]
        code, text = self.engine.run(self.container("pbx"), "grep", "-a", "-m", "1", f'"{tag}"', file)
        row = next(csv.reader([text.splitlines()[0]]), []) if code == 0 and text else []
        return {name: row[at] for name, at in columns.items() if at < len(row)}

    def gateway(self, name: str, plan: GatewayPlan | None = None) -> None:
        """Have a gateway run with these settings, and wait until its accounts are registered.

        Calls that it carries end when the settings are other ones than before.

        Args:
            name: Of its actor.
            plan: None for those of the topology.
        """
        caller = self.net.caller(name)
        self.gateways[name] = plan or caller.gateway or GatewayPlan()
        folder = actors.gateway(self.root / name, caller, self.gateways[name], self.passwords, self.net)
        self.engine.start(self._asterisk(name, folder))
        wait_until(lambda: self.lines_registered(name), 60, f"the accounts of {name} to register")

    def gateway_in_use(self, name: str) -> bool:
        """Whether somebody's box answers the questions of a gateway's Asterisk."""
        code, text = self.engine.run(self.container(name), "asterisk", "-rx", "manager show connected")
        return code == 0 and "lab " in text

    def lines_registered(self, name: str) -> bool:
        """Whether every account of a gateway is registered, as it sees it; one without accounts only has to run."""
        code, text = self.engine.run(self.container(name), "asterisk", "-rx", "pjsip show registrations")
        # "No objects found." is what a gateway without accounts says, and what no starting Asterisk does.
        said = "objects found" in text.lower()
        return code == 0 and said and text.count(" Registered ") == len(self.gateways[name].accounts(name))

    def restart_pbx(self) -> None:
        """Restart the PBX as its operator would, and wait until it takes calls; handler and telephones stay.

        Calls that are under way end.
        """
        self.engine.restart(self.container("pbx"))
        wait_until(self._booted, 30, "the PBX to start again")
        if self.watcher != self.container("pbx"):
            self.engine.restart(self.watcher)  # it would go on watching the network of the old one

    def forget_registrations(self) -> None:
        """Have the PBX know nobody's registration, as a registrar that keeps them in memory after a restart.

        Calls go on; everybody registers again when it is time to.
        """
        before = self.registered()
        if self.pbx == "freeswitch":
            for profile in _PROFILES:
                self.fs_cli(f"sofia profile {profile} flush_inbound_reg")
        else:
            self.console("database deltree registrar")
        # Not all at once: the first may have come back before one looks.
        wait_until(lambda: 2 * len(self.registered()) <= len(before), 5, "the registrations to be gone")

    def guarded(self) -> bool:
        """Whether the PBX counts on the guard: FreeSWITCH does for some seconds after its last sign of life."""
        if self.pbx == "asterisk":
            return True
        until, now = (self.console(what).strip() for what in ("global_getvar pbxguard_until", "strepoch"))
        return until.isdigit() and now.isdigit() and int(until) >= int(now) + 2

    def status(self) -> list[Row]:
        """Every actor, its address and whether it runs (telephones: whether it is registered)."""
        running = set(self.engine.running())
        there = self.container("pbx") in running
        registered = self.registered() if there else set()
        contacts = self.contacts() if there else {}
        rows = [
            Row(
                "pbx",
                f"guarded {self.pbx}",
                f"{self.net.pbx_carrier}, {self.net.pbx_access}",
                self._state_of("pbx", running),
            )
        ]
        for caller in self.net.callers:
            state = self._state_of(caller.name, running)
            if caller.gateway is not None and state == "running":
                state = "registered" if self.lines_registered(caller.name) else "not registered"
            role = caller.kind or (f"SIM box, used from {caller.registers_at}" if caller.gateway else "switch abroad")
            rows.append(Row(caller.name, role, str(caller.address), state))
        for phone in self.net.phones:
            if phone.address is None:
                free = "free for your telephone" if phone.is_free else "not registered, as it is meant to be"
                state = "registered" if phone.number in registered else free
            else:
                state = self._state_of(phone.container, running)
                if state == "running":
                    state = "registered" if phone.number in registered else "not registered"
            rows.append(
                Row(
                    phone.name,
                    f"subscriber {phone.number} ({phone.province})",
                    str(phone.address or (contacts.get(phone.number, "-") if state == "registered" else "-")),
                    state,
                )
            )
        if self.net.index == 0:
            rows += [
                Row(f"world {index}", "of `pbxguard lab run --jobs`", f"{Topology(index).carrier}", "there")
                for index in sorted(self.engine.worlds() - {0})
            ]
        pid = self.handler.pid
        rows.append(
            Row(
                "handler",
                "pbxguard serve",
                "{}:{}".format(*self.handler.address),
                f"running (pid {pid})" if pid else "not running",
            )
        )
        return rows

    def _booted(self) -> bool:
        if self.pbx == "freeswitch":
            return "FreeSWITCH" in self.fs_cli("version") and "RUNNING" in self.fs_cli("sofia status")
        code, _ = self.engine.run(self.container("pbx"), "asterisk", "-rx", "core waitfullybooted", timeout=10)
        return code == 0

    def registered(self) -> set[str]:
        """SIP users that are registered at the PBX; nobody while it does not answer."""
        return self._registered() or set()

    def _registered(self) -> set[str] | None:
        """The same; None while it does not answer."""
        if self.pbx == "freeswitch":
            # Not `show registrations`, which goes on naming those that were flushed.
            said = [self.fs_cli(f"sofia status profile {profile} reg") for profile in _PROFILES]
            return set(re.findall(r"^User:\s+([^@\s]+)@lab$", "".join(said), re.MULTILINE)) if all(said) else None
        code, text = self.engine.run(self.container("pbx"), "asterisk", "-rx", "pjsip show contacts")
        if code != 0:
            return None
        return {
            line.split()[1].split("/", 1)[0]
            for line in text.splitlines()
            if line.strip().startswith("Contact:") and "/" in line and "<Aor" not in line
        }

    def contacts(self) -> dict[str, str]:
        """Where each registered SIP user is reached, as ``198.18.1.1:5060``: the address that its REGISTER came from.

        Of a user with several, one of them.
        """
        if self.pbx == "freeswitch":
            text = "".join(self.fs_cli(f"sofia status profile {profile} reg") for profile in _PROFILES)
            found = re.findall(
                r"^User:\s+([^@\s]+)@lab$.*?^IP:\s+(\S+)\s+Port:\s+(\d+)", text, re.MULTILINE | re.DOTALL
            )
            return {user: f"{ip}:{port}" for user, ip, port in found}
        # `pjsip show contacts` cuts a long contact off.
        text = self.console("database show registrar")
        found = re.findall(
            r'^/registrar/contact/([^;\s]+);.*"uri":"sips?:[^"@]*@([0-9.]+)(?::(\d+))?', text, re.MULTILINE
        )
        return {user: f"{ip}:{port or topology.SIP_PORT}" for user, ip, port in found}

    # -- helpers -------------------------------------------------------------------------------------------

    def _have_engine_alone(self) -> None:
        """One lab to an engine: its addresses are fixed. What one left that has ended is taken down."""
        if self.net.index:
            return  # the first world has seen to it
        if other := self.engine.other_owner():
            raise LabUnavailable(
                f"another lab is up on this engine (state {other}); "
                f"take it down first: PBXGUARD_STATE={other} pbxguard lab down"
            )
        for ended in self.engine.ended():
            if (Path(ended) / "lab").is_dir():
                # With its handler, which outlives a restart of the engine; and not while it comes up again.
                with World(self.settings.model_copy(update={"state": Path(ended)})) as left:
                    left.down()
            else:
                self.engine.remove_of(ended)

    def _containers(self, folders: dict[str, Path], listen: str | None) -> list[Container]:
        shared = {
            self.root / "prompts": "/var/lib/pbxguard/prompts",
            self.root / "markers": "/var/lib/pbxguard/markers",
        }
        addresses = {
            self.container("carrier"): self.net.pbx_carrier,
            self.container("access"): self.net.pbx_access,
        }
        publish = {}
        if listen:
            addresses[self.container("listen")] = self.net.pbx_listen
            first, last = topology.RTP_PORTS_LISTEN
            ports = (topology.SIP_PORT, *range(first, last + 1))
            publish = {f"{port}/udp": (listen, port) for port in ports}
            publish[f"{topology.SIP_PORT}/tcp"] = (listen, topology.SIP_PORT)
        if self.pbx == "freeswitch":
            # The local image has it below /opt, a distribution's package on PATH.
            start = (
                "PATH=$PATH:/opt/freeswitch/bin exec freeswitch -nf -np -nonat -c "
                "-conf /etc/freeswitch-lab -log /tmp -db /tmp -run /tmp"
            )
            found = [
                Container(
                    self.container("pbx"),
                    FREESWITCH_IMAGE,
                    addresses,
                    shared | {folders["pbx"]: "/etc/freeswitch-lab", self.root / "dialplan": "/etc/pbxguard"},
                    command=("sh", "-c", start),
                ),
                Container(
                    self.container("watch"),
                    ASTERISK_IMAGE,
                    {},
                    {self.root / "captures": "/captures:rw"},
                    command=("sleep", "infinity"),
                    shares_network_of=self.container("pbx"),
                ),
            ]
            return found + self._others(folders)
        found = [
            Container(
                self.container("pbx"),
                ASTERISK_IMAGE,
                addresses,
                shared
                | {
                    folders["pbx"]: "/etc/asterisk",
                    self.root / "dialplan": "/etc/pbxguard",
                    self.root / "captures": "/captures:rw",
                },
                publish,
            )
        ]
        return found + self._others(folders)

    def _asterisk(self, name: str, folder: Path) -> Container:
        """One of those on the carrier network that place or carry calls."""
        return Container(
            self.container(name),
            ASTERISK_IMAGE,
            {self.container("carrier"): self.net.caller(name).address},
            {
                self.root / "prompts": "/var/lib/pbxguard/prompts",
                self.root / "markers": "/var/lib/pbxguard/markers",
                folder: "/etc/asterisk",
                self.root / "captures": "/captures:rw",
            },
        )

    def _others(self, folders: dict[str, Path]) -> list[Container]:
        found = [self._asterisk(caller.name, folders[caller.name]) for caller in self.net.callers]
        found += [
            Container(
                self.container(name),
                SOFTPHONE_IMAGE,
                {self.container("access"): address},
                {folders[name]: "/etc/telephones", self.root / "markers": "/var/lib/pbxguard/markers"},
            )
            for name, phones in self.net.telephones().items()
            if (address := phones[0].address) and (self.all_phones or name != topology.BOX)
        ]
        return found

    def wait_ready(self, *, with_guard: bool = True, restart: bool = False) -> None:
        """Wait until everybody is registered and, *with_guard* on FreeSWITCH, the guard has told the PBX of itself.

        Args:
            with_guard: There is a guard, or will be.
            restart: Start a program anew, once, that has not registered for a while, and say so; its calls end.

        Raises:
            LabUnavailable: Somebody is missing all the same; they are named.
        """
        begun = time.monotonic()
        asked_again: set[str] = set()
        restarted: set[str] = set()
        missing = Missing()

        def ready() -> bool:
            self._wanted()
            registered = self._registered()
            if registered is None:
                missing.for_long((), time.monotonic())
                return False
            silent = self._silent(registered)
            stuck = missing.for_long(silent, time.monotonic())
            gateways = {name for name in silent if name in self.gateways}
            # FreeSWITCH, while it starts, has whoever registers come again after a minute (503, Retry-After). The
            # lab presses the gateway's button instead.
            if self.pbx == "freeswitch" and time.monotonic() - begun > _SILENT_FOR:
                for name in gateways - asked_again:
                    self.engine.run(self.container(name), "asterisk", "-rx", "pjsip send register *all")
                asked_again.update(gateways)
            # A program can hang, and its container runs on; a telephone that was refused waits for minutes.
            for name in sorted(stuck - restarted) if restart else ():
                self._wanted()
                self.say(f"restarting {self.container(name)}: {', '.join(silent[name])} did not register")
                self.engine.restart(self.container(name))
                restarted.add(name)
            return not silent and (not with_guard or self.guarded())

        try:
            wait_until(ready, 120, "every telephone to register")
        except LabUnavailable as error:
            registered = self._registered()
            silent = {} if registered is None else self._silent(registered)
            names = ", ".join(number for numbers in silent.values() for number in numbers) or (
                "an answer of the PBX" if registered is None else "the guard" if with_guard else "nobody now"
            )
            raise LabUnavailable(
                f"{error}; missing: {names}. {self.engine.logs(self.container('pbx'), 5)}"
            ) from error

    def _silent(self, registered: set[str]) -> dict[str, list[str]]:
        """Who ought to be registered and is not: actor -> its telephones' numbers, or the gateway's own name."""
        silent: dict[str, list[str]] = {}
        for caller in self.net.callers:
            if caller.gateway is None:
                continue
            accounts = self.gateways[caller.name].accounts(caller.name) if caller.registers_at == "pbx" else ()
            if not self.lines_registered(caller.name) or not registered.issuperset(accounts):
                silent[caller.name] = [caller.name]
        for phone in PHONES:
            if phone.address and (self.all_phones or not phone.box) and phone.number not in registered:
                silent.setdefault(phone.container, []).append(phone.number)
        return silent

    def _wanted(self) -> bool:
        if self.give_up.is_set():
            raise LabUnavailable("the lab is not wanted any more")
        return True

    def _state_of(self, actor: str, running: set[str]) -> str:
        return "running" if self.container(actor) in running else "not running"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One ``up`` or ``down`` at a time."""
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                who = holders.others(descriptor)
                raise LabUnavailable(
                    f"another `pbxguard lab` command is taking this lab up or down{who}; wait for it"
                ) from error
            with holders.named(descriptor):
                yield
        finally:
            os.close(descriptor)
