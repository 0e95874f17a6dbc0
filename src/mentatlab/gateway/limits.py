"""How much a caller may send. Pure: the time is an argument."""

from collections import OrderedDict

MAX_JSON_BYTES = 8 << 20
"""Of a request's JSON body; media go to storage."""

MAX_PATH_CHARS = 2048
MAX_QUERY_BYTES = 4096
MAX_HEADERS = 100
"""Lines of a request's head; the server bounds their bytes (64 KiB)."""


class TokenBucket:
    """`rate` tokens a second up to `burst`, full at first. Times are seconds on one clock."""

    __slots__ = ("_burst", "_rate", "_tokens", "_updated")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._updated = burst, now

    def take(self, now: float) -> float:
        """0 when a token was taken, else the seconds until there is one."""
        self._gain(now)
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate

    def owe(self, count: int, now: float) -> float:
        """`count` tokens are taken in any case; the seconds until none is owed."""
        self._gain(now)
        self._tokens -= count
        return max(0.0, -self._tokens / self._rate)

    def _gain(self, now: float) -> None:
        gained = max(now - self._updated, 0.0) * self._rate
        self._tokens = min(self._burst, self._tokens + gained)
        self._updated = max(now, self._updated)


class Buckets:
    """One bucket per name, the `most` latest used; a forgotten one starts full again.

    Rate 0 = no limit.
    """

    def __init__(self, rate: float, burst: float, *, most: int = 10_000) -> None:
        self._rate, self._burst, self._most = rate, burst, most
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, name: str, now: float) -> float:
        return self._bucket(name, now).take(now) if self._rate else 0.0

    def owe(self, name: str, count: int, now: float) -> float:
        return self._bucket(name, now).owe(count, now) if self._rate else 0.0

    def _bucket(self, name: str, now: float) -> TokenBucket:
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = TokenBucket(self._rate, self._burst, now)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(name)
        return bucket
