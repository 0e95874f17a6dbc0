"""What only files can get wrong with uploads: crashes, power cuts, full disks, links."""

import contextlib
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mentatlab.protocol.errors import Code, Conflict, Internal, NotFound, OutOfSpace, Unavailable
from mentatlab.storage.local import LocalStore
from mentatlab.storage.port import Durability
from mentatlab.testing.blob_store_contract import BIG, keys_of, pieces, read, stale_ids, uploaded


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalStore]:
    store = LocalStore(tmp_path / "blobs")
    yield store
    await store.aclose()


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    return tmp_path / "blobs" / ".staging"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def file_of(staging: Path, upload_id: str) -> Path:
    return staging / upload_id.partition(":")[0]


async def next_process(store: LocalStore, staging: Path) -> LocalStore:
    await store.aclose()
    return LocalStore(staging.parent)


@pytest.mark.parametrize("durability", ["full", "data", "none"])
async def test_durabilities(store: LocalStore, staging: Path, durability: Durability) -> None:
    upload = await store.open_upload("k", durability=durability)
    await upload.write(pieces(BIG))
    assert await upload.checkpoint() == len(BIG)
    store = await next_process(store, staging)
    again = await store.resume_upload(upload.id)
    assert again.offset == len(BIG)
    await again.complete()
    assert await read(store, "k") == BIG
    await store.aclose()


async def test_nothing_of_a_complete_upload_is_left(store: LocalStore, staging: Path) -> None:
    upload = await store.open_upload("ws/k")
    assert len(names(staging)) == 2
    await uploaded(upload, BIG)
    assert names(staging) == []
    assert names(staging.parent / "ws") == [".k.meta", "k"]
    assert (staging.parent / "ws" / "k").stat().st_mode & 0o777 == 0o400


async def test_opening_keeps_uploads_and_clears_the_rest(store: LocalStore, staging: Path) -> None:
    upload = await store.open_upload("k")
    await upload.write(pieces(b"kept"))
    await upload.checkpoint()
    kept = names(staging)
    (staging / "put").write_bytes(b"half")
    (staging / "put.meta").write_bytes(b"half")
    (staging / "begun.draft").write_bytes(b"half")
    (staging / "folder").mkdir()
    (staging / "link").symlink_to(staging.parent)
    store = await next_process(store, staging)
    assert names(staging) == kept
    info = await (await store.resume_upload(upload.id)).complete()
    assert info.size == 4
    await store.aclose()


async def test_bytes_behind_the_durable_offset_are_cut_off(
    store: LocalStore, staging: Path
) -> None:
    """After a power cut a file may be longer than what was written of it."""
    upload = await store.open_upload("k")
    await upload.write(pieces(b"durable"))
    await upload.checkpoint()
    with file_of(staging, upload.id).open("ab") as file:
        file.write(bytes(4096))
    store = await next_process(store, staging)
    again = await store.resume_upload(upload.id)
    assert again.offset == 7
    await again.write(pieces(b", and more"))
    await again.complete()
    assert await read(store, "k") == b"durable, and more"
    await store.aclose()


@pytest.mark.parametrize("record", [b"?", b"00000000000000000000\n{", b"\xff\n\xff", b""])
async def test_a_damaged_record_goes_with_its_bytes(
    store: LocalStore, staging: Path, record: bytes
) -> None:
    upload = await store.open_upload("k")
    await upload.write(pieces(b"x"))
    file_of(staging, upload.id).with_suffix(".upload").write_bytes(record)
    store = await next_process(store, staging)
    with pytest.raises(NotFound):
        await store.resume_upload(upload.id)
    assert await stale_ids(store, before=time.time() + 60) == set()
    await store.tidy(before=time.time() - 60)
    assert len(names(staging)) == 2
    await store.tidy(before=time.time() + 60)
    assert names(staging) == []
    await store.aclose()


async def test_lost_bytes_are_told_and_the_upload_is_over(store: LocalStore, staging: Path) -> None:
    upload = await store.open_upload("k")
    await upload.write(pieces(b"durable"))
    await upload.checkpoint()
    os.truncate(file_of(staging, upload.id), 3)
    store = await next_process(store, staging)
    with pytest.raises(Internal) as error:
        await store.resume_upload(upload.id)
    assert error.value.code is Code.REFERENCE_CORRUPT
    assert error.value.hint
    assert names(staging) == []
    with pytest.raises(NotFound):
        await store.resume_upload(upload.id)
    await store.aclose()


async def test_bytes_lost_before_the_end(store: LocalStore, staging: Path) -> None:
    upload = await store.open_upload("k")
    await upload.write(pieces(BIG))
    os.truncate(file_of(staging, upload.id), 3)
    with pytest.raises(Internal):
        await upload.complete(sha256=True)
    assert await keys_of(store.list()) == []


