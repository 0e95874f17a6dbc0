"""The promises of `storage.port.BlobStore` as a test class: subclass it and give a `store` fixture.

    class TestMyStore(BlobStoreContract):
        @pytest.fixture
        async def store(self): ...

Needs pytest, pytest-asyncio in auto mode, and blake3.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterable

import pytest
from blake3 import blake3

from mentatlab.protocol.errors import Code, Conflict, Invalid, NotFound, RangeUnsatisfiable
from mentatlab.storage.port import BlobInfo, BlobStore, ByteRange

BIG = bytes(range(256)) * (9 << 12)  # 9 MiB: several batches of any sensible size


async def pieces(data: bytes, size: int = 65_536) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def read(store: BlobStore, key: str, range_: ByteRange | None = None) -> bytes:
    reader = await store.get(key, range_=range_)
    try:
        chunks = [chunk async for chunk in reader]
    finally:
        await reader.aclose()
    assert all(0 < len(chunk) <= 1 << 20 for chunk in chunks)
    return b"".join(chunks)


async def keys_of(listing: AsyncIterator[BlobInfo]) -> list[str]:
    return [info.key async for info in listing]


class BlobStoreContract:
    async def fill(self, store: BlobStore, keys: Iterable[str]) -> None:
        for key in keys:
            await store.put(key, pieces(key.encode()))

    @pytest.mark.parametrize("data", [b"", b"x", b"y" * 1_048_576, BIG])
    async def test_what_was_put_comes_back(self, store: BlobStore, data: bytes) -> None:
        info = await store.put(
            "ws/a.bin", pieces(data), content_type="image/png", meta={"ref": "r"}
        )
        assert (info.size, info.blake3) == (len(data), blake3(data).hexdigest())
        assert (info.content_type, info.meta, info.sha256) == ("image/png", {"ref": "r"}, "")
        assert await read(store, "ws/a.bin") == data
        head = await store.head("ws/a.bin")
        assert (head.key, head.size, head.blake3) == ("ws/a.bin", info.size, info.blake3)
        assert (head.content_type, head.meta) == ("image/png", {"ref": "r"})

    @pytest.mark.parametrize(
        ("range_", "expected"),
        [
            (ByteRange(0, 3), b"012"),
            (ByteRange(3, 7), b"3456"),
            (ByteRange(7, 100), b"789"),
            (ByteRange(10, 20), b""),
            (ByteRange(4, 4), b""),
        ],
    )
    async def test_a_range_is_cut_at_the_end(
        self, store: BlobStore, range_: ByteRange, expected: bytes
    ) -> None:
        await store.put("k", pieces(b"0123456789"))
        assert await read(store, "k", range_) == expected

    @pytest.mark.parametrize("range_", [ByteRange(11, 12), ByteRange(-1, 2), ByteRange(5, 4)])
    async def test_a_range_outside_is_an_error(self, store: BlobStore, range_: ByteRange) -> None:
        await store.put("k", pieces(b"0123456789"))
        with pytest.raises(RangeUnsatisfiable):
            await store.get("k", range_=range_)

    async def test_put_never_replaces(self, store: BlobStore) -> None:
        await store.put("k", pieces(b"first"), meta={"n": 1})
        with pytest.raises(Conflict) as error:
            await store.put("k", pieces(b"second"), meta={"n": 2})
        assert error.value.code is Code.KEY_EXISTS
        assert await read(store, "k") == b"first"
        assert (await store.head("k")).meta == {"n": 1}

    async def test_of_concurrent_puts_one_wins(self, store: BlobStore) -> None:
        puts = [store.put("k", pieces(bytes([n]) * 200_000), meta={"n": n}) for n in range(8)]
        results = await asyncio.gather(*puts, return_exceptions=True)
        won = [result for result in results if isinstance(result, BlobInfo)]
        assert len(won) == 1
        assert sum(isinstance(result, Conflict) for result in results) == 7
        assert await read(store, "k") == bytes([won[0].meta["n"]]) * 200_000
        assert (await store.head("k")).meta == won[0].meta

    async def test_sha256_when_asked(self, store: BlobStore) -> None:
        info = await store.put("k", pieces(b"data"), sha256=True)
        assert info.sha256 == hashlib.sha256(b"data").hexdigest()
        assert (await store.head("k")).sha256 == info.sha256

    async def test_an_expected_digest_is_checked_first(self, store: BlobStore) -> None:
        right = hashlib.sha256(b"data").hexdigest()
        with pytest.raises(Invalid) as error:
            await store.put("bad", pieces(b"dada"), expected_sha256=right)
        assert error.value.code is Code.DIGEST_MISMATCH
        assert await keys_of(store.list()) == []
        await store.put("good", pieces(b"data"), expected_sha256=right.upper())
        assert await keys_of(store.list()) == ["good"]

    async def test_a_failing_source_leaves_nothing(self, store: BlobStore) -> None:
        async def broken() -> AsyncIterator[bytes]:
            yield BIG
            raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            await store.put("k", broken())
        assert await keys_of(store.list()) == []
        await store.put("k", pieces(b"free again"))

    async def test_a_cancelled_put_leaves_nothing(self, store: BlobStore) -> None:
        begun = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            yield BIG
            begun.set()
            await asyncio.Event().wait()

        put = asyncio.ensure_future(store.put("k", endless()))
        await begun.wait()
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        assert await keys_of(store.list()) == []

    @pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", ".", "a/../b", "a/..", "x" * 201])
    async def test_bad_keys_are_refused(self, store: BlobStore, key: str) -> None:
        with pytest.raises(Invalid):
            await store.put(key, pieces(b""))
        with pytest.raises(Invalid):
            await store.get(key)
        with pytest.raises(Invalid):
            await store.delete(key)

    @pytest.mark.parametrize(
        "key",
        [
            "ws/Straße/猫_1.jpg",
            ".hidden/.x.meta",
            "a b/c%2Fd",
            "q?*:|<>\"'\\",
            "x" * 200,
            "a/.meta",
        ],
    )
    async def test_odd_keys_come_back_as_they_were(self, store: BlobStore, key: str) -> None:
        await store.put(key, pieces(b"odd"))
        assert await read(store, key) == b"odd"
        assert await keys_of(store.list()) == [key]
        await store.delete(key)
        assert await keys_of(store.list()) == []

    async def test_absent_objects(self, store: BlobStore) -> None:
        for absent in (store.get("no/such"), store.head("no/such")):
            with pytest.raises(NotFound) as error:
                await absent
            assert error.value.code is Code.REFERENCE_NOT_FOUND
        await store.delete("no/such")

    async def test_a_deleted_key_is_free_again(self, store: BlobStore) -> None:
        await store.put("a/b", pieces(b"1"), meta={"n": 1})
        await store.delete("a/b")
        with pytest.raises(NotFound):
            await store.get("a/b")
        await store.put("a/b", pieces(b"2"))
        assert (await store.head("a/b")).meta == {}

    async def test_list_is_sorted_and_cut(self, store: BlobStore) -> None:
        keys = ["a/1", "a/2", "a/3", "a.b", "b/1"]
        await self.fill(store, keys)
        assert await keys_of(store.list()) == sorted(keys)
        assert await keys_of(store.list("a/")) == ["a/1", "a/2", "a/3"]
        assert await keys_of(store.list("a/", after="a/1")) == ["a/2", "a/3"]

    async def test_modified_at_is_now(self, store: BlobStore) -> None:
        before = time.time()
        info = await store.put("k", pieces(b"x"))
        assert before - 2 <= info.modified_at <= time.time() + 2
        assert abs((await store.head("k")).modified_at - info.modified_at) < 2

    async def test_tidy_keeps_what_is_whole(self, store: BlobStore) -> None:
        await self.fill(store, ["a/1", "b"])
        await store.tidy(before=time.time() + 60)
        assert await keys_of(store.list()) == ["a/1", "b"]
        assert await read(store, "a/1") == b"a/1"

    async def test_local_path_is_the_object(self, store: BlobStore) -> None:
        await store.put("k/x", pieces(b"here"))
        path = store.local_path("k/x")
        assert path is None or path.read_bytes() == b"here"
        assert store.local_path("k/none") is None
