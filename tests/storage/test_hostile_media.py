"""Media made to harm: bombs, playlists, references to elsewhere, damage. Through the real pool."""

import asyncio
import io
import os
import random
import socket
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from struct import pack
from typing import Any

import av
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.support.media import picture, sound

from mentatlab.protocol.pins import PinType
from mentatlab.storage.probe import Prober
from mentatlab.storage.workers import Limits, Media, MediaFailed, MediaWorkers

I, A, V = PinType.IMAGE, PinType.AUDIO, PinType.VIDEO  # noqa: E741
DRAWN = Limits(cpu_s=10, wall_s=20, read=256 << 20, body=8 << 20)


def media(data: bytes) -> Media:
    async def read(offset: int, length: int) -> bytes:
        return data[offset : offset + length]

    return Media(len(data), None, read)


@pytest.fixture
async def prober() -> AsyncIterator[Prober]:
    prober = Prober()
    yield prober
    await prober.aclose()


@pytest.fixture
async def pool() -> AsyncIterator[MediaWorkers]:
    pool = MediaWorkers(size=1)
    yield pool
    await pool.aclose()


async def why(prober: Prober, data: bytes, family: PinType = I) -> str:
    found = await prober.probe(media(data), family)
    assert list(found) == ["probeError"], found
    return found["probeError"]


async def drawn(pool: MediaWorkers, preview: str, data: bytes) -> Image.Image:
    order = {"preview": preview, "pixels": 64, "format": "png"}
    _, body = await pool.run(order, media(data), DRAWN)
    return Image.open(io.BytesIO(body))


async def refusal(pool: MediaWorkers, preview: str, data: bytes) -> str:
    """Why it is not drawn; "" when it is."""
    try:
        await drawn(pool, preview, data)
    except MediaFailed as error:
        return str(error)
    return ""


# --- bombs


def chunk(kind: bytes, data: bytes) -> bytes:
    return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    """RGB, all black, of any size and few bytes."""
    packer = zlib.compressobj(9)
    rows = [packer.compress(bytes(1 + 3 * width)) for _ in range(height)]
    body = chunk(b"IDAT", b"".join([*rows, packer.flush()]))
    return png_head(width, height) + b"".join(more) + body + chunk(b"IEND", b"")


def png_head(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def gif(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    head = b"GIF89a" + pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(6)
    return head + b"," + pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\x00;"


def webp(width: int, height: int, *, animated: bool) -> bytes:
    """A canvas of that size; the frame in it is a small one."""
    small = io.BytesIO()
    Image.new("RGB", (16, 16)).save(small, "WEBP")
    frame, bounds = small.getvalue()[12:], (width - 1).to_bytes(3, "little")
    canvas = bytes([2 if animated else 0, 0, 0, 0]) + bounds + (height - 1).to_bytes(3, "little")
    inner = riff(b"VP8X", canvas)
    if animated:
        place = bytes(6) + (15).to_bytes(3, "little") * 2 + bytes(4)
        inner += riff(b"ANIM", bytes(6)) + riff(b"ANMF", place + frame)
    else:
        inner += frame
    return b"RIFF" + pack("<I", len(inner) + 4) + b"WEBP" + inner


def riff(kind: bytes, data: bytes) -> bytes:
    return kind + pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def tiff(*sizes: tuple[int, int]) -> bytes:
    """A page of each size, without the bytes."""
    data, at = b"II*\0", 8
    pages: list[bytes] = []
    for number, (width, height) in enumerate(sizes):
        tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (278, height)]
        tags += [(279, 8)]
        entries = b"".join(pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        size = 2 + len(entries) + 4
        following = 0 if number == len(sizes) - 1 else at + size
        pages.append(pack("<H", len(tags)) + entries + pack("<I", following))
        at += size
    return data + pack("<I", 8) + b"".join(pages)


def bmp(width: int, height: int) -> bytes:
    return b"BM" + pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def jpeg(width: int, height: int) -> bytes:
    """A real one whose header says another size."""
    data = bytearray(picture("JPEG", 16))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = pack(">HH", height, width)
    return bytes(data)


def jp2(width: int, height: int) -> bytes:
    data = bytearray(picture("JPEG2000", 16))
    at = data.index(b"ihdr")
    data[at + 4 : at + 12] = pack(">II", height, width)
    return bytes(data)


def ico(inner: bytes) -> bytes:
    return pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(inner), 22) + inner


BOMBS = {
    "png": png_head(10_000, 10_000) + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
    "png, just over": png_head(10_000, 5_001) + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
    "png, one line": png_head(2**31 - 1, 1) + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
    "gif screen": gif((65_535, 65_535), (1, 1)),
    "webp": webp(16_384, 16_384, animated=False),
    "webp, animated": webp(16_384, 16_384, animated=True),
    "tiff": tiff((60_000, 60_000)),
    "bmp": bmp(30_000, 30_000),
    "jpeg": jpeg(65_500, 65_500),
    "jpeg 2000": jp2(100_000, 100_000),
}


@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_is_an_error(prober: Prober, pool: MediaWorkers, name: str) -> None:
    assert await why(prober, BOMBS[name])
    assert await refusal(pool, "thumb", BOMBS[name])
    assert (await prober.probe(media(picture("PNG", 8)), I))["width"] == 8  # and others go on


async def test_50_megapixels_are_enough_and_can_be_drawn(
    prober: Prober, pool: MediaWorkers
) -> None:
    data = png(10_000, 5_000)
    assert len(data) < 200_000
    assert (await prober.probe(media(data), I))["width"] == 10_000
    assert (await drawn(pool, "thumb", data)).size == (64, 32)


async def test_a_bomb_in_a_later_frame_is_not_reached(prober: Prober, pool: MediaWorkers) -> None:
    data = tiff((4, 2), (60_000, 60_000))
    assert (await prober.probe(media(data), I))["width"] == 4
    assert (await drawn(pool, "thumb", data)).size == (4, 2)


async def test_a_frame_larger_than_its_screen(prober: Prober, pool: MediaWorkers) -> None:
    data = gif((10, 10), (60_000, 60_000))
    found = await prober.probe(media(data), I)
    assert found.get("width", 0) * found.get("height", 0) <= 50_000_000
    assert await refusal(pool, "thumb", data)


async def test_an_icon_with_a_bomb_in_it(prober: Prober, pool: MediaWorkers) -> None:
    data = ico(BOMBS["png"])
    found = await prober.probe(media(data), I)
    assert found.get("width", 0) <= 256
    assert await refusal(pool, "thumb", data)


async def test_text_in_an_image_is_not_inflated_without_end(prober: Prober) -> None:
    inflated = zlib.compress(bytes(256 << 20), 9)  # 256 KB that say 256 MiB
    for kind in (b"zTXt", b"iCCP"):
        data = png(4, 4, chunk(kind, b"name\0\0" + inflated))
        found = await prober.probe(media(data), I)
        assert found.get("width", 4) == 4
    assert (await prober.probe(media(picture("PNG", 8)), I))["width"] == 8


def film(size: int = 64, *, format_: str = "mp4", codec: str = "mpeg4", frames: int = 10) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=format_) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame(size, size, "yuv420p")))
        container.mux(stream.encode(None))
    return file.getvalue()


