"""The upload routes on a real server, without admission: the caller says who he is."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
from fastapi import FastAPI, Request

from mentatlab.gateway import problems
from mentatlab.gateway.server import serving
from mentatlab.gateway.storage_routes import storage_router
from mentatlab.gateway.tus_routes import TusMiddleware, tus_router
from mentatlab.gateway.uploader import Uploader
from mentatlab.gateway.uploads_routes import uploads_router
from mentatlab.storage import StorageManager, open_local

TUS = "/api/v1/storage/tus/"
UPLOADS = "/api/v1/storage/uploads"
RESUMABLE = {"Tus-Resumable": "1.0.0"}
BYTES = {**RESUMABLE, "Content-Type": "application/offset+octet-stream"}


class Site(NamedTuple):
    client: httpx2.AsyncClient
    storage: StorageManager
    url: str


def workspace_of(request: Request) -> str:
    return request.headers.get("x-ws", "default")


def uploader(request: Request) -> Uploader:
    return Uploader(workspace_of(request), request.headers.get("x-owner", ""))


def uploads_app(storage: StorageManager) -> FastAPI:
    app = FastAPI()
    problems.install(app)
    app.include_router(uploads_router(storage.uploads, uploader, workspace_of))
    app.include_router(tus_router(storage.uploads, uploader))
    app.include_router(storage_router(storage, workspace_of, uploader))
    app.add_middleware(TusMiddleware)
    return app


@asynccontextmanager
async def served(storage: StorageManager) -> AsyncIterator[Site]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with (
            serving(uploads_app(storage), listener, drain=_nothing),
            httpx2.AsyncClient(base_url=url, timeout=60) as client,
        ):
            yield Site(client, storage, url)


@asynccontextmanager
async def uploads_site(folder: Path, **settings: Any) -> AsyncIterator[Site]:
    async with (
        open_local(folder / "blobs", folder / "catalog.db", **settings) as storage,
        served(storage) as site,
    ):
        yield site


async def begin(site: Site, size: int | None, **headers: str) -> str:
    """The path of a new tus upload."""
    length = {"Upload-Defer-Length": "1"} if size is None else {"Upload-Length": str(size)}
    answer = await site.client.post(TUS, headers={**RESUMABLE, **length, **headers})
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


async def patch(site: Site, path: str, data: Any, offset: int, **headers: str) -> httpx2.Response:
    told = {**BYTES, "Upload-Offset": str(offset), **headers}
    return await site.client.patch(path, content=data, headers=told)


async def head(site: Site, path: str) -> httpx2.Response:
    return await site.client.head(path, headers=RESUMABLE)


async def _nothing() -> None:
    pass
