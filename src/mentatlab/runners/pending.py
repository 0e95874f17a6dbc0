"""An attempt that waits: for room, or for its worker to be ready. Then it is what it became."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import msgspec

from mentatlab.protocol.errors import Code
from mentatlab.protocol.events import AgentEvent
from mentatlab.runners.port import Outcome
from mentatlab.runners.process import OneShotAttempt
from mentatlab.runners.result import Cause
from mentatlab.runners.warm import WarmAttempt

Begun = OneShotAttempt | WarmAttempt
_CANCELLED = Outcome(
    status="cancelled",
    code=Code.AGENT_CANCELLED,
    message="the attempt was cancelled before it began",
)


class PendingAttempt:
    """`become` is called once, with the attempt or with how it ended before it began."""

    def __init__(self) -> None:
        self._became: asyncio.Future[Begun | Outcome] = asyncio.get_running_loop().create_future()
        self._asked_at = time.monotonic()
        self._granted_at: float | None = None
        self._began_at: float | None = None
        self._on_cancel: Callable[[], object] = lambda: None

    def on_cancel(self, call: Callable[[], object]) -> None:
        """What else is to be done when it is stopped before it begins."""
        self._on_cancel = call

    def granted(self) -> None:
        """There is room; what follows is the start."""
        self._granted_at = self._granted_at or time.monotonic()

    def become(self, what: Begun | Outcome) -> None:
        if not self._became.done():
            self._began_at = time.monotonic()
            self._became.set_result(what)

    def fail(self, error: BaseException) -> None:
        """A bug here: whoever waits for the outcome gets it."""
        if not self._became.done():
            self._became.set_exception(error)

    async def events(self) -> AsyncIterator[AgentEvent]:
        if (attempt := await self._attempt()) is not None:
            async for event in attempt.events():
                yield event

    async def send_chunk(
        self,
        pin: str,
        seq: int,
        *,
        data: Any = msgspec.UNSET,
        ref: Any = msgspec.UNSET,
        pts: float | None = None,
        item: int | None = None,
    ) -> None:
        if attempt := await self._attempt():
            await attempt.send_chunk(pin, seq, data=data, ref=ref, pts=pts, item=item)

    async def end_input(
        self, pin: str, status: Literal["complete", "cancelled", "error"] = "complete"
    ) -> None:
        if attempt := await self._attempt():
            await attempt.end_input(pin, status)

    async def cancel(self, reason: str) -> None:
        self.stop("cancelled", reason)
        await self.outcome()

    def stop(self, cause: Cause, reason: str = "") -> None:
        if not self._became.done():
            self.become(_CANCELLED)
            self._on_cancel()
        became = self._became.result()
        if not isinstance(became, Outcome):
            became.stop(cause, reason)

    async def outcome(self) -> Outcome:
        became = await asyncio.shield(self._became)
        outcome = became if isinstance(became, Outcome) else await became.outcome()
        granted = self._granted_at or self._began_at or self._asked_at
        began = self._began_at or granted
        return msgspec.structs.replace(
            outcome, queued_s=granted - self._asked_at, start_s=began - granted
        )

    async def _attempt(self) -> Begun | None:
        became = await asyncio.shield(self._became)
        return None if isinstance(became, Outcome) else became


def refused(outcome: Outcome) -> PendingAttempt:
    """One that may not begin."""
    attempt = PendingAttempt()
    attempt.become(outcome)
    return attempt
