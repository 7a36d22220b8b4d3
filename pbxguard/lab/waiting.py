"""Wait for a condition with a limit; there are no sleeps of a guessed length in the lab."""

import asyncio
import time
from collections.abc import Callable

from pbxguard.errors import LabUnavailable


def wait_until(condition: Callable[[], bool], limit: float, what: str, *, every: float = 0.2) -> float:
    """Ask *condition* until it is true; seconds that it took.

    Raises:
        LabUnavailable: It was not true within *limit* seconds; the message names *what*.
    """
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > limit:
            raise LabUnavailable(f"waited {limit:.0f} s for {what}, in vain")
        time.sleep(every)
    return time.monotonic() - started


async def wait_for(condition: Callable[[], bool], limit: float, what: str, *, every: float = 0.05) -> float:
    """The same for code on an event loop."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > limit:
            raise LabUnavailable(f"waited {limit:.0f} s for {what}, in vain")
        await asyncio.sleep(every)
    return time.monotonic() - started
