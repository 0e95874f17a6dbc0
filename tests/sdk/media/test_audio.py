from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mentatlab.protocol.errors import Code, MentatError
from mentatlab.sdk.media.audio import SAMPLE_RATE, AudioInfo, _rechunk, open_audio  # pyright: ignore[reportPrivateUsage]
from mentatlab.sdk.media.container import Limits

Write = Callable[..., Path]


def tone(hertz: float, seconds: float, rate: int = 16_000) -> NDArray[np.int16]:
    times = np.arange(round(seconds * rate)) / rate
    return (np.sin(2 * np.pi * hertz * times) * 16_000).astype(np.int16)


def read(path: Path, limits: Limits | None = None) -> tuple[AudioInfo, NDArray[np.float32]]:
    with open_audio(path, limits or Limits()) as audio:
        return audio.info, np.concatenate(list(audio.blocks()))


def pitch(samples: NDArray[np.float32]) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * SAMPLE_RATE / len(samples))


@pytest.mark.parametrize(
    ("name", "codec", "rate", "layout"),
    [
        ("a.wav", "pcm_s16le", 16_000, "mono"),
        ("a.wav", "pcm_s24le", 48_000, "stereo"),
        ("a.wav", "pcm_f32le", 44_100, "mono"),
        ("a.wav", "pcm_mulaw", 8_000, "mono"),
        ("a.aiff", "pcm_s16be", 22_050, "stereo"),
        ("a.mp3", "libmp3lame", 44_100, "stereo"),
        ("a.flac", "flac", 96_000, "stereo"),
        ("a.ogg", "flac", 44_100, "stereo"),
        ("b.ogg", "libopus", 48_000, "mono"),
        ("a.m4a", "aac", 44_100, "stereo"),
        ("b.m4a", "alac", 44_100, "stereo"),
        ("a.webm", "libopus", 48_000, "stereo"),
        ("a.aac", "aac", 32_000, "mono"),
        ("a.mkv", "ac3", 48_000, "stereo"),
    ],
)
def test_every_listed_format(
    write_audio: Write, name: str, codec: str, rate: int, layout: str
) -> None:
    path = write_audio(name, tone(440, 2.0, rate), codec=codec, rate=rate, layout=layout)
    info, samples = read(path)
    assert info.sample_rate == (48_000 if codec == "libopus" else rate)
    assert info.channels == (1 if layout == "mono" else 2)
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(2 * SAMPLE_RATE, abs=0.15 * SAMPLE_RATE)  # codecs pad
    assert pitch(samples) == pytest.approx(440, abs=2)
    assert 0.3 < np.abs(samples).max() <= 1.0


def test_a_wav_at_16_khz_is_not_changed(media: Path) -> None:
    info, samples = read(media / "jfk.wav")
    assert info == AudioInfo("pcm_s16le", 16_000, 1, 11.0, 0.0)
    raw = np.frombuffer((media / "jfk.wav").read_bytes()[-352_000:], "<i2")
    assert np.array_equal(samples, raw.astype(np.float32) / 32768)


def test_the_sound_of_a_video(bunny: Path) -> None:
    info, samples = read(bunny)
    assert (info.codec, info.sample_rate) == ("aac", 48_000)
    assert len(samples) / SAMPLE_RATE == pytest.approx(5.31, abs=0.05)


def test_blocks_are_of_one_size_and_the_last_is_shorter(media: Path) -> None:
    with (media / "jfk.wav").open("rb") as file, open_audio(file) as audio:
        lengths = [len(block) for block in audio.blocks(2.0)]
    assert lengths == [32_000] * 5 + [16_000]


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 12))
def test_rechunk_keeps_every_sample(lengths: list[int], size: int) -> None:
    whole = np.arange(sum(lengths), dtype=np.float32)
    parts = np.split(whole, np.cumsum(lengths)[:-1]) if lengths else []
    blocks = list(_rechunk(iter(parts), size))
    assert [len(b) for b in blocks[:-1]] == [size] * (len(blocks) - 1)
    assert all(0 < len(b) <= size for b in blocks)
    assert np.array_equal(np.concatenate([*blocks, whole[:0]]), whole)


