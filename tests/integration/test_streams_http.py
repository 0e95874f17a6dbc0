"""Streams through real sockets: uvicorn on a free port, WebSocket and raw SSE clients."""

import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.support.redis import RedisProcess
from tests.support.streams_server import SECRET, SseReader, stream_server
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from mentatlab.gateway.server import Transport
from mentatlab.protocol.records import data_draft
from mentatlab.protocol.tokens import Claims, mint
from mentatlab.streams import StreamingConnectionManager, open_hub
from mentatlab.streams.redis import open_redis_log
from support import streams_server

MSP = [Subprotocol("msp.v1+json")]


class Client:
    """The server under test, its hub, and an HTTP client."""

    def __init__(self, hub: StreamingConnectionManager, port: int, http: httpx2.AsyncClient):
        self.hub, self.port, self.http = hub, port, http
        self.streams: list[Any] = []

    async def init(self, **fields: Any) -> dict[str, Any]:
        body = {"agent_id": "me", "pin_name": "out", **fields}
        answer = await self.http.post("/api/v1/streams/init", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def publish(self, stream_id: str, body: Any, **headers: str) -> httpx2.Response:
        return await self.http.post(
            f"/api/v1/streams/{stream_id}/records", json=body, headers=headers
        )

    async def numbers(self, stream_id: str, values: range) -> None:
        records = [{"type": "stream_data", "payload": {"data": n}} for n in values]
        answer = await self.publish(stream_id, records)
        assert answer.status_code == 200, answer.text

    async def end(self, stream_id: str) -> None:
        answer = await self.publish(stream_id, {"type": "stream_end"})
        assert answer.status_code == 200, answer.text

    def ws(self, stream_id: str, query: str = "", **more: Any) -> connect:
        url = f"ws://127.0.0.1:{self.port}/ws/streams/{stream_id}{query}"
        unbounded = {"max_queue": None}  # with unread messages the client could not close
        return connect(url, **{**unbounded, **more})

    async def sse(self, stream_id: str, query: str = "", **more: Any) -> Any:
        path = f"/api/v1/streams/{stream_id}/sse{query}"
        self.streams.append(await SseReader.open(self.port, path, **more))
        return self.streams[-1]


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def hub(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[StreamingConnectionManager]:
    if request.param == "redis":
        redis: RedisProcess = request.getfixturevalue("redis")
        hub = StreamingConnectionManager(
            await open_redis_log(redis.url, prefix=f"{tmp_path.name}:")
        )
    else:
        hub = await open_hub(tmp_path / "streams.db" if request.param == "sqlite" else None)
    yield hub
    await hub.aclose()


@pytest.fixture(params=["picows", "portable"])
def transport(request: pytest.FixtureRequest) -> Transport:
    return request.param


@pytest.fixture
async def client(hub: StreamingConnectionManager, transport: Transport) -> AsyncIterator[Client]:
    async with (
        stream_server(hub, transport=transport, mark_s=0.05, stall_s=0.3) as port,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        client = Client(hub, port, http)
        yield client
        for stream in client.streams:
            await stream.aclose()


async def received(socket: ClientConnection) -> list[dict[str, Any]]:
    """Every message until the server closes."""
    found: list[dict[str, Any]] = []
    with suppress(ConnectionClosed):
        while True:
            found.extend(json.loads(line) for line in str(await socket.recv()).split("\n"))
    return found


def sequences(records: list[dict[str, Any]]) -> list[int]:
    return [record["sequence"] for record in records]


async def test_init_answers_what_a_client_needs(client: Client) -> None:
    opened = await client.init()
    assert opened["ws_url"] == f"/ws/streams/{opened['stream_id']}"
    assert opened["sse_url"] == f"/api/v1/streams/{opened['stream_id']}/sse"
    assert opened["status"] == "open"
    look = (await client.http.get(f"/api/v1/streams/{opened['stream_id']}")).json()
    assert (look["head"], look["state"], look["epoch"]) == (1, "open", opened["epoch"])
    run = (await client.http.get(f"/api/v1/streams/{opened['run_id']}")).json()
    assert [stream["stream_id"] for stream in run["streams"]] == [opened["stream_id"]]


async def test_init_is_idempotent_by_key(client: Client) -> None:
    async def opened(pin: str, key: str) -> httpx2.Response:
        return await client.http.post(
            "/api/v1/streams/init",
            json={"agent_id": "me", "pin_name": pin},
            headers={"Idempotency-Key": key},
        )

    first, again, other = await opened("a", "k1"), await opened("a", "k1"), await opened("a", "k2")
    assert first.json()["stream_id"] == again.json()["stream_id"] != other.json()["stream_id"]
    clash = await opened("b", "k1")
    assert (clash.status_code, clash.json()["code"]) == (409, "IDEMPOTENCY_CONFLICT")


@pytest.mark.parametrize(
    ("body", "status"),
    [({}, 422), ({"agent_id": "", "pin_name": "x"}, 422), ({"agent_id": "a" * 300}, 422)],
)
async def test_init_refuses_bad_bodies(client: Client, body: Any, status: int) -> None:
    answer = await client.http.post("/api/v1/streams/init", json=body)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


async def test_publishing_with_an_identity_is_exactly_once(client: Client) -> None:
    stream_id = (await client.init())["stream_id"]

    def batch(first: int, *values: int, epoch: int = 0) -> dict[str, Any]:
        producer = {"id": "p", "epoch": epoch, "seq": first}
        return {"records": [{"payload": {"data": n}} for n in values], "producer": producer}

    answer = (await client.publish(stream_id, batch(1, 10, 11))).json()
    assert answer == {"stream_id": stream_id, "first": 2, "last": 3, "duplicate": False}
    again = (await client.publish(stream_id, batch(1, 10, 11))).json()
    assert again == {"stream_id": stream_id, "first": 2, "last": 3, "duplicate": True}
    overlap = (await client.publish(stream_id, batch(2, 11, 12))).json()
    assert (overlap["first"], overlap["last"], overlap["duplicate"]) == (3, 4, False)
    hole = await client.publish(stream_id, batch(9, 0))
    assert (hole.status_code, hole.json()["details"]) == (409, {"expected": 4})
    assert (await client.publish(stream_id, batch(1, 13, epoch=1))).status_code == 200
    fenced = await client.publish(stream_id, batch(4, 99))
    assert (fenced.status_code, fenced.json()["code"]) == (403, "STREAM_FENCED")
    await client.end(stream_id)
    async with client.ws(stream_id, "?from=start") as socket:
        records = await received(socket)
    assert [r["payload"]["data"] for r in records[1:-1]] == [10, 11, 12, 13]
    assert records[-1]["payload"]["chunks"] == 4


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ([], 400, "STREAM_RECORD_INVALID"),
        (7, 400, "STREAM_RECORD_INVALID"),
        ({"payload": {}}, 400, "STREAM_RECORD_INVALID"),
        ({"payload": {"data": "x" * (1 << 20)}}, 413, "STREAM_RECORD_TOO_LARGE"),
        ([{"data": 1}] * 257, 413, "STREAM_RECORD_TOO_LARGE"),
        ({"type": "stream_start", "payload": {}}, 400, "STREAM_RECORD_INVALID"),
        ({"data": 1, "producer": {"id": "p"}}, 400, "STREAM_RECORD_INVALID"),
        ({"data": 1, "producer": {"id": "", "epoch": 0, "seq": 1}}, 400, "STREAM_RECORD_INVALID"),
        ({"data": 1, "producer": {"id": "p", "epoch": 0, "seq": 0}}, 400, "STREAM_RECORD_INVALID"),
    ],
)
async def test_bad_records_are_refused(client: Client, body: Any, status: int, code: str) -> None:
    stream_id = (await client.init())["stream_id"]
    answer = await client.publish(stream_id, body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert (await client.hub.lane(stream_id)).head == 1


async def test_a_body_that_is_not_json_is_refused(client: Client) -> None:
    path = f"/api/v1/streams/{(await client.init())['stream_id']}/records"
    for body in (b"{", b"\xff", b"[" * 100_000, b'{"data": "\\ud800"}', b"NaN"):
        assert (await client.http.post(path, content=body)).status_code == 400
    large = await client.http.post(path, content=b"[" * (9 << 20))
    assert (large.status_code, large.json()["code"]) == (413, "PAYLOAD_TOO_LARGE")


async def test_unknown_streams_and_bad_cursors(client: Client) -> None:
    stream_id = (await client.init())["stream_id"]
    for path, status, code in (
        ("st_nobody", 404, "STREAM_UNKNOWN"),
        ("st_nobody/sse", 404, "STREAM_UNKNOWN"),
        (f"{stream_id}/sse?from=x", 400, "STREAM_CURSOR_INVALID"),
        (f"{stream_id}/sse?from=--1", 400, "STREAM_CURSOR_INVALID"),
    ):
        answer = await client.http.get(f"/api/v1/streams/{path}")
        assert (answer.status_code, answer.json()["code"]) == (status, code), path
    late = await client.sse(
        stream_id, last_event_id=f"{(await client.hub.lane(stream_id)).epoch}:9"
    )
    assert late.status == 400
    await late.aclose()


async def test_sse_says_hello_start_records_and_ends(client: Client) -> None:
    opened = await client.init()
    stream_id, epoch = opened["stream_id"], opened["epoch"]
    await client.numbers(stream_id, range(3))
    stream = await client.sse(stream_id)
    assert stream.status == 200
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.headers["cache-control"] == "no-cache, no-transform"
    assert stream.headers["x-accel-buffering"] == "no"
    head = [await stream.event() for _ in range(5)]
    assert [(name, id_) for name, id_, _ in head] == [
        ("hello", f"{epoch}:0"),
        ("stream_start", f"{epoch}:1"),
        ("stream_data", f"{epoch}:2"),
        ("stream_data", f"{epoch}:3"),
        ("stream_data", f"{epoch}:4"),
    ]
    name, id_, data = await stream.event()
    assert (name, id_, json.loads(data)["cursor"]) == ("mark", None, f"{epoch}:4")
    await client.end(stream_id)
    rest = [event for event in await stream.events() if event[0] != "mark"]
    assert [(name, id_) for name, id_, _ in rest] == [("stream_end", f"{epoch}:5")]
    again = await client.sse(stream_id, last_event_id=f"{epoch}:5")
    assert (again.status, await again.body()) == (204, b"")


async def test_sse_begins_with_retry(client: Client) -> None:
    stream_id = (await client.init())["stream_id"]
    await client.end(stream_id)
    answer = await client.http.get(f"/api/v1/streams/{stream_id}/sse")
    assert answer.text.startswith("retry: 1500\n")


async def test_last_event_id_beats_from_and_a_joiner_gets_the_start(client: Client) -> None:
    opened = await client.init()
    stream_id, epoch = opened["stream_id"], opened["epoch"]
    await client.numbers(stream_id, range(3))
    await client.end(stream_id)
    resumed = await client.sse(stream_id, "?from=start", last_event_id=f"{epoch}:3")
    assert [id_ for _, id_, _ in await resumed.events()] == [f"{epoch}:{n}" for n in (3, 4, 5)]
    joined = await client.sse(stream_id, "?from=4")
    found = await joined.events()
    assert [name for name, _, _ in found] == ["hello", "stream_start", "stream_data", "stream_end"]
    assert [id_ for _, id_, _ in found] == [f"{epoch}:{n}" for n in (3, 3, 4, 5)]


async def test_another_epoch_is_a_gap_and_never_a_splice(client: Client) -> None:
    opened = await client.init()
    stream_id, epoch = opened["stream_id"], opened["epoch"]
    await client.numbers(stream_id, range(2))
    await client.end(stream_id)
    stream = await client.sse(stream_id, last_event_id=f"{epoch + 1}:3")
    found = await stream.events()
    assert [name for name, _, _ in found][:3] == ["hello", "gap", "stream_start"]
    gap = json.loads(found[1][2])
    assert (gap["from"], gap["next"], gap["reason"]) == (f"{epoch + 1}:3", f"{epoch}:0", "epoch")
    async with client.ws(stream_id, f"?from={epoch + 1}:3") as socket:
        messages = await received(socket)
    assert messages[0]["type"] == "gap"
    assert sequences(messages[1:]) == [1, 2, 3, 4]


async def test_sse_resumes_exactly_when_cut_at_random_points(client: Client) -> None:
    dice = random.Random(7)
    opened = await client.init()
    stream_id = opened["stream_id"]

    async def publisher() -> None:
        for start in range(0, 300, 10):
            await client.numbers(stream_id, range(start, start + 10))
        await client.end(stream_id)

    async with asyncio.TaskGroup() as group:
        group.create_task(publisher())
        got: list[int] = []
        last: str | None = None
        while True:
            stream = await client.sse(stream_id, last_event_id=last)
            if stream.status == 204:
                break
            for _ in range(dice.randrange(1, 40)):
                if (event := await stream.event()) is None:
                    break
                name, id_, data = event
                last = id_ or last
                if name.startswith("stream_"):
                    got.append(json.loads(data)["sequence"])
            await stream.aclose()
        await stream.aclose()
    assert got == list(range(1, 303))


async def test_websocket_resumes_exactly_when_cut_at_random_points(client: Client) -> None:
    dice = random.Random(8)
    opened = await client.init()
    stream_id, epoch = opened["stream_id"], opened["epoch"]

    async def publisher() -> None:
        for start in range(0, 300, 10):
            await client.numbers(stream_id, range(start, start + 10))
        await client.end(stream_id)

    async with asyncio.TaskGroup() as group:
        group.create_task(publisher())
        got: list[int] = []
        while not got or got[-1] != 302:
            async with client.ws(stream_id, f"?from={epoch}:{len(got)}") as socket:
                for _ in range(dice.randrange(1, 40)):
                    try:
                        got.append(json.loads(await socket.recv())["sequence"])
                    except ConnectionClosed:
                        break
    assert got == list(range(1, 303))


async def test_a_plain_client_publishes_and_sees_it_come_back(client: Client) -> None:
    stream_id = (await client.init())["stream_id"]
    async with client.ws(stream_id) as socket:
        start = json.loads(await socket.recv())
        assert (start["type"], start["sequence"]) == ("stream_start", 1)
        await socket.send(json.dumps({"event_type": "stream_data", "data": {"old": True}}))
        await socket.send(json.dumps({"type": "stream_data", "payload": {"data": 2}}))
        await socket.send(json.dumps({"type": "stream_end"}))
        records = await received(socket)
    assert [record["payload"].get("data") for record in records] == [{"old": True}, 2, None]
    assert records[-1]["payload"]["chunks"] == 2
    assert socket.close_code == 1000


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("not json", 4100),
        ("[1]", 4100),
        ("[" * 100_000, 4100),
        ('{"data": "\\ud800"}', 4100),
        ('{"type":"subscribe"}', 4100),
        (json.dumps({"data": "x" * (1 << 20)}), 4113),
        (json.dumps({"data": "x" * ((1 << 20) + (1 << 17))}), 4113),
        (json.dumps({"data": 1, "producer": {"id": "p", "epoch": 0, "seq": 5}}), 4109),
    ],
)
async def test_what_a_plain_client_may_not_send(
    client: Client, message: str | bytes, code: int
) -> None:
    stream_id = (await client.init())["stream_id"]
    async with client.ws(stream_id) as socket:
        await socket.send(message)
        await received(socket)
    assert socket.close_code == code
    assert socket.close_reason


