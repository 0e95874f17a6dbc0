"""Authority while a connection lasts: it ends with its credential, and never grows by itself."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from tests.support.guarded_server import (
    ELSEWHERE,
    HOME_KEY,
    TOKEN_SECRET,
    Guarded,
    bearer,
    claims,
    guarded,
    token,
)
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from mentatlab.gateway import credentials
from mentatlab.gateway.server import Transport
from mentatlab.protocol.records import data_draft
from mentatlab.protocol.tokens import mint
from mentatlab.streams import StreamingConnectionManager, open_hub

MSP = [Subprotocol("msp.v1+json")]


@pytest.fixture
async def hub() -> AsyncIterator[StreamingConnectionManager]:
    hub = await open_hub(None)
    yield hub
    await hub.aclose()


@pytest.fixture(params=["picows", "portable"])
def transport(request: pytest.FixtureRequest) -> Transport:
    return request.param


class Socket:
    """A WebSocket that speaks `msp.v1+json`."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def say(self, type_: str, **fields: Any) -> None:
        await self._connection.send(json.dumps({"type": type_, **fields}))

    async def heard(self, type_: str) -> dict[str, Any]:
        """The next message of that type; others are passed over."""
        async with asyncio.timeout(10):
            while True:
                for line in str(await self._connection.recv()).split("\n"):
                    if (message := json.loads(line))["type"] == type_:
                        return message

    async def until_closed(self) -> tuple[int, list[dict[str, Any]]]:
        """The close code, and what came before it."""
        came: list[dict[str, Any]] = []
        try:
            async with asyncio.timeout(10):
                while True:
                    text = str(await self._connection.recv())
                    came += [json.loads(line) for line in text.split("\n")]
        except ConnectionClosed:
            pass
        assert self._connection.close_code is not None
        return self._connection.close_code, came


@asynccontextmanager
async def msp(server: Guarded, id_: str, headers: dict[str, str]) -> AsyncGenerator[Socket]:
    url = f"ws://127.0.0.1:{server.port}/ws/streams/{id_}"
    async with connect(url, additional_headers=headers, subprotocols=MSP) as connection:
        yield Socket(connection)


async def opened(hub: StreamingConnectionManager, *values: Any) -> str:
    id_ = (await hub.create_stream("a", "b", external=True)).stream_id
    if values:
        await hub.publish(id_, [data_draft(value) for value in values])
    return id_


async def test_a_token_that_ends_while_a_reader_waits_is_given_nothing_more(
    hub: StreamingConnectionManager, transport: Transport
) -> None:
    id_ = await opened(hub, *range(9))
    async with (
        guarded(hub, transport, **ELSEWHERE) as server,
        msp(server, id_, token(id_, "sub", seconds=1.5)) as socket,
    ):
        await socket.say("subscribe", id=id_, **{"from": "start"}, max_bytes=0)
        await socket.heard("subscribed")
        code, came = await socket.until_closed()
    assert code == 4003
    assert [message for message in came if message["type"].startswith("stream_")] == []


async def test_a_revoked_key_is_given_nothing_more_of_the_log(
    hub: StreamingConnectionManager, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "RECHECK_S", 0.0)
    id_ = await opened(hub, *range(9))
    async with (
        guarded(hub, transport, **ELSEWHERE) as server,
        msp(server, id_, bearer("ml_reader_key")) as socket,
    ):
        await socket.say("subscribe", id=id_, **{"from": "start"}, max_bytes=0)
        await socket.heard("subscribed")
        server.keys.clear()
        await socket.say("credit", id=id_, max_bytes=1_000_000)
        error = await socket.heard("error")
    assert (error["id"], error["code"], error["close"]) == (id_, "UNAUTHENTICATED", 4101)


async def test_auth_renews_in_band(hub: StreamingConnectionManager, transport: Transport) -> None:
    id_ = await opened(hub, 1)
    async with (
        guarded(hub, transport, **ELSEWHERE) as server,
        msp(server, id_, token(id_, "sub", seconds=2)) as socket,
    ):
        await socket.say("subscribe", id=id_, **{"from": "start"})
        await socket.heard("stream_data")
        later = claims(id_, "sub", seconds=600)
        await socket.say("auth", token=mint(later, TOKEN_SECRET))
        assert (await socket.heard("auth"))["expires"] == later.expires
        await hub.publish(id_, [data_draft(2)])
        assert (await socket.heard("stream_data"))["payload"]["data"] == 2


async def test_auth_ends_what_the_new_token_does_not_cover(
    hub: StreamingConnectionManager, transport: Transport
) -> None:
    mine, other = await opened(hub), await opened(hub)
    async with (
        guarded(hub, transport, **ELSEWHERE) as server,
        msp(server, mine, bearer(HOME_KEY)) as socket,
    ):
        for id_ in (mine, other):
            await socket.say("subscribe", id=id_)
            await socket.heard("subscribed")
        await socket.say("auth", token=mint(claims(mine, "sub"), TOKEN_SECRET))
        error = await socket.heard("error")
        assert (error["id"], error["close"]) == (other, 4103)
        await socket.heard("auth")
        await hub.publish(other, [data_draft("not for you")])
        await hub.publish(mine, [data_draft("for you")])
        assert (await socket.heard("stream_data"))["payload"]["data"] == "for you"
        await socket.say("stream_data", payload={"data": 1})
        error = await socket.heard("error")
        assert (error["id"], error["close"]) == (mine, 4103)
    assert (await hub.lane(mine)).head == 2


