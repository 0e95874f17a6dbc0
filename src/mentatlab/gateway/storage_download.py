"""`/api/v1/storage/{ref}`: the bytes of a blob, and addresses that give them to others."""

import functools
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, cast

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Receive, Scope, Send

from mentatlab.gateway.models import Body
from mentatlab.gateway.preview_routes import PREVIEW_QUERY, asked_blob
from mentatlab.gateway.ranges import conditions_of, select
from mentatlab.gateway.signed_urls import MAX_LIFETIME_S, PREFIX, Grant, Method, UrlKeys, expiry
from mentatlab.gateway.storage_answers import (
    ACCEL_HEADER,
    Accel,
    FromFile,
    Streamed,
    by_nginx,
    headers_of,
    not_what_is_meant,
    sends_files,
)
from mentatlab.gateway.storage_follow import Following
from mentatlab.protocol.errors import Code, NotFound
from mentatlab.protocol.media import is_ref_id
from mentatlab.storage import StorageManager
from mentatlab.storage.port import Blob, ByteRange
from mentatlab.storage.serving import SMALL

_MOVED_S = 3600.0
"""How long an address of the store's own is good; half of it for who keeps the redirection."""
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {}}, "description": "The bytes"},
    206: {"description": "The asked range"},
    304: {"description": "The client has it already"},
    307: {"description": "The store has them at `Location`; `via=gateway` gets them here"},
    412: {"description": "It is not what the client has"},
    415: {"description": "There is no such preview of it"},
    416: {"description": "The range lies outside the object"},
}
_WAYS = {"via": ["gateway"], "follow": ["1"]}
_QUERY: dict[str, Any] = {
    "parameters": [
        *({"name": n, "in": "query", "schema": {"enum": v}} for n, v in _WAYS.items()),
        *PREVIEW_QUERY["parameters"],
    ]
}


class Access(NamedTuple):
    """Whose blobs a request may read; `grant` when a signed address says so."""

    workspace: str
    grant: Grant | None = None


class SignRequest(Body):
    """`disposition`: how a browser takes it; without, media are shown and all else is saved."""

    expires_s: Annotated[float, Field(gt=0, le=MAX_LIFETIME_S)] = 3600
    disposition: Literal["inline", "attachment"] | None = None
    method: Method = "GET"


class SignedUrl(BaseModel):
    url: str = Field(description="a path with its query; anybody may GET it, whole or in ranges")
    expires_at: int = Field(description="Unix seconds, rounded up to a quarter of an hour")


def download_router(downloads: "Downloads", keys: UrlKeys) -> APIRouter:
    router = APIRouter(prefix="/api/v1/storage", tags=["storage"])

    @router.get("/{ref}", response_class=Response, responses=_ANSWERS, openapi_extra=_QUERY)
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


class _Plan(NamedTuple):
    """`span`: the bytes that go along, None = none. `movable`: others may send them as well."""

    status: int
    headers: dict[str, str]
    span: ByteRange | None
    movable: bool


class Downloads:
    """GET and HEAD of a blob, by the shortest way there is.

    Conditions and ranges are decided here, against the catalogue; so what a file server or a store
    is asked to send is what this server would have sent.
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
        try:
            return await self._stored(ref, access, request)
        except NotFound as unknown:
            if request.query_params.get("follow") != "1" or not is_ref_id(ref):
                raise
            whole = functools.partial(self._stored, ref, access, request)
            return Following(self._storage, ref, access.workspace, unknown, whole)

    async def _stored(self, ref: str, access: Access, request: Request) -> Response:
        source = await self._storage.get(known_ref(ref), workspace=access.workspace)
        blob = await asked_blob(self._storage, source, request.query_params)
        plan = _plan(blob, access.grant, request)
        if plan.span is None:
            return Response(status_code=plan.status, headers=plan.headers)
        movable = plan.movable and blob is source
        if movable and (moved := await self._elsewhere(blob, plan, access.grant, request)):
            return moved
        return await self._from_here(blob, plan, plan.span, request)

    async def _elsewhere(
        self, blob: Blob, plan: _Plan, grant: Grant | None, request: Request
    ) -> Response | None:
        """nginx sends the file, or the client asks the store."""
        if self._accel is not None and ACCEL_HEADER in request.headers:
            path = await self._storage.serving.path(blob)
            if path is not None:
                return by_nginx(self._accel.redirect(path), plan.status, plan.headers)
        if request.query_params.get("via") == "gateway":
            return None
        left_s = min([_MOVED_S, *_lifetimes(blob, grant, time.time())])
        url = self._storage.serving.presigned(
            blob, expires_s=left_s, disposition=plan.headers["Content-Disposition"]
        )
        if url is None:
            return None
        cache = f"private, max-age={int(left_s / 2)}"
        return Response(status_code=307, headers={"Location": url, "Cache-Control": cache})

    async def _from_here(
        self, blob: Blob, plan: _Plan, span: ByteRange, request: Request
    ) -> Response:
        small = span.stop - span.start <= SMALL
        if blob.state == "ready" and (small or sends_files(request.scope)):
            opened = await self._storage.serving.open(blob, span)
            if opened is not None and opened.file is not None:
                return FromFile(opened.file, span, plan.status, plan.headers)
            if opened is not None:
                return Response(opened.content, plan.status, plan.headers)
        return Streamed(await self._storage.open(blob, span), plan.status, plan.headers)


def _plan(blob: Blob, grant: Grant | None, request: Request) -> _Plan:
    method = cast(Literal["GET", "HEAD"], request.method)
    conditions = conditions_of(request.headers)
    headers = headers_of(blob, grant, now=time.time())
    status, part = select(blob.size, headers["ETag"], conditions, method=method)
    if status == 412:
        raise not_what_is_meant()
    if status == 304:
        return _Plan(status, headers, None, movable=False)
    span = part or ByteRange(0, blob.size)
    headers["Content-Length"] = str(span.stop - span.start)
    headers["Content-Type"] = blob.mime_type
    if status == 206:
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{blob.size}"
    # what compares ETags would be decided again there, where it is another one
    movable = blob.state == "ready" and conditions.keys() <= {"range", "if-none-match"}
    return _Plan(status, headers, None if method == "HEAD" else span, movable)


def _lifetimes(blob: Blob, grant: Grant | None, now: float) -> list[float]:
    """Seconds that the blob and the signed address still have, where they end."""
    ends = (blob.expires_at, None if grant is None else grant.expires)
    return [max(end - now, 1.0) for end in ends if end is not None]


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
