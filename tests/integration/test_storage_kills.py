"""SIGKILL before every step that changes the disk: no partial object is ever visible, what was
acknowledged is there, and after one sweep nothing is left that nobody owns."""

import contextlib
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from tests.support import storage_scenarios as scenarios
from tests.support.kill_steps import Ended, killed_at_every_step
from tests.support.storage_scenarios import DATA, WHOLE

from mentatlab.protocol.errors import Gone, NotFound
from mentatlab.storage.local import LocalStore
from mentatlab.storage.manager import StorageManager, open_local
from mentatlab.testing.blob_store_contract import keys_of, pieces, read, uploaded

pytestmark = pytest.mark.timeout(300)
KEY = "ws/_uploads/k"
DAYS = 2 * 86_400.0


def files(folder: Path) -> list[str]:
    """Without the catalogue's own mark in the store."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()]
    return sorted(name for name in names if not name.startswith("_mentatlab/"))


async def test_a_put(tmp_path: Path):
    taken = list[str]()
    for ended in killed_at_every_step(scenarios.put, tmp_path):
        taken.append(ended.taken)
        store = LocalStore(ended.root)
        await store.tidy(before=time.time() + 60)
        if "put" in ended.said or await keys_of(store.list()):
            assert await read(store, KEY) == WHOLE
            assert files(ended.root) == ["ws/_uploads/.k.meta", KEY]
        else:
            assert files(ended.root) == []
            await store.put(KEY, pieces(WHOLE))
        await store.aclose()
    assert {"pwritev", "fdatasync", "replace", "link", "fsync", "unlink"} < set(taken)


async def test_an_upload_goes_on(tmp_path: Path):
    taken = list[str]()
    for ended in killed_at_every_step(scenarios.upload, tmp_path):
        taken.append(ended.taken)
        store = LocalStore(ended.root)
        if ended.said:
            upload_id, *durable = ended.said
            upload = await store.resume_upload(upload_id)
            assert upload.offset >= sum(map(int, durable[:1]))
            if await keys_of(store.list()):
                assert await read(store, KEY) == WHOLE
            if upload.offset < len(WHOLE):
                await uploaded(upload, WHOLE)
            else:
                await upload.complete()
            assert await read(store, KEY) == WHOLE
            assert files(ended.root) == ["ws/_uploads/.k.meta", KEY]
            again = await store.resume_upload(upload_id)
            assert (await again.complete()).size == len(WHOLE)
        await store.aclose()
    assert {"pwritev", "fdatasync", "rename", "replace", "link", "fsync", "unlink"} < set(taken)


async def test_an_upload_is_given_up(tmp_path: Path):
    for ended in killed_at_every_step(scenarios.upload, tmp_path):
        store = LocalStore(ended.root)
        async for stale in store.list_stale_uploads(before=time.time() + 60):
            await (await store.resume_upload(stale.upload_id)).abort()
        await store.tidy(before=time.time() + 60)
        left = files(ended.root)
        if "complete" in ended.said:
            assert left == ["ws/_uploads/.k.meta", KEY]
        assert left in ([], ["ws/_uploads/.k.meta", KEY])  # an object, whole, or nothing
        if left:
            assert await read(store, KEY) == WHOLE
        await store.aclose()


@contextlib.asynccontextmanager
async def later(ended: Ended, *, seconds: float) -> AsyncGenerator[StorageManager]:
    """The next server over what the killed one left behind."""
    blobs, catalog = ended.root / "blobs", ended.root / "catalog.db"
    async with open_local(blobs, catalog, clock=lambda: time.time() + seconds) as manager:
        yield manager


async def visible(manager: StorageManager) -> list[str]:
    """Refs of what may be read; all of it is whole."""
    blobs = await manager.page("ws", limit=10)
    for blob in blobs:
        reader = await manager.open(blob)
        assert b"".join([chunk async for chunk in reader]) == WHOLE
        await reader.aclose()
    return [blob.id for blob in blobs]


async def sweep_once(manager: StorageManager, ended: Ended) -> None:
    """Nothing is lost by it, and nothing is left that no row names."""
    before = await visible(manager)
    await manager.uploads.sweep()
    await manager.life.sweep()
    assert await visible(manager) == before
    blobs = await manager.page("ws", limit=10)
    folder = ended.root / "blobs"
    names = [path.relative_to(folder) for path in map(manager.local_path, blobs) if path]
    assert len(names) == len(blobs)
    sidecars = [name.with_name(f".{name.name}.meta") for name in names]
    assert files(folder) == sorted(map(str, [*names, *sidecars]))


async def test_a_put_and_its_row(tmp_path: Path):
    taken = list[str]()
    for ended in killed_at_every_step(scenarios.store, tmp_path):
        taken.append(ended.taken)
        async with later(ended, seconds=DAYS) as manager:
            assert set(ended.said) <= set(await visible(manager))
            await sweep_once(manager, ended)
            blob = await manager.store(pieces(WHOLE), workspace="ws")  # and it works on
            assert blob.id in await visible(manager)
    assert {"pwritev", "link", "unlink", "sql execute"} < set(taken)


@pytest.mark.slow
async def test_an_upload_and_its_row_go_on(tmp_path: Path):
    for ended in killed_at_every_step(scenarios.resumable, tmp_path):
        if not ended.said:
            continue
        upload_id, *offsets = ended.said
        async with later(ended, seconds=600) as manager:
            await visible(manager)
            row = await manager.uploads.pause(upload_id, workspace="ws")
            assert row.offset >= (len(DATA) if offsets else 0)
            if row.state == "open":
                rest = pieces(WHOLE[row.offset :])
                await manager.uploads.append(upload_id, rest, workspace="ws", offset=row.offset)
            blob = await manager.uploads.complete(upload_id, workspace="ws")
            assert await visible(manager) == [blob.id]
        async with later(ended, seconds=DAYS) as manager:
            await sweep_once(manager, ended)
            assert await visible(manager) == [blob.id]


@pytest.mark.slow
async def test_an_upload_and_its_row_expire(tmp_path: Path):
    for ended in killed_at_every_step(scenarios.resumable, tmp_path):
        async with later(ended, seconds=DAYS) as manager:
            assert ("done" in ended.said) <= (len(await visible(manager)) == 1)
            await sweep_once(manager, ended)
            for upload_id in ended.said[:1]:
                with pytest.raises((NotFound, Gone)):
                    await manager.uploads.find(upload_id, workspace="ws")
