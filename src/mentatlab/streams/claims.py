"""Names that can be taken once, such as single-use tickets."""

from collections import deque
from collections.abc import Callable
from typing import Protocol, runtime_checkable


@runtime_checkable
class Claims(Protocol):
    """Shared by all processes that share the log."""

    async def claim(self, name: str, ttl_s: float) -> bool:
        """True for the first who asks, False for all others until `ttl_s` has passed.

        `Unavailable` when it cannot be told.
        """
        ...


class LocalClaims:
    """`Claims` of one process. `clock` in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}
        self._oldest: deque[str] = deque()

    async def claim(self, name: str, ttl_s: float) -> bool:
        now = self._clock()
        self._forget(now)
        if self._until.get(name, now) > now:
            return False
        self._until[name] = now + ttl_s
        self._oldest.append(name)
        return True

    def _forget(self, now: float) -> None:
        """From the oldest on, so that a claim costs the same however many there are."""
        while self._oldest and self._until.get(self._oldest[0], now) <= now:
            self._until.pop(self._oldest.popleft(), None)
