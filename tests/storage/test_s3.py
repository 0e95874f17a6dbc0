"""The shipped contract on a real S3 server, and what only S3 can get wrong."""

import asyncio
import contextlib
import hashlib
import os
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator

import pytest
from blake3 import blake3
from tests.support.cutting import cutting
from tests.support.scripted_server import Said, scripted
from tests.support.seaweed import SeaweedProcess

from mentatlab.protocol.errors import Code, Conflict, Invalid, NotFound, TooLarge, Unavailable
from mentatlab.storage import s3_owner
from mentatlab.storage.port import BlobStore, ByteRange, Upload
from mentatlab.storage.s3 import S3Store, open_store
from mentatlab.storage.s3_bucket import Bucket
from mentatlab.storage.s3_login import Login
from mentatlab.testing.blob_store_contract import (
    BIG,
    BlobStoreContract,
    keys_of,
    pieces,
    read,
    send,
    stale_ids,
)

BUCKET = "tests"


def login_of(seaweed: SeaweedProcess, bucket: str = BUCKET) -> Login:
    return Login(seaweed.endpoint, seaweed.access_key, seaweed.secret_key, bucket)


@pytest.fixture
async def bucket(seaweed: SeaweedProcess) -> AsyncIterator[Bucket]:
    bucket = await Bucket(login_of(seaweed)).open()
    yield bucket
    await bucket.aclose()


@pytest.fixture
def prefix() -> str:
    return f"{uuid.uuid4().hex}/"


@pytest.fixture
def store(bucket: Bucket, prefix: str) -> S3Store:
    return S3Store(bucket, prefix=prefix)


class TestS3Store(BlobStoreContract):
    @pytest.fixture
    def store(self, bucket: Bucket, prefix: str) -> BlobStore:
        return S3Store(bucket, prefix=prefix)

    async def reopened(self, store: BlobStore) -> BlobStore:
        assert isinstance(store, S3Store)
        return S3Store(store.bucket, prefix=store.prefix, part_size=store.caps.part_size)


class TestS3StoreInSmallParts(TestS3Store):
    """Nearly everything comes in parts."""

    @pytest.fixture
    def store(self, bucket: Bucket, prefix: str) -> BlobStore:
        return S3Store(bucket, prefix=prefix, part_size=5 << 20)


PART = 5 << 20
LATER = 3600.0


@pytest.fixture
def small(bucket: Bucket, prefix: str) -> S3Store:
    """In small parts."""
    return S3Store(bucket, prefix=prefix, part_size=PART)


def again(store: S3Store) -> S3Store:
    """As another process has it."""
    return S3Store(store.bucket, prefix=store.prefix, part_size=store.caps.part_size)


async def names_of(store: S3Store) -> list[str]:
    """Everything that the store has in its bucket."""
    return [found.name[len(store.prefix) :] async for found in store.bucket.walk(store.prefix)]


async def open_parts(store: S3Store) -> list[str]:
    return [upload.name async for upload in store.bucket.open_uploads(store.prefix)]


# --- what is kept with an object


META = {"filename": "Straße \u2028 猫.jpg", "claims": {"a": "x  y\r\n", "n": [1.5, None]}}


async def test_meta_is_any_json(store: S3Store) -> None:
    await store.put("k", pieces(b"x"), meta=META)
    assert (await store.head("k")).meta == META
    reader = await store.get("k")
    assert reader.info.meta == META
    await reader.aclose()


async def test_meta_that_no_header_takes_lies_beside(small: S3Store) -> None:
    large = {"noise": os.urandom(5000).hex()}
    await small.put("a", pieces(b"x"), meta=large)
    await small.put("b", pieces(BIG), meta=large)
    await small.copy("a", "c")
    upload = await small.open_upload("d", meta=large)
    await upload.write(pieces(BIG))
    await upload.complete()
    await small.delete("a")
    assert len([name for name in await names_of(small) if name.startswith(".meta/")]) == 4
    await small.tidy(before=time.time() + LATER)
    assert len([name for name in await names_of(small) if name.startswith(".meta/")]) == 3
    assert [(await small.head(key)).meta == large for key in "bcd"] == [True] * 3
    assert await keys_of(small.list()) == ["b", "c", "d"]


async def test_an_object_in_parts_has_no_blake3(small: S3Store) -> None:
    info = await small.put("k", pieces(BIG), sha256=True)
    assert info.blake3 == blake3(BIG).hexdigest()
    assert info.sha256 == hashlib.sha256(BIG).hexdigest()
    assert (await small.head("k")).blake3 == ""


