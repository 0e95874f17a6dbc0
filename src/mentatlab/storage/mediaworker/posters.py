"""A picture that stands for a film."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import BinaryIO, Literal, cast

from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from av.video.stream import VideoStream
from PIL import Image

from . import hdr
from .images import MAX_PIXELS, Drawn, Format, encode
from .timed import check_codec, first_film, open_timed

_TRIES = 4  # frames, before a dull one is taken
_CONTRAST = 24  # of 255: less is black, white or a fade
_HD = 720  # lines: from there on colours are BT.709 when nothing else is said
_UNSPECIFIED = 2  # in the tables of ITU-T H.273
_TURNS = {
    1: Image.Transpose.ROTATE_90,
    2: Image.Transpose.ROTATE_180,
    3: Image.Transpose.ROTATE_270,
}


def draw(file: BinaryIO, pixels: int, format_: Format) -> Drawn:
    """A frame from the first part of a film, upright, square pixels, SDR; `pixels` bounds its
    longer side."""
    with open_timed(file) as container:
        film = first_film(container)
        if film is None:
            raise ValueError("there is no film in it")
        check_codec(film)
        if film.width * film.height > MAX_PIXELS:
            raise ValueError("its pictures are too large")
        film.codec_context.thread_count = 1  # each thread has frames of its own in memory
        return encode(_telling(container, film, pixels), format_)


def _telling(container: InputContainer, film: VideoStream, pixels: int) -> Image.Image:
    """The first picture with some contrast, else the last one tried."""
    picture = None
    for frame in itertools.islice(_frames(container, film), _TRIES):
        picture = _picture(frame, film, pixels)
        low, high = picture.convert("L").getextrema()
        if isinstance(low, int) and isinstance(high, int) and high - low >= _CONTRAST:
            break
    if picture is None:
        raise ValueError("no picture can be decoded")
    return picture


def _frames(container: InputContainer, film: VideoStream) -> Iterator[VideoFrame]:
    """Key frames from a tenth of the way on; then whatever there is from the start."""
    start = container.start_time or 0  # in µs, as the duration
    passes: tuple[tuple[int, Literal["NONKEY", "DEFAULT"]], ...] = (
        (start + (container.duration or 0) // 10, "NONKEY"),
        (start, "DEFAULT"),
    )
    for at, skipped in passes:
        film.codec_context.skip_frame = skipped
        with contextlib.suppress(FFmpegError):
            container.seek(at)
            yield from container.decode(film)


def _picture(frame: VideoFrame, film: VideoStream, pixels: int) -> Image.Image:
    wide = float(film.sample_aspect_ratio or 1)
    scale = min(1.0, pixels / max(frame.width * wide, frame.height))
    small = frame.reformat(
        width=max(1, round(frame.width * wide * scale)),
        height=max(1, round(frame.height * scale)),
        format="rgb24",
        src_colorspace=_colorspace(frame),
        dst_color_range=ColorRange.JPEG,
        interpolation=Interpolation.AREA,
    )
    coded = cast(Image.Image, small.to_image())  # pyright: ignore[reportUnknownMemberType] — untyped
    picture = hdr.to_sdr(coded, frame.color_trc)
    turn = _TURNS.get(round(frame.rotation / 90) % 4)  # both count counter-clockwise
    return picture if turn is None else picture.transpose(turn)


def _colorspace(frame: VideoFrame) -> int | None:
    unsaid = frame.colorspace == _UNSPECIFIED
    return Colorspace.ITU709 if unsaid and frame.height >= _HD else None
