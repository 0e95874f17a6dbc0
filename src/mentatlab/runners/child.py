"""One agent process: its own session and process group, limits, three pipes, and a certain end.

`exited` is set when the leader is gone *and* its group, and what carries its mark, has been killed,
so that no grandchild outlives an attempt. (asyncio's own `Process.wait` waits on some Python
versions for the pipes, which a grandchild may hold open for ever; hence the pidfd.)
"""

import asyncio
import contextlib
import itertools
import os
import resource
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import msgspec

from mentatlab.runners import guardian

_READ_BYTES = 64 * 1024
_OOM_SCORE = "500"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """rlimits of an agent's processes, each (Linux); no core dumps. None = unlimited."""

    address_space: int | None = None  # bytes
    open_files: int = 4096
    cpu_s: int | None = None
    file_bytes: int | None = None  # of one file


class Guardian:
    """The host's side of the guardian process; started with the first child."""

    def __init__(self) -> None:
        self.mark = f"{secrets.token_hex(8)}."
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)

    def next_mark(self) -> str:
        return f"{self.mark}{next(self._numbers)}."

    def ensure(self) -> None:
        if self._process is None or self._process.poll() is not None:
            script = [sys.executable, "-I", "-S", guardian.__file__, self.mark]
            self._process = subprocess.Popen(
                script, stdin=subprocess.PIPE, env={}, start_new_session=True, bufsize=0
            )

    def watch(self, pgid: int) -> None:
        self._tell(f"+{pgid}\n")

    def forget(self, pgid: int) -> None:
        self._tell(f"-{pgid}\n")

    def _tell(self, line: str) -> None:
        if self._process and self._process.stdin:
            # It may have been killed; the next child starts another.
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(line.encode())

    async def aclose(self) -> None:
        process, self._process = self._process, None
        if process and process.stdin:
            process.stdin.close()
            await asyncio.to_thread(process.wait)


class Child:
    """A running agent process. `await Child.spawn(…)`; `OSError` when the program cannot be
    started.
    """

    def __init__(self, process: subprocess.Popen[bytes], mark: str, watcher: Guardian) -> None:
        self.pid = process.pid
        self.exit_code: int | None = None
        """Negative for a signal; set with `exited`."""
        self.exited = asyncio.Event()
        self._process = process
        self.mark = mark
        self._guardian = watcher
        self._transports: list[asyncio.BaseTransport] = []
        self._reaping: asyncio.Task[None] | None = None

    @classmethod
    async def spawn(
        cls,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        limits: Limits,
        watcher: Guardian,
    ) -> "Child":
        watcher.ensure()
        mark = watcher.next_mark()
        process = _start(command, cwd, {**env, guardian.MARK: mark})
        watcher.watch(process.pid)
        _limit(process.pid, limits)
        child = cls(process, mark, watcher)
        child._reaping = asyncio.create_task(child._reap())
        try:
            await child._connect()
        except BaseException:  # cancelled in between: nobody else knows of the process
            await child.aclose()
            raise
        return child

    async def _connect(self) -> None:
        process = self._process
        assert process.stdin
        assert process.stdout
        assert process.stderr
        self.stdout = await self._reader(process.stdout)
        self.stderr = await self._reader(process.stderr)
        self.stdin = await self._writer(process.stdin)

    async def _reader(self, pipe: IO[bytes]) -> asyncio.StreamReader:
        reader = asyncio.StreamReader(limit=_READ_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), _handed_over(pipe)
        )
        self._transports.append(transport)
        return reader

    async def _writer(self, pipe: IO[bytes]) -> asyncio.StreamWriter:
        loop = asyncio.get_running_loop()
        unused = asyncio.StreamReader()
        transport, protocol = await loop.connect_write_pipe(
            lambda: asyncio.StreamReaderProtocol(unused), _handed_over(pipe)
        )
        self._transports.append(transport)
        return asyncio.StreamWriter(transport, protocol, None, loop)

    async def _reap(self) -> None:
        await _leader_gone(self.pid)
        guardian.kill_group(self.pid)  # before the leader is reaped: its number is still ours
        self.exit_code = self._process.wait()
        await asyncio.to_thread(guardian.kill_marked, self.mark)
        self._guardian.forget(self.pid)
        self.exited.set()

    def signal(self, number: int) -> None:
        """To the whole process group."""
        if self.exit_code is None:
            guardian.kill_group(self.pid, number)

    async def write(self, data: bytes) -> None:
        """Waits while the agent does not read. Silent when it has gone or closed its input."""
        if not self.stdin.is_closing():
            with contextlib.suppress(ConnectionError, OSError):
                self.stdin.write(data)
                await self.stdin.drain()

    def close_input(self) -> None:
        self.stdin.close()

    async def aclose(self) -> None:
        """Close the pipes; the process must have been told to end, or be killed here."""
        self.signal(signal.SIGKILL)
        await self.exited.wait()
        self.close_pipes()

    def close_pipes(self) -> None:
        for transport in self._transports:
            transport.close()


def _start(command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Returns after exec, 1 to 2 ms; not in a thread, where a cancelled caller would lose it."""
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
    )


def _handed_over(pipe: IO[bytes]) -> IO[bytes]:
    """The pipe for the loop's transport, which closes it.

    uvloop closes it twice, first by libuv, then as a file. In between the number may have become
    that of a file which another thread has opened: so the file object must not own it.
    """
    if not type(asyncio.get_running_loop()).__module__.startswith("uvloop"):
        return pipe
    fd = os.dup(pipe.fileno())
    pipe.close()
    return open(fd, pipe.mode, buffering=0, closefd=False)


async def read_blocks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while block := await reader.read(_READ_BYTES):
        yield block


def _limit(pid: int, limits: Limits) -> None:
    if sys.platform != "linux":
        return
    said = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_AS: limits.address_space,
        resource.RLIMIT_CPU: limits.cpu_s,
        resource.RLIMIT_FSIZE: limits.file_bytes,
    }
    _volunteer(pid)
    for kind, value in said.items():
        if value is None:
            continue
        with contextlib.suppress(ProcessLookupError, PermissionError, ValueError):
            _, hard = resource.prlimit(pid, kind)
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.prlimit(pid, kind, (most, most))


def _volunteer(pid: int) -> None:
    """When memory is short, the kernel is to end an agent, not the server."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(_OOM_SCORE)


async def _leader_gone(pid: int) -> None:
    """Returns when the process has ended, and leaves it to be reaped."""
    loop = asyncio.get_running_loop()
    gone = loop.create_future()
    fd = _pidfd(pid)
    if fd is not None:
        loop.add_reader(fd, gone.set_result, None)
        try:
            await gone
        finally:
            loop.remove_reader(fd)
            os.close(fd)
        return
    threading.Thread(target=_wait_in_thread, args=(pid, loop, gone), daemon=True).start()
    await gone


def _pidfd(pid: int) -> int | None:
    """None where there is none, or no file number is left."""
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _wait_in_thread(
    pid: int, loop: asyncio.AbstractEventLoop, gone: "asyncio.Future[None]"
) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    loop.call_soon_threadsafe(gone.set_result, None)
