"""`mentatlab storage`."""

from pathlib import Path

import click

from mentatlab.cli.connect import Target, connected, target_options
from mentatlab.cli.keys import date
from mentatlab.cli.output import asynchronous, emit, json_option, note, table


@click.group(short_help="Put and get media.")
def storage() -> None:
    """Media and other large values, by reference."""


@storage.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@target_options
@json_option
@asynchronous
async def put(*, file: Path, target: Target) -> None:
    """Upload FILE and print its reference."""
    async with connected(target) as client:
        stored = await client.upload(file)
    facts = " ".join(f"{name}={value}" for name, value in stored["metadata"].items())
    note(f"{file}: {facts}")
    emit(stored, lambda: stored["ref"])


@storage.command()
@click.argument("ref")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    default="-",
    help="Where to write; - is stdout, the default.",
)
@target_options
@asynchronous
async def get(*, ref: str, out: Path, target: Target) -> None:
    """Download REF (a ref id or a mentat:// URL)."""
    async with connected(target) as client:
        if _is_ordinary(out):
            await client.download_to(ref, out)
            return
        with click.open_file(str(out), "wb") as file:  # stdout, a device, a pipe
            async for chunk in client.download(ref):
                file.write(chunk)


def _is_ordinary(path: Path) -> bool:
    """A file that may be replaced when the download is whole."""
    return str(path) != "-" and (path.is_file() or not path.exists())


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
