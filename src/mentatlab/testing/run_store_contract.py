"""The promises of `runs.store.RunStore` as a test class: subclass it and give a `store` fixture.

    class TestMyStore(RunStoreContract):
        @pytest.fixture
        async def store(self): ...

Needs pytest and pytest-asyncio in auto mode.
"""

import asyncio
from typing import Any

import msgspec
import pytest

from mentatlab.protocol.errors import Conflict, Fenced, NotFound, TooLarge
from mentatlab.runs import events as ev
from mentatlab.runs.store import (
    CacheEntry,
    Checkpoint,
    Idempotency,
    RunFilter,
    RunRow,
    RunStore,
    Snapshot,
)

SNAPSHOT = Snapshot("digest", {"kind": "Flow"}, {"a": {"id": "a"}})
CREATED = ev.RunCreated(at=1.0, flow_id="f", digest="digest")
STARTED = ev.RunStarted(at=2.0)


def run_row(run_id: str = "rn_1", **more: Any) -> RunRow:
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


def checkpoint(node: str = "a", *, item: int | None = None, state: Any = None) -> Checkpoint:
    return Checkpoint(
        node=node, item=item, attempt=1, state=state, offsets={"in": 3}, heads={"out": 2}
    )


class RunStoreContract:
    """One event loop, one store for each test."""

    # --- runs and events

    async def test_a_run_and_its_events_come_back(self, store: RunStore) -> None:
        first = run_row(trigger="schedule:s", origin="rn_0", from_node="a")
        assert await store.create(first, SNAPSHOT, [CREATED]) == "rn_1"
        assert await store.get("rn_1") == first
        started = ev.NodeStarted(at=2.0, node="a", item=3, attempt=1, resume_from={"p": 4})
        await store.append(after(first, 1, state="cancelling"), [started])
        found = await store.get("rn_1")
        assert (found.state, found.last_seq, found.inputs) == ("cancelling", 2, {"a": 1})
        assert await store.events("rn_1") == [(1, CREATED), (2, started)]
        assert await store.events("rn_1", after=1) == [(2, started)]
        assert await store.events("rn_1", limit=1) == [(1, CREATED)]
        assert await store.snapshot("digest") == SNAPSHOT
        with pytest.raises(NotFound, match="RUN_NOT_FOUND"):
            await store.get("rn_2")

    async def test_an_append_that_does_not_continue_the_log_changes_nothing(
        self, store: RunStore
    ) -> None:
        await store.create(run_row(), SNAPSHOT, [CREATED])
        await store.append(after(run_row(), 1), [STARTED])
        with pytest.raises(Fenced, match="LEASE_LOST"):  # the same event twice
            await store.append(after(run_row(), 1), [STARTED])
        with pytest.raises(Fenced):  # one was left out
            await store.append(after(run_row(), 3), [STARTED])
        assert [seq for seq, _ in await store.events("rn_1")] == [1, 2]

    async def test_an_event_that_is_too_large_appends_nothing(self, store: RunStore) -> None:
        await store.create(run_row(), SNAPSHOT, [CREATED])
        large = ev.NodeSucceeded(at=2.0, node="a", outputs={"x": "y" * ev.MAX_PAYLOAD_BYTES})
        with pytest.raises(TooLarge, match="VALUE_TOO_LARGE"):
            await store.append(after(run_row(), 2), [STARTED, large])
        assert (await store.get("rn_1")).last_seq == 1

    async def test_of_many_appends_at_once_one_continues_the_log(self, store: RunStore) -> None:
        await store.create(run_row(), SNAPSHOT, [CREATED])
        said = await asyncio.gather(
            *(store.append(after(run_row(), 1), [STARTED]) for _ in range(8)),
            return_exceptions=True,
        )
        assert sum(isinstance(one, Fenced) for one in said) == 7
        assert len(await store.events("rn_1")) == 2

    async def test_item_events_are_outcomes_and_voids_of_one_node(self, store: RunStore) -> None:
        await store.create(run_row(), SNAPSHOT, [CREATED])
        facts: list[ev.RunFact] = [
            ev.NodeStarted(at=2.0, node="m", item=1, attempt=1),
            ev.NodeSucceeded(at=2.0, node="m", item=1, attempt=1),
            ev.NodeFailed(at=2.0, node="m", item=2, attempt=1, error=ev.Fault("C", "m")),
            ev.NodeSucceeded(at=2.0, node="other", item=1, attempt=1),
            ev.ItemsVoided(at=3.0, node="m", attempt=2, above=1),
        ]
        await store.append(after(run_row(), 5), facts)
        assert await store.item_events("rn_1", "m") == [facts[1], facts[2], facts[4]]

    async def test_a_deleted_run_is_gone_with_all_that_is_its_own(self, store: RunStore) -> None:
        key = Idempotency("k", "request")
        await store.create(run_row(), SNAPSHOT, [CREATED], key)
        await store.save_checkpoint("rn_1", 1, checkpoint())
        await store.remember(entry("rn_1"))
        await store.delete("rn_1")
        await store.delete("rn_1")
        with pytest.raises(NotFound):
            await store.get("rn_1")
        assert await store.events("rn_1") == []
        assert await store.checkpoints("rn_1") == []
        assert await store.cached("w", "key") is None
        assert await store.find("w", key) is None

    # --- idempotency

    async def test_idempotency_keys(self, store: RunStore) -> None:
        first = Idempotency("k", "request")
        assert await store.find("w", first) is None
        assert await store.create(run_row(), SNAPSHOT, [CREATED], first) == "rn_1"
        assert await store.create(run_row("rn_2"), SNAPSHOT, [CREATED], first) == "rn_1"
        assert await store.find("w", first) == "rn_1"
        with pytest.raises(NotFound):
            await store.get("rn_2")
        with pytest.raises(Conflict, match="IDEMPOTENCY_CONFLICT"):
            await store.create(run_row("rn_3"), SNAPSHOT, [CREATED], Idempotency("k", "another"))
        other = run_row("rn_4", workspace="v")
        assert await store.create(other, SNAPSHOT, [CREATED], first) == "rn_4"

    async def test_of_many_requests_with_one_key_at_once_one_makes_the_run(
        self, store: RunStore
    ) -> None:
        key = Idempotency("k", "request")
        made = await asyncio.gather(
            *(store.create(run_row(f"rn_{n}"), SNAPSHOT, [CREATED], key) for n in range(8))
        )
        assert len(set(made)) == 1
        assert len(await store.list("w", limit=9)) == 1

    # --- lists

    async def test_lists_are_newest_first_by_page(self, store: RunStore) -> None:
        for n in range(5):
            await store.create(run_row(f"rn_{n}"), SNAPSHOT, [CREATED])
        assert [r.id for r in await store.list("w", limit=2)] == ["rn_4", "rn_3"]
        assert [r.id for r in await store.list("w", limit=2, before="rn_3")] == ["rn_2", "rn_1"]
        assert await store.list("v", limit=9) == []

    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            (RunFilter(), "3210"),
            (RunFilter(states=("failed",)), "1"),
            (RunFilter(states=("failed", "cancelled")), "21"),
            (RunFilter(flow_id="clips"), "32"),
            (RunFilter(since=2.0), "32"),
            (RunFilter(until=2.0), "10"),
            (RunFilter(since=1.0, until=3.0), "21"),
            (RunFilter(trigger="schedule"), "32"),
            (RunFilter(trigger="schedule:s2"), "2"),
            (RunFilter(trigger="sched"), ""),
            (RunFilter(origin="rn_0"), "3"),
            (RunFilter(text="CLIP"), "32"),
            (RunFilter(text="n_3"), "3"),
            (RunFilter(text="100%"), "1"),
            (RunFilter(text="1_0"), ""),
            (RunFilter(flow_id="clips", states=("cancelled",)), "2"),
        ],
    )
    async def test_a_filter(self, store: RunStore, wanted: RunFilter, expected: str) -> None:
        rows = [
            {"state": "succeeded"},
            {"state": "failed", "reason": "100% full"},
            {"state": "cancelled", "flow_id": "clips", "trigger": "schedule:s2"},
            {"state": "running", "flow_id": "clips", "trigger": "schedule:s3", "origin": "rn_0"},
        ]
        for n, row in enumerate(rows):
            made = run_row(f"rn_{n}", **{"created_at": float(n), **row})
            await store.create(made, SNAPSHOT, [CREATED])
        found = await store.list("w", filter=wanted, limit=9)
        assert "".join(r.id[-1] for r in found) == expected

    # --- whose a run is

    async def test_waiting_runs_are_counted_whoever_has_them(self, store: RunStore) -> None:
        for number, (workspace, state) in enumerate(
            [("w", "queued"), ("w", "queued"), ("w", "running"), ("v", "queued")]
        ):
            owner = f"eng_{number}"
            row = run_row(f"rn_{number}", workspace=workspace, state=state, owner=owner)
            await store.create(row, SNAPSHOT, [CREATED])
        assert [await store.waiting(workspace) for workspace in ("w", "v", "u")] == [2, 1, 0]
        first = await store.get("rn_0")
        await store.append(after(first, 1, state="running"), [STARTED])
        assert await store.waiting("w") == 1

    async def test_who_lost_the_lease_cannot_append(self, store: RunStore) -> None:
        await store.create(run_row(), SNAPSHOT, [CREATED])
        (taken,) = await store.claim("eng_2")
        assert (taken.owner, taken.epoch) == ("eng_2", 2)
        with pytest.raises(Fenced, match="LEASE_LOST"):
            await store.append(after(run_row(), 1), [STARTED])
        with pytest.raises(Fenced, match="LEASE_LOST"):
            await store.save_checkpoint("rn_1", 1, checkpoint())
        await store.close("rn_1", epoch=1)
        assert not (await store.get("rn_1")).closed
        await store.append(after(taken, 1), [STARTED])
        assert [seq for seq, _ in await store.events("rn_1")] == [1, 2]

    async def test_closed_runs_are_not_claimed(self, store: RunStore) -> None:
        for name in ("rn_1", "rn_2"):
            await store.create(run_row(name), SNAPSHOT, [CREATED])
        await store.close("rn_1", epoch=1)
        assert [r.id for r in await store.claim("eng_2")] == ["rn_2"]
        assert await store.claim("eng_2") == []

    async def test_the_oldest_are_claimed_first(self, store: RunStore) -> None:
        for n in (3, 1, 2):
            await store.create(run_row(f"rn_{n}"), SNAPSHOT, [CREATED])
        assert [r.id for r in await store.claim("eng_2", limit=2)] == ["rn_1", "rn_2"]
        assert [r.id for r in await store.claim("eng_2", limit=2)] == ["rn_3"]

    # --- what others want of a run's owner

    async def test_what_is_asked_reaches_the_owner_and_then_the_next(self, store: RunStore) -> None:
        await store.create(run_row(), SNAPSHOT, [CREATED])
        cancel = await store.ask("rn_1", {"verb": "cancel"})
        pause = await store.ask("rn_1", {"verb": "pause"})
        assert await store.asked("eng_1") == [cancel, pause]
        assert await store.asked("eng_2") == []
        await store.claim("eng_2")
        assert await store.asked("eng_2") == [cancel, pause]
        await store.answered(cancel)
        assert not await store.is_open(cancel)
        assert await store.is_open(pause)
        with pytest.raises(NotFound, match="RUN_NOT_FOUND"):
            await store.ask("rn_9", {"verb": "cancel"})

    async def test_nothing_is_asked_of_a_run_that_is_closed(self, store: RunStore) -> None:
        await store.create(run_row(), SNAPSHOT, [CREATED])
        before = await store.ask("rn_1", {"verb": "cancel"})
        await store.close("rn_1", epoch=1)
        assert not await store.is_open(before)
        assert not await store.is_open(await store.ask("rn_1", {"verb": "cancel"}))
        assert await store.asked("eng_1") == []

    async def test_hints_of_a_request_of_its_answer_and_of_a_runs_end(
        self, store: RunStore
    ) -> None:
        await store.create(run_row(), SNAPSHOT, [CREATED])
        with store.listen("eng_1") as owner, store.listen("rn_1") as run:
            asked = await store.ask("rn_1", {"verb": "cancel"})
            await owner.wait(timeout_s=30)
            await store.answered(asked)
            await run.wait(timeout_s=30)
            end = ev.RunFinished(at=2.0, state="failed")
            await store.append(after(run_row(), 1, state="failed", finished_at=2.0), [end])
            await run.wait(timeout_s=30)

    # --- checkpoints, and results to be used again

    async def test_a_checkpoint_stays_until_its_node_has_ended(self, store: RunStore) -> None:
        row = run_row()
        await store.create(row, SNAPSHOT, [CREATED])
        first, second = checkpoint(state={"n": 1}), checkpoint(state={"n": 2})
        item = checkpoint("m", item=4)
        for one in (first, second, item):
            await store.save_checkpoint("rn_1", 1, one)
        assert await store.checkpoints("rn_1") == [second, item]
        retry = ev.RetryScheduled(
            at=2.0, node="a", attempt=1, error=ev.Fault("C", "m"), cause="failure", retry_at=3.0
        )
        await store.append(row := after(row, 1), [retry])
        assert await store.checkpoints("rn_1") == [second, item]
        await store.append(row := after(row, 1), [ev.NodeSucceeded(at=3.0, node="a", attempt=2)])
        assert await store.checkpoints("rn_1") == [item]
        await store.append(after(row, 1), [ev.NodeSucceeded(at=3.0, node="m", item=4)])
        assert await store.checkpoints("rn_1") == []

    async def test_checkpoints_go_with_the_run(self, store: RunStore) -> None:
        await store.create(run_row(), SNAPSHOT, [CREATED])
        await store.save_checkpoint("rn_1", 1, checkpoint())
        await store.close("rn_1", epoch=1)
        assert await store.checkpoints("rn_1") == []

    async def test_a_result_is_remembered_in_place_of_an_older_one(self, store: RunStore) -> None:
        assert await store.cached("w", "key") is None
        for run_id in ("rn_1", "rn_2"):
            await store.remember(entry(run_id))
        assert await store.cached("w", "key") == entry("rn_2")
        assert await store.cached("v", "key") is None


