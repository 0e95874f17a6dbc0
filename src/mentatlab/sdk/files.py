"""Media in and out of an agent: references are opened in place or by range, outputs are files."""

import asyncio
import io
import mimetypes
import os
import shutil
from collections.abc import AsyncIterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from mentatlab.sdk.errors import AgentError

BLOCK = 1 << 20
"""Bytes of one range request."""

_TIMEOUT_S = 30.0


def open_reference(ref: Mapping[str, Any]) -> BinaryIO:
    """A seekable binary file: the local file of `path`, or `get` read by ranges of 1 MiB."""
    if path := ref.get("path"):
        return Path(path).open("rb")
    if url := ref.get("get"):
        return cast("BinaryIO", io.BufferedReader(RangeFile(url), BLOCK))
    raise AgentError(
        "REFERENCE_INVALID",
        "this is not a media reference that can be opened here",
        hint="it needs `path` (a local file) or `get` (a URL)",
    )


class RangeFile(io.RawIOBase):
    """Read-only, seekable bytes behind a URL that answers `Range` requests."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._position = 0
        first, self._size = _fetch(url, 0, BLOCK)
        self._block_start, self._block = 0, first

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._size:
            return 0
        start = self._position - self._block_start
        if not 0 <= start < len(self._block):
            self._block, _ = _fetch(self._url, self._position, BLOCK)
            self._block_start, start = self._position, 0
        part = self._block[start : start + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)


def _fetch(url: str, start: int, length: int) -> tuple[bytes, int]:
    """Bytes from `start`, at most `length`, and the size of the whole."""
    # Imported here: 40 ms that most agents never need.
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    wanted = Request(url, headers={"Range": f"bytes={start}-{start + length - 1}"})
    try:
        with urlopen(wanted, timeout=_TIMEOUT_S) as response:
            if response.status == 206:
                return response.read(), int(response.headers["Content-Range"].rpartition("/")[2])
            if start == 0 and int(response.headers.get("Content-Length", -1)) == 0:
                return b"", 0
    except HTTPError as error:
        error.close()
        if error.code == 416:  # an empty object has no range
            return b"", 0
        raise _download_failed(f"HTTP {error.code}") from error
    except OSError as error:
        raise _download_failed(str(error)) from error
    raise _download_failed("the server does not answer ranges")


def _download_failed(why: str) -> AgentError:
    return AgentError("REFERENCE_NOT_FOUND", f"the medium could not be read: {why}", retryable=True)


Source = bytes | bytearray | memoryview | str | Path | AsyncIterable[bytes]


async def write_output(folder: Path, name: str, source: Source) -> Path:
    """The source as a regular file in `folder`. A file that is there already is taken as it is."""
    if isinstance(source, AsyncIterable):
        target = await asyncio.to_thread(_target, folder, name)
        with await asyncio.to_thread(target.open, "wb") as file:
            async for block in source:
                await asyncio.to_thread(file.write, block)
        return target
    return await asyncio.to_thread(_write, folder, name, source)


def _target(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def _write(folder: Path, name: str, source: bytes | bytearray | memoryview | str | Path) -> Path:
    if not isinstance(source, str | Path):
        target = _target(folder, name)
        target.write_bytes(source)
        return target
    given = Path(source)
    if given.resolve().is_relative_to(folder.resolve()):
        return given
    return Path(shutil.copyfile(given, _target(folder, name)))


def suffix_for(source: Source, metadata: Mapping[str, Any] | None) -> str:
    """`.jpg`, … by the given MIME type, else the source's own; may be empty."""
    mime = (metadata or {}).get("mimeType")
    guessed = mimetypes.guess_extension(mime) if isinstance(mime, str) else None
    return guessed or (Path(source).suffix if isinstance(source, str | Path) else "")
