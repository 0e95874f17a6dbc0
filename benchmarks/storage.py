"""Upload and download through the real server, beside what the disk itself does.

    python -m benchmarks storage

The server runs in its own process, as it would; the client is a bare socket, so that it costs
little. Nothing is asserted: the numbers depend on the machine and on what else it does.
"""

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from benchmarks.table import Row

T = TypeVar("T")
SIZE = 512 << 20  # bytes of one transfer
ROUNDS = 3
_GB = SIZE / 1e9
_PIECE = os.urandom(1 << 20)
_SERVER = """
import asyncio, socket, sys
from pathlib import Path
from fastapi import FastAPI
from mentatlab.gateway.server import serving
from mentatlab.gateway.storage_routes import storage_router
from mentatlab.storage import open_local

async def main(folder):
    async def drain(): pass
    async with open_local(folder / "blobs", folder / "catalog.db") as storage:
        app = FastAPI()
        app.include_router(storage_router(storage, lambda _: "bench"))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with serving(app, listener, drain=drain):
                print(listener.getsockname()[1], flush=True)
                await asyncio.Event().wait()

import uvloop
uvloop.run(main(Path(sys.argv[1])))
"""


async def run(folder: Path | None = None) -> list[Row]:
    """`folder` is on the disk to measure; else the system's temporary one."""
    return await asyncio.to_thread(_measure, folder)


def _measure(folder: Path | None) -> list[Row]:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        rows = [Row("disk: dd, fdatasync at the end", _dd(Path(place)), "MB/s")]
        with _server(Path(place)) as server:
            idle = server.memory_mib("VmRSS")
            uploads = [_timed(lambda: _upload(server.port)) for _ in range(ROUNDS)]
            ref = uploads[-1][1]
            rows.append(Row("upload, durable", _median(uploads), "MB/s"))
            rows.append(Row("its cost to the server", server.cpu_s() / ROUNDS / _GB, "CPU s/GB"))
            downloads = [_timed(lambda: _download(server.port, ref, "")) for _ in range(ROUNDS)]
            rows.append(Row("download", _median(downloads), "MB/s"))
            rows.append(Row("64 KiB range", _range_ms(server.port, ref), "ms p50"))
            rows.append(Row("server memory, most growth", server.memory_mib("VmHWM") - idle, "MiB"))
        return rows


def _dd(folder: Path) -> float:
    """MB/s of the same bytes written plainly; the best of the rounds."""
    source, target = folder / "source", folder / "target"
    source.write_bytes(_PIECE * (SIZE >> 20))
    command = ["dd", f"if={source}", f"of={target}", "bs=4M", "conv=fdatasync", "status=none"]
    speeds: list[float] = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        subprocess.run(command, check=True)
        speeds.append(SIZE / 1e6 / (time.perf_counter() - begun))
        target.unlink()
    source.unlink()
    return max(speeds)


class _Server(NamedTuple):
    pid: int
    port: int

    def memory_mib(self, field: str) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split(f"{field}:")[1].split()[0]) / 1024

    def cpu_s(self) -> float:
        """User and system time of all its threads so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _server(folder: Path) -> Generator[_Server]:
    command = [sys.executable, "-c", _SERVER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield _Server(process.pid, int(process.stdout.readline()))
        finally:
            process.kill()


def _upload(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = f"POST /api/v1/storage/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {SIZE}"
        connection.sendall(head.encode() + b"\r\nConnection: close\r\n\r\n")
        for _ in range(SIZE >> 20):
            connection.sendall(_PIECE)
        with connection.makefile() as file:
            answer = file.read()
    assert " 201 " in answer, answer
    return answer.split('"ref":"')[1].split('"')[0]


def _download(port: int, ref: str, headers: str) -> int:
    buffer = bytearray(1 << 20)
    received = 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        request = f"GET /api/v1/storage/{ref} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}"
        connection.sendall(request.encode() + b"Connection: close\r\n\r\n")
        while got := connection.recv_into(buffer):
            received += got
    return received


def _range_ms(port: int, ref: str) -> float:
    """Median of 200 requests, each on a connection of its own, at offsets all over the object."""
    times: list[float] = []
    for n in range(200):
        start = n * (SIZE // 200)
        begun = time.perf_counter()
        _download(port, ref, f"Range: bytes={start}-{start + 65535}\r\n")
        times.append((time.perf_counter() - begun) * 1000)
    return statistics.median(times)


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    begun = time.perf_counter()
    result = work()
    return SIZE / 1e6 / (time.perf_counter() - begun), result


def _median(rounds: list[tuple[float, str]] | list[tuple[float, int]]) -> float:
    return statistics.median(speed for speed, _ in rounds)
