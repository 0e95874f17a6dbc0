"""Pin types and their metadata.

On an output pin metadata describes what comes out; on an input pin it is a constraint.
"""

import math
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from fractions import Fraction
from typing import Any, Literal

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


TtlClass = Literal["ephemeral", "execution", "pinned"]
"""How long stored bytes are kept at most, whoever needs them."""
TTL_S: Mapping[TtlClass, float | None] = {
    "ephemeral": 3600.0,
    "execution": 7 * 86_400.0,
    "pinned": None,
}
"""In seconds from when they were stored; None = until nobody needs them."""


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
    ttl: TtlClass | None = None  # of what comes out; None = execution

    @property
    def longest(self) -> float | None:
        """Upper bound of the duration in seconds: the smaller of `duration` and `maxDuration`."""
        bounds = [d for d in (self.duration, self.max_duration) if d is not None]
        return min(bounds, default=None)


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
        """Type of one element: a stream's `items` (json when silent), else the type itself."""
        if self.type is PinType.STREAM:
            return self.metadata.items or PinType.JSON
        return self.type


_SIZE = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*(?:([kKMGT])(i?))?[bB]?\s*")
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str | int) -> int:
    """Bytes of `"10MB"` (decimal), `"1GiB"` or Kubernetes' `"4Gi"` (binary), `"512"`.

    Else `Invalid(MANIFEST_BAD_SIZE)`.
    """
    if isinstance(text, int):
        text = str(text)
    match = _SIZE.fullmatch(text)
    if match is None:
        raise Invalid(
            Code.MANIFEST_BAD_SIZE,
            f"{text[:60]!r} is not a size",
            hint='write "10MB", "1GiB" or a number of bytes',
        )
    number, unit, binary = match.groups(default="")
    return int(Fraction(number) * (1024 if binary else 1000) ** _POWER[unit.lower()])


def mime_patterns(text: str | None) -> frozenset[str]:
    """`"image/jpeg, image/*"` → its parts, lower case, without parameters; empty = anything."""
    return frozenset(part for part in map(_bare, (text or "").split(",")) if part)


def mime_fits(mime: str, patterns: frozenset[str]) -> bool:
    """Whether one concrete MIME type is in the set that the patterns describe."""
    if not patterns or "*/*" in patterns:
        return True
    bare = _bare(mime)
    return bare in patterns or bare.split("/")[0] + "/*" in patterns


def _bare(mime: str) -> str:
    return mime.split(";")[0].strip().lower()


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


_EQUAL = {
    "sample_rate": "sampleRate",
    "channels": "channels",
    "width": "width",
    "height": "height",
    "fps": "fps",
}
"""Constraints that must be met exactly: attribute → name in documents and probed metadata."""

_RELATIVE_TOLERANCE = 1e-3  # 29.97 fps is 30000/1001


def violations(
    constraint: PinMetadata, *, size: int | None, found: Mapping[str, Any]
) -> Iterator[Problem]:
    """What of a medium breaks an input pin's constraint.

    `size` in bytes, `found` as probing told (`mimeType width height duration fps sampleRate
    channels`); what is unknown is not judged. `duration` and `maxDuration` are upper bounds in
    seconds, `maxSize` one in bytes; the others must be equal.
    """
    mime = found.get("mimeType")
    if mime and not mime_fits(mime, mime_patterns(constraint.mime_type)):
        text = f"{mime} is not {constraint.mime_type}"
        yield Problem(Code.MEDIA_TYPE_MISMATCH, "/metadata/mimeType", text)
    if constraint.max_size and size is not None and size > parse_size(constraint.max_size):
        text = f"{size} bytes are over maxSize {constraint.max_size}"
        yield Problem(Code.MEDIA_TOO_LARGE, "/size", text)
    longest, duration = constraint.longest, _number(found.get("duration"))
    if longest is not None and duration is not None and duration > longest:
        text = f"{duration:g} s are over {longest:g} s"
        yield Problem(Code.MEDIA_TOO_LONG, "/metadata/duration", text)
    for attribute, name in _EQUAL.items():
        wanted, is_ = getattr(constraint, attribute), _number(found.get(name))
        if wanted is None or is_ is None:
            continue
        if not math.isclose(wanted, is_, rel_tol=_RELATIVE_TOLERANCE if name == "fps" else 0):
            text = f"{name} is {is_:g}, the pin asks for {wanted:g}"
            yield Problem(Code.MEDIA_CONSTRAINT, f"/metadata/{name}", text)


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) else None
