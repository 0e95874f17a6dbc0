"""Media references: what travels on an edge instead of bytes.

    {"type": "image",
     "ref": {"url": "mentat://default/blob_01J…", "size": 2048576, "blake3": "…",
             "metadata": {"mimeType": "image/jpeg", "width": 1920, "height": 1080}}}

Wherever a reference is read, the id alone, the `mentat://` URL and the object are accepted.
Handed to an agent it also carries `path` (read-only local file) or `get` (short-lived URL that
answers Range).
"""

import re
from typing import Any, NamedTuple

import msgspec

from mentatlab.protocol.errors import Code, Invalid
from mentatlab.protocol.pins import PinType

_REF_ID = re.compile(r"blob_[0-9A-HJKMNP-TV-Z]{26}")
_URL = re.compile(r"mentat://([A-Za-z0-9_.-]+)/(blob_[0-9A-HJKMNP-TV-Z]{26})")


class RefInfo(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    url: str
    size: int  # bytes
    blake3: str = ""  # hex
    sha256: str = ""  # hex, when asked for
    metadata: dict[str, Any] = {}


class MediaReference(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """`type`: audio, image, video, binary, or json/string for a value too large to stand inline."""

    type: PinType
    ref: RefInfo
    path: str = ""
    get: str = ""

    @property
    def id(self) -> str:
        return parse_url(self.ref.url).id

    def to_dict(self) -> dict[str, Any]:
        return msgspec.to_builtins(self)


class BlobUrl(NamedTuple):
    workspace: str
    id: str


def make_url(workspace: str, ref_id: str) -> str:
    return f"mentat://{workspace}/{ref_id}"


def parse_url(url: str) -> BlobUrl:
    match = _URL.fullmatch(url)
    if match is None:
        raise _bad(url)
    return BlobUrl(match[1], match[2])


def is_url(text: str) -> bool:
    return _URL.fullmatch(text) is not None


def is_ref_id(text: str) -> bool:
    return _REF_ID.fullmatch(text) is not None


def s3_address(value: object) -> str | None:
    """The `s3://bucket/key` that stands where a reference may stand; not yet checked."""
    match value:
        case str() if value.startswith("s3://"):
            return value
        case {"type": str(), "ref": {"url": str(inner)} | str(inner)}:
            return s3_address(inner)
        case _:
            return None


def ref_id_of(value: object) -> str:
    """The ref id in any accepted form of a reference; else `Invalid(REFERENCE_INVALID)`."""
    match value:
        case str() if is_ref_id(value):
            return value
        case str():
            return parse_url(value).id
        case MediaReference():
            return value.id
        case {"ref": {"url": str(url)}}:
            return parse_url(url).id
        case {"ref": str(text)}:
            return ref_id_of(text)
        case _:
            raise _bad(value)


def is_reference(value: object) -> bool:
    """Whether a JSON value is the object form of a reference (to find references inside values)."""
    match value:
        case {"type": str(), "ref": {"url": str(url)}}:
            return is_url(url)
        case _:
            return False


def _bad(value: object) -> Invalid:
    return Invalid(
        Code.REFERENCE_INVALID,
        f"{str(value)[:80]!r} is not a media reference",
        hint="give a ref id (blob_…), a mentat:// URL, or the reference that the upload answered",
    )
