"""Stored bytes are read again: paced, resumed, and with the right verdict."""

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.virtual_time import VirtualLoop

from mentatlab.protocol.errors import Code, Internal, NotFound
from mentatlab.storage import StorageManager, open_local
from mentatlab.storage.catalog import Catalog
from mentatlab.storage.memory import MemoryStore
from mentatlab.storage.port import Blob, ByteRange, Reader
from mentatlab.storage.probe import Prober
from mentatlab.storage.scrub import PERIOD_S, Pace, Scrub
from mentatlab.storage.upkeep import Upkeep
from mentatlab.testing.blob_store_contract import pieces
from mentatlab.testing.clock import ManualClock

BIG = bytes(range(256)) * 12_000  # three chunks


class Disk(MemoryStore):
    """Remembers what is read of it, and how it fails."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.error: Exception | None = None

    async def get(self, key: str, *, range_: ByteRange | None = None) -> Reader:
        self.reads.append(key)
        if self.error is not None:
            raise self.error
        return await super().get(key, range_=range_)

    def flip(self, blob: Blob) -> None:
        found = self._objects[blob.key]
        self._objects[blob.key] = found._replace(data=found.data[:-1] + b"?")

    def drop(self, blob: Blob) -> None:
        del self._objects[blob.key]


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
async def storage(tmp_path: Path, disk: Disk, clock: ManualClock) -> AsyncIterator[StorageManager]:
    catalog = await Catalog.open(tmp_path / "catalog.db")
    manager = StorageManager(disk, catalog, Prober(), clock=clock)
    await manager.life.sweep()
    yield manager
    await manager.aclose()


async def stored(storage: StorageManager, *bodies: bytes) -> list[Blob]:
    return [await storage.store(pieces(body), workspace="w") for body in bodies]


async def state(storage: StorageManager, blob: Blob) -> str:
    return (await storage.get(blob.id, workspace="w")).state


async def whole(reader: Reader) -> bytes:
    return b"".join([chunk async for chunk in reader])


# --- whole reads


async def test_a_whole_read_gives_the_bytes(storage: StorageManager) -> None:
    for body in (b"", b"x", BIG):
        (blob,) = await stored(storage, body)
        reader = await storage.open(blob)
        assert reader.info.size == len(body)
        assert await whole(reader) == body
        await reader.aclose()


async def test_wrong_bytes_never_look_whole(storage: StorageManager, disk: Disk) -> None:
    (blob,) = await stored(storage, BIG)
    disk.flip(blob)
    chunks = aiter(await storage.open(blob))
    given = await anext(chunks) + await anext(chunks)
    with pytest.raises(Internal) as error:
        await anext(chunks)
    assert error.value.code is Code.REFERENCE_CORRUPT
    assert given == BIG[: 2 << 20]  # all but the last chunk
    assert await state(storage, blob) == "corrupt"
    assert storage.life.corrupted == 1
    with pytest.raises(Internal):
        await storage.open(await storage.get(blob.id, workspace="w"))


async def test_a_file_that_is_cut_off_is_corrupt(tmp_path: Path) -> None:
    async with open_local(tmp_path / "blobs", tmp_path / "catalog.db") as storage:
        blob = await storage.store(pieces(BIG), workspace="w")
        path = storage.local_path(blob)
        assert path is not None
        reader = await storage.open(blob)
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.truncate(100)
        with pytest.raises(Internal):
            await whole(reader)
        await reader.aclose()
        assert await state(storage, blob) == "corrupt"


async def test_a_range_is_not_verified(storage: StorageManager, disk: Disk) -> None:
    (blob,) = await stored(storage, b"hello")
    disk.flip(blob)
    assert await whole(await storage.open(blob, ByteRange(0, 2))) == b"he"


async def test_what_is_deleted_while_it_is_opened_is_not_corrupt(
    storage: StorageManager, disk: Disk
) -> None:
    (blob,) = await stored(storage, b"x")
    await storage.delete(blob.id, workspace="w")
    with pytest.raises(NotFound):
        await storage.open(blob)
    assert storage.life.corrupted == 0


async def test_a_disk_error_is_no_damage(storage: StorageManager, disk: Disk) -> None:
    (blob,) = await stored(storage, b"x")
    disk.error = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match="Input/output"):
        await storage.open(blob)
    report = await storage.life.scrub.check_all()
    assert (report.unread, report.corrupt_count) == (1, 0)
    assert await state(storage, blob) == "ready"


async def test_a_store_that_is_not_there_has_lost_nothing(
    storage: StorageManager, disk: Disk
) -> None:
    """An empty folder where a disk was not mounted."""
    (blob,) = await stored(storage, b"x")
    disk._objects.clear()
    report = await storage.life.scrub.check_all()
    assert (report.unread, report.corrupt_count) == (1, 0)
    assert (await storage.life.sweep()).foreign
    assert await state(storage, blob) == "ready"


# --- passes


async def test_a_pass_over_everything(storage: StorageManager, disk: Disk) -> None:
    right, wrong, missing = await stored(storage, b"right", b"wrong", b"missing")
    disk.flip(wrong)
    disk.drop(missing)
    report = await storage.life.scrub.check_all()
    assert (report.total, report.checked, report.bytes) == (3, 3, 17)
    assert set(report.corrupt) == {wrong.id, missing.id}
    assert (report.running, report.started_at, report.finished_at) == (
        False,
        1_795_437_754.0,
        1_795_437_754.0,
    )
    assert [await state(storage, b) for b in (right, wrong, missing)] == [
        "ready",
        "corrupt",
        "corrupt",
    ]
    assert storage.life.corrupted == 2
    again = await storage.life.scrub.check_all()
    assert (again.corrupt_count, storage.life.corrupted) == (2, 2)  # told once


async def test_the_slow_pass_begins_with_the_oldest_and_goes_on_where_it_stopped(
    storage: StorageManager, disk: Disk, clock: ManualClock
) -> None:
    blobs: list[Blob] = []
    for body in (b"1", b"2", b"3"):
        blobs += await stored(storage, body)
        clock.now += 10
    await storage.life.scrub.check_old()
    assert disk.reads == []
    clock.now += PERIOD_S
    stop_at = blobs[1].key  # where the process ends

    async def get(key: str, *, range_: ByteRange | None = None) -> Reader:
        if key == stop_at:
            raise asyncio.CancelledError
        return await Disk.get(disk, key, range_=range_)

    disk.get = get
    with pytest.raises(asyncio.CancelledError):
        await storage.life.scrub.check_old()
    stop_at = ""
    await storage.life.scrub.check_old()
    assert disk.reads == [blob.key for blob in blobs]
    await storage.life.scrub.check_old()
    assert len(disk.reads) == 3


async def test_a_clients_word_is_checked_soon(
    storage: StorageManager, disk: Disk, clock: ManualClock
) -> None:
    ours, claimed = await stored(storage, b"ours", b"claimed")
    await storage._catalog.database.write(
        lambda db: db.execute("UPDATE blobs SET verified_at = NULL WHERE id = ?", (claimed.id,))
    )
    disk.flip(claimed)
    forever = asyncio.create_task(storage.life.scrub.run_forever(claims_every_s=0))
    async with asyncio.timeout(20):
        while await state(storage, claimed) == "ready":
            await asyncio.sleep(0)
    assert disk.reads == [claimed.key]
    assert await state(storage, ours) == "ready"
    storage.life.scrub.ask()
    async with asyncio.timeout(20):
        while storage.life.scrub.report.running:
            await asyncio.sleep(0)
    assert storage.life.scrub.report.checked == 2
    forever.cancel()
    await asyncio.gather(forever, return_exceptions=True)


async def test_a_failed_pass_is_not_the_last(
    storage: StorageManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    passed = asyncio.Event()

    async def check_claims() -> None:
        if "no route" not in caplog.text:
            raise OSError("no route")
        passed.set()

    monkeypatch.setattr(storage.life.scrub, "check_claims", check_claims)
    forever = asyncio.create_task(storage.life.scrub.run_forever(claims_every_s=0))
    async with asyncio.timeout(20):
        await passed.wait()
    forever.cancel()
    await asyncio.gather(forever, return_exceptions=True)


def test_a_pace_is_kept_on_average() -> None:
    async def work() -> float:
        loop, pace = asyncio.get_running_loop(), Pace(1000)
        for size in (500, 1500, 1000):
            await pace.take(size)
        await asyncio.sleep(60)  # a pause earns nothing
        before = loop.time()
        await pace.take(1000)
        await Pace().take(10**12)
        return loop.time() - before + before - 60

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(work()) == pytest.approx(4.0)


async def test_a_pass_that_cannot_begin_is_not_under_way_for_ever(tmp_path: Path) -> None:
    catalog = await Catalog.open(tmp_path / "catalog.db")
    scrub = Scrub(
        MemoryStore(), Upkeep(catalog.database), _nobody, clock=ManualClock(1_795_437_754.0)
    )
    await catalog.aclose()
    for _ in range(2):
        assert scrub.ask().running
        with pytest.raises(RuntimeError):
            await scrub.check_all()
        assert not scrub.report.running


async def _nobody(blob: Blob, how: str) -> None:
    raise AssertionError(f"{blob.id}: {how}")
