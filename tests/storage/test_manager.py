import asyncio
import contextlib
import errno
import hashlib
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path

import av
import pytest
from blake3 import blake3
from PIL import Image
from tests.storage.conftest import NOW

from mentatlab.protocol.errors import (
    Code,
    Conflict,
    Gone,
    Internal,
    Invalid,
    MentatError,
    NotFound,
    TooLarge,
    UnsupportedMedia,
)
from mentatlab.protocol.media import make_url
from mentatlab.protocol.pins import PinType
from mentatlab.storage import StorageManager, Swept, open_local, open_memory
from mentatlab.storage.port import Blob, ByteRange, Storage
from mentatlab.storage.rebuild import Rebuilt
from mentatlab.testing.blob_store_contract import BIG, pieces
from mentatlab.testing.clock import ManualClock

DAY = 86_400.0


@pytest.fixture
async def local(tmp_path: Path, clock: ManualClock) -> AsyncIterator[StorageManager]:
    async with open_local(tmp_path / "blobs", tmp_path / "catalog.db", clock=clock) as storage:
        yield storage


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def container(format_: str, *, video: bool) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format_) as out:
        if video:
            stream = out.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            frame = av.VideoFrame(64, 48, "yuv420p")
        else:
            stream = out.add_stream("aac", rate=48000)
            frame = av.AudioFrame("fltp", "stereo", 1024)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            frame.sample_rate = 48000
        out.mux([*stream.encode(frame), *stream.encode(None)])
    return buffer.getvalue()


async def read(storage: StorageManager, blob: Blob, range_: ByteRange | None = None) -> bytes:
    reader = await storage.open(blob, range_)
    try:
        return b"".join([chunk async for chunk in reader])
    finally:
        await reader.aclose()


def objects(root: Path) -> list[str]:
    """Without what the store itself keeps there."""
    files = (p for p in root.rglob("*") if p.is_file() and p.parent.name != "_mentatlab")
    return sorted(p.name for p in files if not p.name.startswith("."))


# --- in


async def test_an_upload_is_hashed_typed_and_found_again(storage: StorageManager) -> None:
    port: Storage = storage
    data = png()
    blob = await port.store(
        pieces(data), workspace="ws", declared_mime="image/gif", filename="a.png", sha256=True
    )
    assert (blob.type, blob.mime_type, blob.size) == (PinType.IMAGE, "image/png", len(data))
    assert blob.blake3 == blake3(data).hexdigest()
    assert blob.sha256 == hashlib.sha256(data).hexdigest()
    assert blob.metadata == {
        "declaredMimeType": "image/gif",
        "mimeType": "image/png",
        "width": 40,
        "height": 30,
        "codec": "png",
    }
    assert blob.key == f"ws/_uploads/20261123/{blob.id}.png"
    assert (blob.created_at, blob.expires_at, blob.filename) == (NOW, None, "a.png")
    assert await read(storage, blob) == data
    assert await read(storage, blob, ByteRange(1, 4)) == b"PNG"
    for form in (blob.id, make_url("ws", blob.id), blob.reference(), blob.reference().to_dict()):
        assert await storage.get(form, workspace="ws") == blob


async def test_a_local_path_is_given_where_there_are_files(local: StorageManager) -> None:
    blob = await local.store(pieces(b"x"), workspace="ws")
    path = local.local_path(blob)
    assert path is not None
    assert path.read_bytes() == b"x"


async def test_memory_has_no_paths() -> None:
    async with open_memory() as storage:
        assert storage.local_path(await storage.store(pieces(b"x"), workspace="ws")) is None


async def test_unknown_bytes_are_binary(storage: StorageManager) -> None:
    blob = await storage.store(pieces(b'{"a": 1}'), workspace="ws", declared_mime="text/json")
    assert (blob.type, blob.mime_type) == (PinType.BINARY, "application/octet-stream")
    assert blob.metadata == {"declaredMimeType": "text/json"}


async def test_a_large_value_keeps_its_type(storage: StorageManager) -> None:
    blob = await storage.store(pieces(b"[1]"), workspace="ws", expect=PinType.JSON, owner="run:1")
    assert (blob.type, blob.mime_type) == (PinType.JSON, "application/json")


async def test_callers_metadata_is_kept_but_probing_wins(storage: StorageManager) -> None:
    claims = {"width": 9999, "label": "cat"}
    blob = await storage.store(pieces(png()), workspace="ws", metadata=claims)
    assert (blob.metadata["width"], blob.metadata["label"]) == (40, "cat")


