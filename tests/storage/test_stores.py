"""The shipped contract on both stores, and what only files can get wrong."""

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blake3 import blake3

from mentatlab.protocol.errors import Code, Conflict, Internal, NotFound, OutOfSpace
from mentatlab.storage.local import LocalStore
from mentatlab.storage.memory import MemoryStore
from mentatlab.storage.port import BlobStore, Durability
from mentatlab.testing.blob_store_contract import BIG, BlobStoreContract, keys_of, pieces, read


class TestLocalStore(BlobStoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[BlobStore]:
        self.root, self.others = tmp_path / "blobs", list[LocalStore]()
        store = LocalStore(self.root)
        yield store
        for opened in (store, *self.others):
            await opened.aclose()
        staged = [Path(name) for name in files(self.root / ".staging")]
        records = {path.stem for path in staged if path.suffix == ".upload"}
        assert {path.stem for path in staged if path.suffix != ".upload"} == records

    async def reopened(self, store: BlobStore) -> BlobStore:
        """As after a SIGKILL of the first."""
        self.others.append(LocalStore(self.root))
        return self.others[-1]


class TestMemoryStore(BlobStoreContract):
    @pytest.fixture
    async def store(self) -> AsyncIterator[BlobStore]:
        store = MemoryStore()
        yield store
        await store.aclose()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalStore]:
    store = LocalStore(tmp_path / "blobs")
    yield store
    await store.aclose()


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


@pytest.mark.parametrize("durability", ["full", "data", "none"])
async def test_durabilities_store_the_same(store: LocalStore, durability: Durability) -> None:
    await store.put("k", pieces(b"x"), durability=durability)
    assert await read(store, "k") == b"x"


async def test_the_pieces_of_a_put_may_be_tiny(store: LocalStore) -> None:
    await store.put("k", pieces(b"0123456789" * 300, size=1))
    assert await read(store, "k") == b"0123456789" * 300


async def test_the_disk_works_beside_a_large_put(store: LocalStore, tmp_path: Path) -> None:
    large = BIG * 12  # synced three times before the end
    info = await store.put("k", pieces(large))
    assert info.blake3 == blake3(large).hexdigest()
    upload = await store.open_upload("u")
    await upload.write(pieces(large))
    await upload.abort()
    assert files(tmp_path / "blobs") == [".k.meta", "k"]


async def test_tidy_leaves_a_put_under_way(store: LocalStore) -> None:
    async def tidied() -> AsyncIterator[bytes]:
        for part in (BIG, b"the rest"):
            yield part
            await store.tidy(before=time.time() + 60)

    await store.put("k", tidied())
    assert await read(store, "k") == BIG + b"the rest"


async def test_layout(store: LocalStore, tmp_path: Path) -> None:
    await store.put("ws/_uploads/x.jpg", pieces(b"x"))
    assert files(tmp_path / "blobs") == ["ws/_uploads/.x.jpg.meta", "ws/_uploads/x.jpg"]
    assert store.local_path("ws/_uploads/x.jpg") == tmp_path / "blobs/ws/_uploads/x.jpg"


async def test_delete_takes_empty_folders_along(store: LocalStore, tmp_path: Path) -> None:
    await store.put("a/b/c", pieces(b"x"))
    await store.put("a/d", pieces(b"x"))
    await store.delete("a/b/c")
    assert sorted(p.name for p in (tmp_path / "blobs/a").iterdir()) == [".d.meta", "d"]


async def test_opening_clears_the_staging_folder(tmp_path: Path) -> None:
    litter = tmp_path / ".staging" / "left-over"
    litter.parent.mkdir()
    litter.write_bytes(b"half")
    store = LocalStore(tmp_path)
    assert list(litter.parent.iterdir()) == []
    await store.aclose()


async def test_a_linked_staging_folder_is_replaced_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    root = tmp_path / "blobs"
    root.mkdir()
    (root / ".staging").symlink_to(outside)
    store = LocalStore(root)
    assert (outside / "precious").exists()
    await store.put("k", pieces(b"x"))
    await store.aclose()


async def test_symbolic_links_are_refused(store: LocalStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (tmp_path / "blobs" / "link").symlink_to(outside)
    (tmp_path / "blobs" / "file").symlink_to(outside / "secret")
    with pytest.raises(Conflict):
        await store.put("link/new", pieces(b"x"))
    with pytest.raises(Conflict):
        await store.put("file", pieces(b"x"))
    for key in ("link/secret", "file"):
        with pytest.raises(NotFound):
            await store.get(key)
        assert store.local_path(key) is None
    await store.delete("link/secret")
    assert files(outside) == ["secret"]


async def test_a_sidecar_that_is_a_link_is_no_sidecar(store: LocalStore, tmp_path: Path) -> None:
    await store.put("k", pieces(b"x"))
    sidecar = tmp_path / "blobs" / ".k.meta"
    sidecar.rename(tmp_path / "elsewhere")
    sidecar.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotFound):
        await store.get("k")


async def test_a_file_in_the_way_is_a_conflict(store: LocalStore) -> None:
    await store.put("a", pieces(b"x"))
    with pytest.raises(Conflict):
        await store.put("a/b", pieces(b"x"))
    with pytest.raises(NotFound):
        await store.get("a/b")


