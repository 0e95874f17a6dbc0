"""The process that opens untrusted media: reads `{"path", "family"}` lines, writes JSON lines.

Run as a file (`python -P probe_worker.py`), so that it imports nothing of the server. It ends at
the end of its input, so no orphan outlives a killed server. Limits: 1 GiB of address space, and 5 s
of CPU for one order, enforced by SIGXCPU; the parent adds the wall clock.
"""

import contextlib
import json
import resource
import sys
import warnings
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from av.stream import Stream

Found = dict[str, Any]

MAX_PIXELS = 50_000_000
_ADDRESS_SPACE = 1 << 30  # bytes
_CPU = 5  # seconds
_FORMATS = (
    "aac,aiff,amr,asf,avi,flac,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,mpegvideo,"
    "ogg,w64,wav"
)
_IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP")
_PROBE_SIZE = {"probesize": "5000000", "analyzeduration": "5000000"}  # bytes, µs


def probe(path: str, family: Literal["image", "audio", "video"]) -> Found:
    return probe_image(path) if family == "image" else probe_timed(path)


def probe_image(path: str) -> Found:
    """`width height codec` of an image, from its header; over 50 Mpx is an error."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=_IMAGE_FORMATS) as image:
            return {
                "width": image.width,
                "height": image.height,
                "codec": str(image.format).lower(),
            }


def probe_timed(path: str) -> Found:
    """`duration` in seconds; of the first video stream `width height fps codec`, of the first audio
    stream `sampleRate channels` and `codec` (`audioCodec` beside video). A cover is not a video."""
    import av
    from av.stream import Disposition

    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file", **_PROBE_SIZE}
    if av.__version__ >= "19":  # which replaces tags in an old 8-bit encoding; older ones can
        opened = av.open(path, options=options)
    else:
        opened = av.open(path, options=options, metadata_errors="replace")
    with opened as container:
        found: Found = {}
        if container.duration is not None and container.duration > 0:
            found["duration"] = round(container.duration / 1_000_000, 3)  # from µs
        films = (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
        if film := next(filter(_has_decoder, films), None):
            found |= {"width": film.width, "height": film.height, "codec": _codec(film)}
            if film.average_rate:
                found["fps"] = round(float(film.average_rate), 3)
        if sound := next(filter(_has_decoder, container.streams.audio), None):
            found |= {"sampleRate": sound.sample_rate, "channels": sound.channels}
            found["audioCodec" if film else "codec"] = _codec(sound)
        return found


def _has_decoder(stream: "Stream") -> bool:
    # None without one, against PyAV's stub
    return stream.codec_context is not None  # pyright: ignore[reportUnnecessaryComparison]


def _codec(stream: "Stream") -> str:
    """The format's name (av1, mp3), whichever decoder reads it (libdav1d, mp3float)."""
    return stream.codec_context.codec.canonical_name


def _limit_memory() -> None:
    with contextlib.suppress(ValueError, OSError):  # macOS refuses
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_cpu() -> None:
    """5 s from now: the limit counts the whole life of the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + _CPU
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))


def answer(line: str) -> Found:
    order = json.loads(line)
    try:
        return probe(order["path"], order["family"])
    except Exception as error:  # noqa: BLE001 — any decoder error is the answer
        return {"probeError": _reason(error, order["path"])}


def _reason(error: Exception, path: str) -> str:
    """Clients read it: it names no folder of the server."""
    said = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {said.replace(f' {path!r}', '')}"[:300]


def main() -> None:
    _limit_memory()
    for line in sys.stdin:
        _limit_cpu()
        print(json.dumps(answer(line)), flush=True)


if __name__ == "__main__":
    main()