async def test_an_unknown_stream_closes_4104_and_a_bad_cursor_4100(client: Client) -> None:
    stream_id = (await client.init())["stream_id"]
    for path, query, code in (("st_nobody", "", 4104), (stream_id, "?from=zz", 4100)):
        for subprotocols in (None, MSP) if code == 4104 else (None,):
            async with client.ws(path, query, subprotocols=subprotocols) as socket:
                assert await received(socket) == []
            assert socket.close_code == code


async def test_a_publisher_that_leaves_in_mid_stream_loses_and_cancels_nothing(
    client: Client,
) -> None:
    stream_id = (await client.init())["stream_id"]
    async with client.ws(stream_id) as socket:
        for n in range(50):
            await socket.send(json.dumps({"payload": {"data": n}}))
    stream = await client.sse(stream_id)
    names = [await stream.event() for _ in range(52)]
    assert [json.loads(e[2])["payload"].get("data") for e in names[2:]] == list(range(50))
    await stream.aclose()
    assert (await client.hub.lane(stream_id)).state == "open"


@pytest.mark.parametrize("subprotocols", [None, MSP], ids=["plain", "msp"])
async def test_what_came_before_a_bad_message_is_published(
    client: Client, subprotocols: Any
) -> None:
    stream_id = (await client.init())["stream_id"]
    async with client.ws(stream_id, subprotocols=subprotocols) as socket:
        for n in range(200):
            await socket.send(json.dumps({"payload": {"data": n}}))
        await socket.send("no JSON")
        await received(socket)
    assert socket.close_code == 4100
    assert (await client.hub.lane(stream_id)).chunks == 200


