"""The one way in and out of storage for the rest of the house."""

import asyncio
import contextlib
import logging
import os
import secrets
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

from mentatlab.database import Database
from mentatlab.protocol.errors import Code, Invalid, NotFound
from mentatlab.protocol.ids import new_id
from mentatlab.protocol.media import ref_id_of
from mentatlab.protocol.pins import MEDIA_TYPES, PinType
from mentatlab.storage import keys, sniff, sources
from mentatlab.storage.catalog import Catalog, Write, nothing
from mentatlab.storage.kinds import Kind, final_kind, first_kind
from mentatlab.storage.life import GRACE_S, Life
from mentatlab.storage.local import LocalStore
from mentatlab.storage.memory import MemoryStore
from mentatlab.storage.port import Blob, BlobInfo, BlobStore, ByteRange, Durability, Reader
from mentatlab.storage.previews import Previews
from mentatlab.storage.probe import Prober
from mentatlab.storage.reservations import Reservations
from mentatlab.storage.serving import Serving
from mentatlab.storage.upload_rows import NO_QUOTA, Quota, UploadRows
from mentatlab.storage.uploads import Uploads
from mentatlab.storage.verified import VerifiedReader, damaged
from mentatlab.storage.workers import media_of

log = logging.getLogger(__name__)

_PLACE = ("flow_id", "execution_id", "node_id", "pin_name")


