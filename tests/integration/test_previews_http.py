"""`?preview=` through a real server."""

import io
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI, Request
from PIL import Image
from tests.support.media import picture, sound

from mentatlab.gateway import problems
from mentatlab.gateway.server import serving
from mentatlab.gateway.signed_urls import NO_KEYS
from mentatlab.gateway.storage_download import Access, Downloads, download_router
from mentatlab.storage import StorageManager, open_local, sources
from mentatlab.storage.port import Blob

Site = tuple[httpx2.AsyncClient, StorageManager]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_local(tmp_path / "blobs", tmp_path / "catalog.db") as storage:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            base = f"http://127.0.0.1:{listener.getsockname()[1]}/api/v1/storage"
            async with (
                serving(application(storage), listener, drain=nothing),
                httpx2.AsyncClient(base_url=base, timeout=30) as client,
            ):
                yield client, storage


def application(storage: StorageManager) -> FastAPI:
    def reader_of(request: Request) -> Access:
        return Access(request.headers.get("x-ws", "default"))

    app = FastAPI()
    problems.install(app)
    app.include_router(download_router(Downloads(storage, reader_of), NO_KEYS))
    return app


async def nothing() -> None:
    pass


async def stored(storage: StorageManager, data: bytes) -> Blob:
    return await storage.store(sources.once(data), workspace="default", filename="cat.jpg")


async def test_a_preview_may_be_kept_and_shown_and_nothing_more(site: Site) -> None:
    client, storage = site
    ref = (await stored(storage, picture("JPEG"))).id
    answer = await client.get(f"/{ref}", params={"preview": "thumb", "size": "64"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert answer.headers["content-disposition"].startswith("inline")
    assert answer.headers["content-security-policy"] == "sandbox"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert Image.open(io.BytesIO(answer.content)).size == (64, 64)
    again = await client.get(
        f"/{ref}",
        params={"preview": "thumb", "size": "64"},
        headers={"If-None-Match": answer.headers["etag"]},
    )
    assert (again.status_code, again.content) == (304, b"")
    head = await client.head(f"/{ref}", params={"preview": "thumb", "size": "64"})
    assert head.headers["etag"] == answer.headers["etag"]
    assert head.headers["content-length"] == str(len(answer.content))


async def test_another_format_and_a_range(site: Site) -> None:
    client, storage = site
    ref = (await stored(storage, sound(1))).id
    query = {"preview": "waveform", "format": "png"}
    answer = await client.get(f"/{ref}", params=query)
    assert answer.content.startswith(b"\x89PNG")
    part = await client.get(f"/{ref}", params=query, headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, b"PNG")


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("preview=poster", 415, "PREVIEW_UNAVAILABLE"),
        ("preview=film", 400, "INVALID_REQUEST"),
        ("preview=", 400, "INVALID_REQUEST"),
        ("preview=thumb&size=0", 400, "INVALID_REQUEST"),
        ("preview=thumb&size=1025", 400, "INVALID_REQUEST"),
        ("preview=thumb&size=-1", 400, "INVALID_REQUEST"),
        ("preview=thumb&size=" + "9" * 5000, 400, "INVALID_REQUEST"),
        ("preview=thumb&format=svg", 400, "INVALID_REQUEST"),
    ],
)
async def test_what_cannot_be_had(site: Site, query: str, status: int, code: str) -> None:
    client, storage = site
    ref = (await stored(storage, picture("PNG"))).id
    answer = await client.get(f"/{ref}?{query}")
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_of_a_foreign_or_unknown_source_there_is_none(site: Site) -> None:
    client, storage = site
    ref = (await stored(storage, picture("PNG"))).id
    query = {"preview": "thumb"}
    assert (await client.get(f"/{ref}", params=query)).status_code == 200
    foreign = await client.get(f"/{ref}", params=query, headers={"x-ws": "other"})
    assert (foreign.status_code, foreign.json()["code"]) == (404, "REFERENCE_NOT_FOUND")
    await storage.delete(ref, workspace="default")
    assert (await client.get(f"/{ref}", params=query)).status_code == 404