class SharedRunStoreContract(RunStoreContract):
    """Of a store that several engines use: its leases bind."""

    async def test_a_lease_keeps_others_away_until_it_is_over_or_released(
        self, store: RunStore
    ) -> None:
        await store.create(run_row(), SNAPSHOT, [CREATED])
        assert await store.renew("eng_1", 60.0) == {"rn_1"}
        assert await store.claim("eng_2") == []
        await store.release("eng_1")
        assert [r.id for r in await store.claim("eng_2")] == ["rn_1"]
        assert await store.renew("eng_1", 60.0) == set()
        assert await store.renew("eng_2", -1.0) == {"rn_1"}  # over already
        assert [r.epoch for r in await store.claim("eng_1")] == [3]

    async def test_of_many_engines_one_gets_a_run(self, store: RunStore) -> None:
        for n in range(20):
            await store.create(run_row(f"rn_{n}"), SNAPSHOT, [CREATED])
        engines = [f"eng_{n}" for n in range(2, 7)]
        for engine in engines:
            await store.renew(engine, 60.0)
        got = await asyncio.gather(*(store.claim(engine, limit=7) for engine in engines))
        rest = await store.claim("eng_2", limit=99)
        taken = [row.id for rows in (*got, rest) for row in rows]
        assert len(taken) == len(set(taken)) == 20


def entry(run_id: str) -> CacheEntry:
    return CacheEntry(
        workspace="w", key="key", run_id=run_id, node="a", outputs={"x": [1]}, created_at=1.0
    )