async def test_a_run_is_followed_in_its_order(client: Client) -> None:
    a = await client.init(pin_name="a")
    b = await client.init(pin_name="b", run_id=a["run_id"])
    for n in range(3):
        await client.numbers(a["stream_id"], range(n, n + 1))
        await client.numbers(b["stream_id"], range(n, n + 1))
    stream = await client.sse(a["run_id"], "?from=start")
    await client.end(a["stream_id"])
    await client.end(b["stream_id"])
    events = [e for e in await stream.events() if e[0] != "mark"]
    assert [e[1].split(":")[1] for e in events] == [str(n) for n in range(11)]
    assert [json.loads(e[2])["rseq"] for e in events[1:]] == list(range(1, 11))
    resumed = await client.sse(a["run_id"], last_event_id=events[5][1])
    assert [e[1] for e in await resumed.events()] == [e[1] for e in events[5:]]


async def test_a_token_opens_its_own_stream_only(client: Client) -> None:
    mine, other = await client.init(), await client.init()
    record = {"data": 1}
    for stream, token, status in (
        (mine, mine["pub_token"], 200),
        (mine, mine["sub_token"], 403),
        (other, mine["pub_token"], 403),
        (mine, mine["pub_token"][:-2] + "xx", 401),
    ):
        answer = await client.publish(stream["stream_id"], record, Authorization=f"Bearer {token}")
        assert answer.status_code == status
    foreign = mint(
        Claims(
            subject=mine["stream_id"],
            capabilities=("sub",),
            workspace="elsewhere",
            expires=int(time.time()) + 60,
        ),
        SECRET,
    )
    answer = await client.http.get(
        f"/api/v1/streams/{mine['stream_id']}", headers={"Authorization": f"Bearer {foreign}"}
    )
    assert answer.status_code == 404
    opening = await client.http.post(
        "/api/v1/streams/init",
        json={"agent_id": "a", "pin_name": "b"},
        headers={"Authorization": f"Bearer {mine['pub_token']}"},
    )
    assert opening.status_code == 403


