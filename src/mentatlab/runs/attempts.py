"""One attempt of one node or item: inputs gathered and checked, the conversation with the agent,
outputs checked and stored. `run` gives an `AttemptEnded`, whatever happens.
"""

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mentatlab.protocol.errors import MentatError
from mentatlab.protocol.records import Draft
from mentatlab.runs.assignment import Assignment, SavedState
from mentatlab.runs.conversation import Conversation
from mentatlab.runs.elements import Element
from mentatlab.runs.events import Fault
from mentatlab.runs.faults import cancelled, fault_of, first_of, internal_fault, outcome_fault
from mentatlab.runs.inputs import Inputs
from mentatlab.runs.outputs import Outputs
from mentatlab.runs.signals import AttemptEnded, Signal

logger = logging.getLogger(__name__)


class NodeAttempt:
    """`element` gives an item's value; `tell` takes signals for `decide`, `note` a node's log
    records."""

    def __init__(
        self,
        work: Assignment,
        *,
        element: Callable[[int], Awaitable[Element]],
        tell: Callable[[Signal], None],
        note: Callable[[str, list[Draft]], Awaitable[None]],
    ) -> None:
        self._work, self._load_element = work, element
        self._conversation = Conversation(work, tell=tell, note=note)

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
            with self._work.services.hub.working(run_id, node_id):
                ended = await self._attempt()
        except* MentatError as group:
            ended = self._ended(error=fault_of(first_of(group)))
        except* Exception as group:  # a bug here must not leave the run waiting
            logger.exception("attempt of %s in %s", node_id, run_id)
            ended = self._ended(error=internal_fault(first_of(group)))
        return ended

    async def clear(self) -> None:
        await asyncio.to_thread(shutil.rmtree, self._work.scratch, ignore_errors=True)

    async def _attempt(self) -> AttemptEnded:
        work, conversation = self._work, self._conversation
        program = work.program
        element = None if work.item is None else await self._load_element(work.item)
        await asyncio.to_thread(work.out_dir.mkdir, parents=True, exist_ok=True)
        inputs = Inputs(work, element)
        invocation = await inputs.invocation(program)
        if conversation.cancelled is not None:
            return self._ended(error=cancelled(conversation.cancelled))
        async with work.services.runner.attempt(invocation) as live:
            outcome = await conversation.hold(live, inputs)
        if outcome.status != "succeeded":
            return self._ended(error=outcome_fault(outcome), metrics=outcome.metrics)
        outputs = Outputs(work, conversation)
        taken = await outputs.taken(outcome.outputs, program)
        return self._ended(outputs=taken, metrics=outputs.metrics(outcome))

    def _ended(
        self,
        *,
        outputs: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
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
        )
