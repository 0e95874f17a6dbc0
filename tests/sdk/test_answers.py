import msgspec
import pytest

from mentatlab.protocol import errors
from mentatlab.protocol.errors import Code, RateLimited, ValidationFailed
from mentatlab.sdk.answers import error_of


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.Invalid),
        (401, errors.Unauthenticated),
        (403, errors.Forbidden),
        (404, errors.NotFound),
        (405, errors.Invalid),
        (409, errors.Conflict),
        (410, errors.Gone),
        (413, errors.TooLarge),
        (415, errors.UnsupportedMedia),
        (500, errors.Internal),
        (502, errors.AgentFailed),
        (503, errors.Unavailable),
        (507, errors.OutOfSpace),
        (599, errors.Unavailable),
    ],
)
def test_a_problem_document(status: int, kind: type[errors.MentatError]) -> None:
    body = {"code": "NOT_FOUND", "detail": "d", "hint": "h", "details": {"k": 1}}
    error = error_of(status, msgspec.json.encode(body))
    assert type(error) is kind
    assert (error.code, error.message, error.hint, error.details) == (
        "NOT_FOUND",
        "d",
        "h",
        {"k": 1},
    )


def test_many_problems() -> None:
    problem = {"code": "CYCLE", "path": "/x", "message": "m"}
    body = {"code": "FLOW_INVALID", "detail": "d", "problems": [problem]}
    error = error_of(422, msgspec.json.encode(body))
    assert isinstance(error, ValidationFailed)
    assert error.problems[0].code is Code.CYCLE
    newer = error_of(422, b'{"code":"X","problems":[{"code":"OF_TOMORROW"}]}')
    assert isinstance(newer, ValidationFailed)
    assert newer.problems == []


def test_too_many_requests() -> None:
    error = error_of(429, b"", retry_after="7")
    assert isinstance(error, RateLimited)
    assert error.retry_after_s == 7
    assert error_of(429, b"", retry_after="Wed, 21 Oct").retry_after_s == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b"\xff", b""])
def test_a_proxys_page(body: bytes) -> None:
    assert isinstance(error_of(502, body), errors.Unavailable)
    assert error_of(404, body).code is Code.INVALID_REQUEST
    assert error_of(416, body).code is Code.INVALID_REQUEST
