"""Waits for the processors of this machine, for tests of what is to be heard in time."""

import time
import warnings
from contextlib import suppress

from pbxguard.errors import LabUnavailable
from pbxguard.lab.room import STUTTERS_AT, Ticks
from pbxguard.lab.waiting import wait_until


class Host:
    """What runs this machine: where it gives the processors to others, calls stutter, whatever the lab does."""

    #: Seconds for which all tests together wait for it, for which one does, and of one look at it.
    PATIENCE, AT_ONCE, LOOK = 600.0, 60.0, 5.0
    #: Part of the processors' time for which it is not worth while to wait.
    BEARABLE = 3 * STUTTERS_AT

    def __init__(self) -> None:
        self.seen, self.at, self.waited = Ticks.now(), time.monotonic(), 0.0

    def calm(self) -> bool:
        """Whether the processors were this machine's since the last look."""
        before, self.seen, self.at = self.seen, Ticks.now(), time.monotonic()
        return self.seen.stolen_since(before) < self.BEARABLE

    def wait(self) -> None:
        """Wait while they are not; a warning says so, and after all patience the tests go on."""
        begun = time.monotonic()
        if begun - self.at < self.LOOK or self.calm() or self.waited >= self.PATIENCE:
            return
        with suppress(LabUnavailable):
            wait_until(
                lambda: time.monotonic() - self.at >= self.LOOK and self.calm(),
                self.AT_ONCE,
                "the processors",
                every=1.0,
            )
        self.waited += time.monotonic() - begun
        warnings.warn(f"the host took processors: waited for them, {self.waited:.0f} s in all by now", stacklevel=1)
