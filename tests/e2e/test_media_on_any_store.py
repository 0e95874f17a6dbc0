"""Media in and out of the whole server on each store: large uploads over a line that cuts, dead
endpoints, and agents that run unchanged where there is no file for them."""

import json
import random
import socket
from pathlib import Path
from typing import Any

import blake3
import pytest
from tests.support.cutting import cutting
from tests.support.seaweed import SeaweedProcess
from tests.support.three_stores import STORES, StoreName, server_on

from mentatlab.sdk import backoff
from mentatlab.sdk.client import AsyncClient

ROOT = Path(__file__).parents[2]
MEDIA = ROOT / "examples" / "media"
MB = 1 << 20
HUGE = 200 * MB
PHOTO_FLOW = (ROOT / "examples" / "photo.mlab").read_text()
CLIP_FLOW = (ROOT / "examples" / "clip.mlab").read_text()
CUTS = (MEDIA / "clip.json").read_text()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "_BASE_S", 0.01)


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("huge") / "huge.bin"
    block = random.Random(8).randbytes(MB)
    with path.open("wb") as file:
        for number in range(HUGE // MB):
            file.write(number.to_bytes(8, "big") + block[8:])
    return path


def digest(path: Path) -> str:
    return blake3.blake3().update_mmap(path).hexdigest()


class Told:
    """What a progress bar would be told."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def __call__(self, sent: int, size: int | None) -> None:
        assert size == HUGE
        self.sent.append(sent)

    def check(self) -> None:
        assert self.sent == sorted(self.sent)
        assert self.sent[-1] == HUGE
        assert HUGE not in self.sent[:-1]


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
async def test_200_mb_over_a_line_that_cuts(
    store: StoreName, tmp_path: Path, huge: Path, request: pytest.FixtureRequest
) -> None:
    """To the gateway: tus, and the control of direct uploads. To the bucket: a good line."""
    told, copied = Told(), Told()
    async with (
        server_on(store, tmp_path / "home", lambda: request.getfixturevalue("seaweed")) as server,
        cutting(server.url, seed=5, most_bytes=60 * MB) as (url, cutter),
        AsyncClient(url, key=server.key) as far,
    ):
        answer = await far.upload(huge, progress=told)
        assert answer["reference"]["ref"]["size"] == HUGE
        copy = await far.download_to(answer["ref"], tmp_path / "copy", progress=copied)
        assert digest(copy) == digest(huge)
        if store != "s3":
            assert cutter.cuts > 3
    told.check()
    copied.check()


@pytest.mark.slow
async def test_200_mb_straight_to_a_bucket_over_a_line_that_cuts(
    seaweed: SeaweedProcess, tmp_path: Path, huge: Path
) -> None:
    told = Told()
    async with (
        cutting(seaweed.endpoint, seed=5, most_bytes=90 * MB) as (public, cutter),
        server_on("s3", tmp_path / "home", lambda: seaweed, S3_PUBLIC_ENDPOINT=public) as server,
        AsyncClient(server.url, key=server.key) as client,
    ):
        answer = await client.upload(huge, progress=told)
        assert cutter.cuts > 0
        copy = await client.download_to(answer["ref"], tmp_path / "copy")
    assert digest(copy) == digest(huge)
    told.check()


async def test_nobody_at_the_public_endpoint(
    seaweed: SeaweedProcess, tmp_path: Path, huge: Path
) -> None:
    """Upload and download take the way through the gateway; so do agents."""
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with (
            server_on("s3", tmp_path / "home", lambda: seaweed, S3_PUBLIC_ENDPOINT=dead) as server,
            AsyncClient(server.url, key=server.key) as client,
        ):
            told = Told()
            answer = await client.upload(huge, progress=told)
            copy = await client.download_to(answer["ref"], tmp_path / "copy")
            assert digest(copy) == digest(huge)
            told.check()
            await classified(client)


async def finished(client: AsyncClient, flow: str, **inputs: str) -> dict[str, Any]:
    run = await client.submit(flow, inputs)
    async for _ in client.events(run["run_id"]):
        pass
    found = await client.outputs(run["run_id"])
    assert found["state"] == "succeeded", await client.run(run["run_id"])
    return found["outputs"]


async def classified(client: AsyncClient) -> None:
    photo = await client.upload(MEDIA / "coffee.png", type_="image")
    found = await finished(client, PHOTO_FLOW, photo=photo["ref"])
    assert found["answer.classification"][0]["label"] == "espresso"
    annotated = found["answer.annotated"]["ref"]
    assert annotated["metadata"]["mimeType"] == "image/jpeg"


@pytest.mark.parametrize("store", STORES)
async def test_agents_do_not_see_where_media_lie(
    store: StoreName, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    async with (
        server_on(store, tmp_path / "home", lambda: request.getfixturevalue("seaweed")) as server,
        AsyncClient(server.url, key=server.key) as client,
    ):
        await classified(client)
        clip = await client.upload(MEDIA / "clip.mp4", type_="video")
        found = await finished(client, CLIP_FLOW, clip=clip["ref"])
        cuts = json.loads(CUTS)["cuts"]
        assert found["result.summary"]["cuts"] == pytest.approx(cuts, abs=0.001)
        assert len(found["result.boxes"]) == 6
