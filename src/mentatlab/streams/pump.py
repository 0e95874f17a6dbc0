"""From a subscription into something that may be full: a socket, with its limits.

Synchronous as long as the tail has what is wanted; a task only where the log must be read. So a
connection that waits costs no task.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from mentatlab.protocol.errors import MentatError
from mentatlab.streams.buffer import Items
from mentatlab.streams.subscription import Subscription

ROOM_BYTES = 64 * 1024
"""Taken at once; a sink that is not full gets as much again."""


class Pump:
    """`deliver` gets items in order, as long as `ready`; call `run` when it is again.

    Before items `subscription.gap` may have to be told. `ended` and `failed` are called once, last.
    """

    __slots__ = (
        "_closed", "_deliver", "_ended", "_failed", "_loading", "_ready", "_spawn", "_woken",
        "subscription",
    )  # fmt: skip

    def __init__(
        self,
        subscription: Subscription,
        *,
        ready: Callable[[], bool],
        deliver: Callable[[Items], None],
        ended: Callable[[], None],
        failed: Callable[[MentatError], None],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self.subscription = subscription
        self._ready, self._deliver = ready, deliver
        self._ended, self._failed, self._spawn = ended, failed, spawn
        self._loading = self._woken = self._closed = False
        subscription.on_wake = self.run

    def run(self) -> None:
        self._woken = True
        while not self._loading and not self._closed and self._ready():
            self._woken = False
            items = self.subscription.take(ROOM_BYTES)
            if items is None:
                self._loading = True
                self._spawn(self._load())
            elif not self._pass_on(items):
                return

    def close(self) -> None:
        """Nothing is delivered or told afterwards."""
        self._closed = True
        self.subscription.close()

    async def _load(self) -> None:
        try:
            items = await self.subscription.load(ROOM_BYTES)
        except MentatError as error:
            self._close_with(error)
            return
        finally:
            self._loading = False
        if self._pass_on(items) or self._woken:
            self.run()

    def _pass_on(self, items: Items) -> bool:
        """Whether there may be more."""
        if items and not self._closed:
            self._deliver(items)
        if not self.subscription.over:
            return bool(items) and not self.subscription.waits
        if not self._closed:
            self.close()
            self._ended()
        return False

    def _close_with(self, error: MentatError) -> None:
        if not self._closed:
            self.close()
            self._failed(error)
