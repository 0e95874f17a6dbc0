"""What the headers of tus 1.0.0 say (https://tus.io/protocols/resumable-upload). Pure."""

import base64
import binascii
from email.utils import formatdate
from typing import get_args

from mentatlab.gateway.media_headers import clean_name
from mentatlab.protocol.errors import Code, Invalid
from mentatlab.protocol.pins import TTL_S, PinType, TtlClass
from mentatlab.storage.upload_rows import Claims, UploadRow
from mentatlab.storage.uploads import NewUpload

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,creation-defer-length,checksum,expiration,termination"
_MOST_DIGITS = 18
_FILE_TYPES = ("audio", "image", "video", "binary")


def number(name: str, text: str) -> int:
    """A non-negative integer; `Invalid`"""
    if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS:
        return int(text)
    raise _bad(f"{name}: {text[:40]!r} is not a number of bytes", "write it in decimal digits")


def announced_size(length: str | None, deferred: str | None) -> int | None:
    """Of a creation; None when it is told later. `Invalid` unless exactly one of them stands."""
    if deferred is not None and deferred != "1":
        raise _bad("Upload-Defer-Length is not 1", "leave it away, or write 1")
    if (length is None) == (deferred is None):
        raise _bad(
            "exactly one of Upload-Length and Upload-Defer-Length belongs to a creation",
            "send `Upload-Length: <bytes>`, or `Upload-Defer-Length: 1`",
        )
    return None if length is None else number("Upload-Length", length)


def metadata(header: str) -> dict[str, str]:
    """`key base64,key base64,key`; values are text. `Invalid`"""
    found: dict[str, str] = {}
    for pair in header.split(",") if header.strip() else ():
        key, _, encoded = pair.strip().partition(" ")
        if not key or key in found:
            raise _bad("Upload-Metadata has an empty or repeated key", "name each value once")
        try:
            found[key] = base64.b64decode(encoded.strip(), validate=True).decode()
        except (binascii.Error, ValueError):
            raise _bad(
                f"the value of {key[:40]!r} in Upload-Metadata is not base64 of UTF-8",
                "write each value in base64",
            ) from None
    return found


def new_upload(
    workspace: str, owner: str, size: int | None, header: str, sha256: str | None
) -> NewUpload:
    """`sha256` (hex) as another header announced it."""
    told = metadata(header)
    ttl = told.get("ttl")
    return NewUpload(
        workspace=workspace,
        size=size,
        expect=_pin(told.get("type", "")),
        filename=clean_name(told.get("filename") or told.get("name") or ""),
        ttl_s=None if ttl is None else ttl_s(ttl),
        claims=Claims(
            declared_mime=_mime(told),
            sha256=sha256_hex(sha256 or told.get("sha256", "")),
            owner=owner,
            tus_metadata=header,
        ),
    )


def ttl_s(name: str) -> float | None:
    for known in get_args(TtlClass):
        if known == name:
            return TTL_S[known]
    raise _bad(f"{name[:40]!r} is no TTL class", "use ephemeral, execution or pinned")


def sha256_hex(text: str) -> str:
    """Lower case; "" stays; `Invalid`"""
    if text and (len(text) != 64 or not all(c in "0123456789abcdefABCDEF" for c in text)):
        raise _bad("the announced digest is not 64 hex digits", "write it in hexadecimal")
    return text.lower()


def state_of(row: UploadRow) -> dict[str, str]:
    """How far it is: after a PATCH, a creation, and for HEAD."""
    headers = {"Upload-Offset": str(row.offset)}
    if row.state == "done":
        return {**headers, "Mentat-Ref": row.ref}
    return {**headers, "Upload-Expires": formatdate(row.expires_at, usegmt=True)}


def description_of(row: UploadRow) -> dict[str, str]:
    """For HEAD; nobody keeps a copy."""
    headers = {**state_of(row), "Cache-Control": "no-store"}
    if row.size is None:
        headers["Upload-Defer-Length"] = "1"
    else:
        headers["Upload-Length"] = str(row.size)
    if row.claims.tus_metadata:
        headers["Upload-Metadata"] = row.claims.tus_metadata
    return headers


def _pin(name: str) -> PinType | None:
    """Uppy's `type` is a MIME type, ours a pin's."""
    if not name or "/" in name:
        return None
    if name not in _FILE_TYPES:
        raise _bad(f"{name[:40]!r} is not a type of file", "use audio, image, video or binary")
    return PinType(name)


def _mime(told: dict[str, str]) -> str:
    mime = told.get("filetype") or told.get("mimeType") or told.get("type", "")
    return mime[:200] if "/" in mime and mime.isprintable() else ""


def _bad(message: str, hint: str) -> Invalid:
    return Invalid(Code.INVALID_REQUEST, message, hint=hint)
