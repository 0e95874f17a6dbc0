"""What the transports of streams share."""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from typing import Concatenate, ParamSpec

from mentatlab.gateway.admission import Admission
from mentatlab.gateway.stream_connections import Connections
from mentatlab.streams.buffer import Item

P = ParamSpec("P")

WRITE_LIMIT = 64 * 1024
"""Bytes that wait for a client before it is sent no more: the rest stays in the log."""
CLOSE_S = 1.0
"""How long a client may take to take the end."""


class Shared:
    """What readers of the same records are sent, made once: the last of each kind is kept."""

    def __init__(self) -> None:
        self._last: dict[Hashable, tuple[Sequence[Item], bytes]] = {}

    def of(
        self,
        kind: Hashable,
        items: Sequence[Item],
        make: Callable[Concatenate[Sequence[Item], P], bytes],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> bytes:
        last, made = self._last.get(kind, ((), b""))
        if items != last:  # by identity
            made = make(items, *args, **kwargs)
            self._last[kind] = items, made
        return made


class Streams:
    """Of one server."""

    def __init__(self, admission: Admission, connections: Connections) -> None:
        self.admission, self.connections = admission, connections
        self.shared = Shared()


def peer_of(transport: asyncio.Transport) -> str:
    """The client's address."""
    name = transport.get_extra_info("peername")
    return name[0] if name else ""
