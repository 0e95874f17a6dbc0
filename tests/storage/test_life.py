"""Sweeps, on all three stores: what goes, what stays, and what a second sweeper or a sick disk may
do meanwhile."""

import asyncio
import contextlib
import errno
import os
import secrets
import time
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.seaweed import SeaweedProcess

from mentatlab.protocol.errors import Code, Internal, NotFound
from mentatlab.storage import StorageManager, Swept, ownership
from mentatlab.storage.catalog import Catalog
from mentatlab.storage.life import side_by_side
from mentatlab.storage.local import LocalStore
from mentatlab.storage.local.tree import Sidecar, Tree
from mentatlab.storage.memory import MemoryStore
from mentatlab.storage.port import BlobInfo, BlobStore
from mentatlab.storage.probe import Prober
from mentatlab.storage.rebuild import Rebuilt
from mentatlab.storage.s3 import S3Store
from mentatlab.storage.s3_bucket import Bucket
from mentatlab.storage.s3_login import Login
from mentatlab.storage.upkeep import Known, Upkeep
from mentatlab.storage.uploads import NewUpload
from mentatlab.testing.blob_store_contract import keys_of, pieces

DAY = 86_400.0
HOUR = 3600.0


class Shared(MemoryStore):
    async def aclose(self) -> None:
        """Others have it open too."""


class House:
    """Managers of one catalogue and one store, each as in a process of its own, on one clock."""

    def __init__(self, folder: Path, store: Callable[[], BlobStore]) -> None:
        self.folder, self.store, self.later = folder, store, 0.0
        self.opened: list[StorageManager] = []

    async def manager(self, catalog: str = "catalog.db") -> StorageManager:
        opened = StorageManager(
            self.store(),
            await Catalog.open(self.folder / catalog),
            Prober(),
            clock=lambda: time.time() + self.later,
        )
        self.opened.append(opened)
        return opened

    async def aclose(self) -> None:
        for manager in self.opened:
            await manager.aclose()


@contextlib.asynccontextmanager
async def bucket_of(seaweed: SeaweedProcess) -> AsyncGenerator[Bucket]:
    login = Login(seaweed.endpoint, seaweed.access_key, seaweed.secret_key, "life")
    bucket = await Bucket(login).open()
    try:
        yield bucket
    finally:
        await bucket.aclose()


class _Within(S3Store):
    async def aclose(self) -> None:
        """The bucket is closed once."""


@pytest.fixture(params=["local", "memory", "s3"])
async def house(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "memory":
            shared = Shared()
            made = House(tmp_path, lambda: shared)
        elif request.param == "local":
            made = House(tmp_path, lambda: LocalStore(tmp_path / "blobs"))
        else:
            seaweed: SeaweedProcess = request.getfixturevalue("seaweed")
            bucket = await stack.enter_async_context(bucket_of(seaweed))
            prefix = f"{secrets.token_hex(6)}/"
            made = House(tmp_path, lambda: _Within(bucket, prefix=prefix))
        yield made
        await made.aclose()


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path, lambda: LocalStore(tmp_path / "blobs"))
    yield made
    await made.aclose()


async def stored(manager: StorageManager, count: int, owner: str | None = None) -> list[str]:
    made = [
        await manager.store(pieces(str(n).encode()), workspace="w", owner=owner)
        for n in range(count)
    ]
    return [blob.id for blob in made]


async def read(manager: StorageManager, ref: str) -> bytes:
    reader = await manager.open(await manager.get(ref, workspace="w"))
    async with contextlib.aclosing(reader):
        return b"".join([chunk async for chunk in reader])


async def data_keys(store: BlobStore) -> list[str]:
    return [key for key in await keys_of(store.list()) if not key.startswith("_mentatlab/")]


# --- all stores