async def test_an_expired_token_ends_the_connection_with_4003(client: Client) -> None:
    stream_id = (await client.init())["stream_id"]
    claims = Claims(
        subject=stream_id,
        capabilities=("sub",),
        workspace="default",
        expires=int(time.time()) + 1,
    )
    headers = {"Authorization": f"Bearer {mint(claims, SECRET)}"}
    async with client.ws(stream_id, additional_headers=headers) as socket:
        await received(socket)
    assert socket.close_code == 4003


async def test_only_its_run_publishes_to_an_engine_lane(client: Client) -> None:
    session = await client.hub.create_stream("agent", "out", run_id="rn_1", node_id="n")
    answer = await client.publish(session.stream_id, {"data": 1})
    assert (answer.status_code, answer.json()["code"]) == (403, "STREAM_FORBIDDEN")
    opening = await client.http.post(
        "/api/v1/streams/init",
        json={"agent_id": "agent", "pin_name": "out", "run_id": "rn_1", "node_id": "n"},
    )
    assert (opening.status_code, opening.json()["code"]) == (403, "STREAM_FORBIDDEN")
    async with client.ws(session.stream_id) as socket:
        await socket.send('{"data": 1}')
        await received(socket)
    assert socket.close_code == 4103


class TestSubprotocol:
    async def said(self, socket: ClientConnection, kind: str) -> dict[str, Any]:
        """The next message of that type; marks may come between."""
        while True:
            for line in str(await socket.recv()).split("\n"):
                message = json.loads(line)
                if message["type"] == kind:
                    return message
                assert message["type"] == "mark", message

    async def tell(self, socket: ClientConnection, kind: str, **fields: Any) -> None:
        await socket.send(json.dumps({"type": kind, **fields}))

    async def test_many_streams_on_one_connection(self, client: Client) -> None:
        a, b = await client.init(pin_name="a"), await client.init(pin_name="b")
        await client.numbers(a["stream_id"], range(2))
        async with client.ws(a["stream_id"], subprotocols=MSP) as socket:
            assert socket.subprotocol == MSP[0]
            welcome = await self.said(socket, "welcome")
            assert welcome["limits"]["record_bytes"] == 1 << 20
            await self.tell(socket, "subscribe", id=a["stream_id"], **{"from": "start"})
            subscribed = await self.said(socket, "subscribed")
            assert (subscribed["lane"], subscribed["head"]) == (1, 3)
            frame = [json.loads(line) for line in str(await socket.recv()).split("\n")]
            assert sequences(frame) == [1, 2, 3]
            await self.tell(socket, "subscribe", id=b["stream_id"], **{"from": f"{b['epoch']}:1"})
            subscribed = await self.said(socket, "subscribed")
            assert (subscribed["lane"], subscribed["recovered"]) == (2, True)
            await self.tell(socket, "stream_data", stream_id=b["stream_id"], payload={"data": 1})
            kinds = {m["type"]: m for m in [await self.either(socket) for _ in range(2)]}
            assert kinds["published"]["sequence"] == kinds["stream_data"]["sequence"] == 2
            assert kinds["published"]["durable"] is True

    async def either(self, socket: ClientConnection) -> dict[str, Any]:
        while (message := json.loads(await socket.recv()))["type"] == "mark":
            pass
        return message

    async def test_ping_cancel_unsubscribe_and_errors(self, client: Client) -> None:
        stream_id = (await client.init())["stream_id"]
        async with client.ws(stream_id, subprotocols=MSP) as socket:
            await self.said(socket, "welcome")
            await self.tell(socket, "ping", n=3)
            assert (await self.said(socket, "pong"))["n"] == 3
            await self.tell(socket, "pong")
            for wrong, code in (("st_nobody", 4104), (stream_id, 4109)):
                await self.tell(socket, "subscribe", id=stream_id)
                await self.tell(socket, "subscribe", id=wrong)
                message = await self.either(socket)
                while message["type"] != "error":
                    message = await self.either(socket)
                assert message["close"] == code
                await self.tell(socket, "unsubscribe", id=stream_id)
            await self.tell(socket, "subscribe", id=stream_id, **{"from": "zz"})
            assert (await self.said(socket, "error"))["code"] == "STREAM_CURSOR_INVALID"
            await self.tell(socket, "cancel", id=stream_id)
            assert (await self.said(socket, "mark"))["state"] == "ended"
            await self.tell(socket, "cancel", id=stream_id)
            await self.tell(socket, "stream_data", stream_id=stream_id, data=1)
            assert (await self.said(socket, "error"))["code"] == "STREAM_ENDED"
        lane = await client.hub.lane(stream_id)
        assert (lane.state, lane.head) == ("ended", 2)

    async def test_a_message_that_is_no_message_closes_4100(self, client: Client) -> None:
        stream_id = (await client.init())["stream_id"]
        for wrong in ('{"type": "dance"}', "{", '{"type": "subscribe"}', '{"type": "credit"}'):
            async with client.ws(stream_id, subprotocols=MSP) as socket:
                await socket.send(wrong)
                await received(socket)
            assert socket.close_code == 4100, wrong

    async def test_without_credit_nothing_comes(self, client: Client) -> None:
        stream_id = (await client.init())["stream_id"]
        await client.numbers(stream_id, range(20))
        async with client.ws(stream_id, subprotocols=MSP) as socket:
            await self.said(socket, "welcome")
            await self.tell(socket, "subscribe", id=stream_id, max_bytes=0, **{"from": "start"})
            await self.said(socket, "subscribed")
            await self.said(socket, "mark")  # idle: there is no credit
            await self.tell(socket, "credit", id=stream_id, max_bytes=1)
            assert (await self.said(socket, "stream_start"))["sequence"] == 1
            await self.said(socket, "mark")
            await self.tell(socket, "credit", id=stream_id, max_bytes=1)  # repeated: harmless
            await self.tell(socket, "credit", id=stream_id, max_bytes=1 << 20)
            frame = [json.loads(line) for line in str(await socket.recv()).split("\n")]
            while frame[0]["type"] == "mark":
                frame = [json.loads(line) for line in str(await socket.recv()).split("\n")]
            assert sequences(frame) == list(range(2, 22))

    async def test_a_client_that_vanishes_while_it_is_told_leaves_nothing(
        self, client: Client
    ) -> None:
        stream_id = (await client.init(durability="memory"))["stream_id"]
        async with client.ws(stream_id, subprotocols=MSP, close_timeout=0.1) as socket:
            await self.said(socket, "welcome")
            await self.tell(socket, "subscribe", id=stream_id)
            await self.said(socket, "subscribed")
            for n in range(300):
                await self.tell(socket, "ping", n=n)
                await self.tell(socket, "stream_data", payload={"data": "x" * 1000})
            socket.transport.abort()
        async with asyncio.timeout(10):
            while client.hub.statistics().subscriptions:
                await asyncio.sleep(0.01)
        assert (await client.hub.lane(stream_id)).state == "open"

    async def test_a_publisher_is_told_what_is_appended(self, client: Client) -> None:
        stream_id = (await client.init(durability="memory"))["stream_id"]
        async with client.ws(stream_id, subprotocols=MSP) as socket:
            await self.said(socket, "welcome")
            for seq in (1, 2, 3, 3, 2, 1):
                producer = {"id": "p", "epoch": 0, "seq": seq}
                await self.tell(socket, "stream_data", payload={"data": seq}, producer=producer)
            seen = 0
            while seen < 3:
                told = await self.said(socket, "published")
                assert told["durable"] is False
                assert told["sequence"] == told["producer_seq"] + 1
                seen = max(seen, told["producer_seq"])
        await client.hub.end_stream(stream_id)
        assert (await client.hub.lane(stream_id)).chunks == 3


