"""runs.db: the run store's fence and atomicity, flows, keys, agents."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mentatlab.protocol.errors import Conflict, Fenced, Internal, NotFound, TooLarge
from mentatlab.runs import events as ev
from mentatlab.runs.flow_store import FlowStore
from mentatlab.runs.key_store import KeyStore
from mentatlab.runs.schema import SCHEMA
from mentatlab.runs.sql_store import SqlRunStore
from mentatlab.runs.store import Idempotency, RunFilter, RunRow, Snapshot
from mentatlab.sqlite import Database

SNAPSHOT = Snapshot("digest", {"kind": "Flow"}, {"a": {"id": "a"}})
CREATED = ev.RunCreated(at=1.0, flow_id="f", digest="digest")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with Database(tmp_path / "runs.db", SCHEMA) as db:
        yield db


@pytest.fixture
def store(database: Database) -> SqlRunStore:
    return SqlRunStore(database)


def row(run_id: str = "rn_1", **more: Any) -> RunRow:
    values: dict[str, Any] = {
        "id": run_id,
        "workspace": "w",
        "flow_id": "f",
        "digest": "digest",
        "engine_version": "0",
        "inputs": {"a": 1},
        "state": "running",
        "created_at": 1.0,
        "owner": "eng_1",
        "last_seq": 1,
    }
    return RunRow(**{**values, **more})


def after(found: RunRow, count: int, **more: Any) -> RunRow:
    return msgspec.structs.replace(found, last_seq=found.last_seq + count, **more)


async def test_a_run_and_its_events_come_back(store: SqlRunStore) -> None:
    assert await store.create(row(), SNAPSHOT, [CREATED]) == "rn_1"
    started = ev.NodeStarted(at=2.0, node="a", item=3, attempt=1, resume_from={"p": 4})
    await store.append(after(row(), 1, state="cancelling"), [started])
    found = await store.get("rn_1")
    assert (found.state, found.last_seq, found.inputs) == ("cancelling", 2, {"a": 1})
    assert await store.events("rn_1") == [(1, CREATED), (2, started)]
    assert await store.events("rn_1", after=1) == [(2, started)]
    assert await store.events("rn_1", limit=1) == [(1, CREATED)]
    assert await store.snapshot("digest") == SNAPSHOT
    with pytest.raises(NotFound, match="RUN_NOT_FOUND"):
        await store.get("rn_2")


async def test_who_lost_the_lease_cannot_append(store: SqlRunStore) -> None:
    await store.create(row(), SNAPSHOT, [CREATED])
    (taken,) = await store.claim("eng_2")
    assert (taken.owner, taken.epoch) == ("eng_2", 2)
    event = ev.RunStarted(at=2.0)
    with pytest.raises(Fenced, match="LEASE_LOST"):
        await store.append(after(row(), 1), [event])
    await store.append(after(taken, 1), [event])
    with pytest.raises(Fenced):  # the same event twice
        await store.append(after(taken, 1), [event])
    assert [seq for seq, _ in await store.events("rn_1")] == [1, 2]


async def test_closed_runs_are_not_claimed(store: SqlRunStore) -> None:
    for name in ("rn_1", "rn_2"):
        await store.create(row(name), SNAPSHOT, [CREATED])
    await store.close("rn_1", epoch=1)
    await store.close("rn_2", epoch=7)  # not the owner's epoch
    assert [r.id for r in await store.claim("eng_2")] == ["rn_2"]


async def test_an_event_that_is_too_large_appends_nothing(store: SqlRunStore) -> None:
    await store.create(row(), SNAPSHOT, [CREATED])
    large = ev.NodeSucceeded(at=2.0, node="a", outputs={"x": "y" * ev.MAX_PAYLOAD_BYTES})
    with pytest.raises(TooLarge, match="VALUE_TOO_LARGE"):
        await store.append(after(row(), 2), [ev.RunStarted(at=2.0), large])
    assert (await store.get("rn_1")).last_seq == 1


async def test_idempotency_keys(store: SqlRunStore) -> None:
    first = Idempotency("k", "request")
    assert await store.find("w", first) is None
    assert await store.create(row(), SNAPSHOT, [CREATED], first) == "rn_1"
    assert await store.create(row("rn_2"), SNAPSHOT, [CREATED], first) == "rn_1"
    assert await store.find("w", first) == "rn_1"
    with pytest.raises(NotFound):
        await store.get("rn_2")
    with pytest.raises(Conflict, match="IDEMPOTENCY_CONFLICT"):
        await store.create(row("rn_3"), SNAPSHOT, [CREATED], Idempotency("k", "another"))
    other = row("rn_4", workspace="v")
    assert await store.create(other, SNAPSHOT, [CREATED], first) == "rn_4"


async def test_lists_are_newest_first_by_page_and_state(store: SqlRunStore) -> None:
    for n in range(5):
        state = "failed" if n % 2 else "succeeded"
        await store.create(row(f"rn_{n}", state=state), SNAPSHOT, [CREATED])

    async def ids(**more: Any) -> list[str]:
        options = {"limit": 2, **more}
        return [r.id for r in await store.list("w", **options)]

    assert await ids() == ["rn_4", "rn_3"]
    assert await ids(before="rn_3") == ["rn_2", "rn_1"]
    assert await ids(filter=RunFilter(states=("failed",)), limit=9) == ["rn_3", "rn_1"]
    assert await store.list("v", limit=9) == []


async def test_item_events_are_outcomes_and_voids_of_one_node(store: SqlRunStore) -> None:
    await store.create(row(), SNAPSHOT, [CREATED])
    facts: list[ev.RunFact] = [
        ev.NodeStarted(at=2.0, node="m", item=1, attempt=1),
        ev.NodeSucceeded(at=2.0, node="m", item=1, attempt=1),
        ev.NodeFailed(at=2.0, node="m", item=2, attempt=1, error=ev.Fault("C", "m")),
        ev.NodeSucceeded(at=2.0, node="other", item=1, attempt=1),
        ev.ItemsVoided(at=3.0, node="m", attempt=2, above=1),
    ]
    await store.append(after(row(), 5), facts)
    assert await store.item_events("rn_1", "m") == [facts[1], facts[2], facts[4]]


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


def bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("runs.db*"))


async def test_keys_are_told_once_and_stored_hashed(database: Database, tmp_path: Path) -> None:
    keys = KeyStore(database)
    made = await keys.create(workspace="w", scopes=["run", "read", "run"], name="ci", now=1.0)
    assert made.key.scopes == ("read", "run")
    assert await keys.verify(made.plaintext) == made.key
    assert await keys.verify(made.plaintext + "x") is None
    assert await keys.list(workspace="w") == [made.key]
    assert await keys.list() == [made.key]
    assert await keys.list(workspace="v") == []
    stored = bytes_of(tmp_path)
    assert made.key.id.encode() in stored
    assert made.plaintext.encode() not in stored
    await keys.revoke(made.key.id, now=2.0)
    assert await keys.verify(made.plaintext) is None
    assert await keys.list() == []
    with pytest.raises(NotFound):
        await keys.revoke(made.key.id, now=3.0)