async def test_two_sweepers_at_once_do_no_harm(house: House) -> None:
    one, other = await house.manager(), await house.manager()
    kept = await stored(one, 5)
    gone = await stored(one, 20, owner="run:1")
    await one.release("run:1")
    house.later = 2 * DAY
    swept = await asyncio.gather(one.life.sweep(), other.life.sweep())
    assert sum(s.blobs for s in swept) >= 20
    assert all(s[1:4] == (0, 0, 0) for s in swept)
    assert await data_keys(house.store()) == sorted(
        [(await one.get(ref, workspace="w")).key for ref in kept]
    )
    for n, ref in enumerate(kept):
        assert await read(one, ref) == str(n).encode()
    for ref in gone:
        with pytest.raises(NotFound):
            await one.get(ref, workspace="w")
    assert await one.life.sweep() == Swept(0, 0)


async def test_a_lost_catalogue_takes_nothing_along_and_is_rebuilt(house: House) -> None:
    former = await house.manager("lost.db")
    refs = await stored(former, 3)
    large = (await former.store(pieces(b"x" * (20 << 20)), workspace="w", ttl_s=HOUR)).id
    await former.life.sweep()
    house.later = 3 * DAY
    manager = await house.manager("new.db")
    assert await manager.life.sweep() == Swept(0, 0, foreign=True)
    await stored(manager, 1)  # the server has gone on meanwhile
    assert (await manager.life.sweep()).foreign
    told: list[int] = []
    made = await manager.life.rebuild(lambda so_far: told.append(so_far.seen))
    assert made == Rebuilt(entered=4, known=1)
    assert told == [1, 2, 3, 4, 5]
    assert await manager.life.sweep() == Swept(0, 0)
    for n, ref in enumerate(refs):
        assert await read(manager, ref) == str(n).encode()
    assert await read(manager, large) == b"x" * (20 << 20)  # it has a day more than it had
    house.later += DAY + 2 * HOUR
    assert (await manager.life.sweep()).blobs == 1
    assert await manager.life.rebuild() == Rebuilt(known=4)
    assert await former.life.sweep() == Swept(1, 0, foreign=True)  # it is not its own any more
    assert len(await data_keys(house.store())) == 4


async def test_uploads_that_nobody_goes_on_with_leave_nothing(house: House) -> None:
    manager, store = await house.manager(), house.store()
    row = await manager.uploads.create(NewUpload(workspace="w", size=100), "tus")
    await manager.uploads.append(row.id, pieces(b"x" * 10), workspace="w", offset=0)
    stray = await store.open_upload("w/_uploads/stray.bin", size=100)  # a crash before its row
    await stray.write(pieces(b"x" * 10))
    await stray.checkpoint()
    await stray.aclose()
    assert await manager.life.sweep() == Swept(0, 0)
    house.later = DAY / 2
    await manager.uploads.append(row.id, pieces(b"x" * 10), workspace="w", offset=10)
    house.later = 1.2 * DAY
    assert await manager.life.sweep() == Swept(0, 0, uploads=1)
    with pytest.raises(NotFound):
        await house.store().resume_upload(stray.id)
    await manager.uploads.append(row.id, pieces(b"x" * 80), workspace="w", offset=20)
    assert await read(manager, row.ref) == b"x" * 100
    late = await manager.uploads.create(NewUpload(workspace="w", size=100), "tus")
    await manager.uploads.append(late.id, pieces(b"x" * 10), workspace="w", offset=0)
    house.later = 5 * DAY
    await manager.life.sweep()
    assert [found async for found in store.list_stale_uploads(before=time.time() + 1)] == []
    assert (await manager.uploads.usage("w")).reserved_bytes == 0


async def test_missing_bytes_are_corrupt_and_whole_when_they_are_back(house: House) -> None:
    manager, store = await house.manager(), house.store()
    (ref,) = await stored(manager, 1)
    blob = await manager.get(ref, workspace="w")
    await manager.life.sweep()
    meta = (await store.head(blob.key)).meta
    await store.delete(blob.key)
    assert await manager.life.sweep() == Swept(0, 0, missing=1)
    assert await manager.life.sweep() == Swept(0, 0)
    assert (await manager.get(ref, workspace="w")).state == "corrupt"
    assert (await manager.life.holdings()).corrupt == 1
    with pytest.raises(Internal) as error:
        await read(manager, ref)
    assert error.value.code is Code.REFERENCE_CORRUPT
    await store.put(blob.key, pieces(b"0"), meta=meta)
    report = await manager.life.scrub.check_all()
    assert (report.healed, report.corrupt_count) == (1, 0)
    assert await read(manager, ref) == b"0"


