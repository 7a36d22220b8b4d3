"""The Docker engine: the lab's networks and containers, made and removed by label.

Knows containers and networks; does not know SIP. Every error of the SDK leaves here as ``LabUnavailable``.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import requests

import docker
from docker import errors as docker_errors
from pbxguard.errors import LabUnavailable
from pbxguard.lab.topology import LABEL

_SOCKET = "unix:///var/run/docker.sock"


@dataclass(frozen=True, slots=True)
class Container:
    """What one actor's container is.

    Attributes:
        addresses: Network name -> fixed address; the first network is the one that it is created on.
        mounts: Folder of the host -> folder in the container, read-only unless it ends in ``:rw``.
        publish: ``"5060/udp" -> (address, port)`` of the host.
    """

    name: str
    image: str
    addresses: Mapping[str, IPv4Address]
    mounts: Mapping[Path, str] = field(default_factory=dict)
    publish: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    command: tuple[str, ...] | None = None
    shares_network_of: str | None = None

    def digest(self) -> str:
        """Changes when the container or any mounted file does: a container of another digest is replaced."""
        state = hashlib.sha256(
            repr(
                (
                    self.image,
                    sorted(self.addresses.items()),
                    sorted(self.publish.items()),
                    sorted(map(str, self.mounts.items())),
                    self.command,
                )
            ).encode()
        )
        for folder, target in sorted(self.mounts.items()):
            if target.endswith(":rw"):
                continue
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                state.update(str(path).encode() + b"\0" + path.read_bytes())
        return state.hexdigest()[:16]


class Engine:
    """A connection to the local Docker engine. Close it.

    Args:
        owner: The lab's state folder, put on every label: another folder's lab is left alone.
        world: Index of the world; all of its things carry it.

    Raises:
        LabUnavailable: No engine answers.
    """

    def __init__(self, owner: Path, world: int = 0) -> None:
        self.owner = str(owner.resolve())
        self.world = world
        endpoint = os.environ.get("DOCKER_HOST", _SOCKET)
        try:
            # The SDK would follow the CLI's context to a remote engine; the lab is for this host.
            self._client: Any = docker.DockerClient(base_url=endpoint, timeout=60)
            self._client.ping()
        except (docker_errors.DockerException, requests.RequestException) as error:
            raise LabUnavailable(
                f"no Docker engine answers at {endpoint}; `make lab` sets one up (needs root or sudo)"
            ) from error

    def close(self) -> None:
        self._client.close()

    def require_image(self, image: str) -> None:
        """Raise when *image* is not there."""
        with _mapped(f"image {image}"):
            try:
                self._client.images.get(image)
            except docker_errors.ImageNotFound as error:
                target = "freeswitch" if "freeswitch" in image else "lab"
                raise LabUnavailable(f"the image {image} is not there; `make {target}` makes it") from error

    def other_owner(self) -> str | None:
        """The state folder of somebody else's lab that is up on this engine, or None."""
        with _mapped("list containers"):
            return next((owner for owner, there in self._others().items() if not _all_ended(there)), None)

    def ended(self) -> list[str]:
        """State folders of other labs whose containers have all ended.

        Such a lab is one that nobody took down before the machine or the engine was restarted.
        """
        with _mapped("list containers"):
            return [owner for owner, there in self._others().items() if _all_ended(there)]

    def remove_of(self, owner: str) -> None:
        """Remove the containers and networks of another lab, whose state folder is gone."""
        with _mapped(f"remove what the lab in {owner} left"):
            label = f"{LABEL}.owner={owner}"
            self._remove_things(self._containers(label), self._client.networks.list(filters={"label": label}))

    def network(self, name: str, subnet: IPv4Network, *, internal: bool) -> None:
        """Have a bridge network of that name with that subnet; a wrong or doubled one of this lab is replaced.

        Raises:
            LabUnavailable: One of that name is not this lab's.
        """
        with _mapped(f"network {name}"):
            found = [n for n in self._client.networks.list(names=[name]) if n.name == name]
            for network in found:
                network.reload()
                if _abandoned(network.attrs) and _same_network(network.attrs, subnet, internal=internal):
                    return  # what an engine that lost count would not remove; nobody is on it
                self._require_mine(network.attrs.get("Labels"), f"docker network rm {name}", f"network {name}")
            good = [n for n in found if _same_network(n.attrs, subnet, internal=internal)]
            for network in found:
                if network not in good[:1]:
                    self._remove_network(network)
            if good:
                return
            self._client.networks.create(
                name,
                driver="bridge",
                internal=internal,
                labels=self._labels(),
                ipam=docker.types.IPAMConfig(
                    pool_configs=[docker.types.IPAMPool(subnet=str(subnet), gateway=str(subnet[1]))]
                ),
            )

    def start(self, wanted: Container, *, anew: bool = False) -> bool:
        """Have *wanted* running, with *anew* a new one in any case; True when it had to be (re)started.

        Raises:
            LabUnavailable: There is a container of that name that is not this lab's.
        """
        digest = wanted.digest()
        with _mapped(f"container {wanted.name}"):
            old = self._container(wanted.name)
            if old is not None:
                self._require_mine(old.labels, f"docker rm -f {wanted.name}", f"container {wanted.name}")
                same = old.labels.get(f"{LABEL}.digest") == digest and _addresses(old.attrs) == {
                    network: str(address) for network, address in wanted.addresses.items()
                }
                if not anew and old.status == "running" and same:
                    return False
                old.remove(force=True)
            first, *others = wanted.addresses.items() or [("", None)]
            network: dict[str, Any] = {"network_mode": f"container:{wanted.shares_network_of}"}
            if wanted.shares_network_of is None:
                network = {
                    "hostname": wanted.name,
                    "network": first[0],
                    "networking_config": {
                        first[0]: self._client.api.create_endpoint_config(ipv4_address=str(first[1]))
                    },
                    "ports": dict(wanted.publish) or None,
                }
            volumes = {
                str(folder): {
                    "bind": target.removesuffix(":rw"),
                    "mode": "rw" if target.endswith(":rw") else "ro",
                }
                for folder, target in wanted.mounts.items()
            }
            container = self._client.containers.create(
                wanted.image,
                command=list(wanted.command) if wanted.command else None,
                name=wanted.name,
                init=True,
                labels=self._labels() | {f"{LABEL}.digest": digest},
                volumes=volumes,
                log_config=docker.types.LogConfig(type="json-file", config={"max-size": "5m"}),
                **network,
            )
            try:
                for joined, address in others:
                    self._client.networks.get(joined).connect(container, ipv4_address=str(address))
                container.start()
            except docker_errors.APIError:
                container.remove(force=True)
                raise
        return True

    def running(self) -> list[str]:
        """Names of the running containers of this lab."""
        with _mapped("list containers"):
            return sorted(c.name for c in self._mine() if c.status == "running")

    def run(self, name: str, *command: str, timeout: float = 30) -> tuple[int, str]:
        """Run *command* in a container; its exit code and what it printed.

        The SDK's exec waits for ever, so ``timeout`` of coreutils ends the command inside.
        """
        with _mapped(f"run in {name}"):
            container = self._container(name)
            if container is None:
                raise LabUnavailable(f"{name} is not running; `pbxguard lab up` starts the lab")
            result = container.exec_run(["timeout", str(timeout), *command])
            return int(result.exit_code), result.output.decode("utf-8", "replace")

    def spawn(self, name: str, *command: str) -> None:
        """Start *command* in a container and leave it running there."""
        with _mapped(f"run in {name}"):
            container = self._container(name)
            if container is None:
                raise LabUnavailable(f"{name} is not running; `pbxguard lab up` starts the lab")
            container.exec_run(list(command), detach=True)

    def put(self, name: str, folder: str, files: Mapping[str, bytes]) -> None:
        """Write *files* into *folder* of a container."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for file_name, content in files.items():
                info = tarfile.TarInfo(file_name)
                info.size, info.mode = len(content), 0o644
                archive.addfile(info, io.BytesIO(content))
        with _mapped(f"copy into {name}"):
            container = self._container(name)
            if container is None or not container.put_archive(folder, packed.getvalue()):
                raise LabUnavailable(f"{name} is not running; `pbxguard lab up` starts the lab")

    def restart(self, name: str) -> None:
        with _mapped(f"restart {name}"):
            self._client.containers.get(name).restart(timeout=3)

    def logs(self, name: str, lines: int = 30) -> str:
        with _mapped(f"logs of {name}"):
            container = self._container(name)
            return "" if container is None else container.logs(tail=lines).decode("utf-8", "replace")

    def pid(self, name: str) -> int:
        """Process id of a container's first process, for its network namespace."""
        with _mapped(f"inspect {name}"):
            return int(self._client.containers.get(name).attrs["State"]["Pid"])

    def worlds(self) -> set[int]:
        """Indices of the worlds of this lab that have anything on the engine."""
        with _mapped("list containers"):
            return {_world_of(thing.attrs) for thing in (*self._mine(), *self._my_networks())}

    def remove_all(self) -> int:
        """Remove every container and network of this world; how many things that were."""
        return self._remove(lambda world: world == self.world)

    def remove_lab(self) -> int:
        """Remove every container and network of this lab, whatever world they are in; how many that were."""
        return self._remove(lambda _: True)

    # -- helpers -------------------------------------------------------------------------------------------

    def _remove(self, wanted: Callable[[int], bool]) -> int:
        with _mapped("take the lab down"):
            mine = [container for container in self._mine() if wanted(_world_of(container.attrs))]
            networks = [network for network in self._my_networks() if wanted(_world_of(network.attrs))]
            self._remove_things(mine, networks)
        return len(mine) + len(networks)

    def _remove_things(self, containers: Iterable[Any], networks: Iterable[Any]) -> None:
        for container in containers:
            try:
                container.remove(force=True)
            except docker_errors.NotFound:
                continue
        for network in networks:
            self._remove_network(network)

    def _others(self) -> dict[str, list[Any]]:
        """Containers of other state folders' labs, by folder."""
        others: dict[str, list[Any]] = {}
        for container in self._containers(LABEL):
            owner = container.labels.get(f"{LABEL}.owner", "")
            if owner and owner != self.owner:
                others.setdefault(owner, []).append(container)
        return others

    def _labels(self) -> dict[str, str]:
        return {LABEL: "lab", f"{LABEL}.owner": self.owner, f"{LABEL}.world": str(self.world)}

    def _require_mine(self, labels: Mapping[str, str] | None, remedy: str, what: str) -> None:
        """Nothing is removed for its name alone: somebody else may use that name."""
        if not (labels or {}).items() >= {LABEL: "lab", f"{LABEL}.owner": self.owner}.items():
            owner = (labels or {}).get(f"{LABEL}.owner")
            whose = f"of the lab in {owner}" if owner else "of another program"
            raise LabUnavailable(f"there is a {what} {whose}; when nobody needs it, remove it: {remedy}")

    def _mine(self) -> list[Any]:
        return self._containers(f"{LABEL}.owner={self.owner}")

    def _containers(self, label: str) -> list[Any]:
        # The list and the look at each are two requests: another lab may remove its own between them.
        return list(self._client.containers.list(all=True, filters={"label": label}, ignore_removed=True))

    def _my_networks(self) -> list[Any]:
        return list(self._client.networks.list(filters={"label": f"{LABEL}.owner={self.owner}"}))

    def _container(self, name: str) -> Any | None:
        try:
            return self._client.containers.get(name)
        except docker_errors.NotFound:
            return None

    def _remove_network(self, network: Any) -> None:
        network.reload()
        for container_id in network.attrs.get("Containers") or {}:
            network.disconnect(container_id, force=True)
        network.reload()
        try:
            network.remove()
        except docker_errors.APIError as error:
            # Engine 20.10 may count endpoints that are gone. Nobody is on it, and the next `up` takes it over.
            if "active endpoints" not in str(error.explanation) or not _abandoned(network.attrs):
                raise


