"""The process that holds the faults of the lab's links: root, one order per line on stdin, one answer on stdout.

A process of its own, because it moves between network namespaces, must not stand still while the lab works, and puts
everything back when its stdin ends, however its parent came to its end. Knows namespaces, veths and addresses; does
not know what a container or an actor is (``links``).
"""

import errno
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.tcmsg.common import tick_in_usec
from pyroute2.netns import setns
from pyroute2.nftables.expressions import genex, ipv4addr, verdict
from pyroute2.nftables.main import NFTables

from pbxguard.lab.relay import BUFFER_S, LIMIT, Relay, Shape

_IFF_UP, _IFF_NOARP = 0x1, 0x80
_ROOT = 0xFFFFFFFF
#: Handle of our qdiscs ("pg"), by which one that was left behind is known.
_HANDLE = 0x70670000
#: Beginning of the alias of a veth whose link is not as it was, and of the names of our nftables tables.
_MARK = "pbxguard-fault"
_NF_DROP, _NF_ACCEPT = 0, 1
_GONE = (errno.ENODEV, errno.ENOENT, errno.ENXIO)


class Refused(Exception):
    """The order cannot be done; the text says why and what to do."""


class Unsupported(Refused):
    """This kernel cannot do it, or it is not root's to do."""


@dataclass(frozen=True, slots=True)
class Ends:
    """Both ends of one link.

    Attributes:
        namespace: Path of the network namespace that has the inner end.
        inode: Of that namespace; a path below /proc can come to mean another.
        inner: Interface index there; ``outer`` that of the host's end.
        master: Index of the bridge that the host's end is a port of, or 0.
    """

    namespace: str
    inode: int
    inner: int
    inner_name: str
    outer: int
    outer_name: str
    master: int


@dataclass(slots=True)
class Held:
    """One order that was carried out."""

    undo: ExitStack
    lines: list[dict[str, Any]] = field(default_factory=list)
    relays: list[Relay] = field(default_factory=list)


