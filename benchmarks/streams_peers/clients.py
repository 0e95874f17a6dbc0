"""Many raw connections and one epoll: a load generator that costs far less than a server.

Nothing is parsed while it is measured: messages are bytes made beforehand, and what arrives is
counted by the mark in it.
"""

import os
import select
import socket
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from benchmarks.streams_peers.wire import MARK, Channel, Dialogue

READ_BYTES = 1 << 16
TOGETHER = 100  # connections opened at a time: within every server's backlog
PORTS = 5000  # connections of one source address, so that ports never run out
HEARD_S = 10.0
DEAF_BYTES = 4096
_BIND_ADDRESS_NO_PORT = 24  # the port is chosen by connect; `socket` names it from Python 3.12 on
_KEPT = len(MARK) - 1


class Group:
    """One publisher and its readers."""

    __slots__ = ("_late", "_message", "_socket", "delivered", "fd", "readers", "sent", "times")

    def __init__(self, publisher: socket.socket, message: bytes, readers: int) -> None:
        self._socket, self._message = publisher, message
        self.fd = publisher.fileno()
        self._late = memoryview(b"")
        self.readers = readers
        self.sent = 0
        self.delivered = 0  # to all readers together
        self.times: list[float] = []
        """When each message was sent, where that is asked for."""

    def send(self, count: int) -> bool:
        """False when the server does not take it all now: `flush` when it does."""
        self.sent += count
        return self._write(memoryview(bytes(self._late) + self._message * count))

    def flush(self) -> bool:
        return self._write(self._late)

    def _write(self, data: memoryview) -> bool:
        try:
            done = self._socket.send(data) if data else 0
        except BlockingIOError:
            done = 0
        self._late = data[done:]
        return not self._late


class Reader:
    """One subscriber."""

    __slots__ = ("group", "rest", "seen")

    def __init__(self, group: Group) -> None:
        self.group = group
        self.rest = b""
        self.seen = 0


class Clients:
    """Connected when made; a context manager. `deaf` subscribe too, but never take anything."""

    def __init__(
        self, port: int, channels: Sequence[Channel], deaf: Sequence[Dialogue] = ()
    ) -> None:
        self.epoll = select.epoll()
        self.groups: list[Group] = []
        self._readers: dict[int, Reader] = {}
        self._publishers: dict[int, Group] = {}
        subscribers = connect(port, [each for c in channels for each in c.subscribers])
        publishers = connect(port, [c.publisher for c in channels])
        self._sockets = [*subscribers, *publishers, *connect(port, deaf, buffer=DEAF_BYTES)]
        rest = iter(subscribers)
        for channel, publisher in zip(channels, publishers, strict=True):
            count = len(channel.subscribers)
            self._add(Group(publisher, channel.message, count), publisher, islice(rest, count))

    def _add(self, group: Group, publisher: socket.socket, mine: Iterable[socket.socket]) -> None:
        self.groups.append(group)
        self._publishers[publisher.fileno()] = group
        self._register(publisher)
        for subscriber in mine:
            self._readers[subscriber.fileno()] = Reader(group)
            self._register(subscriber)

    def _register(self, client: socket.socket) -> None:
        client.setblocking(False)
        self.epoll.register(client, select.EPOLLIN)

    def __enter__(self) -> "Clients":
        return self

    def __exit__(self, *_: object) -> None:
        self.epoll.close()
        for each in self._sockets:
            each.close()

    def send(self, group: Group, count: int) -> None:
        if not group.send(count):
            self.epoll.modify(group.fd, select.EPOLLIN | select.EPOLLOUT)

    def received(self, timeout: float) -> Iterator[tuple[Reader, int]]:
        """Who got how many messages. `timeout` in seconds."""
        for fd, events in self.epoll.poll(timeout, 512):
            if events & select.EPOLLOUT and self._publishers[fd].flush():
                self.epoll.modify(fd, select.EPOLLIN)
            if not events & ~select.EPOLLOUT:
                continue
            data = os.read(fd, READ_BYTES)
            if not data:
                raise ConnectionError("the server closed a connection")
            reader = self._readers.get(fd)
            if reader is None:
                continue  # a publisher's acknowledgements
            text = reader.rest + data
            reader.rest = text[-_KEPT:]
            if count := text.count(MARK):
                yield reader, count


def connect(
    port: int, dialogues: Sequence[Dialogue], *, buffer: int | None = None
) -> list[socket.socket]:
    """Each has said and heard its dialogue. `buffer`: bytes that the kernel may keep for it."""
    connected: list[socket.socket] = []
    for at in range(0, len(dialogues), TOGETHER):
        part = dialogues[at : at + TOGETHER]
        sockets = [_open(port, at + n, buffer) for n in range(len(part))]
        connected += sockets
        for step in range(max(map(len, part))):
            speaking = [(s, d[step]) for s, d in zip(sockets, part, strict=True) if step < len(d)]
            for each, (said, _) in speaking:
                each.sendall(said)
            for each, (_, heard) in speaking:
                listen(each, heard)
    return connected


def listen(client: socket.socket, until: bytes) -> bytes:
    """What it got, up to the read that brings `until`."""
    text = b""
    while until not in text:
        data = client.recv(READ_BYTES)
        if not data:
            raise ConnectionError(f"closed before {until!r}: {text[-500:]!r}")
        text += data
    return text


def _open(port: int, number: int, buffer: int | None) -> socket.socket:
    client = socket.socket()
    client.settimeout(HEARD_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
    client.bind((f"127.0.0.{1 + number // PORTS}", 0))
    client.connect(("127.0.0.1", port))
    return client
