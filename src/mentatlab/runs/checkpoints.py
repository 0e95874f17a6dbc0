"""Checkpoints on their way into the store, and back to the attempt that goes on from one."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mentatlab.flows.plan import Plan
from mentatlab.protocol.errors import MentatError
from mentatlab.runs.assignment import SavedState
from mentatlab.runs.lanes import stream_id
from mentatlab.runs.services import RunInfo, Services
from mentatlab.runs.store import Checkpoint
from mentatlab.runs.values import Values

_PAUSE_S = 0.05
"""Between two saves of one attempt: what an agent says faster is overtaken by what it says next."""

logger = logging.getLogger(__name__)

Save = Callable[[SavedState], Awaitable[None]]


class Checkpoints:
    """The last checkpoint of one attempt, written as often as the store takes it. One that cannot
    be written is only missed after a crash."""

    def __init__(self, save: Save) -> None:
        self._save, self._waiting = save, asyncio.Event()
        self._last: SavedState | None = None

    def put(self, saved: SavedState) -> None:
        self._last = saved
        self._waiting.set()

    async def keep(self) -> None:
        """Until cancelled."""
        while True:
            await self._waiting.wait()
            await self.flush()
            await asyncio.sleep(_PAUSE_S)

    async def flush(self) -> None:
        """What was put has been saved."""
        if self._last is None or not self._waiting.is_set():
            return
        self._waiting.clear()
        try:
            await self._save(self._last)
        except MentatError as error:
            logger.warning("a checkpoint could not be saved: %s", error)


async def stored(
    services: Services, run: RunInfo, plan: Plan, values: Values
) -> dict[tuple[str, int | None], SavedState]:
    """The checkpoints that an attempt may start from, by node and item: the records that they cover
    stand in the lanes."""
    found: dict[tuple[str, int | None], SavedState] = {}
    for checkpoint in await services.store.checkpoints(run.id):
        if await _usable(services, run, plan, values, checkpoint):
            found[checkpoint.node, checkpoint.item] = SavedState(
                state=checkpoint.state, offsets=checkpoint.offsets, heads=checkpoint.heads
            )
    return found


async def _usable(
    services: Services, run: RunInfo, plan: Plan, values: Values, checkpoint: Checkpoint
) -> bool:
    """Sequences are never given twice, so a record that stands was read as it is now, and so were
    those before it."""
    node = plan.node(checkpoint.node)
    sources = {edge.target_pin: values.lane(edge, run.id) for edge in node.inputs}
    reads = [(sources.get(pin), offset) for pin, offset in checkpoint.offsets.items()]
    wrote = [(stream_id(run.id, node.id, pin), head) for pin, head in checkpoint.heads.items()]
    for name, position in (*reads, *wrote):
        if position > 0 and not await _stands(services, name, position):
            return False
    return True


async def _stands(services: Services, name: str | None, position: int) -> bool:
    if name is None:  # one value given as a stream
        return True
    try:
        lane = await services.hub.lane(name)
    except MentatError:
        return False
    return any(first <= position <= last for first, last in lane.standing)
