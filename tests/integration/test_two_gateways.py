"""Two servers on one Redis, as a balancer would have them: any of them serves any stream."""

import asyncio
import json
import signal
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.gateway.conftest import ECHO_FLOW, write_agent
from tests.support.redis import RedisProcess, redis_server
from tests.support.server import Up, mentatlab, up
from tests.support.streams_server import SseReader
from websockets.asyncio.client import connect

SECRET = "one secret that all servers share"
API = "/api/v1/streams"


def shared(redis: RedisProcess, **more: str) -> dict[str, str]:
    return {"MENTATLAB_LOG": redis.url, "MENTATLAB_TOKEN_SECRET": SECRET, **more}


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisProcess]:
    (tmp_path / "redis").mkdir()
    with redis_server(tmp_path / "redis") as process:
        yield process


@pytest.fixture
def pair(tmp_path: Path, own_redis: RedisProcess) -> Iterator[tuple[Up, Up]]:
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(up(tmp_path / name, env=shared(own_redis))) for name in ("1", "2")
        )
        yield one, two
        assert "Traceback" not in one.log() + two.log()


def port(server: Up) -> int:
    return int(server.url.rpartition(":")[2])


@asynccontextmanager
async def client(server: Up) -> AsyncGenerator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=server.url, timeout=30) as http:
        yield http