async def test_a_hundred_subscribers_get_the_same(client: Client) -> None:
    stream_id = (await client.init())["stream_id"]

    async def follow() -> list[int]:
        async with client.ws(stream_id, "?from=start") as socket:
            joined.release()
            return sequences(await received(socket))

    joined = asyncio.Semaphore(0)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(follow()) for _ in range(100)]
        for _ in range(100):
            await joined.acquire()
        await client.numbers(stream_id, range(50))
        await client.end(stream_id)
    assert all(task.result() == list(range(1, 53)) for task in tasks)
    assert client.hub.statistics().subscriptions == 0


async def test_a_slow_reader_costs_one_batch_and_is_cut(client: Client) -> None:
    stream_id = (await client.init(durability="memory"))["stream_id"]
    body = "x" * 60_000
    async with client.ws(stream_id, "?from=start", max_queue=1, close_timeout=0.1) as slow:
        for _ in range(40):  # 12 MB in all: far more than sockets hold
            session_drafts = [data_draft(body) for _ in range(5)]
            await client.hub.publish(stream_id, session_drafts)
            assert client.hub.statistics().held_bytes <= 256 * 1024
        await client.hub.publish(stream_id, [data_draft(n) for n in range(3)])
        while client.hub.statistics().subscriptions:  # until it is cut
            await asyncio.sleep(0.01)
        got = sequences(await received(slow))
    assert got == list(range(1, len(got) + 1))
    async with client.ws(stream_id, f"?from={len(got) + 1}", close_timeout=0.1) as again:
        assert json.loads(await again.recv())["type"] == "stream_start"
        assert json.loads(await again.recv())["sequence"] == len(got) + 1


