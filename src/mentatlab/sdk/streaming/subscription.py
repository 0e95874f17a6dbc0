"""A subscription as the application has it: an async iterator."""

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple

from mentatlab.sdk.following import Element
from mentatlab.sdk.streaming.conversation import Conversation
from mentatlab.sdk.streaming.reading import Policy, Reading


class SubscriptionStatistics(NamedTuple):
    """Bytes that wait here for the application; the most that may."""

    held: int
    limit: int


class Subscription:
    """The records of a stream, over any number of reconnects, none lost, doubled or out of order.

    Gives `StreamChunk` (of a binary record a `MediaChunk`, with `payload["bytes"]`), `Reset(k)`
    (what was delivered after k is void) and `Gap`. Ends normally only after a complete end; else
    `TruncatedStream`, `StreamFailed`, or why the server refuses it. The next record is asked for
    when the one before has been dealt with: a slow application makes nothing pile up.

    `async with` waits until it stands (so that `latest` misses nothing from there on) and lets it
    go when the application leaves early.
    """

    def __init__(
        self,
        conversation: Conversation,
        speak: Callable[[], None],
        stream_id: str,
        *,
        from_: str | int,
        rate: float | None,
        filter_: Mapping[str, Any] | None,
        policy: Policy,
        window: int,
    ) -> None:
        self._conversation, self._speak = conversation, speak
        self._news = asyncio.Event()
        self._reading = Reading(
            stream_id, from_=from_, rate=rate, filter_=filter_, policy=policy, window=window
        )
        self._reading.wake = self._news.set
        self._window, self._closed = window, False
        conversation.add_reading(self._reading)
        speak()

    @property
    def cursor(self) -> str | None:
        """Behind the last element that was taken: a `from_` for another time. None: not begun."""
        return None if self._reading.reached is None else str(self._reading.reached)

    def statistics(self) -> SubscriptionStatistics:
        return SubscriptionStatistics(self._reading.held, self._window)

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> Element:
        try:
            while not self._closed:
                self._grant()
                if (element := self._reading.take()) is not None:
                    return element
                self._news.clear()
                await self._news.wait()
        except BaseException:
            self.close()
            raise
        raise StopAsyncIteration

    def _grant(self) -> None:
        if said := self._reading.consumed():
            for message in said:
                self._conversation.say(message)
            self._speak()

    async def __aenter__(self) -> "Subscription":
        while self._reading.active and not self._reading.live:
            self._news.clear()
            await self._news.wait()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more comes; idempotent."""
        self._closed = True
        self._conversation.remove_reading(self._reading)
        self._news.set()
        self._speak()
