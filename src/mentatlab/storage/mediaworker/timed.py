"""Sound and moving pictures."""

from typing import Any, BinaryIO

import av
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from .images import MAX_PIXELS

Found = dict[str, Any]

_FORMATS = (
    "aac,aiff,amr,asf,avi,flac,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,mpegvideo,"
    "ogg,w64,wav"
)
_OPTIONS = {
    "format_whitelist": _FORMATS,
    "protocol_whitelist": "none",  # the file object alone: nothing that a file names is opened
    "probesize": "5000000",  # bytes
    "analyzeduration": "5000000",  # µs
    "max_streams": "64",
    "max_pixels": str(MAX_PIXELS),
}


def open_timed(file: BinaryIO) -> InputContainer:
    if av.__version__ >= "19":  # which replaces tags in an old 8-bit encoding; older ones can
        return av.open(file, "r", options=_OPTIONS)
    return av.open(file, "r", options=_OPTIONS, metadata_errors="replace")


def probe(file: BinaryIO) -> Found:
    """`duration` in seconds; of the first video stream `width height fps codec`, of the first audio
    stream `sampleRate channels` and `codec` (`audioCodec` beside video). A cover is not a video."""
    with open_timed(file) as container:
        found: Found = {}
        if container.duration is not None and container.duration > 0:
            found["duration"] = round(container.duration / 1_000_000, 3)  # from µs
        if film := first_film(container):
            found |= {"width": film.width, "height": film.height, "codec": _codec(film)}
            if film.average_rate:
                found["fps"] = round(float(film.average_rate), 3)
        if sound := next(filter(_has_decoder, container.streams.audio), None):
            found |= {"sampleRate": sound.sample_rate, "channels": sound.channels}
            found["audioCodec" if film else "codec"] = _codec(sound)
        return found


def first_film(container: InputContainer) -> VideoStream | None:
    films = (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
    return next(filter(_has_decoder, films), None)


def _has_decoder(stream: Stream) -> bool:
    # None without one, against PyAV's stub
    return stream.codec_context is not None  # pyright: ignore[reportUnnecessaryComparison]


def _codec(stream: Stream) -> str:
    """The format's name (av1, mp3), whichever decoder reads it (libdav1d, mp3float)."""
    return stream.codec_context.codec.canonical_name