async def test_a_slow_sse_reader_costs_one_batch_and_gets_everything(client: Client) -> None:
    stream_id = (await client.init(durability="memory"))["stream_id"]
    stream = await client.sse(stream_id)
    for _ in range(40):  # 12 MB in all: far more than sockets hold
        await client.hub.publish(stream_id, [data_draft("x" * 60_000) for _ in range(5)])
        assert client.hub.statistics().held_bytes <= 256 * 1024
    await client.hub.end_stream(stream_id)
    found = [event for event in await stream.events() if event[0].startswith("stream_")]
    assert [json.loads(data)["sequence"] for _, _, data in found] == list(range(1, 203))


async def test_draining_sends_1012_and_ends_sse(
    hub: StreamingConnectionManager, transport: Transport
) -> None:
    async with stream_server(hub, transport=transport) as port:
        session = await hub.create_stream("a", "p")
        stream = await SseReader.open(port, f"/api/v1/streams/{session.stream_id}/sse")
        await stream.event()
        await stream.event()
        url = f"ws://127.0.0.1:{port}/ws/streams/{session.stream_id}"
        async with connect(url) as socket:
            await socket.recv()
            await hub.drain()
            await received(socket)
            assert socket.close_code == 1012
        assert await stream.event() is None


def _written(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def _started(database: Path, port_file: Path) -> tuple[asyncio.subprocess.Process, int]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, streams_server.__file__, str(database), str(port_file)
    )
    async with asyncio.timeout(30):
        while not _written(port_file):
            assert process.returncode is None
            await asyncio.sleep(0.02)
    return process, int(_written(port_file))


