"""What may be done to an upload, and what is told about it. Pure."""

from typing import Any

import msgspec

from mentatlab.protocol.errors import Code, Conflict, Invalid
from mentatlab.storage.arriving import beyond
from mentatlab.storage.sources import too_large
from mentatlab.storage.upload_rows import Mode, UploadRow

HOPELESS = frozenset({Code.MEDIA_TYPE_MISMATCH, Code.EMPTY_MEDIA, Code.DIGEST_MISMATCH})
"""What more bytes cannot mend: the upload goes."""


def meta_of(row: UploadRow, now: float) -> dict[str, Any]:
    """What the store keeps beside the bytes, and the blob's row is made of."""
    claims = dict(row.claims.metadata)
    if row.claims.declared_mime:
        claims["declaredMimeType"] = row.claims.declared_mime
    return {
        "ref": row.ref,
        "workspace": row.workspace,
        "expect": row.expect,
        "filename": row.filename,
        "claims": claims,
        "created_at": now,
        "expires_at": None if row.ttl_s is None else now + row.ttl_s,
    }


def with_claims(row: UploadRow, **claims: str) -> UploadRow:
    """What is told about the bytes now; "" says nothing."""
    told = {name: value for name, value in claims.items() if value}
    return msgspec.structs.replace(row, claims=msgspec.structs.replace(row.claims, **told))


def begun_again(row: UploadRow, mode: Mode) -> UploadRow:
    """From the first byte."""
    claims = msgspec.structs.replace(row.claims, head=b"", mime="")
    return msgspec.structs.replace(row, mode=mode, store_id="", offset=0, claims=claims)


def check_mode(row: UploadRow, mode: Mode) -> None:
    if row.mode != mode:
        raise _wrong_mode(row)


def check_direct(row: UploadRow) -> None:
    check_mode(row, "direct")
    if row.state != "open":
        raise _wrong_mode(row)


def check_limit(size: int | None, max_bytes: int | None) -> None:
    """`TooLarge(PAYLOAD_TOO_LARGE)`"""
    if max_bytes is not None and size is not None and size > max_bytes:
        raise too_large(max_bytes)


def check_size(row: UploadRow, size: int) -> None:
    """A size that is told now. `Invalid` when another one was told, or when more is there."""
    if row.size not in (None, size) or size < row.offset:
        raise Invalid(
            Code.INVALID_REQUEST,
            f"the size {size} is not what was told before, or less than has arrived",
            hint="Upload-Length is said once, and is not below the offset",
        )


def check_place(row: UploadRow, at: int, offset: int, length: int | None) -> None:
    """Whether `length` bytes (None = not known) for `offset` can join the `at` that are there."""
    if offset != at:
        raise Conflict(
            Code.UPLOAD_OFFSET_MISMATCH,
            f"the upload is at {at}, not at {offset}",
            hint="ask for the offset (HEAD) and go on from there",
            details={"offset": at},
        )
    if row.size is not None and length is not None and offset + length > row.size:
        raise beyond(row.size)


def check_whole(row: UploadRow, at: int) -> None:
    if at != row.size:
        raise _incomplete(
            f"{at} of {row.size} bytes have arrived", {"offset": at, "size": row.size}
        )


def check_parts(missing: list[int]) -> None:
    if missing:
        raise _incomplete(f"{len(missing)} parts are missing", {"missing_parts": missing[:1000]})


def check_blake3(found: str, claimed: str) -> None:
    if claimed and found != claimed.lower():
        raise Invalid(
            Code.DIGEST_MISMATCH,
            f"the bytes have blake3 {found}, announced was {claimed}",
            hint="the upload was damaged on its way; send it again",
        )


def _wrong_mode(row: UploadRow) -> Conflict:
    return Conflict(
        Code.CONFLICT,
        f"the upload {row.id} has the mode {row.mode} and is {row.state}",
        hint="follow the `mode` that the server answered",
    )


def _incomplete(message: str, details: dict[str, Any]) -> Conflict:
    return Conflict(
        Code.UPLOAD_INCOMPLETE,
        message,
        hint="send what is missing, then complete it again",
        details=details,
    )