async def test_what_is_not_ours_stays(house: House) -> None:
    manager, store = await house.manager(), house.store()
    await manager.life.sweep()
    await store.put("theirs/photo.jpg", pieces(b"x"), meta={"by": "somebody"})
    house.later = 9 * DAY
    assert await manager.life.sweep() == Swept(0, 0)
    assert await data_keys(store) == ["theirs/photo.jpg"]
    assert await manager.life.rebuild() == Rebuilt(foreign=1)


async def test_a_store_that_was_there_before_its_first_catalogue_is_foreign(house: House) -> None:
    await house.store().put("theirs/photo.jpg", pieces(b"x"), meta={"ref": "blob_1"})
    manager = await house.manager()
    house.later = 9 * DAY
    assert (await manager.life.sweep()).foreign
    assert await data_keys(house.store()) == ["theirs/photo.jpg"]


# --- what only some of them can


async def test_two_who_ask_whose_a_new_store_is_are_told_the_same(tmp_path: Path) -> None:
    catalog, store = await Catalog.open(tmp_path / "catalog.db"), MemoryStore()

    class Slow(Upkeep):
        async def is_empty(self) -> bool:
            found = await super().is_empty()
            assert await ownership.belongs(store, Upkeep(catalog.database))  # meanwhile
            return found

    async with contextlib.aclosing(catalog):
        assert await ownership.belongs(store, Slow(catalog.database))


async def test_an_object_on_its_way_in_is_no_orphan(local: House, tmp_path: Path) -> None:
    """Its bytes came days ago, its end now; its row is yet to come."""
    manager, sweeper = await local.manager(), await local.manager()
    await sweeper.life.sweep()
    row = await manager.uploads.create(NewUpload(workspace="w", size=2), "tus")
    row = await manager.uploads.append(row.id, pieces(b"x"), workspace="w", offset=0)
    upload = await manager._store.resume_upload(row.store_id)
    await upload.write(pieces(b"y"))
    info = await upload.complete()
    path = manager._store.local_path(info.key)
    assert path is not None
    os.utime(path, (1, 1))
    assert await sweeper.life.sweep() == Swept(0, 0)
    await manager.uploads.pause(row.id, workspace="w")
    assert await read(manager, row.ref) == b"xy"


async def test_a_put_under_way_is_no_orphan(local: House, tmp_path: Path) -> None:
    manager = await local.manager()
    await manager.life.sweep()
    store: Any = manager._store
    entering, go_on = asyncio.Event(), asyncio.Event()
    add = manager._catalog.add

    async def slowly(*args: Any, **more: Any) -> None:
        entering.set()
        await go_on.wait()
        await add(*args, **more)

    manager._catalog.add = slowly
    storing = asyncio.create_task(manager.store(pieces(b"x"), workspace="w"))
    await entering.wait()
    (key,) = await data_keys(store)
    os.utime(store.local_path(key), (1, 1))
    assert await manager.life.sweep() == Swept(0, 0)
    go_on.set()
    assert await read(manager, (await storing).id) == b"x"


class Sick(Shared):
    """A disk that cannot be read or written here and there: EIO."""

    sick: str = ""

    def _fail(self, key: str) -> None:
        if self.sick and self.sick in key:
            raise OSError(errno.EIO, "Input/output error", key)

    async def delete(self, key: str) -> None:
        self._fail(key)
        await super().delete(key)

    async def head(self, key: str) -> BlobInfo:
        self._fail(key)
        return await super().head(key)

    async def list(self, prefix: str = "", after: str = "") -> AsyncIterator[BlobInfo]:
        async for info in super().list(prefix, after):
            if not self.sick or self.sick not in info.key:
                yield info


