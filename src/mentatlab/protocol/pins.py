"""Pin types and their metadata.

On an output pin metadata describes what comes out; on an input pin it is a constraint.
"""

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

import msgspec

from mentatlab.protocol.errors import Code, Invalid, Problem


class PinType(StrEnum):
    STRING = "string"
    NUMBER = "number"
    BOOLEAN = "boolean"
    JSON = "json"
    BINARY = "binary"
    AUDIO = "audio"
    IMAGE = "image"
    VIDEO = "video"
    STREAM = "stream"


MEDIA_TYPES = frozenset({PinType.AUDIO, PinType.IMAGE, PinType.VIDEO})
BY_REFERENCE = MEDIA_TYPES | {PinType.BINARY}
"""Types whose values travel as media references, never as bytes."""


class PinMetadata(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    mime_type: str | None = None  # one, a comma list, or "image/*"
    encoding: str | None = None
    sample_rate: int | None = None  # Hz
    channels: int | None = None
    width: int | None = None  # px
    height: int | None = None  # px
    fps: float | None = None
    duration: float | None = None  # s
    max_duration: float | None = None  # s
    max_size: str | None = None  # "10MB" (10^6), "1GiB" (2^30)
    streaming: bool | None = None
    by_reference: bool | None = None
    items: PinType | None = None  # type of one element of a stream


class Pin(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    type: PinType
    required: bool = True
    default: Any = None
    enum: tuple[Any, ...] | None = None
    description: str = ""
    metadata: PinMetadata = PinMetadata()

    @property
    def item_type(self) -> PinType:
        """Type of one element: `items` of a stream (json when it is silent), else the type itself."""
        if self.type is PinType.STREAM:
            return self.metadata.items or PinType.JSON
        return self.type


_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)([bB]?)\s*")
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str | int) -> int:
    """Bytes of `"10MB"` (decimal), `"1GiB"` or Kubernetes' `"4Gi"` (binary), `"512"`."""
    if isinstance(text, int):
        return text
    match = _SIZE.fullmatch(text)
    if match is None:
        raise Invalid(
            Code.MANIFEST_BAD_SIZE,
            f"{text!r} is not a size",
            hint='write "10MB", "1GiB" or a number of bytes',
        )
    number, unit, binary, _ = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWER[unit.lower()])


def mime_patterns(text: str | None) -> frozenset[str]:
    """`"image/jpeg, image/*"` → its parts, lower case, without parameters; empty = anything."""
    if not text:
        return frozenset()
    return frozenset(p.split(";")[0].strip().lower() for p in text.split(",") if p.strip())


def mime_fits(mime: str, patterns: frozenset[str]) -> bool:
    """Whether one concrete MIME type is in the set that the patterns describe."""
    if not patterns or "*/*" in patterns:
        return True
    bare = mime.split(";")[0].strip().lower()
    return bare in patterns or bare.split("/")[0] + "/*" in patterns


def mimes_intersect(a: frozenset[str], b: frozenset[str]) -> bool:
    if not a or not b:
        return True
    return any(_overlap(x, y) for x in a for y in b)


def _overlap(x: str, y: str) -> bool:
    if "*/*" in (x, y) or x == y:
        return True
    if x.split("/")[0] != y.split("/")[0]:
        return False
    return x.endswith("/*") or y.endswith("/*")


_EXACT = ("sample_rate", "channels", "width", "height", "fps")
_CAMEL = {"sample_rate": "sampleRate"}


def violations(
    constraint: PinMetadata, *, size: int | None, found: Mapping[str, Any]
) -> Iterator[Problem]:
    """What of a medium breaks an input pin's constraint.

    `size` in bytes, `found` as probing told (`mimeType width height duration fps sampleRate channels`);
    what is unknown is not judged. `duration` and `maxDuration` are upper bounds in seconds, `maxSize` one
    in bytes; the others must be equal.
    """
    mime = found.get("mimeType")
    patterns = mime_patterns(constraint.mime_type)
    if mime and not mime_fits(mime, patterns):
        yield Problem(
            Code.MEDIA_TYPE_MISMATCH, "/metadata/mimeType", f"{mime} is not {constraint.mime_type}"
        )
    if constraint.max_size and size is not None and size > parse_size(constraint.max_size):
        yield Problem(
            Code.MEDIA_TOO_LARGE, "/size", f"{size} bytes are over maxSize {constraint.max_size}"
        )
    longest = min(
        (d for d in (constraint.duration, constraint.max_duration) if d is not None), default=None
    )
    duration = found.get("duration")
    if longest is not None and duration is not None and duration > longest:
        yield Problem(
            Code.MEDIA_TOO_LONG, "/metadata/duration", f"{duration:g} s are over {longest:g} s"
        )
    for name in _EXACT:
        wanted, is_ = getattr(constraint, name), found.get(_CAMEL.get(name, name))
        if wanted is not None and is_ is not None and wanted != is_:
            yield Problem(
                Code.MEDIA_CONSTRAINT,
                f"/metadata/{_CAMEL.get(name, name)}",
                f"{name} is {is_:g}, the pin asks for {wanted:g}",
            )
