"""Blobs in a bucket of any S3 server."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import msgspec

from mentatlab.storage import s3_owner, s3_upload
from mentatlab.storage.hashing import ContentHash
from mentatlab.storage.port import (
    BlobInfo,
    ByteRange,
    Caps,
    Durability,
    Reader,
    StaleUpload,
    Upload,
)
from mentatlab.storage.s3_bucket import Bucket
from mentatlab.storage.s3_login import Login
from mentatlab.storage.s3_objects import Objects, new_token
from mentatlab.storage.s3_parts import Hashes, PartWriter, chosen, refuse_too_many
from mentatlab.storage.s3_upload import Plan, S3Upload

T = TypeVar("T")
PART_BYTES = 16 << 20


async def open_store(login: Login, home: str) -> "S3Store":
    """In the bucket that is this home's alone, see `s3_owner`."""
    bucket = Bucket(login)
    try:
        await bucket.open()
        await s3_owner.claim(bucket, home)
    except BaseException:
        await bucket.aclose()
        raise
    return S3Store(bucket)


class S3Store:
    """A `port.BlobStore`. Below `prefix` of the bucket, which it closes with itself.

    A put of at most `part_size` bytes is one conditional request; a larger one travels in parts,
    and its blake3 is not kept with it. Bytes are checked by the server against their SHA-256.
    """

    def __init__(self, bucket: Bucket, *, prefix: str = "", part_size: int = PART_BYTES) -> None:
        self.caps = Caps(part_size=part_size, presigns=True)
        self.bucket, self.prefix = bucket, prefix
        self._objects = Objects(bucket, prefix)
        self._hashes = Hashes()
        self._held: WeakValueDictionary[str, S3Upload] = WeakValueDictionary()

    def within(self, prefix: str) -> "S3Store":
        """Another one in the same bucket, which this one neither lists nor sweeps, and closes."""
        return S3Store(self.bucket, prefix=self.prefix + prefix)

    async def put(
        self,
        key: str,
        source: AsyncIterator[bytes],
        *,
        content_type: str = "application/octet-stream",
        meta: dict[str, Any] | None = None,
        durability: Durability = "full",
        sha256: bool = False,
        expected_sha256: str | None = None,
    ) -> BlobInfo:
        del durability  # S3 answers when it is durable
        put = _Put(self._objects, self.caps.part_size, key, content_type, meta or {})
        hash_ = ContentHash(sha256=sha256, expected_sha256=expected_sha256)
        return await put.carry_out(source, hash_)

    async def get(self, key: str, *, range_: ByteRange | None = None) -> Reader:
        return await self._objects.get(key, range_)

    async def head(self, key: str) -> BlobInfo:
        return await self._objects.head(key)

    async def delete(self, key: str) -> None:
        await self.bucket.delete(self._objects.name(key))

    async def list(self, prefix: str = "", after: str = "") -> AsyncIterator[BlobInfo]:
        folder = prefix.rpartition("/")[0]
        names = self._objects.name(folder) + "/" if folder else self._objects.own("")
        behind = self._objects.name(after) if after else ""
        async for found in self.bucket.walk(names, behind):
            key = self._objects.key(found.name)
            if key is not None and key.startswith(prefix):
                yield BlobInfo(
                    key=key,
                    size=found.size,
                    blake3="",
                    content_type="",
                    modified_at=found.modified_at,
                )

    async def open_upload(
        self,
        key: str,
        *,
        content_type: str = "application/octet-stream",
        meta: dict[str, Any] | None = None,
        size: int | None = None,
        durability: Durability = "full",
    ) -> Upload:
        del durability
        refuse_too_many(size or 0, self.caps.part_size)
        await self._objects.refuse_taken(key)
        plan = Plan(
            key=key,
            size=size,
            content_type=content_type,
            meta=meta or {},
            part_size=self.caps.part_size,
        )
        return await self._upload(new_token(), plan).begin()

    async def resume_upload(self, upload_id: str) -> Upload:
        """The one that is held in this process, if any: it knows bytes that are not durable."""
        held = self._held.get(upload_id)
        if held is not None and held.is_held:
            return held
        plan = await s3_upload.read_plan(self._objects, upload_id)
        return await self._upload(upload_id, plan).catch_up()

    def _upload(self, id_: str, plan: Plan) -> S3Upload:
        upload = S3Upload(self._objects, self._hashes, id_, plan)
        self._held[id_] = upload
        return upload

    async def list_stale_uploads(self, *, before: float) -> AsyncIterator[StaleUpload]:
        async for upload in s3_upload.stale(self._objects, before):
            yield upload

    async def copy(self, source: str, target: str) -> BlobInfo:
        return await self._objects.copy(source, target)

    def presign(
        self, key: str, *, expires_s: float, content_type: str = "", disposition: str = ""
    ) -> str | None:
        query: dict[str, str] = {}
        if content_type:
            query["response-content-type"] = content_type
        if disposition:
            query["response-content-disposition"] = disposition
        return self.bucket.signed_url("GET", self._objects.name(key), query, expires_s=expires_s)

    async def check(self) -> None:
        await self.bucket.check()

    async def tidy(self, *, before: float) -> None:
        """Parts and notes of uploads that are over, and sidecars without an object."""
        await s3_upload.tidy(self._objects, before)
        await self._objects.tidy(before)

    def local_path(self, key: str) -> Path | None:
        self._objects.name(key)
        return None

    def upload_path(self, upload_id: str) -> Path | None:
        del upload_id
        return None

    async def aclose(self) -> None:
        await self.bucket.aclose()


class _Put:
    def __init__(
        self, objects: Objects, part_size: int, key: str, content_type: str, meta: dict[str, Any]
    ) -> None:
        self._objects, self._bucket, self._part_size = objects, objects.bucket, part_size
        self._key, self._name, self._token = key, objects.name(key), new_token()
        self._content_type, self._meta = content_type, meta

    async def carry_out(self, source: AsyncIterator[bytes], hash_: ContentHash) -> BlobInfo:
        writer = PartWriter(self._bucket, self._name, self._begin, hash_, part_size=self._part_size)
        try:
            await writer.write(source)
            digest = await writer.digest() or ("", "")
            return await _or_undone(self._publish(writer, digest), self._delete)
        except BaseException:
            if writer.upload_id:
                await asyncio.shield(self._bucket.abort(self._name, writer.upload_id))
            raise

    async def _publish(self, writer: PartWriter, digest: tuple[str, str]) -> BlobInfo:
        if not writer.upload_id:
            return await self._objects.put(
                self._key,
                writer.rest,
                digest,
                content_type=self._content_type,
                meta=self._meta,
                token=self._token,
            )
        await writer.finish()
        parts = await self._bucket.parts(self._name, writer.upload_id)
        parts = chosen(parts, lambda _: self._part_size)
        async with self._objects.only_new(self._key, self._token):
            await self._bucket.complete(self._name, writer.upload_id, parts)
        info = await self._objects.head(self._key)
        return msgspec.structs.replace(info, blake3=digest[0], sha256=digest[1])

    async def _begin(self) -> str:
        fields = await self._objects.fields(self._key, self._meta, self._token)
        return await self._bucket.begin(self._name, content_type=self._content_type, fields=fields)

    async def _delete(self) -> None:
        await self._bucket.delete(self._name)


async def _or_undone(
    work: Coroutine[Any, Any, T], undo: Callable[[], Coroutine[Any, Any, None]]
) -> T:
    """A request that is cut off may have worked: cancelled in the middle, it ends and is undone."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if task.exception() is None:
            await asyncio.shield(undo())
        raise
