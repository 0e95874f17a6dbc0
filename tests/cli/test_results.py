"""Outputs for the eye and as files, against a real server in this process."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mentatlab.app import Settings, running
from mentatlab.cli.results import describe, elements_of, suffix_of, write_outputs
from mentatlab.sdk.client import AsyncClient


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[AsyncClient]:
    settings = Settings(home=tmp_path / "home", port=0, agent_dirs=())
    async with running(settings) as app, AsyncClient(app.url) as client:
        yield client


def content(path: str) -> bytes:
    return Path(path).read_bytes()


def contents(folder: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(Path(folder).iterdir())]


async def streamed(client: AsyncClient, *values: Any) -> dict[str, Any]:
    opened = await client.open_stream("me", "out")
    await client.publish(opened["stream_id"], values, end=True)
    return {"type": "stream", "stream_id": opened["stream_id"]}


async def test_streams(client: AsyncClient, tmp_path: Path):
    words = await streamed(client, {"text": " one"}, {"text": " two"})
    assert await elements_of(client, words["stream_id"]) == [{"text": " one"}, {"text": " two"}]
    assert await describe(client, words) == "one two"
    numbers = await streamed(client, 1, 2, 3)
    assert await describe(client, numbers) == f"3 elements in {numbers['stream_id']}"
    files = await write_outputs(client, {"a.words": words}, tmp_path / "out")
    assert b'"text": " one"' in content(files["a.words"])


async def test_media(client: AsyncClient, tmp_path: Path):
    reference = (await client.upload(b"some bytes"))["reference"]
    assert (await describe(client, reference)).startswith("mentat://default/blob_")
    medias = await streamed(client, reference, reference)
    files = await write_outputs(
        client, {"one": reference, "many": medias, "../odd": "text"}, tmp_path / "out"
    )
    assert content(files["one"]) == b"some bytes"
    assert contents(files["many"]) == [b"some bytes"] * 2
    assert Path(files["../odd"]).parent == tmp_path / "out"
    assert content(files["../odd"]) == b"text"


async def test_values(client: AsyncClient):
    assert await describe(client, "text") == "text"
    assert await describe(client, {"a": 1}) == '{\n  "a": 1\n}'
    assert (await describe(client, "x" * 5000)).endswith("… (5000 characters)")


def test_suffix():
    reference = {"type": "image", "ref": {"url": "u", "metadata": {"mimeType": "image/png"}}}
    assert suffix_of(reference) == ".png"
    assert suffix_of({"type": "binary", "ref": {"url": "u"}}) == ""
