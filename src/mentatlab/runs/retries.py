"""Whether and when a failed attempt is followed by another. Pure."""

from mentatlab.flows.plan import PlanNode
from mentatlab.protocol.errors import Code
from mentatlab.runs.events import Fault, RetryCause
from mentatlab.runs.state import Unit

INFRA_ATTEMPTS = 3
"""Attempts for failures of the platform, whatever the node's own policy says."""
OOM_ATTEMPTS = 2
"""With more memory, or a smaller batch, in the second."""
LOST_ATTEMPTS = 10
"""Attempts that may be lost with a server that stops; not counted as failures of the node."""

ENGINE_LOST = Fault(
    Code.ENGINE_LOST,
    "the server stopped while this ran",
    "look into the server's log: this node may be what makes it stop",
    "infra",
)


def cause_of(error: Fault) -> RetryCause:
    if error.code == Code.ENGINE_LOST:
        return "lost"
    return "oom" if error.kind == "oom" else "failure"


def retry_at(node: PlanNode, unit: Unit, error: Fault, *, at: float, jitter: float) -> float | None:
    """When the next attempt starts: exponential, full jitter; None = no more attempts.

    An attempt lost with the server starts again at once.
    """
    if cause_of(error) == "lost":
        return at if unit.losses + 1 < LOST_ATTEMPTS else None
    if unit.failures + 1 >= _allowed(node, unit, error):
        return None
    due = at + jitter * min(node.retry.cap_s, node.retry.base_s * 2.0**unit.failures)
    total = node.timeouts.total_s
    return None if total is not None and due >= unit.started_at + total else due


def _allowed(node: PlanNode, unit: Unit, error: Fault) -> int:
    """How many attempts there may be with this failure as the last one."""
    most = node.retry.max_attempts
    match error.kind:
        case "permanent":
            return 1
        case "oom":
            return 1 if unit.ooms or most == 1 else max(OOM_ATTEMPTS, most)
        case "infra":
            return max(INFRA_ATTEMPTS, most)
        case "transient" | "timeout":
            return most
