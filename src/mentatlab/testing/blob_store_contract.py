"""The promises of `storage.port.BlobStore` as a test class: subclass it and give a `store` fixture.

    class TestMyStore(BlobStoreContract):
        @pytest.fixture
        async def store(self):
            store = MyStore(...)  # empty, and of this test alone
            yield store
            await store.aclose()

        async def reopened(self, store):  # when bytes outlive a process
            return MyStore(...)  # over the same bytes

Needs pytest, pytest-asyncio in auto mode, and blake3. `put`, `get`, `list` and the like come first,
then uploads, then what a store may have beyond (`Caps`).
"""

import asyncio
import hashlib
import time
import urllib.request
from collections.abc import AsyncIterator, Iterable

import pytest
from blake3 import blake3

from mentatlab.protocol.errors import Code, Conflict, Invalid, NotFound, RangeUnsatisfiable
from mentatlab.storage.port import BlobInfo, BlobStore, ByteRange, Upload

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


async def uploaded(upload: Upload, data: bytes) -> BlobInfo:
    """All of `data` from the upload's offset on, and the end."""
    await upload.write(pieces(data[upload.offset :]))
    return await upload.complete()


def kept(store: BlobStore, info: BlobInfo) -> set[str]:
    """What may be known of the blake3 later: nothing, of an object that came in parts."""
    in_parts = store.caps.presigns and info.size > store.caps.part_size
    return {info.blake3, ""} if in_parts else {info.blake3}


async def stale_ids(store: BlobStore, *, before: float) -> set[str]:
    return {stale.upload_id async for stale in store.list_stale_uploads(before=before)}


