"""Media out of an agent: files below its folder, or over HTTP where host and agent share none."""

import asyncio
import mimetypes
import shutil
from collections.abc import AsyncIterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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


async def send_output(
    url: str, token: str, name: str, source: Source, metadata: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The reference under which the server at `url` has stored it."""
    from mentatlab.sdk.sending import Server, send  # 40 ms that most agents never need

    mime = (metadata or {}).get("mimeType", "")
    with TemporaryDirectory() as folder:
        given: bytes | Path
        if isinstance(source, bytes | bytearray | memoryview):
            given = bytes(source)
        elif isinstance(source, str | Path):
            given = Path(source)
        else:
            given = await write_output(Path(folder), name, source)
        server = Server(url, token)
        answer = await asyncio.to_thread(send, server, given, filename=name, mime_type=mime)
    reference: dict[str, Any] = answer["reference"]
    found = {**(metadata or {}), **reference["ref"].get("metadata", {})}
    return {**reference, "ref": {**reference["ref"], "metadata": found}}


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
