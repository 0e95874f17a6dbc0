"""Several invocations answered by one call of `process_batch(inputs: list) -> list`.

The host says how many came together; what waits meanwhile goes with the next call.
"""

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

from mentatlab.protocol.errors import Code
from mentatlab.protocol.stdio import BatchPlace
from mentatlab.sdk.errors import AgentError
from mentatlab.sdk.invocation import Invocation, enter_batch

Answers = Sequence[dict[str, Any] | Exception]
_ALONE = BatchPlace(id="", size=1, most=1)


@runtime_checkable
class BatchServer(Protocol):
    """An agent that takes many inputs at once. It gives for each, in order, its outputs, or the
    exception that it failed with; what it raises fails all of them.
    """

    def process_batch(self, inputs: list[dict[str, Any]]) -> Answers | Awaitable[Answers]: ...


@dataclass(eq=False, slots=True)
class _Item:
    invocation: Invocation
    most: int
    answer: "asyncio.Future[object]"


class Batcher:
    """`lines`: how many calls may run at a time."""

    def __init__(self, server: BatchServer, lines: int) -> None:
        self._server = server
        self._lines = lines
        self._expected: dict[str, list[_Item]] = {}  # of batches that are not all here
        self._waiting: deque[_Item] = deque()
        self._calls: set[asyncio.Task[None]] = set()

    async def process(self, invocation: Invocation, place: BatchPlace | None) -> object:
        """The outputs of one of them; raises what it failed with."""
        place = place or _ALONE
        item = _Item(invocation, place.most, asyncio.get_running_loop().create_future())
        self._arrived(item, place)
        try:
            return await item.answer
        except asyncio.CancelledError:
            invocation.cancelled.set()
            if item in self._waiting:
                self._waiting.remove(item)
            raise

    def _arrived(self, item: _Item, place: BatchPlace) -> None:
        together = self._expected.setdefault(place.id, [])
        together.append(item)
        if len(together) >= place.size:
            del self._expected[place.id]
            self._waiting += [i for i in together if not i.answer.done()]
            self._next_call()

    def _next_call(self) -> None:
        if self._waiting and len(self._calls) < self._lines:
            task = asyncio.create_task(self._call(self._take()))
            self._calls.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        self._next_call()

    def _take(self) -> list[_Item]:
        items = [self._waiting.popleft()]
        while self._waiting and len(items) < min(items[0].most, self._waiting[0].most):
            items.append(self._waiting.popleft())
        return items

    async def _call(self, items: list[_Item]) -> None:
        enter_batch([item.invocation for item in items])
        try:
            answers = _checked(await self._process([i.invocation.inputs for i in items]), items)
        except Exception as error:  # noqa: BLE001 — the author's; every item tells it to the host
            answers = [error] * len(items)
        for item, answer in zip(items, answers, strict=True):
            _answer(item, answer)

    async def _process(self, inputs: list[dict[str, Any]]) -> object:
        if inspect.iscoroutinefunction(self._server.process_batch):
            return await self._server.process_batch(inputs)
        return await asyncio.to_thread(self._server.process_batch, inputs)


def _answer(item: _Item, answer: object) -> None:
    if item.answer.done():  # cancelled
        return
    if isinstance(answer, Exception):
        item.answer.set_exception(answer)
    else:
        item.answer.set_result(answer)


def _checked(answers: object, items: list[_Item]) -> list[object]:
    if isinstance(answers, list | tuple):
        found = list(cast("Sequence[object]", answers))
        if len(found) == len(items):
            return found
        what = f"{len(found)} answers"
    else:
        what = type(answers).__name__
    raise AgentError(
        Code.OUTPUT_TYPE,
        f"process_batch() returned {what} to {len(items)} inputs",
        hint="return a list: for each of the inputs its outputs or an exception, in order",
    )
