"""The border between what is said on a WebSocket and what carries it. Nothing here waits.

A transport (`stream_picows`, `stream_portable`) has a `Link` and calls the `Conversation`; the
conversation calls the link back. `stream_connections.Connections.converse` makes conversations. In
order:

    transport                                   conversation
    (admission: the upgrade is fine)
    converse(id, query, subprotocols, authority) → Conversation, chosen subprotocol
    opened(link)                                → send_…
    each read: heard(); text() / binary() per whole message; then read_done() once
    pongs and pings: heard()
    low-water after a full buffer: writable()   → send_…
    lost(), once, whatever ended it (also after its own `close`)

The transport joins fragments and answers faults of WebSocket itself (1002, 1007, 1009); everything
above is the conversation's. After `close` the transport gives it nothing but `lost()`.
"""

from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple, Protocol

from mentatlab.streams.buffer import Item


class Link(Protocol):
    """A WebSocket as a conversation sees it. After `close` or `lost` its methods do nothing."""

    @property
    def writable(self) -> bool:
        """False above the high-water mark (64 KiB); then `Conversation.writable` is called."""
        ...

    @property
    def held(self) -> int:
        """Bytes that wait for the peer to take them, and of a message that is not whole yet."""
        ...

    def send_text(self, text: bytes) -> None:
        """One text frame."""
        ...

    def send_items(self, items: Sequence[Item], *, joined: bool) -> None:
        """Records as text frames, their JSON; `joined`: by newlines, up to 64 KiB a frame."""
        ...

    def send_binary(self, parts: Sequence[bytes | memoryview]) -> None:
        """One binary frame made of the parts."""
        ...

    def pause_reading(self) -> None:
        """No more than what was read already is given to the conversation; idempotent."""
        ...

    def resume_reading(self) -> None:
        """Idempotent."""
        ...

    def ping(self) -> None:
        """Any answer is told by `heard`."""
        ...

    def close(self, code: int, reason: str = "") -> None:
        """A CLOSE frame behind what was sent; `reason` has at most 123 bytes of UTF-8."""
        ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """A task that is cancelled when the link is lost."""
        ...


class Conversation(Protocol):
    """One connection, from `opened` to `lost`. No method raises."""

    def opened(self, link: Link) -> None: ...

    def text(self, data: bytes) -> None:
        """One whole message; its UTF-8 was checked."""
        ...

    def binary(self, data: bytes) -> None:
        """One whole message."""
        ...

    def read_done(self) -> None:
        """After the messages of each read: what they publish and their answers are joined."""
        ...

    def heard(self) -> None:
        """Anything arrived."""
        ...

    def writable(self) -> None:
        """The link can take more again."""
        ...

    def lost(self) -> None:
        """The connection is gone. What was received whole is still published."""
        ...


class Accepted(NamedTuple):
    """`subprotocol` is the one that the handshake answers."""

    conversation: Conversation
    subprotocol: str | None
