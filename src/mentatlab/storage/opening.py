"""Which blob store a server has, by its settings, and opening it."""

import contextlib
import hashlib
import importlib
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, NamedTuple

from mentatlab.database import Database
from mentatlab.protocol.errors import Code, Invalid
from mentatlab.storage.catalog import Catalog
from mentatlab.storage.manager import StorageManager, open_local, open_memory
from mentatlab.storage.port import BlobStore
from mentatlab.storage.probe import Prober
from mentatlab.storage.s3_login import Login, read_login
from mentatlab.storage.upload_rows import NO_QUOTA, Quota

if TYPE_CHECKING:
    from mentatlab.storage.s3 import S3Store

SEGMENTS = ".segments/"

Choice = Literal["local", "memory"] | Login


def read_choice(environ: Mapping[str, str]) -> Choice:
    """`MENTATLAB_STORAGE=local|memory|s3`; unset it is s3 when there is an `S3_ENDPOINT`."""
    kind = environ.get("MENTATLAB_STORAGE") or ("s3" if environ.get("S3_ENDPOINT") else "local")
    if kind == "s3":
        return read_login(environ)
    if kind in ("local", "memory"):
        return kind
    raise Invalid(
        Code.BAD_SETTING,
        f"MENTATLAB_STORAGE={kind!r} is not usable",
        hint="write local, memory or s3",
    )


class Opened(NamedTuple):
    """`segments` has room for sealed runs of streams, which no catalogue knows; None = the home."""

    manager: StorageManager
    segments: BlobStore | None = None


@contextlib.asynccontextmanager
async def open_storage(
    choice: Choice,
    home: Path,
    *,
    home_key: str,
    max_bytes: int | None = None,
    quota: Quota = NO_QUOTA,
    database: Database | None = None,
) -> AsyncGenerator[Opened]:
    """The catalogue is in `database`, else in the home; with bytes in memory it is there too.

    `Unavailable(STORE_UNAVAILABLE)`, `Conflict(STORE_FOREIGN)`, `Invalid(MISSING_EXTRA)`.
    """
    catalog = database or home / "catalog.db"
    if choice == "local":
        async with open_local(home / "blobs", catalog, max_bytes=max_bytes, quota=quota) as manager:
            yield Opened(manager)
    elif choice == "memory":
        async with open_memory(max_bytes=max_bytes, quota=quota) as manager:
            yield Opened(manager)
    else:
        store = await open_s3_store(choice, home_key=home_key)
        async with _managing(store, catalog, max_bytes, quota) as manager:
            yield Opened(manager, store.within(SEGMENTS))


async def open_s3_store(login: Login, *, home_key: str) -> "S3Store":
    """The bucket of this home alone; it is made when there is none."""
    home = hashlib.sha256(f"storage of {home_key}".encode()).hexdigest()[:32]
    store: S3Store = await _s3_module().open_store(login, home)
    return store


def _s3_module() -> ModuleType:
    try:
        return importlib.import_module("mentatlab.storage.s3")
    except ModuleNotFoundError as error:
        raise Invalid(
            Code.MISSING_EXTRA,
            "storage is to be in S3, and the package to speak with it is not installed",
            hint="pip install 'mentatlab[server,s3]'",
        ) from error


@contextlib.asynccontextmanager
async def _managing(
    store: BlobStore, catalog_db: Path | Database, max_bytes: int | None, quota: Quota
) -> AsyncGenerator[StorageManager]:
    try:
        catalog = await Catalog.open(catalog_db)
    except BaseException:
        await store.aclose()
        raise
    manager = StorageManager(store, catalog, Prober(), max_bytes=max_bytes, quota=quota)
    async with contextlib.aclosing(manager):
        await manager.uploads.take_over()
        yield manager


async def describe(choice: Choice) -> str:
    """Where it is, without secrets, and that it answers; raises what `open_storage` does."""
    if not isinstance(choice, Login):
        return {"local": "in the home", "memory": "in memory: gone when the server stops"}[choice]
    bucket = _s3_module().Bucket(choice)
    async with contextlib.aclosing(bucket):
        await bucket.check()
    return f"the bucket {choice.bucket} of {choice.endpoint}"
