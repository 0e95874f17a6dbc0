"""Blobs as objects of a bucket: their names, what is kept beside the bytes, putting, reading.

    <prefix>ws/_uploads/20261123/blob_x.jpg     the bytes, named as their key
    <prefix>.meta/<token>                       `meta` that does not fit into an object's headers

What servers or XML cannot bear in a name is percent-encoded, and so is a dot that begins a segment:
names that begin with one are the store's own. Every object carries the token of the put that made
it: one whose answer was lost knows its work again. What S3 keeps with an object is ASCII and at
most 2 KB, so `meta` is packed.
"""

import asyncio
import base64
import contextlib
import re
import time
import uuid
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any
from urllib.parse import unquote

import msgspec
from obstore.exceptions import BaseError

from mentatlab.protocol.errors import Code, Conflict, Invalid, NotFound, RangeUnsatisfiable
from mentatlab.storage import keys, s3_errors
from mentatlab.storage.hashing import ContentHash
from mentatlab.storage.port import BlobInfo, ByteRange, clip
from mentatlab.storage.s3_bucket import Bucket, Found
from mentatlab.storage.s3_http import Body

TOKEN = "mentat-token"
_BLAKE3, _SHA256, _META = "mentat-blake3", "mentat-sha256", "mentat-meta"
_BESIDE = "beside"  # stands for packed meta that lies in a sidecar
_MOST_META = 1500  # characters
_CHUNK = 1 << 20  # bytes given out at once, at most
_TRIES = 5  # times in a row that a broken read may bring nothing
_RISKY = re.compile(r"[\x00-\x1f\x7f\\%\ud800-\udfff]|(?<![^/])\.")
SIDECARS = ".meta/"


class Sidecar(msgspec.Struct):
    key: str
    meta: dict[str, Any]