async def test_kill_9_loses_nothing_acknowledged_and_readers_resume(tmp_path: Path) -> None:
    database = tmp_path / "streams.db"
    process, port = await _started(database, tmp_path / "first.port")
    acknowledged = 0
    got: list[int] = []
    last: str | None = None
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        body = {"agent_id": "a", "pin_name": "p"}
        opened = (await http.post("/api/v1/streams/init", json=body)).json()
        gone = await http.post("/api/v1/streams/init", json={**body, "durability": "memory"})
        path = f"/api/v1/streams/{opened['stream_id']}"
        stream = await SseReader.open(port, f"{path}/sse")

        async def follow() -> None:
            nonlocal last
            while (event := await stream.event()) is not None:
                last = event[1] or last
                if event[0].startswith("stream_"):
                    got.append(json.loads(event[2])["sequence"])
                if len(got) == 40:
                    process.send_signal(signal.SIGKILL)

        async with asyncio.TaskGroup() as group:
            group.create_task(follow())
            with suppress(httpx2.TransportError):
                while True:
                    producer = {"id": "p", "epoch": 0, "seq": acknowledged + 1}
                    record = {"data": acknowledged + 1, "producer": producer}
                    (await http.post(f"{path}/records", json=record)).raise_for_status()
                    acknowledged += 1
    await process.wait()
    assert acknowledged >= 38
    process, port = await _started(database, tmp_path / "second.port")
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            lost = (await http.get(f"/api/v1/streams/{gone.json()['stream_id']}")).json()
            assert (lost["epoch"] > gone.json()["epoch"], lost["chunks"]) == (True, 0)
            assert (await http.get(path)).json()["chunks"] >= acknowledged
            for seq in (acknowledged + 1, acknowledged + 2):  # the first may be there already
                producer = {"id": "p", "epoch": 0, "seq": seq}
                (
                    await http.post(f"{path}/records", json={"data": seq, "producer": producer})
                ).raise_for_status()
            (await http.post(f"{path}/records", json={"type": "stream_end"})).raise_for_status()
            stream = await SseReader.open(port, f"{path}/sse", last_event_id=last)
            values: list[int] = []
            for name, _, data in await stream.events():
                if name.startswith("stream_"):
                    got.append(json.loads(data)["sequence"])
            replay = await SseReader.open(port, f"{path}/sse")
            for name, _, data in await replay.events():
                if name == "stream_data":
                    values.append(json.loads(data)["payload"]["data"])
        assert got == list(range(1, acknowledged + 5))
        assert values == list(range(1, acknowledged + 3))
    finally:
        process.terminate()
        await process.wait()
