"""What the long commands share: progress, files written whole, and who is at the keyboard."""

import contextlib
import getpass
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pbxguard.cli.context import err
from pbxguard.errors import BadInput


@contextlib.contextmanager
def counting(description: str) -> Iterator[Callable[[str, int], None]]:
    """Show on a terminal what is being done and how many rows it has come to."""
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,} rows"), TimeElapsedColumn(),
        console=err, transient=True, disable=not err.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task(description, total=None)
        yield lambda doing, rows: progress.update(task, description=f"{description}: {doing}", completed=rows)


@contextlib.contextmanager
def written(file: Path) -> Iterator[TextIO]:
    """Give a text file that takes the place of *file* at the end; one that was begun does not stay.

    Raises:
        BadInput: It cannot be written there.
    """
    new = file.with_name(file.name + ".part")
    try:
        with new.open("w", newline="", encoding="utf-8") as text:
            yield text
        new.replace(file)
    except BaseException as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise BadInput(f"{file}: cannot write it: {error.strerror}; name another file") from error
        raise


def user() -> str:
    """Who is at the keyboard; in a container that may be a number without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
