"""A bare socket as the other side: what loopback itself can carry. It serves one connection.

python -m benchmarks.storage_peers.loopback take | give FILE
"""

import os
import socket
import sys
from pathlib import Path


def main(way: str, *files: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
    with connection:
        if way == "take":
            _take(connection)
        else:
            _give(connection, Path(files[0]))


def _take(connection: socket.socket) -> None:
    buffer = bytearray(1 << 18)
    while connection.recv_into(buffer):
        pass
    connection.sendall(b"!")


def _give(connection: socket.socket, path: Path) -> None:
    with path.open("rb") as file:
        left, offset = path.stat().st_size, 0
        while left:
            sent = os.sendfile(connection.fileno(), file.fileno(), offset, left)
            left, offset = left - sent, offset + sent


if __name__ == "__main__":
    main(*sys.argv[1:])
