"""A real browser for tests: headless Chromium over its DevTools protocol, one page, `evaluate`."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
]


def chromium_or_skip() -> str:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program:
        return program
    if os.environ.get("MENTATLAB_CI"):
        pytest.fail("CI must have a browser: apt-get install chromium")
    pytest.skip("no chromium on the PATH (apt-get install chromium)")


class Page:
    def __init__(self, socket: ClientConnection, session: str) -> None:
        self._socket = socket
        self._session = session
        self._calls = 0

    async def goto(self, url: str) -> None:
        await self._call("Page.enable")
        await self._call("Page.navigate", url=url)
        while await self.evaluate("location.href + ' ' + document.readyState") != f"{url} complete":
            await asyncio.sleep(0.02)

    async def evaluate(self, expression: str) -> Any:
        """The JSON value of an expression; a promise is awaited."""
        answer = await self._call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"])
        return answer["result"].get("value")

    async def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._calls += 1
        return await _call(self._socket, self._calls, method, params, sessionId=self._session)


async def _call(
    socket: ClientConnection, number: int, method: str, params: dict[str, Any], **session: str
) -> dict[str, Any]:
    message = {"id": number, "method": method, "params": params, **session}
    await socket.send(json.dumps(message))
    async for text in socket:
        message = json.loads(text)
        if message.get("id") == number:
            assert "error" not in message, message
            return message["result"]
    raise AssertionError("the browser closed the connection")


@asynccontextmanager
async def browser_page(profile: Path) -> AsyncIterator[Page]:
    process = await asyncio.create_subprocess_exec(
        chromium_or_skip(),
        *FLAGS,
        f"--user-data-dir={profile}",
        "about:blank",
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        address = await asyncio.wait_for(_devtools_address(process), 30)
        async with connect(address, max_size=None) as socket:
            target = await _call(socket, 0, "Target.createTarget", {"url": "about:blank"})
            attach = {"targetId": target["targetId"], "flatten": True}
            session = await _call(socket, 0, "Target.attachToTarget", attach)
            yield Page(socket, session["sessionId"])
    finally:
        process.terminate()
        await process.communicate()


async def _devtools_address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    async for line in process.stderr:
        if b"DevTools listening on " in line:
            return line.decode().split(" on ", 1)[1].strip()
    raise AssertionError("the browser did not start")
