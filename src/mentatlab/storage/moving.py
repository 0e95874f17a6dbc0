"""The stores of a home, by their names, and moving everything from one to the other."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from mentatlab.database import Database
from mentatlab.storage.catalog import Catalog
from mentatlab.storage.local import LocalStore
from mentatlab.storage.migrate import Migrated, Migration, Tell
from mentatlab.storage.opening import SEGMENTS, open_s3_store
from mentatlab.storage.port import BlobStore
from mentatlab.storage.s3_login import read_login
from mentatlab.storage.upkeep import Upkeep

Kind = Literal["local", "s3"]
SEALED = "streams-sealed"
"""The folder of a home with the sealed runs of its streams, which is read beside a bucket too."""


class Move(NamedTuple):
    """`folder` None = the home's own, of the local store that is the target."""

    home: Path
    source: Kind
    target: Kind
    folder: Path | None = None


class _Store(NamedTuple):
    store: BlobStore
    name: str
    segments: BlobStore | None = None


async def move(
    how: Move,
    *,
    home_key: str,
    environ: Mapping[str, str],
    tell: Tell,
    database: Database | None = None,
) -> Migrated:
    """In a home that the caller has locked; the catalogue is in `database`, which is closed with
    it, else in the home. Errors of `Migration.run`, and of opening."""
    own = how.home / "blobs"
    async with contextlib.AsyncExitStack() as stack:
        source = await stack.enter_async_context(_open(how.source, own, home_key, environ))
        folder = how.folder or own
        target = await stack.enter_async_context(_open(how.target, folder, home_key, environ))
        catalog = await Catalog.open(database or how.home / "catalog.db")
        stack.push_async_callback(catalog.aclose)
        migration = Migration(
            source.store,
            target.store,
            Upkeep(catalog.database),
            name=target.name,
            journal=how.home / "migration.json",
            tell=tell,
        )
        moved = await migration.run()
        if source.segments is not None:
            await copy_segments(source.segments, how.home / SEALED)
        return moved


@contextlib.asynccontextmanager
async def _open(
    kind: Kind, folder: Path, home_key: str, environ: Mapping[str, str]
) -> AsyncGenerator[_Store]:
    if kind == "local":
        local = await asyncio.to_thread(LocalStore, folder)
        async with contextlib.aclosing(local):
            yield _Store(local, f"local:{folder}")
        return
    login = read_login(environ)
    s3 = await open_s3_store(login, home_key=home_key)
    async with contextlib.aclosing(s3):
        yield _Store(s3, f"s3:{login.endpoint}/{login.bucket}", s3.within(SEGMENTS))


async def copy_segments(segments: BlobStore, folder: Path) -> None:
    """Sealed runs into a folder; those that are there already are left out."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    async for info in segments.list():
        path = folder / info.key
        if path.exists() and path.stat().st_size == info.size:
            continue
        draft = path.with_name(f".{path.name}.part")
        async with contextlib.aclosing(await segments.get(info.key)) as reader:
            with draft.open("wb") as file:
                async for chunk in reader:
                    await asyncio.to_thread(file.write, chunk)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
        draft.replace(path)
