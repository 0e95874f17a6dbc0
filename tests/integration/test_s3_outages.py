"""The whole server on a bucket whose server dies, comes back, or was never there."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
from blake3 import blake3
from tests.support.seaweed import SeaweedProcess, seaweed_server

from mentatlab import app
from mentatlab.protocol.errors import Code, Unavailable
from mentatlab.protocol.records import data_draft, end_draft
from mentatlab.storage import s3_http
from mentatlab.testing.stream_log_contract import NOW, append, binary, opened

MB = 1 << 20
TUS = {"Tus-Resumable": "1.0.0"}


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    """An S3 server that a test may kill."""
    with seaweed_server(tmp_path_factory.mktemp("mortal")) as process:
        yield process


@pytest.fixture
def settings(mortal: SeaweedProcess, tmp_path: Path) -> app.Settings:
    environ = mortal.environment | {"S3_BUCKET": f"home-{secrets.token_hex(6)}"}
    return app.read_settings(environ, home=tmp_path / "home", host="127.0.0.1", port=0)


@contextlib.asynccontextmanager
async def served(settings: app.Settings) -> AsyncIterator[tuple[app.App, httpx2.AsyncClient]]:
    async with (
        app.running(settings) as running,
        httpx2.AsyncClient(base_url=running.url, timeout=60) as client,
    ):
        yield running, client


async def patch(client: httpx2.AsyncClient, url: str, at: int, data: bytes) -> httpx2.Response:
    headers = TUS | {"Upload-Offset": str(at), "Content-Type": "application/offset+octet-stream"}
    return await client.patch(url, content=data, headers=headers)


async def offset_when_back(client: httpx2.AsyncClient, url: str) -> int:
    """A SeaweedFS that has just started may not know its volumes yet; then a client tries again."""
    async with asyncio.timeout(60):
        while (told := await client.head(url, headers=TUS)).status_code == 503:
            await asyncio.sleep(0.1)
    assert told.status_code == 200, (told.status_code, told.headers)
    return int(told.headers["Upload-Offset"])


async def test_an_upload_goes_on_when_the_bucket_is_back(
    settings: app.Settings, mortal: SeaweedProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server is killed in mid-upload; another process of ours goes on, too."""
    monkeypatch.setattr(s3_http, "_FIRST_S", 0.001)
    data = os.urandom(40 * MB)
    async with served(settings) as (_, client):
        headers = TUS | {"Upload-Length": str(len(data))}
        made = await client.post("/api/v1/storage/tus/", headers=headers)
        url = made.headers["Location"]
        assert (await patch(client, url, 0, data[: 21 * MB])).status_code == 204
        mortal.kill()
        refused = await patch(client, url, 21 * MB, data[21 * MB :])
        assert (refused.status_code, refused.json()["code"]) == (503, Code.STORE_UNAVAILABLE)
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["code"]) == (503, Code.STORE_UNAVAILABLE)
        assert (await client.get("/healthz")).status_code == 200
        mortal.start()
        assert (await client.get("/readyz")).status_code == 200
        offset = await offset_when_back(client, url)
        assert 21 * MB <= offset < len(data)
        assert (await patch(client, url, offset, data[offset : 30 * MB])).status_code == 204
    async with served(settings) as (_, client):
        offset = int((await client.head(url, headers=TUS)).headers["Upload-Offset"])
        assert offset == 30 * MB
        last = await patch(client, url, offset, data[offset:])
        ref = last.headers["Mentat-Ref"]
        back = await client.get(f"/api/v1/storage/{ref}", follow_redirects=True)
        assert back.content == data
        described = (await client.get(f"/api/v1/storage/uploads/{url.rsplit('/', 1)[1]}")).json()
        assert blake3(data).hexdigest() in str(described)


async def test_a_sealed_run_is_read_from_the_bucket(settings: app.Settings) -> None:
    async with app.build(settings) as built:
        log = built.services.hub._log
        stream_id = await opened(log)
        for number in range(20):
            await append(log, stream_id, data_draft(number), binary(b"x" * 20_000))
        await append(log, stream_id, end_draft("complete", chunks=0))
        before = [await log.read(stream_id, at) for at in range(42)]
        await log.tidy(NOW + 100)
        assert not (settings.home / "streams-sealed").exists()
        assert (await built.services.storage.life.sweep()).orphans == 0
        assert [await log.read(stream_id, at) for at in range(42)] == before
    async with app.build(settings) as built:
        assert [await built.services.hub._log.read(stream_id, at) for at in range(42)] == before


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"S3_SECRET_KEY": "wrong"}, "S3_SECRET_KEY"),
        ({"S3_BUCKET": "No Bucket"}, "S3_BUCKET"),
        ({"S3_ENDPOINT": "http://127.0.0.1:9"}, "S3_ENDPOINT"),
    ],
)
async def test_a_server_does_not_start_on_what_it_cannot_use(
    mortal: SeaweedProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: dict[str, str],
    hint: str,
) -> None:
    monkeypatch.setattr(s3_http, "_FIRST_S", 0.001)
    environ = mortal.environment | wrong
    settings = app.read_settings(environ, home=tmp_path / "home", host="127.0.0.1", port=0)
    with pytest.raises(Unavailable) as error:
        async with app.running(settings):
            pass
    assert error.value.code is Code.STORE_UNAVAILABLE
    assert hint in error.value.hint
