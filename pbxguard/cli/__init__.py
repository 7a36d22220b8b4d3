"""The ``pbxguard`` command. Each module is one family of sub-commands."""

from pbxguard.cli.main import main

__all__ = ["main"]
