"""`mentatlab storage`."""

import click

from mentatlab.cli.connect import Target, connected, target_options
from mentatlab.cli.housekeeping import gc, migrate, rebuild, scrub, usage
from mentatlab.cli.keys import date
from mentatlab.cli.output import asynchronous, emit, json_option, note, table
from mentatlab.cli.transfer import get, put


@click.group(short_help="Put, get and look after media.")
def storage() -> None:
    """Media and other large values, by reference."""


for command in (put, get, usage, gc, scrub, rebuild, migrate):
    storage.add_command(command)


@storage.command("ls")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True)
@click.option("--before", metavar="REF", help="Go on behind this one, the last of a page before.")
@target_options
@json_option
@asynchronous
async def list_blobs(*, limit: int, before: str | None, target: Target) -> None:
    """List what is stored, newest first."""
    async with connected(target) as client:
        page = await client.blobs(limit=limit, before=before)
    rows = [
        (b["ref"], b["type"], b["state"], b["size"], date(b["created_at"]), b["filename"])
        for b in page["items"]
    ]
    emit(page, lambda: table(("REF", "TYPE", "STATE", "BYTES", "STORED", "NAME"), rows))
    if page["next"]:
        note(f"hint: there is more: `mentatlab storage ls --before {page['next']}`")


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
