"""`mentatlab storage put` and `get` as processes that are interrupted."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.support.server import Up, environment, up

MB = 1 << 20
LARGE = random.Random(9).randbytes(30 * MB + 1)


class Stalling:
    """A TCP proxy that passes so many bytes, then nothing until `go`."""

    def __init__(self, url: str, after_bytes: int) -> None:
        self._target, self._left = urlsplit(url), after_bytes
        self.stalled, self.go = asyncio.Event(), asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, to_server = await asyncio.open_connection(
            self._target.hostname, self._target.port
        )
        ways = [
            asyncio.create_task(self._pass(reader, to_server)),
            asyncio.create_task(self._pass(upstream, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.transport.abort()
            to_server.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while block := await source.read(64 * 1024):
            self._left -= len(block)
            if self._left < 0 and not self.go.is_set():
                self.stalled.set()
                await self.go.wait()
            sink.write(block)
            await sink.drain()


@asynccontextmanager
async def stalling(url: str, *, after_bytes: int) -> AsyncGenerator[tuple[str, Stalling]]:
    proxy = Stalling(url, after_bytes)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", proxy
    finally:
        proxy.go.set()
        server.close()


@pytest.fixture
def server(tmp_path: Path):
    with up(tmp_path / "served") as server:
        yield server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "large.bin"
    path.write_bytes(LARGE)
    return path


async def started(home: Path, *arguments: object) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mentatlab", "storage", *map(str, arguments)),
        env=environment(home),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_an_upload_goes_on_in_another_process(
    server: Up, file: Path, tmp_path: Path, number: signal.Signals
) -> None:
    home = tmp_path / "mine"
    async with stalling(server.url, after_bytes=12 * MB) as (url, proxy), asyncio.timeout(60):
        first = await started(home, "put", file, "--server", url)
        await proxy.stalled.wait()
        first.send_signal(number)
        out, said = await first.communicate()
        assert first.returncode != 0
        assert out == b""
        if number == signal.SIGINT:
            assert f"storage put --resume {file}" in said.decode()
        proxy.go.set()
        second = await started(home, "put", "--resume", file, "--server", url)
        out, said = await second.communicate()
        assert second.returncode == 0, said.decode()
        third = await started(home, "get", out.decode().strip(), "--server", url)
        got, said = await third.communicate()
        assert got == LARGE, said.decode()
    assert os.listdir(home / "uploads") == []  # noqa: PTH208


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_a_download_goes_on_in_another_process(
    server: Up, file: Path, tmp_path: Path, number: signal.Signals
) -> None:
    home, copy = tmp_path / "mine", tmp_path / "copy.bin"
    async with asyncio.timeout(60):
        putting = await started(home, "put", file, "--server", server.url)
        ref = (await putting.communicate())[0].decode().strip()
        async with stalling(server.url, after_bytes=20 * MB) as (url, proxy):
            first = await started(home, "get", ref, "-o", copy, "--server", url)
            await proxy.stalled.wait()
            first.send_signal(number)
            _, said = await first.communicate()
            assert first.returncode != 0
            assert not copy.exists()
            if number == signal.SIGINT:
                assert f"the same command goes on with {copy}" in said.decode()
            part = copy.with_name(f"copy.bin.{ref}.part")
            assert LARGE.startswith(part.read_bytes())
            proxy.go.set()
            second = await started(home, "get", ref, "-o", copy, "--server", url)
            _, said = await second.communicate()
        assert second.returncode == 0, said.decode()
    assert copy.read_bytes() == LARGE
    assert not part.exists()
