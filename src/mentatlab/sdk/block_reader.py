"""A file object over a URL that answers ranges: blocks of 1 MiB, 8 of them kept, read ahead.

For the containers that media come in: first bytes, a jump to the index at the end, then straight
through. Decoders read it from any of their threads, one at a time.
"""

import io
import os
import random
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPResponse
from typing import Any, BinaryIO, cast
from urllib.parse import urljoin

from mentatlab.protocol.errors import Code, Forbidden, MentatError, RateLimited, Unauthenticated
from mentatlab.sdk.answers import error_of
from mentatlab.sdk.backoff import Backoff
from mentatlab.sdk.errors import AgentError
from mentatlab.sdk.plain_http import FAILURES, Connections
from mentatlab.sdk.ranges import Medium, cut_off, range_header, refused_by_store

BLOCK = 1 << 20
"""Bytes of one range request."""
KEPT = 8
"""Blocks in memory, those on their way included."""
AHEAD = 2
"""Blocks that are fetched before they are asked for, while one reads on and on."""
GIVE_UP_S = 60.0

_TIMEOUT_S = 30.0
_BUFFER = 64 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_ERROR_BYTES = 64 * 1024


def open_url(url: str, *, give_up_s: float = GIVE_UP_S) -> BinaryIO:
    """A seekable binary file. The first block is read at once.

    Everything that fails is tried again for `give_up_s`. Then, and for what cannot mend, it raises
    `AgentError`: `REFERENCE_NOT_FOUND`, `REFERENCE_EXPIRED`, `REFERENCE_CORRUPT` (it changed while
    it was read), `SERVER_UNREACHABLE`, …
    """
    return cast("BinaryIO", io.BufferedReader(BlockReader(url, give_up_s=give_up_s), _BUFFER))


class BlockReader(io.RawIOBase):
    def __init__(self, url: str, *, give_up_s: float = GIVE_UP_S) -> None:
        self._source = RangeSource(url, give_up_s=give_up_s)
        self._threads = ThreadPoolExecutor(1 + AHEAD, thread_name_prefix="blocks")
        self._blocks: OrderedDict[int, Future[bytes]] = OrderedDict()  # last used last
        self._lock = threading.Lock()
        self._last = -1  # the block that was read last
        self._position = 0
        try:
            self._block(0)
        except BaseException:
            self.close()
            raise

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._source.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """At most to the end of a block."""
        if self._position >= self._source.size:
            return 0
        index, start = divmod(self._position, BLOCK)
        part = memoryview(self._block(index))[start : start + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def readall(self) -> bytes:
        rest = bytearray(max(0, self._source.size - self._position))
        view, filled = memoryview(rest), 0
        while filled < len(rest):
            filled += self.readinto(view[filled:])
        return bytes(rest)

    def close(self) -> None:
        if not self.closed:
            self._source.close()
            self._threads.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _block(self, index: int) -> bytes:
        with self._lock:
            for wanted in self._wanted(index):
                if wanted not in self._blocks or _failed(self._blocks[wanted]):
                    self._blocks[wanted] = self._threads.submit(self._source.read_block, wanted)
            self._blocks.move_to_end(index)
            while len(self._blocks) > KEPT:
                self._blocks.popitem(last=False)
            block = self._blocks[index]
        return block.result()

    def _wanted(self, index: int) -> range:
        """The block, and the following ones when the reader goes on and on."""
        ahead = AHEAD if index == self._last + 1 and index > 0 else 0
        self._last = index
        return range(index, min(index + ahead, self._source.last_block) + 1)


def _failed(block: Future[bytes]) -> bool:
    return block.done() and block.exception() is not None


class RangeSource:
    """Blocks of one medium, from any thread."""

    def __init__(self, url: str, *, give_up_s: float) -> None:
        self._medium = Medium(url)
        self._lock = threading.Lock()  # of `_medium`
        self._connections = Connections(_TIMEOUT_S)
        self._closed = threading.Event()
        self._give_up_s = give_up_s

    @property
    def size(self) -> int:
        """Bytes, once something was read."""
        return self._medium.size or 0

    @property
    def last_block(self) -> int:
        return max(0, self.size - 1) // BLOCK

    def close(self) -> None:
        """Also ends what other threads are reading."""
        self._closed.set()
        self._connections.close()

    def read_block(self, index: int) -> bytes:
        """The last one is shorter. `AgentError`."""
        start, data = index * BLOCK, bytearray()
        backoff = Backoff(give_up_s=self._give_up_s, uniform=random.uniform)
        while len(data) < BLOCK and not self._at_end(start + len(data)):
            had = len(data)
            failure = self._read_on(data, start)
            if len(data) > had:
                backoff.progress()
            if failure is not None:
                self._pause(failure, backoff)
        return bytes(data)

    def _at_end(self, position: int) -> bool:
        return self._medium.size is not None and position >= self._medium.size

    def _pause(self, failure: MentatError, backoff: Backoff) -> None:
        asked = failure.retry_after_s if isinstance(failure, RateLimited) else 0.0
        wait = backoff.wait(time.monotonic(), asked) if failure.retryable else None
        if wait is None or self._closed.wait(wait):
            raise _agent_error(failure) from failure

    def _read_on(self, data: bytearray, start: int) -> MentatError | None:
        """One request for what a block lacks; what comes is appended. Why it ended early."""
        with self._lock:
            url = self._medium.url
        position, stop = start + len(data), start + BLOCK
        asked = {"Range": range_header(position, stop), "Accept-Encoding": "identity"}
        try:
            with self._connections.request("GET", url, asked) as answer:
                self._take(answer, url, data, position, stop)
        except FAILURES as error:
            failure = cut_off(str(error) or type(error).__name__)
        except MentatError as error:
            failure = error
        else:
            return None
        with self._lock:
            self._medium.failed(url)
        return failure

    def _take(
        self, answer: HTTPResponse, url: str, data: bytearray, position: int, stop: int
    ) -> None:
        if answer.status >= 300:
            return self._understand(answer, url, position)
        with self._lock:
            length = self._medium.accept(url, answer.status, answer.headers, position, stop)
        end = len(data) + length
        while len(data) < end:
            piece = answer.read(min(_BUFFER, end - len(data)))
            if not piece:
                raise cut_off("its end is missing")
            data += piece
            with self._lock:
                self._medium.arrived()
        return None

    def _understand(self, answer: HTTPResponse, url: str, position: int) -> None:
        """An answer without bytes of the medium."""
        status, body = answer.status, answer.read(_MAX_ERROR_BYTES)
        with self._lock:
            if status in _REDIRECTS and (location := answer.headers.get("location")):
                self._medium.redirected(urljoin(url, location))
            elif self._medium.is_direct(url):
                raise refused_by_store(status)
            elif not self._medium.is_empty(status, position):
                after = answer.headers.get("retry-after")
                raise error_of(status, body, retry_after=after)


def _agent_error(error: MentatError) -> AgentError:
    """A next attempt gets a new address, whose signature is good again."""
    over = isinstance(error, Forbidden | Unauthenticated) or error.code is Code.SIGNATURE_EXPIRED
    retryable = error.retryable or over
    return AgentError(error.code, error.message, retryable=retryable, hint=error.hint)
