"""When what failed is tried again. Pure."""

from collections.abc import Callable

_BASE_S, _CAP_S = 0.25, 8.0


class Backoff:
    """Full jitter: a random wait of at most 0.25 s, 0.5 s, … 8 s before each attempt.

    `give_up_s`: how long attempts may fail; a connection that brings something begins anew.
    """

    def __init__(
        self,
        *,
        give_up_s: float,
        uniform: Callable[[float, float], float],
    ) -> None:
        self._give_up_s, self._uniform = give_up_s, uniform
        self._failures = 0
        self._since: float | None = None

    def progress(self) -> None:
        self._failures, self._since = 0, None

    def wait(self, now: float, at_least_s: float = 0.0) -> float | None:
        """Seconds until the next attempt, after one that failed; None: give up."""
        self._since = now if self._since is None else self._since
        if now - self._since > self._give_up_s:
            return None
        limit = min(_CAP_S, _BASE_S * 2 ** min(self._failures, 16))
        self._failures += 1
        return max(at_least_s, self._uniform(0, limit))
