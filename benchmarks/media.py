"""Video and speech on this machine, beside what FFmpeg alone does.

    python -m benchmarks media

Nothing is asserted: the numbers depend on the machine and on what else it does.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image

from benchmarks.table import Row
from mentatlab.sdk.media.audio import SAMPLE_RATE, Samples, open_audio
from mentatlab.sdk.media.detection import Detector
from mentatlab.sdk.media.sampling import Ticker, judged
from mentatlab.sdk.media.scenes import SceneDetector, window_for
from mentatlab.sdk.media.speech import FRAME, VoiceActivity, utterances
from mentatlab.sdk.media.video import Scaler, open_video
from mentatlab.sdk.media.whisper import Whisper
from mentatlab.sdk.models import find_model

MEDIA = Path(__file__).parents[1] / "examples" / "media"
PHOTOS = ("coffee.png", "astronaut.jpg", "chelsea.jpg")
SHOTS, FRAMES_A_SHOT = 12, 75
ROUNDS = 3


async def run() -> list[Row]:
    return await asyncio.to_thread(_measure)


def _measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "pans.mp4"
        _write_pans(video)
        rows = [
            Row("1080p H.264, FFmpeg's decoding alone", _best(lambda: _decode(video)), "frames/s"),
            Row("1080p, decoding and cuts", _best(lambda: _cuts(video)), "frames/s"),
            Row("1080p, and objects once a second", _best(_objects(video)), "frames/s"),
        ]
    return [*rows, Row("speech, Whisper tiny.en", _transcription(), "times real time")]


def _write_pans(path: Path) -> None:
    """1920×1080, 25 fps, 36 s: photos that move, with a cut every 3 s."""
    photos = [Image.open(MEDIA / name).convert("RGB").resize((2400, 1400)) for name in PHOTOS]
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for shot in range(SHOTS):
            for i in range(FRAMES_A_SHOT):
                view = photos[shot % 3].crop((4 * i, 3 * i, 4 * i + 1920, 3 * i + 1080))
                container.mux(stream.encode(av.VideoFrame.from_image(view)))
        container.mux(stream.encode(None))


def _best(work: Callable[[], object]) -> float:
    """Frames a second of the fastest round."""
    seconds: list[float] = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return SHOTS * FRAMES_A_SHOT / min(seconds)


def _decode(path: Path) -> None:
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for _ in container.decode(stream):
            pass


def _cuts(path: Path) -> None:
    with open_video(path) as video:
        detector = SceneDetector(window=window_for(video.info.fps))
        for _ in judged(video.frames(), detector, Scaler().planes):
            pass


def _objects(path: Path) -> Callable[[], None]:
    model = Detector(find_model("nanodet-416"))

    def work() -> None:
        with open_video(path) as video:
            scaler, ticker = Scaler(), Ticker(1.0)
            detector = SceneDetector(window=window_for(video.info.fps))
            for frame, _ in judged(video.frames(), detector, scaler.planes):
                if ticker.due(frame.time_s):
                    model.detect(scaler.picture(frame, 640))

    return work


def _transcription() -> float:
    """Of a minute and a half of speech without pauses; the model is loaded before."""
    whisper = Whisper(find_model("whisper-tiny.en"))
    vad = VoiceActivity.load(find_model("silero-vad"))
    with open_audio(MEDIA / "jfk.wav") as audio:
        sound: Samples = np.concatenate([*audio.blocks()] * 8)
    blocks = np.split(sound, range(32 * FRAME, len(sound), 32 * FRAME))
    start = time.perf_counter()
    for start_s, samples in utterances(blocks, VoiceActivity(vad)):
        whisper.transcribe(samples, "en", offset_s=start_s)
    return len(sound) / SAMPLE_RATE / (time.perf_counter() - start)
