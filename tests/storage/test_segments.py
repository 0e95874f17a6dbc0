"""A log seals its runs into the blob store, and reads them from there."""

from pathlib import Path

import pytest

from mentatlab.protocol.errors import Code, Gone, NotFound
from mentatlab.protocol.records import data_draft, end_draft
from mentatlab.storage.local import LocalStore
from mentatlab.storage.memory import MemoryStore
from mentatlab.storage.port import BlobStore
from mentatlab.storage.segments import BlobSegments
from mentatlab.streams.sqlite import open_sqlite
from mentatlab.testing.stream_log_contract import NOW, append, binary, opened


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return LocalStore(tmp_path / "blobs") if request.param == "local" else MemoryStore()


async def test_ranges_of_a_segment(store: BlobStore, tmp_path: Path) -> None:
    path, segments = tmp_path / "new", BlobSegments(store)
    path.write_bytes(bytes(range(256)) * 10_000)
    await segments.put("sg_1", path)
    assert await segments.read("sg_1", 256, 3) == bytes(range(3))
    assert await segments.read("sg_1", 2_559_999, 9) == b"\xff"
    assert await segments.read("sg_1", 2_560_001, 9) == b""
    assert len(await segments.read("sg_1", 0, 3_000_000)) == 2_560_000
    await segments.delete("sg_1")
    await segments.delete("sg_1")
    with pytest.raises(NotFound):
        await segments.read("sg_1", 0, 1)
    await store.aclose()


async def test_a_finished_run_replays_from_the_blob_store(store: BlobStore, tmp_path: Path) -> None:
    log = await open_sqlite(tmp_path / "streams.db", store=BlobSegments(store))
    stream_id = await opened(log)
    for number in range(20):
        await append(log, stream_id, data_draft(number), binary(b"x" * 20_000))
    await append(log, stream_id, end_draft("complete", chunks=0))
    before = [await log.read(stream_id, at) for at in range(42)]
    await log.tidy(NOW + 100)
    (held,) = [info async for info in store.list()]
    assert held.key.startswith("sg_")
    assert [await log.read(stream_id, at) for at in range(42)] == before
    await store.delete(held.key)
    with pytest.raises(Gone) as caught:
        await log.read(stream_id, 0)
    assert caught.value.code is Code.STREAM_LOST
    await log.delete_run("rn_1")
    await log.aclose()
    await store.aclose()
