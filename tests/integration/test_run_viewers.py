"""Viewers over a real server while many short runs go: nobody misses an event or gets one twice."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.gateway.conftest import ECHO, ECHO_FLOW, write_agent

from mentatlab.app import Settings, running
from mentatlab.sdk.client import AsyncClient

AT_A_TIME = 8
WARM = ECHO + "execution: {warm: true, concurrency: 8}\n"
WARM_MAIN = """\
from mentatlab.sdk import Agent, run


class Echo(Agent):
    concurrency = 8

    async def process(self, inputs):
        return {"text": inputs["text"]}


run(Echo)
"""


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    write_agent(tmp_path / "agents" / "echo", WARM, WARM_MAIN)
    settings = Settings(
        home=tmp_path / "home", port=0, agent_dirs=(tmp_path / "agents",), rate=0.0, burst=0.0
    )
    async with running(settings) as server:
        yield server.url


async def whole(client: AsyncClient, run_id: str) -> list[int]:
    """Attached before, or while, the run goes."""
    return [event["seq"] async for event in client.events(run_id)]


async def cut_off(http: httpx2.AsyncClient, run_id: str) -> list[int]:
    """Loses the line after every event, and comes back with the last id."""
    seen: list[int] = []
    while True:
        headers = {"Last-Event-ID": str(seen[-1])} if seen else {}
        path = f"/api/v1/runs/{run_id}/events"
        async with http.stream("GET", path, headers=headers) as answer:
            if answer.status_code == 204:
                return seen
            async for line in answer.aiter_lines():
                if line.startswith("id: "):
                    seen.append(int(line[4:]))
                    break


@pytest.mark.parametrize("runs", [20, pytest.param(200, marks=pytest.mark.slow)])
async def test_viewers_of_short_runs(url: str, runs: int):
    slots = asyncio.Semaphore(AT_A_TIME)
    async with AsyncClient(url) as client, httpx2.AsyncClient(base_url=url, timeout=60) as http:

        async def one(number: int) -> None:
            async with slots:
                run_id = (await client.submit(ECHO_FLOW, {"words": str(number)}))["run_id"]
                cut = number % 10 == 0
                viewers = [whole(client, run_id), *([cut_off(http, run_id)] if cut else [])]
                seen = await asyncio.gather(*viewers)
                late = await whole(client, run_id)  # after the end
                told: dict[str, Any] = await client.run(run_id)
            assert told["state"] == "succeeded"
            assert {stream["state"] for stream in told["streams"]} <= {"ended"}
            assert late == list(range(1, len(late) + 1))
            assert len(late) >= 5
            assert all(events == late for events in seen)

        async with asyncio.timeout(100), asyncio.TaskGroup() as tasks:
            for number in range(runs):
                tasks.create_task(one(number))


async def test_a_viewer_of_a_run_that_is_deleted_is_let_go(url: str):
    async with AsyncClient(url) as client, httpx2.AsyncClient(base_url=url, timeout=60) as http:
        run_id = (await client.submit(ECHO_FLOW, {"words": "x"}))["run_id"]
        await whole(client, run_id)
        await client.delete_run(run_id)
        gone = await http.get(f"/api/v1/runs/{run_id}/events")
        assert (gone.status_code, gone.json()["code"]) == (404, "RUN_NOT_FOUND")
