"""Previews are made once, kept beside their source, and go with it."""

import asyncio
import io
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.support.media import bomb_png, picture, sound

from mentatlab.protocol.errors import (
    Code,
    Gone,
    Internal,
    Invalid,
    MentatError,
    NotFound,
    OutOfSpace,
    UnsupportedMedia,
)
from mentatlab.storage import Quota, StorageManager, keys, open_local, open_memory, sources
from mentatlab.storage.port import Blob
from mentatlab.storage.workers import MediaWorkers
from mentatlab.testing.clock import ManualClock

WS = "default"


async def stored(storage: StorageManager, data: bytes, **more: Any) -> Blob:
    return await storage.store(sources.once(data), workspace=WS, **more)


async def content(storage: StorageManager, blob: Blob) -> bytes:
    reader = await storage.open(blob)
    try:
        return b"".join([chunk async for chunk in reader])
    finally:
        await reader.aclose()


async def refused(storage: StorageManager, blob: Blob, *asked: Any) -> str:
    with pytest.raises(UnsupportedMedia) as caught:
        await storage.previews.of(blob, *asked)
    assert caught.value.code is Code.PREVIEW_UNAVAILABLE
    return caught.value.message


async def test_a_preview_is_a_blob_beside_its_source(storage: StorageManager) -> None:
    source = await stored(storage, picture("PNG"))
    made = await storage.previews.of(source, "thumb", size=64)
    assert (made.mime_type, made.workspace) == ("image/webp", WS)
    assert made.key == f"{WS}/_previews/{source.id}/{made.id}.webp"
    assert made.filename == "thumb-64.webp"
    assert (made.metadata["width"], made.metadata["height"]) == (64, 64)
    image = Image.open(io.BytesIO(await content(storage, made)))
    assert image.size == (64, 64)
    assert [blob.id for blob in await storage.page(WS, limit=10)] == [source.id]  # not listed


async def test_it_is_made_once_for_all_who_ask(storage: StorageManager) -> None:
    source = await stored(storage, picture("JPEG"))
    made = await asyncio.gather(*(storage.previews.of(source, "thumb") for _ in range(8)))
    assert len({blob.id for blob in made}) == 1
    assert await storage.previews.of(source, "thumb") == made[0]
    assert await storage.previews.of(source, "thumb", size=200) == made[0]  # rounded up
    other = await storage.previews.of(source, "thumb", format="png")
    assert other.mime_type == "image/png"


async def test_who_leaves_does_not_stop_it_for_others(storage: StorageManager) -> None:
    source = await stored(storage, picture("JPEG"))
    leaving = asyncio.ensure_future(storage.previews.of(source, "thumb"))
    staying = asyncio.ensure_future(storage.previews.of(source, "thumb"))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).type == "image"
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_closing_ends_what_is_being_made() -> None:
    async with open_memory() as storage:
        source = await stored(storage, picture("JPEG"))
        asked = asyncio.ensure_future(storage.previews.of(source, "thumb"))
        while not storage.previews.pids:
            await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await asked


async def test_closing_while_one_is_entered_leaves_no_row_without_bytes() -> None:
    free, waiting = threading.Event(), threading.Event()

    def hold(_: sqlite3.Connection) -> None:
        waiting.set()
        assert free.wait(60)

    async with open_memory() as storage:
        source = await stored(storage, picture("PNG"))
        database, jobs = storage._catalog.database, storage._catalog.database._jobs  # pyright: ignore[reportPrivateUsage]
        held = asyncio.ensure_future(database.write(hold))
        assert await asyncio.to_thread(waiting.wait, 60)
        asked = asyncio.ensure_future(storage.previews.of(source, "thumb"))
        while jobs.empty():  # its row
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(storage.previews.aclose())
        while jobs.qsize() < 2:  # and that it is forgotten
            await asyncio.sleep(0)
        free.set()
        await asyncio.gather(held, closing)
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert await storage._catalog.preview(source.id, "thumb-256.webp") is None  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(("asked", "expected"), [("thumb", "waveform"), ("waveform", "waveform")])
async def test_of_a_sound(storage: StorageManager, asked: Any, expected: str) -> None:
    made = await storage.previews.of(await stored(storage, sound(1)), asked)
    assert made.filename == f"{expected}-256.webp"
    assert (made.metadata["width"], made.metadata["height"]) == (256, 64)


