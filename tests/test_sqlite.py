"""The one writer: group commit, isolation of jobs, migrations, what survives."""

import asyncio
import contextlib
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mentatlab.protocol.errors import Code, Internal, OutOfSpace, Unavailable
from mentatlab.sqlite import Database

SCHEMA = ["CREATE TABLE t (n INTEGER PRIMARY KEY, text TEXT)"]


def insert(n: int, text: str = ""):
    return lambda c: c.execute("INSERT INTO t VALUES (?, ?)", (n, text)).lastrowid


def count(c: sqlite3.Connection) -> int:
    return c.execute("SELECT count(*) FROM t").fetchone()[0]


@pytest.fixture
async def db(tmp_path: Path):
    async with Database(tmp_path / "x.db", SCHEMA) as database:
        yield database


async def test_a_write_is_readable_when_it_returns(db: Database):
    assert await db.write(insert(7)) == 7
    assert await db.read(count) == 1


async def test_waiting_jobs_share_one_commit(db: Database):
    """While one job holds the writer the others queue up; no commit falls between them."""
    release, running = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    committed_before: list[int] = []

    def hold(_: sqlite3.Connection) -> None:
        loop.call_soon_threadsafe(running.set)
        release.wait()

    def note(n: int):
        def work(c: sqlite3.Connection) -> None:
            insert(n)(c)
            with contextlib.closing(sqlite3.connect(db.path)) as outside:
                committed_before.append(count(outside))

        return work

    holder = asyncio.create_task(db.write(hold))
    await running.wait()
    writes = [asyncio.create_task(db.write(note(n))) for n in range(20)]
    await asyncio.sleep(0)  # every task has queued its job
    release.set()
    await asyncio.gather(holder, *writes)
    assert committed_before == [0] * 20
    assert await db.read(count) == 20


async def test_one_jobs_error_undoes_that_job_only(db: Database):
    def half(c: sqlite3.Connection) -> None:
        insert(100)(c)
        raise ValueError("no")

    results = await asyncio.gather(
        db.write(insert(1)), db.write(half), db.write(insert(2)), return_exceptions=True
    )
    assert [type(r) for r in results] == [int, ValueError, int]
    assert await db.read(lambda c: [r[0] for r in c.execute("SELECT n FROM t")]) == [1, 2]


async def test_sql_errors_get_a_code(db: Database):
    with pytest.raises(Internal, match="UNIQUE") as caught:
        await asyncio.gather(db.write(insert(1)), db.write(insert(1)))
    assert caught.value.code is Code.DATABASE_ERROR
    with pytest.raises(Internal, match="readonly"):
        await db.read(insert(9))


async def test_a_full_disk_reaches_the_caller_and_undoes_everything(db: Database):
    await db.write(insert(1))
    await db.write(lambda c: c.execute("PRAGMA max_page_count=20"))
    with pytest.raises(OutOfSpace) as caught:
        await db.write(insert(2, "x" * 1_000_000))
    assert caught.value.code is Code.DISK_FULL
    assert await db.read(count) == 1
    await db.write(insert(3))
    assert await db.read(count) == 2


async def test_a_cancelled_callers_job_is_carried_out(db: Database):
    task = asyncio.create_task(db.write(insert(1)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await db.write(insert(2))
    assert await db.read(count) == 2


async def test_closing_commits_what_waits_and_refuses_the_rest(tmp_path: Path):
    db = await Database(tmp_path / "x.db", SCHEMA).open()
    writes = [asyncio.create_task(db.write(insert(n))) for n in range(50)]
    await asyncio.sleep(0)
    await db.aclose()
    await asyncio.gather(*writes)
    with pytest.raises(Unavailable):
        await db.write(insert(99))
    with sqlite3.connect(tmp_path / "x.db") as connection:
        assert count(connection) == 50
    connection.close()
    await db.aclose()  # twice is fine


async def test_migrations_are_applied_once_and_newer_files_are_refused(tmp_path: Path):
    path = tmp_path / "x.db"
    async with Database(path, SCHEMA) as db:
        await db.write(insert(1))
    async with Database(path, [*SCHEMA, "ALTER TABLE t ADD COLUMN more"]) as db:
        assert await db.read(lambda c: c.execute("SELECT more FROM t").fetchone()[0]) is None
    old = Database(path, SCHEMA)
    with pytest.raises(Unavailable, match="newer version"):
        await old.open()
    await old.aclose()


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path):
    script = (
        "import asyncio, sys, pathlib\n"
        "from mentatlab.sqlite import Database\n"
        "async def main():\n"
        "    path, schema = pathlib.Path(sys.argv[1]), ['CREATE TABLE t (n INTEGER)']\n"
        "    db = await Database(path, schema).open()\n"
        "    n = 0\n"
        "    while True:\n"
        "        n += 1\n"
        "        await db.write(lambda c: c.execute('INSERT INTO t VALUES (?)', (n,)))\n"
        "        print(n, flush=True)\n"
        "asyncio.run(main())\n"
    )
    path = tmp_path / "x.db"
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        acknowledged = [int(child.stdout.readline()) for _ in range(20)]
        child.send_signal(signal.SIGKILL)
    connection = sqlite3.connect(path)
    stored = [row[0] for row in connection.execute("SELECT n FROM t ORDER BY n")]
    connection.close()
    assert stored[: len(acknowledged)] == acknowledged
    assert stored == list(range(1, len(stored) + 1))