async def init(http: httpx2.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await http.post(f"{API}/init", json={"agent_id": "me", "pin_name": "out", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


class Publisher:
    """Numbers from 1, in batches, to whichever server answers; sent again until acknowledged."""

    def __init__(self, stream_id: str, servers: list[httpx2.AsyncClient]) -> None:
        self.stream_id, self.servers = stream_id, servers
        self.acknowledged = 0
        self.refusals: list[int] = []

    async def send(self, count: int, *, size: int = 5) -> None:
        for first in range(self.acknowledged + 1, self.acknowledged + count + 1, size):
            await self._until_taken(range(first, first + size))

    async def end(self) -> None:
        body = {"type": "stream_end", "producer": self._producer(self.acknowledged + 1)}
        await self._post({"records": [body], "producer": body.pop("producer")})

    def _producer(self, seq: int) -> dict[str, Any]:
        return {"id": "p", "epoch": 0, "seq": seq}

    async def _until_taken(self, numbers: range) -> None:
        records = [{"type": "stream_data", "payload": {"data": n}} for n in numbers]
        while not await self._post({"records": records, "producer": self._producer(numbers[0])}):
            self.servers.append(self.servers.pop(0))
        self.acknowledged = numbers[-1]

    async def _post(self, body: dict[str, Any]) -> bool:
        try:
            answer = await self.servers[0].post(f"{API}/{self.stream_id}/records", json=body)
        except httpx2.TransportError:
            return False
        if answer.status_code == 503:
            self.refusals.append(answer.status_code)
            return False
        assert answer.status_code == 200, answer.text
        return True


async def by_sse(stream_id: str, ports: list[int]) -> list[dict[str, Any]]:
    """All records, from whichever server answers, each connection from where the last one ended."""
    records: list[dict[str, Any]] = []
    last: str | None = None
    while True:
        try:
            reader = await SseReader.open(ports[0], f"{API}/{stream_id}/sse", last_event_id=last)
            assert reader.status == 200
            while (event := await reader.event()) is not None:
                kind, last, data = event[0], event[1] or last, event[2]
                assert kind != "gap", data
                if kind.startswith("stream_"):
                    records.append(json.loads(data))
                    if kind == "stream_end":
                        await reader.aclose()
                        return records
            await reader.aclose()
        except (OSError, asyncio.IncompleteReadError, ValueError):
            ports.append(ports.pop(0))


async def by_websocket(stream_id: str, ports: list[int]) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    while True:
        start = len(records) + 1
        url = f"ws://127.0.0.1:{ports[0]}/ws/streams/{stream_id}?from={start}"
        try:
            async with connect(url) as socket:
                async for message in socket:
                    for line in message.splitlines():
                        record = json.loads(line)
                        if record["sequence"] == len(records) + 1:
                            records.append(record)
                        if record["type"] == "stream_end":
                            return records
        except (OSError, EOFError):
            pass
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "websockets":
                raise
        ports.append(ports.pop(0))


def check(records: list[dict[str, Any]], count: int) -> None:
    assert [r["sequence"] for r in records] == list(range(1, count + 3))
    assert [r["payload"]["data"] for r in records[1:-1]] == list(range(1, count + 1))


async def test_any_server_serves_any_stream(pair: tuple[Up, Up]) -> None:
    one, two = pair
    async with client(one) as a, client(two) as b, asyncio.timeout(60):
        stream = await init(a)
        again = await init(b, run_id=stream["run_id"], node_id="me")
        assert again["stream_id"] == stream["stream_id"]
        publisher = Publisher(stream["stream_id"], [a])
        async with asyncio.TaskGroup() as group:
            readers = [
                group.create_task(read(stream["stream_id"], [port(server)]))
                for read in (by_sse, by_websocket)
                for server in pair
            ]
            await publisher.send(40)
            publisher.servers = [b]
            await publisher.send(40)
            await publisher.end()
        for reader in readers:
            check(reader.result(), 80)
        logs = [await http.get(f"{API}/{stream['stream_id']}/log") for http in (a, b)]
        assert logs[0].text == logs[1].text
        assert logs[0].text.count("\n") == 82


async def test_what_a_run_streams_can_be_read_on_every_server(
    tmp_path: Path, own_redis: RedisProcess
) -> None:
    write_agent(tmp_path / "agents" / "echo")
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(
                up(tmp_path / name, "--agents", tmp_path / "agents", env=shared(own_redis))
            )
            for name in ("1", "2")
        )
        async with client(one) as a, client(two) as b, asyncio.timeout(60):
            run = {"flow": ECHO_FLOW, "inputs": {"words": "hello"}}
            run_id = (await a.post("/api/v1/runs", json=run)).json()["run_id"]
            sse = [
                await SseReader.open(port(server), f"{API}/{run_id}/sse?from=start")
                for server in (one, two)
            ]
            told, heard = [await reader.events() for reader in sse]
            assert [event for event in told if event[0] != "hello"] == [
                event for event in heard if event[0] != "hello"
            ]
            assert any('"hello"' in data for _, _, data in heard)
            assert (await a.get(f"/api/v1/runs/{run_id}")).json()["state"] == "succeeded"
            assert (await b.get(f"/api/v1/runs/{run_id}")).status_code == 404


async def test_tokens_and_tickets_hold_on_every_server_and_tickets_once(
    pair: tuple[Up, Up],
) -> None:
    one, two = pair
    async with client(one) as a, client(two) as b:
        stream = await init(a)
        bearer = {"Authorization": f"Bearer {stream['pub_token']}"}
        body = {"type": "stream_data", "payload": {"data": 1}}
        url = f"{API}/{stream['stream_id']}/records"
        assert (await b.post(url, json=body, headers=bearer)).status_code == 200
        forged = {"Authorization": f"Bearer {stream['pub_token'][:-4]}AAAA"}
        assert (await b.post(url, json=body, headers=forged)).status_code == 401
        made = await a.post(f"{API}/{stream['stream_id']}/tickets")
        ticket = made.json()["ticket"]
        log = f"{API}/{stream['stream_id']}/log?ticket={ticket}"
        answers = await asyncio.gather(*(http.get(log) for http in (a, b, a, b)))
        assert sorted(answer.status_code for answer in answers) == [200, 401, 401, 401]


async def test_a_killed_server_costs_nothing(pair: tuple[Up, Up]) -> None:
    one, two = pair
    async with client(one) as a, client(two) as b, asyncio.timeout(90):
        stream_id = (await init(a))["stream_id"]
        publisher = Publisher(stream_id, [a, b])
        async with asyncio.TaskGroup() as group:
            readers = [
                group.create_task(read(stream_id, [port(one), port(two)]))
                for read in (by_sse, by_websocket)
            ]
            await publisher.send(100)
            killing = group.create_task(asyncio.to_thread(one.stop, signal.SIGKILL))
            await publisher.send(200)
            await killing
            await publisher.end()
        for reader in readers:
            check(reader.result(), 300)


async def test_a_killed_redis_costs_time_only(pair: tuple[Up, Up], own_redis: RedisProcess) -> None:
    one, two = pair
    async with client(one) as a, client(two) as b, asyncio.timeout(110):
        stream_id = (await init(a))["stream_id"]
        epoch = (await b.get(f"{API}/{stream_id}")).json()["epoch"]
        publisher = Publisher(stream_id, [a, b])
        async with asyncio.TaskGroup() as group:
            readers = [
                group.create_task(read(stream_id, [port(server)]))
                for read in (by_sse, by_websocket)
                for server in pair
            ]
            await publisher.send(100)
            own_redis.kill()
            sending = group.create_task(publisher.send(200))
            while not publisher.refusals:  # it is told, and may come again
                assert not sending.done()
                await asyncio.sleep(0.05)
            await asyncio.to_thread(own_redis.start)
            await sending
            for _ in range(3):  # short ones are not even told
                own_redis.kill()
                await asyncio.to_thread(own_redis.start)
                await publisher.send(50)
            await publisher.end()
        for reader in readers:
            check(reader.result(), 450)
        assert (await b.get(f"{API}/{stream_id}")).json()["epoch"] == epoch


async def test_a_redis_that_may_lose_records_gets_no_commit_streams(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with redis_server(tmp_path / "redis", ("--appendonly", "no")) as redis:
        with up(tmp_path / "home", env=shared(redis)) as server:
            async with client(server) as http:
                body = {"agent_id": "me", "pin_name": "out"}
                refused = await http.post(f"{API}/init", json=body)
                assert refused.status_code == 400
                assert refused.json()["code"] == "STREAM_NOT_DURABLE"
                await init(http, durability="memory")
        with up(tmp_path / "home", env=shared(redis, MENTATLAB_REDIS_ALLOW_RELAXED="1")) as server:
            async with client(server) as http:
                await init(http)


@pytest.mark.usefixtures("pair")
def test_a_server_that_cannot_share_does_not_start(tmp_path: Path, own_redis: RedisProcess) -> None:
    log = {"MENTATLAB_LOG": own_redis.url}
    for settings, code in (
        ({**log, "MENTATLAB_TOKEN_SECRET": "another secret, as long as the first"}, "BAD_SETTING"),
        (log, "BAD_SETTING"),
        ({"MENTATLAB_TOKEN_SECRET": "short"}, "BAD_SETTING"),
        ({"MENTATLAB_LOG": "postgres://x"}, "BAD_SETTING"),
        ({"MENTATLAB_LOG": "redis://127.0.0.1:1/0"}, "UNAVAILABLE"),
    ):
        refused = mentatlab("up", "--port", "0", home=tmp_path / "3", env=settings)
        assert refused.returncode != 0
        assert code in refused.stderr, refused.stderr
