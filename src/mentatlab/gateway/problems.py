"""Every error becomes an `application/problem+json` answer (RFC 9457) here, and nowhere else."""

import logging
import math
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match

from mentatlab.gateway.texts import BAD_TEXT, BAD_TEXT_SAYS, HINT
from mentatlab.protocol import errors
from mentatlab.protocol.errors import Code, Internal, Invalid, MentatError, Problem, TooLarge
from mentatlab.protocol.ids import new_id

log = logging.getLogger("mentatlab.gateway")

MEDIA_TYPE = "application/problem+json"
TYPE_BASE = "urn:mentatlab:error:"
CLIENT_GONE = 499
"""nginx's number, for the log: nobody reads it."""

STATUS: dict[type[MentatError], int] = {
    errors.Invalid: 400,
    errors.ValidationFailed: 422,
    errors.Unauthenticated: 401,
    errors.CredentialEnded: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Gone: 410,
    errors.Conflict: 409,
    errors.Fenced: 403,
    errors.TooLarge: 413,
    errors.UnsupportedMedia: 415,
    errors.RangeUnsatisfiable: 416,
    errors.RateLimited: 429,
    errors.Unavailable: 503,
    errors.OutOfSpace: 507,
    errors.AgentFailed: 502,
    errors.Internal: 500,
}
STATUS_OF_CODE = {
    Code.METHOD_NOT_ALLOWED: 405,
    Code.PRECONDITION_FAILED: 412,
    Code.URI_TOO_LONG: 414,
    Code.HEADERS_TOO_LARGE: 431,
    Code.TUS_VERSION_UNSUPPORTED: 412,
    Code.UPLOAD_LOCKED: 423,
    Code.UPLOAD_SUPERSEDED: 423,
    Code.UPLOAD_CHECKSUM_MISMATCH: 460,
}
"""Where HTTP knows it closer than the class."""
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
TITLE = {
    400: "The request is wrong",
    401: "No valid credential",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "The state does not allow it now",
    410: "It has expired",
    412: "A precondition does not hold",
    413: "Too large",
    414: "The address is too long",
    415: "Unsupported media",
    416: "Range not satisfiable",
    422: "The document is not valid",
    423: "Locked",
    429: "Too many requests",
    431: "The headers are too large",
    460: "Checksum mismatch",
    500: "An error in the server",
    502: "An agent failed",
    503: "Not available now",
    507: "Out of space",
}


class ProblemItem(BaseModel):
    """One finding about a document; `path` is an RFC 6901 JSON pointer into it."""

    code: str
    path: str
    message: str
    hint: str = ""
    severity: str = "error"


class ProblemDetails(BaseModel):
    """RFC 9457, with a code (docs/reference/errors) and a hint when one can act."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str = ""
    problems: list[ProblemItem] = Field(default_factory=list[ProblemItem])
    details: dict[str, Any] = Field(default_factory=dict[str, Any])


def status_of(error: MentatError) -> int:
    by_class = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    return STATUS_OF_CODE.get(error.code, by_class)


def body_of(error: MentatError) -> dict[str, Any]:
    """The problem document as JSON values; empty members stay away."""
    status = status_of(error)
    found: list[Problem] = getattr(error, "problems", [])
    optional = {
        "hint": error.hint,
        "problems": msgspec.to_builtins(found),
        "details": msgspec.to_builtins(error.details, enc_hook=str),
    }
    return {
        "type": f"{TYPE_BASE}{error.code}",
        "title": TITLE[status],
        "status": status,
        "detail": error.message,
        "code": error.code,
        **{name: value for name, value in optional.items() if value},
    }


def response_of(error: MentatError) -> Response:
    headers: dict[str, str] = {}
    match error:
        case errors.Unauthenticated():
            headers["WWW-Authenticate"] = "Bearer"
        case errors.RateLimited():
            headers["Retry-After"] = str(math.ceil(error.retry_after_s))
        case errors.Unavailable():
            headers["Retry-After"] = "1"
        case errors.RangeUnsatisfiable():
            headers["Content-Range"] = f"bytes */{error.size}"
        case _:
            pass
    content = msgspec.json.encode(body_of(error))
    return Response(content, status_of(error), headers, MEDIA_TYPE)


def bytes_of(error: MentatError, more: Iterable[tuple[str, str]] = ()) -> bytes:
    """The whole HTTP/1.1 answer, for edges below the framework; the connection is to be closed."""
    response = response_of(error)
    status = HTTPStatus(response.status_code)
    headers = [*response.headers.items(), *more, ("connection", "close")]
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status} {status.phrase}\r\n{lines}\r\n".encode("latin-1") + response.body


def too_large() -> TooLarge:
    return TooLarge(
        Code.PAYLOAD_TOO_LARGE,
        "the body is over the limit of 8 MiB",
        hint="upload media to /api/v1/storage/upload and pass the reference",
    )


def unexpected(error: BaseException) -> Internal:
    """A bug: logged whole under an id; the client gets the id only."""
    incident = new_id("err")
    log.error("unexpected error %s", incident, exc_info=error)
    return Internal(
        Code.INTERNAL,
        "something went wrong in the server",
        hint=f"the server's log has the details under {incident}",
        details={"incident": incident},
    )


def install(app: FastAPI) -> None:
    """Handlers for what routes and the framework raise (bugs: `admission`)."""
    app.add_exception_handler(MentatError, _mentat_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)


async def _mentat_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, MentatError)
    return response_of(error)


async def _client_gone(_: Request, error: Exception) -> Response:
    """In the middle of its body. Nobody reads it: it is for the log."""
    del error
    return Response(status_code=CLIENT_GONE)


async def _validation_error(_: Request, error: Exception) -> Response:
    """FastAPI's findings about path, query, headers and body, as problems with JSON pointers."""
    assert isinstance(error, RequestValidationError)
    problems = [_problem(found) for found in error.errors()]
    code = problems[0].code if problems else Code.INVALID_REQUEST
    return response_of(errors.ValidationFailed(code, _summary(problems), problems))


