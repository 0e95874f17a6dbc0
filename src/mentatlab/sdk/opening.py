"""Media into an agent: opened in place, or read by ranges."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mentatlab.sdk.errors import AgentError

_BLOCK = 1 << 20


def open_reference(ref: Mapping[str, Any]) -> BinaryIO:
    """A seekable binary file: the local file of `path`, or `get` read by ranges."""
    path, url = ref.get("path"), ref.get("get")
    if path and not (url and not Path(path).exists()):
        return Path(path).open("rb")
    if url:
        from mentatlab.sdk.block_reader import open_url  # 40 ms that most agents never need

        return open_url(url)
    raise AgentError(
        "REFERENCE_INVALID",
        "this is not a media reference that can be opened here",
        hint="it needs `path` (a local file) or `get` (a URL)",
    )


class AsyncMedium:
    """A medium whose reads are awaited; by one task at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    async def read(self, size: int = -1) -> bytes:
        """At most so many bytes; all that follow when negative; b"" at the end."""
        return await asyncio.to_thread(self._file.read, size)

    async def seek(self, offset: int, whence: int = 0) -> int:
        return await asyncio.to_thread(self._file.seek, offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """From where it stands, in blocks of 1 MiB."""
        while block := await self.read(_BLOCK):
            yield block


class OpenMedia:
    """`with` gives the file, `async with` one that is awaited."""

    def __init__(self, ref: Mapping[str, Any]) -> None:
        self._ref = ref
        self._file: BinaryIO | None = None

    def __enter__(self) -> BinaryIO:
        self._file = open_reference(self._ref)
        return self._file

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    async def __aenter__(self) -> AsyncMedium:
        return AsyncMedium(await asyncio.to_thread(self.__enter__))

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.__exit__)
