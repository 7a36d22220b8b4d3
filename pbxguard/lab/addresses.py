"""The IPv4 addresses of this host, for what the lab publishes. Asks the kernel; opens no port."""

import socket
from ipaddress import IPv4Address

from pyroute2 import IPRoute

from pbxguard.errors import BadInput
from pbxguard.lab.topology import MAX_WORLDS, Topology


def own() -> dict[IPv4Address, str]:
    """Every address of this host's interfaces and the interface's name, the lab's own networks aside."""
    with IPRoute() as route:
        found = {
            IPv4Address(each.get_attr("IFA_LOCAL") or each.get_attr("IFA_ADDRESS")): str(each.get_attr("IFA_LABEL"))
            for each in route.get_addr(family=socket.AF_INET)
        }
    networks = [
        net for world in map(Topology, range(MAX_WORLDS)) for net in (world.carrier, world.access, world.listen)
    ]
    return {address: name for address, name in found.items() if not any(address in net for net in networks)}


def require_own(text: str, option: str) -> str:
    """The address in *text*, which has to be one that a telephone can reach this host at.

    Raises:
        BadInput: It is none; the message names those that this host has.
    """
    there = own()
    offer = ", ".join(f"{address} ({name})" for address, name in sorted(there.items())) or "none"
    try:
        address = IPv4Address(text)
    except ValueError as error:
        raise BadInput(f"{option}: {text[:80]!r} is no IPv4 address; this host has {offer}") from error
    if address.is_unspecified:
        raise BadInput(f"{option} {address}: give the one address that your telephone reaches; this host has {offer}")
    if address not in there and not address.is_loopback:
        raise BadInput(f"{option} {address}: not an address of this host; it has {offer}")
    return str(address)
