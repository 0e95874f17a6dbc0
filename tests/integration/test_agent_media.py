"""Media of agents that share no folder with the server: read by ranges, handed over by HTTP, both
over a line that cuts."""

import asyncio
import io
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.sdk.test_session import Host
from tests.support.cutting import cutting

from mentatlab import app
from mentatlab.protocol.tokens import Claims, mint
from mentatlab.sdk import AgentError, MultimodalAgent, backoff, block_reader, sending
from mentatlab.sdk.client import AsyncClient
from mentatlab.sdk.media.images import load_image
from mentatlab.sdk.media.video import open_video
from mentatlab.sdk.session import serve_one

MEDIA = Path(__file__).parents[2] / "examples" / "media"
MB = 1 << 20
LARGE = random.Random(2).randbytes(20 * MB + 3)


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "_BASE_S", 0.001)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[app.App]:
    environ = {"MENTATLAB_STORAGE": "memory"}
    settings = app.read_settings(environ, home=tmp_path / "home", host="127.0.0.1", port=0)
    async with app.running(settings) as running:
        yield running


@pytest.fixture
async def client(server: app.App) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.url, key=server.key) as client:
        yield client


@pytest.fixture
async def far(server: app.App) -> AsyncIterator[str]:
    """Its address from where the agent is."""
    async with cutting(server.url, seed=6, most_bytes=4 * MB) as (url, _):
        yield url


def token_of(server: app.App, *capabilities: str, lifetime_s: float = 600) -> str:
    claims = Claims(
        subject="rn_1/n//1",
        capabilities=capabilities,  # type: ignore[arg-type]
        workspace="default",
        expires=int(time.time() + lifetime_s),
    )
    return mint(claims, server.admission.rules.token_secret)


class Scripted(MultimodalAgent):
    """Does what a test wants to do inside an agent."""

    def __init__(self, work: Callable[["Scripted", dict[str, Any]], Any]) -> None:
        self._work = work

    async def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return await self._work(self, inputs)


async def run_agent(
    work: Callable[[Scripted, dict[str, Any]], Any],
    spec: Mapping[str, Any] | None = None,
    **context: str,
) -> dict[str, Any]:
    """What it says last: a result or an error."""
    host = Host()
    host.tell(spec=dict(spec or {}), context={"run_id": "rn_1", "node_id": "n", **context})
    host.end()
    async with asyncio.timeout(60):
        await serve_one(Scripted(work), host.wire, host.lines)
    said = await host.hear_until("result", "error")
    await host.aclose()
    return said[-1]


async def get_of(client: AsyncClient, ref: str, url: str) -> dict[str, Any]:
    """A reference as an agent elsewhere gets it."""
    signed = await client._call("POST", f"/api/v1/storage/{ref}/sign")
    return {"type": "binary", "ref": {"url": f"mentat://default/{ref}"}, "get": url + signed["url"]}


async def test_outputs_without_a_shared_folder(
    server: app.App, client: AsyncClient, far: str, tmp_path: Path
) -> None:
    (tmp_path / "given.bin").write_bytes(LARGE)

    async def blocks() -> AsyncIterator[bytes]:
        for start in range(0, len(LARGE), 900_000):
            yield LARGE[start : start + 900_000]

    async def work(agent: Scripted, _: dict[str, Any]) -> dict[str, Any]:
        given = [LARGE[: 3 * MB], LARGE, tmp_path / "given.bin", str(tmp_path / "given.bin")]
        metadata = {"mimeType": "application/octet-stream", "shape": [3]}
        values = [await agent.upload_media("out", data, metadata) for data in (*given, blocks())]
        return {"values": values, "photo": await agent.upload_media("p", MEDIA / "chelsea.jpg")}

    said = await run_agent(work, url=far, token=token_of(server, "put"))
    assert said["type"] == "result", said
    values = said["outputs"]["values"]
    wanted = [LARGE[: 3 * MB], *[LARGE] * 4]
    for value, data in zip(values, wanted, strict=True):
        assert value["ref"]["metadata"]["shape"] == [3]
        assert b"".join([b async for b in client.download(value)]) == data
    assert len((await client.blobs())["items"]) == len(values) + 1
    photo = said["outputs"]["photo"]
    assert (photo["type"], photo["ref"]["metadata"]["width"]) == ("image", 451)


@pytest.mark.parametrize(
    ("capabilities", "lifetime_s", "code"),
    [(("sub",), 600, "FORBIDDEN"), (("put",), -1, "TOKEN_INVALID")],
)
async def test_who_may_not_put(
    server: app.App, capabilities: tuple[str, ...], lifetime_s: float, code: str
) -> None:
    async def work(agent: Scripted, _: dict[str, Any]) -> dict[str, Any]:
        return await agent.upload_media("out", b"x")

    token = token_of(server, *capabilities, lifetime_s=lifetime_s)
    said = await run_agent(work, url=server.url, token=token)
    assert (said["type"], said["code"]) == ("error", code)


