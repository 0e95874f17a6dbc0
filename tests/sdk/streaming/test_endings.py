import time

import pytest
from tests.protocol.test_tokens import SECRET

from mentatlab.protocol import errors
from mentatlab.protocol.errors import Code, MentatError
from mentatlab.protocol.tokens import Claims, mint
from mentatlab.sdk.streaming.endings import error_of_close, error_of_stream
from mentatlab.sdk.streaming.tokens import facts_of


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1011, 1012, 1013, 4000, 4001, 4002, 4003, 4005])
def test_come_back(code: int) -> None:
    assert error_of_close(code, "why").retryable
    assert "why" in error_of_close(code, "why").message


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1002, errors.Invalid),
        (1007, errors.Invalid),
        (1009, errors.Invalid),
        (4100, errors.Invalid),
        (4101, errors.Unauthenticated),
        (4103, errors.Forbidden),
        (4104, errors.NotFound),
        (4109, errors.Conflict),
        (4110, errors.Gone),
        (4113, errors.TooLarge),
        (4129, errors.TooLarge),
    ],
)
def test_stop(code: int, kind: type[MentatError]) -> None:
    error = error_of_close(code, "STREAM_EXPIRED: it was kept for a day")
    assert type(error) is kind
    assert not error.retryable
    if code > 4000:
        assert (error.code, error.message) == (Code.STREAM_EXPIRED, "it was kept for a day")


def test_a_fence_is_told_apart() -> None:
    assert type(error_of_close(4109, "STREAM_FENCED: x")) is errors.Fenced
    told = error_of_stream("STREAM_GAP_IN_PRODUCER", 4109, "m", "h", {"expected": 4})
    assert (type(told), told.hint, told.details) == (errors.Conflict, "h", {"expected": 4})
    assert error_of_stream("DATABASE_ERROR", 1011, "m", "", {}).retryable


def test_a_token_says_when_it_ends_and_a_key_does_not() -> None:
    now = int(time.time())
    claims = Claims(subject="st_1", capabilities=("sub",), workspace="w", expires=now + 400)
    facts = facts_of(mint(claims, SECRET))
    assert facts is not None
    assert facts.renewal_in(now) == 300
    assert facts.renewal_in(now + 500) == 1


@pytest.mark.parametrize("credential", [None, "", "ml_key", "v1", "v1.", "v1.%%%.x", "v1.e30.x"])
def test_what_is_no_token(credential: str | None) -> None:
    assert facts_of(credential) is None
