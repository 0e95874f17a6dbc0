"""`/api/v1/storage/{ref}`: the bytes of a blob, and addresses that give them to others."""

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, cast

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mentatlab.gateway.media_headers import safe_headers
from mentatlab.gateway.preview_routes import PREVIEW_QUERY, asked_blob
from mentatlab.gateway.ranges import CONDITIONS, select
from mentatlab.gateway.signed_urls import MAX_LIFETIME_S, PREFIX, Grant, Method, UrlKeys, expiry
from mentatlab.gateway.storage_answers import FromFile, Streamed, sends_files
from mentatlab.protocol.errors import Code, NotFound
from mentatlab.protocol.media import is_ref_id
from mentatlab.storage import StorageManager
from mentatlab.storage.port import Blob, ByteRange
from mentatlab.storage.serving import SMALL


class Accel: ...


_ELSEWHERE = {"range", "if-none-match"}
_YEAR_S = 31_536_000
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {}}, "description": "The bytes"},
    206: {"description": "The asked range"},
    304: {"description": "The client has it already"},
    412: {"description": "It is not what the client has"},
    415: {"description": "There is no such preview of it"},
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


def download_router(downloads: "Downloads", keys: UrlKeys) -> APIRouter:
    router = APIRouter(prefix="/api/v1/storage", tags=["storage"])

    @router.get("/{ref}", response_class=Response, responses=_ANSWERS, openapi_extra=PREVIEW_QUERY)
    async def download(ref: str, request: Request) -> Response:
        """The bytes, whole or a range of them; or a preview of them."""
        return await downloads.answer(ref, request)

    @router.head("/{ref}", include_in_schema=False)
    async def head(ref: str, request: Request) -> Response:
        return await downloads.answer(ref, request)

    @router.post("/{ref}/sign", response_model=SignedUrl)
    async def sign(ref: str, request: Request, body: SignRequest | None = None) -> Any:
        """An address of this blob that needs no other credential until it expires."""
        blob, asked = await downloads.find(ref, request), body or SignRequest()
        expires = expiry(time.time(), asked.expires_s)
        grant = Grant(asked.method, blob.id, blob.workspace, expires, asked.disposition or "")
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


class Downloads:
    """GET and HEAD of a blob, by the shortest way there is.

    Conditions and ranges are decided here, always against the catalogue; so what a file server or a
    store is asked to send is what this server would have sent.
    """

    def __init__(
        self,
        storage: StorageManager,
        reader_of: Callable[[Request], Access],
        accel: Accel | None = None,
    ) -> None:
        self._storage, self._reader_of, self._accel = storage, reader_of, accel

    async def find(self, ref: str, request: Request) -> Blob:
        return await self._storage.get(known_ref(ref), workspace=self._reader_of(request).workspace)

    async def answer(self, ref: str, request: Request) -> Response:
        access = self._reader_of(request)
        source = await self._storage.get(known_ref(ref), workspace=access.workspace)
        blob = await asked_blob(self._storage, source, request.query_params)
        now = time.time()
        method = cast(Literal["GET", "HEAD"], request.method)
        conditions = _conditions(request.headers)
        headers = headers_of(blob, access.grant, now=now)
        status, span = select(blob.size, headers["ETag"], conditions, method=method)
        if status in (304, 412):
            return Response(status_code=status, headers=headers)
        span = span or ByteRange(0, blob.size)
        headers["Content-Length"] = str(span.stop - span.start)
        headers["Content-Type"] = blob.mime_type
        if status == 206:
            headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{blob.size}"
        if method == "HEAD":
            return Response(status_code=status, headers=headers)
        if blob.state == "ready":
            at_home = blob is not source or not conditions.keys() <= _ELSEWHERE
            if not at_home and (
                found := await self._elsewhere(blob, headers, access.grant, request, now)
            ):
                return found
            if sends_files(request.scope) or span.stop - span.start <= SMALL:
                opened = await self._storage.serving.open(blob, span)
                if opened is not None and opened.file is not None:
                    return FromFile(opened.file, span, status, headers)
                if opened is not None:
                    return Response(opened.content, status, headers)
        return Streamed(await self._storage.open(blob, span), status, headers)

    async def _elsewhere(self, blob, headers, grant, request, now):
        return None


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


class DownloadsFirst:
    """ASGI middleware behind admission: a blob that is asked for needs no router (which takes twice
    as long as all the rest of a small range)."""

    def __init__(self, app: ASGIApp, downloads: Downloads) -> None:
        self._app, self._downloads = app, downloads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._app
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            ref = scope["path"].removeprefix(PREFIX)
            if is_ref_id(ref):
                answer = await self._downloads.answer(ref, Request(scope, receive))
        await answer(scope, receive, send)
