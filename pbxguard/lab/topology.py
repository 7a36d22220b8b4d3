"""The lab as values: who is there, at which address, with which number. Starts nothing.

Several labs ("worlds") stand side by side on one engine, each on networks and under names of its own: world 0 is
the one that ``lab up`` starts, the others come and go with ``lab run --jobs``.

All addresses are in 198.18.0.0/15, the benchmark range (RFC 2544): never a real network, and the lab's networks
have no route out. The subscribers' numbers are for the lab only; no range of Chinese numbers is reserved for
fiction, so never use them on a real trunk.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from pbxguard.lab.goip.plan import GatewayPlan
from pbxguard.lab.goip.profiles import CallerId

#: Everything that the lab creates carries this label; what carries it is found and removed by it.
LABEL = "pbxguard"

#: Names of the host's own addresses: where the guard is, and where telephones elsewhere come in.
HOST, YOURS = "host", "your telephone"

#: Most worlds at once; the last has 198.18.240.0 to 198.18.242.255.
MAX_WORLDS = 16
#: Third bytes of one world's addresses; the first three are its networks, the others are free for more of them.
_WORLD_SPAN = 16

AMI_PORT = 5038
ESL_PORT = 8021
SIP_PORT = 5060
#: From there on, for telephones that share an address (baresip takes the next one too, for TLS).
SIP_PORTS = 5

#: RTP ports of the PBX; few, because each is published on its own with ``lab up --listen``.
RTP_PORTS = (16000, 16199)
RTP_PORTS_LISTEN = (16000, 16019)


@dataclass(frozen=True, slots=True)
class Caller:
    """An actor that places calls.

    Attributes:
        name: Trunk name, container name and what a scenario calls it.
        kind: Trunk class in the country pack; "" for one that is no trunk of the PBX.
        calls: A scenario may place calls from here; the others only carry them.
        gateway: Set for a GOIP gateway.
        registers_at: Where a gateway registers and sends the calls of its GSM callers: ``pbx``, or the switch abroad
            that uses it to reach the country.
        bank: Which SIMs the gateway has.
    """

    name: str
    kind: str
    address: IPv4Address
    user_agent: str
    calls: bool = True
    gateway: GatewayPlan | None = None
    registers_at: str = ""
    bank: int = 0


@dataclass(frozen=True, slots=True)
class Phone:
    """A subscriber's telephone.

    Attributes:
        number: The subscriber, home form; also its SIP user.
        address: Where the lab runs it as a softphone, or None: nobody registers with that account but an engineer.
        program: Which softphone runs it.
        transport: What it registers over.
        behaviour: What it does with a call. ``rings`` is never answered, ``absent`` is not to be registered by
            anybody.
        box: Name of the container that it shares with others; "" when it has one of its own.
    """

    number: str
    name: str
    operator: str
    province: str
    language: str
    address: IPv4Address | None = None
    program: Literal["baresip", "twinkle"] = "baresip"
    transport: Literal["udp", "tcp"] = "udp"
    behaviour: Literal["answers", "declines", "rings", "busy", "absent"] = "answers"
    box: str = ""

    @property
    def container(self) -> str:
        """Name of the actor that runs it."""
        return self.box or self.name

    @property
    def is_free(self) -> bool:
        """Whether the account is for an engineer's own telephone."""
        return self.address is None and self.behaviour != "absent"


@dataclass(frozen=True, slots=True)
class Group:
    """A number at which several telephones ring at once.

    Attributes:
        members: Names of the telephones.
    """

    number: str
    name: str
    members: tuple[str, ...]


class Topology:
    """One world: its networks, addresses and names.

    Args:
        index: 0 is the lab of ``lab up``, with the addresses and names that the README tells.

    Attributes:
        carrier: Network of the trunks; ``access`` of the telephones, ``listen`` of the engineer's own.
        guard_address: The host's address on the carrier network, where the guard listens.
    """

    def __init__(self, index: int = 0) -> None:
        if not 0 <= index < MAX_WORLDS:
            raise ValueError(f"world {index}: there are {MAX_WORLDS}")
        self.index = index
        self.carrier, self.access, self.listen = (self.network(number) for number in range(3))
        self.guard_address = self.carrier[1]
        self.pbx_carrier, self.pbx_access, self.pbx_listen = (
            net[10] for net in (self.carrier, self.access, self.listen)
        )
        self._prefix = LABEL if index == 0 else f"{LABEL}-{index}"

    def network(self, number: int) -> IPv4Network:
        """The world's network of that number: 0 carrier, 1 access, 2 listen, 3 to 15 whatever else it has."""
        if not 0 <= number < _WORLD_SPAN:
            raise ValueError(f"network {number}: a world has {_WORLD_SPAN}")
        return IPv4Network(f"198.18.{_WORLD_SPAN * self.index + number}.0/24")

    def name(self, what: str) -> str:
        """What the world's container or network of that actor is called on the engine."""
        return f"{self._prefix}-{what}"

    @cached_property
    def callers(self) -> "tuple[Caller, ...]":
        """Who places calls."""
        return tuple(replace(caller, address=self._here(caller.address)) for caller in CALLERS)

    @property
    def trunks(self) -> "tuple[Caller, ...]":
        """Those that are trunks of the PBX."""
        return tuple(caller for caller in self.callers if caller.kind)

    def caller(self, name: str) -> Caller:
        """The one of that name; KeyError when there is none."""
        for caller in self.callers:
            if caller.name == name:
                return caller
        raise KeyError(name)

    def into_pbx(self, trunk: str) -> str:
        """Who sends the INVITE of a call of that trunk to the PBX."""
        return trunk if self.caller(trunk).kind else MOBILE

    def before_pbx(self, trunk: str) -> tuple[str, ...]:
        """Who carries a call of that trunk before the PBX does, the first one first; nobody for a carrier's."""
        caller = self.caller(trunk)
        if caller.gateway is None:
            return ()
        return (MOBILE,) if caller.registers_at == "pbx" else (caller.registers_at, MOBILE)

    @cached_property
    def phones(self) -> "tuple[Phone, ...]":
        """The subscribers' telephones."""
        return tuple(replace(p, address=None if p.address is None else self._here(p.address)) for p in PHONES)

    def telephones(self) -> "dict[str, list[Phone]]":
        """The telephones that the lab runs, by the container that they are in."""
        found: dict[str, list[Phone]] = {}
        for phone in self.phones:
            if phone.address is not None:
                found.setdefault(phone.container, []).append(phone)
        return found

    @property
    def pbx_addresses(self) -> frozenset[str]:
        return frozenset(map(str, (self.pbx_carrier, self.pbx_access, self.pbx_listen)))

    def names(self) -> dict[str, str]:
        """Address -> actor name."""
        found = {str(caller.address): caller.name for caller in self.callers}
        found |= {str(phone.address): phone.container for phone in self.phones if phone.address}
        found |= dict.fromkeys(self.pbx_addresses, "pbx")
        return found | {str(self.guard_address): HOST, str(self.listen[1]): YOURS}

    def _here(self, address: IPv4Address) -> IPv4Address:
        return address + (_WORLD_SPAN * self.index << 8)


