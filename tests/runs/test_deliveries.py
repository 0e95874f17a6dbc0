"""Who is told of runs' ends, on both databases; the sender under a clock that the test turns."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.postgres import postgres

from mentatlab.database import Database
from mentatlab.postgres import PostgresDatabase
from mentatlab.protocol.errors import Code, Conflict, Invalid, NotFound, Unavailable
from mentatlab.runs import events as ev
from mentatlab.runs.deliveries import (
    BASE_S,
    CAP_S,
    DELIVERY,
    GIVE_UP_S,
    KEPT_S,
    LEASE_S,
    MOST_AT_ONCE,
    Deliveries,
    DeliveryStore,
    Outcome,
    Sender,
    pause_s,
)
from mentatlab.runs.outbox import Subscription
from mentatlab.runs.schema import SCHEMA
from mentatlab.runs.secrets import Seal
from mentatlab.runs.signatures import HEADER, verify
from mentatlab.runs.sql_store import SqlRunStore
from mentatlab.runs.store import Snapshot
from mentatlab.runs.subscriptions import MOST, SubscriptionStore
from mentatlab.sqlite import Database as SqliteDatabase
from mentatlab.testing.run_store_contract import CREATED, SNAPSHOT, after, run_row

NOON = 1_700_049_600.0
URL = "https://receiver.example/hook"
Answer = int | Exception


async def anywhere(url: str) -> None:
    """Nothing is refused."""


class World:
    """Runs that end, and a receiver that answers as it is told."""

    def __init__(self, database: Database) -> None:
        seal = Seal("server")
        self.database = database
        self.runs = SqlRunStore(database)
        self.subscriptions = SubscriptionStore(database, seal, anywhere)
        self.store = DeliveryStore(database)
        self._seal = seal
        self.now = NOON
        self.answers: list[Answer] = []  # the last one for ever
        self.got: list[tuple[str, bytes, dict[str, str]]] = []
        self.secrets = {"HOOK_SECRET": "a secret of the store"}
        self.gate: asyncio.Event | None = None  # the receiver answers when it is set
        self.called = asyncio.Event()

    def sender(self) -> Sender:
        return Sender(
            self.store,
            self.post,
            self._seal,
            self.secrets_for,
            clock=lambda: self.now,
            chance=lambda: 1.0,
        )

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        self.got.append((url, body, dict(headers)))
        self.called.set()
        if self.gate is not None:
            await self.gate.wait()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def secrets_for(self, workspace: str, names: Collection[str]) -> dict[str, str]:
        if missing := set(names) - self.secrets.keys():
            raise Invalid(Code.SECRET_MISSING, f"there is no secret {missing}")
        return {name: self.secrets[name] for name in names}

    async def subscribe(self, **more: Any) -> tuple[Subscription, str]:
        asked: dict[str, Any] = {"workspace": "w", "url": URL, "events": ["run_finished"], **more}
        return await self.subscriptions.create(now=self.now, **asked)

    async def end(
        self, run_id: str = "rn_1", state: ev.RunEnd = "succeeded", **more: Any
    ) -> Deliveries:
        """A run that has ended; what was put into the outbox for it."""
        snapshot = more.pop("snapshot", SNAPSHOT)
        error = more.pop("error", None)
        row = run_row(run_id, **more)
        await self.runs.create(row, snapshot, [CREATED])
        ended = after(row, 1, state=state, finished_at=self.now)
        await self.runs.append(ended, [ev.RunFinished(at=self.now, state=state, error=error)])
        return await self.deliveries(run_id=run_id)

    async def deliveries(self, **wanted: Any) -> Deliveries:
        asked: dict[str, Any] = {"workspace": "w", "limit": 200, **wanted}
        return await self.store.list(**asked)

    async def state(self, run_id: str = "rn_1") -> tuple[str, int, int, str]:
        (found,) = await self.deliveries(run_id=run_id)
        return found.state, found.attempts, found.status, found.error


@pytest.fixture(params=["sqlite", "postgres"])
async def each(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """One after the other on either database; `world` where SQL has no part in it."""
    if request.param == "sqlite":
        async with SqliteDatabase(tmp_path / "runs.db", SCHEMA) as db:
            yield World(db)
    else:
        with postgres().database() as url:
            async with PostgresDatabase(url, "runs", SCHEMA) as db:
                yield World(db)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with SqliteDatabase(tmp_path / "runs.db", SCHEMA) as db:
        yield World(db)


def with_webhooks(*webhooks: dict[str, Any]) -> Snapshot:
    document = {"kind": "Flow", "runConfig": {"webhooks": [*webhooks]}}
    return Snapshot("digest", document, {})


# --- the outbox


@pytest.mark.parametrize(
    ("events", "told"),
    [
        (["run_finished"], ["run_finished"] * 4),
        (["run_failed"], ["run_failed"]),
        (["run_failed", "run_cancelled"], ["run_cancelled", "run_failed"]),
        (["run_failed", "run_finished"], ["run_finished"] * 4),
        (["run_succeeded", "run_partial"], ["run_partial", "run_succeeded"]),
    ],
)
async def test_who_asked_for_an_end_is_told(
    world: World, events: list[str], told: list[str]
) -> None:
    await world.subscribe(events=events)
    ends: tuple[ev.RunEnd, ...] = ("succeeded", "failed", "partial", "cancelled")
    for state in ends:
        await world.end(f"rn_{state}", state)
    assert sorted(d.event for d in await world.deliveries()) == told


async def test_only_of_its_workspace_and_its_flow(each: World) -> None:
    (every, _), (clips, _) = await each.subscribe(), await each.subscribe(flow_id="clips")
    await each.subscribe(workspace="v")
    assert {d.subscription_id for d in await each.end("rn_1")} == {every.id}
    both = await each.end("rn_2", flow_id="clips")
    assert {d.subscription_id for d in both} == {every.id, clips.id}
    assert await each.deliveries(workspace="u") == []


async def test_a_run_that_goes_on_tells_nothing_and_one_without_listeners_neither(
    world: World,
) -> None:
    assert await world.end("rn_1") == []
    await world.subscribe()
    row = run_row("rn_2")
    await world.runs.create(row, SNAPSHOT, [CREATED])
    await world.runs.append(after(row, 1), [ev.RunStarted(at=2.0)])
    assert await world.deliveries() == []


async def test_a_runs_own_webhooks_hear_of_that_run_only(each: World) -> None:
    own = with_webhooks(
        {"url": URL, "secret": "HOOK_SECRET"},
        {"url": f"{URL}/2", "secret": "HOOK_SECRET", "events": ["run_failed"]},
    )
    assert [d.url for d in await each.end("rn_1", snapshot=own)] == [URL]
    assert await each.end("rn_2") == []
    assert await each.subscriptions.list(workspace="w") == []
    await each.runs.delete("rn_1")
    assert await each.deliveries() == []


async def test_a_deleted_subscription_hears_nothing_more(each: World) -> None:
    made, _ = await each.subscribe()
    await each.end()
    with pytest.raises(NotFound):
        await each.subscriptions.delete(made.id, workspace="v")
    await each.subscriptions.delete(made.id, workspace="w")
    assert await each.deliveries() == []
    assert await each.end("rn_2") == []


async def test_a_subscription_that_goes_while_a_run_ends(world: World) -> None:
    made, _ = await world.subscribe()
    await world.end()
    sql = "DELETE FROM subscriptions WHERE id = ?"
    await world.database.write(lambda db: db.execute(sql, (made.id,)).rowcount)
    await world.sender().look()
    assert (world.got, await world.deliveries()) == ([], [])


async def test_a_workspace_has_so_many_and_no_more(world: World) -> None:
    for _ in range(MOST):
        await world.subscribe()
    await world.subscribe(workspace="v")
    with pytest.raises(Conflict):
        await world.subscribe()
    assert len(await world.end()) == MOST


@pytest.mark.parametrize(
    "asked",
    [
        {"url": "ftp://receiver.example"},
        {"url": "receiver"},
        {"url": "https://me:word@receiver.example"},
        {"url": "https://receiver.example/a b"},
        {"events": ["run_ended"]},
        {"events": []},
    ],
)
async def test_what_cannot_be_subscribed_to(world: World, asked: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match="WEBHOOK_INVALID"):
        await world.subscribe(**asked)
    assert await world.subscriptions.list(workspace="w") == []


# --- the sender


async def test_a_delivery_is_signed_and_tells_the_run(world: World) -> None:
    _, secret = await world.subscribe()
    fault = ev.Fault("NO_RESULT", "it broke", "mend it")
    (made,) = await world.end(state="failed", error=fault, trigger="schedule:s")
    world.answers = [204]
    await world.sender().look()
    ((url, body, headers),) = world.got
    verify(secret, body, headers[HEADER], now=world.now)
    assert (url, headers[DELIVERY], headers["X-Mentat-Event"]) == (URL, made.id, "run_finished")
    told = json.loads(body)
    assert (told["id"], told["event"], told["created_at"]) == (made.id, "run_finished", NOON)
    assert told["run"]["error"] == {"code": "NO_RESULT", "message": "it broke", "hint": "mend it"}
    assert (told["run"]["run_id"], told["run"]["state"]) == ("rn_1", "failed")
    assert told["run"]["trigger"] == "schedule:s"
    assert await world.state() == ("delivered", 1, 204, "")
    await world.sender().look()
    assert len(world.got) == 1


async def test_a_runs_own_webhook_is_signed_with_the_secret_it_names(world: World) -> None:
    own = with_webhooks({"url": URL, "secret": "HOOK_SECRET"})
    await world.end(snapshot=own)
    world.answers = [200]
    secret = world.secrets.pop("HOOK_SECRET")
    await world.sender().look()
    assert (await world.state())[:2] == ("waiting", 1)
    world.secrets["HOOK_SECRET"] = secret  # set again
    world.now += 2
    await world.sender().look()
    ((_, body, headers),) = world.got
    verify(secret, body, headers[HEADER], now=world.now)
    assert (await world.state())[0] == "delivered"


async def test_what_fails_is_tried_again_later_and_later_with_the_same_body(world: World) -> None:
    await world.subscribe()
    await world.end()
    sender = world.sender()
    world.answers = [500, Unavailable(Code.WEBHOOK_UNREACHABLE, "closed"), 302, 200]
    errors: list[str] = []
    for _ in range(3):
        await sender.look()
        await sender.look()  # nothing is due
        (found,) = await world.deliveries()
        errors.append(found.error)
        world.now = found.next_at
    assert [("500" in errors[0]), ("closed" in errors[1]), ("redirects" in errors[2])] == [True] * 3
    await sender.look()
    assert await world.state() == ("delivered", 4, 200, "")
    assert len({body for _, body, _ in world.got}) == 1
    assert len({headers[DELIVERY] for _, _, headers in world.got}) == 1
    assert len({headers[HEADER] for _, _, headers in world.got}) == 4, "each is signed when sent"


async def test_it_is_given_up_after_a_day_and_can_be_sent_again(world: World) -> None:
    await world.subscribe()
    (made,) = await world.end()
    sender = world.sender()
    world.answers = [503]
    while (found := (await world.deliveries())[0]).state == "waiting":
        world.now = max(world.now, found.next_at)
        await sender.look()
    assert GIVE_UP_S <= world.now - NOON <= GIVE_UP_S + BASE_S
    assert (found.state, found.ended_at) == ("failed", world.now)
    assert "503" in found.error
    assert 20 < found.attempts < 60
    world.answers = [200]
    await sender.look()
    with pytest.raises(NotFound):
        await world.store.redeliver(made.id, workspace="v", now=world.now)
    again = await world.store.redeliver(made.id, workspace="w", now=world.now)
    assert (again.state, again.ended_at) == ("waiting", 0.0)
    await sender.look()
    assert (await world.state())[0] == "delivered"


async def test_410_stops_the_subscription(each: World) -> None:
    made, _ = await each.subscribe()
    await each.end("rn_1")
    await each.end("rn_2")
    each.answers = [500]
    await each.sender().look()
    each.answers = [410]
    each.now += 5
    await each.sender().look()
    for run_id in ("rn_1", "rn_2"):
        state, _, _, error = await each.state(run_id)
        assert (state, "410" in error) == ("failed", True)
    (listed,) = await each.subscriptions.list(workspace="w")
    assert (listed.id, listed.stopped_at) == (made.id, each.now)
    assert await each.end("rn_3") == []


async def test_an_address_that_is_refused_is_not_tried_again(world: World) -> None:
    await world.subscribe()
    await world.end()
    world.answers = [Invalid(Code.WEBHOOK_ADDRESS_REFUSED, "inside")]
    await world.sender().look()
    state, attempts, status, error = await world.state()
    assert (state, attempts, status) == ("failed", 1, 0)
    assert error == "WEBHOOK_ADDRESS_REFUSED: inside"


async def test_replicas_share_the_work(each: World) -> None:
    await each.subscribe()
    for n in range(20):
        await each.end(f"rn_{n:02}")
    each.answers = [200]
    await asyncio.gather(*(each.sender().look() for _ in range(4)))
    assert len(each.got) == 20
    assert {d.state for d in await each.deliveries()} == {"delivered"}


async def test_the_delivery_of_a_replica_that_died_passes_on(each: World) -> None:
    await each.subscribe()
    await each.end()
    (begun,) = await each.store.lease(each.now, limit=9, without=())  # and then it dies
    each.answers = [200]
    await each.sender().look()
    assert each.got == []
    each.now += LEASE_S
    await each.sender().look()
    assert await each.state() == ("delivered", 2, 200, "")
    late = begun.delivery  # it had only been slow
    await each.store.settle(late, Outcome(500, "late"), now=each.now, retry_at=each.now)
    assert await each.state() == ("delivered", 2, 200, "")


async def test_a_receiver_that_hangs_holds_up_nobody_else(world: World) -> None:
    hung, _ = await world.subscribe(url="https://hung.example")
    for n in range(2 * MOST_AT_ONCE):
        await world.end(f"rn_{n:03}")
    world.answers, world.gate = [200], asyncio.Event()
    sender = world.sender()
    hanging = asyncio.create_task(sender.look())
    await world.called.wait()
    good, _ = await world.subscribe(url="https://good.example")
    await world.end("rn_x")
    passing = asyncio.create_task(sender.look())
    while not any(url == good.url for url, _, _ in world.got):
        world.called.clear()
        await world.called.wait()
    held = [url for url, _, _ in world.got if url == hung.url]
    assert len(held) < MOST_AT_ONCE / 2
    world.gate.set()
    await asyncio.gather(hanging, passing)


async def test_news_are_sent_at_once_and_what_was_begun_before_a_restart_too(
    each: World,
) -> None:
    await each.subscribe()
    await each.end("rn_1")
    await each.store.lease(each.now, limit=9, without=())
    each.now += 0 if not each.runs.shared else LEASE_S
    each.answers = [200]
    running = asyncio.create_task(each.sender().run_forever())
    await each.called.wait()
    each.called.clear()
    await each.end("rn_2")
    await each.called.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [json.loads(body)["run"]["run_id"] for _, body, _ in each.got] == ["rn_1", "rn_2"]


async def test_a_bug_at_one_delivery_stops_no_other(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.subscribe()
    world.answers = [ZeroDivisionError("a bug"), 200]
    sender = world.sender()
    await world.end("rn_1")
    await sender.look()
    assert "is tried again" in caplog.text
    await world.end("rn_2")
    await sender.look()
    assert [d.state for d in await world.deliveries(run_id="rn_2")] == ["delivered"]
    world.now += LEASE_S + 1
    await sender.look()
    assert [d.state for d in await world.deliveries(run_id="rn_1")] == ["delivered"]


async def test_lists_by_page_and_what_is_forgotten(each: World) -> None:
    made, _ = await each.subscribe()
    for n in range(5):
        await each.end(f"rn_{n}")
    each.answers = [200]
    await each.sender().look()
    page = await each.deliveries(limit=2)
    assert [d.run_id for d in page] == ["rn_4", "rn_3"]
    rest = await each.deliveries(before=page[-1].id, subscription_id=made.id, state="delivered")
    assert [d.run_id for d in rest] == ["rn_2", "rn_1", "rn_0"]
    assert await each.deliveries(state="failed") == []
    each.now += KEPT_S + 1
    await each.end("rn_9")
    await each.sender().look()
    assert [d.run_id for d in await each.deliveries()] == ["rn_9"]


async def test_the_check_that_the_guide_shows_takes_what_is_sent(world: World) -> None:
    guide = Path(__file__).parents[2] / "docs" / "guides" / "schedules-and-webhooks.md"
    code = guide.read_text().partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    world.now = time.time()
    _, secret = await world.subscribe()
    await world.end()
    world.answers = [200]
    await world.sender().look()
    ((_, body, headers),) = world.got
    assert names["is_genuine"](secret, body, headers[HEADER])
    assert not names["is_genuine"](secret, body + b" ", headers[HEADER])
    assert not names["is_genuine"]("another", body, headers[HEADER])


@given(st.floats(0, GIVE_UP_S), st.floats(0, 1))
def test_pauses_grow_and_end_with_the_day(waited: float, chance: float) -> None:
    pause = pause_s(waited, chance)
    assert BASE_S / 2 <= pause <= CAP_S
    assert waited + pause <= GIVE_UP_S + BASE_S
    if 2 * BASE_S < waited < CAP_S:
        assert waited / 2 <= pause <= waited
