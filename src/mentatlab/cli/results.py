"""What came out of a run: for the eye, or as files."""

import asyncio
import mimetypes
from pathlib import Path
from typing import Any

import msgspec

from mentatlab.cli.progress import text_of
from mentatlab.protocol.media import is_reference
from mentatlab.protocol.records import StreamChunk
from mentatlab.protocol.values import is_object
from mentatlab.sdk.client import AsyncClient, Reset

SHOWN = 2000
"""Characters of a value that are printed; `--json` and `--out` give all."""


async def describe(client: AsyncClient, value: Any) -> str:
    """A value as a person reads it: streamed text joined, media by address and facts."""
    if is_stream(value):
        elements = await elements_of(client, value["stream_id"])
        if elements and all(text_of(element) for element in elements):
            return _cut("".join(text_of(element) for element in elements).strip())
        return f"{len(elements)} elements in {value['stream_id']}"
    if is_reference(value):
        facts = value["ref"].get("metadata", {})
        return " ".join([value["ref"]["url"], *(f"{k}={v}" for k, v in facts.items())])
    return _cut(value if isinstance(value, str) else _indented(value))


def is_stream(value: Any) -> bool:
    return is_object(value) and value.get("type") == "stream" and "stream_id" in value


def compact(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _indented(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text)} characters)"


async def elements_of(client: AsyncClient, stream_id: str) -> list[Any]:
    """The standing elements of a stream that has ended: JSON values and references."""
    found: list[tuple[int, Any]] = []
    async for record in client.stream(stream_id):
        match record:
            case StreamChunk():
                element = record.payload.get("ref", record.payload.get("data"))
                found.append((record.sequence, element))
            case Reset(keep):
                found = [(sequence, element) for sequence, element in found if sequence <= keep]
            case _:
                pass
    return [element for _, element in found]


async def write_outputs(
    client: AsyncClient, outputs: dict[str, Any], folder: Path
) -> dict[str, str]:
    """One file for each output (a folder for a stream of media); name → path."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    return {
        name: str(await _write(client, value, folder / _safe(name)))
        for name, value in outputs.items()
    }


def _safe(name: str) -> str:
    return name.replace("/", "_").lstrip(".")


async def _write(client: AsyncClient, value: Any, path: Path) -> Path:
    if is_stream(value):
        value = await elements_of(client, value["stream_id"])
        if value and all(is_reference(element) for element in value):
            return await _write_media_list(client, value, path)
    if is_reference(value):
        return await client.download_to(value, path.with_name(path.name + suffix_of(value)))
    if isinstance(value, str):
        path = path.with_name(f"{path.name}.txt")
        path.write_text(value)
    else:
        path = path.with_name(f"{path.name}.json")
        path.write_text(_indented(value) + "\n")
    return path


async def _write_media_list(client: AsyncClient, media: list[Any], folder: Path) -> Path:
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    for number, reference in enumerate(media, 1):
        await client.download_to(reference, folder / f"{number:04}{suffix_of(reference)}")
    return folder


def suffix_of(reference: dict[str, Any]) -> str:
    """`.jpg` of an image/jpeg; "" when the type is not known."""
    mime = reference["ref"].get("metadata", {}).get("mimeType", "")
    return mimetypes.guess_extension(mime) or ""
