"""Makes `clip.mp4` from the photos beside it: slow pans with hard cuts at the times in `clip.json`.

python examples/media/make_clip.py [FOLDER]     # default: beside this file
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
from PIL import Image

HERE = Path(__file__).parent
WIDTH, HEIGHT, FPS = 640, 360, 25


class Shot(NamedTuple):
    photo: str
    frames: int
    start: tuple[float, float, float]  # centre x, centre y, width of the view; parts of the photo
    end: tuple[float, float, float]


SHOTS = (
    Shot("coffee.png", 60, (0.50, 0.50, 0.95), (0.55, 0.50, 0.75)),
    Shot("astronaut.jpg", 70, (0.50, 0.40, 1.00), (0.50, 0.30, 0.90)),
    Shot("chelsea.jpg", 60, (0.45, 0.50, 0.85), (0.55, 0.50, 0.85)),
    Shot("coffee.png", 60, (0.35, 0.65, 0.45), (0.60, 0.65, 0.45)),
    Shot("astronaut.jpg", 50, (0.30, 0.70, 0.50), (0.65, 0.70, 0.50)),
)


def pictures(shot: Shot) -> Iterator[Image.Image]:
    with Image.open(HERE / shot.photo) as file:
        photo = file.convert("RGB")
    for number in range(shot.frames):
        part = number / (shot.frames - 1)
        x, y, width = (a + (b - a) * part for a, b in zip(shot.start, shot.end, strict=True))
        half_width = width * photo.width / 2
        half_height = half_width * HEIGHT / WIDTH
        left = min(max(0.0, x * photo.width - half_width), photo.width - 2 * half_width)
        upper = min(max(0.0, y * photo.height - half_height), photo.height - 2 * half_height)
        box = (left, upper, left + 2 * half_width, upper + 2 * half_height)
        yield photo.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=box)


def write_clip(path: Path) -> None:
    with av.open(path, "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "25", "preset": "slow"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for shot in SHOTS:
            for picture in pictures(shot):
                container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))


def timetable() -> dict[str, object]:
    ends = [sum(shot.frames for shot in SHOTS[: i + 1]) / FPS for i in range(len(SHOTS))]
    photos = [shot.photo for shot in SHOTS]
    return {"fps": FPS, "duration": ends[-1], "cuts": ends[:-1], "photos": photos}


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    write_clip(folder / "clip.mp4")
    (folder / "clip.json").write_text(json.dumps(timetable(), indent=2) + "\n")
