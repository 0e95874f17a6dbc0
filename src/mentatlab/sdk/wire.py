"""The two pipes to the host: protocol lines out, protocol lines in.

`claim_stdio` takes them away from the rest of the process: afterwards file descriptor 1 is stderr
and 0 is empty, so that neither a stray `print`, nor a C library, nor a child process can touch the
protocol.
"""

import asyncio
import io
import os
import select
import stat
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from mentatlab.protocol.stdio import Lines, encode

_BLOCK = 64 * 1024


class Stdio(NamedTuple):
    input: int  # file descriptors
    output: int


def claim_stdio() -> Stdio:
    """The protocol's own descriptors. What else reads 0 finds its end; what else writes to 1 is
    log, line by line as it is written."""
    sys.stdout.flush()
    claimed = Stdio(os.dup(0), os.dup(1))
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    stdout: object = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):  # and not somebody's own
        stdout.reconfigure(line_buffering=True)
    return claimed


def _is_pipe(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


class Wire:
    """Events to the host: whole lines, in order, from any thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        # of its own: all of the shared threads may be waiting for the lock
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="wire")
        if _is_pipe(fd):  # never a terminal: its flags are shared with the shell
            os.set_blocking(fd, False)

    def send(self, event: Mapping[str, Any]) -> None:
        """Waits while the host does not read. `TooLarge(AGENT_LINE_TOO_LONG)` over 1 MiB."""
        line = encode(event)
        with self._lock:
            self._write(line)

    async def send_line(self, line: bytes) -> None:
        """As `send` for an encoded line, without holding up the event loop.

        A cancelled caller's line is still written, whole.
        """
        if not self._lock.acquire(blocking=False):
            await self._in_thread(self._locked_write, line)
        elif rest := self._write_some(line):
            await self._in_thread(self._write_and_release, rest)
        else:
            self._lock.release()

    async def _in_thread(self, write: Callable[[bytes], None], line: bytes) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.shield(loop.run_in_executor(self._writer, write, line))

    def _locked_write(self, line: bytes) -> None:
        with self._lock:
            self._write(line)

    def _write_and_release(self, line: bytes) -> None:
        try:
            self._write(line)
        finally:
            self._lock.release()

    def _write(self, line: bytes) -> None:
        while line := self._write_some(line):
            select.select([], [self._fd], [])

    def _write_some(self, line: bytes) -> bytes:
        """What is left to write."""
        try:
            return line[os.write(self._fd, line) :]
        except BlockingIOError:
            return line
        except OSError:
            self._fd = _discard(self._fd)
            return b""


def _discard(fd: int) -> int:
    """The host has gone: nobody is left to be told anything. The process ends by end of input."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
    return fd


async def read_lines(fd: int) -> AsyncIterator[bytes]:
    """Lines of the host until end of file; what is not asked for stays in the pipe."""
    lines = Lines()
    async for block in _read_blocks(fd):
        for line in lines.feed(block):
            yield line
    for line in lines.end():
        yield line


async def _read_blocks(fd: int) -> AsyncIterator[bytes]:
    if not _is_pipe(fd):  # a file or a terminal, when started by hand
        while block := os.read(fd, _BLOCK):
            yield block
        return
    reader = asyncio.StreamReader(limit=_BLOCK)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
    )
    try:
        while block := await reader.read(_BLOCK):
            yield block
    finally:
        transport.close()
