"""Flow control of a warm agent's stream inputs."""

import asyncio
from collections import deque
from typing import NamedTuple

from mentatlab.runners.settings import RunnerSettings


class _Sent(NamedTuple):
    seq: int
    size: int


class Window:
    """The unacknowledged chunks of one stream input."""

    def __init__(self, settings: RunnerSettings) -> None:
        self._settings = settings
        self._sent: deque[_Sent] = deque()
        self._bytes = 0
        self._open = asyncio.Event()
        self._open.set()

    async def enter(self, seq: int, size: int) -> None:
        await self._open.wait()
        self._sent.append(_Sent(seq, size))
        self._bytes += size
        self._judge()

    def acknowledge(self, seq: int) -> None:
        while self._sent and self._sent[0].seq <= seq:
            self._bytes -= self._sent.popleft().size
        self._judge()

    def release(self) -> None:
        self._sent.clear()
        self._open.set()

    def _judge(self) -> None:
        chunks, bytes_ = self._settings.window_chunks, self._settings.window_bytes
        if len(self._sent) < chunks and self._bytes < bytes_:
            self._open.set()
        else:
            self._open.clear()
