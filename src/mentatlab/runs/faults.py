"""Errors and outcomes as the faults that the log holds. Pure."""

from typing import Any, Literal, cast

from mentatlab.protocol.errors import Code, MentatError
from mentatlab.runners.port import Outcome
from mentatlab.runs.events import Fault


def first_of(group: BaseExceptionGroup[Any]) -> BaseException:
    """The first plain error in a group of groups."""
    first: BaseException = group.exceptions[0]
    if isinstance(first, BaseExceptionGroup):
        return first_of(cast(BaseExceptionGroup[BaseException], first))
    return first


def fault_of(error: BaseException) -> Fault:
    assert isinstance(error, MentatError)
    kind: Literal["infra", "permanent"] = "infra" if error.retryable else "permanent"
    return Fault.told(str(error.code), error.message, error.hint, kind)


def internal_fault(error: BaseException) -> Fault:
    return Fault.told(
        Code.INTERNAL,
        f"internal error: {type(error).__name__}: {error}",
        "this is a bug of MentatLab; the server's log has the details",
        "permanent",
    )


def cancelled(reason: str, *, confirmed: bool = True) -> Fault:
    text = f"cancelled: {reason}"
    if not confirmed:
        text += "; it was told to die, and nobody could see that it did"
    return Fault(Code.AGENT_CANCELLED, text)


def outcome_fault(outcome: Outcome) -> Fault:
    """How an attempt that was not asked to stop came to be cancelled is the platform's matter."""
    kind = outcome.error_class or ("infra" if outcome.status == "cancelled" else "permanent")
    code = outcome.code or Code.AGENT_ERROR
    return Fault.told(str(code), outcome.message or "the agent failed", outcome.hint, kind)
