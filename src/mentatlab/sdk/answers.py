"""A server's error answers as the errors they were: problem+json → `MentatError`. Pure."""

from typing import Any, cast

import msgspec

from mentatlab.protocol import errors
from mentatlab.protocol.errors import Code, MentatError, Problem

_BY_STATUS: dict[int, type[MentatError]] = {
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    404: errors.NotFound,
    409: errors.Conflict,
    410: errors.Gone,
    413: errors.TooLarge,
    415: errors.UnsupportedMedia,
    429: errors.TooLarge,  # over a limit that waiting does not lift; RateLimited is told apart
    500: errors.Internal,
    502: errors.AgentFailed,
    503: errors.Unavailable,
    507: errors.OutOfSpace,
}


def error_of(status: int, body: bytes, *, retry_after: str | None = None) -> MentatError:
    """Also for answers that are no problem document (a proxy's page): then by status alone."""
    problem = _object(body)
    code = _code(problem.get("code"), status)
    message = str(problem.get("detail") or f"the server answered {status}")
    if status == 429:
        return errors.RateLimited(_seconds(retry_after))
    if status == 422 or "problems" in problem:
        return errors.ValidationFailed(code, message, _problems(problem.get("problems")))
    if status == 416:
        return MentatError(code, message)
    if status == 502 and not problem:
        status = 503  # a gateway in between
    hint, details = str(problem.get("hint", "")), problem.get("details")
    return error_of_code(status, code, message, hint=hint, details=details)


def error_of_code(
    status: int, code: str, message: str, *, hint: str = "", details: dict[str, Any] | None = None
) -> MentatError:
    """The kind that a status stands for, whatever carried it."""
    known = _code(code, status)
    kind = _BY_STATUS.get(status, errors.Invalid if status < 500 else errors.Unavailable)
    if known is Code.STREAM_FENCED:
        kind = errors.Fenced
    return kind(known, message, hint=hint, details=details or None)


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _code(text: object, status: int) -> Code:
    try:
        return Code(str(text))
    except ValueError:
        return Code.INVALID_REQUEST if status < 500 else Code.UNAVAILABLE


def _problems(found: object) -> list[Problem]:
    try:
        return msgspec.convert(found, list[Problem])
    except msgspec.ValidationError:  # codes of a newer server
        return []


def _seconds(text: str | None) -> float:
    return float(text) if text and text.isascii() and text.isdigit() else 1.0
