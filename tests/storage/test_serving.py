"""The shorter ways out, and the rows that need not be read again."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mentatlab.protocol.errors import Code, Gone, Internal, NotFound
from mentatlab.storage import StorageManager, open_local, open_memory
from mentatlab.storage.port import Blob, ByteRange
from mentatlab.storage.serving import SMALL

DATA = os.urandom(SMALL) + b"more"
ALL, PART = ByteRange(0, len(DATA)), ByteRange(5, 10)


@pytest.fixture
def now() -> list[float]:
    return [1000.0]


@pytest.fixture
async def storage(tmp_path: Path, now: list[float]) -> AsyncIterator[StorageManager]:
    opened = open_local(tmp_path / "blobs", tmp_path / "catalog.db", clock=lambda: now[0])
    async with opened as storage:
        yield storage


async def store(storage: StorageManager, data: bytes = DATA, ttl_s: float | None = None) -> Blob:
    async def source() -> AsyncIterator[bytes]:
        yield data

    return await storage.store(source(), workspace="default", ttl_s=ttl_s)


async def test_little_comes_at_once_much_as_a_file(storage: StorageManager) -> None:
    blob = await store(storage)
    little = await storage.serving.open(blob, PART)
    assert little is not None
    assert (little.content, little.file) == (DATA[5:10], None)
    much = await storage.serving.open(blob, ALL)
    assert much is not None
    assert much.file is not None
    with much.file as file:
        assert file.read() == DATA


async def test_memory_has_no_shorter_way() -> None:
    async with open_memory() as storage:
        blob = await store(storage)
        assert await storage.serving.open(blob, PART) is None
        assert await storage.serving.path(blob) is None
        assert await storage.serving.open_upload("up") is None
        assert storage.serving.presigned(blob, expires_s=60, disposition="inline") is None


async def test_a_file_of_another_size_is_damage(storage: StorageManager) -> None:
    blob = await store(storage)
    path = await storage.serving.path(blob)
    assert path is not None
    path.chmod(0o600)
    path.write_bytes(DATA[:-1])
    for span in (PART, ALL):
        with pytest.raises(Internal) as raised:
            await storage.serving.open(blob, span)
        assert raised.value.code == Code.REFERENCE_CORRUPT


async def test_a_file_that_went_just_now_is_none(
    storage: StorageManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = await store(storage)
    monkeypatch.setattr(storage.serving._store, "local_path", lambda _: tmp_path / "gone")
    assert await storage.serving.open(blob, PART) is None


async def test_a_file_that_nobody_waits_for_is_closed(storage: StorageManager) -> None:
    blob = await store(storage)
    before = descriptors()
    for _ in range(20):
        opening = asyncio.create_task(storage.serving.open(blob, ALL))
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
    async with asyncio.timeout(20):
        while descriptors() != before:
            await asyncio.sleep(0.001)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


# --- rows


async def test_a_row_is_read_once_until_something_is_written(storage: StorageManager) -> None:
    blob = await store(storage)
    first = await storage.get(blob.id, workspace="default")
    assert await storage.get(blob.id, workspace="default") is first
    await store(storage)
    again = await storage.get(blob.id, workspace="default")
    assert again == first
    assert again is not first


async def test_a_known_row_is_no_longer_there_when_it_was_deleted(storage: StorageManager) -> None:
    blob = await store(storage)
    await storage.get(blob.id, workspace="default")
    await storage.delete(blob.id, workspace="default")
    with pytest.raises(NotFound):
        await storage.get(blob.id, workspace="default")


async def test_a_known_row_is_foreign_to_others_and_expires(
    storage: StorageManager, now: list[float]
) -> None:
    blob = await store(storage, ttl_s=5)
    await storage.get(blob.id, workspace="default")
    with pytest.raises(NotFound):
        await storage.get(blob.id, workspace="other")
    now[0] += 5
    with pytest.raises(Gone):
        await storage.get(blob.id, workspace="default")


async def test_readers_beside_writers_see_every_acknowledged_write(
    storage: StorageManager,
) -> None:
    async def put_and_delete() -> None:
        for _ in range(20):
            blob = await store(storage, b"x")
            assert (await storage.get(blob.id, workspace="default")).id == blob.id
            await storage.delete(blob.id, workspace="default")
            with pytest.raises(NotFound):
                await storage.get(blob.id, workspace="default")

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(put_and_delete())
