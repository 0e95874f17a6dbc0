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
    kind = _BY_STATUS.get(status)
    if kind is None:
        kind = errors.Invalid if status < 500 else errors.Unavailable
    if kind is errors.AgentFailed and not problem:
        kind = errors.Unavailable  # a gateway in between
    if status == 500:
        kind = errors.Internal
    return kind(
        code, message, hint=str(problem.get("hint", "")), details=problem.get("details") or None
    )


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