async def test_a_film_that_says_it_is_huge(prober: Prober, pool: MediaWorkers) -> None:
    data = bytearray(film(codec="libx264"))
    at = data.index(b"avc1") + 28  # ISO 14496-12, VisualSampleEntry
    data[at : at + 4] = pack(">HH", 65_000, 65_000)
    found = await prober.probe(media(bytes(data)), V)
    assert "probeError" in found or found["width"] in (64, 65_000)
    said = await refusal(pool, "poster", bytes(data))
    assert not said or "too large" in said


# --- what names something elsewhere

PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{url}'\n",
    "dash": "<?xml version='1.0'?><MPD type='static'><Period><AdaptationSet><Representation>"
    "<BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\na=control:{url}\n",
    "smil": "<smil><body><video src='{url}'/></body></smil>",
    "pls": "[playlist]\nFile1={url}\n",
    "image list": "{url}",
}


@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize("family", [A, V])
async def test_a_playlist_opens_nothing(
    prober: Prober, tmp_path: Path, name: str, family: PinType
) -> None:
    """Neither a file (a pipe: opening it would hang) nor an address."""
    pipe = tmp_path / "pipe.ts"
    os.mkfifo(pipe)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        for url in (str(pipe), f"file:{pipe}", f"http://127.0.0.1:{port}/x.ts"):
            said = await why(prober, PLAYLISTS[name].format(url=url).encode(), family)
            assert "took over" not in said
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("scheme", ["", "file:", "concat:", "subfile,,start,0,end,0,,:", "http://"])
async def test_a_film_whose_samples_lie_elsewhere(
    prober: Prober, pool: MediaWorkers, tmp_path: Path, scheme: str
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = with_data_reference(film(), f"{scheme}{pipe}")
    assert await why(prober, data, V) == "ValueError: its pictures have no size"
    assert "took over" not in await refusal(pool, "poster", data)


def with_data_reference(mp4: bytes, path: str) -> bytes:
    """QuickTime's data reference: the samples are in another file, named by a Macintosh alias. (It
    replaces `url `, 12 bytes: "in this file"; the boxes around it become larger.)"""
    name = path.encode()
    entry = b"alis" + bytes(4 + 10 + 28 + 12 + 64 + 16 + 4 + 16)
    entry += pack(">HH", 2, len(name)) + name + b"\0" * (len(name) % 2) + pack(">hH", -1, 0)
    entry = pack(">I", 4 + len(entry)) + entry
    at = mp4.index(b"url ") - 4
    changed = bytearray(mp4[:at] + entry + mp4[at + 12 :])
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        start = changed.index(box) - 4
        size = int.from_bytes(changed[start : start + 4], "big") + len(entry) - 12
        changed[start : start + 4] = pack(">I", size)
    return bytes(changed)


async def test_formats_outside_the_list_are_not_opened(prober: Prober) -> None:
    for format_ in ("PPM", "TGA", "PCX", "SGI", "EPS", "PDF", "ICNS"):
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, format_)
        assert "cannot identify" in await why(prober, file.getvalue())
    for format_, codec in (("gif", "gif"), ("nut", "mpeg4"), ("ivf", "libvpx")):
        if codec == "gif":
            file = io.BytesIO(picture("GIF", 16))
        else:
            file = io.BytesIO(film(format_=format_, codec=codec))
        assert "Error" in await why(prober, file.getvalue(), V)