def test_tags_that_are_not_utf_8(write_audio: Write) -> None:
    path = write_audio("a.wav", tone(440, 1))
    data, tag = path.read_bytes(), b"INFOINAM\x04\0\0\0caf\xe9"
    size = len(data) - 8 + len(tag) + 8
    head = b"RIFF" + size.to_bytes(4, "little") + data[8:]
    path.write_bytes(head + b"LIST" + len(tag).to_bytes(4, "little") + tag)
    assert len(read(path)[1]) == SAMPLE_RATE
    path.write_bytes(head[:12] + b"LIST" + len(tag).to_bytes(4, "little") + tag + head[12:])
    assert len(read(path)[1]) == SAMPLE_RATE


def test_a_track_that_starts_late_says_when(tmp_path: Path) -> None:
    path = tmp_path / "late.mkv"
    with av.open(path, "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for _ in range(50):
            container.mux(video.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(tone(440, 1)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16_000, 8_000, Fraction(1, 16_000)
        container.mux([*sound.encode(frame), *sound.encode(None)])
    info, samples = read(path)
    assert info.start_s == pytest.approx(0.5, abs=0.01)
    assert len(samples) == SAMPLE_RATE


def test_a_format_that_changes_in_mid_stream(tmp_path: Path, write_audio: Write) -> None:
    """Two MPEG-TS recordings, one after the other, as broadcasters do."""
    parts = [
        write_audio("a.ts", tone(440, 1, 48_000), codec="mp2", rate=48_000, layout="stereo"),
        write_audio("b.ts", tone(440, 1, 32_000), codec="mp2", rate=32_000, layout="mono"),
    ]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(p.read_bytes() for p in parts))
    _, samples = read(path)
    assert len(samples) == pytest.approx(2 * SAMPLE_RATE, rel=0.1)
    assert pitch(samples[-8000:]) == pytest.approx(440, abs=5)


def refusal(path: Path, limits: Limits | None = None) -> Code:
    with pytest.raises(MentatError) as caught:
        read(path, limits)
    return caught.value.code


def test_a_video_without_sound(write_video: Write) -> None:
    assert refusal(write_video()) == Code.NO_AUDIO_STREAM


@pytest.mark.parametrize("data", [b"", b"<html></html>", b"RIFF\x10\x00\x00\x00WAVEjunkjunk"])
def test_other_bytes_are_unreadable(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(data)
    assert refusal(path) in (Code.AUDIO_UNREADABLE, Code.NO_AUDIO_STREAM)


def test_a_codec_that_is_not_listed(write_audio: Write) -> None:
    path = write_audio("a.wav", tone(440, 1), codec="adpcm_ima_wav")
    assert refusal(path) == Code.AUDIO_UNREADABLE


def test_no_sample_at_all(write_audio: Write) -> None:
    path = write_audio("a.wav", tone(440, 1))
    path.write_bytes(path.read_bytes()[:-32_000])
    assert refusal(path) == Code.AUDIO_UNREADABLE


def test_too_long(write_audio: Write) -> None:
    path = write_audio("a.wav", tone(440, 2))
    assert refusal(path, Limits(max_duration_s=1.5)) == Code.MEDIA_TOO_LONG
    data = path.read_bytes()
    start = data.index(b"data") + 4
    path.write_bytes(data[:start] + b"\xff\xff\xff\xff" + data[start + 4 :])  # claims nothing
    assert refusal(path, Limits(max_duration_s=1.5)) == Code.MEDIA_TOO_LONG


def test_a_truncated_tail_gives_what_is_there(write_audio: Write) -> None:
    path = write_audio("a.mp3", tone(440, 4), codec="libmp3lame")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    _, samples = read(path)
    assert len(samples) / SAMPLE_RATE == pytest.approx(2, abs=0.3)