async def test_a_folder_is_no_object(store: LocalStore) -> None:
    await store.put("a/b", pieces(b"x"))
    with pytest.raises(NotFound):
        await store.get("a")
    with pytest.raises(Conflict):
        await store.put("a", pieces(b"x"))
    await store.delete("a")
    assert await read(store, "a/b") == b"x"


async def test_a_damaged_sidecar_is_told_and_not_listed(store: LocalStore, tmp_path: Path) -> None:
    await store.put("k", pieces(b"x"))
    (tmp_path / "blobs" / ".k.meta").write_bytes(b"{")
    with pytest.raises(Internal) as error:
        await store.get("k")
    assert error.value.code is Code.REFERENCE_CORRUPT
    assert await keys_of(store.list()) == []


async def test_a_file_that_shrinks_while_read_is_an_error(
    store: LocalStore, tmp_path: Path
) -> None:
    await store.put("k", pieces(BIG))
    reader = await store.get("k")
    chunks = aiter(reader)
    await anext(chunks)
    path = tmp_path / "blobs" / "k"
    path.chmod(0o600)
    os.truncate(path, 1 << 20)
    with pytest.raises(Internal):
        await anext(chunks)
    await reader.aclose()
    await reader.aclose()  # twice does no harm


async def test_a_reader_outlives_the_delete(store: LocalStore) -> None:
    await store.put("k", pieces(BIG))
    reader = await store.get("k")
    await store.delete("k")
    assert b"".join([chunk async for chunk in reader]) == BIG
    await reader.aclose()


async def test_tidy_removes_old_sidecars_without_bytes(store: LocalStore, tmp_path: Path) -> None:
    await store.put("k", pieces(b"x"))
    stray = tmp_path / "blobs" / ".gone.meta"
    stray.write_text("{}")
    await store.tidy(before=time.time() - 3600)
    assert stray.exists()
    await store.tidy(before=time.time() + 3600)
    assert files(tmp_path / "blobs") == [".k.meta", "k"]
    stray.write_text("{}")
    await store.put("gone", pieces(b"y"))  # a stray sidecar does not block its key
    assert await read(store, "gone") == b"y"


async def test_a_cancelled_get_leaks_no_descriptor(store: LocalStore) -> None:
    await store.put("k", pieces(b"x"))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 — Path.iterdir opens one more
    for _ in range(20):
        get = asyncio.ensure_future(store.get("k"))
        await asyncio.sleep(0)
        get.cancel()
        await asyncio.gather(get, return_exceptions=True)
    await store.aclose()
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208


async def test_the_free_space_guard(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, min_free_bytes=1 << 60)
    with pytest.raises(OutOfSpace) as error:
        await store.put("k", pieces(b"x"))
    assert error.value.code is Code.DISK_FULL
    assert files(tmp_path) == []
    await store.aclose()
    roomy = LocalStore(tmp_path, min_free_bytes=1)
    await roomy.put("k", pieces(b"x"))
    await roomy.aclose()


_FILLS_UP = textwrap.dedent("""
    import asyncio, resource, sys
    from pathlib import Path
    from mentatlab.protocol.errors import Code, OutOfSpace
    from mentatlab.storage.local import LocalStore
    from mentatlab.testing.blob_store_contract import BIG, pieces

    async def main():
        store = LocalStore(Path(sys.argv[1]))
        limit = int(sys.argv[2])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        await store.put("fits", pieces(b""), durability="none") if limit > 1000 else None
        try:
            await store.put("k", pieces(BIG))
        except OutOfSpace as error:
            assert error.code is Code.DISK_FULL
            print("full")
        await store.aclose()

    asyncio.run(main())
""")


@pytest.mark.parametrize("limit", [100, 5_000_000])
def test_a_file_that_cannot_grow_is_a_full_disk(tmp_path: Path, limit: int) -> None:
    """RLIMIT_FSIZE stands for the disk's end: the kernel writes a part, then refuses."""
    done = subprocess.run(
        [sys.executable, "-c", _FILLS_UP, str(tmp_path), str(limit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "full\n"), done.stderr
    assert [name for name in files(tmp_path) if "fits" not in name] == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> AsyncIterator[Path]:
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk_keeps_what_was_there(tiny_disk: Path) -> None:
    store = LocalStore(tiny_disk)
    await store.put("small", pieces(b"s" * 1_000_000))
    with pytest.raises(OutOfSpace):
        await store.put("big", pieces(BIG))
    assert files(tiny_disk) == [".small.meta", "small"]
    await store.put("more", pieces(b"m" * 4_000_000))
    assert len(await read(store, "more")) == 4_000_000
    await store.aclose()


_DIES = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from mentatlab.storage.local import LocalStore
    from mentatlab.testing.blob_store_contract import BIG

    async def source():
        for n in range(4):
            yield BIG
        print("written", flush=True)
        await asyncio.Event().wait()

    asyncio.run(LocalStore(Path(sys.argv[1])).put("k", source()))
""")


def test_sigkill_leaves_no_object(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _DIES, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "written\n"
        process.kill()
        process.wait()
    assert asyncio.run(_listed(tmp_path)) == []
    assert files(tmp_path) == []


async def _listed(root: Path) -> list[str]:
    store = LocalStore(root)
    found = await keys_of(store.list())
    await store.aclose()
    return found
