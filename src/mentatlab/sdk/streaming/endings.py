"""How a connection ends. Pure.

Close codes: 1xxx and 40xx say come back and resume, 41xx stop. 1002, 1007 and 1009 are faults of
ours that would only come again.
"""

from mentatlab.protocol.errors import Code, MentatError, Unavailable
from mentatlab.sdk.answers import error_of_code

_OURS = (1002, 1003, 1007, 1009)
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
