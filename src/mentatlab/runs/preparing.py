"""What stands between a node's inputs and its start: its condition, what a control node decides,
and whether an earlier run has its outputs. `prepare` gives a `Prepared`, whatever happens.
"""

import logging
from collections.abc import Awaitable, Callable

from mentatlab.protocol.errors import MentatError
from mentatlab.runs import control
from mentatlab.runs.assignment import Assignment
from mentatlab.runs.cache import ContentCache
from mentatlab.runs.elements import Element
from mentatlab.runs.events import Fault
from mentatlab.runs.faults import fault_of, internal_fault
from mentatlab.runs.inputs import Inputs
from mentatlab.runs.judging import judge
from mentatlab.runs.signals import Prepared

logger = logging.getLogger(__name__)


class Preparation:
    """Of one node or item. `element` gives an item's value. `key`: under which its result is to be
    remembered, when it has to run."""

    def __init__(
        self,
        work: Assignment,
        element: Callable[[int], Awaitable[Element]],
        cache: ContentCache,
    ) -> None:
        self._work, self._load_element, self._cache = work, element, cache
        self.key: str | None = None

    async def prepare(self) -> Prepared:
        try:
            return await self._prepare()
        except MentatError as error:
            return self._failed(fault_of(error))
        except Exception as error:  # a bug here must not leave the run waiting
            logger.exception("preparing %s in %s", self._work.node.id, self._work.run.id)
            return self._failed(internal_fault(error))

    async def _prepare(self) -> Prepared:
        work = self._work
        element = None if work.item is None else await self._load_element(work.item)
        inputs = Inputs(work, element)
        case = control.case_of(work.node, await inputs.variables(), item=work.item)
        ruling, at = await judge(case), work.services.clock()
        answer = control.prepared(work.node, ruling, at=at, item=work.item, attempt=work.number)
        if answer.verdict != "run" or not work.node.cache:
            return answer
        self.key = await self._cache.key(work, await inputs.given())
        hit = await self._cache.find(self.key)
        if hit is None:
            return answer
        return Prepared(
            at=work.services.clock(),
            node=work.node.id,
            item=work.item,
            attempt=work.number,
            verdict="cached",
            outputs=hit.outputs,
            origin=hit.run_id,
        )

    def _failed(self, error: Fault) -> Prepared:
        work = self._work
        return Prepared(
            at=work.services.clock(),
            node=work.node.id,
            item=work.item,
            attempt=work.number,
            verdict="fail",
            error=error,
        )
