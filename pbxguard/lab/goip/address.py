"""Which addresses the gateway may listen on and talk to: loopback and the lab's networks, nothing else."""

from ipaddress import IPv4Address, IPv4Network

from pbxguard.errors import BadInput

__all__ = ["NETWORKS", "in_lab", "lab_address"]

#: 127.0.0.0/8, and the benchmark range of RFC 2544, in which all networks of the lab are.
NETWORKS = (IPv4Network("127.0.0.0/8"), IPv4Network("198.18.0.0/15"))


def in_lab(address: IPv4Address) -> bool:
    return any(address in network for network in NETWORKS)


def lab_address(text: str, what: str, *, any_port: bool = False) -> tuple[str, int]:
    """``HOST:PORT`` as an address of the lab; HOST is an IPv4 address or ``localhost``.

    Args:
        text: As the operator wrote it.
        what: What it is for, for the message: ``--http``.
        any_port: Port 0 is good: the system chooses.

    Raises:
        BadInput: It is none, or it is in another network.
    """
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and (0 if any_port else 1) <= int(port[:6]) <= 65535):
        raise BadInput(f"{what}: {text[:60]!r} is no HOST:PORT, such as 127.0.0.1:44444")
    try:
        address = IPv4Address("127.0.0.1" if host == "localhost" else host)
    except ValueError as error:
        raise BadInput(f"{what}: {host[:60]!r} is no IPv4 address; write one, or localhost") from error
    if not in_lab(address):
        allowed = " and ".join(map(str, NETWORKS))
        raise BadInput(f"{what}: {address} is outside the lab; the gateway stays in {allowed}")
    return str(address), int(port)