# --- damage

SAMPLES: dict[str, tuple[PinType, bytes]] = {
    **{
        f: (I, picture(f, 24)) for f in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "AVIF")
    },
    "JPEG2000": (I, picture("JPEG2000", 24)),
    "mp4": (V, film(frames=3)),
    "webm": (V, film(format_="webm", codec="libvpx", frames=3)),
    "avi": (V, film(format_="avi", frames=3)),
    # With fewer than ten packets FFmpeg does not know it.
    "ts": (V, film(format_="mpegts", codec="mpeg2video", frames=20)),
    "flv": (V, film(format_="flv", codec="flv", frames=3)),
    "wmv": (V, film(format_="asf", codec="wmv2", frames=3)),
    "wav": (A, sound(0.02)),
}
for _name, _codec in (("mp3", "libmp3lame"), ("flac", "flac"), ("ogg", "libopus"), ("adts", "aac")):
    _file = io.BytesIO()
    with av.open(_file, "w", format=_name) as _made:
        _stream = _made.add_stream(_codec, rate=48000, layout="mono")
        _frame = av.AudioFrame(_stream.format.name, "mono", 960)
        for _plane in _frame.planes:
            _plane.update(bytes(_plane.buffer_size))
        _frame.sample_rate = 48000
        _made.mux([*_stream.encode(_frame), *_stream.encode(None)])
    SAMPLES[_name] = (A, _file.getvalue())


@pytest.mark.parametrize("name", SAMPLES)
async def test_cut_off_anywhere(prober: Prober, pool: MediaWorkers, name: str) -> None:
    family, data = SAMPLES[name]
    preview = {I: "thumb", V: "poster", A: "waveform"}[family]
    assert "probeError" not in await prober.probe(media(data), family)
    for stop in range(0, len(data), max(1, len(data) // 12)):
        found = await prober.probe(media(data[:stop]), family)
        assert "killed" not in found.get("probeError", "")
        assert "killed" not in await refusal(pool, preview, data[:stop])


@st.composite
def damaged(draw: st.DrawFn) -> tuple[PinType, bytes]:
    family, data = SAMPLES[draw(st.sampled_from(sorted(SAMPLES)))]
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(0, len(changed) - 1))
        match draw(st.integers(0, 3)):
            case 0:
                changed[at] = draw(st.integers(0, 255))
            case 1:
                changed[at : at + 4] = draw(st.sampled_from(_EXTREME))
            case 2:
                changed[at:at] = draw(st.binary(max_size=32))
            case _:
                del changed[at : at + draw(st.integers(1, 64))]
        if not changed:
            changed += b"\0"
    return draw(st.sampled_from([family, I, A, V])), bytes(changed)


_EXTREME = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00", b"\x80\x00\x00\x00"]


async def survive(cases: list[tuple[PinType, bytes]]) -> None:
    """Each has an answer; none kills its process or keeps it."""
    prober, pool = Prober(), MediaWorkers(size=1)
    try:
        for family, data in cases:
            found = await prober.probe(media(data), family)
            preview = {I: "thumb", V: "poster", A: "waveform"}[family]
            for said in (found.get("probeError", ""), await refusal(pool, preview, data)):
                assert "took over" not in said, data.hex()
                assert "killed" not in said, data.hex()
    finally:
        await prober.aclose()
        await pool.aclose()


MANY: Any = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=6, **MANY)
@given(st.lists(damaged(), min_size=10, max_size=30))
def test_damaged_media_have_an_answer(cases: list[tuple[PinType, bytes]]) -> None:
    asyncio.run(survive(cases))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_very_many_damaged_media_have_an_answer() -> None:
    """100,000 of them, by a cheaper generator than Hypothesis."""
    chance = random.Random(20_261_123)
    asyncio.run(survive([mangled(chance) for _ in range(100_000)]))


def mangled(chance: random.Random) -> tuple[PinType, bytes]:
    family, data = SAMPLES[chance.choice(sorted(SAMPLES))]
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(changed))
        match chance.randrange(4):
            case 0:
                changed[at] = chance.randrange(256)
            case 1:
                changed[at : at + 4] = chance.choice(_EXTREME)
            case 2:
                changed[at:at] = chance.randbytes(chance.randrange(32))
            case _:
                del changed[at : min(at + chance.randint(1, 64), len(changed) - 1)]
    return family, bytes(changed)
