"""Prefect: a flow of tasks whose results are persisted, recorded by its server (SQLite)."""

import asyncio
import os
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import measure

READY_S = 60


async def program(rounds: int, seconds: float, folder: Path) -> measure.Measured:
    port = _free_port()
    os.environ |= {
        "PREFECT_HOME": str(folder),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_ENABLED": "false",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    with subprocess.Popen(  # noqa: ASYNC220 (nothing else runs yet)
        command, stdout=subprocess.DEVNULL
    ) as server:
        try:
            await _listening(port)
            found = await measure.measured(_runs(), rounds, seconds)
        finally:
            server.terminate()
    found.version = version("prefect")
    return found


def _runs() -> measure.Run:
    from prefect import flow, task  # it reads the environment when imported
    from prefect.cache_policies import NO_CACHE

    @task(cache_policy=NO_CACHE, persist_result=True)
    async def step(text: str) -> str:
        return text

    @flow(persist_result=True)
    async def chain(text: str, steps: int) -> str:
        for _ in range(steps):
            text = await step(text)
        return text

    return lambda steps: chain(measure.WORD, steps)


async def _listening(port: int) -> None:
    async with asyncio.timeout(READY_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
            else:
                writer.close()
                return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    measure.main(program)