async def test_what_others_put_is_no_blob(store: S3Store) -> None:
    for name in ("100%", "a/.b", ".own/x", "fine"):
        await store.bucket.put(
            store.prefix + name, b"", content_type="a/b", fields={}, only_new=True
        )
    assert await keys_of(store.list()) == ["fine"]
    info = await store.head("fine")
    assert (info.blake3, info.meta) == ("", {})


async def test_a_listing_of_more_than_a_page(store: S3Store) -> None:
    keys = [f"{folder}/{n:04}" for folder in ("n", "n-2") for n in range(600)] + ["n.x"]
    async with asyncio.TaskGroup() as group:
        slots = asyncio.Semaphore(16)

        async def put(key: str) -> None:
            async with slots:
                await store.put(key, pieces(b"x"))

        for key in keys:
            group.create_task(put(key))
    for in_order in (False, True):  # by folders, and as the server likes it
        store.bucket.lists_in_order = in_order
        found = await keys_of(store.list())
        assert sorted(found) == sorted(keys)
        assert found == sorted(keys) or in_order
        assert await keys_of(store.list("n/", after="n/0500")) == keys[501:600]
        assert await keys_of(store.list("n-2/059")) == keys[1190:1200]


# --- uploads


async def steps(upload: Upload, *, step: int, count: int) -> None:
    for number in range(count):
        await upload.write(pieces(bytes([number % 256]) * step))
        assert await upload.checkpoint() == upload.offset


async def test_small_steps_by_many_processes(small: S3Store) -> None:
    """Each is durable, none is lost, and the bucket keeps few objects for them."""
    id_ = (await small.open_upload("k")).id
    for number in range(40):
        upload = await again(small).resume_upload(id_)
        assert upload.offset == number * 300_000
        await upload.write(pieces(bytes([number]) * 300_000))
        await upload.checkpoint()
        tails = [name for name in await names_of(small) if not name.endswith("info")]
        assert len(tails) <= 7
    upload = await again(small).resume_upload(id_)
    info = await upload.complete()
    whole = b"".join(bytes([n]) * 300_000 for n in range(40))
    assert info.blake3 == blake3(whole).hexdigest()
    assert await read(small, "k") == whole
    assert await names_of(small) == [f".arriving/{id_}/info", "k"]


