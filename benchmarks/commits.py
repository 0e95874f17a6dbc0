"""How long this machine takes for a durable commit: what every durable step has to pay."""

import asyncio
import tempfile
import time
from pathlib import Path

from benchmarks.table import Row, percentile
from mentatlab.sqlite import Database

COMMITS = 200
TOGETHER = 64


async def run() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        schema = ["CREATE TABLE t (n INTEGER)"]
        async with Database(Path(folder, "commits.db"), schema) as db:
            alone = [await _commit(db) for _ in range(COMMITS)]
            begun = time.perf_counter()
            for _ in range(COMMITS // 10):
                await asyncio.gather(*(_commit(db) for _ in range(TOGETHER)))
            rate = COMMITS // 10 * TOGETHER / (time.perf_counter() - begun)
    return [
        Row("FULL commit, alone", percentile(alone, 50), "ms p50"),
        Row("FULL commit, alone", percentile(alone, 99), "ms p99"),
        Row(f"rows, {TOGETHER} writers at a time", rate, "1/s"),
    ]


async def _commit(db: Database) -> float:
    begun = time.perf_counter()
    await db.write(lambda c: c.execute("INSERT INTO t VALUES (1)"))
    return (time.perf_counter() - begun) * 1000
