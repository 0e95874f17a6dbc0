"""`mentatlab streams`."""

import contextlib

import click
import msgspec

from mentatlab.cli.connect import Target, connected, target_options
from mentatlab.cli.output import asynchronous, emit_line, json_option, note, wants_json
from mentatlab.cli.progress import text_of
from mentatlab.cli.results import compact
from mentatlab.protocol.records import StreamChunk
from mentatlab.sdk.client import Reset


@click.group(short_help="Follow streams.")
def streams() -> None:
    """Streams: what agents say while they work."""


@streams.command()
@click.argument("stream_id")
@click.option(
    "--from",
    "from_",
    default="start",
    show_default=True,
    help="start, latest, a sequence (inclusive) or a cursor (exclusive).",
)
@target_options
@json_option
@asynchronous
async def tail(*, stream_id: str, from_: str, target: Target) -> None:
    """Print a stream's records (or all of a run's) until it ends; --json: one a line."""
    async with (
        connected(target) as client,
        contextlib.aclosing(client.stream(stream_id, from_)) as records,
    ):
        async for record in records:
            match record:
                case StreamChunk():
                    _print(record)
                case Reset(keep):
                    note(f"begun again: what came after record {keep} is void")
                case _:
                    note(f"a gap ({record.reason}); it goes on after {record.next}")


def _print(record: StreamChunk) -> None:
    if wants_json():
        emit_line(record)
        return
    element = record.payload.get("ref", record.payload.get("data"))
    click.echo(text_of(element) or compact(msgspec.to_builtins(element)))
