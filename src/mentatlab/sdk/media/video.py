"""Video, frame by frame, by presentation time: opened safely, within limits, flat in memory.

Times are seconds on the medium's clock (its container's start is 0), taken from PTS, never from
index / fps: frame rates vary, tracks start late, edit lists cut.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from mentatlab.protocol.errors import Code, Invalid, TooLarge, UnsupportedMedia
from mentatlab.sdk.media import scenes
from mentatlab.sdk.media.container import (
    DEFAULT_LIMITS,
    Damage,
    Limits,
    Source,
    check_codec,
    check_time,
    decode,
    duration_of,
    open_media,
    start_of,
    track_duration_of,
)
from mentatlab.sdk.media.images import Picture

CODECS = frozenset(
    """
    av1 h263 h264 hevc libdav1d libvpx libvpx-vp9 mjpeg mpeg1video mpeg2video mpeg4 msmpeg4v3
    prores theora vp8 vp9
    """.split()  # noqa: SIM905  a list literal takes a line a codec
)
"""Names of FFmpeg decoders."""

_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED


@dataclass(frozen=True)
class VideoInfo:
    codec: str
    width: int  # px, as coded: before rotation and pixel aspect
    height: int  # px
    fps: float | None  # average, as the container claims; None when it does not say
    duration_s: float | None  # of the track, else of the container, as the file claims


@dataclass(frozen=True, slots=True)
class Frame:
    """`raw` is FFmpeg's own; hold few of them at a time."""

    index: int  # of decoded frames, from 0
    time_s: float
    key: bool
    raw: VideoFrame
    pixel_aspect: float  # width of a pixel / its height


class Video:
    """An open medium; `frames` may be read once."""

    def __init__(self, container: InputContainer, stream: VideoStream, limits: Limits) -> None:
        self._container = container
        self._stream = stream
        self._limits = limits
        self.damage = Damage()
        self.info = _info(container, stream)
        self._check(self.info.width, self.info.height)

    def frames(self, *, keyframes_only: bool = False) -> Iterator[Frame]:
        """In display order. Broken packets are left out and counted in `damage`.

        Raises `UnsupportedMedia(VIDEO_UNREADABLE)` when not one frame could be decoded, `TooLarge`
        past the limits: size and time are checked at every frame, they may change in mid-stream.
        """
        if keyframes_only:
            self._stream.codec_context.skip_frame = "NONKEY"
        clock = _Clock(self._stream, start_of(self._container), self.info.fps or 25.0)
        aspect = float(self._stream.sample_aspect_ratio or 1)
        index = -1
        for index, raw in enumerate(decode(self._container, self._stream, self.damage)):
            self._check(raw.width, raw.height)
            time_s = clock.time_of(raw)
            check_time(time_s, self._limits)
            yield Frame(index, time_s, raw.key_frame, raw, aspect)
        if index < 0:
            raise UnsupportedMedia(
                Code.VIDEO_UNREADABLE,
                "no picture could be decoded",
                hint="the file is damaged or empty; export it again",
            )

    def _check(self, width: int, height: int) -> None:
        limits = self._limits
        if max(width, height) > limits.max_width or min(width, height) > limits.max_height:
            raise TooLarge(
                Code.MEDIA_TOO_LARGE,
                f"{width}×{height} px are over {limits.max_width}×{limits.max_height}",
                hint="scale it down: ffmpeg -i IN -vf scale=1920:-2 out.mp4",
            )
        if (self.info.fps or 0) > limits.max_fps:
            raise TooLarge(
                Code.MEDIA_TOO_LARGE,
                f"{self.info.fps:g} frames per second are over {limits.max_fps:g}",
                hint="lower the frame rate: ffmpeg -i IN -r 60 out.mp4",
            )


