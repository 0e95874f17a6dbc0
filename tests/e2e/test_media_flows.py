"""The sound and video flows of examples, through a real server and real agent processes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.api import Api, Json, api_of
from tests.support.server import up

ROOT = Path(__file__).parents[2]
MEDIA = ROOT / "examples" / "media"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with up(tmp_path_factory.mktemp("home")) as server, api_of(server) as api:
        yield api


def run(api: Api, flow: str, name: str, file: Path) -> Json:
    """The run when it has ended."""
    document = (ROOT / "examples" / flow).read_text()
    return api.run(document, **{name: api.upload(file.read_bytes())})


def outputs(api: Api, view: Json) -> Json:
    assert view["state"] == "succeeded", view
    return api.outputs(view["run_id"])


def test_speech(api: Api) -> None:
    view = run(api, "speech.mlab", "speech", MEDIA / "jfk.wav")
    found = outputs(api, view)
    text = " ".join(s["text"] for s in found["result.segments"])
    assert "ask not what your country can do for you" in re.sub(r"[^a-z ]", "", text.lower())
    assert found["result.language"] == "en"
    assert " --> " in found["result.subtitles"]
    assert found["result.vtt"].startswith("WEBVTT")
    assert found["live.transcript"]["chunks"] == len(found["result.segments"])


def test_clip(api: Api) -> None:
    view = run(api, "clip.mlab", "clip", MEDIA / "clip.mp4")
    found = outputs(api, view)
    cuts = json.loads((MEDIA / "clip.json").read_text())["cuts"]
    assert found["result.summary"]["cuts"] == pytest.approx(cuts, abs=0.001)
    assert found["result.contact_sheet"]["ref"]["metadata"]["mimeType"] == "image/jpeg"
    rows = found["result.boxes"]
    assert len(rows) == 6  # a frame every 2 s
    assert "person" in json.dumps(rows[2])  # 4 s: the astronaut
    samples, scenes = found["result.summary"]["samples"], len(cuts) + 1
    assert found["live.events"]["chunks"] == samples + scenes


def test_a_video_that_is_cut_off_fails_with_its_code(api: Api, tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes((MEDIA / "clip.mp4").read_bytes()[:20_000])  # the index and no whole picture
    view = run(api, "clip.mlab", "clip", path)
    assert (view["state"], view["error"]["code"]) == ("failed", "VIDEO_UNREADABLE")
