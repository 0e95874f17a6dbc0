import json

import pytest

from mentatlab.gateway import problems
from mentatlab.protocol import errors
from mentatlab.protocol.errors import Code, MentatError, Problem


def every_error_class() -> list[type[MentatError]]:
    return [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, MentatError)]


@pytest.mark.parametrize("kind", every_error_class()[1:], ids=lambda c: c.__name__)
def test_every_class_of_the_tree_has_a_status_and_a_title(kind: type[MentatError]):
    assert kind in problems.STATUS
    assert problems.STATUS[kind] in problems.TITLE


def test_who_is_over_the_rate_is_told_to_wait_a_while():
    """A fraction of a second is a second, not "in 0 s"."""
    body = json.loads(problems.response_of(errors.RateLimited(0.2)).body)
    assert "try again in 1 s" in body["detail"]
    assert "Retry-After" in body["hint"]


@pytest.mark.parametrize(
    ("error", "status", "header"),
    [
        (errors.RateLimited(0.2), 429, ("retry-after", "1")),
        (errors.Unavailable(Code.UNAVAILABLE, "x"), 503, ("retry-after", "1")),
        (errors.Unauthenticated(Code.UNAUTHENTICATED, "x"), 401, ("www-authenticate", "Bearer")),
        (errors.RangeUnsatisfiable(12), 416, ("content-range", "bytes */12")),
        (errors.Fenced(Code.STREAM_FENCED, "x"), 403, None),
        (errors.Invalid(Code.METHOD_NOT_ALLOWED, "x"), 405, None),
    ],
)
def test_answers(error: MentatError, status: int, header: tuple[str, str] | None):
    answer = problems.response_of(error)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert header is None or answer.headers[header[0]] == header[1]
    body = json.loads(answer.body)
    assert body["status"] == status
    assert body["code"] == error.code
    assert body["type"] == f"urn:mentatlab:error:{error.code}"


def test_all_findings_and_details_are_told():
    found = Problem(Code.CYCLE, "/graph/edges/1", "a → b → a", hint="cut it")
    error = errors.ValidationFailed(Code.FLOW_INVALID, "no", [found])
    error.details = {"where": object}
    body = problems.body_of(error)
    assert body["problems"] == [
        {"code": "CYCLE", "path": "/graph/edges/1", "message": "a → b → a", "hint": "cut it"}
    ]
    assert body["hint"] == "cut it"
    assert "object" in body["details"]["where"]


def test_a_bug_is_logged_under_an_id_and_not_told(caplog: pytest.LogCaptureFixture):
    error = problems.unexpected(RuntimeError("secret"))
    assert "secret" not in json.dumps(problems.body_of(error))
    assert error.details["incident"] in caplog.text
    assert "secret" in caplog.text