class StorageManager:
    """Implements `storage.port.Storage`. `open_local` and `open_memory` make and close it.

    `max_bytes` bounds one object (None = the disk does). `clock` gives Unix seconds.
    """

    def __init__(
        self,
        store: BlobStore,
        catalog: Catalog,
        prober: Prober,
        *,
        max_bytes: int | None = None,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.time,
        quota: Quota = NO_QUOTA,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._prober = prober
        self.max_bytes = max_bytes
        self._clock = clock
        self._arriving: set[str] = set()  # keys that puts under way will take
        self.serving = Serving(store)
        self.previews = Previews(store, catalog, clock=clock)
        rows = UploadRows(catalog.database, quota)
        self._reservations = Reservations(rows, clock)
        self.uploads = Uploads(store, rows, self, self._enter, max_bytes=max_bytes, clock=clock)
        self.life = Life(
            store,
            catalog,
            self._enter,
            arriving=self._arriving,
            expire_uploads=self.uploads.sweep,
            grace_s=grace_s,
            clock=clock,
        )

    # --- in

    def generate_key(
        self,
        workspace_id: str,
        flow_id: str,
        execution_id: str,
        node_id: str,
        pin_name: str,
        ext: str,
    ) -> str:
        """`{workspace}/{flow}/{execution}/{node}/{pin}_{timestamp_ms}.{ext}`"""
        now_ms = int(self._clock() * 1000)
        return keys.generate_key(
            workspace_id, flow_id, execution_id, node_id, pin_name, ext, timestamp_ms=now_ms
        )

    async def upload(self, file_data: bytes, metadata: dict[str, Any]) -> dict[str, Any]:
        """Store bytes, give their media reference.

        Of `metadata`, `workspace_id` (else `default`), `type` (the pin's), `mimeType`, `filename`
        and, all together, `flow_id execution_id node_id pin_name` are understood; the rest is kept.
        """
        rest = dict(metadata)
        workspace = str(rest.pop("workspace_id", "default"))
        flow, execution, node, pin = (str(rest.pop(name, "")) for name in _PLACE)
        type_, mime = rest.pop("type", None), rest.pop("mimeType", None)
        key = None
        if flow and execution and node and pin:
            ext = keys.extension(sniff.sniff(file_data[: sniff.HEAD]))
            key = self.generate_key(workspace, flow, execution, node, pin, ext)
        blob = await self.store(
            sources.once(file_data),
            workspace=workspace,
            key=key,
            expect=pin_type(type_),
            declared_mime=mime,
            filename=str(rest.pop("filename", "")),
            metadata=rest,
        )
        return blob.reference().to_dict()

    async def store(
        self,
        source: AsyncIterator[bytes],
        *,
        workspace: str,
        owner: str | None = None,
        key: str | None = None,
        expect: PinType | None = None,
        declared_mime: str | None = None,
        filename: str = "",
        metadata: dict[str, Any] | None = None,
        sha256: bool = False,
        expected_sha256: str | None = None,
        durability: Durability = "full",
        ttl_s: float | None = None,
        size: int | None = None,
    ) -> Blob:
        ref, now = new_id("blob"), self._clock()
        head, whole = await sources.peek(sources.bounded(source, self.max_bytes), sniff.HEAD)
        kind = first_kind(head, expect)
        claims = dict(metadata or {})
        if declared_mime:
            claims["declaredMimeType"] = declared_mime
        wanted = key or keys.upload_key(workspace, ref, keys.extension(kind.mime), now=now)
        meta = {
            "ref": ref,
            "workspace": workspace,
            "expect": expect,
            "filename": filename,
            "claims": claims,
            "created_at": now,
            "expires_at": None if ttl_s is None else now + ttl_s,
        }
        async with (
            self._reservations.hold(workspace, ref, size) as reservation,
            self._free_key(wanted, own=key is None) as free,
        ):
            info = await self._store.put(
                free,
                reservation.counted(whole),
                content_type=kind.mime,
                meta=meta,
                durability=durability,
                sha256=sha256,
                expected_sha256=expected_sha256,
            )
            try:
                owner = owner or f"upload:{ref}"
                return await self._enter(info, kind, owner, also=reservation.settle)
            except BaseException:
                await asyncio.shield(self._discard(ref, free))
                raise

    async def store_file(
        self,
        path: Path,
        *,
        below: Path,
        workspace: str,
        owner: str | None = None,
        key: str | None = None,
        expect: PinType | None = None,
        declared_mime: str | None = None,
        metadata: dict[str, Any] | None = None,
        durability: Durability = "full",
        ttl_s: float | None = None,
    ) -> Blob:
        fd = await asyncio.to_thread(sources.open_output, path, below)
        with os.fdopen(fd, "rb", buffering=0) as file:
            return await self.store(
                sources.chunks(file.read),
                workspace=workspace,
                owner=owner,
                key=key,
                expect=expect,
                declared_mime=declared_mime,
                filename=path.name,
                metadata=metadata,
                durability=durability,
                ttl_s=ttl_s,
                size=os.fstat(fd).st_size,
            )

    # --- out

    async def get(self, ref: object, *, workspace: str) -> Blob:
        return await self._catalog.get(ref_id_of(ref), workspace=workspace, now=self._clock())

    async def page(self, workspace: str, *, limit: int, before: str | None = None) -> list[Blob]:
        """Newest first; `before` is the last ref id of the page before."""
        return await self._catalog.page(workspace, limit=limit, before=before, now=self._clock())

    async def open(self, blob: Blob, range_: ByteRange | None = None) -> Reader:
        """`Internal(REFERENCE_CORRUPT)` when the bytes are not what the catalogue says: here, or,
        of the whole, before its end."""
        if blob.state != "ready":
            raise damaged(blob)
        try:
            reader = await self._store.get(blob.key, range_=range_)
        except NotFound as error:
            await self.get(blob.id, workspace=blob.workspace)  # it may be deleted, properly
            await self.life.damaged(blob, "its bytes are missing")
            raise damaged(blob) from error
        return VerifiedReader(reader, blob, self.life.damaged) if range_ is None else reader

    def local_path(self, blob: Blob) -> Path | None:
        return self._store.local_path(blob.key)

    # --- life

    async def check(self) -> None:
        """`Unavailable(STORE_UNAVAILABLE)` with its reason when the store cannot work."""
        await self._store.check()

    async def add_owner(self, blob_id: str, owner: str) -> None:
        await self._catalog.add_owner(blob_id, owner)

    async def release(self, owner: str) -> None:
        await self._catalog.release(owner, now=self._clock())

    async def delete(self, ref: object, *, workspace: str) -> None:
        """Remove an upload now; `Conflict` when a run or stream needs it."""
        blob = await self.get(ref, workspace=workspace)
        await self._catalog.doom(blob.id, ignoring=f"upload:{blob.id}")
        await self._discard(blob.id, blob.key)

    async def aclose(self) -> None:
        await self.previews.aclose()
        await self._prober.aclose()
        await self._store.aclose()
        await self._catalog.aclose()

    # --- within

    @contextlib.asynccontextmanager
    async def _free_key(self, key: str, *, own: bool) -> AsyncGenerator[str]:
        """The key, or one beside it when it is taken; nobody else takes it meanwhile.

        Decided before the source is read, since it can be read once only. A key with the blob's
        `own` id in it is free.
        """
        while not own and await self._is_taken(key):
            key = keys.beside(key, secrets.token_hex(2))
        self._arriving.add(key)
        try:
            yield key
        finally:
            self._arriving.discard(key)

    async def _is_taken(self, key: str) -> bool:
        try:
            await self._store.head(key)
        except NotFound:
            return key in self._arriving
        return True

    async def _enter(
        self,
        info: BlobInfo,
        kind: Kind,
        owner: str,
        *,
        also: Write = nothing,
        claimed: bool = False,
    ) -> Blob:
        """Probe stored bytes and write their row together with the owner's.

        `claimed`: their hash is what a client says.
        """
        found = await self._probe(info, kind.type)
        expect = pin_type(info.meta["expect"])
        blob = _blob(info, final_kind(kind, expect, found), found)
        verified_at = None if claimed else self._clock()
        await self._catalog.add(blob, owner, also=also, verified_at=verified_at)
        return blob

    async def _probe(self, info: BlobInfo, type_: PinType) -> dict[str, Any]:
        if type_ not in MEDIA_TYPES:
            return {}
        return await self._prober.probe(await media_of(self._store, info.key, info.size), type_)

    async def _discard(self, ref: str, key: str) -> None:
        await self._store.delete(key)
        await self._catalog.forget([ref])


@contextlib.asynccontextmanager
async def open_local(
    root: Path,
    catalog_db: Path | Database,
    *,
    max_bytes: int | None = None,
    min_free_bytes: int = 16 << 20,
    grace_s: float = GRACE_S,
    probe_timeout_s: float = 10.0,
    clock: Callable[[], float] = time.time,
    quota: Quota = NO_QUOTA,
) -> AsyncGenerator[StorageManager]:
    """Files below `root`; `min_free_bytes` of its disk stay free for the databases."""
    catalog = await Catalog.open(catalog_db)
    store = await asyncio.to_thread(LocalStore, root, min_free_bytes=min_free_bytes)
    prober = Prober(timeout_s=probe_timeout_s)
    manager = StorageManager(
        store, catalog, prober, max_bytes=max_bytes, grace_s=grace_s, clock=clock, quota=quota
    )
    async with contextlib.aclosing(manager):
        await manager.uploads.take_over()
        yield manager


@contextlib.asynccontextmanager
async def open_memory(
    *,
    max_bytes: int | None = None,
    grace_s: float = GRACE_S,
    clock: Callable[[], float] = time.time,
    quota: Quota = NO_QUOTA,
) -> AsyncGenerator[StorageManager]:
    """Bytes in memory, the catalogue in a folder that goes with it."""
    with tempfile.TemporaryDirectory() as folder:
        catalog = await Catalog.open(Path(folder, "catalog.db"))
        manager = StorageManager(
            MemoryStore(),
            catalog,
            Prober(),
            max_bytes=max_bytes,
            grace_s=grace_s,
            clock=clock,
            quota=quota,
        )
        async with contextlib.aclosing(manager):
            yield manager


def pin_type(name: str | None) -> PinType | None:
    if name is None:
        return None
    try:
        return PinType(name)
    except ValueError as error:
        raise Invalid(
            Code.INVALID_REQUEST,
            f"{name!r} is not a pin type",
            hint="use audio, image, video or binary",
        ) from error


def _blob(info: BlobInfo, kind: Kind, found: dict[str, Any]) -> Blob:
    named = {} if kind.mime == sniff.UNKNOWN else {"mimeType": kind.mime}
    meta = info.meta
    return Blob(
        id=meta["ref"],
        workspace=meta["workspace"],
        key=info.key,
        type=kind.type,
        size=info.size,
        blake3=info.blake3,
        sha256=info.sha256,
        mime_type=kind.mime,
        metadata=meta["claims"] | named | found,
        filename=meta["filename"],
        created_at=meta["created_at"],
        expires_at=meta["expires_at"],
    )
