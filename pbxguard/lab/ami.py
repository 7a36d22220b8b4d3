"""One AMI connection to an Asterisk of the lab: orders, and who is told of which event. Knows no call."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from typing import Any, Self

from panoramisk import Manager

from pbxguard.errors import LabUnavailable
from pbxguard.lab import topology

__all__ = ["Ami", "Fields"]

#: Seconds to connect, and for the answer to an order.
_PATIENCE = 5.0

#: An event as name -> value; of a name that is there twice the first value.
Fields = Mapping[str, str]


class Ami:
    """A connection that is made once and never again: who owns it decides what a lost one means.

    panoramisk 1.4 reports a wrong password only as an attribute, reconnects whatever the reason, after ``close`` too,
    and repeats unanswered orders then, which would dial twice: so connecting is checked here, its reconnecting is
    taken out, and ``lost`` is called when the connection breaks.

    Attributes:
        lost: Called once when the connection breaks.
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._watchers: defaultdict[str, list[Callable[[Fields], None]]] = defaultdict(list)
        self.lost: Callable[[], None] = lambda: None

    @classmethod
    async def connect(cls, address: IPv4Address, secret: str) -> Self:
        """Log in at an actor's Asterisk.

        Raises:
            LabUnavailable: It does not answer, or does not know the password.
        """
        manager = Manager(
            loop=asyncio.get_running_loop(), host=str(address), port=topology.AMI_PORT, username="lab",
            secret=secret, events="on", forgetable_actions=("ping", "login", "originate"),
        )  # fmt: skip
        ami = cls(manager)
        try:
            await asyncio.wait_for(manager.connect(), _PATIENCE)
            async with asyncio.timeout(_PATIENCE):
                while not manager.authenticated:  # noqa: ASYNC110 (panoramisk has no event for it)
                    await asyncio.sleep(0.02)
        except (OSError, TimeoutError) as error:
            ami.close()
            raise LabUnavailable(
                f"AMI at {address}:{topology.AMI_PORT} does not answer; `pbxguard lab status` shows the lab"
            ) from error
        manager.connection_lost = lambda *_: ami.lost()
        return ami

    def on(self, event: str, watcher: Callable[[Fields], None]) -> None:
        """Tell *watcher* of every event of that name."""
        if event not in self._watchers:
            self._manager.register_event(event, lambda _manager, found: self._tell(event, found))
        self._watchers[event].append(watcher)

    def off(self, event: str, watcher: Callable[[Fields], None]) -> None:
        """Tell *watcher* no more."""
        self._watchers[event].remove(watcher)

    def _tell(self, event: str, found: Any) -> None:
        fields = {name: value if isinstance(value, str) else str(value[0]) for name, value in found.items()}
        for watcher in tuple(self._watchers[event]):
            watcher(fields)

    async def console(self, command: str) -> str:
        """What Asterisk's console answers to a command.

        Raises:
            LabUnavailable: As for ``order``.
        """
        said = (await self._send("Command", {"Command": command})).get("Output", "")
        return said if isinstance(said, str) else "\n".join(said)

    async def order(self, action: str, /, **fields: str | list[str]) -> None:
        """Give an order and wait until Asterisk has taken it. Values must not hold a line end.

        Raises:
            LabUnavailable: Asterisk refused it, or did not answer in time.
        """
        await self._send(action, fields)

    async def _send(self, action: str, fields: Mapping[str, str | list[str]]) -> Any:
        for value in (each for field in fields.values() for each in ([field] if isinstance(field, str) else field)):
            if "\n" in value or "\r" in value:
                raise ValueError(f"{action}: a value with a line end would be another header")
        try:
            response = await asyncio.wait_for(
                self._manager.send_action({"Action": action, **fields}, as_list=False), _PATIENCE
            )
        except TimeoutError as error:
            raise LabUnavailable(
                f"AMI {action}: expected an answer within {_PATIENCE:.0f} s, observed none"
            ) from error
        if not response.success:
            raise LabUnavailable(f"AMI {action} was refused: {json.dumps(str(response))[:200]}")
        return response

    def close(self) -> None:
        self.lost = lambda: None
        # What is scheduled already does nothing any more.
        self._manager.connection_lost = lambda *_: None
        self._manager.connect = lambda *_, **__: None
        self._manager.close()
