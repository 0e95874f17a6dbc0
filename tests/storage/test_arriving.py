import asyncio
from collections.abc import AsyncIterator, Awaitable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.protocol.errors import TooLarge
from mentatlab.storage import arriving
from mentatlab.storage.arriving import Arriving

PIECES = st.lists(st.binary(max_size=9), max_size=12)


class Broken(Exception):  # noqa: N818
    pass


async def source(pieces: list[bytes], *, broken: bool = False) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
    if broken:
        raise Broken


def nothing(_: int) -> Awaitable[None] | None:
    return None


def of(
    stream: AsyncIterator[bytes],
    *,
    offset: int = 0,
    end: int | None = None,
    limit: int | None = None,
) -> Arriving:
    return Arriving(stream, offset=offset, end=end, limit=limit, before_piece=nothing)


async def read(arrived: Arriving, came: list[bytes] | None = None) -> bytes:
    came = [] if came is None else came
    while not arrived.ended:
        async for piece in arrived.slice():
            came.append(piece)
    return b"".join(came)


@given(PIECES, st.integers(0, 40), st.integers(0, 5))
async def test_looking_takes_nothing_away(pieces: list[bytes], wanted: int, offset: int) -> None:
    whole = b"".join(pieces)
    arrived = of(source(pieces), offset=offset)
    assert await arrived.peek(wanted) == whole[:wanted]
    assert await read(arrived) == whole
    assert arrived.offset == offset + len(whole)


@given(PIECES, st.integers(0, 40))
async def test_what_came_before_an_error_comes_first(pieces: list[bytes], wanted: int) -> None:
    arrived = of(source(pieces, broken=True))
    assert await arrived.peek(wanted) == b"".join(pieces)[:wanted]
    came: list[bytes] = []
    with pytest.raises(Broken):
        await read(arrived, came)
    assert b"".join(came) == b"".join(pieces)


@given(PIECES, st.integers(0, 60), st.sampled_from(["end", "limit"]))
async def test_no_byte_beyond_the_end(pieces: list[bytes], end: int, which: str) -> None:
    arrived = of(source(pieces), **{which: end})
    try:
        data = await read(arrived)
    except TooLarge:
        assert len(b"".join(pieces)) > end
    else:
        assert data == b"".join(pieces)
    assert arrived.offset <= end


async def test_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "SLICE", 10)
    arrived = of(source([b"x" * 4] * 6))
    sizes: list[int] = []
    while not arrived.ended:
        sizes.append(len(b"".join([piece async for piece in arrived.slice()])))
    assert sizes == [12, 12, 0]


async def test_a_slow_line_is_cut_into_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "SLICE_S", -1.0)
    arrived = of(source([b"a", b"b"]))
    assert [piece async for piece in arrived.slice()] == [b"a"]
    assert [piece async for piece in arrived.slice()] == [b"b"]


async def test_each_piece_is_asked_for() -> None:
    asked: list[int] = []

    async def later(total: int) -> None:
        asked.append(total)

    arrived = Arriving(source([b"12", b"3"]), offset=5, end=None, limit=None, before_piece=later)
    assert await read(arrived) == b"123"
    assert asked == [7, 8]


async def test_a_slice_ends_while_the_source_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "SLICE_S", 0.01)
    going_on = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield b"12"
        await going_on.wait()
        yield b"3"

    arrived = of(stalling())
    assert [piece async for piece in arrived.slice()] == [b"12"]
    assert [piece async for piece in arrived.slice()] == []
    going_on.set()
    assert await read(arrived) == b"3"


async def test_who_leaves_early_leaves_nothing_behind() -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            yield b"12"
            await asyncio.Event().wait()
        finally:
            ended.set()

    arrived = of(endless())
    assert await anext(arrived.slice()) == b"12"
    assert not await arrived._comes(0)  # pyright: ignore[reportPrivateUsage]
    await arrived.aclose()
    await ended.wait()