async def test_an_id_with_another_key_is_unknown(store: LocalStore, staging: Path) -> None:
    upload = await store.open_upload("k")
    name = upload.id.partition(":")[0]
    store = await next_process(store, staging)
    for other in (f"{name}:other", name, f"{name}:../k", f"../.staging/{name}:k"):
        with pytest.raises(NotFound):
            await store.resume_upload(other)
    await store.aclose()


async def test_an_upload_does_not_follow_links(store: LocalStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "blobs" / "link").symlink_to(outside)
    (tmp_path / "blobs" / "file").symlink_to(outside / "secret")
    with pytest.raises(Conflict):
        await store.open_upload("file")
    upload = await store.open_upload("link/new")
    await upload.write(pieces(b"x"))
    with pytest.raises(Conflict) as error:
        await upload.complete()
    assert error.value.code is Code.KEY_EXISTS
    await upload.abort()
    assert list(outside.iterdir()) == []


async def test_the_free_space_guard_knows_the_size(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    store = LocalStore(tmp_path, min_free_bytes=1)
    with pytest.raises(OutOfSpace):
        await store.open_upload("k", size=2 * free)
    assert names(tmp_path / ".staging") == []
    await store.aclose()


async def test_a_copy_of_damaged_bytes_is_none(store: LocalStore, tmp_path: Path) -> None:
    await store.put("k", pieces(BIG))
    path = tmp_path / "blobs" / "k"
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(b"!")
    with pytest.raises(Internal) as error:
        await store.copy("k", "copy")
    assert error.value.code is Code.REFERENCE_CORRUPT
    assert await keys_of(store.list()) == ["k"]


async def test_a_store_that_cannot_work_says_why(store: LocalStore, staging: Path) -> None:
    shutil.rmtree(staging)
    with pytest.raises(Unavailable, match="No such file") as error:
        await store.check()
    assert error.value.code is Code.STORE_UNAVAILABLE


# --- full disks


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


async def test_a_disk_that_is_full_for_a_while(tiny_disk: Path) -> None:
    store = LocalStore(tiny_disk)
    await store.put("ballast", pieces(bytes(3 << 20)))
    upload = await store.open_upload("k")
    await upload.write(pieces(BIG[: 1 << 20]))
    for _ in range(2):
        with pytest.raises(OutOfSpace) as error:
            await upload.write(pieces(BIG[1 << 20 : 5 << 20]))
        assert error.value.code is Code.DISK_FULL
        assert await upload.checkpoint() == upload.offset == 1 << 20
        assert file_of(tiny_disk / ".staging", upload.id).stat().st_size == 1 << 20
    await store.delete("ballast")
    await upload.write(pieces(BIG[1 << 20 : 5 << 20]))
    await upload.complete()
    assert await read(store, "k") == BIG[: 5 << 20]
    await store.aclose()


async def test_a_disk_that_is_full_at_the_end(tiny_disk: Path) -> None:
    store = LocalStore(tiny_disk)
    upload = await store.open_upload("k")
    await upload.write(pieces(b"all"))
    filler = tiny_disk / "filler"
    fill(filler)
    with pytest.raises(OutOfSpace):
        await upload.complete()
    with pytest.raises(OutOfSpace):
        await store.open_upload("other", meta={"long": "x" * 5000})
    assert await upload.checkpoint() == 3
    filler.unlink()
    await upload.complete()
    assert await read(store, "k") == b"all"
    assert names(tiny_disk / ".staging") == []
    await store.aclose()


_SYNC_FAILS = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from mentatlab.storage.local import LocalStore
    from mentatlab.testing.blob_store_contract import BIG, pieces, read, uploaded

    async def main():
        store = LocalStore(Path(sys.argv[1]), threads=1)  # whose calls are counted
        upload = await store.open_upload("k")  # one fdatasync
        await upload.write(pieces(BIG))
        await upload.checkpoint()  # two
        await upload.write(pieces(b"lost"))
        try:
            await upload.checkpoint()
        except OSError as error:
            print(error.errno)
        again = await store.resume_upload(upload.id)
        print(again.offset == len(BIG))
        await again.write(pieces(b"again"))
        await again.complete()
        print(await read(store, "k") == BIG + b"again")
        await store.aclose()

    asyncio.run(main())
""")


def test_what_could_not_be_synced_does_not_count(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("no strace, which makes a disk fail")
    fault = "inject=fdatasync:error=EIO:when=4"
    command = ["strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=fdatasync", "-e", fault]
    done = subprocess.run(
        [*command, sys.executable, "-c", _SYNC_FAILS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "5\nTrue\nTrue\n"), done.stderr
