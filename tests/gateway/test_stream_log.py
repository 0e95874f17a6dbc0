"""The log as an answer: what it reads with is let go, whenever the client leaves."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.types import Message

from mentatlab.gateway.stream_log import LogReading, LogResponse
from mentatlab.protocol.records import data_draft
from mentatlab.streams import StreamingConnectionManager

SCOPE = {"type": "http", "asgi": {"spec_version": "2.3"}, "headers": []}


@pytest.fixture
async def hub() -> AsyncIterator[StreamingConnectionManager]:
    hub = StreamingConnectionManager()
    yield hub
    await hub.aclose()


async def answer(hub: StreamingConnectionManager) -> LogResponse:
    session = await hub.create_stream("a", "b")
    await session.publish(data_draft(1))
    return LogResponse(LogReading(await hub.attach(session.stream_id), 2), headers={})


async def test_a_client_that_left_before_the_first_piece(hub: StreamingConnectionManager) -> None:
    response = await answer(hub)

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        await asyncio.Event().wait()

    await response(SCOPE, gone, send)
    assert hub.statistics().subscriptions == 0


async def test_an_answer_to_its_end(hub: StreamingConnectionManager) -> None:
    response, sent = await answer(hub), list[bytes]()

    async def stays() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    await response(SCOPE, stays, send)
    assert b"".join(sent).count(b"\n") == 2
    assert hub.statistics().subscriptions == 0
