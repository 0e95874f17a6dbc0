"""Media in and out of an agent: references are opened in place or by range, outputs are files."""

import asyncio
import mimetypes
import shutil
from collections.abc import AsyncIterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mentatlab.sdk.errors import AgentError


def open_reference(ref: Mapping[str, Any]) -> BinaryIO:
    """A seekable binary file: the local file of `path`, or `get` read by ranges."""
    if path := ref.get("path"):
        return Path(path).open("rb")
    if url := ref.get("get"):
        from mentatlab.sdk.block_reader import open_url  # 40 ms that most agents never need

        return open_url(url)
    raise AgentError(
        "REFERENCE_INVALID",
        "this is not a media reference that can be opened here",
        hint="it needs `path` (a local file) or `get` (a URL)",
    )


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
