"""`mentatlab streams`."""

import asyncio
import mimetypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from mentatlab.cli.connect import Target, connected, target_options
from mentatlab.cli.output import asynchronous, emit_line, json_option, note, wants_json
from mentatlab.cli.progress import text_of
from mentatlab.cli.publish import publish
from mentatlab.cli.results import compact
from mentatlab.protocol.records import StreamChunk
from mentatlab.sdk.client import Element, Reset
from mentatlab.sdk.streaming import MediaChunk
from mentatlab.sdk.streaming.reading import Policy


@click.group(short_help="Follow streams, publish, replay.")
def streams() -> None:
    """Streams: what agents and programs say while they work."""


streams.add_command(publish)

_from_option = click.option(
    "--from",
    "from_",
    default="start",
    show_default=True,
    help="start, latest, key, a sequence (inclusive), a cursor (exclusive), -N (the last N) or "
    "time:2026-11-23T06:42:01Z.",
)
_raw_option = click.option(
    "--raw",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the bytes of each binary record to a file in DIR.",
)


def _shared(command: Callable[..., Any]) -> Callable[..., Any]:
    """What following takes, however fast."""
    for option in (json_option, target_options, _raw_option, _from_option):
        command = option(command)
    return command


@streams.command()
@click.argument("stream_id")
@click.option("--rate", type=float, help="A factor of recorded time.  [default: as it comes]")
@click.option(
    "--policy",
    type=click.Choice(["log", "latest", "keyframe", "block"]),
    default="log",
    show_default=True,
    help="When this reader is slow: get everything, only what is newest, go on at a key frame, or "
    "make the publisher wait.",
)
@_shared
@asynchronous
async def tail(
    *,
    stream_id: str,
    from_: str,
    rate: float | None,
    policy: Policy,
    raw: Path | None,
    target: Target,
) -> None:
    """Print a stream's records (or all of a run's) until it ends; --json: one a line."""
    await _follow(target, stream_id, from_=from_, rate=rate, policy=policy, raw=raw)


@streams.command()
@click.argument("stream_id")
@click.option("--rate", type=float, default=1.0, show_default=True, help="Faster than it was.")
@_shared
@asynchronous
async def replay(
    *, stream_id: str, from_: str, rate: float, raw: Path | None, target: Target
) -> None:
    """Print a stream's records at the pace at which they were recorded."""
    await _follow(target, stream_id, from_=from_, rate=rate, policy="log", raw=raw)


async def _follow(
    target: Target,
    stream_id: str,
    *,
    from_: str,
    rate: float | None,
    policy: Policy,
    raw: Path | None,
) -> None:
    async with connected(target) as client, client.connect_streams() as connection:
        files = await _files(raw, await client.stream_info(stream_id))
        async for element in connection.subscribe(stream_id, from_, rate=rate, policy=policy):
            _show(element, files)


class _Files(NamedTuple):
    """Where binary records go. `suffix` is that of the stream's MIME type."""

    folder: Path
    suffix: str


async def _files(folder: Path | None, info: dict[str, Any]) -> _Files | None:
    if folder is None:
        return None
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    return _Files(folder, mimetypes.guess_extension(info.get("mime_type", "")) or ".bin")


def _show(element: Element, files: _Files | None) -> None:
    match element:
        case MediaChunk():
            _show_media(element, files)
        case StreamChunk() if wants_json():
            emit_line(element)
        case StreamChunk(payload=payload):
            value = payload.get("ref", payload.get("data"))
            click.echo(text_of(value) or compact(msgspec.to_builtins(value)))
        case Reset(keep):
            note(f"begun again: what came after record {keep} is void")
        case _:
            note(f"a gap ({element.reason}); it goes on after {element.next}")


def _show_media(record: MediaChunk, files: _Files | None) -> None:
    """Its bytes go to a file or nowhere: a terminal is no place for them."""
    data: bytes = record.payload["bytes"]
    place: dict[str, Any] = {"size": len(data)}
    if files:
        path = files.folder / f"{record.sequence:08}{files.suffix}"
        path.write_bytes(data)
        place["path"] = str(path)
    if wants_json():
        payload = {**record.payload, "bytes": place}
        emit_line(msgspec.structs.replace(record, payload=payload))
    else:
        click.echo(f"{place.get('path') or record.sequence}: {len(data)} bytes")
