"""The eye on what agents use: memory of the whole process tree, number of processes, bytes in the
scratch folder. One look at all agents, a few times a second.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mentatlab.runners.census import Census, Usage, proportional_memory
from mentatlab.runners.result import Cause

MAX_PROCESSES = 512
_INTERVAL_S = 0.25
_YOUNG_S = 1.0
"""An attempt that has not lasted that long has its scratch folder left alone."""
_BLOCK = 512  # bytes of st_blocks

Over = Callable[[Cause, str], None]
"""Told once what an agent has too much of, with the numbers in words."""


class _Guest(NamedTuple):
    pid: int
    memory: int  # bytes it may use
    over: Over
    used: Callable[[Usage], None]


class _Scratch(NamedTuple):
    folder: Path
    limit: int  # bytes
    since: float
    over: Over


class Watch:
    """Looks while there is an agent to look at."""

    def __init__(self, *, interval_s: float = _INTERVAL_S) -> None:
        self._interval = interval_s
        self._guests: dict[str, _Guest] = {}
        self._scratches: dict[object, _Scratch] = {}
        self._census = Census()
        self._task: asyncio.Task[None] | None = None

    def enter(
        self,
        mark: str,
        pid: int,
        *,
        memory: int,
        over: Over,
        used: Callable[[Usage], None] = lambda _: None,
    ) -> None:
        """A process; `used` hears of every look at it."""
        self._guests[mark] = _Guest(pid, memory, over, used)
        if self._task is None:
            self._task = asyncio.create_task(self._look_forever())

    def leave(self, mark: str) -> None:
        self._guests.pop(mark, None)

    def enter_scratch(self, owner: object, folder: Path, limit: int, over: Over) -> None:
        self._scratches[owner] = _Scratch(folder, limit, time.monotonic(), over)

    def leave_scratch(self, owner: object) -> None:
        self._scratches.pop(owner, None)

    async def _look_forever(self) -> None:
        while self._guests:
            await asyncio.sleep(self._interval)
            await self._look()
        self._task = None

    async def _look(self) -> None:
        leaders = {guest.pid: mark for mark, guest in self._guests.items()}
        found = await asyncio.to_thread(self._census.take, leaders)
        for mark, usage in found.items():
            if guest := self._guests.get(mark):
                guest.used(usage)
                await self._judge(guest, usage)
        await self._look_at_scratches()

    async def _judge(self, guest: _Guest, usage: Usage) -> None:
        if len(usage.pids) > MAX_PROCESSES:
            guest.over("processes", f"{len(usage.pids)}, and {MAX_PROCESSES} are the most")
        elif usage.memory > guest.memory:
            real = await asyncio.to_thread(proportional_memory, usage.pids) or usage.memory
            if real > guest.memory:
                guest.over("memory", f"{real >> 20} MiB, and it may use {guest.memory >> 20}")

    async def _look_at_scratches(self) -> None:
        now = time.monotonic()
        grown_up = [s for s in self._scratches.values() if now - s.since > _YOUNG_S]
        for scratch in grown_up:
            size = await asyncio.to_thread(folder_size, scratch.folder, scratch.limit)
            if size > scratch.limit:
                words = f"more than {scratch.limit >> 20} MiB in its scratch folder"
                scratch.over("scratch", words)

    async def aclose(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])


def folder_size(folder: Path, enough: int) -> int:
    """Bytes on disk below a folder; stops counting when it is over `enough`."""
    total = 0
    for size in _sizes(folder):
        total += size
        if total > enough:
            break
    return total


def _sizes(folder: Path) -> Iterator[int]:
    with contextlib.suppress(OSError):  # an agent may remove what we look at
        with os.scandir(folder) as found:
            entries = list(found)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _sizes(Path(entry.path))
            else:
                yield entry.stat(follow_symlinks=False).st_blocks * _BLOCK
