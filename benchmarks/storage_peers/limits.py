"""What the disk and loopback do by themselves: MB a second."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

from benchmarks.cores import SERVER
from benchmarks.storage_peers.wire import PIECE, content


def source_file(folder: Path, size: int) -> Path:
    """In the page cache."""
    path = folder / "source"
    with path.open("wb") as file:
        for piece in content(size):
            file.write(piece)
    return path


def disk(source: Path, *flags: str) -> float:
    """`dd` on the server's core."""
    target = source.with_name("target")
    command = [*SERVER, "dd", f"if={source}", f"of={target}", "bs=4M", "status=none", *flags]
    size = source.stat().st_size
    try:
        return _rate(size, lambda: subprocess.run(command, check=True))
    finally:
        target.unlink(missing_ok=True)


def loopback_in(size: int) -> float:
    """This process sends, a bare socket on the server's core takes."""
    with _other_side("take") as connection:

        def send() -> None:
            for _ in range(size // len(PIECE)):
                connection.sendall(PIECE)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)

        return _rate(size, send)


def loopback_out(source: Path) -> float:
    """`sendfile` on the server's core, taken here."""
    buffer = bytearray(1 << 18)
    with _other_side("give", str(source)) as connection:

        def take() -> None:
            while connection.recv_into(buffer):
                pass

        return _rate(source.stat().st_size, take)


@contextlib.contextmanager
def _other_side(*arguments: str) -> Generator[socket.socket]:
    module = [sys.executable, "-m", "benchmarks.storage_peers.loopback"]
    with subprocess.Popen([*SERVER, *module, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port)) as connection:
            yield connection


def _rate(size: int, work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return size / 1e6 / (time.perf_counter() - begun)
