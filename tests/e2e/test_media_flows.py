"""The sound and video flows of examples, through a real server and real agent processes."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

ROOT = Path(__file__).parents[2]
MEDIA = ROOT / "examples" / "media"
DEADLINE_S = 90


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    home = tmp_path_factory.mktemp("home")
    process = subprocess.Popen(
        [sys.executable, "-m", "mentatlab", "up", "--port", "0"],
        env={**os.environ, "MENTATLAB_HOME": str(home)},
        stdout=subprocess.DEVNULL,
    )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port_of(home)}/api/v1") as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


def port_of(home: Path) -> int:
    """As soon as the server says it in its home folder."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            return json.loads((home / "server.json").read_text())["port"]
        except (FileNotFoundError, json.JSONDecodeError):
            time.sleep(0.05)
    raise TimeoutError("the server did not start")


def run(api: httpx2.Client, flow: str, name: str, file: Path, mime: str) -> dict[str, Any]:
    """The run when it has ended."""
    upload = api.post(
        "/storage/upload", content=file.read_bytes(), headers={"Content-Type": mime}
    ).raise_for_status()
    document = yaml.safe_load((ROOT / "examples" / flow).read_text())
    body = {"flow": document, "inputs": {name: upload.json()["ref"]}}
    view = api.post("/runs", json=body).raise_for_status().json()
    deadline = time.monotonic() + DEADLINE_S
    while view["state"] in ("created", "queued", "running") and time.monotonic() < deadline:
        time.sleep(0.1)
        view = api.get(f"/runs/{view['run_id']}").raise_for_status().json()
    return view


def outputs(api: httpx2.Client, view: dict[str, Any]) -> dict[str, Any]:
    assert view["state"] == "succeeded", view
    return api.get(f"/runs/{view['run_id']}/outputs").raise_for_status().json()["outputs"]


def test_speech(api: httpx2.Client) -> None:
    view = run(api, "speech.mlab", "speech", MEDIA / "jfk.wav", "audio/wav")
    found = outputs(api, view)
    text = " ".join(s["text"] for s in found["result.segments"])
    assert "ask not what your country can do for you" in re.sub(r"[^a-z ]", "", text.lower())
    assert found["result.language"] == "en"
    assert " --> " in found["result.subtitles"]
    assert found["result.vtt"].startswith("WEBVTT")
    assert found["live.transcript"]["chunks"] == len(found["result.segments"])


def test_clip(api: httpx2.Client) -> None:
    view = run(api, "clip.mlab", "clip", MEDIA / "clip.mp4", "video/mp4")
    found = outputs(api, view)
    cuts = json.loads((MEDIA / "clip.json").read_text())["cuts"]
    assert found["result.summary"]["cuts"] == pytest.approx(cuts, abs=0.001)
    assert found["result.contact_sheet"]["ref"]["metadata"]["mimeType"] == "image/jpeg"
    rows = found["result.boxes"]
    assert len(rows) == 6  # a frame every 2 s
    assert "person" in json.dumps(rows[2])  # 4 s: the astronaut
    samples, scenes = found["result.summary"]["samples"], len(cuts) + 1
    assert found["live.events"]["chunks"] == samples + scenes


def test_a_video_that_is_cut_off_fails_with_its_code(api: httpx2.Client, tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes((MEDIA / "clip.mp4").read_bytes()[:20_000])  # the index and no whole picture
    view = run(api, "clip.mlab", "clip", path, "video/mp4")
    assert (view["state"], view["error"]["code"]) == ("failed", "VIDEO_UNREADABLE")