async def test_a_process_knows_what_it_has_hashed(
    small: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over many connections nothing is read back; another process does read."""

    async def get(*_: object) -> None:
        raise AssertionError("it was read back")

    id_ = (await small.open_upload("k", size=len(BIG))).id
    for start in range(0, len(BIG), 3 << 20):
        upload = await small.resume_upload(id_)
        await upload.write(pieces(BIG[start : start + (3 << 20)]))
        await upload.checkpoint()
        await upload.aclose()
    upload = await small.resume_upload(id_)
    with monkeypatch.context() as patch:
        patch.setattr(small._objects, "get", get)
        assert (await upload.complete()).blake3 == blake3(BIG).hexdigest()


async def test_what_parts_have_is_no_longer_beside(small: S3Store) -> None:
    upload = await small.open_upload("k")
    await steps(upload, step=1 << 20, count=7)
    assert sorted(await names_of(small)) == [
        f".arriving/{upload.id}/{PART}-{PART + (2 << 20)}",
        f".arriving/{upload.id}/info",
    ]
    await upload.abort()
    assert await names_of(small) == []
    assert await open_parts(small) == []


async def test_complete_goes_on_after_a_crash_in_the_middle(small: S3Store) -> None:
    """The parts are one object, and the process ended before it noted that."""
    upload = await small.open_upload("k", size=len(BIG), meta={"n": 1})
    await upload.write(pieces(BIG))
    note = f"{small.prefix}.arriving/{upload.id}/info"
    await upload.checkpoint()
    before = await small.bucket.read(note)
    await upload.complete()
    await small.bucket.put(note, before, content_type="", fields={}, only_new=False)
    resumed = await again(small).resume_upload(upload.id)
    assert resumed.offset == len(BIG)
    assert await resumed.checkpoint() == len(BIG)
    with pytest.raises(Conflict):
        await resumed.write(pieces(b"more"))
    info = await resumed.complete()
    assert (info.blake3, info.meta) == (blake3(BIG).hexdigest(), {"n": 1})


async def test_parts_that_were_given_up_are_not_resumed(small: S3Store) -> None:
    upload = await small.open_upload("k")
    await steps(upload, step=PART, count=1)
    async for parts in small.bucket.open_uploads(small.prefix):
        await small.bucket.abort(parts.name, parts.upload_id)
    with pytest.raises(NotFound) as error:
        await again(small).resume_upload(upload.id)
    assert error.value.code is Code.UPLOAD_NOT_FOUND
    assert await stale_ids(small, before=time.time() + LATER) == {upload.id}


async def test_tidy_takes_what_is_over(small: S3Store) -> None:
    """Parts of a put that was killed, notes of what is long complete; an open upload stays."""
    await small.bucket.begin(f"{small.prefix}killed", content_type="a/b", fields={})
    done, open_ = await small.open_upload("done"), await small.open_upload("open")
    await done.write(pieces(BIG))
    await done.complete()
    await open_.write(pieces(BIG))
    await open_.checkpoint()
    await small.tidy(before=time.time() - LATER)
    assert len(await open_parts(small)) == 2
    assert len(await names_of(small)) == 4
    await small.tidy(before=time.time() + LATER)
    assert await open_parts(small) == [f"{small.prefix}open"]
    assert sorted(await names_of(small)) == [
        f".arriving/{open_.id}/{PART}-{len(BIG)}",
        f".arriving/{open_.id}/info",
        "done",
    ]
    await open_.complete()


async def test_a_digest_that_comes_late_is_checked_on_what_the_bucket_has(small: S3Store) -> None:
    right = hashlib.sha256(BIG).hexdigest()
    for key, data in (("good", BIG), ("bad", BIG[:-1] + b"!")):
        upload = await small.open_upload(key, size=len(data))
        first, second = await upload.sign_parts([1, 2], expires_s=60)
        for part in (first, second):
            await asyncio.to_thread(send, part.url, data[part.offset : part.offset + part.size])
        if key == "good":
            info = await upload.complete(expected_sha256=right)
            assert (info.sha256, info.blake3) == (right, blake3(BIG).hexdigest())
        else:
            with pytest.raises(Invalid) as error:
                await upload.complete(expected_sha256=right)
            assert error.value.code is Code.DIGEST_MISMATCH
    assert await keys_of(small.list()) == ["good"]


async def test_a_direct_upload_may_go_on_through_us(small: S3Store) -> None:
    """What arrived without a hole counts; what lies behind one is sent again."""
    data = os.urandom(3 * PART + 7)
    upload = await small.open_upload("k", size=len(data))
    signed = {part.number: part for part in await upload.sign_parts([1, 3], expires_s=60)}
    for part in signed.values():
        await asyncio.to_thread(send, part.url, data[part.offset : part.offset + part.size])
    assert await upload.missing_parts() == [2, 4]
    resumed = await again(small).resume_upload(upload.id)
    assert resumed.offset == PART
    await resumed.write(pieces(data[PART:]))
    await resumed.complete()
    assert await read(small, "k") == data


async def test_more_may_come_after_an_end_that_failed(
    small: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last part has been sent as the last one, and then is not; the hash begins anew."""

    async def away(*_: object) -> None:
        raise ConnectionError

    upload = await small.open_upload("k")
    await upload.write(pieces(BIG))
    with monkeypatch.context() as patch:
        patch.setattr(small.bucket, "complete", away)
        with pytest.raises(ConnectionError):
            await upload.complete()
    await upload.write(pieces(BIG))
    assert (await upload.complete()).blake3 == blake3(BIG + BIG).hexdigest()
    assert await read(small, "k") == BIG + BIG


async def test_signing_has_its_conditions(small: S3Store) -> None:
    upload = await small.open_upload("k")
    for asked in (upload.sign_parts([1], expires_s=60), upload.missing_parts()):
        with pytest.raises(Invalid):
            await asked
    sized = await small.open_upload("k", size=PART + 1)
    for number in (0, 3):
        with pytest.raises(Invalid):
            await sized.sign_parts([number], expires_s=60)
    with pytest.raises(TooLarge):
        await small.open_upload("k", size=PART * 10_001)


@pytest.mark.slow  # ten thousand parts
async def test_a_source_without_end_is_refused(bucket: Bucket, prefix: str) -> None:
    store = S3Store(bucket, prefix=prefix, part_size=1)

    async def endless() -> AsyncIterator[bytes]:
        yield bytes(10_000)
        yield b"one too much"

    with pytest.raises(TooLarge):
        await store.put("k", endless())


# --- requests that fail


async def test_a_put_whose_answer_was_lost_knows_its_work(small: S3Store) -> None:
    """The server has done it, the line broke, and the next try hears that there is one."""
    objects = small._objects
    first = await objects.put(
        "k", b"x", ("b3", ""), content_type="a/b", meta={"n": 1}, token="t" * 32
    )
    second = await objects.put(
        "k", b"x", ("b3", ""), content_type="a/b", meta={"n": 1}, token="t" * 32
    )
    assert (first.key, first.meta) == (second.key, second.meta)
    with pytest.raises(Conflict):
        await objects.put("k", b"x", ("b3", ""), content_type="a/b", meta={}, token="u" * 32)


async def test_a_server_that_minds_no_conditions(small: S3Store) -> None:
    """Then we look first, and within a process nobody comes between."""
    small.bucket.minds_conditions = False
    puts = [small.put("k", pieces(bytes([n]) * 1000), meta={"n": n}) for n in range(8)]
    results = await asyncio.gather(*puts, return_exceptions=True)
    assert sum(isinstance(result, Conflict) for result in results) == 7
    before = await read(small, "k")
    with pytest.raises(Conflict):
        await small.put("k", pieces(BIG))
    await small.put("other", pieces(BIG))
    with pytest.raises(Conflict):
        await small.copy("other", "k")
    assert await read(small, "k") == before


async def test_large_objects_are_copied_in_pieces(seaweed: SeaweedProcess, prefix: str) -> None:
    bucket = await Bucket(login_of(seaweed), copy_part=PART).open()
    async with contextlib.aclosing(bucket):
        store = S3Store(bucket, prefix=prefix)
        await store.put("a/é", pieces(BIG), content_type="a/b", meta={"n": 1})
        made = await store.copy("a/é", "b")
        assert (made.size, made.meta, made.content_type) == (len(BIG), {"n": 1}, "a/b")
        assert await read(store, "b") == BIG
        with pytest.raises(Conflict):
            await store.copy("a/é", "b")
        assert await open_parts(store) == []


async def test_a_read_over_a_line_that_breaks(
    seaweed: SeaweedProcess, store: S3Store, prefix: str
) -> None:
    await store.put("k", pieces(BIG))
    async with cutting(seaweed.endpoint, seed=1, most_bytes=4 << 20) as (url, cutter):
        bucket = Bucket(login_of(seaweed)._replace(endpoint=url))
        async with contextlib.aclosing(bucket):
            through = S3Store(bucket, prefix=prefix)
            assert await read(through, "k", ByteRange(5, len(BIG))) == BIG[5:]
            assert await read(through, "k") == BIG
        assert cutter.cuts > 1


async def test_a_read_that_cannot_go_on_ends(
    seaweed: SeaweedProcess, store: S3Store, prefix: str
) -> None:
    await store.put("k", pieces(BIG))
    async with cutting(seaweed.endpoint, seed=1, most_bytes=6 << 20) as (url, cutter):
        bucket = Bucket(login_of(seaweed)._replace(endpoint=url), tries=1)
        async with contextlib.aclosing(bucket):
            reader = await S3Store(bucket, prefix=prefix).get("k")
            chunks = aiter(reader)
            await anext(chunks)
            cutter._most_bytes = 1
            with pytest.raises(Unavailable):
                [chunk async for chunk in chunks]


# --- addresses for others


async def test_an_address_says_type_and_name(store: S3Store) -> None:
    await store.put("a b/ü%.png", pieces(b"0123456789"))
    name = "attachment; filename*=UTF-8''%C3%BC%20x.png"
    url = store.presign("a b/ü%.png", expires_s=60, content_type="image/png", disposition=name)
    assert url is not None

    def ask() -> tuple[int, str, str, bytes]:
        request = urllib.request.Request(url, headers={"Range": "bytes=2-4"})
        with urllib.request.urlopen(request) as answer:
            type_ = answer.headers["Content-Type"]
            return answer.status, type_, answer.headers["Content-Disposition"], answer.read()

    assert await asyncio.to_thread(ask) == (206, "image/png", name, b"234")


async def test_addresses_are_of_the_public_endpoint(seaweed: SeaweedProcess, prefix: str) -> None:
    login = login_of(seaweed)._replace(public_endpoint="https://media.example.org")
    bucket = await Bucket(login).open()
    async with contextlib.aclosing(bucket):
        store = S3Store(bucket, prefix=prefix)
        url = store.presign("k", expires_s=60) or ""
        assert url.startswith(f"https://media.example.org/{BUCKET}/{prefix}k?")
        upload = await store.open_upload("k", size=10)
        (part,) = await upload.sign_parts([1], expires_s=60)
        assert part.url.startswith(f"https://media.example.org/{BUCKET}/{prefix}k?")
        await upload.abort()


# --- opening


async def test_the_bucket_is_made(seaweed: SeaweedProcess) -> None:
    login = login_of(seaweed, f"made-{uuid.uuid4().hex}")
    store = await open_store(login, "home")
    async with contextlib.aclosing(store):
        await store.put("k", pieces(b"x"))
        assert store.bucket.minds_conditions
    async with contextlib.aclosing(await open_store(login, "home")) as store:
        assert await keys_of(store.list()) == ["k"]
        assert await keys_of(store.within(".segments/").list()) == []


async def test_a_bucket_has_one_home(seaweed: SeaweedProcess) -> None:
    login = login_of(seaweed, f"one-{uuid.uuid4().hex}")
    await (await open_store(login, "home")).aclose()
    with pytest.raises(Conflict) as error:
        await open_store(login, "another")
    assert error.value.code is Code.STORE_FOREIGN
    async with contextlib.aclosing(Bucket(login)) as bucket:
        await bucket.delete(s3_owner.NAME)  # the way to take it over
    await (await open_store(login, "another")).aclose()


async def test_a_bucket_of_others_is_left_alone(seaweed: SeaweedProcess) -> None:
    login = login_of(seaweed, f"theirs-{uuid.uuid4().hex}")
    bucket = await Bucket(login).open()
    async with contextlib.aclosing(bucket):
        await bucket.put("holiday.jpg", b"x", content_type="a/b", fields={}, only_new=True)
        with pytest.raises(Conflict) as error:
            await open_store(login, "home")
        assert "holiday.jpg" in error.value.message
        assert await bucket.read("holiday.jpg") == b"x"


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"access_key": "nobody"}, "S3_ACCESS_KEY"),
        ({"secret_key": "wrong"}, "S3_SECRET_KEY"),
        ({"bucket": "X"}, "S3_BUCKET"),
        ({"endpoint": "http://127.0.0.1:9"}, "S3_ENDPOINT"),
    ],
)
async def test_what_is_wrong_is_told(
    seaweed: SeaweedProcess, change: dict[str, str], hint: str
) -> None:
    login = login_of(seaweed)._replace(**change)
    assert login.secret_key not in repr(login)
    bucket = Bucket(login, tries=1)
    async with contextlib.aclosing(bucket):
        store = S3Store(bucket)
        for doing in (bucket.open(), store.check(), store.put("k", pieces(b"x")), store.get("k")):
            with pytest.raises(Unavailable) as error:
                await doing
            assert error.value.code is Code.STORE_UNAVAILABLE
            assert hint in error.value.hint


