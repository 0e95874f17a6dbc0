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
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.support.server import up

from benchmarks.table import Row

T = TypeVar("T")
SIZE = 512 << 20  # bytes of one transfer
ROUNDS = 3
_GB = SIZE / 1e9
_PIECE = os.urandom(1 << 20)


async def run(folder: Path | None = None) -> list[Row]:
    """`folder` is on the disk to measure; else the system's temporary one."""
    return await asyncio.to_thread(_measure, folder)


def _measure(folder: Path | None) -> list[Row]:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        rows = [Row("disk: dd, fdatasync at the end", _dd(Path(place)), "MB/s")]
        with up(Path(place)) as server:
            pid, port = server.process.pid, int(server.url.rpartition(":")[2])
            idle, busy = _memory_mib(pid, "VmRSS"), _cpu_s(pid)
            uploads = [_timed(lambda: _upload(port)) for _ in range(ROUNDS)]
            ref = uploads[-1][1]
            rows.append(Row("upload, durable", _median(uploads), "MB/s"))
            rows.append(
                Row("its cost to the server", (_cpu_s(pid) - busy) / ROUNDS / _GB, "CPU s/GB")
            )
            downloads = [_timed(lambda: _download(port, ref, "")) for _ in range(ROUNDS)]
            rows.append(Row("download", _median(downloads), "MB/s"))
            rows.append(Row("64 KiB range", _range_ms(port, ref), "ms p50"))
            growth = _memory_mib(pid, "VmHWM") - idle
            rows.append(Row("server memory, most growth", growth, "MiB"))
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


def _memory_mib(pid: int, field: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def _cpu_s(pid: int) -> float:
    """User and system time of all its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