@pytest.mark.parametrize(
    ("said", "close"), [("v1.a.b", 4101), ("", 4101), ("ml_unknown_key", 4101), ("ended", 4003)]
)
async def test_auth_with_nonsense_changes_nothing(
    hub: StreamingConnectionManager, transport: Transport, said: str, close: int
) -> None:
    id_ = await opened(hub)
    if said == "ended":
        said = mint(claims(id_, "sub", seconds=-9), TOKEN_SECRET)
    async with (
        guarded(hub, transport, **ELSEWHERE) as server,
        msp(server, id_, token(id_, "sub")) as socket,
    ):
        await socket.say("auth", token=said)
        assert (await socket.heard("error"))["close"] == close
        await socket.say("subscribe", id=id_)
        await socket.heard("subscribed")


async def test_a_stranger_says_hello(hub: StreamingConnectionManager, transport: Transport) -> None:
    id_ = await opened(hub)
    async with guarded(hub, transport, **ELSEWHERE) as server:
        async with msp(server, id_, {}) as socket:
            await socket.say("hello", token=mint(claims(id_, "sub"), TOKEN_SECRET))
            assert (await socket.heard("welcome"))["id"] == id_
        async with msp(server, id_, {}) as socket:
            await socket.say("subscribe", id=id_)
            assert await socket.until_closed() == (4101, [])


async def test_a_token_to_publish_opens_a_connection_that_reads_nothing(
    hub: StreamingConnectionManager, transport: Transport
) -> None:
    id_ = await opened(hub)
    async with (
        guarded(hub, transport, **ELSEWHERE) as server,
        msp(server, id_, token(id_, "pub")) as socket,
    ):
        await socket.heard("welcome")
        await socket.say("stream_data", payload={"data": 1})
        assert (await socket.heard("published"))["sequence"] == 2
        await socket.say("subscribe", id=id_)
        assert (await socket.heard("error"))["close"] == 4103


async def test_too_many_control_messages_close(
    hub: StreamingConnectionManager, transport: Transport
) -> None:
    id_ = await opened(hub)
    async with guarded(hub, transport, rate=0.01, burst=9) as server:
        async with msp(server, id_, bearer(HOME_KEY)) as socket:
            for _ in range(12):
                await socket.say("ping")
            code, came = await socket.until_closed()
        assert code == 4005
        assert len([message for message in came if message["type"] == "pong"]) == 9
        async with msp(server, id_, {}) as socket:  # the user at the machine has no rate
            for n in range(50):
                await socket.say("ping", n=n)
            while (await socket.heard("pong"))["n"] < 49:
                pass


async def test_too_many_records_are_not_read_for_a_while(
    hub: StreamingConnectionManager, transport: Transport
) -> None:
    id_ = await opened(hub)
    async with (
        guarded(hub, transport, record_rate=20) as server,
        msp(server, id_, bearer(HOME_KEY)) as socket,
    ):
        for _ in range(60):
            await socket.say("stream_data", payload={"data": 1})
        assert (await socket.heard("throttle"))["retry_after_ms"] > 0
        await socket.say("stream_data", payload={"data": "later"})
        while (await socket.heard("published"))["sequence"] < 62:
            pass


async def test_sse_ends_with_its_token(
    hub: StreamingConnectionManager, transport: Transport
) -> None:
    id_ = await opened(hub, 1)
    async with guarded(hub, transport, **ELSEWHERE) as server:
        url = f"http://127.0.0.1:{server.port}/api/v1/streams/{id_}/sse"
        for encoding in ("identity", "gzip"):
            headers = {**token(id_, "sub", seconds=1.5), "Accept-Encoding": encoding}
            async with (
                httpx2.AsyncClient(timeout=10) as http,
                http.stream("GET", url, headers=headers) as answer,
            ):
                names = [
                    line.removeprefix("event: ")
                    async for line in answer.aiter_lines()
                    if line.startswith("event: ")
                ]
            assert names == ["hello", "stream_start", "stream_data"]


async def test_a_log_that_is_read_for_longer_than_its_token_holds_is_cut(
    hub: StreamingConnectionManager,
) -> None:
    """The answer has no end then: nobody takes the part for the whole."""
    id_ = (await hub.create_stream("a", "b", durability="memory", external=True)).stream_id
    for _ in range(40):
        await hub.publish(id_, [data_draft("x" * 1_000_000)])
    async with guarded(hub, "auto", **ELSEWHERE) as server:
        headers = {**token(id_, "sub", seconds=1.5), "Accept-Encoding": "identity"}
        url = f"http://127.0.0.1:{server.port}/api/v1/streams/{id_}/log"
        async with (
            httpx2.AsyncClient(timeout=10, headers=headers) as http,
            http.stream("GET", url) as answer,
        ):
            assert answer.status_code == 200
            pieces = answer.aiter_raw()
            await anext(pieces)
            while (await http.get(url.removesuffix("/log"))).status_code == 200:
                await asyncio.sleep(0.05)
            with pytest.raises(httpx2.RemoteProtocolError):
                async for _ in pieces:
                    pass
