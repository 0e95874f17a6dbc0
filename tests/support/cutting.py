"""A network that cuts: a TCP proxy that breaks each connection after a random number of bytes."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit


class Cutter:
    """`cuts`: how many connections it has broken. `whole` from now on it breaks none."""

    def __init__(self, url: str, seed: int, most_bytes: int) -> None:
        self._target, self._most_bytes = urlsplit(url), most_bytes
        self._random = random.Random(seed)
        self.cuts = 0
        self.whole = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, to_server = await asyncio.open_connection(
            self._target.hostname, self._target.port
        )
        left = [self._random.randrange(self._most_bytes)]  # both ways together
        ways = [
            asyncio.create_task(self._pass(reader, to_server, left)),
            asyncio.create_task(self._pass(upstream, writer, left)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.transport.abort()
            to_server.transport.abort()

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, left: list[int]
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while block := await source.read(4096):
                if not self.whole:
                    block = block[: left[0]]
                    left[0] -= len(block)
                sink.write(block)
                await sink.drain()
                if left[0] <= 0:
                    self.cuts += 1
                    return


@contextlib.asynccontextmanager
async def cutting(url: str, *, seed: int, most_bytes: int) -> AsyncGenerator[tuple[str, Cutter]]:
    """Its URL; connections live for 0 to `most_bytes` bytes, by `seed`."""
    cutter = Cutter(url, seed, most_bytes)
    server = await asyncio.start_server(cutter.serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", cutter
    finally:
        cutter.whole = True
        server.close()
