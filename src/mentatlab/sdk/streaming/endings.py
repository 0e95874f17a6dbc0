"""How a connection ends, and when the next one is tried. Pure.

Close codes: 1xxx and 40xx say come back and resume, 41xx stop. 1002, 1007 and 1009 are faults of
ours that would only come again.
"""

from collections.abc import Callable

from mentatlab.protocol.errors import Code, MentatError, Unavailable
from mentatlab.sdk.answers import error_of_code

_OURS = (1002, 1003, 1007, 1009)
_BASE_S, _CAP_S = 0.25, 8.0
_REPORT = "client and server do not fit together: use the same version of both"
_HINTS = {
    4101: "give the server's API key, or a token of this stream",
    4103: "use a key or a token that is for this",
    4104: "look at the run's `streams`, or open one of your own",
    4110: "open streams with a longer `retain_s`, or without one",
}


def error_of_close(code: int, reason: str = "") -> MentatError:
    """What a close means; one that is `retryable` says: reconnect and resume."""
    name, _, message = reason.partition(": ")
    if 4100 <= code < 4200:
        hint = _HINTS.get(code, "docs/reference/streams-protocol.md says what the codes mean")
        return error_of_code(code - 3700, name, message or reason, hint=hint)
    said = f"the server closed the connection ({code}{': ' if reason else ''}{reason})"
    if code in _OURS:
        return error_of_code(400, Code.STREAM_RECORD_INVALID, said, hint=_REPORT)
    return Unavailable(Code.UNAVAILABLE, said, hint="it is tried again; what came is not lost")


def error_of_stream(
    code: str, close: int, message: str, hint: str, details: dict[str, object]
) -> MentatError:
    """What an `error` message means for its stream; `retryable`: reconnect and resume."""
    if 4100 <= close < 4200:
        return error_of_code(close - 3700, code, message, hint=hint, details=details)
    return error_of_code(503, code, message, hint=hint, details=details)


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
