"""`GET /api/v1/storage/{ref}?preview=thumb|poster|waveform&size=256&format=webp|png`.

Answered by the download route, as the bytes of the preview's own blob.
"""

from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from mentatlab.protocol.errors import Code, Invalid
from mentatlab.storage import StorageManager
from mentatlab.storage.port import Blob
from mentatlab.storage.previews import SIZES, Preview, PreviewFormat

T = TypeVar("T", bound=str)

_SIZE = 256  # pixels of the longer side
_PARAMETERS: dict[str, dict[str, Any]] = {
    "preview": {"type": "string", "enum": get_args(Preview), "description": "a picture instead"},
    "size": {"type": "integer", "minimum": 1, "maximum": SIZES[-1], "default": _SIZE},
    "format": {"type": "string", "enum": get_args(PreviewFormat), "default": "webp"},
}
PREVIEW_QUERY = {
    "parameters": [{"name": n, "in": "query", "schema": s} for n, s in _PARAMETERS.items()]
}
"""For the OpenAPI document; the values are read here, where the router is gone round too."""


async def asked_blob(storage: StorageManager, blob: Blob, query: Mapping[str, str]) -> Blob:
    """The blob itself, or the preview of it that the query asks for.

    `Invalid(INVALID_REQUEST)`, `UnsupportedMedia(PREVIEW_UNAVAILABLE)`.
    """
    if "preview" not in query:
        return blob
    preview: Preview = _one_of(query, "preview", get_args(Preview))
    format_: PreviewFormat = _one_of(query, "format", get_args(PreviewFormat))
    return await storage.previews.of(blob, preview, size=_size(query), format=format_)


def _one_of(query: Mapping[str, str], name: str, known: tuple[T, ...]) -> T:
    """The first when nothing is said."""
    said = query.get(name, known[0])
    for value in known:
        if said == value:
            return value
    raise Invalid(
        Code.INVALID_REQUEST, f"{name}={said[:40]!r} is unknown", hint=f"use {', '.join(known)}"
    )


def _size(query: Mapping[str, str]) -> int:
    said = query.get("size", str(_SIZE))
    if said.isascii() and said.isdecimal():
        return int(said[:9])
    raise Invalid(
        Code.INVALID_REQUEST, f"size={said[:40]!r} is no number of pixels", hint="use 64 to 1024"
    )