def _world_of(attrs: Mapping[str, Any]) -> int:
    """The world of a container (labels below Config) or a network."""
    labels = attrs.get("Labels") or (attrs.get("Config") or {}).get("Labels") or {}
    return int(labels.get(f"{LABEL}.world", "0"))


def _all_ended(containers: Iterable[Any]) -> bool:
    # (One that is being made is "created", and its lab is coming up.)
    return all(container.status in {"exited", "dead"} for container in containers)


def _abandoned(attrs: Mapping[str, Any]) -> bool:
    """Whether a network is some lab's and no container is on it."""
    labels = attrs.get("Labels") or {}
    return labels.get(LABEL) == "lab" and not attrs.get("Containers")


def _same_network(attrs: Mapping[str, Any], subnet: IPv4Network, *, internal: bool) -> bool:
    config = (attrs.get("IPAM") or {}).get("Config") or [{}]
    return config[0].get("Subnet") == str(subnet) and bool(attrs.get("Internal")) == internal


def _addresses(attrs: Mapping[str, Any]) -> dict[str, str]:
    """Network name -> address of a container as it runs; one that lost a network does not name it any more."""
    networks = (attrs.get("NetworkSettings") or {}).get("Networks") or {}
    return {name: network.get("IPAddress", "") for name, network in networks.items()}


@contextmanager
def _mapped(what: str) -> Iterator[None]:
    """Turn the errors of the SDK (and of requests, which it lets through) into ours."""
    try:
        yield
    except docker_errors.APIError as error:
        text = str(error.explanation or error).strip().replace("\n", " ")
        hint = ""
        if "port is already allocated" in text or "address already in use" in text:
            hint = "; stop the program that has this port, or give another --listen address"
        elif "overlaps" in text:
            hint = "; another network has the lab's addresses: `docker network ls` shows it"
        raise LabUnavailable(f"{what}: {text}{hint}") from error
    except (docker_errors.DockerException, requests.RequestException) as error:
        raise LabUnavailable(f"{what}: the Docker engine does not answer ({type(error).__name__})") from error
