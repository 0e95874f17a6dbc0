"""Waveforms of any length in flat memory."""

import io
import itertools
import math
import wave
from array import array
from typing import cast

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mentatlab.storage.mediaworker import waveforms
from mentatlab.storage.mediaworker.waveforms import Envelope

RATE = 8000


def wav(samples: list[float], channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as made:
        made.setparams((channels, 2, RATE, 0, "NONE", ""))
        made.writeframes(array("h", [round(32767 * value) for value in samples]).tobytes())
    return file.getvalue()


def tone(seconds: float, loud: float) -> list[float]:
    return [loud * math.sin(2 * math.pi * 440 * n / RATE) for n in range(round(seconds * RATE))]


def heights(data: bytes, pixels: int = 64) -> list[int]:
    """Of the coloured part of each column."""
    image = Image.open(io.BytesIO(waveforms.draw(io.BytesIO(data), pixels, "png").body))
    assert image.size == (pixels, pixels // 4)
    alpha = image.getchannel("A")
    return [
        sum(1 for y in range(image.height) if cast(int, alpha.getpixel((x, y))) > 0)
        for x in range(image.width)
    ]


def test_loud_is_high_and_soft_is_low() -> None:
    found = heights(wav([*tone(0.5, 0.9), *tone(0.5, 0.3), *tone(0.5, 0)]), 96)
    assert min(found[2:30]) >= 22
    assert all(6 <= height <= 11 for height in found[34:62])
    assert set(found[66:]) == {1}


def test_the_loudest_reaches_the_edge_and_silence_is_a_line() -> None:
    assert max(heights(wav(tone(1, 0.01)))) == 16
    assert set(heights(wav([0.0] * RATE))) == {1}


def test_few_samples_are_stretched() -> None:
    assert heights(wav([0.5, -0.5, 0.5])) == [16] * 64


def test_all_channels_are_mixed() -> None:
    left_only = [value for sample in tone(0.5, 0.5) for value in (sample, 0.0)]
    assert min(heights(wav(left_only, channels=2))) > 10


def test_a_film_has_one_too_and_one_without_sound_has_none() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.mux([*stream.encode(av.VideoFrame(64, 64, "yuv420p")), *stream.encode(None)])
    with pytest.raises(ValueError, match="no sound"):
        waveforms.draw(io.BytesIO(file.getvalue()), 64, "png")


def test_no_samples_are_no_sound() -> None:
    with pytest.raises(ValueError, match="no sound"):
        waveforms.draw(io.BytesIO(wav([])), 64, "png")


@pytest.mark.parametrize(
    ("format_", "codec"),
    [("mp3", "libmp3lame"), ("flac", "flac"), ("ogg", "libopus"), ("adts", "aac")],
)
def test_compressed_sound_and_damage_in_the_middle(format_: str, codec: str) -> None:
    file = io.BytesIO()
    rate = 48000
    with av.open(file, "w", format=format_) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        resampler = av.AudioResampler(
            format=stream.format, layout="mono", rate=rate, frame_size=stream.frame_size or 1024
        )
        whole = av.AudioFrame("flt", "mono", rate)
        samples = array("f", [0.5 * math.sin(n / 20) for n in range(rate)])
        whole.planes[0].update(samples.tobytes())
        whole.sample_rate = rate
        for frame in [*resampler.resample(whole), *resampler.resample(None)]:
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = bytearray(file.getvalue())
    assert min(heights(bytes(data))[4:60]) >= 14
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(range(200))
    assert max(heights(bytes(data))) > 8  # the rest is heard


samples = st.lists(st.floats(-1, 1, width=32), max_size=3000)


@given(samples=samples, cuts=st.lists(st.integers(0, 3000), max_size=5), spans=st.integers(1, 20))
def test_an_envelope_is_that_of_the_whole_however_it_comes(
    samples: list[float], cuts: list[int], spans: int
) -> None:
    envelope, data = Envelope(spans), array("f", samples).tobytes()
    bounds = sorted({0, len(data), *(4 * cut for cut in cuts if cut < len(samples))})
    for start, stop in itertools.pairwise(bounds):
        envelope.add(data[start:stop])
    found = envelope.bounds()
    assert len(found) <= 2 * spans
    if samples:
        assert min(low for low, _ in found) == min(samples)
        assert max(high for _, high in found) == max(samples)
    whole = Envelope(spans)
    whole.add(data)
    assert whole.bounds() == found


def test_what_is_no_number_is_bounded() -> None:
    envelope = Envelope(4)
    envelope.add(array("f", [math.inf, -math.inf, math.nan, 1e30]).tobytes())
    (found,) = envelope.bounds()
    assert -1 <= found.low <= found.high <= 1
