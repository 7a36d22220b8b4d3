"""Every error that pbxguard raises on purpose; a name says what the catcher should do.

Each message is one line that names the thing and the remedy, because the command line prints it as it is.
``exit_code`` is the documented one: 2 usage or configuration, 3 something needed is not there.
"""

import textwrap


class PbxguardError(Exception):
    """The parent of all of them; raise one of its children."""

    exit_code = 2

    def more(self) -> tuple[str, ...]:
        """Lines to show below the message: a list that is long and part of the remedy."""
        return ()


class BadNumber(PbxguardError):
    """A number that the operator typed is not one that a list or the registry can hold."""


class BadPack(PbxguardError):
    """A country pack is wrong; the message names file and line."""


class Unconfirmed(BadPack):
    """A pack refuses calls on rows that no source confirms, and the site has not said that it wants that.

    Attributes:
        names: What ``screening.accept_unverified`` lacks.
    """

    def __init__(self, message: str, names: tuple[str, ...]) -> None:
        super().__init__(message)
        self.names = names

    def more(self) -> tuple[str, ...]:
        """The names as they are written in the settings."""
        text = ", ".join(f'"{name}"' for name in self.names)
        lines = textwrap.wrap(text, 90, break_long_words=False, break_on_hyphens=False)
        return ("accept_unverified = [", *(f"  {line}" for line in lines), "]")


class BadConfig(PbxguardError):
    """A setting is wrong or unknown; the message names file, line and key."""


class BadInput(PbxguardError):
    """A file that was to be imported is wrong; nothing of it was kept."""


class UnknownName(PbxguardError):
    """A trunk, list, subscriber, call or scenario of that name is not known."""


class StoreUnavailable(PbxguardError):
    """The database is locked, corrupt, full or not there; the message has the remedy."""

    exit_code = 3


class ServiceUnavailable(PbxguardError):
    """The handler cannot run here: its address is taken or not of this machine."""

    exit_code = 3


class LabUnavailable(PbxguardError):
    """The lab needs something that is not there (engine, image, capability, free address)."""

    exit_code = 3


class PeerProtocolError(PbxguardError):
    """The peer sent bytes that break the protocol: close the connection."""

    exit_code = 3


class CallerGone(PbxguardError):
    """The PBX closed its side or reported a hang-up: stop quietly."""

    exit_code = 3
