"""Every store against a model of what it keeps, whatever is done in whatever order, with processes
that die between any two steps."""

import asyncio
import functools
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.support.seaweed import SeaweedProcess

from mentatlab.protocol.errors import Code, Conflict, MentatError, NotFound, RangeUnsatisfiable
from mentatlab.storage.local import LocalStore
from mentatlab.storage.memory import MemoryStore
from mentatlab.storage.port import BlobStore, ByteRange, Upload
from mentatlab.storage.s3 import S3Store
from mentatlab.storage.s3_bucket import Bucket
from mentatlab.storage.s3_http import Login
from mentatlab.testing.blob_store_contract import pieces, read

T = TypeVar("T")
KEYS = st.runner().flatmap(lambda machine: st.sampled_from(machine.keys))
SIZES = st.sampled_from([0, 1, 1000, 70_000, 300_000, 5 << 20, 9 << 20])
SEEDS = st.integers(0, 255)


def block(seed: int, size: int) -> bytes:
    """No part of it looks like another (251 is prime)."""
    pattern = bytes((seed + n * n) % 251 for n in range(251))
    return (pattern * (size // 251 + 1))[:size]


@dataclass
class Known:
    """An upload as the model sees it: `at` bytes of `data` were taken, `durable` promised."""

    handle: Upload
    key: str
    size: int | None
    meta: dict[str, Any]
    data: bytearray = field(default_factory=bytearray)
    durable: int = 0
    state: str = "open"  # done, old, gone


class StoreMachine(RuleBasedStateMachine):
    """`FILES`: a key may not lead through another one, as on a disk."""

    FILES: ClassVar[bool] = False
    keys: ClassVar[list[str]] = ["a", "a/b", "a.b", "ws/_uploads/ü.png", "ws/x", "~"]

    async def opened(self) -> BlobStore:
        raise NotImplementedError

    async def another(self) -> BlobStore:
        """As the next process opens it, after this one was killed."""
        raise NotImplementedError

    async def closed(self) -> None:
        await self.store.aclose()

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.objects: dict[str, tuple[bytes, dict[str, Any]]] = {}
        self.uploads: list[Known] = []
        self.store = self.run(self.opened())

    def teardown(self) -> None:
        self.run(self.closed())
        self.runner.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def code_of(self, work: Coroutine[Any, Any, object]) -> Code | None:
        try:
            self.run(work)
        except MentatError as error:
            return error.code
        return None

    def is_taken(self, key: str) -> bool:
        """By an object, or on a disk by one that stands in the way."""
        ways = [k for k in self.objects if k.startswith(f"{key}/") or key.startswith(f"{k}/")]
        return key in self.objects or (self.FILES and bool(ways))

    # --- objects

    @rule(key=KEYS, seed=SEEDS, size=SIZES)
    def put(self, key: str, seed: int, size: int) -> None:
        data, meta = block(seed, size), {"seed": seed}
        code = self.code_of(self.store.put(key, pieces(data), meta=meta))
        assert code == (Code.KEY_EXISTS if self.is_taken(key) else None)
        if code is None:
            self.objects[key] = data, meta

    @rule(key=KEYS, seed=SEEDS, size=SIZES)
    def put_of_a_broken_source(self, key: str, seed: int, size: int) -> None:
        with pytest.raises(ConnectionResetError):
            self.run(self.store.put(key, broken(block(seed, size))))

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.run(self.store.delete(key))
        self.objects.pop(key, None)

    @rule(key=KEYS, to=KEYS)
    def copy(self, key: str, to: str) -> None:
        code = self.code_of(self.store.copy(key, to))
        if key not in self.objects:
            assert code is Code.REFERENCE_NOT_FOUND
        elif self.is_taken(to):
            assert code is Code.KEY_EXISTS
        else:
            assert code is None
            self.objects[to] = self.objects[key]

    @rule(key=KEYS, start=st.integers(0, 400_000), length=st.integers(0, 2 << 20))
    def read_a_range(self, key: str, start: int, length: int) -> None:
        range_ = ByteRange(start, start + length)
        if key not in self.objects:
            with pytest.raises(NotFound):
                self.run(read(self.store, key, range_))
        elif start > len(self.objects[key][0]):
            with pytest.raises(RangeUnsatisfiable):
                self.run(read(self.store, key, range_))
        else:
            found = self.run(read(self.store, key, range_))
            assert found == self.objects[key][0][start : start + length]

    # --- uploads

    @rule(key=KEYS, seed=SEEDS, size=st.none() | SIZES)
    def open(self, key: str, seed: int, size: int | None) -> None:
        meta = {"up": seed}
        try:
            handle = self.run(self.store.open_upload(key, meta=meta, size=size))
        except Conflict as error:
            refused = error.code
        else:
            self.uploads.append(Known(handle, key, size, meta))
            return
        assert refused is Code.KEY_EXISTS
        assert self.is_taken(key)

    @precondition(lambda self: self.open_ones())
    @rule(choice=st.data(), seed=SEEDS, size=SIZES, whole=st.booleans())
    def write(self, choice: st.DataObject, seed: int, size: int, whole: bool) -> None:
        upload = choice.draw(st.sampled_from(self.open_ones()))
        room = size if upload.size is None else max(0, upload.size - len(upload.data))
        data = block(seed, min(size, room))
        if whole:
            self.run(upload.handle.write(pieces(data)))
        else:
            with pytest.raises(ConnectionResetError):
                self.run(upload.handle.write(broken(data)))
        upload.data += data
        assert upload.handle.offset == len(upload.data)

    @precondition(lambda self: self.open_ones())
    @rule(choice=st.data())
    def checkpoint(self, choice: st.DataObject) -> None:
        upload = choice.draw(st.sampled_from(self.open_ones()))
        upload.durable = self.run(upload.handle.checkpoint())
        assert upload.durable == len(upload.data)

    @precondition(lambda self: self.open_ones())
    @rule(choice=st.data())
    def let_go_and_resume(self, choice: st.DataObject) -> None:
        upload = choice.draw(st.sampled_from(self.open_ones()))
        self.run(upload.handle.checkpoint())
        self.run(upload.handle.aclose())
        self.resume(upload)
        assert upload.handle.offset == len(upload.data)

    @precondition(lambda self: self.uploads)
    @rule(choice=st.data())
    def complete(self, choice: st.DataObject) -> None:
        upload = choice.draw(st.sampled_from(self.uploads))
        if upload.state == "open":
            self.end(upload)
        elif self.holds(upload):
            info = self.run(upload.handle.complete())
            assert info.size == len(upload.data)

    def holds(self, upload: Known) -> bool:
        """Whether what it has completed is there still, and no other's object in its place."""
        return upload.state == "done" and self.objects.get(upload.key, (b"", {}))[1] is upload.meta

    def end(self, upload: Known) -> None:
        allowed = set[Code]()
        if upload.size is not None and len(upload.data) != upload.size:
            allowed.add(Code.UPLOAD_INCOMPLETE)
        if self.is_taken(upload.key):
            allowed.add(Code.KEY_EXISTS)
        code = self.code_of(upload.handle.complete())
        assert (code in allowed) if allowed else (code is None)
        if code is None:
            upload.state = "done"
            self.objects[upload.key] = bytes(upload.data), upload.meta

    @precondition(lambda self: self.uploads)
    @rule(choice=st.data())
    def abort(self, choice: st.DataObject) -> None:
        upload = choice.draw(st.sampled_from(self.uploads))
        self.run(upload.handle.abort())
        if upload.state == "open":
            upload.state = "gone"

    # --- processes

    @rule()
    def die(self) -> None:
        self.store = self.run(self.another())
        for upload in self.open_ones():
            self.resume(upload)
            assert upload.durable <= upload.handle.offset <= len(upload.data)
            del upload.data[upload.handle.offset :]
        for upload in self.uploads:
            if upload.state == "gone":
                with pytest.raises(NotFound):
                    self.resume(upload)
            elif self.holds(upload):
                self.resume(upload)
                assert upload.handle.offset == len(upload.data)

    @rule()
    def tidy(self) -> None:
        """A store may forget then what has been complete for so long."""
        self.run(self.store.tidy(before=time.time() + 60))
        for upload in self.uploads:
            upload.state = "old" if upload.state == "done" else upload.state

    def resume(self, upload: Known) -> None:
        upload.handle = self.run(self.store.resume_upload(upload.handle.id))

    def open_ones(self) -> list[Known]:
        return [upload for upload in self.uploads if upload.state == "open"]

    # --- what is always so

    @invariant()
    def what_is_listed_is_what_there_is(self) -> None:
        infos = self.run(listed(self.store))
        assert [info[0] for info in infos] == sorted(self.objects)
        for key, size, hash_ in infos:
            data, _ = self.objects[key]
            assert size == len(data)
            assert hash_ in ("", digest(data))

    @invariant()
    def what_is_open_is_listed_as_stale_later(self) -> None:
        found = self.run(stale(self.store))
        assert found == {upload.handle.id for upload in self.open_ones()}

    @rule()
    def all_is_as_it_was_stored(self) -> None:
        for key, (data, meta) in self.objects.items():
            assert self.run(read(self.store, key)) == data
            assert self.run(self.store.head(key)).meta == meta


@functools.lru_cache(256)
def digest(data: bytes) -> str:
    return blake3(data).hexdigest()


async def broken(data: bytes) -> AsyncIterator[bytes]:
    async for piece in pieces(data):
        yield piece
    raise ConnectionResetError


async def listed(store: BlobStore) -> list[tuple[str, int, str]]:
    return [(info.key, info.size, info.blake3) async for info in store.list()]


async def stale(store: BlobStore) -> set[str]:
    return {s.upload_id async for s in store.list_stale_uploads(before=time.time() + 60)}


class MemoryMachine(StoreMachine):
    async def opened(self) -> BlobStore:
        return MemoryStore()

    async def another(self) -> BlobStore:
        return self.store  # its bytes die with the process


class LocalMachine(StoreMachine):
    FILES = True

    async def opened(self) -> BlobStore:
        self.folder = tempfile.TemporaryDirectory()
        self.dead: list[BlobStore] = []
        return LocalStore(Path(self.folder.name))

    async def another(self) -> BlobStore:
        self.dead.append(self.store)  # as it lies, nothing is closed
        return LocalStore(Path(self.folder.name))

    async def closed(self) -> None:
        for store in (*self.dead, self.store):
            await store.aclose()
        self.folder.cleanup()


class S3Machine(StoreMachine):
    """No key leads through another. S3 servers differ in whether they bear that; with this one an
    emptied folder stands in the way until it is swept, at some moment of its own."""

    keys = ["a", "b/c", "a.b", "ws/_uploads/ü.png", "ws/x", "~"]
    seaweed: ClassVar[SeaweedProcess]

    async def opened(self) -> BlobStore:
        there, prefix = self.seaweed, uuid.uuid4().hex
        login = Login(there.endpoint, there.access_key, there.secret_key, "machine")
        self.bucket = await Bucket(login).open()
        return S3Store(self.bucket, prefix=f"{prefix}/", part_size=5 << 20)

    async def another(self) -> BlobStore:
        assert isinstance(self.store, S3Store)
        return S3Store(self.bucket, prefix=self.store.prefix, part_size=5 << 20)

    async def closed(self) -> None:
        await self.bucket.aclose()


QUICK = settings(max_examples=30, stateful_step_count=30, deadline=None)
LONG = settings(max_examples=300, stateful_step_count=60, deadline=None)
REMOTE = settings(
    max_examples=5,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.generate],  # to shrink over a network takes too long
)


class TestMemory(MemoryMachine.TestCase):
    settings = QUICK


class TestLocal(LocalMachine.TestCase):
    settings = QUICK


@pytest.mark.slow
@pytest.mark.timeout(1200)
class TestLocalForLong(LocalMachine.TestCase):
    settings = LONG


@pytest.mark.timeout(300)
class TestS3(S3Machine.TestCase):
    settings = REMOTE

    @pytest.fixture(autouse=True)
    def _server(self, seaweed: SeaweedProcess) -> None:
        S3Machine.seaweed = seaweed
