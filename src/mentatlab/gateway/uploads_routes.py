"""`/api/v1/storage/uploads`: the server says how bytes are to come; every way has the same end."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from mentatlab.gateway.digests import announced_sha256
from mentatlab.gateway.media_headers import clean_name
from mentatlab.gateway.models import Body
from mentatlab.gateway.storage_routes import FileType, Uploaded, uploaded
from mentatlab.gateway.tus_routes import TUS_PATH
from mentatlab.gateway.uploader import Uploader
from mentatlab.protocol.errors import Code, Invalid
from mentatlab.protocol.pins import TTL_S, PinType, TtlClass
from mentatlab.storage.port import Caps
from mentatlab.storage.upload_rows import Claims, Mode, UploadRow
from mentatlab.storage.uploads import NewUpload, Parts, Uploads

PATH = "/api/v1/storage/uploads"
SINGLE_BYTES = 4 << 20
"""Up to so many bytes an interrupted upload begins again."""
FIRST_PARTS = 64
_ALL_MODES: tuple[Mode, ...] = ("direct", "tus", "single")
_Digest = Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$", description="in hex")]
_CONTENT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class NewUploadBody(Body):
    """What is known of the bytes; `modes` are the ways that the client can go."""

    size: int | None = Field(default=None, ge=0, le=1 << 53, description="bytes")
    filename: str = Field(default="", max_length=1000)
    type: FileType | None = Field(default=None, description="the pin's type")
    mimeType: str = Field(default="", max_length=200)  # noqa: N815 — its name in references
    sha256: _Digest | None = None
    blake3: _Digest | None = None
    ttl: TtlClass | None = Field(default=None, description="none = until it is deleted")
    modes: list[Mode] = Field(default=list(_ALL_MODES), min_length=1)


class Part(BaseModel):
    """PUT exactly these bytes to the URL."""

    number: int
    offset: int
    size: int
    url: str


class UploadAnswer(BaseModel):
    """`url`: of the tus upload, or to PUT the whole body to (`single`). `part_size` and `parts`
    belong to `direct`; further parts are asked for by number."""

    upload_id: str
    ref: str = Field(description="what the blob will be called")
    mode: Mode
    expires_at: float = Field(description="Unix seconds; every progress moves it")
    url: str | None = None
    part_size: int | None = None
    parts: list[Part] | None = None


class UploadState(BaseModel):
    """`missing_parts` and `part_size` belong to an open `direct` upload, `result` to one that is
    done. `url` as it was answered at first."""

    upload_id: str
    ref: str
    mode: Mode
    state: Literal["open", "done"]
    offset: int = Field(description="bytes that are stored")
    size: int | None
    expires_at: float
    url: str | None = None
    part_size: int | None = None
    missing_parts: list[int] | None = None
    result: Uploaded | None = None


class PartsBody(Body):
    numbers: list[Annotated[int, Field(ge=1)]] = Field(min_length=1, max_length=1000)


class PartsAnswer(BaseModel):
    parts: list[Part]


class CompleteBody(Body):
    blake3: _Digest | None = None
    sha256: _Digest | None = None


class UsageAnswer(BaseModel):
    """Of the workspace; a quota of 0 is none. `reserved`: what open uploads have announced."""

    bytes: int
    count: int
    reserved_bytes: int
    reserved_count: int
    quota_bytes: int
    quota_count: int


def choose_mode(modes: Sequence[Mode], size: int | None, caps: Caps) -> Mode:
    """The best way of those that the client can go. `Invalid` when none of them leads here."""
    if "single" in modes and size is not None and size <= SINGLE_BYTES:
        return "single"
    if "direct" in modes and caps.presigns and size is not None and size > caps.part_size:
        return "direct"
    for mode in ("tus", "single"):
        if mode in modes:
            return mode
    raise Invalid(
        Code.INVALID_REQUEST,
        "this server, or an upload of this size, has no direct way",
        hint="offer `tus` or `single` too",
    )


def uploads_router(
    uploads: Uploads,
    uploader: Callable[[Request], Uploader],
    workspace_of: Callable[[Request], str],
) -> APIRouter:
    """`uploader` says for whom the caller uploads, `workspace_of` whose things he may read; or
    they raise."""
    router = APIRouter(prefix="/api/v1/storage", tags=["storage"])

    @router.post("/uploads", status_code=201, response_model=UploadAnswer)
    async def negotiate(body: NewUploadBody, request: Request) -> Any:
        """How to send these bytes: presigned parts, tus, or one body."""
        who = uploader(request)
        mode = choose_mode(body.modes, body.size, uploads.caps)
        row = await uploads.create(_new(body, who), mode)
        return await _answer(uploads, row)

    @router.get("/uploads/{upload_id}", response_model=UploadState)
    async def look(upload_id: str, request: Request) -> Any:
        """How far it is; when it is done, the result."""
        row = await uploads.find(upload_id, workspace=uploader(request).workspace)
        return await _state(uploads, row)

    @router.put("/uploads/{upload_id}/content", response_model=Uploaded, openapi_extra=_CONTENT)
    async def put(upload_id: str, request: Request) -> Any:
        """All bytes of a `single` upload. `Content-Digest` and `Repr-Digest` are checked."""
        digest = announced_sha256(request.headers, "content-digest", "repr-digest")
        blob = await uploads.put(
            upload_id,
            request.stream(),
            workspace=uploader(request).workspace,
            sha256=digest or "",
        )
        return uploaded(blob)

    @router.post("/uploads/{upload_id}/parts", response_model=PartsAnswer)
    async def parts(upload_id: str, body: PartsBody, request: Request) -> Any:
        """Fresh URLs for these parts of a `direct` upload."""
        row = await uploads.find(upload_id, workspace=uploader(request).workspace)
        return {"parts": _parts(await uploads.sign_parts(row, body.numbers))}

    @router.post("/uploads/{upload_id}/fallback", response_model=UploadAnswer)
    async def fallback(upload_id: str, request: Request) -> Any:
        """The direct way does not work from where the client is: go on by tus, from the start."""
        who = uploader(request)
        return await _answer(uploads, await uploads.fall_back(upload_id, workspace=who.workspace))

    @router.post("/uploads/{upload_id}/complete", response_model=Uploaded)
    async def complete(upload_id: str, request: Request, body: CompleteBody | None = None) -> Any:
        """The end of every way; it may be called again and answers the same blob."""
        told = body or CompleteBody()
        blob = await uploads.complete(
            upload_id,
            workspace=uploader(request).workspace,
            blake3=(told.blake3 or "").lower(),
            sha256=(told.sha256 or "").lower(),
        )
        return uploaded(blob)

    @router.delete("/uploads/{upload_id}", status_code=204)
    async def abandon(upload_id: str, request: Request) -> None:
        """Forget the upload, and the blob that it has become unless somebody needs that."""
        await uploads.abort(upload_id, workspace=uploader(request).workspace)

    @router.get("/usage", response_model=UsageAnswer)
    async def usage(request: Request) -> Any:
        """What the workspace has stored and announced, and may store."""
        used = await uploads.usage(workspace_of(request))
        quota = uploads.quota
        return UsageAnswer(
            bytes=used.bytes,
            count=used.count,
            reserved_bytes=used.reserved_bytes,
            reserved_count=used.reserved_count,
            quota_bytes=quota.bytes,
            quota_count=quota.count,
        )

    return router


def _new(body: NewUploadBody, who: Uploader) -> NewUpload:
    return NewUpload(
        workspace=who.workspace,
        size=body.size,
        expect=PinType(body.type) if body.type else None,
        filename=clean_name(body.filename),
        ttl_s=None if body.ttl is None else TTL_S[body.ttl],
        claims=Claims(
            declared_mime=body.mimeType if body.mimeType.isprintable() else "",
            sha256=(body.sha256 or "").lower(),
            blake3=(body.blake3 or "").lower(),
            owner=who.owner,
        ),
    )


async def _answer(uploads: Uploads, row: UploadRow) -> UploadAnswer:
    answer = UploadAnswer(
        upload_id=row.id,
        ref=row.ref,
        mode=row.mode,
        expires_at=row.expires_at,
        url=_url_of(row),
    )
    if row.mode == "direct":
        count = min(FIRST_PARTS, -(-(row.size or 0) // uploads.caps.part_size))
        signed = await uploads.sign_parts(row, list(range(1, count + 1)))
        answer.part_size, answer.parts = signed.size, _parts(signed)
    return answer


def _url_of(row: UploadRow) -> str | None:
    match row.mode:
        case "tus":
            return f"{TUS_PATH}/{row.id}"
        case "single":
            return f"{PATH}/{row.id}/content"
        case "direct":
            return None


async def _state(uploads: Uploads, row: UploadRow) -> UploadState:
    state = UploadState(
        upload_id=row.id,
        ref=row.ref,
        mode=row.mode,
        state=row.state,
        offset=row.offset,
        size=row.size,
        expires_at=row.expires_at,
        url=_url_of(row),
    )
    if row.state == "done":
        state.result = Uploaded(**uploaded(await uploads.result(row)))
    elif row.mode == "direct":
        state.missing_parts = await uploads.missing_parts(row)
        state.part_size = uploads.caps.part_size
    return state


def _parts(signed: Parts) -> list[Part]:
    return [Part(**part._asdict()) for part in signed.signed]
