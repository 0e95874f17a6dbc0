"""One attempt of one node or item: inputs gathered and checked, the conversation with the agent,
outputs checked and stored. `run` gives an `AttemptEnded`, whatever happens.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from mentatlab.protocol import events as agent
from mentatlab.protocol.agent import AgentProgram, Resources
from mentatlab.protocol.errors import MentatError
from mentatlab.protocol.records import Draft
from mentatlab.runners.port import Outcome
from mentatlab.runs import folders
from mentatlab.runs.assignment import Assignment, SavedState
from mentatlab.runs.checkpoints import Save
from mentatlab.runs.conversation import Conversation
from mentatlab.runs.elements import Element
from mentatlab.runs.events import Fault
from mentatlab.runs.faults import cancelled, fault_of, first_of, internal_fault, outcome_fault
from mentatlab.runs.inputs import Inputs
from mentatlab.runs.outputs import Outputs
from mentatlab.runs.signals import AttemptEnded, Signal

NO_DEMAND = "no_demand"
"""Why a producer stops whose streams nobody reads any more: a good end."""

logger = logging.getLogger(__name__)


class NodeAttempt:
    """`element` gives an item's value; `tell` takes signals for `decide`, `note` a node's log
    records, `save` checkpoints."""

    def __init__(
        self,
        work: Assignment,
        *,
        element: Callable[[int], Awaitable[Element]],
        tell: Callable[[Signal], None],
        note: Callable[[str, list[Draft]], Awaitable[None]],
        save: Save,
    ) -> None:
        self._work, self._load_element = work, element
        self._conversation = Conversation(work, tell=tell, note=note, save=save)
        self._resources = Resources()

    @property
    def consumed(self) -> Mapping[str, int]:
        return self._conversation.consumed

    @property
    def saved(self) -> SavedState | None:
        return self._conversation.saved

    def cancel(self, reason: str) -> None:
        self._conversation.cancel(reason)

    async def run(self) -> AttemptEnded:
        run_id, node_id = self._work.run.id, self._work.node.id
        try:
            with self._work.services.hub.working(run_id, node_id, self._conversation.widened):
                ended = await self._attempt()
        except* MentatError as group:
            ended = self._ended(error=fault_of(first_of(group)))
        except* Exception as group:  # a bug here must not leave the run waiting
            logger.exception("attempt of %s in %s", node_id, run_id)
            ended = self._ended(error=internal_fault(first_of(group)))
        return ended

    def unconfirmed(self) -> AttemptEnded:
        """It was asked to stop and told to die, and nobody could see that it did."""
        error = cancelled(self._conversation.cancelled() or "", confirmed=False)
        return replace(self._ended(error=error), unconfirmed=True)

    def remove(self) -> None:
        """What it left, at once."""
        folders.remove(self._work.scratch)

    async def clear(self) -> None:
        """What it left is removed, once its process is gone."""
        work, asked_to_stop = self._work, self._conversation.cancelled() is not None
        if asked_to_stop or not work.services.folders.keep(work.scratch, work.owner):
            await asyncio.to_thread(folders.remove, work.scratch)

    async def _attempt(self) -> AttemptEnded:
        work, conversation = self._work, self._conversation
        program = work.program
        element = None if work.item is None else await self._load_element(work.item)
        folders.make(work.scratch)
        inputs = Inputs(work, element)
        invocation = await inputs.invocation(program)
        self._resources = invocation.resources
        await self._tell_resources(program)
        if (reason := conversation.cancelled()) is not None:
            return self._ended(error=cancelled(reason))
        began = asyncio.get_running_loop().time()
        async with work.services.runner.attempt(invocation) as live:
            outcome = await conversation.hold(live, inputs)
        outputs = Outputs(work, conversation)
        timing = _timing(outcome, asyncio.get_running_loop().time() - began)
        if outcome.status != "succeeded":
            given = await outputs.streams() if conversation.cancelled() == NO_DEMAND else None
            error = outcome_fault(outcome)
            return self._ended(outputs=given, error=error, metrics=outcome.metrics, timing=timing)
        taken = await outputs.taken(outcome.outputs, program)
        return self._ended(outputs=taken, metrics=outputs.metrics(outcome), timing=timing)

    async def _tell_resources(self, program: AgentProgram) -> None:
        """One line in the node's log where they are others than the agent's own."""
        own = msgspec.structs.replace(program.resources, explained=self._resources.explained)
        if self._resources != own:
            said = "; ".join(self._resources.explained)
            line = agent.Log(level="info", message=f"resources: {said}")
            await self._conversation.heard([line])

    def _ended(
        self,
        *,
        outputs: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        timing: Mapping[str, float] | None = None,
        error: Fault | None = None,
    ) -> AttemptEnded:
        work, saved = self._work, self.saved
        return AttemptEnded(
            at=work.services.clock(),
            node=work.node.id,
            item=work.item,
            attempt=work.number,
            outputs=outputs or {},
            metrics=metrics or {},
            error=error,
            jitter=work.services.chance(),
            resume_from=saved.heads if saved else {},
            resources=msgspec.to_builtins(self._resources),
            timing=timing or {},
        )


def _timing(outcome: Outcome, took: float) -> dict[str, float]:
    """Seconds by stage."""
    running = max(0.0, took - outcome.queued_s - outcome.start_s)
    stages = {"queued": outcome.queued_s, "starting": outcome.start_s, "running": running}
    return {name: round(seconds, 6) for name, seconds in stages.items()}
