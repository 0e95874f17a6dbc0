"""`mentatlab streams publish`."""

import asyncio
import mimetypes
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from mentatlab.cli.connect import Target, connected, target_options
from mentatlab.cli.lines import read_lines
from mentatlab.cli.output import asynchronous, emit_line, json_option, note, wants_json
from mentatlab.protocol.errors import Code, Conflict, Invalid
from mentatlab.protocol.pins import parse_size
from mentatlab.protocol.records import MAX_RECORD_BYTES
from mentatlab.sdk.client import AsyncClient
from mentatlab.sdk.streaming import Publisher

Send = Callable[[Publisher], Awaitable[None]]
"""Sends one record."""


def _chunk_size(_: click.Context, __: click.Parameter, text: str) -> int:
    try:
        size = parse_size(text)
    except Invalid as error:
        raise click.BadParameter(error.message) from error
    if not 1 <= size <= MAX_RECORD_BYTES:
        raise click.BadParameter("a record has 1 byte to 1 MiB")
    return size


@click.command()
@click.argument("stream_id", required=False)
@click.option("--agent", default="cli", show_default=True, help="A new stream's agent id.")
@click.option("--pin", default="out", show_default=True, help="A new stream's pin name.")
@click.option(
    "--durability",
    type=click.Choice(["commit", "memory", "relaxed"]),
    default="commit",
    show_default=True,
    help="A new stream's promise.",
)
@click.option(
    "--file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A record for each line of it; without it, of stdin. A line that is JSON is its value, "
    "another one is text.",
)
@click.option(
    "--binary",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The bytes of this file, in chunks.",
)
@click.option(
    "--chunk",
    default="64KiB",
    show_default=True,
    callback=_chunk_size,
    metavar="SIZE",
    help="Bytes of a chunk, at most 1MiB.",
)
@click.option(
    "--producer",
    metavar="NAME",
    help="Who publishes. Called again with the same name and input, it goes on where it was "
    "interrupted.",
)
@click.option("--open", "leave_open", is_flag=True, help="Do not end the stream.")
@target_options
@json_option
@asynchronous
async def publish(
    *,
    stream_id: str | None,
    agent: str,
    pin: str,
    durability: str,
    file: Path | None,
    binary: Path | None,
    chunk: int,
    producer: str | None,
    leave_open: bool,
    target: Target,
) -> None:
    """Publish lines of text or JSON, or a file's bytes, each record once.

    Prints the stream's id. Without STREAM_ID a stream is opened, with --producer the same one
    each time.
    """
    if file and binary:
        raise click.UsageError("give --file or --binary, not both")
    records = _chunks(binary, chunk) if binary else _values(file)
    facts = {"mime_type": _mime_type(binary), "durability": durability}
    async with connected(target) as client:
        stream_id = stream_id or await _open(client, agent, pin, producer, facts)
        _tell(stream_id)
        await _publish(client, stream_id, producer, records, leave_open=leave_open)


def _mime_type(binary: Path | None) -> str:
    if binary is None:
        return "application/json"
    return mimetypes.guess_type(binary.name)[0] or "application/octet-stream"


async def _open(
    client: AsyncClient, agent: str, pin: str, producer: str | None, facts: dict[str, Any]
) -> str:
    key = f"{agent}/{pin}/{producer}" if producer else None
    return (await client.open_stream(agent, pin, idempotency_key=key, **facts))["stream_id"]


def _tell(stream_id: str) -> None:
    if wants_json():
        emit_line({"stream_id": stream_id})
    else:
        click.echo(stream_id)


async def _publish(
    client: AsyncClient,
    stream_id: str,
    producer: str | None,
    records: AsyncIterator[Send],
    *,
    leave_open: bool,
) -> None:
    info = await client.stream_info(stream_id)
    count = 0
    async with (
        client.connect_streams() as streams,
        streams.publisher(stream_id, id=producer, end=not leave_open) as out,
    ):
        if info["state"] == "ended" and out.already:
            out.close()
            await _check_nothing_is_left(records, info["chunks"])
            note("all of it was published before")
            return
        async for send in records:
            count += 1
            if count > out.already:
                await send(out)
    before = f", {min(out.already, count)} of them before" if out.already else ""
    note(f"{count} records published{before}")


async def _check_nothing_is_left(records: AsyncIterator[Send], published: int) -> None:
    """`Conflict(STREAM_ENDED)` when the input has more than the stream ended with."""
    count = 0
    async for _ in records:
        count += 1
    if count > published:
        raise Conflict(
            Code.STREAM_ENDED,
            f"the stream has ended with {published} records, the input has {count}",
            hint="another input is another stream: choose another --producer, or another --pin",
        )


async def _values(file: Path | None) -> AsyncIterator[Send]:
    async for line in read_lines(file):
        value = _value(line)
        yield lambda out, value=value: out.send(value)


def _value(line: bytes) -> Any:
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return line.decode().removesuffix("\r")
    except UnicodeDecodeError as error:
        raise Invalid(
            Code.INVALID_REQUEST,
            f"a line is neither JSON nor text: {error}",
            hint="give a file of bytes with --binary",
        ) from error


async def _chunks(file: Path, size: int) -> AsyncIterator[Send]:
    """The file is one item: its first chunk is a key, its last one the end."""
    with await asyncio.to_thread(file.open, "rb") as opened:
        left = os.fstat(opened.fileno()).st_size
        index = 0
        while data := await asyncio.to_thread(opened.read, size):
            left -= len(data)
            yield lambda out, data=data, index=index, last=left <= 0: out.send_bytes(
                data, key=index == 0, end_of_item=last, index=min(index, 0xFFFF)
            )
            index += 1
