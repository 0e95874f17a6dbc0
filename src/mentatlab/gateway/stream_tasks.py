"""Tasks that end with a connection."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger("mentatlab.gateway")


class Tasks:
    """`failed` is called when one of them raises, which none should."""

    __slots__ = ("_failed", "_running")

    def __init__(self, failed: Callable[[], None]) -> None:
        self._failed = failed
        self._running: set[asyncio.Task[None]] | None = None  # most connections never have one

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        if self._running is None:
            self._running = set()
        self._running.add(task)
        task.add_done_callback(self._done)

    def cancel(self) -> None:
        for task in tuple(self._running or ()):
            task.cancel()

    def _done(self, task: asyncio.Task[None]) -> None:
        if self._running is not None:
            self._running.discard(task)
            self._running = self._running or None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a connection's task failed", exc_info=error)
            self._failed()
