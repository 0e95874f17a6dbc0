"""Fewer, fuller rounds of the event loop under a load of many small reads.

Many connections that each send now and then wake the loop for every message, and most of what that
costs is the waking. As network cards moderate their interrupts, the loop then waits up to 1.5 ms
between its rounds, so that each finds more to do. On only from some thousand reads a second, off
when rounds have little to share (one fast connection), and no wait where a round takes longer.
"""

import asyncio
import time

TICK_S = 0.0015
BUSY_READS = 4000
"""A second; below, every read is answered at once."""
FEW_READS = 3
"""In a round: then waiting has gathered nothing."""
BACK_OFF_S = 1.0
_SAMPLE = 64


class Coalescing:
    """Of one loop. `read` is called for every read."""

    def __init__(self) -> None:
        self._reads = self._rounds = 0
        self._began = self._rested = 0.0
        self.active = False

    def read(self) -> None:
        self._reads += 1
        if self._reads == _SAMPLE and not self.active:
            now = time.monotonic()
            if 0 < now - self._began < _SAMPLE / BUSY_READS:
                self._start(now)
            self._reads, self._began = 0, max(now, self._began)

    def _start(self, now: float) -> None:
        self.active, self._rounds, self._rested = True, 0, now
        asyncio.get_running_loop().call_soon(self._round)

    def _round(self) -> None:
        """Once in every round of the loop, behind what has arrived."""
        self._rounds += 1
        if self._rounds == _SAMPLE:
            if self._reads < FEW_READS * _SAMPLE:
                self.active, self._began = False, time.monotonic() + BACK_OFF_S
                self._reads = 0
                return
            self._reads = self._rounds = 0
        rest_s = self._rested + TICK_S - time.monotonic()
        if rest_s > 0:
            time.sleep(rest_s)
        self._rested = time.monotonic()
        asyncio.get_running_loop().call_soon(self._round)
