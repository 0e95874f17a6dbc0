"""Our S3Store in a process of its own, as the peers' libraries in peers/s3_clients.py.

s3_client put|get|small ENDPOINT ACCESS_KEY SECRET_KEY BUCKET KEY BYTES COUNT
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable
from typing import NamedTuple

import uvloop
from tests.support.watching import peak, peak_from_now

from benchmarks.storage_peers.wire import PIECE
from mentatlab.storage.s3 import S3Store
from mentatlab.storage.s3_bucket import Bucket
from mentatlab.storage.s3_http import Login

IN_FLIGHT = 32


class Job(NamedTuple):
    what: str
    login: Login
    key: str
    size: int
    number: int


async def main(job: Job) -> None:
    store = S3Store(await Bucket(job.login).open())
    async with contextlib.aclosing(store):
        await {"put": _put, "get": _get, "small": _small}[job.what](store, job)


async def _put(store: S3Store, job: Job) -> None:
    with told():
        await store.put(job.key, _content(job.size))


async def _get(store: S3Store, job: Job) -> None:
    with told():
        reader = await store.get(job.key)
        async for _ in reader:
            pass
        await reader.aclose()


async def _small(store: S3Store, job: Job) -> None:
    async def put(number: int) -> None:
        await store.put(f"{job.key}/{number}", _content(job.size))

    await _together(put, range(job.number, job.number + IN_FLIGHT))  # all are connected
    with told():
        await _together(put, range(job.number))


async def _together(put: Callable[[int], Awaitable[None]], numbers: Iterable[int]) -> None:
    waiting = iter(numbers)

    async def some() -> None:
        for number in waiting:
            await put(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(some())


async def _content(size: int) -> AsyncIterator[bytes]:
    """In pieces as a server gets them."""
    piece = 64 << 10
    for start in range(0, size, piece):
        at = start % len(PIECE)
        yield PIECE[at : at + min(piece, size - start)]


@contextlib.contextmanager
def told() -> Generator[None]:
    """Seconds, processor seconds, and the growth of this process's memory in bytes."""
    before, cpu, begun = peak_from_now(os.getpid()), time.process_time(), time.perf_counter()
    yield
    wall_s, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, "growth": peak(os.getpid()) - before}))


if __name__ == "__main__":
    what, endpoint, access_key, secret_key, bucket, key, size, count = sys.argv[1:]
    login = Login(endpoint, access_key, secret_key, bucket)
    uvloop.run(main(Job(what, login, key, int(size), int(count))))
