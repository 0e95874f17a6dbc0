"""`mentatlab storage`."""

import click

from mentatlab.cli.connect import Target, connected, target_options
from mentatlab.cli.keys import date
from mentatlab.cli.output import asynchronous, emit, json_option, table
from mentatlab.cli.transfer import get, put


@click.group(short_help="Put and get media.")
def storage() -> None:
    """Media and other large values, by reference."""


storage.add_command(put)
storage.add_command(get)


@storage.command("ls")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True)
@target_options
@json_option
@asynchronous
async def list_blobs(*, limit: int, target: Target) -> None:
    """List what is stored, newest first."""
    async with connected(target) as client:
        page = await client.blobs(limit=limit)
    rows = [
        (b["ref"], b["type"], b["size"], date(b["created_at"]), b["filename"])
        for b in page["items"]
    ]
    emit(page, lambda: table(("REF", "TYPE", "BYTES", "STORED", "NAME"), rows))


@storage.command()
@click.argument("ref")
@target_options
@json_option
@asynchronous
async def rm(*, ref: str, target: Target) -> None:
    """Remove an upload that no run uses."""
    async with connected(target) as client:
        await client.delete_blob(ref)
    emit({"removed": ref}, lambda: f"removed {ref}")
