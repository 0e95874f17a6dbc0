"""An upload's bytes on their way to the store: counted, looked at, and cut into slices."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from mentatlab.protocol.errors import Code, TooLarge
from mentatlab.storage.sources import too_large

SLICE = 64 << 20
SLICE_S = 1.0


class Arriving:
    """`source` from `offset` on; a piece that would go beyond `end` is refused and dropped.

    `before_piece(total)` is called for each piece, with the offset behind it, and may refuse it.
    `offset` moves with the pieces; `ended` when the source has said that it is whole.
    """

    def __init__(
        self,
        source: AsyncIterator[bytes],
        *,
        offset: int,
        end: int | None,
        limit: int | None,
        before_piece: Callable[[int], Awaitable[None] | None],
    ) -> None:
        self._source = aiter(source)
        self.offset, self._end, self._limit = offset, end, limit
        self._before_piece = before_piece
        self._kept: list[bytes] = []
        self._coming: asyncio.Task[bytes] | None = None
        self._error: BaseException | None = None
        self.ended = False

    async def peek(self, wanted: int) -> bytes:
        """The first `wanted` bytes, or all there are before the source's end or error, which is
        raised behind them."""
        size = 0
        try:
            while size < wanted:
                piece = await anext(self._source)
                self._kept.append(piece)
                size += len(piece)
        except StopAsyncIteration:
            pass  # it says so again behind them
        except Exception as error:  # noqa: BLE001 — whatever broke the line
            self._error = error
        return b"".join(self._kept)[:wanted]

    async def slice(self) -> AsyncIterator[bytes]:
        """About 64 MiB, or what comes in a second, which may be nothing; `ended` says whether it
        was the last one."""
        loop = asyncio.get_running_loop()
        taken, until = 0, loop.time() + SLICE_S
        while taken < SLICE and (taken == 0 or loop.time() < until):
            if not await self._comes(until - loop.time()):
                return
            piece = await self._next()
            if piece is None:
                return
            taken += len(piece)
            yield piece

    async def aclose(self) -> None:
        """Nothing more is taken from the source."""
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.wait([self._coming])

    async def _comes(self, timeout_s: float) -> bool:
        """Whether there is a piece, or the end, before the time is over."""
        if self._kept or self._error is not None:
            return True
        if self._coming is None:
            self._coming = asyncio.create_task(_first(self._source))
        done, _ = await asyncio.wait([self._coming], timeout=max(0.0, timeout_s))
        return bool(done)

    async def _next(self) -> bytes | None:
        try:
            piece = self._kept.pop(0) if self._kept else await self._fresh()
        except StopAsyncIteration:
            self.ended = True
            return None
        after = self.offset + len(piece)
        self._refuse_beyond(after)
        waiting = self._before_piece(after)
        if waiting is not None:
            await waiting
        self.offset = after
        return piece

    async def _fresh(self) -> bytes:
        if self._error is not None:
            raise self._error
        if self._coming is None:
            return await anext(self._source)
        coming, self._coming = self._coming, None
        return coming.result()

    def _refuse_beyond(self, after: int) -> None:
        if self._end is not None and after > self._end:
            raise beyond(self._end)
        if self._limit is not None and after > self._limit:
            raise too_large(self._limit)


async def _first(source: AsyncIterator[bytes]) -> bytes:
    return await anext(source)


def beyond(size: int) -> TooLarge:
    return TooLarge(
        Code.PAYLOAD_TOO_LARGE,
        f"more bytes come than the {size} that were announced",
        hint="announce the right size, or start a new upload",
    )
