"""`/api/v1/storage/tus/`: resumable uploads, tus 1.0.0."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mentatlab.gateway.digests import (
    ALGORITHMS,
    Checksum,
    announced_sha256,
    parse_checksum,
    verified,
)
from mentatlab.gateway.tus_headers import (
    EXTENSIONS,
    VERSION,
    announced_size,
    description_of,
    new_upload,
    number,
    state_of,
)
from mentatlab.gateway.uploader import Uploader
from mentatlab.protocol.errors import Code, Invalid, MentatError, NotFound, UnsupportedMedia
from mentatlab.storage.sources import bounded
from mentatlab.storage.upload_rows import UploadRow
from mentatlab.storage.uploads import Uploads

TUS_PATH = "/api/v1/storage/tus"
BODY_TYPE = "application/offset+octet-stream"


class TusMiddleware:
    """Outside of everything that answers: each answer carries `Tus-Resumable`, and
    `X-HTTP-Method-Override` is the method that counts."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_tus(scope["path"]):
            await self._app(scope, receive, send)
            return

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Tus-Resumable"] = VERSION
                if message["status"] == 412:
                    headers["Tus-Version"] = VERSION
            await send(message)

        override = Headers(scope=scope).get("x-http-method-override")
        method = override.upper() if override else scope["method"]
        await self._app({**scope, "method": method}, receive, told)


def _is_tus(path: str) -> bool:
    return path == TUS_PATH or path.startswith(TUS_PATH + "/")


def tus_router(uploads: Uploads, uploader: Callable[[Request], Uploader]) -> APIRouter:
    """`uploader` says for whom the caller uploads, or raises when he may not."""
    router = APIRouter(prefix=TUS_PATH, tags=["storage"], dependencies=[Depends(_version)])
    config = _configuration(uploads.max_bytes)

    @router.options("", status_code=204, include_in_schema=False)
    @router.options("/{upload_id:path}", status_code=204, include_in_schema=False)
    async def options() -> Response:
        return Response(status_code=204, headers=config)

    @router.post("", status_code=201, include_in_schema=False)
    @router.post("/", status_code=201, response_class=Response, openapi_extra=_body(required=False))
    async def create(request: Request) -> Response:
        """Begin an upload (`Upload-Length` or `Upload-Defer-Length: 1`, `Upload-Metadata`), with
        its first bytes or without."""
        return await _create(uploads, uploader(request), request)

    @router.head("/{upload_id}", response_class=Response)
    async def head(upload_id: str, request: Request) -> Response:
        """Where to go on: `Upload-Offset`. Whoever still writes is asked to let go."""
        row = await uploads.pause(upload_id, workspace=uploader(request).workspace)
        return Response(headers=description_of(row))

    @router.patch(
        "/{upload_id}", status_code=204, response_class=Response, openapi_extra=_body(required=True)
    )
    async def patch(upload_id: str, request: Request) -> Response:
        """More bytes behind `Upload-Offset`. After the last one the upload is complete, and
        `Mentat-Ref` names the blob."""
        row = await _append(uploads, upload_id, uploader(request), request)
        return Response(status_code=204, headers=state_of(row))

    @router.delete("/{upload_id}", status_code=204, response_class=Response)
    async def terminate(upload_id: str, request: Request) -> Response:
        """Forget the upload, and the blob that it has become unless somebody needs that."""
        await uploads.abort(upload_id, workspace=uploader(request).workspace)
        return Response(status_code=204)

    return router


def _body(*, required: bool) -> dict[str, Any]:
    content = {BODY_TYPE: {"schema": {"type": "string", "format": "binary"}}}
    return {"requestBody": {"required": required, "content": content}}


def _configuration(max_bytes: int | None) -> dict[str, str]:
    limit = {} if max_bytes is None else {"Tus-Max-Size": str(max_bytes)}
    return {
        "Tus-Version": VERSION,
        "Tus-Extension": EXTENSIONS,
        "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
        **limit,
    }


def _version(request: Request) -> None:
    """`Invalid(TUS_VERSION_UNSUPPORTED)`; an OPTIONS asks what is spoken."""
    if request.method != "OPTIONS" and request.headers.get("tus-resumable") != VERSION:
        raise Invalid(
            Code.TUS_VERSION_UNSUPPORTED,
            "this is tus 1.0.0",
            hint="send `Tus-Resumable: 1.0.0`, or use POST /api/v1/storage/upload",
        )


async def _create(uploads: Uploads, who: Uploader, request: Request) -> Response:
    headers = request.headers
    if "upload-concat" in headers:
        raise Invalid(
            Code.INVALID_REQUEST,
            "the extension `concatenation` is not spoken here",
            hint="send one upload (parallelUploads: 1)",
        )
    size = announced_size(headers.get("upload-length"), headers.get("upload-defer-length"))
    digest = announced_sha256(headers, "repr-digest")
    if has_body := _has_body(headers):
        _check_body_type(headers)
    new = new_upload(who.workspace, who.owner, size, headers.get("upload-metadata", ""), digest)
    row = await uploads.create(new, "tus")
    place = {"Location": f"{TUS_PATH}/{row.id}"}
    if not has_body and size != 0:
        return Response(status_code=201, headers={**state_of(row), **place})
    source = _source(request, uploads.max_bytes)
    try:
        row = await uploads.append(
            row.id, source, workspace=who.workspace, offset=0, length=_length(headers)
        )
    except (MentatError, ClientDisconnect):
        with contextlib.suppress(NotFound):  # nobody knows its address
            await uploads.abort(row.id, workspace=who.workspace)
        raise
    return Response(status_code=201, headers={**state_of(row), **place})


async def _append(uploads: Uploads, upload_id: str, who: Uploader, request: Request) -> UploadRow:
    headers = request.headers
    _check_body_type(headers)
    told = headers.get("upload-length")
    return await uploads.append(
        upload_id,
        _source(request, uploads.max_bytes),
        workspace=who.workspace,
        offset=number("Upload-Offset", headers.get("upload-offset", "")),
        length=_length(headers),
        size=None if told is None else number("Upload-Length", told),
    )


def _source(request: Request, max_bytes: int | None) -> AsyncIterator[bytes]:
    """The body; with a checksum nothing of it before that is known to be right."""
    checksum = _checksum(request.headers)
    if checksum is None:
        return request.stream()
    return verified(bounded(request.stream(), max_bytes), checksum)


def _checksum(headers: Headers) -> Checksum | None:
    text = headers.get("upload-checksum")
    if text is not None:
        return parse_checksum(text)
    sha256 = announced_sha256(headers, "content-digest")
    return None if sha256 is None else Checksum("sha256", bytes.fromhex(sha256))


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _length(headers: Headers) -> int | None:
    announced = headers.get("content-length")
    return None if announced is None else number("Content-Length", announced)


def _check_body_type(headers: Headers) -> None:
    if headers.get("content-type", "").strip().lower() != BODY_TYPE:
        raise UnsupportedMedia(
            Code.INVALID_REQUEST,
            f"the bytes of an upload have the Content-Type {BODY_TYPE}",
            hint="their own type belongs into Upload-Metadata, as `filetype`",
        )
