"""Which part of an object a GET wants: RFC 9110 §13 (conditions) and §14 (ranges). Pure.

Objects are immutable and have a strong ETag; without Last-Modified, date conditions never hold.
"""

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from starlette.datastructures import Headers

from mentatlab.protocol.errors import RangeUnsatisfiable
from mentatlab.storage.port import ByteRange

CONDITIONS = ("if-match", "if-none-match", "if-range", "range")
"""The headers that `select` reads; several lines of one header are joined by commas."""

_ENTITY_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_RANGES = re.compile(r"bytes=(.*)", re.IGNORECASE | re.DOTALL)
_SPEC = re.compile(r"([0-9]*)-([0-9]*)")
_DIGITS = 18  # an offset with more lies beyond every object


def conditions_of(headers: Headers) -> dict[str, str]:
    """For `select`."""
    return {name: ", ".join(headers.getlist(name)) for name in CONDITIONS if name in headers}


class Selection(NamedTuple):
    status: Literal[200, 206, 304, 412]
    span: ByteRange | None = None  # of a 206


def select(
    size: int, etag: str, headers: Mapping[str, str], *, method: Literal["GET", "HEAD"]
) -> Selection:
    """`headers` has lower-case names; `etag` is quoted. `RangeUnsatisfiable` is the 416.

    A range that is malformed, in another unit, or several at once, is answered whole, as the RFC
    allows; so is every HEAD.
    """
    if "if-match" in headers and not _matches(headers["if-match"], etag, strong=True):
        return Selection(412)
    if "if-none-match" in headers and _matches(headers["if-none-match"], etag, strong=False):
        return Selection(304)
    if method == "HEAD" or "range" not in headers:
        return Selection(200)
    if "if-range" in headers and headers["if-range"].strip() != etag:
        return Selection(200)
    span = parse_range(headers["range"], size)
    return Selection(200) if span is None else Selection(206, span)


def parse_range(header: str, size: int) -> ByteRange | None:
    """The one satisfiable range; None = ignore the header; `RangeUnsatisfiable` when none fits."""
    match = _RANGES.fullmatch(header.strip())
    if match is None:
        return None
    specs = [
        _SPEC.fullmatch(part.strip(" \t")) for part in match[1].split(",") if part.strip(" \t")
    ]
    if not specs or any(spec is None or not _is_valid(spec) for spec in specs):
        return None
    if size == 0 and any(spec and not spec[1] and _offset(spec[2]) for spec in specs):
        return None  # a suffix of nothing is all of it
    spans = [span for spec in specs if spec and (span := _span(spec, size))]
    if not spans:
        raise RangeUnsatisfiable(size)
    return spans[0] if len(specs) == 1 else None


def _is_valid(spec: re.Match[str]) -> bool:
    first, last = spec[1], spec[2]
    return bool(first or last) and not (first and last and _offset(last) < _offset(first))


def _span(spec: re.Match[str], size: int) -> ByteRange | None:
    if not spec[1]:
        start, stop = max(0, size - _offset(spec[2])), size
    else:
        start = _offset(spec[1])
        stop = min(size, _offset(spec[2]) + 1) if spec[2] else size
    return ByteRange(start, stop) if start < stop else None


def _offset(digits: str) -> int:
    significant = digits.lstrip("0")
    return 10**_DIGITS if len(significant) > _DIGITS else int(significant or "0")


def _matches(header: str, etag: str, *, strong: bool) -> bool:
    """Whether a list of entity tags, or `*`, has ours; weak ones count in a weak comparison."""
    if header.strip() == "*":
        return True
    return any(
        f'"{tag}"' == etag and not (strong and weak) for weak, tag in _ENTITY_TAG.findall(header)
    )
