"""An upload into a bucket that outlives its connection and its process.

    .arriving/<id>/info                what it is to become, and in the end what it became
    .arriving/<id>/<start>-<stop>      bytes that do not fill a part yet

Full parts are parts of a multipart upload, which is opened with the first of them. What is over is
written at each checkpoint as an object of its own; one that follows swallows those before it that
are no larger, so that small steps write each byte a few times only (as a binary counter does).
An upload that never fills a part becomes an object in one put.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from mentatlab.protocol.errors import Code, Invalid, NotFound
from mentatlab.storage.hashing import ContentHash
from mentatlab.storage.port import BlobInfo, SignedPart, StaleUpload
from mentatlab.storage.s3_bucket import Part
from mentatlab.storage.s3_objects import Objects
from mentatlab.storage.s3_parts import Hashes, PartWriter, chosen, empty_hash
from mentatlab.storage.uploading import already_complete, refuse_incomplete, unknown_upload

FOLDER = ".arriving/"  # SeaweedFS hides `.uploads`
_ID = re.compile(r"[0-9a-f]{32}\Z")
_TAIL = re.compile(r"(\d+)-(\d+)\Z")


class Plan(msgspec.Struct, kw_only=True):
    """`info`."""

    key: str
    size: int | None
    content_type: str
    meta: dict[str, Any]
    part_size: int
    upload_id: str = ""  # of the multipart upload, once it is open
    direct: bool = False  # clients have been given URLs: bytes may come that we never see
    done: BlobInfo | None = None


class S3Upload:
    """A `port.Upload`, after `begin` or `catch_up`. `id` is the token of its object."""

    def __init__(self, objects: Objects, hashes: Hashes, id_: str, plan: Plan) -> None:
        self._objects, self._bucket, self._hashes = objects, objects.bucket, hashes
        self._plan = plan
        self._name = objects.name(plan.key)
        self._tails: list[tuple[int, int]] = []  # start and stop; together they are `rest`
        self._litter: list[tuple[int, int]] = []
        self._is_published = False
        self.is_held = True
        self._ending = asyncio.Lock()
        self.id, self.key, self.offset = id_, plan.key, 0
        self._writer = self._new_writer(0, empty_hash())

    async def begin(self) -> "S3Upload":
        """A new one is noted."""
        await self._save()
        return self

    async def catch_up(self) -> "S3Upload":
        """With what the bucket has of it."""
        if self._plan.done is not None:
            self.offset = self._plan.done.size
            return self
        try:
            parts = await self._parts()
        except NotFound:  # given up, or complete and the process ended before it noted that
            if not await self._objects.is_ours(self.key, self.id):
                raise
            self._is_published = True
            self.offset = (await self._objects.head(self.key)).size
            return self
        begin = _contiguous(parts, self._plan.part_size)
        self._writer = self._new_writer(begin, self._hashes.take(self.id, begin))
        await self._read_tails()
        self.offset = self._writer.offset
        return self

    async def write(self, source: AsyncIterator[bytes]) -> int:
        if self._is_over():
            raise already_complete()
        try:
            await self._writer.write(source)
        finally:
            self.offset = self._writer.offset
        return self.offset

    async def checkpoint(self) -> int:
        if not self._is_over():
            await self._writer.flush()
            await self._save_rest()
        return self.offset

    async def sign_parts(self, numbers: Sequence[int], *, expires_s: float) -> list[SignedPart]:
        count = self._count()
        if not all(1 <= number <= count for number in numbers):
            raise Invalid(Code.INVALID_REQUEST, f"the parts of this upload are 1 to {count}")
        if not self._plan.direct:
            self._plan.direct = True
            await self._save()
        upload_id = await self._begin()
        return [self._signed(upload_id, number, expires_s) for number in numbers]

    async def missing_parts(self) -> list[int]:
        there = {part.number: part.size for part in await self._parts()}
        return [n for n in range(1, self._count() + 1) if there.get(n) != self._size_of(n)]

    async def complete(
        self, *, sha256: bool = False, expected_sha256: str | None = None
    ) -> BlobInfo:
        async with self._ending:
            done = self._plan.done
            if done is None:
                hash_ = ContentHash(sha256=sha256, expected_sha256=expected_sha256)
                self._plan.done = done = await self._publish(hash_)
                await self._save()
                self._litter, self._tails = self._litter + self._tails, []
                await self._sweep()
            self.offset = done.size
            return done

    async def abort(self) -> None:
        if self._plan.done is None and self._plan.upload_id:
            await self._bucket.abort(self._name, self._plan.upload_id)
        self.is_held = False
        await forget(self._objects, self.id)

    async def aclose(self) -> None:
        """Whoever resumes it in this process need not read again what was hashed."""
        self._hashes.keep(self.id, self._writer)
        self.is_held = False

    def _is_over(self) -> bool:
        return self._plan.done is not None or self._is_published

    async def _read_tails(self) -> None:
        """The chain of them from the last full part on; at each place the longest is the newest."""
        found = [tail async for tail in _tails(self._objects, self.id)]
        while following := [tail for tail in found if tail[0] == self._writer.offset]:
            self._tails.append(max(following))
            self._writer.restore(await self._bucket.read(self._path(self._tails[-1])))
        self._litter = [tail for tail in found if tail not in self._tails]

    # --- what does not fill a part

    async def _save_rest(self) -> None:
        stop, begin = self._writer.offset, self._writer.offset - self._writer.rest_size
        kept = [tail for tail in self._tails if tail[0] >= begin]
        start = kept[-1][1] if kept else begin
        if start == stop:
            return
        while kept and kept[-1][1] - kept[-1][0] <= stop - start:
            start = kept.pop()[0]
        body = bytes(memoryview(self._writer.rest)[start - begin :])
        await self._objects.put_own(_tail_name(self.id, (start, stop)), body)
        self._litter += [tail for tail in self._tails if tail not in kept]
        self._tails = [*kept, (start, stop)]
        await self._sweep()

    async def _sweep(self) -> None:
        while self._litter:
            await self._bucket.delete(self._path(self._litter[-1]))
            self._litter.pop()

    # --- the end

    async def _publish(self, hash_: ContentHash) -> BlobInfo:
        plan, writer = self._plan, self._writer
        digest = None
        if not self._is_published:
            if not plan.upload_id:
                return await self._put_whole(hash_)
            if not plan.direct:
                self._check_size(writer.offset)
            digest = await writer.digest()
            await writer.finish()
            parts = await self._parts()
            self._check_size(_contiguous(parts, self._plan.part_size))
            if sum(part.size for part in parts) != writer.offset:
                digest = None  # clients have sent some themselves
            async with self._objects.only_new(self.key, self.id):
                await self._bucket.complete(self._name, plan.upload_id, parts)
        info = await self._objects.head(self.key)
        if hash_.has_sha256 or (digest is None and not plan.direct):
            digest = await self._read_back(hash_)
        blake3, sha256 = digest or ("", "")
        return msgspec.structs.replace(info, blake3=blake3, sha256=sha256)

    async def _put_whole(self, hash_: ContentHash) -> BlobInfo:
        self._check_size(self._writer.offset)
        await asyncio.to_thread(hash_.update, self._writer.rest)
        return await self._objects.put(
            self.key,
            self._writer.rest,
            hash_.finish(),
            content_type=self._plan.content_type,
            meta=self._plan.meta,
            token=self.id,
        )

    async def _read_back(self, hash_: ContentHash) -> tuple[str, str]:
        """The parts of an upload cannot be read before it is complete: wrong bytes go again."""
        try:
            return await self._objects.hash(self.key, hash_)
        except Invalid:
            await self._bucket.delete(self._name)
            raise

    def _check_size(self, size: int) -> None:
        wanted = self._plan.size
        if not self._plan.direct:
            wanted = self._writer.offset if wanted is None else wanted
        refuse_incomplete(size, wanted)

    # --- parts

    def _new_writer(self, offset: int, hash_: ContentHash | None) -> PartWriter:
        return PartWriter(
            self._bucket,
            self._name,
            self._begin,
            hash_,
            part_size=self._plan.part_size,
            upload_id=self._plan.upload_id,
            offset=offset,
        )

    async def _begin(self) -> str:
        plan = self._plan
        if not plan.upload_id:
            fields = await self._objects.fields(self.key, plan.meta, self.id)
            plan.upload_id = await self._bucket.begin(
                self._name, content_type=plan.content_type, fields=fields
            )
            self._writer.upload_id = plan.upload_id
            await self._save()
        return plan.upload_id

    async def _parts(self) -> list[Part]:
        if not self._plan.upload_id:
            return []
        parts = await self._bucket.parts(self._name, self._plan.upload_id)
        return chosen(parts, self._size_of)

    def _count(self) -> int:
        if self._plan.size is None:
            raise Invalid(Code.INVALID_REQUEST, "the parts of an upload of unknown size are open")
        return -(-self._plan.size // self._plan.part_size)

    def _size_of(self, number: int) -> int:
        part_size, size = self._plan.part_size, self._plan.size
        return part_size if size is None else min(part_size, size - (number - 1) * part_size)

    def _signed(self, upload_id: str, number: int, expires_s: float) -> SignedPart:
        query = {"partNumber": str(number), "uploadId": upload_id}
        url = self._bucket.signed_url("PUT", self._name, query, expires_s=expires_s)
        return SignedPart(number, (number - 1) * self._plan.part_size, self._size_of(number), url)

    async def _save(self) -> None:
        await self._objects.put_own(f"{FOLDER}{self.id}/info", msgspec.json.encode(self._plan))

    def _path(self, tail: tuple[int, int]) -> str:
        return self._objects.own(_tail_name(self.id, tail))


async def read_plan(objects: Objects, id_: str) -> Plan:
    """`NotFound(UPLOAD_NOT_FOUND)`."""
    try:
        if not _ID.match(id_):
            raise unknown_upload(id_)
        body = await objects.bucket.read(objects.own(f"{FOLDER}{id_}/info"))
    except NotFound as error:
        raise unknown_upload(id_) from error
    return msgspec.json.decode(body, type=Plan)


async def forget(objects: Objects, id_: str) -> None:
    """What is kept of it, the plan last."""
    folder = objects.own(f"{FOLDER}{id_}/")
    names = [found.name async for found in objects.bucket.walk(folder)]
    for name in sorted(names, key=lambda name: name.endswith("info")):
        await objects.bucket.delete(name)


async def all_uploads(objects: Objects) -> AsyncIterator[tuple[str, float]]:
    """Ids, and when something last changed in their folders (Unix seconds)."""
    folder = objects.own(FOLDER)
    changed: dict[str, float] = {}
    async for found in objects.bucket.walk(folder):
        id_ = found.name.removeprefix(folder).partition("/")[0]
        changed[id_] = max(changed.get(id_, 0.0), found.modified_at)
    for id_, at in changed.items():
        yield id_, at


async def stale(objects: Objects, before: float) -> AsyncIterator[StaleUpload]:
    """Uploads that are not complete, and to which nothing has come since."""
    async for id_, changed_at in all_uploads(objects):
        plan = await _plan(objects, id_) if changed_at < before else None
        if plan is not None and plan.done is None:
            name = objects.name(plan.key)
            parts = await _parts_of(objects, name, plan.upload_id)
            latest = max([changed_at, *(part.modified_at for part in parts)])
            if latest < before:
                yield StaleUpload(id_, plan.key, latest)


async def tidy(objects: Objects, before: float) -> None:
    """Notes of uploads that have long been complete, and parts that belong to no upload."""
    open_: set[str] = set()
    async for id_, changed_at in all_uploads(objects):
        plan = await _plan(objects, id_)
        if plan is not None and plan.done is None:
            open_.add(plan.upload_id)
        elif changed_at < before:
            await forget(objects, id_)
    async for upload in objects.bucket.open_uploads(objects.own("")):
        if upload.upload_id not in open_ and upload.begun_at < before:
            parts = await _parts_of(objects, upload.name, upload.upload_id)
            if all(part.modified_at < before for part in parts):
                await objects.bucket.abort(upload.name, upload.upload_id)


async def _plan(objects: Objects, id_: str) -> Plan | None:
    try:
        return await read_plan(objects, id_)
    except NotFound:
        return None


async def _parts_of(objects: Objects, name: str, upload_id: str) -> list[Part]:
    """None of one that has ended, or has not begun."""
    try:
        return await objects.bucket.parts(name, upload_id) if upload_id else []
    except NotFound:
        return []


async def _tails(objects: Objects, id_: str) -> AsyncIterator[tuple[int, int]]:
    folder = objects.own(f"{FOLDER}{id_}/")
    async for found in objects.bucket.walk(folder):
        if match := _TAIL.search(found.name):
            yield int(match[1]), int(match[2])


def _tail_name(id_: str, tail: tuple[int, int]) -> str:
    return f"{FOLDER}{id_}/{tail[0]}-{tail[1]}"


def _contiguous(parts: list[Part], part_size: int) -> int:
    """Bytes from the beginning that have come without a hole."""
    size = 0
    for number, part in enumerate(parts, 1):
        if part.number != number or size != (number - 1) * part_size:
            break
        size += part.size
    return size
