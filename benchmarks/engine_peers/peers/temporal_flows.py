"""Temporal: a workflow of activities, on its dev server with a database file."""

import asyncio
import socket
import subprocess
import sys
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import measure
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

READY_S = 30
QUEUE = "bench"


@activity.defn
async def step(text: str) -> str:
    return text


@workflow.defn
class Chain:
    @workflow.run
    async def run(self, text: str, steps: int) -> str:
        for _ in range(steps):
            text = await workflow.execute_activity(
                step, text, start_to_close_timeout=timedelta(seconds=60)
            )
        return text


async def program(rounds: int, seconds: float, folder: Path) -> measure.Measured:
    port = _free_port()
    command = [Path(sys.executable).with_name("temporal"), "server", "start-dev", "--headless"]
    options = ["--port", str(port), "--db-filename", folder / "temporal.db"]
    with subprocess.Popen(  # noqa: ASYNC220 (nothing else runs yet)
        [*command, *options, "--log-level", "error"]
    ) as server:
        try:
            client = await _connected(f"127.0.0.1:{port}")
            async with Worker(client, task_queue=QUEUE, workflows=[Chain], activities=[step]):
                found = await measure.measured(_runs(client), rounds, seconds)
        finally:
            server.terminate()
    found.version = version("temporalio")
    return found


def _runs(client: Client) -> measure.Run:
    numbers = iter(range(10**9))

    async def run(steps: int) -> str:
        return await client.execute_workflow(
            Chain.run, args=[measure.WORD, steps], id=f"run-{next(numbers)}", task_queue=QUEUE
        )

    return run


async def _connected(address: str) -> Client:
    async with asyncio.timeout(READY_S):
        while True:
            try:
                return await Client.connect(address)
            except RuntimeError:
                await asyncio.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    measure.main(program)