@contextmanager
def _inside(namespace: str, inode: int = 0) -> Iterator[None]:
    """This thread in another network namespace; sockets that are opened there stay there.

    Raises:
        FileNotFoundError: It is gone.
    """
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if inode and os.fstat(there).st_ino != inode:
                raise FileNotFoundError(namespace)
            setns(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            setns(here)
    finally:
        os.close(here)


@contextmanager
def _going() -> Iterator[None]:
    """What has gone need not be put back."""
    try:
        yield
    except FileNotFoundError:
        pass
    except NetlinkError as error:
        if error.code not in _GONE:
            raise


def _kind(link: Any) -> str:
    info = link.get_attr("IFLA_LINKINFO")
    return str(info.get_attr("IFLA_INFO_KIND")) if info else ""


def _foreign(namespace: str) -> int:
    """Inode of a network namespace that is not this one, which is the host's."""
    inode = Path(namespace).stat().st_ino
    if inode == Path("/proc/thread-self/ns/net").stat().st_ino:
        raise Refused("it shares the network of the host, and that is not touched; give it a network of the lab")
    return inode


def find(namespace: str, address: IPv4Address | None) -> list[Ends]:
    """The veths of a network namespace whose other ends are here, all or the one with that address.

    Raises:
        Refused: There is none, or it is this very namespace.
    """
    inode = _foreign(namespace)
    with _inside(namespace), IPRoute() as ip:
        having = {a["index"] for a in ip.get_addr(family=2) if a.get_attr("IFA_ADDRESS") == str(address)}
        inner = [link for link in ip.get_links() if _kind(link) == "veth"]
    found = []
    with IPRoute() as ip:
        outer = {link["index"]: link for link in ip.get_links()}
    for link in inner:
        if address is not None and link["index"] not in having:
            continue
        other = outer.get(link.get_attr("IFLA_LINK") or 0)
        if other is None or _kind(other) != "veth" or other.get_attr("IFLA_LINK") != link["index"]:
            continue
        found.append(
            Ends(
                namespace, inode, link["index"], link.get_attr("IFLA_IFNAME"),
                other["index"], other.get_attr("IFLA_IFNAME"), other.get_attr("IFLA_MASTER") or 0,
            )
        )  # fmt: skip
    if not found:
        which = f"with the address {address} " if address else ""
        raise Refused(f"no interface {which}that ends on this host; `pbxguard lab status` shows what is up")
    return found


class Keeper:
    """Carries orders out and takes them back."""

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}
        #: Host's end and means of every fault that is set.
        self._busy: set[tuple[int, str]] = set()
        #: Host's end of every link that is not as it was -> how many faults it has, and the bridge it belongs to.
        self._marked: dict[int, tuple[int, int]] = {}
        self._no_netem = ""

    # -- orders --------------------------------------------------------------------------------------------

    def set(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        """Do it on all its links or on none; what the kernel has afterwards."""
        namespace = order["namespace"]
        address = order.get("address")
        with ExitStack() as undo:
            held = Held(undo)
            if order.get("servers"):
                held.lines.append(self._deaf(undo, namespace, order["id"], order["servers"]))
            else:
                for ends in find(namespace, IPv4Address(address) if address else None):
                    held.lines.append(self._line(held, ends, order))
            held.undo = undo.pop_all()
        self._held[order["id"]] = held
        return held.lines

    def restore(self, number: int) -> list[dict[str, Any]]:
        """Put it back as it was; the lines with what was counted on them meanwhile."""
        held = self._held.pop(number, None)
        if held is None:
            return []
        for line in held.lines:
            with _going():
                line["counted"] = line.pop("count", dict)()
        held.undo.close()
        return held.lines

    def end(self) -> None:
        """Put everything back."""
        for number in reversed(list(self._held)):
            with suppress(NetlinkError, OSError):
                self.restore(number)

    # -- how it is done ------------------------------------------------------------------------------------

    def _line(self, held: Held, ends: Ends, order: dict[str, Any]) -> dict[str, Any]:
        undo = held.undo
        ends = self._mark(undo, ends)
        line = {"interface": ends.inner_name, "host_interface": ends.outer_name}
        if order.get("cut"):
            return line | {"by": "link down"} | self._cut(undo, ends)
        shape = Shape(**order["shape"])
        idle = Shape()
        to, origin = (shape if order["direction"] in ("both", way) else idle for way in ("to", "from"))
        only = IPv4Address(order["only"]) if order.get("only") else None
        why = "only some of its traffic is meant"
        if only is None:
            if set(shape.values()) == {"rate_kbit"} and "tbf" in order["by"]:
                try:
                    return line | {"by": "tbf"} | self._qdiscs(undo, ends, "tbf", to, origin)
                except NetlinkError as error:
                    self._require_unsupported(error)
            why = self._no_netem or "netem was not asked for"
            if "netem" in order["by"] and not self._no_netem:
                try:
                    return line | {"by": "netem"} | self._qdiscs(undo, ends, "netem", to, origin)
                except NetlinkError as error:
                    self._require_unsupported(error)
                    why = self._no_netem = "this kernel has no sch_netem (`modprobe sch_netem` on the host may help)"
        if "relay" not in order["by"]:
            raise Unsupported(why)
        try:
            return line | {"by": "relay"} | self._relay(held, ends, to, origin, only)
        except OSError as error:
            raise Unsupported(f"{why}, and no TAP interface can be made: {error.strerror or error}") from error

    def _reserve(self, undo: ExitStack, ends: Ends, means: str) -> None:
        if (ends.outer, means) in self._busy:
            raise Refused(f"{ends.inner_name} has a fault of this sort already; end that one first (restore_after)")
        self._busy.add((ends.outer, means))
        undo.callback(self._busy.discard, (ends.outer, means))

    def _mark(self, undo: ExitStack, ends: Ends) -> Ends:
        """Write on the host's end who changes its link, and what it was; put right what a dead one left."""
        count, master = self._marked.get(ends.outer, (0, ends.master))
        if not count:
            with IPRoute() as ip:
                words = (ip.get_links(ends.outer)[0].get_attr("IFLA_IFALIAS") or "").split()
                if len(words) == 3 and words[0] == _MARK and words[1].isdigit() and words[2].isdigit():
                    owner, master = int(words[1]), int(words[2])
                    if _is_keeper(owner):
                        raise Refused(
                            f"{ends.inner_name} has a fault of another run (process {owner}); wait for its end"
                        )
                    self._heal(ip, ends, master)
                ip.link("set", index=ends.outer, ifalias=f"{_MARK} {os.getpid()} {master}")
        self._marked[ends.outer] = (count + 1, master)
        undo.callback(self._unmark, ends.outer)
        # A link that a relay stands in for has left its bridge.
        return replace(ends, master=master)

    def _unmark(self, outer: int) -> None:
        count, master = self._marked.pop(outer)
        if count > 1:
            self._marked[outer] = (count - 1, master)
            return
        with _going(), IPRoute() as ip:
            ip.link("set", index=outer, ifalias="")

    @staticmethod
    def _heal(ip: IPRoute, ends: Ends, master: int) -> None:
        ip.link("set", index=ends.outer, arp=True, state="up", **({"master": master} if master else {}))
        _remove_qdisc(ip, ends.outer)
        with _inside(ends.namespace, ends.inode), IPRoute() as inner:
            _remove_qdisc(inner, ends.inner)

    def _cut(self, undo: ExitStack, ends: Ends) -> dict[str, Any]:
        self._reserve(undo, ends, "cut")
        with IPRoute() as ip:
            undo.callback(self._join, ends)
            ip.link("set", index=ends.outer, state="down")
        with _inside(ends.namespace, ends.inode), IPRoute() as ip:
            carrier = ip.get_links(ends.inner)[0].get_attr("IFLA_CARRIER")
        if carrier:
            raise Refused(f"{ends.outer_name} was set down, but {ends.inner_name} still has a carrier")
        return {"to": {"carrier": 0}, "from": {"carrier": 0}}

    @staticmethod
    def _join(ends: Ends) -> None:
        with _going(), IPRoute() as ip:
            ip.link("set", index=ends.outer, state="up")

    def _qdiscs(self, undo: ExitStack, ends: Ends, kind: str, to: Shape, origin: Shape) -> dict[str, Any]:
        """A qdisc where frames leave for the container, and one where they leave it."""
        places = {"to": ("/proc/thread-self/ns/net", 0, ends.outer), "from": (ends.namespace, ends.inode, ends.inner)}
        read: dict[str, Any] = {}
        with ExitStack() as mine:
            self._reserve(mine, ends, "qdisc")
            for way, shape in (("to", to), ("from", origin)):
                if not shape.values():
                    continue
                with _inside(*places[way][:2]), IPRoute() as ip:
                    index = places[way][2]
                    if any(q["handle"] not in (0, _HANDLE) for q in ip.get_qdiscs(index) if q["parent"] == _ROOT):
                        raise Refused(
                            f"{ends.inner_name} has a traffic shaper that is not ours; remove it (tc qdisc)"
                        )
                    mine.callback(self._no_qdisc, *places[way])
                    _shape(ip, index, kind, shape)
                    read[way] = _read(ip, index)
                    _require_same(shape, read[way])
            undo.push(mine.pop_all())

        def count() -> dict[str, Any]:
            counted = {}
            for way in read:
                with _inside(*places[way][:2]), IPRoute() as ip:
                    counted[way] = _statistics(ip, places[way][2])
            return counted

        return read | {"count": count}

    @staticmethod
    def _no_qdisc(namespace: str, inode: int, index: int) -> None:
        with _going(), _inside(namespace, inode), IPRoute() as ip:
            _remove_qdisc(ip, index)

    def _require_unsupported(self, error: NetlinkError) -> None:
        if error.code not in (errno.ENOENT, errno.EOPNOTSUPP):
            raise error

    def _relay(self, held: Held, ends: Ends, to: Shape, origin: Shape, only: IPv4Address | None) -> dict[str, Any]:
        if not ends.master:
            raise Refused(f"{ends.outer_name} is no port of a bridge, so nothing can stand in for it")
        tap = f"pg{ends.outer}"
        with ExitStack() as mine:
            self._reserve(mine, ends, "relay")
            relay = Relay(tap, ends.outer_name, to, origin, only)
            mine.callback(relay.close)
            with IPRoute() as ip:
                mtu = ip.get_links(ends.outer)[0].get_attr("IFLA_MTU")
                index = ip.link_lookup(ifname=tap)[0]
                ip.link("set", index=index, mtu=mtu, state="up", master=ends.master)
                mine.callback(self._enslave, ends)
                # Off the bridge it would answer ARP with its own address, and be taken for the host.
                ip.link("set", index=ends.outer, arp=False, master=0)
                now = ip.get_links(ends.outer)[0]
                if now.get_attr("IFLA_MASTER") or not now["flags"] & _IFF_NOARP:
                    raise Refused(f"{ends.outer_name} did not leave its bridge")
            relay.begin()
            held.relays.append(relay)
            mine.callback(held.relays.remove, relay)
            held.undo.push(mine.pop_all())
        found = {"to": to.values(), "from": origin.values(), "count": relay.counted}
        return found | ({"only": str(only)} if only else {})

    @staticmethod
    def _enslave(ends: Ends) -> None:
        with _going(), IPRoute() as ip:
            ip.link("set", index=ends.outer, arp=True, master=ends.master)

    def _deaf(self, undo: ExitStack, namespace: str, number: int, servers: list[str]) -> dict[str, Any]:
        """Rules in the namespace's own packet filter, by which no name server answers."""
        table = f"{_MARK}-{os.getpid()}-{number}"
        inode = _foreign(namespace)
        try:
            with _inside(namespace), NFTables() as nft:
                for left in nft.get_tables():
                    name = left.get_attr("NFTA_TABLE_NAME")
                    owner = name.removeprefix(f"{_MARK}-").split("-")[0] if name.startswith(_MARK) else ""
                    if owner.isdigit() and int(owner) != os.getpid() and not _is_keeper(int(owner)):
                        nft.table("del", name=name)
                undo.callback(self._no_table, namespace, inode, table)
                nft.table("add", name=table)
                nft.chain("add", table=table, name="input", hook="input", type="filter", policy=_NF_ACCEPT)
                for server in servers:
                    nft.rule("add", table=table, chain="input", expressions=_expressions(server))
                has = [r for r in nft.get_rules() if r.get_attr("NFTA_RULE_TABLE") == table]
        except NetlinkError as error:
            raise Unsupported(f"the kernel's nftables did not take the rule ({error}); it needs nf_tables") from error
        if len(has) != len(servers):
            raise Refused(f"nftables has {len(has)} of {len(servers)} rules")
        return {"interface": "", "host_interface": "", "by": "nftables", "to": {"dns_gone": servers}}

    @staticmethod
    def _no_table(namespace: str, inode: int, table: str) -> None:
        with _going(), _inside(namespace, inode), NFTables() as nft:
            nft.table("del", name=table)

    # -- the loop ------------------------------------------------------------------------------------------

    def relays(self) -> list[Relay]:
        return [relay for held in self._held.values() for relay in held.relays]

    def serve(self, orders: int, answers: int) -> None:
        """Carry out what is ordered until *orders* ends."""
        text = b""
        while True:
            relays = self.relays()
            due = min((at for relay in relays if (at := relay.next) is not None), default=None)
            patience = None if due is None else max(0.0, due - time.monotonic())
            ready, _, _ = select.select(
                [orders, *(file for relay in relays for file in relay.files)], [], [], patience
            )
            for relay in relays:
                relay.turn()
            if orders not in ready:
                continue
            some = os.read(orders, 65536)
            if not some:
                return
            *lines, text = (text + some).split(b"\n")
            for line in lines:
                os.write(answers, json.dumps(self._answer(line)).encode() + b"\n")

    def _answer(self, line: bytes) -> dict[str, Any]:
        order = json.loads(line)
        return {"number": order["number"]} | self._done(order)

    def _done(self, order: dict[str, Any]) -> dict[str, Any]:
        try:
            lines = self.set(order) if order["do"] == "set" else self.restore(order["id"])
        except Refused as error:
            return {"error": str(error), "unsupported": isinstance(error, Unsupported)}
        except FileNotFoundError:
            return {"error": "it is not running"}
        except (NetlinkError, OSError) as error:
            code = error.code if isinstance(error, NetlinkError) else error.errno
            if code in (errno.EPERM, errno.EACCES):
                return {"error": f"this needs root with all its rights (CAP_NET_ADMIN): {error}", "unsupported": True}
            return {"error": f"the kernel refused: {error}"}
        return {"lines": [{k: v for k, v in each.items() if k != "count"} for each in lines]}


def _is_keeper(pid: int) -> bool:
    with suppress(OSError):
        return pid != os.getpid() and __spec__.name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _remove_qdisc(ip: IPRoute, index: int) -> None:
    if any(q["handle"] == _HANDLE for q in ip.get_qdiscs(index)):
        ip.tc("del", index=index, handle=_HANDLE, root=True)


def _shape(ip: IPRoute, index: int, kind: str, shape: Shape) -> None:
    """Have pyroute2 set it: bytes per second, whole microseconds; it ignores names that it does not know."""
    if kind == "netem":
        ip.tc(
            "replace", "netem", index, _HANDLE, delay=int(shape.delay_ms * 1000), jitter=int(shape.jitter_ms * 1000),
            loss=shape.loss, prob_corrupt=shape.corrupt, limit=LIMIT,
        )  # fmt: skip
    if shape.rate_kbit:
        # Not by netem's own rate: pyroute2 0.9.7 puts that into the request twice, and the second time wrongly.
        parent = {"parent": _HANDLE + 1} if kind == "netem" else {}
        rate = int(shape.rate_kbit * 125)
        # A bucket of one frame and a bit: so the rate holds from the start. Larger segments are split.
        burst = max(1600, rate // 100)
        ip.tc("replace", "tbf", index, _HANDLE + 0x10000 * bool(parent), rate=rate, burst=burst,
              limit=max(3200, int(rate * BUFFER_S)), **parent)  # fmt: skip


def _read(ip: IPRoute, index: int) -> dict[str, float]:
    """What the kernel has, in our units."""
    found: dict[str, float] = {}
    for qdisc in ip.get_qdiscs(index):
        kind, options = qdisc.get_attr("TCA_KIND"), qdisc.get_attr("TCA_OPTIONS")
        if qdisc["handle"] not in (_HANDLE, _HANDLE + 0x10000):
            continue
        if kind == "tbf":
            found["rate_kbit"] = options.get_attr("TCA_TBF_PARMS")["rate"] / 125
        elif kind == "netem":
            corrupt = options.get_attr("TCA_NETEM_CORRUPT")
            found |= {
                "delay_ms": round(options["delay"] / tick_in_usec / 1000, 3),
                "jitter_ms": round(options["jitter"] / tick_in_usec / 1000, 3),
                "loss": round(options["loss"] * 100 / (2**32 - 1), 4),
                "corrupt": round(corrupt["prob_corrupt"] * 100 / (2**32 - 1), 4) if corrupt else 0,
            }
    return {name: value for name, value in found.items() if value}


def _require_same(wanted: Shape, read: dict[str, float]) -> None:
    for name, value in wanted.values().items():
        if abs(read.get(name, 0.0) - value) > max(0.002, value * 0.01):
            raise Refused(f"the kernel has {name} {read.get(name, 0.0):g} where {value:g} was asked for")


def _statistics(ip: IPRoute, index: int) -> dict[str, int]:
    for qdisc in ip.get_qdiscs(index):
        if qdisc["handle"] == _HANDLE and (stats := qdisc.get_attr("TCA_STATS")):
            return {"frames": stats["packets"], "lost": stats["drop"]}
    return {}


def _expressions(address: str) -> tuple[Any, ...]:
    """Match what makes a name server silent.

    Where a packet leaves, a rule would not be silent: the sender is told (EPERM). So it is where one arrives: the
    query itself on the loopback, where Docker's server has another port by then, and the answer elsewhere.
    """
    if IPv4Address(address).is_loopback:
        return (ipv4addr(dst=address), verdict(code=_NF_DROP))
    # TCP and UDP have the source port at the same place (transport header, 2 bytes at 0).
    port = [
        genex("payload", {"dreg": 1, "base": 2, "offset": 0, "len": 2}),
        genex("cmp", {"sreg": 1, "op": 0, "data": {"attrs": [("NFTA_DATA_VALUE", (53).to_bytes(2))]}}),
    ]
    return (ipv4addr(src=address), port, verdict(code=_NF_DROP))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent hears it too, and ends stdin
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    keeper = Keeper()
    try:
        keeper.serve(0, 1)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        keeper.end()


if __name__ == "__main__":
    main()
