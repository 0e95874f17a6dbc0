"""What is measured of every engine, by the standard library alone: it runs in each one's own
environment.

A peer is a program beside this file: `PEER.py ROUNDS SECONDS FOLDER`. It starts what it needs, runs
chains of one and of three trivial steps, and leaves a `Measured` in the folder.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

IN_FLIGHT = 64
WARM_UP = 3
LEAST = 5
WORD = "hello"
RESULT = "measured.json"
Run = Callable[[int], Awaitable[object]]
"""A whole run of so many steps, each of which gives on what it got."""


@dataclass
class Measured:
    """ms of whole runs of one and of three steps; runs/s of one step with 64 in flight; chunks/s
    from one step to the next, where steps stream."""

    version: str = ""
    one: list[float] = field(default_factory=list)
    three: list[float] = field(default_factory=list)
    rate: float = 0.0
    chunks: float = 0.0


async def measured(run: Run, rounds: int, seconds: float) -> Measured:
    """Where a run takes long, fewer than `rounds`: about `seconds` for each figure."""
    return Measured(
        one=await times(run, 1, rounds, seconds),
        three=await times(run, 3, rounds, seconds),
        rate=await rate(run, seconds),
    )


async def times(run: Run, steps: int, rounds: int, seconds: float) -> list[float]:
    found: list[float] = []
    begun = time.perf_counter()
    while len(found) < WARM_UP + rounds:
        before = time.perf_counter()
        await run(steps)
        now = time.perf_counter()
        found.append((now - before) * 1000)
        if now > begun + seconds and len(found) >= WARM_UP + LEAST:
            break
    return found[WARM_UP:]


async def rate(run: Run, seconds: float) -> float:
    """Runs/s; those that have begun come to their end and count."""
    begun = time.perf_counter()

    async def worker() -> int:
        done = 0
        while not done or time.perf_counter() < begun + seconds:
            await run(1)
            done += 1
        return done

    done = await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return sum(done) / (time.perf_counter() - begun)


async def chunk_rate(arrivals: AsyncIterator[object]) -> float:
    """From the first chunk to the last."""
    await anext(arrivals)
    begun, count = time.perf_counter(), 0
    async for _ in arrivals:
        count += 1
    return count / (time.perf_counter() - begun)


Program = Callable[[int, float, Path], Awaitable[Measured]]


def main(program: Program) -> None:
    rounds, seconds, folder = sys.argv[1:]
    found = asyncio.run(program(int(rounds), float(seconds), Path(folder)))
    Path(folder, RESULT).write_text(json.dumps(asdict(found)))