async def test_one_sick_file_does_not_keep_the_others(tmp_path: Path) -> None:
    store = Sick()
    house = House(tmp_path, lambda: store)
    manager = await house.manager()
    refs = await stored(manager, 3, owner="run:1")
    (kept,) = await stored(manager, 1)
    await manager.life.sweep()
    await manager.release("run:1")
    house.later, store.sick = 2 * DAY, refs[1]
    assert await manager.life.sweep() == Swept(2, 0)
    store.sick = kept  # not listed, and nobody knows why: not a damage
    assert await manager.life.sweep() == Swept(1, 0)
    assert (await manager.get(kept, workspace="w")).state == "ready"
    store.sick = ""
    assert await data_keys(store) == [(await manager.get(kept, workspace="w")).key]
    await house.aclose()


async def test_one_damaged_file_on_disk_does_not_keep_the_others(
    local: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await local.manager()
    unreadable, damaged, whole = [
        await manager.get(ref, workspace="w") for ref in await stored(manager, 3)
    ]
    await manager.life.sweep()
    path = manager.local_path(damaged)
    assert path is not None
    path.with_name(f".{path.name}.meta").write_bytes(b"{")
    sidecar = Tree.sidecar

    def sick(tree: Tree, key: str) -> Sidecar:
        if key == unreadable.key:
            raise OSError(errno.EIO, "Input/output error", key)
        return sidecar(tree, key)

    monkeypatch.setattr(Tree, "sidecar", sick)
    assert await manager.life.sweep() == Swept(0, 0, missing=1)
    states = [(await manager.get(b.id, workspace="w")).state for b in (unreadable, damaged, whole)]
    assert states == ["ready", "corrupt", "ready"]


async def test_an_owner_that_comes_between_mark_and_sweep_is_told(local: House) -> None:
    manager = await local.manager()
    (ref,) = await stored(manager, 1, owner="run:1")
    await manager.release("run:1")
    local.later = 2 * DAY
    found: list[str] = []
    deleting = manager._store.delete

    async def with_a_latecomer(key: str) -> None:
        with pytest.raises(NotFound):
            await manager.add_owner(ref, "run:2")
        found.append(key)
        await deleting(key)

    manager._store.delete = with_a_latecomer
    assert (await manager.life.sweep()).blobs == 1
    assert len(found) == 1


async def test_a_sweep_of_very_many_needs_little_memory(tmp_path: Path) -> None:
    count = 100_000
    names = [f"w/_uploads/{n:08}.bin" for n in range(count)]

    class Many(Shared):
        async def list(self, prefix: str = "", after: str = "") -> AsyncIterator[BlobInfo]:
            for name in names:
                yield BlobInfo(key=name, size=1, blake3="", content_type="")

    house = House(tmp_path, Many)
    manager = await house.manager()
    rows = (
        (f"blob_{n}", "w", name, "binary", 1, "", "", "", "{}", "ready", "", 0.0, None)
        for n, name in enumerate(names)
    )
    marks = ", ".join("?" * 13)
    await manager._catalog.database.write(
        lambda db: db.executemany(
            f"INSERT INTO blobs (id, workspace, key, type, size, blake3, sha256, mime_type,"
            f" metadata, state, filename, created_at, expires_at) VALUES ({marks})",
            rows,
        )
    )
    tracemalloc.start()
    try:
        swept = await manager.life.sweep()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert swept == Swept(0, 0)
    assert peak < 4 << 20
    await house.aclose()


async def test_both_sides_are_merged_in_order() -> None:
    async def objects() -> AsyncIterator[BlobInfo]:
        for key in "acde":
            yield BlobInfo(key=key, size=1, blake3="", content_type="")

    async def rows() -> AsyncIterator[Known]:
        for key in "bcef":
            yield Known(key, f"blob_{key}", 1, "ready")

    merged = [(i and i.key, r and r.key) async for i, r in side_by_side(objects(), rows())]
    assert merged == [
        ("a", None),
        (None, "b"),
        ("c", "c"),
        ("d", None),
        ("e", "e"),
        (None, "f"),
    ]
