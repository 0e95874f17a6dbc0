"""How far uploads have come, for those who follow them."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Literal, NamedTuple

from mentatlab.storage.upload_rows import UploadRow

_LOOK_AGAIN_S = 1.0
"""Another process may write, or may have died."""


class Growth(NamedTuple):
    """`offset`: bytes that the store has taken; behind a crash it may be less. `mime`: as sniffed,
    "" while the beginning is not there. `size` None = not known yet."""

    upload_id: str
    state: Literal["open", "done"]
    offset: int
    size: int | None
    mime: str
    filename: str
    store_id: str  # another one: the upload has begun again


class Growths:
    """Of the uploads that this process writes."""

    def __init__(self) -> None:
        self._offsets: dict[str, int] = {}
        self._watching: dict[str, set[asyncio.Event]] = {}

    def of(self, row: UploadRow) -> Growth:
        offset = max(row.offset, self._offsets.get(row.ref, 0))
        mime = row.claims.mime
        return Growth(row.id, row.state, offset, row.size, mime, row.filename, row.store_id)

    def visible(self, row: UploadRow, offset: int) -> None:
        """So many bytes have been taken."""
        self._offsets[row.ref] = offset
        self._wake(row.ref)

    def ended(self, row: UploadRow) -> None:
        """It is done, or gone."""
        self._offsets.pop(row.ref, None)
        self._wake(row.ref)

    @contextlib.asynccontextmanager
    async def watch(self, ref: str) -> AsyncGenerator[Callable[[], Awaitable[None]]]:
        """Gives a wait for the next change after entry; after a second it returns anyhow."""
        event = asyncio.Event()
        self._watching.setdefault(ref, set()).add(event)

        async def change() -> None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), _LOOK_AGAIN_S)

        try:
            yield change
        finally:
            self._watching[ref].discard(event)
            if not self._watching[ref]:
                del self._watching[ref]

    def _wake(self, ref: str) -> None:
        for event in self._watching.get(ref, ()):
            event.set()
