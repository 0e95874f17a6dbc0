"""A log seals its runs into the blob store, and reads them from there."""

import uuid
from pathlib import Path

import pytest
from tests.support.seaweed import SeaweedProcess

from mentatlab.protocol.errors import Code, Gone, NotFound
from mentatlab.protocol.records import data_draft, end_draft
from mentatlab.storage.local import LocalStore
from mentatlab.storage.memory import MemoryStore
from mentatlab.storage.port import BlobStore
from mentatlab.storage.s3 import S3Store
from mentatlab.storage.s3_bucket import Bucket
from mentatlab.storage.s3_login import Login
from mentatlab.storage.segments import BlobSegments
from mentatlab.streams import SegmentFolder
from mentatlab.streams.sqlite import open_sqlite
from mentatlab.testing.stream_log_contract import NOW, append, binary, opened


@pytest.fixture(params=["local", "memory", "s3"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "s3":
        seaweed: SeaweedProcess = request.getfixturevalue("seaweed")
        login = Login(seaweed.endpoint, seaweed.access_key, seaweed.secret_key, "segments")
        return S3Store(await Bucket(login).open(), prefix=f"{uuid.uuid4().hex}/.segments/")
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


async def test_runs_that_were_sealed_before_are_still_read(
    store: BlobStore, tmp_path: Path
) -> None:
    """A home that moves to a bucket has segments in its folder; new ones go to the bucket."""
    folder, path = SegmentFolder(tmp_path / "sealed"), tmp_path / "new"
    for name, data in (("sg_old", b"old"), ("sg_new", b"new")):
        path.write_bytes(data)
        segments = BlobSegments(store, earlier=folder)
        await (folder if name == "sg_old" else segments).put(name, path)
    assert [await segments.read(name, 0, 9) for name in ("sg_old", "sg_new")] == [b"old", b"new"]
    assert [info.key async for info in store.list()] == ["sg_new"]
    for name in ("sg_old", "sg_new"):
        await segments.delete(name)
        with pytest.raises(NotFound):
            await segments.read(name, 0, 9)
    await store.aclose()
