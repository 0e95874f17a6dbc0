"""The Postgres leaf: one job's error, broken connections, locks, hints, migrations."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable

import pytest
from tests.support.postgres import postgres, postgres_server

from mentatlab.database import Connection
from mentatlab.postgres import PostgresDatabase
from mentatlab.protocol.errors import Code, Conflict, Internal, MentatError, NotFound, Unavailable

SCHEMA = ("CREATE TABLE t (id TEXT PRIMARY KEY, n INTEGER, x REAL, b BLOB) WITHOUT ROWID;",)


@pytest.fixture
async def database() -> AsyncIterator[PostgresDatabase]:
    with postgres().database() as url:
        async with PostgresDatabase(url, "t", SCHEMA) as opened:
            yield opened


async def add(database: PostgresDatabase, name: str) -> None:
    await database.write(lambda db: db.execute("INSERT INTO t (id) VALUES (?)", (name,)).rowcount)


async def ids(database: PostgresDatabase) -> list[str]:
    return await database.read(lambda db: [r["id"] for r in db.execute("SELECT id FROM t")])


async def test_one_jobs_error_undoes_that_job_only(database: PostgresDatabase) -> None:
    def refuse(db: Connection) -> None:
        db.execute("INSERT INTO t (id) VALUES ('no')")
        raise NotFound(Code.NOT_FOUND, "no")

    said = await asyncio.gather(
        add(database, "a"),
        database.write(refuse),
        add(database, "a"),
        add(database, "b"),
        return_exceptions=True,
    )
    assert [type(one) for one in said] == [type(None), NotFound, Internal, type(None)]
    assert await ids(database) == ["a", "b"]


async def test_values_and_rows_are_those_of_sqlite(database: PostgresDatabase) -> None:
    insert = "INSERT INTO t VALUES (:id, :n, :x, :b)"
    values = {"id": "50% ?", "n": 2**40, "x": 0.5, "b": b"\x00"}
    await database.write(lambda db: db.execute(insert, values).rowcount)
    sql = "SELECT *, '? :id %' AS said FROM t WHERE id = ?"
    row = await database.read(lambda db: db.execute(sql, ("50% ?",)).fetchone())
    assert dict(row) == {**values, "said": "? :id %"}
    assert tuple(row)[:2] == (row[0], row["n"])


async def test_jobs_outlive_a_restart_of_the_server_and_are_done_once() -> None:
    with postgres_server() as server:
        async with PostgresDatabase(server.url(), "t", SCHEMA) as database:
            await add(database, "before")
            await ids(database)
            await asyncio.to_thread(server.stop, signal.SIGQUIT)
            jobs = [asyncio.create_task(add(database, f"n{n}")) for n in range(20)]
            reading = asyncio.create_task(ids(database))
            await asyncio.to_thread(server.start)
            await asyncio.gather(*jobs)
            assert "before" in await reading
            assert len(await ids(database)) == 21


async def test_a_lock_that_two_take_in_another_order_fails_nobody() -> None:
    with postgres().database() as url:
        async with (
            PostgresDatabase(url, "t", SCHEMA) as one,
            PostgresDatabase(url, "t", SCHEMA) as other,
        ):
            for name in "ab":
                await add(one, name)

            def count(first: str, second: str) -> Callable[[Connection], None]:
                def work(db: Connection) -> None:
                    for name in (first, second):
                        db.execute("UPDATE t SET n = coalesce(n, 0) + 1 WHERE id = ?", (name,))

                return work

            await asyncio.gather(
                *(one.write(count("a", "b")) for _ in range(50)),
                *(other.write(count("b", "a")) for _ in range(50)),
            )
            found = await one.read(lambda db: [r["n"] for r in db.execute("SELECT n FROM t")])
            assert found == [100, 100]


async def test_hints_reach_other_servers() -> None:
    with postgres().database() as url:
        async with (
            PostgresDatabase(url, "t", SCHEMA) as one,
            PostgresDatabase(url, "t", SCHEMA) as other,
        ):
            with other.listen("topic") as hint:
                heard = asyncio.create_task(hint.wait(timeout_s=60))
                while not heard.done():  # it may not be listening yet
                    one.tell("topic")
                    await asyncio.wait([heard], timeout=0.1)


async def test_a_newer_schema_and_a_server_that_is_alone_are_refused() -> None:
    with postgres().database() as url:
        async with PostgresDatabase(url, "t", (*SCHEMA, "CREATE TABLE u (id TEXT);")):
            with pytest.raises(Unavailable, match="newer"):
                await PostgresDatabase(url, "t", SCHEMA).open()
            with pytest.raises(Conflict, match="DATABASE_IN_USE"):
                await PostgresDatabase(url, "t", SCHEMA, alone=True).open()
            async with PostgresDatabase(url, "t", SCHEMA, namespace="other", alone=True) as other:
                assert await ids(other) == []


async def test_nobody_answers() -> None:
    with pytest.raises(MentatError, match="DATABASE_UNAVAILABLE"):
        await PostgresDatabase("postgresql://nobody@127.0.0.1:1/x", "t", SCHEMA).open()
