"""When a service that has ended is started again."""

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from mentatlab.runners.worker import Worker

K = TypeVar("K", bound=Hashable)

_HEALTHY_S = 60.0
_BASE_S = 0.5
_CAP_S = 60.0


def delay_after(failures: int) -> float:
    """Seconds: the first time at once, then doubling."""
    return 0.0 if failures <= 1 else min(_CAP_S, _BASE_S * 2 ** min(failures - 2, 10))


@dataclass(slots=True)
class _Record:
    failures: int = 0
    timer: asyncio.TimerHandle | None = None


class Restarts(Generic[K]):
    """`restart` is called for a service that had been ready; one that never was waits for the next
    invocation (`open`), no sooner than the delay."""

    def __init__(self, restart: Callable[[K, Worker], None], open_: Callable[[], None]) -> None:
        self._restart = restart
        self._open = open_
        self._records: dict[K, _Record] = {}

    def waiting(self, key: K) -> bool:
        record = self._records.get(key)
        return record is not None and record.timer is not None

    def note(self, key: K, worker: Worker) -> None:
        """It has ended by itself."""
        record = self._records.setdefault(key, _Record())
        lived = time.monotonic() - worker.began
        record.failures = 1 if lived >= _HEALTHY_S else record.failures + 1
        was_ready = worker.ready.done() and worker.ready.exception() is None
        record.timer = asyncio.get_running_loop().call_later(
            delay_after(record.failures), self._due, key, worker if was_ready else None
        )

    def _due(self, key: K, worker: Worker | None) -> None:
        self._records[key].timer = None
        if worker:
            self._restart(key, worker)
        else:
            self._open()

    def close(self) -> None:
        for record in self._records.values():
            if record.timer:
                record.timer.cancel()
