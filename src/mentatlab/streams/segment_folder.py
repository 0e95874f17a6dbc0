"""Sealed runs in a folder of this machine."""

import asyncio
import os
from pathlib import Path

from mentatlab.protocol.errors import Code, NotFound
from mentatlab.streams.segments import sync_folder


class SegmentFolder:
    """A `SegmentStore`; what it takes must lie on the same file system."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, name: str, path: Path) -> None:
        await asyncio.to_thread(self._put, name, path)

    async def read(self, name: str, offset: int, length: int) -> bytes:
        return await asyncio.to_thread(self._read, name, offset, length)

    async def delete(self, name: str) -> None:
        await asyncio.to_thread((self._folder / name).unlink, missing_ok=True)

    def _put(self, name: str, path: Path) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path.rename(self._folder / name)
        sync_folder(self._folder)

    def _read(self, name: str, offset: int, length: int) -> bytes:
        try:
            fd = os.open(self._folder / name, os.O_RDONLY)
        except FileNotFoundError as error:
            raise NotFound(Code.STREAM_LOST, f"there is no segment {name}") from error
        try:
            return os.pread(fd, length, offset)
        finally:
            os.close(fd)