async def test_what_has_none(storage: StorageManager) -> None:
    text = await stored(storage, b"plain text")
    assert "there is no thumb" in await refused(storage, text, "thumb")
    image = await stored(storage, picture("PNG"))
    assert "there is no poster" in await refused(storage, image, "poster")
    assert "there is no waveform" in await refused(storage, image, "waveform")
    page = await stored(storage, b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    assert "image/svg+xml" in await refused(storage, page, "thumb")


@pytest.mark.parametrize("size", [0, -1, 1025])
async def test_sizes_are_bounded(storage: StorageManager, size: int) -> None:
    source = await stored(storage, picture("PNG"))
    with pytest.raises(Invalid):
        await storage.previews.of(source, "thumb", size=size)


async def test_a_bomb_and_a_cut_file_have_none(storage: StorageManager) -> None:
    assert "DecompressionBomb" in await refused(storage, await stored(storage, bomb_png()), "thumb")
    whole = picture("JPEG")
    cut = await stored(storage, whole[: len(whole) // 2])
    assert "truncated" in await refused(storage, cut, "thumb")


class Counting(MediaWorkers):
    orders = 0

    async def run(self, *args: Any) -> Any:
        self.orders += 1
        return await super().run(*args)


async def test_what_failed_is_not_tried_again_at_once(
    storage: StorageManager, clock: ManualClock
) -> None:
    workers = Counting()
    storage.previews._workers = workers  # pyright: ignore[reportPrivateUsage]
    cut = await stored(storage, picture("PNG")[:3000])
    for _ in range(3):
        await refused(storage, cut, "thumb")
    assert workers.orders == 1
    clock.now += 61
    await refused(storage, cut, "thumb")
    assert workers.orders == 2
    await refused(
        storage,
        cut,
        "thumb",
    )


async def test_the_last_failures_are_remembered_not_all(
    storage: StorageManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mentatlab.storage.previews._REMEMBERED", 2)
    for _ in range(4):
        await refused(storage, await stored(storage, picture("PNG")[:3000]), "thumb")
    assert len(storage.previews._failed) == 2  # pyright: ignore[reportPrivateUsage]


async def test_it_takes_nothing_of_the_quota(tmp_path: Path) -> None:
    data = picture("PNG")
    quota = Quota(bytes=len(data), count=1)
    async with open_local(tmp_path / "blobs", tmp_path / "catalog.db", quota=quota) as storage:
        source = await stored(storage, data)
        with pytest.raises(OutOfSpace):
            await stored(storage, b"more")
        assert (await storage.previews.of(source, "thumb")).size > 0
        await storage.delete(source.id, workspace=WS)
        await storage.life.sweep()
        await stored(storage, data)  # there is room again, and no more than that
        with pytest.raises(OutOfSpace):
            await stored(storage, b"more")


async def test_only_what_is_one_has_the_key_of_one(storage: StorageManager) -> None:
    """A flow may be called so."""
    ref = (await stored(storage, b"x")).id
    assert keys.is_preview(keys.preview_key(WS, ref, ref, "webp"))
    for key in (
        keys.generate_key(WS, "_previews", "rn_1", "node", "pin", "png", timestamp_ms=1),
        keys.generate_key(WS, "flow", "rn_1", "_previews", ref, "png", timestamp_ms=1),
        keys.upload_key("_previews", ref, "png", now=1),
    ):
        assert not keys.is_preview(key)


# --- they go with their source


async def test_they_go_with_their_source_at_once(storage: StorageManager) -> None:
    source = await stored(storage, picture("PNG"))
    made = [await storage.previews.of(source, "thumb", size=s) for s in (64, 128)]
    await storage.delete(source.id, workspace=WS)
    for preview in made:
        with pytest.raises(NotFound):
            await storage.get(preview.id, workspace=WS)
    await storage.life.sweep()
    assert [info async for info in storage._store.list(f"{WS}/")] == []  # pyright: ignore[reportPrivateUsage]


async def test_they_go_when_it_expires(storage: StorageManager, clock: ManualClock) -> None:
    source = await stored(storage, picture("PNG"), ttl_s=60)
    made = await storage.previews.of(source, "thumb")
    clock.now += 30 * 86_400
    with pytest.raises(Gone):
        await storage.get(source.id, workspace=WS)
    await storage.life.sweep()
    for blob in (source, made):
        with pytest.raises(NotFound):
            await storage.get(blob.id, workspace=WS)
    assert [info async for info in storage._store.list(f"{WS}/")] == []  # pyright: ignore[reportPrivateUsage]


async def test_one_that_comes_after_its_source_has_gone_does_not_stay(
    storage: StorageManager,
) -> None:
    source = await stored(storage, picture("PNG"))
    await storage.delete(source.id, workspace=WS)
    late = await stored(storage, picture("PNG"), owner=f"preview:{source.id}")
    with pytest.raises(NotFound):
        await storage.get(late.id, workspace=WS)
    await storage.life.sweep()
    assert [info async for info in storage._store.list(f"{WS}/")] == []  # pyright: ignore[reportPrivateUsage]


async def test_of_a_source_that_is_gone_or_damaged(tmp_path: Path) -> None:
    async with open_local(tmp_path / "blobs", tmp_path / "catalog.db") as storage:
        source = await stored(storage, picture("PNG"))
        path = storage.local_path(source)
        assert path is not None
        path.unlink()
        with pytest.raises(MentatError):
            await storage.previews.of(source, "thumb")
        with pytest.raises(Internal):
            await storage.open(source)
        damaged = await storage.get(source.id, workspace=WS)
        with pytest.raises(Internal) as caught:
            await storage.previews.of(damaged, "thumb", size=64)
        assert caught.value.code is Code.REFERENCE_CORRUPT


def lose_catalogue(folder: Path) -> None:
    for path in folder.glob("catalog.db*"):
        path.unlink()


async def test_a_lost_catalogue_is_rebuilt_without_them(tmp_path: Path) -> None:
    async with open_local(tmp_path / "blobs", tmp_path / "catalog.db") as storage:
        source = await stored(storage, picture("PNG"))
        await storage.previews.of(source, "thumb")
    lose_catalogue(tmp_path)
    async with open_local(tmp_path / "blobs", tmp_path / "catalog.db") as storage:
        await storage.life.rebuild()
        assert [blob.id for blob in await storage.page(WS, limit=10)] == [source.id]
        assert (await storage.previews.of(source, "thumb")).type == "image"  # made anew
