"""`mentatlab storage put` and `get`: files in and out, resumed, with a bar."""

import asyncio
import contextlib
import functools
import glob
import mimetypes
import sys
from collections.abc import AsyncIterable, AsyncIterator, Generator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import click

from mentatlab.cli.connect import Target, connected, place_of, target_options
from mentatlab.cli.output import asynchronous, emit, json_option, note
from mentatlab.cli.progress import bar
from mentatlab.cli.unfinished import Unfinished
from mentatlab.protocol.errors import Code, Gone, Invalid, MentatError, NotFound
from mentatlab.protocol.media import ref_id_of
from mentatlab.protocol.pins import TtlClass
from mentatlab.sdk.client import AsyncClient

FileType = Literal["audio", "image", "video", "binary"]

_BLOCK = 1 << 20


class _Wishes(NamedTuple):
    type_: FileType | None
    ttl: TtlClass | None
    name: str | None
    resume: bool


@click.command()
@click.argument(
    "files",
    metavar="FILE…",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True),
)
@click.option("--type", "type_", type=click.Choice(get_args(FileType)), help="Refuse other bytes.")
@click.option(
    "--ttl",
    type=click.Choice(get_args(TtlClass)),
    help="How long to keep it: 1 hour, 7 days, or until it is deleted.  [default: the last]",
)
@click.option("--name", help="The stored file name; for stdin for instance.")
@click.option("--resume", is_flag=True, help="Go on with an upload of this file that was cut off.")
@target_options
@json_option
@asynchronous
async def put(
    *,
    files: tuple[Path, ...],
    type_: FileType | None,
    ttl: TtlClass | None,
    name: str | None,
    resume: bool,
    target: Target,
) -> None:
    """Upload files (- is stdin) and print a reference for each.

    Large ones survive a line that is cut; after a long cut or Ctrl-C, `--resume` goes on.
    """
    wishes = _Wishes(type_, ttl, name, resume)
    unfinished = Unfinished(place_of(target) / "uploads", target.server or "")
    async with connected(target) as client:
        for file in files:
            stored = await _put(client, file, wishes, unfinished)
            facts = " ".join(f"{name}={value}" for name, value in stored["metadata"].items())
            note(f"{file}: {facts}")
            _emit_stored(stored)


def _emit_stored(stored: dict[str, Any]) -> None:
    emit(stored, lambda: stored["ref"])


async def _put(
    client: AsyncClient, file: Path, wishes: _Wishes, unfinished: Unfinished
) -> dict[str, Any]:
    if str(file) == "-":
        with bar("stdin") as progress:
            return await _upload(client, _stdin(), wishes, progress=progress)
    key = await asyncio.to_thread(unfinished.key_of, file, [wishes.type_, wishes.ttl, wishes.name])
    begun = await asyncio.to_thread(unfinished.find, key) if wishes.resume else None
    with (
        bar(file.name) as progress,
        _told_how_to_go_on(key, unfinished, file),
    ):
        if begun is not None:
            with contextlib.suppress(NotFound, Gone):
                return await _upload(client, file, wishes, resume=begun, progress=progress)
            note(f"{file}: what was begun is gone; it is uploaded from its start")
        return await _upload(
            client,
            file,
            wishes,
            started=functools.partial(unfinished.remember, key),
            progress=progress,
        )


async def _upload(
    client: AsyncClient, source: Path | AsyncIterable[bytes], wishes: _Wishes, **more: Any
) -> dict[str, Any]:
    return await client.upload(
        source, filename=wishes.name, type_=wishes.type_, ttl=wishes.ttl, **more
    )


@contextlib.contextmanager
def _told_how_to_go_on(key: str, unfinished: Unfinished, file: Path) -> Generator[None]:
    try:
        yield
    except (MentatError, asyncio.CancelledError) as error:
        hopeless = isinstance(error, MentatError) and not error.retryable
        if not hopeless and unfinished.find(key) is not None:
            note(f"hint: `mentatlab storage put --resume {file}` goes on where this stopped")
        raise
    unfinished.forget(key)


async def _stdin() -> AsyncIterator[bytes]:
    while block := await asyncio.to_thread(sys.stdin.buffer.read, _BLOCK):
        yield block


@click.command()
@click.argument("refs", metavar="REF…", nargs=-1, required=True)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, allow_dash=True),
    default="-",
    help="A file, or a folder for files of their own names; - is stdout, the default.",
)
@target_options
@asynchronous
async def get(*, refs: tuple[str, ...], out: Path, target: Target) -> None:
    """Download media by ref id or mentat:// URL.

    The same command again goes on where one was cut off.
    """
    into_folder = await asyncio.to_thread(out.is_dir)
    if len(refs) > 1 and not into_folder:
        raise Invalid(
            Code.INVALID_REQUEST,
            f"{len(refs)} media do not fit into {'stdout' if str(out) == '-' else out}",
            hint="give an existing folder: -o FOLDER",
        )
    async with connected(target) as client:
        taken: set[Path] = set()
        for ref in refs:
            path = await _place(client, ref, out, taken) if into_folder else out
            taken.add(path)
            await _get(client, ref, path)


async def _get(client: AsyncClient, ref: str, path: Path) -> None:
    if _is_ordinary(path):
        with bar(path.name) as progress, _told_that_it_goes_on(path):
            await client.download_to(ref, path, progress=progress)
        return
    with click.open_file(str(path), "wb") as file:  # stdout, a device, a pipe
        async for chunk in client.download(ref):
            file.write(chunk)


@contextlib.contextmanager
def _told_that_it_goes_on(path: Path) -> Generator[None]:
    try:
        yield
    except (MentatError, asyncio.CancelledError):
        if any(path.parent.glob(f"{glob.escape(path.name)}.blob_*.part")):
            note(f"hint: the same command goes on with {path} where this stopped")
        raise


async def _place(client: AsyncClient, ref: str, folder: Path, taken: set[Path]) -> Path:
    """Its own name; with the reference's id where another one of this call has that."""
    found = await client.blob(ref)
    id_, name = ref_id_of(ref), found["filename"].replace("/", "_").lstrip(".")
    if not name:
        return folder / f"{id_}{mimetypes.guess_extension(found['mime_type']) or ''}"
    return folder / (name if folder / name not in taken else f"{id_}-{name}")


def _is_ordinary(path: Path) -> bool:
    """A file that may be replaced when the download is whole."""
    return str(path) != "-" and (path.is_file() or not path.exists())
