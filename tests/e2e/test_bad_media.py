"""Files that are not what they seem, given to the agents that we ship, through a real server."""

import os
from pathlib import Path

import httpx2
import pytest
from tests.support.api import Api, assert_failed, flow_of, refused
from tests.support.media import bomb_png, picture, sound, soundtrack

pytestmark = pytest.mark.usefixtures("well_afterwards")


def refused_or_failed(api: Api, agent: str, pin: str, ref: str, code: str) -> str:
    """Both are fine, before the run or in it; the message."""
    answer = api.post("runs", {"flow": flow_of(agent), "inputs": {f"it.{pin}": ref}})
    if answer.status_code != 201:
        return refused(answer, 400, code)["detail"]
    return assert_failed(api.ended(answer.json()["run_id"]), "it", code)["error"]["message"]


def refused_upload(api: Api, data: bytes, type_: str, **query: str) -> httpx2.Response:
    query = {"type": type_, **query}
    return api.http.post("/api/v1/storage/upload", content=data, params=query)


def test_an_image_without_bytes(api: Api):
    refused(refused_upload(api, b"", "image"), 400, "EMPTY_MEDIA")
    refused_or_failed(
        api, "mentatlab.image-classifier", "image", api.upload(b""), "MEDIA_TYPE_MISMATCH"
    )


def test_a_truncated_jpeg_fails_when_it_is_decoded(api: Api):
    whole = picture("JPEG")
    ref = api.upload(whole[: len(whole) // 2], type="image")
    message = refused_or_failed(api, "mentatlab.image-classifier", "image", ref, "IMAGE_UNREADABLE")
    assert "truncated" in message


def test_a_web_page_that_calls_itself_png(api: Api):
    page = b"<!DOCTYPE html><html><script>alert(1)</script></html>"
    answer = refused_upload(api, page, "image", filename="cat.png")
    refused(answer, 415, "MEDIA_TYPE_MISMATCH")
    ref = api.upload(page, filename="cat.png")
    refused_or_failed(api, "mentatlab.image-classifier", "image", ref, "MEDIA_TYPE_MISMATCH")
    download = api.http.get(f"/api/v1/storage/{ref}")
    assert download.headers["content-disposition"].startswith("attachment")


def test_a_decompression_bomb(api: Api):
    data = bomb_png()
    assert len(data) < 200_000
    before = api.memory()
    ref = api.upload(data, type="image")
    refused_or_failed(api, "mentatlab.image-classifier", "image", ref, "IMAGE_TOO_LARGE")
    assert api.memory() < before + (64 << 20)


def test_a_video_without_a_picture(api: Api, tmp_path: Path):
    """Probing finds it out: it is kept as the sound that it is, and never reaches the agent."""
    data = soundtrack(tmp_path / "sound.mp4")
    refused(refused_upload(api, data, "video"), 415, "MEDIA_TYPE_MISMATCH")
    message = refused_or_failed(
        api, "mentatlab.video-analyzer", "video", api.upload(data), "MEDIA_TYPE_MISMATCH"
    )
    assert "is audio" in message


def test_sound_given_as_video(api: Api):
    refused(refused_upload(api, sound(1), "video"), 415, "MEDIA_TYPE_MISMATCH")
    ref = api.upload(sound(1))
    refused_or_failed(api, "mentatlab.video-analyzer", "video", ref, "MEDIA_TYPE_MISMATCH")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (sound(1)[:16] + os.urandom(4000), "AUDIO_UNREADABLE"),
        (b"ID3\x04\x00\x00\x00\x00\x00\x00" + bytes(4000), "AUDIO_UNREADABLE"),
        (b"\x00\x01\x02 nothing that sounds" * 100, "MEDIA_TYPE_MISMATCH"),
    ],
    ids=["wav", "mp3", "bytes"],
)
def test_sound_that_is_garbage(api: Api, data: bytes, code: str):
    refused_or_failed(api, "mentatlab.audio-transcriber", "audio", api.upload(data), code)
