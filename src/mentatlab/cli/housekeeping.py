"""`mentatlab storage` `usage gc scrub rebuild migrate`: what is stored is kept in order."""

import asyncio
import contextlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec

from mentatlab import home as home_folder
from mentatlab.cli.connect import Target, connected, home_option, place_of, target_options
from mentatlab.cli.output import asynchronous, emit, json_option, note, table
from mentatlab.cli.progress import bar
from mentatlab.protocol.errors import Code, Conflict
from mentatlab.sdk.client import AsyncClient

if TYPE_CHECKING:
    from mentatlab.app import Settings

_POLL_S = 0.2
Kind = Literal["local", "s3"]


@click.command()
@target_options
@json_option
@asynchronous
async def usage(*, target: Target) -> None:
    """What the workspace has stored, and may store."""
    async with connected(target) as client:
        used = await client.storage_usage()
    rows = [
        ("bytes", used["bytes"], used["reserved_bytes"], used["quota_bytes"] or "no bound"),
        ("blobs", used["count"], used["reserved_count"], used["quota_count"] or "no bound"),
    ]
    emit(used, lambda: table(("", "STORED", "ARRIVING", "QUOTA"), rows))


@click.command()
@target_options
@json_option
@asynchronous
async def gc(*, target: Target) -> None:
    """Remove now what nobody has needed for a day, and what has expired.

    The server does so every hour by itself. Needs an admin key.
    """
    async with connected(target) as client:
        swept = await client.sweep_storage()
    if swept["foreign"]:
        note(
            "the stored bytes belong to another catalogue: those without a row were left alone\n"
            "hint: if catalog.db was lost, stop the server and run `mentatlab storage rebuild`"
        )
    if swept["missing"]:
        note(f"{swept['missing']} blobs have lost their bytes and are corrupt now")
    text = "removed {blobs} blobs, {orphans} objects without a blob, {uploads} unfinished uploads"
    emit(swept, lambda: text.format(**swept))


@click.command()
@target_options
@json_option
@asynchronous
async def scrub(*, target: Target) -> None:
    """Read everything again and compare it with its hash. Exit code 1 when something is corrupt.

    The server does so by itself, slowly, once a month. Needs an admin key.
    """
    async with connected(target) as client:
        report = await _scrubbed(client)
    for ref in report["corrupt"]:
        note(f"corrupt: {ref}")
    if report["corrupt_count"]:
        note("hint: put the bytes back from a backup and scrub again, or remove and upload them")
    if report["unread"]:
        note(f"{report['unread']} could not be read now; the server's log says why")
    text = "{checked} blobs, {bytes} bytes read: {corrupt_count} corrupt, {healed} whole again"
    emit(report, lambda: text.format(**report))
    if report["corrupt_count"]:
        raise click.exceptions.Exit(1)


async def _scrubbed(client: AsyncClient) -> dict[str, Any]:
    report = await client.scrub_storage()
    with bar("reading", counted=True) as show:
        while report["running"]:
            await asyncio.sleep(_POLL_S)
            report = await client.scrub_report()
            show(report["checked"], report["total"])
    return report


@click.command()
@home_option
@json_option
@asynchronous
async def rebuild(*, home: Path | None) -> None:
    """Make a lost catalogue anew from the stored bytes. The server must be stopped.

    It is catalog.db, or in the database of MENTATLAB_DATABASE, which no server may use then.

    Who needed what is lost: every blob becomes an upload of its own, and what had a term is kept
    for a day at least. May be repeated.
    """
    from mentatlab import app  # heavy, and not needed to talk to a server
    from mentatlab.storage import open_storage
    from mentatlab.storage.rebuild import Rebuilt

    place = place_of(Target(home=home))
    with _stopped(place), bar("entering", counted=True) as show:
        settings = app.read_settings(home=place)
        key = _storage_key(settings, place)

        def tell(so_far: Rebuilt) -> None:
            show(so_far.seen, so_far.seen)

        async with (
            app.open_catalog(settings) as catalog,
            open_storage(settings.storage, place, home_key=key, database=catalog) as opened,
        ):
            made = await opened.manager.life.rebuild(tell)
    if made.foreign:
        note(f"{made.foreign} objects are not MentatLab's and stay as they are")
    if made.failed:
        note(f"{made.failed} could not be entered; see above, then run it again")
    text = "entered {entered} blobs; {known} were known"
    found = msgspec.to_builtins(made)
    emit(found, lambda: text.format(**found))
    if made.failed:
        raise click.exceptions.Exit(1)


@click.command()
@click.option("--to", "kind", type=click.Choice(["local", "s3"]), required=True)
@click.option(
    "--from",
    "source",
    type=click.Choice(["local", "s3"]),
    help="[default: the other one]",
)
@click.argument("folder", required=False, type=click.Path(path_type=Path, file_okay=False))
@home_option
@json_option
@asynchronous
async def migrate(
    *, kind: Kind, source: Kind | None, folder: Path | None, home: Path | None
) -> None:
    """Copy everything stored to S3, or from there to FOLDER (the home's), verified.

    The server must be stopped: nothing may be stored meanwhile. S3_ENDPOINT, S3_ACCESS_KEY,
    S3_SECRET_KEY, S3_BUCKET and S3_REGION say where. May be interrupted and run again; the source
    stays as it is. Exit code 1 when something is corrupt and could not be moved.
    """
    from mentatlab import app  # heavy, as above
    from mentatlab.storage.moving import Move, move

    if folder is not None and kind == "s3":
        raise click.UsageError("FOLDER goes with --to local")
    place = place_of(Target(home=home))
    how = Move(home=place, source=source or _other(kind), target=kind, folder=folder)
    with _stopped(place), bar("moving") as show:
        settings = app.read_settings(home=place)
        async with app.open_catalog(settings) as catalog:
            moved = await move(
                how,
                home_key=_storage_key(settings, place),
                environ=os.environ,
                tell=lambda so_far: show(so_far.bytes, so_far.total_bytes),
                database=catalog,
            )
    for ref in moved.corrupt:
        note(f"corrupt, stays behind: {ref}")
    if moved.open_uploads:
        note(f"{moved.open_uploads} unfinished uploads stay behind; their clients begin anew")
    if folder is not None:
        note(f"now let {folder} take the place of {place / 'blobs'}")
    note(f"start the server with MENTATLAB_STORAGE={kind}; if all is well, delete the old bytes")
    found = msgspec.to_builtins(moved)
    emit(found, lambda: "{done} blobs, {bytes} bytes; {copied} copied now".format(**found))
    if moved.corrupt_count:
        raise click.exceptions.Exit(1)


def _storage_key(settings: "Settings", place: Path) -> str:
    """What names the home's part of a bucket; servers that share all have it in common."""
    return settings.token_secret if settings.replicas else home_folder.home_key(place)


def _other(kind: Kind) -> Kind:
    return "local" if kind == "s3" else "s3"


@contextlib.contextmanager
def _stopped(place: Path) -> Generator[None]:
    """This home's server does not run, nor starts meanwhile."""
    try:
        with home_folder.locked(place):
            yield
    except Conflict as error:
        if error.code is not Code.HOME_IN_USE:
            raise
        raise Conflict(
            error.code,
            error.message,
            hint="stop that server first: nothing may be stored meanwhile",
        ) from error
