"""A pool of limited processes that open untrusted media (`mediaworker`).

An order names the work; the medium is a local file, which the process opens itself, or bytes that
it asks for by range, so that a store without files need not hand over the whole object.
"""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mentatlab.protocol.errors import MentatError
from mentatlab.storage.port import BlobStore, ByteRange

_HERE = Path(__file__).parent
_RECYCLE = 500  # orders that one process takes; decoders leak
_IDLE_S = 60.0  # after which an idle process ends
_MAX_READ = 1 << 20  # bytes asked for at once


# What a worker of ours would not say: a medium has taken it over.
_STRAYED = (ValueError, msgspec.DecodeError, asyncio.LimitOverrunError)


class Media(NamedTuple):
    """Stored bytes as a worker may see them. `read(offset, length)` gives exactly those."""

    size: int
    path: Path | None
    read: Callable[[int, int], Awaitable[bytes]]


async def media_of(store: BlobStore, key: str, size: int) -> Media:
    async def read(offset: int, length: int) -> bytes:
        reader = await store.get(key, range_=ByteRange(offset, offset + length))
        try:
            return b"".join([chunk async for chunk in reader])
        finally:
            await reader.aclose()

    # in a thread: it looks at each folder on the way, and here each look would wait for the GIL
    return Media(size, await asyncio.to_thread(store.local_path, key), read)


class Limits(NamedTuple):
    """Of one order. `read` and `body` bound the bytes asked for by range, and answered."""

    cpu_s: int = 5
    wall_s: float = 10.0
    read: int = 32 << 20
    body: int = 0


class MediaFailed(Exception):  # noqa: N818 — not an error of ours: what the medium did
    """The worker could not do it, died of it or took too long; the text is for clients."""


class _Answer(msgspec.Struct, frozen=True):
    read: tuple[int, int] | None = None
    found: dict[str, Any] = {}
    body: int = 0
    error: str = ""


class MediaWorkers:
    """At most `size` processes: started when they are needed, reused, replaced when they die or
    hang, ended when idle."""

    def __init__(self, size: int = 2) -> None:
        self._turns = asyncio.Semaphore(size)
        self._idle: list[_Worker] = []  # the last one back is the first to go on
        self._all: set[_Worker] = set()

    @property
    def pids(self) -> list[int]:
        """Of the processes that run."""
        return sorted(worker.process.pid for worker in self._all)

    async def run(
        self, order: dict[str, Any], media: Media, limits: Limits
    ) -> tuple[dict[str, Any], bytes]:
        """What was found, and the body that was made; `MediaFailed` otherwise."""
        async with self._turns:
            worker = await self._take()
            try:
                async with asyncio.timeout(limits.wall_s):
                    answer, body = await worker.work(order, media, limits)
            except TimeoutError:
                await self._end(worker)
                raise MediaFailed(f"it took over {limits.wall_s:g} s") from None
            except BaseException:  # it may be in the middle of something
                await asyncio.shield(self._end(worker))
                raise
            await self._give_back(worker)
        if answer.error:
            raise MediaFailed(answer.error)
        return answer.found, body

    async def aclose(self) -> None:
        for worker in list(self._all):
            await self._end(worker)

    async def _take(self) -> "_Worker":
        while self._idle:
            worker = self._idle.pop()
            if worker.wakes():
                return worker
            await self._end(worker)
        worker = _Worker(await _start())
        self._all.add(worker)
        return worker

    async def _give_back(self, worker: "_Worker") -> None:
        if worker.orders >= _RECYCLE:
            await self._end(worker)
        else:
            worker.rests()
            self._idle.append(worker)

    async def _end(self, worker: "_Worker") -> None:
        await worker.end()
        self._all.discard(worker)


class _Worker:
    def __init__(self, process: Process) -> None:
        self.process = process
        self.orders = 0
        self._rest: asyncio.TimerHandle | None = None

    def rests(self) -> None:
        """It goes home when nobody calls it."""
        assert self.process.stdin is not None
        loop = asyncio.get_running_loop()
        self._rest = loop.call_later(_IDLE_S, self.process.stdin.close)

    def wakes(self) -> bool:
        """False when it has ended meanwhile."""
        assert self.process.stdin is not None
        if self._rest is not None:
            self._rest.cancel()
        return self.process.returncode is None and not self.process.stdin.is_closing()

    async def work(
        self, order: dict[str, Any], media: Media, limits: Limits
    ) -> tuple[_Answer, bytes]:
        self.orders += 1
        try:
            return await self._converse(order, media, limits)
        except (ConnectionError, asyncio.IncompleteReadError):
            ending = _ending(await self.process.wait())
            raise MediaFailed(f"the process was killed ({ending})") from None
        except _STRAYED as error:
            raise MediaFailed("the process lost its way") from error

    async def _converse(
        self, order: dict[str, Any], media: Media, limits: Limits
    ) -> tuple[_Answer, bytes]:
        process, left = self.process, limits.read
        assert process.stdin is not None
        assert process.stdout is not None
        place = {"path": str(media.path)} if media.path else {}
        whole = {**order, **place, "size": media.size, "cpu_s": limits.cpu_s}
        process.stdin.write(msgspec.json.encode(whole) + b"\n")
        while True:
            line = await process.stdout.readuntil()
            answer = msgspec.json.decode(line, type=_Answer)
            if answer.read is None:
                break
            left -= answer.read[1]
            process.stdin.write(await _read(media, *answer.read, left=left))
            await process.stdin.drain()
        if not 0 <= answer.body <= limits.body:
            raise ValueError("a body out of bounds")
        return answer, await process.stdout.readexactly(answer.body)

    async def end(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


async def _start() -> Process:
    try:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-PB", "-m", "mediaworker"),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            cwd="/",
            env={
                "PYTHONPATH": os.pathsep.join([*sys.path, str(_HERE)]),
                "MALLOC_ARENA_MAX": "2",  # each arena takes 64 MiB of the address space
            },
        )
    except OSError as error:
        raise MediaFailed(f"no process can be started: {error.strerror}") from error


async def _read(media: Media, offset: int, length: int, *, left: int) -> bytes:
    if not (0 <= offset <= offset + length <= media.size and length <= _MAX_READ):
        raise ValueError("a range out of bounds")
    if left < 0:
        raise MediaFailed("it needs too much of the file")
    try:
        data = await media.read(offset, length)
    except (MentatError, OSError) as error:
        raise MediaFailed("the stored bytes cannot be read") from error
    if len(data) != length:
        raise MediaFailed("the file ends before its size")
    return data


def _ending(returncode: int) -> str:
    return signal.Signals(-returncode).name if returncode < 0 else f"exit {returncode}"