#: The lab that ``lab up`` starts.
HOME = Topology()

#: The mobile network: where GSM callers are, and what a gateway's SIMs dial into.
MOBILE = "natl"

#: The gateway that texts go through where a scenario names none.
TEXT_GATEWAY = "goip1"

# Addresses are those of world 0.
CALLERS = (
    Caller("intl", "intl_gateway", HOME.carrier[21], "intl-gateway"),
    # The domestic network, fixed and mobile: interconnect of the PBX, and GSM side of the gateways.
    Caller(MOBILE, "national", HOME.carrier[22], "national-interconnect"),
    Caller("ent", "enterprise", HOME.carrier[23], "enterprise-pbx"),
    # A gateway that is a trunk of the PBX: GSM callers come in through it.
    Caller(
        "goip1", "sim_gateway", HOME.carrier[31], "", gateway=GatewayPlan(caller_id=CallerId.FROM, register_s=20),
        registers_at="pbx",
    ),
    # The switch abroad that uses the box below.
    Caller("overseas", "", HOME.carrier[41], "softswitch", calls=False),
    # A SIM box: callers abroad reach the country through it, and the PBX sees a mobile caller on trunk natl.
    Caller("goip2", "", HOME.carrier[32], "", gateway=GatewayPlan(register_s=20), registers_at="overseas", bank=1),
)  # fmt: skip

#: The telephones that few calls go to share one container, which is started when somebody may call them.
BOX, SHARED = "telephones", HOME.access[110]

PHONES = (
    Phone("13957100001", "zhang", "cm", "zhejiang", "zh", HOME.access[101]),
    Phone("13957100002", "li", "cm", "zhejiang", "en", HOME.access[102], program="twinkle"),
    Phone("13957100003", "zhao", "cm", "zhejiang", "zh", HOME.access[103]),
    Phone("13904510001", "wang", "cm", "heilongjiang", "zh", HOME.access[104]),
    Phone("110", "police", "cm", "zhejiang", "zh", HOME.access[105]),
    Phone("13957100011", "engineer-zj", "cm", "zhejiang", "zh"),
    Phone("13904510011", "engineer-hlj", "cm", "heilongjiang", "zh"),
    Phone("13957100021", "declines", "cm", "zhejiang", "zh", SHARED, "twinkle", behaviour="declines", box=BOX),
    Phone("13957100022", "rings", "cm", "zhejiang", "zh", SHARED, behaviour="rings", box=BOX),
    Phone("13957100023", "busy", "cm", "zhejiang", "zh", SHARED, behaviour="busy", box=BOX),
    Phone("13957100024", "absent", "cm", "zhejiang", "zh", behaviour="absent"),
    Phone("13957100025", "tcp-baresip", "cm", "zhejiang", "zh", SHARED, transport="tcp", box=BOX),
    Phone("13957100026", "tcp-twinkle", "cm", "zhejiang", "en", SHARED, "twinkle", "tcp", box=BOX),
)

#: A service of the PBX that answers any number of callers at once.
ANSWERING = "198"

GROUPS = (Group("199", "family", ("zhang", "li")),)


def number_of(who: str) -> str:
    """The number of a telephone or group by its name; what is no name is a number already."""
    return next((each.number for each in (*PHONES, *GROUPS) if each.name == who), who)


def members(number: str) -> tuple[str, ...]:
    """Numbers of the telephones that ring when this one is called."""
    group = next((each for each in GROUPS if each.number == number), None)
    return (number,) if group is None else tuple(map(number_of, group.members))


# An address belongs to one world, so a capture is read without knowing whose it is.
_WORLDS = (HOME, *map(Topology, range(1, MAX_WORLDS)))
#: Where a PBX of any world is.
PBX_ADDRESSES = frozenset(address for world in _WORLDS for address in world.pbx_addresses)


def names() -> dict[str, str]:
    """Address -> actor name in every world, for ladders and reports."""
    return {address: name for world in _WORLDS for address, name in world.names().items()}
