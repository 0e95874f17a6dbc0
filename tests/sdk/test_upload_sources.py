from collections.abc import AsyncIterator
from pathlib import Path

import blake3
import pytest

from mentatlab.protocol.errors import Invalid
from mentatlab.sdk.upload_plan import CHUNK, SMALL
from mentatlab.sdk.upload_sources import Reach, Source, StreamSource, source_of

DATA = bytes(range(251)) * 40_000  # 10 MB
SOURCES = ["file", "bytes", "stream"]


async def stream(data: bytes, block: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), block):
        yield data[start : start + block]


def made(kind: str, data: bytes, folder: Path) -> Source:
    file = folder / "data.bin"
    file.write_bytes(data)
    return source_of({"file": file, "bytes": data}.get(kind, stream(data)))


async def read(source: Source, start: int, stop: int) -> bytes:
    return b"".join([block async for block in source.blocks(start, stop)])


@pytest.mark.parametrize("kind", SOURCES)
async def test_all_of_it_is_read_again_where_the_server_stands(kind: str, tmp_path: Path) -> None:
    source = made(kind, DATA, tmp_path)
    assert await source.small() is None
    assert source.size == (None if kind == "stream" else len(DATA))
    offset = 0
    while (reach := await source.reach(offset)).stop > offset:
        assert reach.stop - offset <= CHUNK
        assert await read(source, offset, reach.stop) == DATA[offset : reach.stop]
        half = offset + (reach.stop - offset + 1) // 2  # the line is cut, half has arrived
        again = await source.reach(half)
        assert await read(source, half, again.stop) == DATA[half : again.stop]
        offset = again.stop
    assert reach == Reach(len(DATA), len(DATA))
    assert await source.blake3() == blake3.blake3(DATA).hexdigest()


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("size", [0, 1, SMALL, SMALL + 1])
async def test_what_is_small(kind: str, size: int, tmp_path: Path) -> None:
    data = DATA[:size]
    small = await made(kind, data, tmp_path).small()
    assert small == (data if size <= SMALL else None)


async def test_a_stream_is_not_read_twice() -> None:
    source = StreamSource(stream(DATA))
    await source.reach(0)
    await source.reach(8_000_000)
    for offset in (7_999_999, len(DATA) + 1):
        with pytest.raises(Invalid, match="no longer at hand"):
            await source.reach(offset)


async def test_what_a_stream_keeps_is_bounded() -> None:
    source = StreamSource(stream(DATA * 5))
    offset = 0
    while (reach := await source.reach(offset)).stop > offset:
        assert len(source._kept) <= 9 << 20
        offset = reach.stop
    assert offset == 5 * len(DATA)


async def test_a_file_that_becomes_shorter(tmp_path: Path) -> None:
    source = made("file", DATA, tmp_path)
    (tmp_path / "data.bin").write_bytes(b"x")
    with pytest.raises(Invalid, match="shorter"):
        await read(source, 0, 100)
