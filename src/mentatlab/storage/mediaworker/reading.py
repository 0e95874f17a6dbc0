"""A file whose bytes the parent reads."""

import io
from collections import OrderedDict
from collections.abc import Callable

BLOCK = 256 << 10
_KEPT = 16  # blocks: 4 MiB


class Ranges(io.RawIOBase):
    """`fetch(offset, length)` gives exactly those bytes; they are asked for in whole blocks."""

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size = size
        self._fetch = fetch
        self._at = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("a position before the start")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride] — the base's stub takes any buffer; io hands over this one
        number, skip = divmod(self._at, BLOCK)
        piece = self._block(number)[skip : skip + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def _block(self, number: int) -> bytes:
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        start = number * BLOCK
        block = self._fetch(start, min(BLOCK, self._size - start)) if start < self._size else b""
        self._blocks[number] = block
        if len(self._blocks) > _KEPT:
            self._blocks.popitem(last=False)
        return block
