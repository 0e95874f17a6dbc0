"""The blob store port and what the rest of the house sees of storage.

A `BlobStore` keeps bytes under keys; the catalogue (SQL) is the authority on what exists.
References are opaque (`blob_<ulid>`), never a client-chosen key; identity is blake3.
"""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from mentatlab.protocol.errors import RangeUnsatisfiable
from mentatlab.protocol.media import MediaReference, RefInfo, make_url
from mentatlab.protocol.pins import PinType

Durability = Literal["full", "data", "none"]


class ByteRange(NamedTuple):
    """Bytes `start` to `stop` exclusive."""

    start: int
    stop: int


def clip(range_: ByteRange | None, size: int) -> ByteRange:
    """The part of the range that an object of `size` bytes has."""
    if range_ is None:
        return ByteRange(0, size)
    if not 0 <= range_.start <= size or range_.stop < range_.start:
        raise RangeUnsatisfiable(size)
    return ByteRange(range_.start, min(range_.stop, size))


class BlobInfo(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    size: int
    blake3: str  # hex
    sha256: str = ""  # hex, when asked for
    content_type: str
    meta: dict[str, Any] = {}
    modified_at: float = 0.0  # Unix seconds


class Caps(msgspec.Struct, frozen=True, kw_only=True):
    """What a store has beyond the verbs that all have.

    `part_size`: uploads over this many bytes travel in parts of exactly so many (the last is
    shorter), numbered from 1. `presigns`: clients may speak with the store themselves, through
    `presign` and `Upload.sign_parts`.
    """

    part_size: int = 16 << 20
    presigns: bool = False


class SignedPart(NamedTuple):
    """`url` takes a PUT of exactly the bytes `offset` to `offset + size`."""

    number: int
    offset: int
    size: int
    url: str


class StaleUpload(NamedTuple):
    upload_id: str
    key: str
    changed_at: float  # Unix seconds


class Upload(Protocol):
    """An object on its way in, over any number of connections and processes.

    One writer at a time; the caller sees to that. Nothing is visible before `complete`.
    """

    id: str  # for `resume_upload`; text, opaque to everybody else
    key: str
    offset: int  # bytes taken so far

    async def write(self, source: AsyncIterator[bytes]) -> int:
        """Append all of `source`; the new offset. What came before an error of the source (or a
        cancelled caller) is taken. `OutOfSpace(DISK_FULL)`; `Conflict` when it is complete."""
        ...

    async def checkpoint(self) -> int:
        """All of it is durable; the offset at which `resume_upload` goes on after a crash."""
        ...

    async def sign_parts(self, numbers: Sequence[int], *, expires_s: float) -> list[SignedPart]:
        """For a client that sends parts by itself; only with `Caps.presigns` and a known size, else
        `Conflict`."""
        ...

    async def missing_parts(self) -> list[int]:
        """Numbers of the parts that have not arrived; under the conditions of `sign_parts`."""
        ...

    async def complete(
        self, *, sha256: bool = False, expected_sha256: str | None = None
    ) -> BlobInfo:
        """Publish it as `put` does, atomically and never replacing. Idempotent: also after a crash
        in the middle, or when it was complete before. `Invalid(DIGEST_MISMATCH)`,
        `Conflict(UPLOAD_INCOMPLETE)` when bytes of the announced size are missing.

        `BlobInfo.blake3` is "" when the store has never seen the bytes (a direct upload).
        """
        ...

    async def abort(self) -> None:
        """Forget it and its bytes; fine when it is gone. A complete object stays."""
        ...

    async def aclose(self) -> None:
        """Let go of local resources; the upload stays for `resume_upload`."""
        ...


class Reader(Protocol):
    info: BlobInfo

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Chunks of at most 1 MiB, in order."""
        ...

    async def aclose(self) -> None: ...


class BlobStore(Protocol):
    """Promises.

    - `BlobInfo.blake3` of `head` and `list` is "" where a store could not keep it beside the bytes
      (an object that came to S3 in parts); the catalogue knows it.

    - `put` is atomic (no partial object is ever visible, also after SIGKILL) and never replaces
      (`Conflict(KEY_EXISTS)`). `OutOfSpace(DISK_FULL)`, `Invalid(DIGEST_MISMATCH)`, an error of the
      source and a cancelled caller leave nothing behind.
    - Keys are `/`-separated, checked here (`Invalid`). `delete` of an absent key is fine; elsewhere
      it is `NotFound(REFERENCE_NOT_FOUND)`.
    - A range is cut at the object's end; one that begins beyond it is `RangeUnsatisfiable`.
    """

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
        """`durability`: `full` returns when bytes, sidecar and folder are on disk, `data` when the
        bytes are, `none` leaves it to the system. `expected_sha256` (hex) is checked before
        anything becomes visible."""
        ...

    async def get(self, key: str, *, range_: ByteRange | None = None) -> Reader: ...

    async def head(self, key: str) -> BlobInfo: ...

    async def delete(self, key: str) -> None: ...

    def list(self, prefix: str = "", after: str = "") -> AsyncIterator[BlobInfo]:
        """Objects whose key starts with `prefix` and sorts behind `after`, in key order."""
        ...

    caps: Caps

    async def open_upload(
        self,
        key: str,
        *,
        content_type: str = "application/octet-stream",
        meta: dict[str, Any] | None = None,
        size: int | None = None,
        durability: Durability = "full",
    ) -> Upload:
        """`size` when it is known from the start. `Conflict(KEY_EXISTS)` here or at `complete`."""
        ...

    async def resume_upload(self, upload_id: str) -> Upload:
        """At its durable offset, in this or another process; `NotFound(UPLOAD_NOT_FOUND)`.

        An upload that is complete resumes too, so that `complete` can be repeated.
        """
        ...

    def list_stale_uploads(self, *, before: float) -> AsyncIterator[StaleUpload]:
        """Open uploads that nothing has come to since `before` (Unix seconds)."""
        ...

    async def copy(self, source: str, target: str) -> BlobInfo:
        """Within the store; as atomic as `put`."""
        ...

    def presign(
        self,
        key: str,
        *,
        expires_s: float,
        content_type: str = "",
        disposition: str = "",
    ) -> str | None:
        """A URL at which anybody may GET the object (ranges too); None without `Caps.presigns`.

        It answers with `content_type` and `disposition` where they are given."""
        ...

    async def check(self) -> None:
        """`Unavailable(STORE_UNAVAILABLE)` with its reason when the store cannot work."""
        ...

    async def tidy(self, *, before: float) -> None:
        """Remove what unfinished puts left behind before that time (Unix seconds). What has been
        complete since then need not resume any more; open uploads stay."""
        ...

    def local_path(self, key: str) -> Path | None:
        """A file that may be read in place, when there is one."""
        ...

    def upload_path(self, upload_id: str) -> Path | None:
        """A file that has the bytes of an open upload as they come, when there is one. It stays the
        same file when the upload is complete."""
        ...

    async def aclose(self) -> None: ...


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the catalogue."""

    id: str
    workspace: str
    key: str
    type: PinType  # audio | image | video | binary | json | string
    size: int
    blake3: str
    sha256: str = ""
    mime_type: str  # as sniffed; application/octet-stream when unknown
    metadata: dict[str, Any] = {}  # probed: mimeType, width, height, duration, fps, sampleRate, …
    state: Literal["ready", "corrupt"] = "ready"
    filename: str = ""
    created_at: float = 0.0  # Unix seconds
    expires_at: float | None = None

    def reference(self) -> MediaReference:
        return MediaReference(
            type=self.type,
            ref=RefInfo(
                url=make_url(self.workspace, self.id),
                size=self.size,
                blake3=self.blake3,
                sha256=self.sha256,
                metadata=self.metadata,
            ),
        )


class Storage(Protocol):
    """What `runs` and `gateway` use; implemented by `mentatlab.storage.StorageManager`.

    Every call names the workspace; a foreign or unknown reference is
    `NotFound(REFERENCE_NOT_FOUND)`, an expired one `Gone(REFERENCE_EXPIRED)`.
    """

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
    ) -> Blob:
        """Stream to the store, hash, sniff, probe, commit the row together with its owner row.

        `owner`: `attempt:<run>/<node>/<item>/<n>`, `run:<id>`, `stream:<id>`, or None for an
        upload, which owns itself as `upload:<its ref>`. `ttl_s` None = until no owner is left.
        `key` None = an upload key; a taken key gets a suffix. `expect` = the pin's type: the bytes
        must be of its family, else `UnsupportedMedia(MEDIA_TYPE_MISMATCH)`; 0 bytes on a media pin
        is `Invalid(EMPTY_MEDIA)`. `metadata` is the caller's, overridden by what probing finds.
        """
        ...

    async def store_file(
        self,
        path: Path,
        *,
        below: Path,
        workspace: str,
        owner: str,
        key: str | None = None,
        expect: PinType | None = None,
        declared_mime: str | None = None,
        metadata: dict[str, Any] | None = None,
        durability: Durability = "full",
        ttl_s: float | None = None,
    ) -> Blob:
        """As `store`, from a regular file below `below`, link count 1, opened without following
        links and hashed from the same descriptor; `Invalid(OUTPUT_FILE_INVALID)` otherwise."""
        ...

    async def get(self, ref: object, *, workspace: str) -> Blob:
        """`ref` in any accepted form (id, URL, object)."""
        ...

    async def open(self, blob: Blob, range_: ByteRange | None = None) -> Reader: ...

    def local_path(self, blob: Blob) -> Path | None: ...

    async def add_owner(self, blob_id: str, owner: str) -> None: ...

    async def release(self, owner: str) -> None:
        """Drop the owner's rows; blobs without an owner go at the next sweep."""
        ...
