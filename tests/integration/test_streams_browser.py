"""A real EventSource follows a stream across a restart: nothing twice, nothing missing."""

import asyncio
from pathlib import Path

from tests.support.browser import browser_page
from tests.support.streams_server import stream_server

from mentatlab.protocol.records import data_draft
from mentatlab.streams import open_hub

FOLLOW = """
    window.got = [];
    window.source = new EventSource(%r);
    for (const type of ["stream_start", "stream_data", "stream_end"])
        source.addEventListener(type, (e) => got.push(JSON.parse(e.data).sequence));
    1
"""


async def test_event_source_resumes_after_a_restart_and_stops_at_the_end(tmp_path: Path) -> None:
    database = tmp_path / "streams.db"
    async with browser_page(tmp_path / "profile") as page:

        async def until(expression: str) -> None:
            async with asyncio.timeout(30):
                while not await page.evaluate(expression):
                    await asyncio.sleep(0.02)

        hub = await open_hub(database)
        async with stream_server(hub) as port:
            session = await hub.create_stream("a", "p")
            await session.publish(*[data_draft(n) for n in range(5)])
            await page.goto(f"http://127.0.0.1:{port}/openapi.json")
            await page.evaluate(FOLLOW % f"/api/v1/streams/{session.stream_id}/sse")
            await until("got.length == 6")
        await session.publish(data_draft(5))  # while nobody is connected
        await hub.aclose()
        hub = await open_hub(database)
        async with stream_server(hub, port=port):
            await hub.publish(session.stream_id, [data_draft(6)])
            await until("got.length == 8")
            await hub.end_stream(session.stream_id)
            await until("source.readyState == EventSource.CLOSED")  # the 204
            assert await page.evaluate("got") == list(range(1, 10))
        await hub.aclose()
