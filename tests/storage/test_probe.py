"""What is found in media, and what is not opened."""

import io
import wave
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from struct import pack
from typing import Any

import av
import pytest
from PIL import Image

from mentatlab.protocol.pins import PinType
from mentatlab.storage.mediaworker import images, timed
from mentatlab.storage.probe import Prober
from mentatlab.storage.workers import Media

I, A, V = PinType.IMAGE, PinType.AUDIO, PinType.VIDEO  # noqa: E741


@pytest.fixture
async def prober() -> AsyncIterator[Prober]:
    prober = Prober()
    yield prober
    await prober.aclose()


def media(path: Path, data: bytes | None = None) -> Media:
    if data is not None:
        path.write_bytes(data)

    async def read(offset: int, length: int) -> bytes:
        raise AssertionError("the worker opens the file itself")

    return Media(path.stat().st_size, path, read)


def in_memory(data: bytes) -> Media:
    async def read(offset: int, length: int) -> bytes:
        return data[offset : offset + length]

    return Media(len(data), None, read)


def image(format_: str, size: tuple[int, int] = (48, 32), mode: str = "RGB", **more: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, "blue").save(file, format_, **more)
    return file.getvalue()


def film(*, sound: bool = False, format_: str = "mp4", codec: str = "mpeg4") -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=format_) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        noise = container.add_stream("aac", rate=48000) if sound else None
        for frame in [*(av.VideoFrame(64, 48, "yuv420p") for _ in range(25)), None]:
            container.mux(stream.encode(frame))
        if noise is not None:
            frame = av.AudioFrame("fltp", "stereo", 1024)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            frame.sample_rate = 48000
            container.mux([*noise.encode(frame), *noise.encode(None)])
    return file.getvalue()


def tone(*, rate: int = 8000, channels: int = 1, frames: int = 4000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as made:
        made.setparams((channels, 2, rate, 0, "NONE", ""))
        made.writeframes(bytes(2 * channels * frames))
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has so many pixels."""
    head = chunk(b"IHDR", pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


# --- what is found


@pytest.mark.parametrize(
    "format_", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "JPEG2000", "AVIF"]
)
def test_an_image(format_: str) -> None:
    found = images.probe(io.BytesIO(image(format_)))
    assert (found["width"], found["codec"]) == (32 if format_ == "ICO" else 48, format_.lower())


def test_a_film_with_sound() -> None:
    found = timed.probe(io.BytesIO(film(sound=True)))
    assert found.pop("duration") == pytest.approx(1, abs=0.05)
    assert found == {
        "width": 64,
        "height": 48,
        "codec": "mpeg4",
        "fps": 25.0,
        "sampleRate": 48000,
        "channels": 2,
        "audioCodec": "aac",
    }


def test_a_sound() -> None:
    found = timed.probe(io.BytesIO(tone(channels=2)))
    assert found == {"sampleRate": 8000, "codec": "pcm_s16le", "channels": 2, "duration": 0.5}


def test_the_codec_is_named_after_the_format_not_the_decoder() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=44100, layout="mono")
        frame = av.AudioFrame("fltp", "mono", 1152)
        frame.planes[0].update(bytes(4 * 1152))
        frame.sample_rate = 44100
        container.mux([*stream.encode(frame), *stream.encode(None)])
    file.seek(0)
    assert timed.probe(file)["codec"] == "mp3"  # FFmpeg decodes by "mp3float"


def test_a_track_without_a_decoder_tells_what_the_container_says() -> None:
    pcm_36_bit = pack(
        "<4sI4s4sIHHIIHH", b"RIFF", 136, b"WAVE", b"fmt ", 16, 1, 1, 8000, 40000, 5, 36
    )
    data = pcm_36_bit + pack("<4sI", b"data", 100) + bytes(100)
    assert "sampleRate" not in timed.probe(io.BytesIO(data))


async def test_through_the_pool_from_files_and_by_range(prober: Prober, tmp_path: Path) -> None:
    for data, family in ((image("PNG"), I), (tone(), A), (film(), V)):
        found = await prober.probe(media(tmp_path / "x", data), family)
        assert "probeError" not in found
        assert await prober.probe(in_memory(data), family) == found


async def test_of_a_large_film_little_is_read(prober: Prober) -> None:
    """1 GB of which the index stands at the end, as cameras write it."""
    whole, reads = film(), list[int]()
    index = whole.rindex(b"moov") - 4
    start = whole.index(b"mdat") - 4
    gap = 1 << 30
    # mdat becomes a 64-bit box with a hole behind its data
    inner = index - start - 8
    head = whole[:start] + pack(">I4sQ", 1, b"mdat", 16 + inner + gap)
    front, back = head + whole[start + 8 : index], shifted(whole[index:], 8)
    size = len(front) + gap + len(back)

    async def read(offset: int, length: int) -> bytes:
        reads.append(length)
        stop = offset + length
        zeros = max(0, min(stop, len(front) + gap) - max(offset, len(front)))
        return (
            front[offset:stop]
            + bytes(zeros)
            + back[max(0, offset - len(front) - gap) : max(0, stop - len(front) - gap)]
        )

    found = await prober.probe(Media(size, None, read), V)
    assert (found["width"], found["fps"], found["duration"]) == (64, 25.0, 1.0)
    assert sum(reads) < 2 << 20


def shifted(index: bytes, by: int) -> bytes:
    """A film's index whose chunk offsets are moved."""
    at = index.index(b"stco") + 8
    count = int.from_bytes(index[at : at + 4], "big")
    moved = [
        int.from_bytes(index[n : n + 4], "big") + by for n in range(at + 4, at + 4 + 4 * count, 4)
    ]
    return index[: at + 4] + pack(f">{count}I", *moved) + index[at + 4 + 4 * count :]


# --- what is not opened


async def why(prober: Prober, data: bytes, family: PinType) -> str:
    found = await prober.probe(in_memory(data), family)
    assert list(found) == ["probeError"]
    return found["probeError"]


@pytest.mark.parametrize("family", [I, A, V])
async def test_garbage_is_a_finding_not_an_error(
    prober: Prober, tmp_path: Path, family: PinType
) -> None:
    said = await prober.probe(media(tmp_path / "x", b"garbage" * 100), family)
    assert "Error: " in said["probeError"]
    assert str(tmp_path) not in said["probeError"]  # no folder of the server
    assert "width" in await prober.probe(in_memory(image("PNG")), I)