def _summary(problems: list[Problem]) -> str:
    first = f"{problems[0].path}: {problems[0].message}" if problems else "the request is not valid"
    return first if len(problems) < 2 else f"{first} (and {len(problems) - 1} more)"


_NO_OBJECT = frozenset({"missing", "model_attributes_type"})  # other content types are not parsed


def _problem(found: Any) -> Problem:
    """`loc` starts with where: body, query, path, header."""
    if found["type"] == "json_invalid":
        reason = found.get("ctx", {}).get("error", "")
        return _no_json(f"the body is not JSON: {reason}".rstrip(": "))
    if found["loc"] == ("body",) and found["type"] in _NO_OBJECT:
        return _no_json("the body is not a JSON object")
    pointer = "".join(f"/{_escape(str(part))}" for part in found["loc"])
    if found["type"] in (BAD_TEXT, "string_unicode"):
        pointer += found.get("ctx", {}).get("pointer", "")
        return Problem(Code.INVALID_TEXT, pointer, BAD_TEXT_SAYS, hint=HINT)
    return Problem(
        Code.INVALID_REQUEST, pointer, found["msg"], hint="/docs says what this call takes"
    )


def _no_json(message: str) -> Problem:
    hint = "send JSON with `Content-Type: application/json`"
    return Problem(Code.INVALID_REQUEST, "/body", message, hint=hint)


def _escape(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")


async def _http_exception(request: Request, error: Exception) -> Response:
    """What the framework itself raises: unknown paths, wrong methods, bodies over the limit."""
    assert isinstance(error, HTTPException)
    answer = response_of(_from_http(request, error))
    if error.headers:
        answer.headers.update(error.headers)
    if error.status_code == 405:
        answer.headers["Allow"] = ", ".join(_allowed(request))
    return answer


def _allowed(request: Request) -> list[str]:
    """What works on the path, whichever router has it; the framework names the first one's only."""
    routes = request.app.routes
    return [
        method
        for method in _METHODS
        if any(r.matches({**request.scope, "method": method})[0] is Match.FULL for r in routes)
    ]


def _from_http(request: Request, error: HTTPException) -> MentatError:
    match error.status_code:
        case 404:
            return errors.NotFound(
                Code.NOT_FOUND, f"there is nothing at {request.url.path}", hint="see /docs"
            )
        case 405:
            return Invalid(
                Code.METHOD_NOT_ALLOWED,
                f"{request.method} does not work on {request.url.path}",
                hint="the answer's Allow header and /docs name the methods that do",
            )
        case 413:
            return too_large()
        case _:
            return Invalid(Code.INVALID_REQUEST, str(error.detail), hint="see /docs")
