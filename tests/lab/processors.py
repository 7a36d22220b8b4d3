"""Waits for the processors of this machine, for tests of what is to be heard in time."""

import time
import warnings
from collections.abc import Callable
from contextlib import suppress

from pbxguard.errors import LabUnavailable
from pbxguard.lab.room import STUTTERS_AT, Ticks
from pbxguard.lab.waiting import wait_until


def _work(seconds: float) -> None:
    """Keep one processor busy: who asks for nothing is refused nothing, and a host that takes much does not show."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


class Host:
    """What runs this machine: where it gives the processors to others, calls stutter, whatever the lab does."""

    #: Seconds for which all tests together wait for it, for which one does, between looks, and of one look at it.
    PATIENCE, AT_ONCE, EVERY, LOOK = 600.0, 60.0, 5.0, 0.5
    #: Part of the processors' time for which it is not worth while to wait.
    BEARABLE = 3 * STUTTERS_AT

    def __init__(self, ticks: Callable[[], Ticks] = Ticks.now, work: Callable[[float], None] = _work) -> None:
        self._ticks, self._work = ticks, work
        self._seen, self._at = ticks(), time.monotonic()
        self.waited = 0.0

    def calm(self) -> bool:
        """Whether the processors are this machine's now, by a look of half a second."""
        before = self._ticks()
        self._work(self.LOOK)
        self._seen, self._at = self._ticks(), time.monotonic()
        return self._seen.stolen_since(before) < self.BEARABLE

    def _suspect(self) -> bool:
        """Whether some were kept back of late, by what was at work anyway."""
        if time.monotonic() - self._at < self.EVERY:
            return False
        before, self._seen, self._at = self._seen, self._ticks(), time.monotonic()
        return self._seen.stolen_since(before) >= STUTTERS_AT

    def wait(self, *, look: bool = False) -> None:
        """Wait while they are not; a warning says so, and after all patience the tests go on.

        Args:
            look: Look even where nothing has been suspect of late.
        """
        if not (look or self._suspect()) or self.waited >= self.PATIENCE or self.calm():
            return
        begun = time.monotonic()
        with suppress(LabUnavailable):
            wait_until(self.calm, self.AT_ONCE, "the processors", every=self.EVERY)
        self.waited += time.monotonic() - begun
        warnings.warn(f"the host took processors: waited for them, {self.waited:.0f} s in all by now", stacklevel=1)


HOST = Host()
