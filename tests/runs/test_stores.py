"""The tables of runs, on both databases: the run store by its contract, flows, keys."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.postgres import postgres

from mentatlab.database import Database
from mentatlab.postgres import PostgresDatabase
from mentatlab.protocol.errors import Internal, NotFound
from mentatlab.runs import events as ev
from mentatlab.runs.flow_store import FlowStore
from mentatlab.runs.key_store import KeyStore
from mentatlab.runs.schema import SCHEMA
from mentatlab.runs.sql_store import SqlRunStore
from mentatlab.runs.store import RunStore
from mentatlab.sqlite import Database as SqliteDatabase
from mentatlab.testing.run_store_contract import RunStoreContract, SharedRunStoreContract


@pytest.fixture(params=["sqlite", "postgres"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    if request.param == "sqlite":
        async with SqliteDatabase(tmp_path / "runs.db", SCHEMA) as db:
            yield db
    else:
        with postgres().database() as url:
            async with PostgresDatabase(url, "runs", SCHEMA) as db:
                yield db


class TestRunsInSqlite(RunStoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[RunStore]:
        async with SqliteDatabase(tmp_path / "runs.db", SCHEMA) as database:
            yield SqlRunStore(database)


class TestRunsInPostgres(SharedRunStoreContract):
    @pytest.fixture
    async def store(self) -> AsyncIterator[RunStore]:
        with postgres().database() as url:
            async with PostgresDatabase(url, "runs", SCHEMA) as database:
                yield SqlRunStore(database)


def test_events_of_another_version_are_refused() -> None:
    with pytest.raises(Internal, match="DATABASE_ERROR"):
        ev.decode(b'{"type":"node_succeeded/9","at":1}')


def test_an_event_as_the_outside_sees_it() -> None:
    event = ev.NodeSucceeded(at=2.0, node="a", item=1, attempt=3, outputs={"x": 1})
    assert ev.decode(ev.encode(event)) == event
    assert ev.public("rn_1", 9, event).to_dict() == {
        "run_id": "rn_1",
        "seq": 9,
        "type": "node_succeeded",
        "version": 1,
        "at": 2.0,
        "node_id": "a",
        "item": 1,
        "attempt": 3,
        "payload": {"outputs": {"x": 1}},
    }


async def test_flows_are_versioned_by_their_content(database: Database) -> None:
    flows = FlowStore(database)
    one = await flows.put("f", {"v": 1}, workspace="w", now=1.0)
    two = await flows.put("f", {"v": 2}, workspace="w", now=2.0)
    assert (await flows.get("f", workspace="w")).document == {"v": 2}
    assert await flows.get("f", workspace="w", digest=one.digest) == one
    assert [f.digest for f in await flows.versions("f", workspace="w")] == [two.digest, one.digest]
    again = await flows.put("f", {"v": 1}, workspace="w", now=3.0)
    assert again == one  # the same content is the same version
    assert [f.document for f in await flows.list(workspace="w")] == [{"v": 1}]
    assert await flows.list(workspace="v") == []
    with pytest.raises(NotFound):
        await flows.get("f", workspace="v")
    await flows.delete("f", workspace="w")
    with pytest.raises(NotFound):
        await flows.delete("f", workspace="w")


async def test_keys_are_told_once_and_stored_hashed(database: Database) -> None:
    keys = KeyStore(database)
    made = await keys.create(workspace="w", scopes=["run", "read", "run"], name="ci", now=1.0)
    assert made.key.scopes == ("read", "run")
    assert await keys.verify(made.plaintext) == made.key
    assert await keys.verify(made.plaintext + "x") is None
    assert await keys.list(workspace="w") == [made.key]
    assert await keys.list() == [made.key]
    assert await keys.list(workspace="v") == []
    stored = await database.read(lambda db: repr([*map(tuple, db.execute("SELECT * FROM keys"))]))
    assert made.key.id in stored
    assert made.plaintext not in stored
    await keys.revoke(made.key.id, now=2.0)
    assert await keys.verify(made.plaintext) is None
    assert await keys.list() == []
    with pytest.raises(NotFound):
        await keys.revoke(made.key.id, now=3.0)
