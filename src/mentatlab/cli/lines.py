"""Lines of a file or of stdin, as they come."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from mentatlab.protocol.errors import Code, TooLarge
from mentatlab.protocol.records import MAX_RECORD_BYTES
from mentatlab.protocol.stdio import Lines

_BLOCK = 64 * 1024


async def read_lines(file: Path | None) -> AsyncIterator[bytes]:
    """Without their ends; of stdin when there is no file. `TooLarge` for one over 1 MiB."""
    lines = Lines(MAX_RECORD_BYTES)
    try:
        async for block in _blocks_of(file) if file else _blocks_of_stdin():
            for line in lines.feed(block):
                yield line
    except TooLarge as error:
        raise TooLarge(
            Code.STREAM_RECORD_TOO_LARGE,
            f"a line has more than {MAX_RECORD_BYTES} bytes",
            hint="a record has at most 1 MiB; --binary publishes a file in chunks",
        ) from error
    for line in lines.end():
        yield line


async def _blocks_of(file: Path) -> AsyncIterator[bytes]:
    with file.open("rb") as opened:
        while block := await asyncio.to_thread(opened.read, _BLOCK):
            yield block


async def _blocks_of_stdin() -> AsyncIterator[bytes]:
    """Without a thread, so that Ctrl-C ends it at once, and without touching the terminal's
    flags, which are the shell's too."""
    stdin = sys.stdin.fileno()
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(stdin, ready.set)
    except OSError:  # a file can always be read
        while block := os.read(stdin, _BLOCK):
            yield block
        return
    try:
        while await ready.wait() and (block := os.read(stdin, _BLOCK)):
            ready.clear()
            yield block
    finally:
        loop.remove_reader(stdin)
