"""Opening untrusted audio and video with FFmpeg: allow-lists and limits before the first decode.

Bytes are never trusted: only listed containers are probed, no protocol but `file` is followed (a
playlist cannot name another file or host), and the decoder's name is checked before it runs.
"""

import errno
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast, overload

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mentatlab.protocol.errors import Code, TooLarge, UnsupportedMedia

FORMATS = "mov,matroska,avi,mpegts,mpeg,ogg,wav,aiff,mp3,flac,aac"
"""FFmpeg demuxers: MP4/MOV/M4A, MKV/WebM, AVI, MPEG, OGG, WAV, AIFF, MP3, FLAC, ADTS."""

Source = str | Path | BinaryIO


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a medium may be; over it `TooLarge(MEDIA_TOO_LARGE | MEDIA_TOO_LONG)` is raised."""

    max_streams: int = 8
    max_width: int = 8192  # px; width and height may be swapped (upright clips)
    max_height: int = 4320  # px
    max_fps: float = 240.0
    max_duration_s: float = 6 * 3600.0

    @property
    def max_pixels(self) -> int:
        return self.max_width * self.max_height


DEFAULT_LIMITS = Limits()


@dataclass(slots=True)
class Damage:
    """Packets that could not be read or decoded; they are left out, the rest is used."""

    packets: int = 0


@contextmanager
def open_media(source: Source, limits: Limits, unreadable: Code) -> Generator[InputContainer]:
    """`UnsupportedMedia(unreadable)` when the bytes are of no listed container."""
    options = {
        "format_whitelist": FORMATS,
        "protocol_whitelist": "file",
        "max_pixels": str(limits.max_pixels),  # probing decodes, too
    }
    location = f"file:{source}" if isinstance(source, str | Path) else source
    try:
        container = _open(location, options)
    except FileNotFoundError:
        raise
    except FFmpegError as error:
        raise _unreadable(unreadable) from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # FFmpeg seeks before the start of a file object that is too short to be a medium
        raise _unreadable(unreadable) from error
    with container:
        if len(container.streams) > limits.max_streams:
            raise TooLarge(
                Code.MEDIA_TOO_LARGE,
                f"{len(container.streams)} streams are over {limits.max_streams}",
                hint="keep one picture and one sound track",
            )
        yield container


def _open(location: str | BinaryIO, options: dict[str, str]) -> InputContainer:
    """Tags in an old 8-bit encoding are no reason to refuse a medium; PyAV 19 always replaces."""
    if av.__version__ >= "19":
        return av.open(location, "r", options=options)
    return av.open(location, "r", options=options, metadata_errors="replace")


def _unreadable(code: Code) -> UnsupportedMedia:
    return UnsupportedMedia(
        code,
        "the bytes are no audio or video in a container that is accepted here",
        hint="use MP4, MOV, M4A, MKV, WebM, AVI, MPEG, OGG, WAV, AIFF, MP3, FLAC or AAC",
    )


def check_codec(stream: Stream, allowed: frozenset[str], unreadable: Code) -> None:
    """Before the first decode: the decoder that FFmpeg picked must be on the list."""
    context = stream.codec_context
    # FFmpeg without a decoder for the stream gives None, against PyAV's stub
    name = context.name if context else "unknown"  # pyright: ignore[reportUnnecessaryComparison]
    if name not in allowed:
        raise UnsupportedMedia(
            unreadable,
            f"codec {name!r} is not accepted",
            hint="convert to H.264 with AAC, or VP9 with Opus",
        )


def check_time(time_s: float, limits: Limits) -> None:
    if time_s > limits.max_duration_s:
        raise TooLarge(
            Code.MEDIA_TOO_LONG,
            f"the medium is longer than {limits.max_duration_s:g} s",
            hint="cut it into shorter pieces",
        )


def duration_of(container: InputContainer) -> float | None:
    """Seconds, as the container claims; None when it does not say."""
    return container.duration / av.time_base if container.duration else None


def track_duration_of(stream: Stream) -> float | None:
    return (
        float(stream.duration * stream.time_base) if stream.duration and stream.time_base else None
    )


def start_of(container: InputContainer) -> float:
    """Seconds on the container's clock where players begin to count."""
    # None for raw streams, against PyAV's stub
    return (container.start_time or 0) / av.time_base


@overload
def decode(
    container: InputContainer, stream: AudioStream, damage: Damage
) -> Iterator[AudioFrame]: ...
@overload
def decode(
    container: InputContainer, stream: VideoStream, damage: Damage
) -> Iterator[VideoFrame]: ...
def decode(
    container: InputContainer, stream: AudioStream | VideoStream, damage: Damage
) -> Iterator[AudioFrame | VideoFrame]:
    """Frames in display order, to the end of what can be read."""
    packets: Iterator[Packet[Stream]] = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except FFmpegError:
            damage.packets += 1
            return
        if packet is None:
            return
        try:
            frames = cast(list[AudioFrame | VideoFrame], packet.decode())
        except FFmpegError:
            damage.packets += 1
        else:
            yield from frames
