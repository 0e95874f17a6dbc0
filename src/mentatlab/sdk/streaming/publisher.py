"""A publisher as the application has it."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any

from mentatlab.protocol.errors import Code, TooLarge
from mentatlab.protocol.frames import DISCARDABLE, END_OF_ITEM, KEY, Extension, Frame
from mentatlab.protocol.records import MAX_RECORD_BYTES, RecordType
from mentatlab.sdk.streaming.conversation import Conversation
from mentatlab.sdk.streaming.publication import Publication, PublisherStatistics, payload_of


class Publisher:
    """Appends records to a stream, each once, in order, over any number of reconnects.

    Use as a context manager: leaving it ends the stream as complete (`end=False`: leaves it open)
    and waits until the log has everything. An exception inside leaves the stream open in any case:
    a publisher of the same `id` can go on.
    `send…` wait while 1 MiB or 256 records are not acknowledged. Every method raises what stops
    the publisher: `Fenced` (a higher epoch has taken over), `Conflict` (the stream has ended, …),
    `Forbidden`, `NotFound`, `Unavailable`.
    """

    def __init__(
        self,
        conversation: Conversation,
        speak: Callable[[], None],
        publication: Publication,
        *,
        end: bool,
    ) -> None:
        self._conversation, self._speak, self._publication = conversation, speak, publication
        self._ends, self._closed = end, False
        self._news = asyncio.Event()
        publication.wake = self._news.set

    @property
    def already(self) -> int:
        """How many records the log had of this producer when it began: what to skip."""
        return self._publication.already or 0

    @property
    def acknowledged(self) -> int:
        """How many of this producer's records the log has, `already` included."""
        return self._publication.acknowledged

    def statistics(self) -> PublisherStatistics:
        return self._publication.statistics()

    async def __aenter__(self) -> "Publisher":
        self._conversation.add_publication(self._publication)
        self._speak()
        try:
            await self._until(lambda: self._publication.already is not None)
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and not self._closed:
                await (self.end() if self._ends and not self._publication.ended else self.flush())
        finally:
            self.close()

    def close(self) -> None:
        """Leaves the stream as it is, and what is not acknowledged unsent; idempotent."""
        self._closed = True
        self._conversation.remove_publication(self._publication)

    async def send(
        self,
        value: Any,
        *,
        pts_us: int | None = None,
        dur_us: int | None = None,
        item: int | None = None,
    ) -> None:
        """One JSON value. `pts_us`, `dur_us`: media time in µs; `item`: the number of the input
        element that it belongs to.

        `Invalid` when it is not JSON, `TooLarge` over 1 MiB; nothing is sent then.
        """
        await self._record({"data": value}, pts_us=pts_us, dur_us=dur_us, item=item)

    async def send_reference(
        self, reference: dict[str, Any], *, pts_us: int | None = None, item: int | None = None
    ) -> None:
        """One stored medium: the `reference` that `AsyncClient.upload` answered."""
        await self._record({"ref": reference.get("ref", reference)}, pts_us=pts_us, item=item)

    async def _record(self, payload: dict[str, Any], **more: int | None) -> None:
        encoded = payload_of(payload)
        await self._until(lambda: self._publication.has_room(len(encoded)))
        self._publication.add(RecordType.DATA, encoded, **more)
        self._speak()

    async def send_bytes(
        self,
        data: bytes | bytearray | memoryview,
        *,
        pts_us: int | None = None,
        dur_us: int = 0,
        key: bool = False,
        end_of_item: bool = False,
        discardable: bool = False,
        index: int = 0,
        item: int | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """One binary record of at most 1 MiB (`TooLarge`; 64 to 256 KiB is a good size).

        `key`: it can be decoded without those before it; `index` and `end_of_item` are for items of
        several chunks; `discardable`: nothing needs it. `metadata` has at most 4 KiB of JSON.
        """
        if len(data) > MAX_RECORD_BYTES:
            raise TooLarge(
                Code.STREAM_RECORD_TOO_LARGE,
                f"the record has {len(data)} bytes, the limit is {MAX_RECORD_BYTES}",
                hint="send it in chunks, or upload it and send the reference",
            )
        frame = Frame(
            lane=0,
            sequence=0,
            body=bytes(data),
            flags=key * KEY | end_of_item * END_OF_ITEM | discardable * DISCARDABLE,
            pts_us=pts_us,
            dur_us=dur_us,
            index=index,
            extension=Extension(item=item, metadata=metadata or {}),
        )
        await self._until(lambda: self._publication.has_room(len(data)))
        self._publication.add_frame(frame)
        self._speak()

    async def flush(self) -> None:
        """Waits until the log has everything that was sent."""
        await self._until(lambda: self._publication.complete)

    async def end(self) -> None:
        """The stream is complete; waits until the log has all of it."""
        await self._finish(RecordType.END, {"reason": "complete"})

    async def fail(self, message: str, *, code: str = "agent_error") -> None:
        """The stream ends with an error, which its readers raise as `StreamFailed`."""
        error = {"code": code, "message": message, "retryable": False, "partial": True}
        await self._finish(RecordType.ERROR, {"error": error})

    async def _finish(self, type_: RecordType, payload: dict[str, Any]) -> None:
        encoded = payload_of(payload)
        await self._until(lambda: self._publication.has_room(len(encoded)))
        self._publication.add(type_, encoded)
        self._speak()
        await self.flush()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while True:
            if self._publication.error is not None:
                raise self._publication.error
            if condition():
                return
            self._news.clear()
            await self._news.wait()
