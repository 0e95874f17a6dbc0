"""Sound and moving pictures."""

from typing import Any, BinaryIO

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from .images import MAX_PIXELS

Found = dict[str, Any]

_FORMATS = (
    "aac,aiff,amr,asf,avi,flac,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,mpegvideo,"
    "ogg,w64,wav"
)
_CODECS = (
    # moving pictures
    "av1,libdav1d,cinepak,dnxhd,dvvideo,ffv1,flv,h263,h264,hevc,huffyuv,mjpeg,mpeg1video,"
    "mpeg2video,mpeg4,msmpeg4,msmpeg4v1,msmpeg4v2,png,prores,rawvideo,svq1,svq3,theora,vc1,vp6f,"
    "vp8,libvpx,vp9,libvpx-vp9,wmv1,wmv2,wmv3,"
    # sound
    "aac,aac_latm,ac3,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,alac,amrnb,amrwb,libopencore_amrnb,"
    "libopencore_amrwb,dca,eac3,flac,gsm,gsm_ms,mp1,mp1float,mp2,mp2float,mp3,mp3float,nellymoser,"
    "opus,libopus,pcm_alaw,pcm_f32be,pcm_f32le,pcm_f64be,pcm_f64le,pcm_mulaw,pcm_s16be,pcm_s16le,"
    "pcm_s24be,pcm_s24le,pcm_s32be,pcm_s32le,pcm_s8,pcm_u8,speex,vorbis,libvorbis,wmapro,wmav1,"
    "wmav2"
)
_OPTIONS = {
    "format_whitelist": _FORMATS,
    "codec_whitelist": _CODECS,
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
            if not film.width:  # nothing of it could be read
                raise ValueError("its pictures have no size")
            found |= {"width": film.width, "height": film.height, "codec": _codec(film)}
            if film.average_rate:
                found["fps"] = round(float(film.average_rate), 3)
        if sound := first_sound(container):
            found |= {"sampleRate": sound.sample_rate, "channels": sound.channels}
            found["audioCodec" if film else "codec"] = _codec(sound)
        return found


def first_film(container: InputContainer) -> VideoStream | None:
    films = (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
    return next(filter(_has_decoder, films), None)


def first_sound(container: InputContainer) -> AudioStream | None:
    return next(filter(_has_decoder, container.streams.audio), None)


def check_codec(stream: Stream) -> None:
    """Before anything of it is decoded."""
    if stream.codec_context.name not in _CODECS.split(","):
        raise ValueError(f"{_codec(stream)} is not decoded here")


def _has_decoder(stream: Stream) -> bool:
    # None without one, against PyAV's stub
    return stream.codec_context is not None  # pyright: ignore[reportUnnecessaryComparison]


def _codec(stream: Stream) -> str:
    """The format's name (av1, mp3), whichever decoder reads it (libdav1d, mp3float)."""
    return stream.codec_context.codec.canonical_name
