"""How much a caller may send. Pure: the time is an argument."""

from collections import OrderedDict

MAX_JSON_BYTES = 8 << 20
"""Of a request's JSON body; media go to storage."""


class TokenBucket:
    """`rate` tokens a second up to `burst`, full at first. Times are seconds on one clock."""

    __slots__ = ("_burst", "_rate", "_tokens", "_updated")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._updated = burst, now

    def take(self, now: float) -> float:
        """0 when a token was taken, else the seconds until there is one."""
        gained = max(now - self._updated, 0.0) * self._rate
        self._tokens = min(self._burst, self._tokens + gained)
        self._updated = max(now, self._updated)
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate


class Buckets:
    """One bucket per name, the `most` latest used; a forgotten one starts full again.

    Rate 0 = no limit.
    """

    def __init__(self, rate: float, burst: float, *, most: int = 10_000) -> None:
        self._rate, self._burst, self._most = rate, burst, most
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def take(self, name: str, now: float) -> float:
        if not self._rate:
            return 0.0
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = TokenBucket(self._rate, self._burst, now)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(name)
        return bucket.take(now)