def send(url: str, data: bytes | None = None) -> bytes:
    """GET, or PUT of `data`, as a client without any key of the store does."""
    method = "GET" if data is None else "PUT"
    request = urllib.request.Request(url, data=data, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


class BlobStoreContract:
    async def reopened(self, store: BlobStore) -> BlobStore:
        """The store as another process finds it, while this one may be dead or alive.

        Override where bytes outlive a process; who overrides it closes it."""
        return store

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
        assert (head.key, head.size) == ("ws/a.bin", info.size)
        assert head.blake3 in kept(store, info)
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

    # --- uploads

    @pytest.mark.parametrize("data", [b"", b"x", BIG, BIG + BIG])
    async def test_an_upload_is_an_object(self, store: BlobStore, data: bytes) -> None:
        upload = await store.open_upload("ws/u.bin", content_type="image/png", meta={"ref": "r"})
        assert upload.offset == 0
        info = await uploaded(upload, data)
        assert (info.key, info.size, info.blake3) == (
            "ws/u.bin",
            len(data),
            blake3(data).hexdigest(),
        )
        assert (info.content_type, info.meta) == ("image/png", {"ref": "r"})
        assert await read(store, "ws/u.bin") == data
        head = await store.head("ws/u.bin")
        assert (head.size, head.content_type, head.meta) == (len(data), "image/png", {"ref": "r"})

    async def test_nothing_is_visible_before_the_end(self, store: BlobStore) -> None:
        upload = await store.open_upload("k", size=len(BIG))
        await upload.write(pieces(BIG))
        await upload.checkpoint()
        assert await keys_of(store.list()) == []
        with pytest.raises(NotFound):
            await store.get("k")
        await store.tidy(before=time.time() + 60)  # it is not litter
        await upload.complete()
        assert await keys_of(store.list()) == ["k"]

    async def test_many_writes_are_one_object(self, store: BlobStore) -> None:
        upload = await store.open_upload("k")
        for number in range(20):
            assert (
                await upload.write(pieces(bytes([number]) * 1000, size=300)) == (number + 1) * 1000
            )
        assert upload.offset == 20_000
        await upload.complete()
        assert await read(store, "k") == b"".join(bytes([n]) * 1000 for n in range(20))

    async def test_an_upload_goes_on_where_it_was_made_durable(self, store: BlobStore) -> None:
        upload = await store.open_upload("k", meta={"n": 1}, size=2 * len(BIG) + 5)
        await upload.write(pieces(BIG))
        assert await upload.checkpoint() == len(BIG)
        resumed = await (await self.reopened(store)).resume_upload(upload.id)
        assert (resumed.id, resumed.key, resumed.offset) == (upload.id, "k", len(BIG))
        await resumed.write(pieces(BIG))
        assert await resumed.checkpoint() == 2 * len(BIG)
        await resumed.aclose()
        again = await (await self.reopened(store)).resume_upload(upload.id)
        whole = BIG + BIG + b"12345"
        info = await uploaded(again, whole)
        assert (info.blake3, info.meta) == (blake3(whole).hexdigest(), {"n": 1})
        assert await read(store, "k") == whole

    async def test_what_was_not_made_durable_may_be_lost(self, store: BlobStore) -> None:
        upload = await store.open_upload("k")
        await upload.write(pieces(BIG[:1000]))
        await upload.checkpoint()
        await upload.write(pieces(BIG[1000:]))
        resumed = await (await self.reopened(store)).resume_upload(upload.id)
        assert 1000 <= resumed.offset <= len(BIG)
        await uploaded(resumed, BIG)
        assert await read(store, "k") == BIG

    async def test_of_a_broken_source_the_beginning_is_taken(self, store: BlobStore) -> None:
        async def broken() -> AsyncIterator[bytes]:
            yield BIG
            yield b"end"
            raise ConnectionResetError

        upload = await store.open_upload("k")
        with pytest.raises(ConnectionResetError):
            await upload.write(broken())
        assert upload.offset == len(BIG) + 3
        assert await upload.checkpoint() == upload.offset
        await upload.write(pieces(b"!"))
        await upload.complete()
        assert await read(store, "k") == BIG + b"end!"

    async def test_of_a_cancelled_writer_the_beginning_is_taken(self, store: BlobStore) -> None:
        begun = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            yield BIG
            yield b"end"
            begun.set()
            await asyncio.Event().wait()

        upload = await store.open_upload("k")
        writing = asyncio.ensure_future(upload.write(endless()))
        await begun.wait()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert upload.offset == len(BIG) + 3
        await upload.complete()
        assert await read(store, "k") == BIG + b"end"

    async def test_complete_can_be_repeated(self, store: BlobStore) -> None:
        upload = await store.open_upload("k", meta={"n": 1})
        info = await uploaded(upload, BIG)
        assert (await upload.complete()).blake3 == info.blake3
        for other in (store, await self.reopened(store)):
            resumed = await other.resume_upload(upload.id)
            assert resumed.offset == len(BIG)
            again = await resumed.complete()
            assert (again.key, again.size, again.meta) == ("k", len(BIG), {"n": 1})
            assert again.blake3 in ("", info.blake3)
            await resumed.aclose()
        assert await read(store, "k") == BIG

    async def test_complete_by_two_at_once(self, store: BlobStore) -> None:
        upload = await store.open_upload("k")
        await upload.write(pieces(BIG))
        other = await store.resume_upload(upload.id)
        infos = await asyncio.gather(upload.complete(), other.complete())
        assert {info.size for info in infos} == {len(BIG)}
        assert await read(store, "k") == BIG

    async def test_nothing_is_added_to_a_complete_upload(self, store: BlobStore) -> None:
        upload = await store.open_upload("k")
        await uploaded(upload, b"all")
        with pytest.raises(Conflict):
            await upload.write(pieces(b"more"))
        assert await read(store, "k") == b"all"

    async def test_missing_bytes_are_told_and_may_come_yet(self, store: BlobStore) -> None:
        upload = await store.open_upload("k", size=10)
        await upload.write(pieces(b"01234"))
        with pytest.raises(Conflict) as error:
            await upload.complete()
        assert error.value.code is Code.UPLOAD_INCOMPLETE
        assert await keys_of(store.list()) == []
        await upload.write(pieces(b"56789"))
        await upload.complete()
        assert await read(store, "k") == b"0123456789"

    async def test_the_digest_of_an_upload_is_checked_first(self, store: BlobStore) -> None:
        right = hashlib.sha256(BIG).hexdigest()
        upload = await store.open_upload("k")
        await upload.write(pieces(BIG[:-1]))
        with pytest.raises(Invalid) as error:
            await upload.complete(expected_sha256=right)
        assert error.value.code is Code.DIGEST_MISMATCH
        assert await keys_of(store.list()) == []
        await upload.abort()
        upload = await store.open_upload("k")
        await upload.write(pieces(BIG))
        info = await upload.complete(expected_sha256=right.upper())
        assert info.sha256 == right

    async def test_the_sha256_of_an_upload_when_asked(self, store: BlobStore) -> None:
        upload = await store.open_upload("k")
        await upload.write(pieces(BIG))
        assert (await upload.complete(sha256=True)).sha256 == hashlib.sha256(BIG).hexdigest()

    async def test_an_aborted_upload_is_forgotten(self, store: BlobStore) -> None:
        upload = await store.open_upload("k")
        await upload.write(pieces(BIG))
        await upload.checkpoint()
        await upload.abort()
        await upload.abort()
        for other in (store, await self.reopened(store)):
            with pytest.raises(NotFound) as error:
                await other.resume_upload(upload.id)
            assert error.value.code is Code.UPLOAD_NOT_FOUND
        assert upload.id not in await stale_ids(store, before=time.time() + 60)
        await store.put("k", pieces(b"free"))
        assert await read(store, "k") == b"free"

    async def test_abort_leaves_a_complete_object(self, store: BlobStore) -> None:
        upload = await store.open_upload("k")
        await uploaded(upload, BIG)
        await upload.abort()
        assert await read(store, "k") == BIG

    @pytest.mark.parametrize("upload_id", ["", "no-such", "..:k", "../../etc:k", "0" * 32 + ":k"])
    async def test_unknown_uploads(self, store: BlobStore, upload_id: str) -> None:
        await store.put("k", pieces(b"not by an upload"))
        with pytest.raises(NotFound) as error:
            await store.resume_upload(upload_id)
        assert error.value.code is Code.UPLOAD_NOT_FOUND

    async def test_an_upload_never_replaces(self, store: BlobStore) -> None:
        upload = await store.open_upload("k")
        await upload.write(pieces(BIG))
        await store.put("k", pieces(b"first"), meta={"n": 1})
        with pytest.raises(Conflict) as error:
            await upload.complete()
        assert error.value.code is Code.KEY_EXISTS
        await upload.abort()
        with pytest.raises(Conflict):
            await uploaded(await store.open_upload("k"), b"third")
        assert await read(store, "k") == b"first"
        assert (await store.head("k")).meta == {"n": 1}

    async def test_of_two_uploads_to_one_key_one_wins(self, store: BlobStore) -> None:
        uploads = [await store.open_upload("k", meta={"n": n}) for n in range(2)]
        for number, upload in enumerate(uploads):
            await upload.write(pieces(bytes([number]) * 200_000))
        results = await asyncio.gather(
            *(upload.complete() for upload in uploads), return_exceptions=True
        )
        won = [result for result in results if isinstance(result, BlobInfo)]
        lost = [result for result in results if isinstance(result, Conflict)]
        assert (len(won), len(lost)) == (1, 1)
        for upload in uploads:
            await upload.abort()
        assert await read(store, "k") == bytes([won[0].meta["n"]]) * 200_000

    @pytest.mark.parametrize("key", ["", "/a", "a/../b", "x" * 201])
    async def test_no_upload_takes_a_bad_key(self, store: BlobStore, key: str) -> None:
        with pytest.raises(Invalid):
            await store.open_upload(key)

    @pytest.mark.parametrize("key", ["ws/Straße/猫:1.jpg", ".upload", "a b/c%2Fd", "x" * 200])
    async def test_an_upload_takes_an_odd_key(self, store: BlobStore, key: str) -> None:
        upload = await store.open_upload(key)
        await upload.write(pieces(b"odd"))
        await upload.checkpoint()
        resumed = await (await self.reopened(store)).resume_upload(upload.id)
        await resumed.complete()
        assert await keys_of(store.list()) == [key]

    async def test_stale_uploads_are_listed(self, store: BlobStore) -> None:
        upload, done = await store.open_upload("a"), await store.open_upload("b")
        await upload.write(pieces(BIG))
        await uploaded(done, b"b")
        later, earlier = time.time() + 60, time.time() - 3600
        found = {s.upload_id: s async for s in store.list_stale_uploads(before=later)}
        assert set(found) == {upload.id}
        assert found[upload.id].key == "a"
        assert earlier < found[upload.id].changed_at < later
        assert await stale_ids(store, before=earlier) == set()
        stale = await (await self.reopened(store)).resume_upload(upload.id)
        await stale.abort()
        assert await stale_ids(store, before=later) == set()

    async def test_upload_path_is_the_file_that_grows(self, store: BlobStore) -> None:
        upload = await store.open_upload("k")
        assert store.upload_path("no-such") is None
        if path := store.upload_path(upload.id):
            with path.open("rb") as file:
                await upload.write(pieces(b"first"))
                await upload.checkpoint()
                assert file.read() == b"first"
                await uploaded(upload, b"first, last")
                assert file.read() == b", last"
        else:
            await uploaded(upload, b"first, last")
        assert await read(store, "k") == b"first, last"

    # --- and the rest

    async def test_copy(self, store: BlobStore) -> None:
        info = await store.put("a", pieces(BIG), content_type="image/png", meta={"n": 1})
        made = await store.copy("a", "b/c")
        assert (made.key, made.size) == ("b/c", len(BIG))
        assert made.blake3 in kept(store, info)
        head = await store.head("b/c")
        assert (head.content_type, head.meta) == ("image/png", {"n": 1})
        await store.delete("a")
        assert await read(store, "b/c") == BIG

    async def test_copy_never_replaces(self, store: BlobStore) -> None:
        await self.fill(store, ["a", "b"])
        with pytest.raises(Conflict) as error:
            await store.copy("a", "b")
        assert error.value.code is Code.KEY_EXISTS
        assert await read(store, "b") == b"b"
        with pytest.raises(NotFound):
            await store.copy("none", "c")
        with pytest.raises(Invalid):
            await store.copy("a", "../c")
        assert await keys_of(store.list()) == ["a", "b"]

    async def test_a_store_that_works_says_so(self, store: BlobStore) -> None:
        await store.check()
        assert await keys_of(store.list()) == []

    async def test_presigned_reading(self, store: BlobStore) -> None:
        await store.put("a/ü.png", pieces(b"0123456789"))
        url = store.presign("a/ü.png", expires_s=60, content_type="image/png")
        assert (url is not None) == store.caps.presigns
        if url is not None:
            assert await asyncio.to_thread(send, url) == b"0123456789"

    async def test_presigned_parts(self, store: BlobStore) -> None:
        data = bytes(store.caps.part_size) + b"last"
        upload = await store.open_upload("k", size=len(data))
        if not store.caps.presigns:
            with pytest.raises(Conflict):
                await upload.sign_parts([1], expires_s=60)
            with pytest.raises(Conflict):
                await upload.missing_parts()
            await upload.abort()
            return
        second, first = await upload.sign_parts([2, 1], expires_s=60)
        assert first[:3] == (1, 0, store.caps.part_size)
        assert second[:3] == (2, store.caps.part_size, 4)
        assert await upload.missing_parts() == [1, 2]
        await asyncio.to_thread(send, second.url, data[second.offset :])
        assert await upload.missing_parts() == [1]
        with pytest.raises(Conflict) as error:
            await upload.complete()
        assert error.value.code is Code.UPLOAD_INCOMPLETE
        await asyncio.to_thread(send, first.url, data[: first.size])
        info = await upload.complete()
        assert info.size == len(data)
        assert info.blake3 in ("", blake3(data).hexdigest())
        assert await read(store, "k") == data
