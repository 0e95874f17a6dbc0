"""Bytes on their way into an object that may need parts: cut, hashed, sent, some at a time."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable

from mentatlab.protocol.errors import Code, TooLarge
from mentatlab.storage.hashing import ContentHash
from mentatlab.storage.s3_bucket import Bucket, Part

MOST_PARTS = 10_000  # that S3 allows
_IN_FLIGHT = 4
_BLOCK = 256 << 10  # bytes: what grows piece by piece must stay small, as growing copies
_HASHES = 1024  # 2 KB each

Start = Callable[[Coroutine[None, None, None]], Awaitable[None]]
Blocks = list[bytearray]


class PartWriter:
    """The bytes of one object from `offset` on. A part that has not arrived stays in memory.

    `begin` opens the multipart upload and gives its id, as soon as a first part is full; with
    `upload_id` there is one. `hash_` is that of the bytes before `offset`, None when they went
    unseen; it is brought forward with each full part.
    """

    def __init__(
        self,
        bucket: Bucket,
        name: str,
        begin: Callable[[], Awaitable[str]],
        hash_: ContentHash | None,
        *,
        part_size: int,
        upload_id: str = "",
        offset: int = 0,
    ) -> None:
        self._bucket, self._name, self._begin = bucket, name, begin
        self._part_size = part_size
        self.hash, self.hashed = hash_, offset
        self._waiting: dict[int, Blocks] = {}  # full parts by number
        self.upload_id = upload_id
        self.offset = offset
        self._blocks: Blocks = []  # of the part that is not full
        self.rest_size = 0  # bytes in them

    async def write(self, source: AsyncIterator[bytes]) -> None:
        """All of it is taken; the parts that it fills have arrived. What came before an error of
        the source is taken too."""
        failure: Exception | None = None
        async with _several(_IN_FLIGHT) as start:
            await self._send_waiting(start)
            try:
                async for piece in source:
                    await self._take(piece, start)
            except Exception as error:  # noqa: BLE001 — raised below, when the parts are sent
                failure = error
        if failure is not None:
            raise failure

    def restore(self, piece: bytes) -> None:
        """Bytes that `rest` had before, and that do not fill it."""
        self._add(memoryview(piece))

    @property
    def rest(self) -> bytes:
        """Of the part that is not full."""
        return b"".join(self._blocks)

    async def flush(self) -> None:
        """All full parts have arrived."""
        async with _several(_IN_FLIGHT) as start:
            await self._send_waiting(start)

    async def finish(self) -> None:
        """All bytes have arrived, in a last and shorter part too; more may follow all the same."""
        if self._blocks:
            self._waiting[self._number()] = self._blocks
        await self.flush()

    async def digest(self) -> tuple[str, str] | None:
        """(blake3, sha256 or "") of all bytes, None when some went unseen; before `finish`.

        `Invalid(DIGEST_MISMATCH)`.
        """
        if self.hash is not None and self.hashed < self.offset:
            await self._update(self._blocks)
        return None if self.hash is None else self.hash.finish()

    async def _take(self, piece: bytes, start: Start) -> None:
        view = memoryview(piece)
        while view:
            room = self._part_size - self.rest_size
            self._add(view[:room])
            view = view[room:]
            if self.rest_size == self._part_size:
                number = self._number()
                self._waiting[number], self._blocks, self.rest_size = self._blocks, [], 0
                await self._update(self._waiting[number])
                await self._send_waiting(start, number)

    def _add(self, view: memoryview) -> None:
        """No more than fits into the part."""
        self.offset += len(view)
        self.rest_size += len(view)
        while view:
            if not self._blocks or len(self._blocks[-1]) == _BLOCK:
                self._blocks.append(bytearray())
            room = _BLOCK - len(self._blocks[-1])
            self._blocks[-1] += view[:room]
            view = view[room:]

    async def _send_waiting(self, start: Start, *numbers: int) -> None:
        if not self._waiting:
            return
        self.upload_id = self.upload_id or await self._begin()
        for number in numbers or list(self._waiting):
            await start(self._send(number))

    async def _send(self, number: int) -> None:
        await self._bucket.put_part(self._name, self.upload_id, number, self._waiting[number])
        del self._waiting[number]

    async def _update(self, part: Blocks) -> None:
        """By the bytes before `offset`. Cancelled in the middle, the hash is lost, and with it the
        claim to have seen all; so it is when more comes behind what was the end once."""
        hash_, self.hash = self.hash, None
        size = sum(map(len, part))
        if hash_ is not None and self.hashed == self.offset - size:
            await asyncio.to_thread(lambda: [hash_.update(block) for block in part])
            self.hash, self.hashed = hash_, self.hashed + size

    def _number(self) -> int:
        """Of the part that `rest` is."""
        refuse_too_many(self.offset, self._part_size)
        return (self.offset - 1) // self._part_size + 1


class Hashes:
    """Of the last uploads that were let go, in memory: the state of a hash cannot be stored."""

    def __init__(self) -> None:
        self._states: OrderedDict[str, tuple[int, ContentHash]] = OrderedDict()

    def keep(self, id_: str, writer: PartWriter) -> None:
        if writer.hash is not None:
            self._states[id_] = writer.hashed, writer.hash
        while len(self._states) > _HASHES:
            self._states.popitem(last=False)

    def take(self, id_: str, offset: int) -> ContentHash | None:
        """Of the bytes before `offset`; None when they went unseen."""
        hashed, hash_ = self._states.pop(id_, (0, None))
        if offset == 0:
            return empty_hash()
        return hash_ if hashed == offset else None


def empty_hash() -> ContentHash:
    return ContentHash(sha256=False, expected_sha256=None)


def chosen(parts: Iterable[Part], wanted: Callable[[int], int]) -> list[Part]:
    """One of each number, by number. SeaweedFS lists all that were sent; the one of the `wanted`
    size counts, of these the last one."""
    by_number: dict[int, Part] = {}
    for part in sorted(parts, key=lambda p: (p.size == wanted(p.number), p.modified_at, p.size)):
        by_number[part.number] = part
    return [by_number[number] for number in sorted(by_number)]


def refuse_too_many(size: int, part_size: int) -> None:
    """`TooLarge(PAYLOAD_TOO_LARGE)`"""
    if size > (most := MOST_PARTS * part_size):
        raise TooLarge(Code.PAYLOAD_TOO_LARGE, f"an object in S3 has at most {most} bytes here")


@contextlib.asynccontextmanager
async def _several(limit: int) -> AsyncGenerator[Start]:
    """Starts tasks, which end before it is left; `start` returns when fewer than `limit` are under
    way, so that what the next one needs is not in memory before. Errors stay as they are."""
    places = asyncio.Semaphore(limit - 1)

    async def start(work: Coroutine[None, None, None]) -> None:
        group.create_task(work).add_done_callback(lambda _: places.release())
        await places.acquire()

    try:
        async with asyncio.TaskGroup() as group:
            yield start
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