async def test_a_failed_probe_is_recorded(storage: StorageManager) -> None:
    blob = await storage.store(pieces(png()[:30]), workspace="ws", expect=PinType.IMAGE)
    assert blob.type is PinType.IMAGE
    assert "probeError" in blob.metadata


@pytest.mark.parametrize(
    ("format_", "video", "expect", "type_", "mime"),
    [
        ("mp4", True, None, PinType.VIDEO, "video/mp4"),
        ("mp4", False, None, PinType.AUDIO, "audio/mp4"),
        ("mp4", False, PinType.AUDIO, PinType.AUDIO, "audio/mp4"),
        ("matroska", False, PinType.AUDIO, PinType.AUDIO, "audio/x-matroska"),
        ("matroska", True, PinType.BINARY, PinType.BINARY, "video/x-matroska"),
    ],
)
async def test_containers_are_what_they_hold(
    storage: StorageManager,
    format_: str,
    video: bool,
    expect: PinType | None,
    type_: PinType,
    mime: str,
) -> None:
    data = container(format_, video=video)
    blob = await storage.store(pieces(data), workspace="ws", expect=expect)
    assert (blob.type, blob.mime_type) == (type_, mime)


@pytest.mark.parametrize(
    ("data", "expect", "error", "code"),
    [
        (b"", PinType.IMAGE, Invalid, Code.EMPTY_MEDIA),
        (b"<html>", PinType.IMAGE, UnsupportedMedia, Code.MEDIA_TYPE_MISMATCH),
        (container("mp4", video=False), PinType.VIDEO, UnsupportedMedia, Code.MEDIA_TYPE_MISMATCH),
        (container("mp4", video=True), PinType.AUDIO, UnsupportedMedia, Code.MEDIA_TYPE_MISMATCH),
        (b"x" * (21 << 20), PinType.BINARY, TooLarge, Code.PAYLOAD_TOO_LARGE),
        (b"1", PinType.NUMBER, Invalid, Code.INVALID_REQUEST),
    ],
)
async def test_what_is_refused_leaves_nothing(
    storage: StorageManager,
    tmp_path: Path,
    data: bytes,
    expect: PinType,
    error: type[MentatError],
    code: Code,
) -> None:
    with pytest.raises(error) as raised:
        await storage.store(pieces(data), workspace="ws", expect=expect)
    assert raised.value.code is code
    assert await storage.page("ws", limit=10) == []
    assert objects(tmp_path / "blobs") == []


async def test_a_wrong_digest_is_refused(storage: StorageManager) -> None:
    with pytest.raises(Invalid) as error:
        await storage.store(pieces(b"x"), workspace="ws", expected_sha256="00" * 32)
    assert error.value.code is Code.DIGEST_MISMATCH
    assert await storage.page("ws", limit=10) == []