@contextmanager
def open_video(source: Source, limits: Limits = DEFAULT_LIMITS) -> Generator[Video]:
    """The first real video track (no cover picture) of a path or a binary file object.

    Raises `UnsupportedMedia(VIDEO_UNREADABLE)` for other bytes, `Invalid(NO_VIDEO_STREAM)` for a
    medium without pictures, `TooLarge` over the limits.
    """
    with open_media(source, limits, Code.VIDEO_UNREADABLE) as container:
        moving = [
            s for s in container.streams.video if not s.disposition & Disposition.attached_pic
        ]
        if not moving:
            raise Invalid(
                Code.NO_VIDEO_STREAM,
                "the medium has no video track",
                hint="give a video; for sound alone use an audio agent",
            )
        stream = moving[0]
        check_codec(stream, CODECS, Code.VIDEO_UNREADABLE)
        check_time(duration_of(container) or 0.0, limits)
        stream.thread_type = "AUTO"  # default threading is 1.65× slower
        yield Video(container, stream, limits)


def _info(container: InputContainer, stream: VideoStream) -> VideoInfo:
    return VideoInfo(
        codec=stream.codec_context.codec.canonical_name,
        width=stream.codec_context.width,
        height=stream.codec_context.height,
        fps=float(stream.average_rate) if stream.average_rate else None,
        duration_s=track_duration_of(stream) or duration_of(container),
    )


class _Clock:
    """Presentation times; a frame without a timestamp comes one frame after the last."""

    def __init__(self, stream: VideoStream, start_s: float, fps: float) -> None:
        self._base = stream.time_base or Fraction(1, 1000)
        self._start_s = start_s
        self._next_s = 0.0
        self._step_s = 1 / fps

    def time_of(self, raw: VideoFrame) -> float:
        stamp = raw.pts if raw.pts is not None else raw.dts
        time_s = self._next_s if stamp is None else float(stamp * self._base) - self._start_s
        self._next_s = time_s + self._step_s
        return time_s


class Scaler:
    """Pictures of frames. Each output keeps one swscale context while the source stays the same."""

    def __init__(self) -> None:
        self._small = VideoReformatter()
        self._rgb = VideoReformatter()

    def planes(self, frame: Frame) -> scenes.Planes:
        """(54, 64) uint8, YUV 4:2:0: what `scenes.SceneDetector` compares. Fast before all."""
        small = self._small.reformat(
            frame.raw,
            scenes.WIDTH,
            scenes.HEIGHT,
            "yuv420p",
            interpolation=Interpolation.FAST_BILINEAR,
        )
        return np.asarray(small.to_ndarray(), dtype=np.uint8)

    def picture(self, frame: Frame, max_side: int | None = None) -> Picture:
        """As it is to be seen: upright, square pixels, no side longer than `max_side` px."""
        raw = frame.raw
        full = _upright((max(1, round(raw.width * frame.pixel_aspect)), raw.height), raw.rotation)
        factor = min(1.0, max_side / max(full)) if max_side else 1.0
        size = (max(1, round(full[0] * factor)), max(1, round(full[1] * factor)))
        width, height = _upright(size, raw.rotation)  # before it is turned
        scaled = self._rgb.reformat(
            raw,
            width,
            height,
            "rgb24",
            src_colorspace=_colour_matrix(raw),
            interpolation=Interpolation.BILINEAR,
        )
        pixels = np.asarray(scaled.to_ndarray(), dtype=np.uint8)
        turned = np.ascontiguousarray(np.rot90(pixels, round(raw.rotation / 90)))
        return Picture(Image.fromarray(turned), full)


def _upright(size: tuple[int, int], rotation: int) -> tuple[int, int]:
    """`rotation` in degrees counter-clockwise, as FFmpeg tells it; quarter turns swap the sides."""
    return (size[1], size[0]) if round(rotation / 90) % 2 else size


def _colour_matrix(raw: VideoFrame) -> int:
    """The frame's own; where it does not say, BT.709 for HD and BT.601 below, as players do."""
    if raw.colorspace != _UNSPECIFIED:
        return raw.colorspace
    return Colorspace.ITU709 if raw.height >= 720 else Colorspace.ITU601
