"""The lab as values: who is there, at which address, with which number. Starts nothing.

All addresses are in 198.18.0.0/15, the benchmark range (RFC 2544): never a real network, and the lab's networks
have no route out. The subscribers' numbers are for the lab only; no range of Chinese numbers is reserved for
fiction, so never use them on a real trunk.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

#: Everything that the lab creates carries this label; what carries it is found and removed by it.
LABEL = "pbxguard"

CARRIER = IPv4Network("198.18.0.0/24")
ACCESS = IPv4Network("198.18.1.0/24")
LISTEN = IPv4Network("198.18.2.0/24")

#: The host's address on the carrier network, where the guard listens.
GUARD_ADDRESS = CARRIER[1]
AMI_PORT = 5038
ESL_PORT = 8021
SIP_PORT = 5060

#: RTP ports of the PBX; few, because each is published on its own with ``lab up --listen``.
RTP_PORTS = (16000, 16199)
RTP_PORTS_LISTEN = (16000, 16019)


@dataclass(frozen=True, slots=True)
class Caller:
    """An actor that places calls into the PBX.

    Attributes:
        name: Trunk name, container name and what a scenario calls it.
        kind: Trunk class in the country pack.
        registers: It registers with digest authentication instead of being known by its address.
    """

    name: str
    kind: str
    address: IPv4Address
    user_agent: str
    sdp_session: str = "Asterisk"
    registers: bool = False


@dataclass(frozen=True, slots=True)
class Phone:
    """A subscriber's telephone.

    Attributes:
        number: The subscriber, home form; also its SIP user.
        address: Where the lab runs it as a softphone, or None for an account that waits for an engineer.
    """

    number: str
    name: str
    operator: str
    province: str
    language: str
    address: IPv4Address | None = None


CALLERS = (
    Caller("intl", "intl_gateway", CARRIER[21], "intl-gateway"),
    Caller("natl", "national", CARRIER[22], "national-interconnect"),
    Caller("ent", "enterprise", CARRIER[23], "enterprise-pbx"),
    # The wire image of a DBL gateway, as far as it is known from its vendor manual.
    Caller("goip1", "sim_gateway", CARRIER[31], "dble", sdp_session="DBL Session", registers=True),
)

PBX_CARRIER = CARRIER[10]
PBX_ACCESS = ACCESS[10]
PBX_LISTEN = LISTEN[10]
PBX_ADDRESSES = frozenset(map(str, (PBX_CARRIER, PBX_ACCESS, PBX_LISTEN)))

PHONES = (
    Phone("13957100001", "zhang", "cm", "zhejiang", "zh", ACCESS[101]),
    Phone("13957100002", "li", "cm", "zhejiang", "en", ACCESS[102]),
    Phone("13957100003", "zhao", "cm", "zhejiang", "zh", ACCESS[103]),
    Phone("13904510001", "wang", "cm", "heilongjiang", "zh", ACCESS[104]),
    Phone("110", "police", "cm", "zhejiang", "zh", ACCESS[105]),
    Phone("13957100011", "engineer-zj", "cm", "zhejiang", "zh"),
    Phone("13904510011", "engineer-hlj", "cm", "heilongjiang", "zh"),
)


def names() -> dict[str, str]:
    """Address -> actor name, for ladders and reports."""
    found = {str(caller.address): caller.name for caller in CALLERS}
    found |= {str(phone.address): phone.name for phone in PHONES if phone.address}
    found |= dict.fromkeys(PBX_ADDRESSES, "pbx") | {str(GUARD_ADDRESS): "host", str(LISTEN[1]): "your telephone"}
    return found