async def test_a_server_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sending.send.__kwdefaults__, "give_up_s", 0.05)

    async def work(agent: Scripted, _: dict[str, Any]) -> dict[str, Any]:
        return await agent.upload_media("out", b"x")

    said = await run_agent(work, url="http://127.0.0.1:1", token="t")
    assert (said["code"], said["retryable"]) == ("SERVER_UNREACHABLE", True)


async def test_decoders_read_ranges(client: AsyncClient, far: str) -> None:
    """Pillow and FFmpeg over the block reader give what they give for the file."""
    spec = {
        name: await get_of(client, (await client.upload(MEDIA / name))["ref"], far)
        for name in ("coffee.png", "chelsea.jpg", "clip.mp4")
    }

    async def work(agent: Scripted, inputs: dict[str, Any]) -> dict[str, Any]:
        return await asyncio.to_thread(decode, agent, inputs)

    def decode(agent: MultimodalAgent, inputs: dict[str, Any]) -> dict[str, Any]:
        sums: dict[str, Any] = {}
        for name in ("coffee.png", "chelsea.jpg"):
            with agent.open_media(inputs[name]) as file:
                sums[name] = picture_sum(load_image(file).image)
        with agent.open_media(inputs["clip.mp4"]) as file, open_video(file) as video:
            sums["clip.mp4"] = sum(1 for _ in video.frames())
        return sums

    found = (await run_agent(work, spec))["outputs"]
    assert found["coffee.png"] == picture_sum(load_image(MEDIA / "coffee.png").image)
    assert found["chelsea.jpg"] == picture_sum(load_image(MEDIA / "chelsea.jpg").image)
    with open_video(MEDIA / "clip.mp4") as video:
        assert found["clip.mp4"] == sum(1 for _ in video.frames())


def picture_sum(image: Image.Image) -> int:
    return sum(image.tobytes())


async def test_reads_that_are_awaited(client: AsyncClient, far: str) -> None:
    reference = await get_of(client, (await client.upload(LARGE))["ref"], far)

    async def work(agent: Scripted, inputs: dict[str, Any]) -> dict[str, Any]:
        whole = io.BytesIO()
        async with agent.open_media(inputs["file"]) as medium:
            async for block in medium:
                whole.write(block)
            assert whole.getvalue() == LARGE
            assert await medium.seek(-5, 2) == len(LARGE) - 5
            assert await medium.read(3) == LARGE[-5:-2]
            assert medium.tell() == len(LARGE) - 2
            assert await medium.read() == LARGE[-2:]
        assert await agent.download_media(inputs["file"]) == LARGE
        return {"fine": True}

    said = await run_agent(work, {"file": reference})
    assert said.get("outputs") == {"fine": True}, said


async def test_errors_have_codes(
    server: app.App, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(block_reader.open_url.__kwdefaults__, "give_up_s", 0.05)
    ref = (await client.upload(LARGE))["ref"]
    good = await get_of(client, ref, server.url)
    await client.delete_blob(ref)
    forged = {**good, "get": good["get"].replace("s=", "s=x")}
    nobody = {**good, "get": "http://127.0.0.1:1/x"}
    nothing = {"type": "binary"}
    spec = {"deleted": good, "forged": forged, "nobody": nobody, "nothing": nothing}

    async def work(agent: Scripted, inputs: dict[str, Any]) -> dict[str, Any]:
        codes: dict[str, Any] = {}
        for name, reference in inputs.items():
            try:
                await agent.download_media(reference)
            except AgentError as error:
                codes[name] = [error.code, error.retryable]
        return codes

    assert (await run_agent(work, spec))["outputs"] == {
        "deleted": ["REFERENCE_NOT_FOUND", False],
        "forged": ["SIGNATURE_INVALID", True],
        "nobody": ["SERVER_UNREACHABLE", True],
        "nothing": ["REFERENCE_INVALID", False],
    }


async def test_a_path_that_is_not_here(client: AsyncClient, server: app.App) -> None:
    """An agent on another machine than it was thought to be on."""
    reference = await get_of(client, (await client.upload(b"hello"))["ref"], server.url)

    async def work(agent: Scripted, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"text": (await agent.download_media(inputs["file"])).decode()}

    there = {**reference, "path": "/nowhere/blob"}
    assert json.dumps((await run_agent(work, {"file": there}))["outputs"]) == '{"text": "hello"}'