async def test_a_key_that_may_not_make_buckets_says_which_is_missing() -> None:
    missing = b"<Error><Code>NoSuchBucket</Code></Error>"
    denied = b"<Error><Code>AccessDenied</Code></Error>"
    async with scripted(Said(404, missing), Said(403, denied)) as server:
        bucket = Bucket(Login(server.url, "a", "b", "bucket", region="eu-west-1"))
        async with contextlib.aclosing(bucket):
            with pytest.raises(Unavailable) as error:
                await bucket.open()
    assert "NoSuchBucket" in error.value.message
    assert b"eu-west-1" in server.bodies[1]


@pytest.mark.parametrize("status", [200, 501])
async def test_a_server_is_asked_whether_it_minds_conditions(status: int) -> None:
    listing = b"<R><IsTruncated>false</IsTruncated></R>"
    puts = [Said(status)] * 3
    async with scripted(Said(200, listing), *puts, Said(200, listing)) as server:
        bucket = Bucket(Login(server.url, "a", "b", "bucket"), tries=1)
        async with contextlib.aclosing(bucket):
            await bucket.open()
            assert not bucket.minds_conditions
            assert bucket.lists_in_order


async def test_a_check_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        gone.set()

    gone = asyncio.Event()
    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    monkeypatch.setattr("mentatlab.storage.s3_bucket._CHECK_S", 0.05)
    url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    async with silent, contextlib.aclosing(Bucket(Login(url, "a", "b", "bucket"))) as bucket:
        with pytest.raises(Unavailable, match="no answer in time"):
            await bucket.check()
        await gone.wait()
