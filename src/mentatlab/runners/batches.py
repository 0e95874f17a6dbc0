"""Invocations that one worker is given together: `execution.batch {max, delay_ms}`.

On the wire each is an `invoke` of its own, so every agent understands them; a field `batch` tells
the SDK how many of them came together.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from mentatlab.protocol.agent import Batch
from mentatlab.protocol.stdio import MAX_LINE_BYTES, BatchPlace, too_long


class Member(NamedTuple):
    """One invocation: whether it still wants to go, and its bytes."""

    wanted: Callable[[], bool]
    line: Callable[[BatchPlace], bytes]


def in_batch(line: bytes, place: BatchPlace | None) -> bytes:
    """An `invoke` line that also says where it belongs."""
    if place is None:
        return line
    marked = line[:-2] + b',"batch":' + msgspec.json.encode(place) + b"}\n"
    if len(marked) > MAX_LINE_BYTES:
        raise too_long()
    return marked


@dataclass(slots=True)
class _Group:
    most: int
    members: list[Member] = field(default_factory=list[Member])
    sent: asyncio.Event = field(default_factory=asyncio.Event)
    timer: asyncio.TimerHandle | None = None


class Batches:
    """Those of one worker. `send` waits while the agent does not read."""

    def __init__(self, batch: Batch, send: Callable[[bytes], Awaitable[None]]) -> None:
        self._batch = batch
        self._send = send
        self._open: _Group | None = None
        self._ids = itertools.count(1)
        self._sending: set[asyncio.Task[None]] = set()

    @property
    def gathering(self) -> bool:
        """Whether one more could join those that are about to go."""
        return self._open is not None

    async def join(self, member: Member, *, most: int = 0) -> None:
        """Returns when its group has been written; `most` (0 = the manifest's) are in one."""
        most = min(most or self._batch.max, self._batch.max)
        group = self._open
        if group is not None:
            group.members = [other for other in group.members if other.wanted()]
        if group is None or len(group.members) >= most:
            group = self._begin(most)
        group.members.append(member)
        group.most = min(group.most, most)
        if len(group.members) >= group.most:
            self._close(group)
        await group.sent.wait()

    def _begin(self, most: int) -> _Group:
        if self._open:
            self._close(self._open)
        self._open = group = _Group(most)
        loop = asyncio.get_running_loop()
        group.timer = loop.call_later(self._batch.delay_ms / 1000, self._close, group)
        return group

    def _close(self, group: _Group) -> None:
        if self._open is not group:
            return
        self._open = None
        if group.timer:
            group.timer.cancel()
        task = asyncio.create_task(self._write(group))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _write(self, group: _Group) -> None:
        await self._send(b"".join(self._lines(group)))
        group.sent.set()

    def _lines(self, group: _Group) -> list[bytes]:
        going = [member for member in group.members if member.wanted()]
        place = BatchPlace(id=f"b{next(self._ids)}", size=len(going), most=group.most)
        return [member.line(place) for member in going]
