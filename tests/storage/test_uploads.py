"""Uploads on the stores that need no server, in one process."""

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blake3 import blake3
from PIL import Image
from tests.storage.conftest import NOW

from mentatlab.protocol.errors import (
    Code,
    Conflict,
    Fenced,
    Gone,
    Internal,
    Invalid,
    MentatError,
    NotFound,
    OutOfSpace,
    TooLarge,
    UnsupportedMedia,
)
from mentatlab.protocol.pins import PinType
from mentatlab.storage import Quota, StorageManager, open_local
from mentatlab.storage.port import Upload
from mentatlab.storage.upload_rows import Claims, UploadRow, UploadRows
from mentatlab.storage.uploads import OPEN_TTL_S, NewUpload, Uploads
from mentatlab.testing.clock import ManualClock

BIG = os.urandom(1 << 20) * 3
WS = "ws"


@pytest.fixture
def uploads(storage: StorageManager) -> Uploads:
    return storage.uploads


def png(side: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGB", (side, side), os.urandom(side * side * 3)).save(buffer, "PNG")
    return buffer.getvalue()


async def pieces(data: bytes, size: int = 64 << 10) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


class LineCut(Exception):  # noqa: N818
    pass


async def cut(data: bytes, size: int = 64 << 10) -> AsyncIterator[bytes]:
    async for piece in pieces(data, size):
        yield piece
    raise LineCut


class Hanging:
    """Bytes, and then nothing, for ever; `reached` when it is waited for more."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.reached = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in pieces(self._data):
            yield piece
        self.reached.set()
        await asyncio.Event().wait()


async def begin(uploads: Uploads, size: int | None, **fields: object) -> UploadRow:
    claims = Claims(**fields.pop("claims", {}))  # type: ignore[arg-type]
    new = NewUpload(workspace=WS, size=size, claims=claims, **fields)  # type: ignore[arg-type]
    return await uploads.create(new, "tus")


async def append(uploads: Uploads, row: UploadRow, data: bytes, offset: int = 0) -> UploadRow:
    return await uploads.append(row.id, pieces(data), workspace=WS, offset=offset)


async def content(storage: StorageManager, ref: str) -> bytes:
    reader = await storage.open(await storage.get(ref, workspace=WS))
    try:
        return b"".join([chunk async for chunk in reader])
    finally:
        await reader.aclose()


async def assert_gone(uploads: Uploads, row: UploadRow) -> None:
    with pytest.raises(NotFound) as error:
        await uploads.find(row.id, workspace=WS)
    assert error.value.code is Code.UPLOAD_NOT_FOUND
    used = await uploads.usage(WS)
    assert (used.reserved_bytes, used.reserved_count) == (0, 0)


# --- bytes


@pytest.mark.parametrize("step", [1000, 4096, 100_000, len(BIG)])
async def test_pieces_become_a_blob(storage: StorageManager, uploads: Uploads, step: int) -> None:
    data = BIG if step > 4096 else BIG[:12_345]
    row = await begin(uploads, len(data), filename="a.bin")
    for offset in range(0, len(data), step):
        row = await append(uploads, row, data[offset : offset + step], offset)
        assert row.offset == min(offset + step, len(data))
    assert row.state == "done"
    blob = await uploads.result(row)
    assert (blob.id, blob.size, blob.filename) == (row.ref, len(data), "a.bin")
    assert blob.blake3 == blake3(data).hexdigest()
    assert await content(storage, row.ref) == data


async def test_what_came_before_the_line_was_cut_stays(
    storage: StorageManager, uploads: Uploads
) -> None:
    row = await begin(uploads, len(BIG))
    offset = 0
    for size in (100, 3000, 200_000, 1_000_000):
        source = cut(BIG[offset : offset + size])
        with pytest.raises(LineCut):
            await uploads.append(row.id, source, workspace=WS, offset=offset)
        offset = (await uploads.pause(row.id, workspace=WS)).offset
        assert offset > 0
    assert (await append(uploads, row, BIG[offset:], offset)).state == "done"
    assert await content(storage, row.ref) == BIG


async def test_offsets_are_told_by_the_row(uploads: Uploads) -> None:
    row = await begin(uploads, 10)
    assert (await uploads.find(row.id, workspace=WS)).offset == 0
    await append(uploads, row, b"12345")
    assert (await uploads.find(row.id, workspace=WS)).offset == 5


@pytest.mark.parametrize("offset", [0, 4, 6, 10])
async def test_a_wrong_offset_changes_nothing(uploads: Uploads, offset: int) -> None:
    row = await begin(uploads, 10)
    await append(uploads, row, b"12345")
    with pytest.raises(Conflict) as error:
        await append(uploads, row, b"67890", offset)
    assert error.value.code is Code.UPLOAD_OFFSET_MISMATCH
    assert error.value.details == {"offset": 5}
    assert (await uploads.pause(row.id, workspace=WS)).offset == 5


async def test_more_than_announced_is_refused(uploads: Uploads) -> None:
    row = await begin(uploads, 10)
    with pytest.raises(TooLarge):
        await uploads.append(row.id, pieces(b"x" * 11), workspace=WS, offset=0, length=11)
    with pytest.raises(TooLarge):
        await uploads.append(row.id, pieces(b"x" * 11, 4), workspace=WS, offset=0)
    assert (await uploads.pause(row.id, workspace=WS)).offset == 8
    assert (await append(uploads, row, b"90", 8)).state == "done"
    with pytest.raises(TooLarge):
        await uploads.append(row.id, pieces(b"x"), workspace=WS, offset=10, length=1)


async def test_less_than_announced_is_not_complete(uploads: Uploads) -> None:
    row = await begin(uploads, 10)
    await append(uploads, row, b"12345")
    with pytest.raises(Conflict) as error:
        await uploads.complete(row.id, workspace=WS)
    assert error.value.code is Code.UPLOAD_INCOMPLETE
    assert error.value.details == {"offset": 5, "size": 10}


async def test_nothing_is_a_blob_too(storage: StorageManager, uploads: Uploads) -> None:
    row = await begin(uploads, 0)
    assert (await uploads.pause(row.id, workspace=WS)).state == "done"
    assert await content(storage, row.ref) == b""


async def test_nothing_is_no_picture(uploads: Uploads) -> None:
    row = await begin(uploads, 0, expect=PinType.IMAGE)
    with pytest.raises(Invalid) as error:
        await uploads.pause(row.id, workspace=WS)
    assert error.value.code is Code.EMPTY_MEDIA
    await assert_gone(uploads, row)


async def test_a_size_may_be_told_later(storage: StorageManager, uploads: Uploads) -> None:
    row = await begin(uploads, None)
    row = await append(uploads, row, b"12345")
    assert (row.state, row.size) == ("open", None)
    for wrong in (4, 9 << 20):
        with pytest.raises(MentatError):
            await uploads.append(row.id, pieces(b""), workspace=WS, offset=5, size=wrong)
    row = await uploads.append(row.id, pieces(b"67"), workspace=WS, offset=5, size=8)
    with pytest.raises(Invalid):
        await uploads.append(row.id, pieces(b"8"), workspace=WS, offset=7, size=9)
    row = await uploads.append(row.id, pieces(b"8"), workspace=WS, offset=7, size=8)
    assert row.state == "done"
    assert await content(storage, row.ref) == b"12345678"


async def test_what_has_no_size_ends_where_it_is(storage: StorageManager, uploads: Uploads) -> None:
    row = await begin(uploads, None)
    await append(uploads, row, b"12345")
    assert (await uploads.complete(row.id, workspace=WS)).size == 5
    empty = await begin(uploads, None)
    assert (await uploads.complete(empty.id, workspace=WS)).size == 0


async def test_one_object_has_a_bound(uploads: Uploads) -> None:
    with pytest.raises(TooLarge):
        await begin(uploads, (8 << 20) + 1)
    row = await begin(uploads, None)
    with pytest.raises(TooLarge):
        await append(uploads, row, b"x" * ((8 << 20) + 1))
    with pytest.raises(TooLarge):
        await uploads.append(row.id, pieces(b""), workspace=WS, offset=8 << 20, length=1)


# --- the end


async def test_the_end_is_the_same_however_often_it_is_asked_for(uploads: Uploads) -> None:
    row = await begin(uploads, 5)
    await append(uploads, row, b"12345")
    first = await uploads.complete(row.id, workspace=WS)
    assert await uploads.complete(row.id, workspace=WS) == first
    again = await asyncio.gather(*(uploads.complete(row.id, workspace=WS) for _ in range(5)))
    assert again == [first] * 5
    used = await uploads.usage(WS)
    assert (used.bytes, used.count, used.reserved_bytes) == (5, 1, 0)


async def test_appending_nothing_to_the_end_is_fine(uploads: Uploads) -> None:
    row = await begin(uploads, 5)
    await append(uploads, row, b"12345")
    assert (await append(uploads, row, b"", 5)).state == "done"


@pytest.mark.parametrize("algorithm", ["sha256", "blake3"])
async def test_announced_digests(uploads: Uploads, algorithm: str) -> None:
    data = b"12345"
    digest = {"sha256": hashlib.sha256, "blake3": blake3}[algorithm](data).hexdigest()
    good = await begin(uploads, 5, claims={algorithm: digest})
    await append(uploads, good, data)
    blob = await uploads.result(good)
    assert blob.sha256 == (digest if algorithm == "sha256" else "")
    bad = await begin(uploads, 5, claims={algorithm: digest})
    with pytest.raises(Invalid) as error:
        await append(uploads, bad, b"12346")
    assert error.value.code is Code.DIGEST_MISMATCH
    await assert_gone(uploads, bad)


async def test_digests_told_at_the_end(uploads: Uploads) -> None:
    row = await begin(uploads, None)
    await append(uploads, row, b"12345")
    with pytest.raises(Invalid):
        await uploads.complete(row.id, workspace=WS, sha256="0" * 64)
    await assert_gone(uploads, row)


async def test_a_picture_is_probed(storage: StorageManager, uploads: Uploads) -> None:
    data = png()
    claims = {"declared_mime": "image/gif", "metadata": {"label": "x"}}
    row = await begin(uploads, len(data), expect=PinType.IMAGE, claims=claims)
    await append(uploads, row, data)
    blob = await uploads.result(row)
    assert (blob.type, blob.mime_type) == (PinType.IMAGE, "image/png")
    assert blob.metadata["width"] == 40
    assert blob.metadata["declaredMimeType"] == "image/gif"
    assert blob.metadata["label"] == "x"
    assert blob.key.endswith(f"{row.ref}.png")


@pytest.mark.parametrize("first", [100, 2048, 4095, 4096, 20_000])
async def test_a_wrong_type_is_refused_as_soon_as_it_shows(uploads: Uploads, first: int) -> None:
    data = b"this is no picture. " * 2000
    row = await begin(uploads, len(data), expect=PinType.IMAGE)
    unseen = range(0, 4096 - first, first)
    for offset in unseen:
        await append(uploads, row, data[offset : offset + first], offset)
    offset = len(unseen) * first
    with pytest.raises(UnsupportedMedia) as error:
        await append(uploads, row, data[offset : offset + first], offset)
    assert error.value.code is Code.MEDIA_TYPE_MISMATCH
    await assert_gone(uploads, row)


async def test_a_short_wrong_type_is_refused_at_the_end(uploads: Uploads) -> None:
    row = await begin(uploads, None, expect=PinType.IMAGE)
    await append(uploads, row, b"no picture")
    with pytest.raises(UnsupportedMedia):
        await uploads.complete(row.id, workspace=WS)
    await assert_gone(uploads, row)


async def test_what_an_upload_becomes_belongs_to_its_owner(
    storage: StorageManager, uploads: Uploads, clock: ManualClock
) -> None:
    own = await begin(uploads, 1)
    runs = await begin(uploads, 1, claims={"owner": "run:rn_1"}, ttl_s=60.0)
    for row in (own, runs):
        await append(uploads, row, b"x")
    assert (await uploads.result(own)).expires_at is None
    assert (await uploads.result(runs)).expires_at == NOW + 60
    await storage.delete(own.ref, workspace=WS)
    with pytest.raises(Conflict):
        await storage.delete(runs.ref, workspace=WS)


# --- who may


async def test_foreign_and_unknown_look_alike(uploads: Uploads) -> None:
    row = await begin(uploads, 5)
    for call in (
        uploads.find(row.id, workspace="other"),
        uploads.pause(row.id, workspace="other"),
        uploads.append(row.id, pieces(b"x"), workspace="other", offset=0),
        uploads.complete(row.id, workspace="other"),
        uploads.abort(row.id, workspace="other"),
        uploads.follow(row.ref, workspace="other"),
        uploads.find("up_0", workspace=WS),
    ):
        with pytest.raises(NotFound) as error:
            await call
        assert error.value.code is Code.UPLOAD_NOT_FOUND


async def test_a_newcomer_wins(storage: StorageManager, uploads: Uploads) -> None:
    row = await begin(uploads, len(BIG))
    old = Hanging(BIG[:1_000_000])
    first = asyncio.ensure_future(uploads.append(row.id, aiter(old), workspace=WS, offset=0))
    await old.reached.wait()
    offset = (await uploads.pause(row.id, workspace=WS)).offset
    assert offset == 1_000_000
    with pytest.raises(Fenced) as error:
        await first
    assert error.value.code is Code.UPLOAD_SUPERSEDED
    assert (await append(uploads, row, BIG[offset:], offset)).state == "done"
    assert await content(storage, row.ref) == BIG


async def test_many_newcomers_one_wins(storage: StorageManager, uploads: Uploads) -> None:
    row = await begin(uploads, len(BIG))
    while row.state == "open":
        at = row.offset
        calls = (append(uploads, row, BIG[at : at + 700_000], at) for _ in range(4))
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(answer, UploadRow | Conflict | Fenced | TooLarge)
        row = await uploads.pause(row.id, workspace=WS)
        assert row.offset > at
    assert await content(storage, row.ref) == BIG


async def test_a_cancelled_caller_keeps_what_came(uploads: Uploads) -> None:
    row = await begin(uploads, len(BIG))
    source = Hanging(BIG[:500_000])
    task = asyncio.ensure_future(uploads.append(row.id, aiter(source), workspace=WS, offset=0))
    await source.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await uploads.find(row.id, workspace=WS)).offset == 500_000


# --- their time


async def test_abort_forgets_bytes_and_room(
    storage: StorageManager, uploads: Uploads, tmp_path: Path
) -> None:
    row = await begin(uploads, len(BIG))
    await append(uploads, row, BIG[:100_000])
    await uploads.abort(row.id, workspace=WS)
    await assert_gone(uploads, row)
    assert [p for p in (tmp_path / "blobs").rglob("*") if p.is_file()] == []


async def test_abort_of_a_finished_upload_removes_its_blob(
    storage: StorageManager, uploads: Uploads
) -> None:
    free, needed = await begin(uploads, 1), await begin(uploads, 1)
    for row in (free, needed):
        await append(uploads, row, b"x")
    await storage.add_owner(needed.ref, "run:1")
    for row in (free, needed):
        await uploads.abort(row.id, workspace=WS)
        await assert_gone(uploads, row)
    with pytest.raises(NotFound):
        await storage.get(free.ref, workspace=WS)
    assert await content(storage, needed.ref) == b"x"


async def test_an_upload_that_nobody_goes_on_with_expires(
    uploads: Uploads, clock: ManualClock
) -> None:
    row, fresh = await begin(uploads, 10), await begin(uploads, 10)
    await append(uploads, row, b"12345")
    clock.now += OPEN_TTL_S - 1
    await append(uploads, fresh, b"12345")
    clock.now += 1
    for call in (uploads.find(row.id, workspace=WS), append(uploads, row, b"67890", 5)):
        with pytest.raises(Gone) as error:
            await call
        assert error.value.code is Code.UPLOAD_EXPIRED
    assert await uploads.sweep() == 1
    with pytest.raises(NotFound):
        await uploads.find(row.id, workspace=WS)
    assert (await append(uploads, fresh, b"67890", 5)).state == "done"
    assert (await uploads.usage(WS)).reserved_bytes == 0


async def test_a_result_is_told_for_a_day(
    storage: StorageManager, uploads: Uploads, clock: ManualClock
) -> None:
    row = await begin(uploads, 1)
    await append(uploads, row, b"x")
    clock.now += OPEN_TTL_S
    assert await uploads.sweep() == 1
    with pytest.raises(NotFound):
        await uploads.complete(row.id, workspace=WS)
    assert await content(storage, row.ref) == b"x"


# --- followed


async def test_a_follower_sees_it_grow_and_end(uploads: Uploads) -> None:
    row = await begin(uploads, 10)
    seen = await uploads.follow(row.ref, workspace=WS)
    assert (seen.offset, seen.size, seen.state) == (0, 10, "open")
    for offset in (0, 5):
        waiting = asyncio.ensure_future(uploads.follow(row.ref, workspace=WS, beyond=offset))
        await asyncio.sleep(0)
        await append(uploads, row, b"12345", offset)
        assert (await waiting).offset == offset + 5
    last = await uploads.follow(row.ref, workspace=WS, beyond=10)
    assert last.state == "done"


async def test_a_follower_learns_that_it_died(uploads: Uploads) -> None:
    row = await begin(uploads, 10)
    waiting = asyncio.ensure_future(uploads.follow(row.ref, workspace=WS, beyond=0))
    await asyncio.sleep(0)
    await uploads.abort(row.id, workspace=WS)
    with pytest.raises(NotFound):
        await waiting


# --- the store


async def test_bytes_that_are_lost_are_told(uploads: Uploads, storage: StorageManager) -> None:
    row = await begin(uploads, 10)
    row = await append(uploads, row, b"12345")
    rows = UploadRows(storage._catalog.database, Quota())
    await rows.record(_with(row, fence=row.fence, offset=6))
    with pytest.raises(Internal) as error:
        await uploads.pause(row.id, workspace=WS)
    assert error.value.code is Code.REFERENCE_CORRUPT


async def test_an_upload_that_was_swept_at_the_store_is_gone(
    uploads: Uploads, storage: StorageManager
) -> None:
    row = await begin(uploads, 10)
    row = await append(uploads, row, b"12345")
    await (await storage._store.resume_upload(row.store_id)).abort()
    with pytest.raises(NotFound):
        await uploads.pause(row.id, workspace=WS)
    await assert_gone(uploads, row)


async def test_a_hole_in_the_beginning_is_judged_at_the_end(
    uploads: Uploads, storage: StorageManager
) -> None:
    """The store had taken more than the row knew when the server died."""
    data = png(200)
    row = await begin(uploads, len(data), expect=PinType.IMAGE)
    row = await append(uploads, row, data[:100])
    upload = await storage._store.resume_upload(row.store_id)
    await upload.write(pieces(data[100:3000]))
    await upload.checkpoint()
    await upload.aclose()
    assert (await uploads.pause(row.id, workspace=WS)).offset == 3000
    row = await append(uploads, row, data[3000:], 3000)
    assert (await uploads.result(row)).mime_type == "image/png"


def _with(row: UploadRow, **changes: object) -> UploadRow:
    return UploadRow(**{name: getattr(row, name) for name in row.__struct_fields__} | changes)


# --- single


async def test_a_single_upload_in_one_go(storage: StorageManager, uploads: Uploads) -> None:
    row = await uploads.create(NewUpload(workspace=WS, size=5), "single")
    blob = await uploads.put(row.id, pieces(b"12345"), workspace=WS)
    assert await content(storage, blob.id) == b"12345"
    assert await uploads.put(row.id, pieces(b"12345"), workspace=WS) == blob


async def test_a_single_upload_begins_again(storage: StorageManager, uploads: Uploads) -> None:
    data = BIG[:100_000]
    row = await uploads.create(NewUpload(workspace=WS, size=len(data)), "single")
    with pytest.raises(LineCut):
        await uploads.put(row.id, cut(data[:50_000]), workspace=WS)
    with pytest.raises(Conflict) as error:
        await uploads.put(row.id, pieces(data[:50_000]), workspace=WS)
    assert error.value.code is Code.UPLOAD_INCOMPLETE
    digest = hashlib.sha256(data).hexdigest()
    blob = await uploads.put(row.id, pieces(data), workspace=WS, sha256=digest)
    assert (blob.id, blob.sha256) == (row.ref, digest)
    assert await content(storage, blob.id) == data


async def test_each_way_is_its_own(uploads: Uploads) -> None:
    single = await uploads.create(NewUpload(workspace=WS, size=5), "single")
    tus = await begin(uploads, 5)
    for call in (
        append(uploads, single, b"12345"),
        uploads.pause(single.id, workspace=WS),
        uploads.put(tus.id, pieces(b"12345"), workspace=WS),
        uploads.sign_parts(tus, [1]),
        uploads.missing_parts(tus),
    ):
        with pytest.raises(Conflict):
            await call
    assert (await uploads.fall_back(tus.id, workspace=WS)).mode == "tus"


async def test_a_store_without_parts_refuses_them(uploads: Uploads) -> None:
    row = await uploads.create(NewUpload(workspace=WS, size=5), "direct")
    with pytest.raises(Conflict):
        await uploads.sign_parts(row, [1])
    fallen = await uploads.fall_back(row.id, workspace=WS)
    assert (fallen.mode, fallen.offset) == ("tus", 0)
    assert (await append(uploads, fallen, b"12345")).state == "done"


# --- quota


@pytest.fixture
async def small(tmp_path: Path, clock: ManualClock) -> AsyncIterator[StorageManager]:
    quota = Quota(bytes=1000, count=3)
    paths = (tmp_path / "small", tmp_path / "small.db")
    async with open_local(*paths, quota=quota, clock=clock) as storage:
        yield storage


def over(error: pytest.ExceptionInfo[OutOfSpace]) -> bool:
    return error.value.code is Code.QUOTA_EXCEEDED


async def test_room_is_taken_at_the_beginning_and_given_back(small: StorageManager) -> None:
    uploads = small.uploads
    row = await begin(uploads, 900)
    with pytest.raises(OutOfSpace) as error:
        await begin(uploads, 101)
    assert over(error)
    other = NewUpload(workspace="other", size=101)
    await uploads.create(other, "tus")
    fits = await begin(uploads, 100)
    await uploads.abort(row.id, workspace=WS)
    await uploads.abort(fits.id, workspace=WS)
    row = await append(uploads, await begin(uploads, 1000), b"x" * 1000)
    used = await uploads.usage(WS)
    assert (used.bytes, used.reserved_bytes) == (1000, 0)
    with pytest.raises(OutOfSpace):
        await begin(uploads, 1)


async def test_the_number_of_objects_has_a_bound(small: StorageManager) -> None:
    rows = [await begin(small.uploads, 1) for _ in range(3)]
    with pytest.raises(OutOfSpace) as error:
        await begin(small.uploads, 1)
    assert over(error)
    assert error.value.details["quota_count"] == 3
    for row in rows:
        await append(small.uploads, row, b"x")
    with pytest.raises(OutOfSpace):
        await begin(small.uploads, 1)


async def test_many_at_once_take_no_more_than_there_is(small: StorageManager) -> None:
    async def try_one() -> bool:
        try:
            await begin(small.uploads, 400)
        except OutOfSpace:
            return False
        return True

    assert sum(await asyncio.gather(*(try_one() for _ in range(20)))) == 2


async def test_bytes_of_no_announced_size_are_counted_as_they_come(small: StorageManager) -> None:
    row = await begin(small.uploads, None)
    with pytest.raises(OutOfSpace) as error:
        await append(small.uploads, row, b"x" * 1001)
    assert over(error)
    with pytest.raises(OutOfSpace):
        await small.uploads.append(row.id, pieces(b""), workspace=WS, offset=0, size=1001)
    assert (await append(small.uploads, row, b"x" * 1000)).offset == 1000
    assert (await small.uploads.complete(row.id, workspace=WS)).size == 1000


@pytest.mark.parametrize("size", [None, 600])
async def test_what_comes_in_one_go_is_counted(small: StorageManager, size: int | None) -> None:
    await small.store(pieces(b"x" * 600), workspace=WS, size=size)
    with pytest.raises(OutOfSpace) as error:
        await small.store(pieces(b"x" * 600), workspace=WS, size=size)
    assert over(error)
    used = await small.uploads.usage(WS)
    assert (used.bytes, used.count, used.reserved_bytes, used.reserved_count) == (600, 1, 0, 0)
    await small.store(pieces(b"x" * 400), workspace=WS)


async def test_one_go_of_many_takes_exactly_what_there_is(small: StorageManager) -> None:
    async def store() -> int:
        try:
            return (await small.store(pieces(b"x" * 500), workspace=WS, size=500)).size
        except OutOfSpace:
            return 0

    assert sum(await asyncio.gather(*(store() for _ in range(12)))) == 1000


async def test_room_is_given_back_when_it_expires(
    small: StorageManager, clock: ManualClock
) -> None:
    await begin(small.uploads, 1000)
    clock.now += OPEN_TTL_S
    assert await small.uploads.sweep() == 1
    await begin(small.uploads, 1000)


async def test_the_last_bytes_of_a_quota_can_be_used_by_an_upload_of_unknown_size(
    small: StorageManager,
) -> None:
    await small.store(pieces(b"x" * 990), workspace=WS)
    row = await begin(small.uploads, None)
    await append(small.uploads, row, b"x" * 10)
    assert (await small.uploads.complete(row.id, workspace=WS)).size == 10


# --- what goes wrong beside it


async def test_one_that_cannot_be_removed_does_not_keep_the_others(
    uploads: Uploads,
    storage: StorageManager,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = [await append(uploads, await begin(uploads, 10), b"12345") for _ in range(3)]
    resume = storage._store.resume_upload

    async def failing(upload_id: str) -> Upload:
        if upload_id == rows[1].store_id:
            raise OSError("the disk is away")
        return await resume(upload_id)

    monkeypatch.setattr(storage._store, "resume_upload", failing)
    clock.now += OPEN_TTL_S
    assert await uploads.sweep() == 2
    assert "the disk is away" in caplog.text
    monkeypatch.undo()
    assert await uploads.sweep() == 1


async def test_a_direct_upload_that_the_store_does_not_want_reserves_nothing(
    uploads: Uploads, storage: StorageManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> Upload:
        raise OutOfSpace(Code.DISK_FULL, "the disk is full")

    monkeypatch.setattr(storage._store, "open_upload", refuse)
    with pytest.raises(OutOfSpace):
        await uploads.create(NewUpload(workspace=WS, size=5), "direct")
    assert (await uploads.usage(WS)).reserved_count == 0


async def test_a_full_disk_keeps_what_came(uploads: Uploads, storage: StorageManager) -> None:
    row = await begin(uploads, 100_000)

    async def source() -> AsyncIterator[bytes]:
        yield b"x" * 60_000
        raise OutOfSpace(Code.DISK_FULL, "the disk is full")

    with pytest.raises(OutOfSpace):
        await uploads.append(row.id, source(), workspace=WS, offset=0)
    assert (await uploads.pause(row.id, workspace=WS)).offset == 60_000
    assert (await append(uploads, row, b"x" * 40_000, 60_000)).state == "done"


async def test_two_servers_on_one_catalogue(storage: StorageManager) -> None:
    """The second one waits for the first one's lease; then it goes on where that has stopped."""
    rows = UploadRows(storage._catalog.database, Quota())
    first, second = (
        Uploads(
            storage._store, rows, storage, storage._enter, max_bytes=None, clock=ManualClock(NOW)
        )
        for _ in range(2)
    )
    row = await begin(first, len(BIG))
    source = Hanging(BIG[:300_000])
    writing = asyncio.ensure_future(first.append(row.id, aiter(source), workspace=WS, offset=0))
    await source.reached.wait()
    waiting = asyncio.ensure_future(second.pause(row.id, workspace=WS))
    await asyncio.sleep(0)
    assert not waiting.done()
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert (await waiting).offset == 300_000
    assert (await append(second, row, BIG[300_000:], 300_000)).state == "done"
    assert (await first.complete(row.id, workspace=WS)).size == len(BIG)
