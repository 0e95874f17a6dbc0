"""The pool of limited processes: reuse, recycling, limits, and what a bad medium does to it."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image

from mentatlab.protocol.errors import Code, Unavailable
from mentatlab.storage import mediaworker, workers
from mentatlab.storage.workers import Limits, Media, MediaFailed, MediaWorkers

LIMITS = Limits()
PROBE = {"probe": "image"}


def local(path: Path) -> Media:
    async def read(offset: int, length: int) -> bytes:
        raise AssertionError("the worker opens the file itself")

    return Media(path.stat().st_size, path, read)


class Remote:
    """Bytes without a path; notes what is read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads: list[tuple[int, int]] = []

    @property
    def media(self) -> Media:
        return Media(len(self.data), None, self.read)

    async def read(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        return self.data[offset : offset + length]


def jpeg(path: Path, size: tuple[int, int] = (48, 32)) -> Path:
    Image.new("RGB", size, "blue").save(path, "JPEG")
    return path


@pytest.fixture
async def pool() -> AsyncIterator[MediaWorkers]:
    pool = MediaWorkers()
    yield pool
    await pool.aclose()


async def width(pool: MediaWorkers, media: Media) -> int:
    found, _ = await pool.run(PROBE, media, LIMITS)
    return found["width"]


async def why(pool: MediaWorkers, media: Media, limits: Limits = LIMITS) -> str:
    with pytest.raises(MediaFailed) as caught:
        await pool.run(PROBE, media, limits)
    return str(caught.value)


async def test_processes_start_when_needed_and_go_with_the_pool(tmp_path: Path) -> None:
    pool = MediaWorkers(size=2)
    assert pool.pids == []
    media = local(jpeg(tmp_path / "x"))
    assert await width(pool, media) == 48
    first = pool.pids
    assert await width(pool, media) == 48
    assert pool.pids == first  # reused
    await asyncio.gather(*(width(pool, media) for _ in range(20)))
    pids = pool.pids
    assert len(pids) == 2
    await pool.aclose()
    assert pool.pids == []
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    await pool.aclose()


async def test_they_are_recycled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_RECYCLE", 2)
    pool, media = MediaWorkers(size=1), local(jpeg(tmp_path / "x"))
    pids: set[int] = set()
    for _ in range(5):
        await width(pool, media)
        pids |= set(pool.pids)
    assert len(pids) == 3
    await pool.aclose()


async def test_an_idle_process_goes_and_the_next_order_starts_another(
    pool: MediaWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_IDLE_S", 0.01)
    media = local(jpeg(tmp_path / "x"))
    await width(pool, media)
    (first,) = pool.pids
    await ended(first)
    monkeypatch.setattr(workers, "_IDLE_S", 60)
    assert await width(pool, media) == 48
    assert pool.pids != [first]


async def test_a_process_killed_while_idle_is_replaced_without_a_trace(
    pool: MediaWorkers, tmp_path: Path
) -> None:
    media = local(jpeg(tmp_path / "x"))
    await width(pool, media)
    (first,) = pool.pids
    os.kill(first, signal.SIGKILL)
    await ended(first)
    assert await width(pool, media) == 48


async def ended(pid: int) -> None:
    """Until the process has ended and was waited for."""
    async with asyncio.timeout(20):
        while is_alive(pid):
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_process_killed_at_work_is_told_and_replaced(
    pool: MediaWorkers, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    hanging = asyncio.ensure_future(why(pool, local(fifo)))  # opening it never returns
    async with asyncio.timeout(20):
        while not pool.pids:
            await asyncio.sleep(0.01)
    os.kill(pool.pids[0], signal.SIGSEGV)
    assert await hanging == "the process was killed (SIGSEGV)"
    assert await width(pool, local(jpeg(tmp_path / "x"))) == 48


async def test_one_that_hangs_is_replaced(pool: MediaWorkers, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert await why(pool, local(fifo), Limits(wall_s=0.2)) == "it took over 0.2 s"
    assert pool.pids == []


async def test_a_cancelled_order_does_not_answer_the_next(tmp_path: Path) -> None:
    pool, fifo = MediaWorkers(size=1), tmp_path / "fifo"
    os.mkfifo(fifo)
    media = local(jpeg(tmp_path / "x"))
    await width(pool, media)
    hanging = asyncio.ensure_future(width(pool, local(fifo)))
    await asyncio.sleep(0)
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    assert await width(pool, media) == 48
    await pool.aclose()


async def test_without_a_process_it_says_so(
    pool: MediaWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    assert "no process can be started" in await why(pool, local(jpeg(tmp_path / "x")))


# --- bytes by range


async def test_bytes_come_by_range(pool: MediaWorkers, tmp_path: Path) -> None:
    remote = Remote(jpeg(tmp_path / "x").read_bytes() + bytes(10 << 20))
    assert await width(pool, remote.media) == 48
    assert sum(length for _, length in remote.reads) <= 1 << 20


async def test_what_is_read_is_bounded(pool: MediaWorkers) -> None:
    remote = Remote(b"II*\x00" + (4 << 20).to_bytes(4, "little") + bytes(5 << 20))
    assert await why(pool, remote.media, Limits(read=100_000)) == "it needs too much of the file"


async def test_a_store_that_gives_too_little_is_told(pool: MediaWorkers, tmp_path: Path) -> None:
    async def read(offset: int, length: int) -> bytes:
        return b"short"

    assert await why(pool, Media(1000, None, read)) == "the file ends before its size"
    assert await width(pool, local(jpeg(tmp_path / "x"))) == 48


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError("no store"), Unavailable(Code.STORE_UNAVAILABLE, "no store")]
)
async def test_a_store_that_fails_is_told(
    pool: MediaWorkers, tmp_path: Path, error: Exception
) -> None:
    async def read(offset: int, length: int) -> bytes:
        raise error

    assert await why(pool, Media(1000, None, read)) == "the stored bytes cannot be read"
    assert await width(pool, local(jpeg(tmp_path / "x"))) == 48


# --- a worker that a medium has taken over


@pytest.mark.parametrize(
    "said",
    [
        b'{"read": [-5, 10]}\n',
        b'{"read": [0, 99999999]}\n',
        b'{"read": [0, 2000000]}\n',
        b'{"body": 1000000000}\n',
        b'{"found": 3}\n',
        b"garbage\n",
        b"no end" + b"x" * 100_000,
    ],
)
async def test_what_a_worker_says_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    fake = tmp_path / "fake"
    fake.write_text(f"#!/bin/sh\nread order\nprintf '%s' '{said.decode()}'\nread more\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    pool = MediaWorkers()
    assert await why(pool, Remote(bytes(5 << 20)).media) == "the process lost its way"
    assert pool.pids == []


# --- the process itself


_LIMITED = textwrap.dedent("""
    import resource, socket, sys
    from mediaworker.limits import limit_cpu, limit_process
    limit_process()
    limit_cpu(5)
    try:
        bytearray(2 << 30)
    except MemoryError:
        print("memory", flush=True)
    try:
        with open(sys.argv[1], "w") as file:
            file.write("x")
    except OSError:
        print("files", flush=True)
    resource.setrlimit(resource.RLIMIT_CPU, (1, resource.RLIM_INFINITY))
    while True:
        pass
""")


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no RLIMIT_AS")
def test_the_limits_bite(tmp_path: Path) -> None:
    folder = str(Path(mediaworker.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-P", "-c", _LIMITED, str(tmp_path / "written")],
        env={"PYTHONPATH": folder},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == b"memory\nfiles\n"
    assert done.returncode == -signal.SIGXCPU


_SERVER = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from mentatlab.storage.workers import Limits, Media, MediaWorkers

    async def main():
        pool = MediaWorkers()
        await pool.run({"probe": "image"}, Media(1, Path(sys.argv[1]), None), Limits())
        print(*pool.pids, flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
""")


def test_no_orphan_outlives_a_killed_server(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SERVER, str(jpeg(tmp_path / "x"))]
    server = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert server.stdout is not None
    with server.stdout:
        worker = int(server.stdout.readline())
        server.kill()
        server.wait()
    deadline = time.monotonic() + 20
    while lives(worker):
        assert time.monotonic() < deadline, "the process lives on"
        time.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False
