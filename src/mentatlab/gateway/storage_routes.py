"""`/api/v1/storage`: upload, list, delete; `storage_download` gives the bytes."""

import re
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal, NamedTuple, get_args

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.datastructures import Headers

from mentatlab.gateway.digests import announced_sha256
from mentatlab.gateway.form_upload import FormUpload
from mentatlab.gateway.media_headers import clean_name
from mentatlab.gateway.storage_download import known_ref
from mentatlab.gateway.tus_headers import ttl_s
from mentatlab.gateway.uploader import Uploader
from mentatlab.protocol.errors import Code, Invalid
from mentatlab.protocol.pins import TTL_S, PinType, TtlClass
from mentatlab.storage import StorageManager, too_large
from mentatlab.storage.port import Blob

FileType = Literal["audio", "image", "video", "binary"]

_SETTINGS = ("type", "filename", "sha256", "ttl")
_SHA256_SAYS = "true: the reference has it; or 64 hex digits, with which the bytes are compared"
_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
_HEX = re.compile(r"[0-9a-f]{64}")
_UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "type": {"type": "string", "enum": ["audio", "image", "video", "binary"]},
                        "filename": {"type": "string"},
                        "sha256": {"type": "string", "description": _SHA256_SAYS},
                        "ttl": {"type": "string", "enum": list(get_args(TtlClass))},
                        "file": {"type": "string", "format": "binary"},
                    },
                }
            },
        },
    }
}


class Uploaded(BaseModel):
    """`reference` is what a run's input takes; `ref` alone does too."""

    ref: str
    metadata: dict[str, Any]
    reference: dict[str, Any]


class StoredItem(Uploaded):
    type: str
    size: int = Field(description="bytes")
    filename: str
    state: str = Field(description="ready, or corrupt: its bytes are damaged")
    created_at: float = Field(description="Unix seconds")
    expires_at: float | None


class StoredPage(BaseModel):
    """Newest first; `next` is the `before` of the following page, null on the last one."""

    items: list[StoredItem]
    next: str | None


class _Incoming(NamedTuple):
    body: AsyncIterator[bytes]
    declared_mime: str | None
    filename: str
    expect: PinType | None
    sha256: bool
    expected_sha256: str | None
    ttl_s: float | None
    size: int | None  # as announced


def storage_router(
    storage: StorageManager,
    workspace_of: Callable[[Request], str],
    uploader: Callable[[Request], Uploader],
) -> APIRouter:
    """`workspace_of` gives the caller's workspace, `uploader` for whom he uploads; or they raise
    when he may not."""
    router = APIRouter(prefix="/api/v1/storage", tags=["storage"])

    @router.post("/upload", status_code=201, response_model=Uploaded, openapi_extra=_UPLOAD_BODY)
    async def upload(
        request: Request,
        type: Annotated[FileType | None, Query(description="the pin's type")] = None,
        filename: str = "",
        sha256: Annotated[str, Query(description=_SHA256_SAYS)] = "",
        ttl: Annotated[
            TtlClass | None, Query(description="how long it is kept; none = until it is deleted")
        ] = None,
    ) -> Any:
        """Store the body (raw, or the one file of a form) and say what it is."""
        who = uploader(request)
        _refuse_too_large(request.headers, storage.max_bytes)
        incoming = await _incoming(request, type, filename, sha256, ttl)
        blob = await storage.store(
            incoming.body,
            workspace=who.workspace,
            owner=who.owner or None,
            expect=incoming.expect,
            declared_mime=incoming.declared_mime,
            filename=incoming.filename,
            sha256=incoming.sha256,
            expected_sha256=incoming.expected_sha256,
            ttl_s=incoming.ttl_s,
            size=incoming.size,
        )
        return uploaded(blob)

    @router.get("", response_model=StoredPage)
    async def page(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        before: str | None = None,
    ) -> Any:
        """What is stored, newest first."""
        blobs = await storage.page(workspace_of(request), limit=limit, before=before)
        following = blobs[-1].id if len(blobs) == limit else None
        return {"items": [_item(blob) for blob in blobs], "next": following}

    @router.delete("/{ref}", status_code=204)
    async def delete(ref: str, request: Request) -> None:
        """Remove an upload that no run or stream uses."""
        workspace = workspace_of(request)
        await storage.delete(known_ref(ref), workspace=workspace)

    return router


# --- upload


def _refuse_too_large(headers: Headers, limit: int | None) -> None:
    """Before a byte is read; the store counts what has no Content-Length."""
    announced = _announced(headers)
    if limit is not None and announced is not None and announced > limit:
        raise too_large(limit)


async def _incoming(
    request: Request,
    type_: FileType | None,
    filename: str,
    sha256: str,
    ttl: TtlClass | None,
) -> _Incoming:
    content_type = request.headers.get("content-type", "")
    expect = PinType(type_) if type_ else None
    digest = announced_sha256(request.headers, "content-digest", "repr-digest")
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        wanted, expected = _told_sha256(sha256)
        declared = content_type or None
        return _Incoming(
            request.stream(),
            declared,
            clean_name(filename),
            expect,
            wanted,
            digest or expected,
            None if ttl is None else TTL_S[ttl],
            _announced(request.headers),
        )
    if digest is not None:
        raise Invalid(
            Code.INVALID_REQUEST,
            "the digest of a form is not compared",
            hint="write the file's own, in hex, into a field `sha256` before it",
        )
    form = await FormUpload(content_type, request.stream(), settings=_SETTINGS).open()
    wanted, expected = _told_sha256(form.fields.get("sha256") or sha256)
    return _Incoming(
        aiter(form),
        form.content_type or None,
        clean_name(form.fields.get("filename") or filename or form.filename),
        _field_type(form.fields.get("type")) or expect,
        wanted,
        expected,
        ttl_s(form.fields.get("ttl") or ttl or "pinned"),
        None,
    )


def _announced(headers: Headers) -> int | None:
    length = headers.get("content-length", "")
    return int(length) if length.isdecimal() else None


def _told_sha256(text: str) -> tuple[bool, str | None]:
    """Whether the reference is to have it, and which one the bytes must have."""
    told = text.strip().lower()
    if told in _YES or told in _NO:
        return told in _YES, None
    if _HEX.fullmatch(told):
        return True, told
    raise Invalid(
        Code.INVALID_REQUEST,
        f"sha256={text[:80]!r} is neither true nor a digest",
        hint="write true, or the 64 hex digits of the bytes' SHA-256",
    )


def _field_type(name: str | None) -> PinType | None:
    if not name:
        return None
    if name not in get_args(FileType):
        raise Invalid(
            Code.INVALID_REQUEST,
            f"{name[:40]!r} is not a type of file",
            hint="use audio, image, video or binary",
        )
    return PinType(name)


def uploaded(blob: Blob) -> dict[str, Any]:
    """What `Uploaded` says."""
    reference = blob.reference().to_dict()
    return {"ref": blob.id, "metadata": blob.metadata, "reference": reference}


def _item(blob: Blob) -> dict[str, Any]:
    return {
        **uploaded(blob),
        "type": blob.type,
        "size": blob.size,
        "filename": blob.filename,
        "state": blob.state,
        "created_at": blob.created_at,
        "expires_at": blob.expires_at,
    }
