"""An HTTP server that answers what a test has written down, to see how a client takes it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import NamedTuple


class Said(NamedTuple):
    status: int
    body: bytes = b""


class Scripted:
    """Answers in turn, the last one for ever; None closes the connection instead."""

    def __init__(self, *answers: Said | None) -> None:
        self._answers = list(answers)
        self.requests: list[bytes] = []  # request lines
        self.bodies: list[bytes] = []
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await self._answer(reader, writer):
                pass
        writer.close()

    async def aclose(self) -> None:
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next((int(x[15:]) for x in lines if x.startswith(b"content-length:")), 0)
        self.requests.append(head.split(b"\r\n")[0])
        self.bodies.append(await reader.readexactly(length))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if answer is None:
            return False
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (answer[0], len(answer[1])))
        writer.write(b"" if head.startswith(b"HEAD") else answer.body)
        await writer.drain()
        return True


@contextlib.asynccontextmanager
async def scripted(*answers: Said | None) -> AsyncGenerator[Scripted]:
    script = Scripted(*answers)
    server = await asyncio.start_server(script._serve, "127.0.0.1", 0)
    script.port = server.sockets[0].getsockname()[1]
    async with server, contextlib.aclosing(script):
        yield script