class Objects:
    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self.bucket, self._prefix = bucket, prefix
        self._coming: set[str] = set()  # names that puts under way will take

    def name(self, key: str) -> str:
        """`Invalid` for what is no key."""
        keys.encode(key)
        return self._prefix + _RISKY.sub(lambda found: f"%{ord(found[0]):02X}", key)

    def own(self, name: str) -> str:
        return self._prefix + name

    def key(self, name: str) -> str | None:
        """None for an object of our own, or of somebody else."""
        key = unquote(name.removeprefix(self._prefix))
        try:
            return key if self.name(key) == name else None
        except Invalid:
            return None

    # --- in

    async def put(
        self,
        key: str,
        body: Body,
        digest: tuple[str, str],
        *,
        content_type: str,
        meta: dict[str, Any],
        token: str,
    ) -> BlobInfo:
        """In one request. `Conflict(KEY_EXISTS)`, but not for an object of the same token."""
        hashes = {_BLAKE3: digest[0]} | ({_SHA256: digest[1]} if digest[1] else {})
        fields = await self.fields(key, meta, token) | hashes
        async with self.only_new(key, token):
            await self.bucket.put(
                self.name(key), body, content_type=content_type, fields=fields, only_new=True
            )
        return BlobInfo(
            key=key,
            size=len(body),
            blake3=digest[0],
            sha256=digest[1],
            content_type=content_type,
            meta=meta,
            modified_at=time.time(),
        )

    async def fields(self, key: str, meta: dict[str, Any], token: str) -> dict[str, str]:
        """What is to be kept with an object; what does not fit is put beside it now."""
        packed = base64.b64encode(zlib.compress(msgspec.json.encode(meta))).decode()
        if len(packed) > _MOST_META:
            body = msgspec.json.encode(Sidecar(key, meta))
            await self.put_own(f"{SIDECARS}{token}", body)
            packed = _BESIDE
        return {_META: packed, TOKEN: token}

    async def put_own(self, name: str, body: bytes) -> None:
        """Replaces."""
        await self.bucket.put(
            self.own(name), body, content_type="application/json", fields={}, only_new=False
        )

    @contextlib.asynccontextmanager
    async def only_new(self, key: str, token: str) -> AsyncGenerator[None]:
        """Around a request that makes an object with the token: it must not replace another.

        The server sees to that if it minds conditions; else we look first, and within this process
        nobody else puts the key meanwhile.
        """
        name, unminded = self.name(key), not self.bucket.minds_conditions
        if unminded and name in self._coming:
            raise _taken(key)
        self._coming.add(name)
        try:
            if unminded:
                await self.refuse_taken(key, but=token)
            yield
        except (Conflict, NotFound) as error:
            if not await self.is_ours(key, token):
                raise _taken(key) if isinstance(error, Conflict) else error from error
        finally:
            self._coming.discard(name)

    async def is_ours(self, key: str, token: str) -> bool:
        """Whether the object of the key was made with the token."""
        try:
            return (await self.bucket.head(self.name(key))).fields.get(TOKEN) == token
        except NotFound:
            return False

    async def refuse_taken(self, key: str, *, but: str = "") -> None:
        """`Conflict(KEY_EXISTS)` for a key that has an object, unless it was made with `but`."""
        try:
            found = await self.bucket.head(self.name(key))
        except NotFound:
            return
        if not but or found.fields.get(TOKEN) != but:
            raise _taken(key)

    async def copy(self, source: str, target: str) -> BlobInfo:
        """With what is kept with it; as atomic as `put`."""
        self.name(target)
        found = await self._found(source)
        info, token = await self._info(source, found), new_token()
        fields = dict(found.fields) | await self.fields(target, info.meta, token)
        async with self.only_new(target, token):
            await self.bucket.copy(
                found, self.name(target), content_type=found.content_type, fields=fields
            )
        return msgspec.structs.replace(info, key=target, modified_at=time.time())

    # --- out

    async def head(self, key: str) -> BlobInfo:
        return await self._info(key, await self._found(key))

    async def _found(self, key: str) -> Found:
        try:
            return await self.bucket.head(self.name(key))
        except NotFound as error:
            raise _absent(key) from error

    async def get(self, key: str, range_: ByteRange | None) -> "S3Reader":
        """The bytes are asked for at once: with them the object tells the rest of itself."""
        name = self.name(key)
        try:
            if range_ is not None and not 0 <= range_.start < range_.stop:
                raise RangeUnsatisfiable(0)
            start, stop = range_ or (0, None)
            found, stream = await self.bucket.get(name, start, stop)
        except RangeUnsatisfiable:  # an empty range at the end is fine, and S3 has none
            found, stream = await self._found(key), None
        except NotFound as error:
            raise _absent(key) from error
        info = await self._info(key, found)
        return S3Reader(self.bucket, name, info, clip(range_, info.size), stream)

    async def hash(self, key: str, hash_: ContentHash) -> tuple[str, str]:
        """Of all bytes as the bucket gives them back."""
        reader = await self.get(key, None)
        try:
            async for chunk in reader:
                await asyncio.to_thread(hash_.update, chunk)
        finally:
            await reader.aclose()
        return hash_.finish()

    async def tidy(self, before: float) -> None:
        """Sidecars without an object that are older."""
        async for sidecar in self.bucket.walk(self.own(SIDECARS)):
            if sidecar.modified_at < before:
                body = await self.bucket.read(sidecar.name)
                key = msgspec.json.decode(body, type=Sidecar).key
                if not await self.is_ours(key, sidecar.name.removeprefix(self.own(SIDECARS))):
                    await self.bucket.delete(sidecar.name)

    async def _info(self, key: str, found: Found) -> BlobInfo:
        fields = found.fields
        return BlobInfo(
            key=key,
            size=found.size,
            blake3=fields.get(_BLAKE3, ""),
            sha256=fields.get(_SHA256, ""),
            content_type=found.content_type,
            meta=await self._meta(fields.get(_META, ""), fields.get(TOKEN, "")),
            modified_at=found.modified_at,
        )

    async def _meta(self, packed: str, token: str) -> dict[str, Any]:
        if not packed:
            return {}
        if packed == _BESIDE:
            body = await self.bucket.read(self.own(f"{SIDECARS}{token}"))
            return msgspec.json.decode(body, type=Sidecar).meta
        return msgspec.json.decode(zlib.decompress(base64.b64decode(packed)), type=dict[str, Any])


class S3Reader:
    """A `port.Reader`. A line that breaks is taken up where it broke."""

    def __init__(
        self,
        bucket: Bucket,
        name: str,
        info: BlobInfo,
        span: ByteRange,
        stream: AsyncIterator[bytes] | None,
    ) -> None:
        self.info = info
        self._bucket, self._name = bucket, name
        self._span, self._stream = span, stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        offset, stop = self._span
        tries = _TRIES
        while offset < stop:
            try:
                chunk = await self._next(offset, stop)
            except (BaseError, StopAsyncIteration) as broken:
                tries, self._stream = tries - 1, None
                if tries == 0:
                    reason = s3_errors.reported(str(broken), self._bucket.login.endpoint)
                    raise reason from broken
                continue
            for start in range(0, len(chunk), _CHUNK):
                yield chunk[start : start + _CHUNK]
            offset, tries = offset + len(chunk), _TRIES

    async def _next(self, offset: int, stop: int) -> bytes:
        if self._stream is None:
            _, self._stream = await self._bucket.get(self._name, offset, stop)
        return await anext(self._stream)

    async def aclose(self) -> None:
        """Ends the request if it has not ended."""
        self._stream = None


def new_token() -> str:
    return uuid.uuid4().hex


def _taken(key: str) -> Conflict:
    return Conflict(Code.KEY_EXISTS, f"{key!r} exists already, or something stands in its way")


def _absent(key: str) -> NotFound:
    return NotFound(Code.REFERENCE_NOT_FOUND, f"no object {key!r}")
