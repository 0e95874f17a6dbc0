"""What may be asked of a run under way, as it travels to the engine that conducts it. Pure."""

from typing import Any

from mentatlab.protocol.errors import Code, Conflict, NotFound
from mentatlab.runs import signals as sg
from mentatlab.runs.state import NodePhase, RunPhase, RunState

Request = dict[str, Any]
"""`{"verb": "cancel" | "pause" | "resume"}` or `{"verb": "gate", "node", "approved", "by",
"comment"}`; asking for the same thing twice does no harm."""

CANCEL: Request = {"verb": "cancel"}
PAUSE: Request = {"verb": "pause"}
RESUME: Request = {"verb": "resume"}


def gate(node: str, *, approved: bool, by: str, comment: str) -> Request:
    return {"verb": "gate", "node": node, "approved": approved, "by": by, "comment": comment}


def signal_of(request: Request, at: float) -> sg.Signal | None:
    """None for what this version does not know."""
    match request:
        case {"verb": "cancel"}:
            return sg.EndAsked(at=at, reason="user_cancel")
        case {"verb": "pause"}:
            return sg.PauseAsked(at=at)
        case {"verb": "resume"}:
            return sg.ResumeAsked(at=at)
        case {"verb": "gate", "node": node, "approved": approved, "by": by, "comment": comment}:
            return sg.GateDecided(at=at, node=node, approved=approved, by=by, comment=comment)
        case _:
            return None


def check(run_id: str, state: RunState, request: Request) -> None:
    """`Conflict(RUN_TERMINAL | RUN_NOT_RUNNING | GATE_NOT_OPEN)` when the run's state does not
    allow it, `NotFound(UNKNOWN_NODE)`."""
    if state.finished:
        raise Conflict(
            Code.RUN_TERMINAL,
            f"the run {run_id} has ended: {state.phase}",
            hint="an end is final; start a new run to do the work again",
        )
    match request:
        case {"verb": "pause" | "resume" as verb}:
            if state.phase not in (RunPhase.RUNNING, RunPhase.PAUSED):
                raise Conflict(
                    Code.RUN_NOT_RUNNING,
                    f"the run {run_id} is {state.phase}; only one that runs can be {verb}d",
                    hint="look at its state first: `mentatlab runs show`",
                )
        case {"verb": "gate", "node": str(node)}:
            _check_gate(run_id, state, node)
        case _:
            pass


def _check_gate(run_id: str, state: RunState, node: str) -> None:
    if node not in state.nodes:
        raise NotFound(
            Code.UNKNOWN_NODE,
            f"the run {run_id} has no node {node}",
            hint=f"its nodes are {', '.join(state.nodes)}",
        )
    if (phase := state.nodes[node].phase) is not NodePhase.WAITING_APPROVAL:
        raise Conflict(
            Code.GATE_NOT_OPEN,
            f"{node} is {phase}; it waits for no approval",
            hint="a gate is decided once, while it is `waiting_approval`",
        )