async def test_a_cancelled_upload_leaves_nothing(local: StorageManager, tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield BIG
        begun.set()
        await asyncio.Event().wait()

    upload = asyncio.ensure_future(local.store(endless(), workspace="ws"))
    await begun.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert objects(tmp_path / "blobs") == []
    assert list((tmp_path / "blobs" / ".staging").iterdir()) == []


async def test_cancelled_while_probing_takes_the_bytes_away(
    local: StorageManager, tmp_path: Path
) -> None:
    upload = asyncio.ensure_future(local.store(pieces(png()), workspace="ws"))
    while not objects(tmp_path / "blobs"):
        await asyncio.sleep(0)
    upload.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await upload
    assert upload.cancelled()
    assert objects(tmp_path / "blobs") == []
    assert await local.page("ws", limit=10) == []


async def test_taken_keys_get_a_suffix(storage: StorageManager) -> None:
    async def slowly(data: bytes) -> AsyncIterator[bytes]:
        for n in range(len(data)):
            await asyncio.sleep(0)
            yield data[n : n + 1]

    def put(data: bytes) -> asyncio.Future[Blob]:
        source = slowly(data)
        return asyncio.ensure_future(storage.store(source, workspace="ws", key="ws/f/pin_1.bin"))

    blobs = await asyncio.gather(*(put(str(n).encode() * 9000) for n in range(4)))
    assert len({blob.key for blob in blobs}) == 4
    assert sum(blob.key == "ws/f/pin_1.bin" for blob in blobs) == 1
    for n, blob in enumerate(blobs):
        assert await read(storage, blob) == str(n).encode() * 9000


# --- the facade


async def test_generate_key(storage: StorageManager) -> None:
    key = storage.generate_key("ws", "flow", "rn_1", "node", "image", "png")
    assert key == "ws/flow/rn_1/node/image_1795437754000.png"


async def test_the_facade_gives_references(storage: StorageManager) -> None:
    place = {"flow_id": "f", "execution_id": "rn_1", "node_id": "n", "pin_name": "image"}
    metadata = {"type": "image", "mimeType": "image/png", "label": "x", "filename": "x.png"}
    reference = await storage.upload(png(), {**metadata, **place})
    assert reference["type"] == "image"
    blob = await storage.get(reference, workspace="default")
    assert blob.key == "default/f/rn_1/n/image_1795437754000.png"
    assert reference["ref"]["metadata"]["label"] == "x"
    bare = await storage.upload(b"text", {"workspace_id": "other"})
    assert (await storage.get(bare, workspace="other")).key.startswith("other/_uploads/")
    with pytest.raises(Invalid):
        await storage.upload(b"x", {"type": "picture"})


# --- outputs of agents


async def test_an_output_file_is_stored(local: StorageManager, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    path = out / "deep" / "a.png"
    path.write_bytes(png())
    blob = await local.store_file(
        path, below=out, workspace="ws", owner="attempt:1", expect=PinType.IMAGE
    )
    assert (blob.filename, blob.size) == ("a.png", len(png()))
    assert await read(local, blob) == png()


@pytest.mark.parametrize(
    "name", ["link", "folder", "linked/secret", "hard", "fifo", "missing", "../secret", "", "/etc"]
)
async def test_unsafe_output_files(local: StorageManager, tmp_path: Path, name: str) -> None:
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    (out / "folder").mkdir(parents=True)
    secret = outside / "secret"
    secret.write_text("secret")
    (tmp_path / "secret").write_text("secret")
    (out / "link").symlink_to(secret)
    (out / "linked").symlink_to(outside)
    os.link(secret, out / "hard")
    os.mkfifo(out / "fifo")
    with pytest.raises(Invalid) as error:
        await local.store_file(out / name, below=out, workspace="ws", owner="attempt:1")
    assert error.value.code is Code.OUTPUT_FILE_INVALID


# --- who may see it, and how long


async def test_foreign_and_unknown_look_alike(storage: StorageManager) -> None:
    blob = await storage.store(pieces(b"x"), workspace="ws")
    for ref, workspace in ((blob.id, "other"), ("blob_" + "0" * 26, "ws")):
        with pytest.raises(NotFound) as error:
            await storage.get(ref, workspace=workspace)
        assert error.value.code is Code.REFERENCE_NOT_FOUND
    with pytest.raises(Invalid):
        await storage.get("nonsense", workspace="ws")


async def test_expiry(storage: StorageManager, clock: ManualClock) -> None:
    blob = await storage.store(pieces(b"x"), workspace="ws", ttl_s=60)
    clock.now += 59
    assert await storage.get(blob.id, workspace="ws") == blob
    clock.now += 1
    with pytest.raises(Gone) as error:
        await storage.get(blob.id, workspace="ws")
    assert error.value.code is Code.REFERENCE_EXPIRED
    assert await storage.page("ws", limit=10) == []
    clock.now += DAY
    assert (await storage.life.sweep()).blobs == 1
    with pytest.raises(NotFound):
        await storage.get(blob.id, workspace="ws")


async def test_pages_are_newest_first(storage: StorageManager) -> None:
    blobs = [await storage.store(pieces(b"x"), workspace="ws") for _ in range(5)]
    await storage.store(pieces(b"x"), workspace="other")
    ids = sorted((blob.id for blob in blobs), reverse=True)
    first = await storage.page("ws", limit=3)
    second = await storage.page("ws", limit=3, before=first[-1].id)
    assert [blob.id for blob in first + second] == ids


async def test_owners_keep_a_blob(storage: StorageManager, clock: ManualClock) -> None:
    blob = await storage.store(pieces(b"x"), workspace="ws", owner="attempt:1")
    await storage.add_owner(blob.id, "run:1")
    await storage.add_owner(blob.id, "run:1")
    await storage.release("attempt:1")
    clock.now += 2 * DAY
    assert (await storage.life.sweep()).blobs == 0
    await storage.release("run:1")
    clock.now += DAY - 1
    assert (await storage.life.sweep()).blobs == 0
    clock.now += 1
    assert (await storage.life.sweep()).blobs == 1
    with pytest.raises(NotFound):
        await storage.get(blob.id, workspace="ws")
    with pytest.raises(NotFound):
        await storage.add_owner(blob.id, "run:2")


async def test_a_new_owner_in_the_grace_saves_it(
    storage: StorageManager, clock: ManualClock
) -> None:
    blob = await storage.store(pieces(b"x"), workspace="ws", owner="attempt:1")
    await storage.release("attempt:1")
    await storage.add_owner(blob.id, "run:1")
    clock.now += 2 * DAY
    assert (await storage.life.sweep()).blobs == 0
    assert await read(storage, blob) == b"x"


async def test_release_of_an_unknown_owner_is_fine(storage: StorageManager) -> None:
    await storage.release("run:none")


async def test_delete(storage: StorageManager) -> None:
    blob = await storage.store(pieces(b"x"), workspace="ws")
    await storage.add_owner(blob.id, "run:1")
    with pytest.raises(Conflict) as error:
        await storage.delete(blob.id, workspace="ws")
    assert "run:1" in error.value.message
    await storage.release("run:1")
    with pytest.raises(NotFound):
        await storage.delete(blob.id, workspace="other")
    await storage.delete(blob.id, workspace="ws")
    with pytest.raises(NotFound):
        await storage.get(blob.id, workspace="ws")


async def test_bytes_without_a_row_go_after_the_grace(
    local: StorageManager, tmp_path: Path, clock: ManualClock
) -> None:
    kept = await local.store(pieces(b"kept"), workspace="ws")
    lost = await local.store(pieces(b"lost"), workspace="ws")
    await local._catalog.forget([lost.id])
    assert await local.life.sweep() == Swept(0, 0)
    path = local.local_path(lost)
    assert path is not None
    for name in (path, path.with_name(f".{path.name}.meta")):
        os.utime(name, (NOW - 2 * DAY, NOW - 2 * DAY))
    assert await local.life.sweep() == Swept(0, 1)
    assert objects(tmp_path / "blobs") == [Path(kept.key).name]


async def test_the_sweep_returns_again_and_again(
    storage: StorageManager, clock: ManualClock
) -> None:
    await storage.store(pieces(b"x"), workspace="ws", owner="run:1")
    await storage.release("run:1")
    clock.now += 2 * DAY
    sweeping = asyncio.ensure_future(storage.life.sweep_forever(every_s=0.001))
    async with asyncio.timeout(20):
        while await storage.page("ws", limit=1):
            await asyncio.sleep(0)
    sweeping.cancel()
    await asyncio.gather(sweeping, return_exceptions=True)


async def test_a_sweep_that_fails_is_not_the_last(
    storage: StorageManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    swept = asyncio.Event()

    async def sweep() -> Swept:
        if "No space left" not in caplog.text:
            raise OSError(errno.ENOSPC, "No space left on device")
        swept.set()
        return Swept(0, 0)

    monkeypatch.setattr(storage.life, "sweep", sweep)
    sweeping = asyncio.ensure_future(storage.life.sweep_forever(every_s=0))
    async with asyncio.timeout(20):
        await swept.wait()
    sweeping.cancel()
    await asyncio.gather(sweeping, return_exceptions=True)


async def test_a_lost_catalogue_is_rebuilt(tmp_path: Path) -> None:
    async with open_local(tmp_path / "blobs", tmp_path / "one.db") as storage:
        blobs = [
            await storage.store(pieces(png()), workspace="ws", filename="a.png", sha256=True),
            await storage.store(pieces(b"[1]"), workspace="ws", expect=PinType.JSON, owner="run:1"),
        ]
    async with open_local(tmp_path / "blobs", tmp_path / "two.db") as storage:
        assert await storage.life.rebuild() == Rebuilt(entered=2)
        assert await storage.life.rebuild() == Rebuilt(known=2)
        for blob in blobs:
            assert await storage.get(blob.id, workspace="ws") == blob
        assert await storage.life.sweep() == Swept(0, 0)


async def test_lost_bytes_are_told(local: StorageManager) -> None:
    blob = await local.store(pieces(b"x"), workspace="ws")
    path = local.local_path(blob)
    assert path is not None
    path.unlink()
    with pytest.raises(Internal) as error:
        await local.open(blob)
    assert error.value.code is Code.REFERENCE_CORRUPT
    corrupt = await local.get(blob.id, workspace="ws")
    assert corrupt.state == "corrupt"
    with pytest.raises(Internal):
        await local.open(corrupt)


async def test_everything_survives_a_restart(tmp_path: Path) -> None:
    async with open_local(tmp_path / "blobs", tmp_path / "catalog.db") as storage:
        blob = await storage.store(pieces(png()), workspace="ws")
    async with open_local(tmp_path / "blobs", tmp_path / "catalog.db") as storage:
        assert await storage.get(blob.id, workspace="ws") == blob
        assert await read(storage, blob) == png()
