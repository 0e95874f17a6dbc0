"""`/api/v1/storage/{ref}`: the bytes of a blob, and addresses that give them to others."""

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, cast

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from mentatlab.gateway.media_headers import safe_headers
from mentatlab.gateway.ranges import CONDITIONS, select
from mentatlab.gateway.signed_urls import MAX_LIFETIME_S, Grant, Method, UrlKeys, expiry
from mentatlab.protocol.errors import Code, NotFound
from mentatlab.protocol.media import is_ref_id
from mentatlab.storage import StorageManager
from mentatlab.storage.port import Blob, Reader

_YEAR_S = 31_536_000
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {}}, "description": "The bytes"},
    206: {"description": "The asked range"},
    304: {"description": "The client has it already"},
    412: {"description": "It is not what the client has"},
    416: {"description": "The range lies outside the object"},
}


class Access(NamedTuple):
    """Whose blobs a request may read; `grant` when a signed address says so."""

    workspace: str
    grant: Grant | None = None


class SignRequest(BaseModel):
    """`disposition`: how a browser takes it; without, media are shown and all else is saved."""

    expires_s: Annotated[float, Field(gt=0, le=MAX_LIFETIME_S)] = 3600
    disposition: Literal["inline", "attachment"] | None = None
    method: Method = "GET"


class SignedUrl(BaseModel):
    url: str = Field(description="a path with its query; anybody may GET it, whole or in ranges")
    expires_at: int = Field(description="Unix seconds, rounded up to a quarter of an hour")


def download_router(
    storage: StorageManager, reader_of: Callable[[Request], Access], keys: UrlKeys
) -> APIRouter:
    """`reader_of` says whose blobs the caller reads, or raises when he may not."""
    router = APIRouter(prefix="/api/v1/storage", tags=["storage"])

    @router.get("/{ref}", response_class=Response, responses=_ANSWERS)
    async def download(ref: str, request: Request) -> Response:
        """The bytes, whole or a range of them."""
        access = reader_of(request)
        blob = await storage.get(known_ref(ref), workspace=access.workspace)
        return await _answer(storage, blob, access.grant, request)

    @router.head("/{ref}", include_in_schema=False)
    async def head(ref: str, request: Request) -> Response:
        return await download(ref, request)

    @router.post("/{ref}/sign", response_model=SignedUrl)
    async def sign(ref: str, request: Request, body: SignRequest | None = None) -> Any:
        """An address of this blob that needs no other credential until it expires."""
        workspace, asked = reader_of(request).workspace, body or SignRequest()
        blob = await storage.get(known_ref(ref), workspace=workspace)
        expires = expiry(time.time(), asked.expires_s)
        grant = Grant(asked.method, blob.id, workspace, expires, asked.disposition or "")
        return {"url": keys.sign(grant), "expires_at": expires}

    return router


def known_ref(ref: str) -> str:
    """`NotFound(REFERENCE_NOT_FOUND)` for what cannot be one."""
    if is_ref_id(ref):
        return ref
    raise NotFound(
        Code.REFERENCE_NOT_FOUND,
        f"there is no blob {ref[:80]!r}",
        hint="a `ref` as the upload answered it stands here: blob_…",
    )


class _BlobResponse(StreamingResponse):
    """Closes the reader also when the client leaves in the middle."""

    def __init__(self, reader: Reader, status: int, headers: dict[str, str]) -> None:
        super().__init__(reader, status, headers)
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._reader.aclose()


async def _answer(
    storage: StorageManager, blob: Blob, grant: Grant | None, request: Request
) -> Response:
    method = cast(Literal["GET", "HEAD"], request.method)
    headers = headers_of(blob, grant, now=time.time())
    status, span = select(blob.size, headers["ETag"], _conditions(request.headers), method=method)
    if status in (304, 412):
        return Response(status_code=status, headers=headers)
    start, stop = span or (0, blob.size)
    headers["Content-Length"] = str(stop - start)
    headers["Content-Type"] = blob.mime_type
    if status == 206:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
    if method == "HEAD":
        return Response(status_code=status, headers=headers)
    return _BlobResponse(await storage.open(blob, span), status, headers)


def _conditions(headers: Headers) -> dict[str, str]:
    return {name: ", ".join(headers.getlist(name)) for name in CONDITIONS if name in headers}


def headers_of(blob: Blob, grant: Grant | None, *, now: float) -> dict[str, str]:
    """What every answer about an object carries. Uploaded bytes must never run in our origin.

    Behind a signed address any cache may keep it, until the address ends.
    """
    scope, age = "private", _YEAR_S
    if grant is not None:
        scope, age = "public", int(grant.expires - now)
    return {
        "ETag": f'"b3-{blob.blake3}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": f"{scope}, max-age={age}, immutable",
        **safe_headers(blob.mime_type, blob.filename, grant.disposition if grant else ""),
    }
