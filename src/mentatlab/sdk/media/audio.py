"""Any accepted audio → 16 kHz mono float32, block by block: an hour takes a second's memory."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from mentatlab.protocol.errors import Code, Invalid, UnsupportedMedia
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
)

Samples = NDArray[np.float32]
"""Shape (n,), mono, 16 kHz, in [-1, 1]."""

SAMPLE_RATE = 16_000  # Hz; what Whisper and Silero VAD take

CODECS = frozenset(
    """
    aac ac3 alac eac3 flac libopus libvorbis mp2 mp2float mp3 mp3float opus vorbis pcm_alaw
    pcm_f32le pcm_f64le pcm_mulaw pcm_s16be pcm_s16le pcm_s24le pcm_s32le pcm_u8
    """.split()  # noqa: SIM905  a list literal takes a line a codec
)
"""Names of FFmpeg decoders."""


@dataclass(frozen=True)
class AudioInfo:
    codec: str
    sample_rate: int  # Hz, of the source
    channels: int  # of the source
    duration_s: float | None  # as the container claims
    start_s: float  # when the first sample sounds, on the medium's clock


class Audio:
    """An open medium; `blocks` may be read once."""

    def __init__(self, container: InputContainer, stream: AudioStream, limits: Limits) -> None:
        self._container = container
        self._stream = stream
        self._limits = limits
        self.damage = Damage()
        self.info = _info(container, stream)

    def blocks(self, seconds: float = 1.0) -> Iterator[Samples]:
        """Blocks of exactly `seconds`, the last one shorter. Broken packets are left out.

        Raises `UnsupportedMedia(AUDIO_UNREADABLE)` when not one sample could be decoded,
        `TooLarge(MEDIA_TOO_LONG)` past the limit.
        """
        size, total = round(seconds * SAMPLE_RATE), 0
        for block in _rechunk(self._resampled(), size):
            total += len(block)
            check_time(total / SAMPLE_RATE, self._limits)
            yield block
        if not total:
            raise UnsupportedMedia(
                Code.AUDIO_UNREADABLE,
                "no sound could be decoded",
                hint="the file is damaged or empty; export it again",
            )

    def _resampled(self) -> Iterator[Samples]:
        resampler = _Resampler()
        for frame in decode(self._container, self._stream, self.damage):
            yield from resampler.push(frame)
        yield from resampler.flush()


@contextmanager
def open_audio(source: Source, limits: Limits = DEFAULT_LIMITS) -> Generator[Audio]:
    """The first sound track of a path or a binary file object.

    Raises `UnsupportedMedia(AUDIO_UNREADABLE)` for other bytes, `Invalid(NO_AUDIO_STREAM)` for a
    medium without sound, `TooLarge` over the limits.
    """
    with open_media(source, limits, Code.AUDIO_UNREADABLE) as container:
        if not container.streams.audio:
            raise Invalid(
                Code.NO_AUDIO_STREAM,
                "the medium has no sound track",
                hint="give a file that has one",
            )
        stream = container.streams.audio[0]
        check_codec(stream, CODECS, Code.AUDIO_UNREADABLE)
        check_time(duration_of(container) or 0.0, limits)
        yield Audio(container, stream, limits)


def _info(container: InputContainer, stream: AudioStream) -> AudioInfo:
    start = float((stream.start_time or 0) * (stream.time_base or 0))
    return AudioInfo(
        codec=stream.codec_context.codec.canonical_name,
        sample_rate=stream.codec_context.sample_rate,
        channels=stream.codec_context.channels,
        duration_s=duration_of(container),
        start_s=max(0.0, start - start_of(container)),
    )


class _Resampler:
    """One FFmpeg resampler, replaced when the source changes its format in mid-stream."""

    def __init__(self) -> None:
        self._source: tuple[str, str, int] | None = None
        self._resampler: AudioResampler | None = None

    def push(self, frame: AudioFrame) -> Iterator[Samples]:
        source = (frame.format.name, frame.layout.name, frame.sample_rate)
        if source != self._source:
            yield from self.flush()
            self._source = source
            self._resampler = AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        frame.pts = None  # timestamps that jump are the source's affair, not the resampler's
        yield from self._run(frame)

    def flush(self) -> Iterator[Samples]:
        yield from self._run(None)
        self._resampler = None

    def _run(self, frame: AudioFrame | None) -> Iterator[Samples]:
        if self._resampler is not None:
            for out in self._resampler.resample(frame):
                yield out.to_ndarray().astype(np.float32, copy=False).reshape(-1)


def _rechunk(parts: Iterator[Samples], size: int) -> Iterator[Samples]:
    """The same samples in arrays of `size`, the last one shorter."""
    held: list[Samples] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part)
        if count >= size:
            whole = np.concatenate(held)
            cut = count - count % size
            yield from np.split(whole[:cut], cut // size)
            held, count = [whole[cut:]], count - cut
    if count:
        yield np.concatenate(held)
