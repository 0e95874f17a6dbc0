"""Objects of other buckets as inputs: which ones a workspace may read.

`MENTATLAB_S3_PREFIXES="default=s3://bucket/prefix/,team-a=s3://team-a/"`: a workspace has any
number of prefixes, each ending in a slash, and reads what lies below them with the server's own S3
settings. Nothing else is ever asked for.
"""

import contextlib
import importlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import NamedTuple

from mentatlab.protocol.errors import Code, Forbidden, Invalid
from mentatlab.storage.s3_login import Login, read_login

Prefixes = Sequence[tuple[str, str]]
"""(workspace, address) pairs."""
Read = Callable[[str, str], AsyncIterator[bytes]]
"""The bytes of an object, by bucket and key. `NotFound(REFERENCE_NOT_FOUND)`,
`Unavailable(STORE_UNAVAILABLE)`."""

_ADDRESS = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/([^\x00-\x1f\x7f]*)")
_WORKSPACE = re.compile(r"[A-Za-z0-9_.-]+")


class InputPlaces(NamedTuple):
    prefixes: Prefixes
    login: Login


def read_places(environ: Mapping[str, str]) -> InputPlaces | None:
    """Of `MENTATLAB_S3_PREFIXES` and what `read_login` reads. `Invalid(BAD_SETTING)`"""
    prefixes = parse_prefixes(environ.get("MENTATLAB_S3_PREFIXES") or "")
    return InputPlaces(prefixes, read_login(environ)) if prefixes else None


@contextlib.asynccontextmanager
async def open_s3_inputs(places: InputPlaces | None) -> AsyncGenerator["S3Inputs | None"]:
    """`Invalid(MISSING_EXTRA)` without the package that speaks with S3."""
    if places is None:
        yield None
        return
    try:
        module = importlib.import_module("mentatlab.storage.s3_source")
    except ModuleNotFoundError as error:
        raise Invalid(
            Code.MISSING_EXTRA,
            "MENTATLAB_S3_PREFIXES names buckets, and the package to read them is not installed",
            hint="pip install 'mentatlab[server,s3]'",
        ) from error
    async with contextlib.aclosing(module.S3Source(places.login)) as source:
        yield S3Inputs(places.prefixes, source.read)


class _Place(NamedTuple):
    bucket: str
    key: str


class S3Inputs:
    def __init__(self, prefixes: Prefixes, read: Read) -> None:
        self._prefixes = [(workspace, _place(address)) for workspace, address in prefixes]
        self._read = read

    def open(self, address: str, *, workspace: str) -> AsyncIterator[bytes]:
        """`Forbidden(S3_PREFIX_FORBIDDEN)`, before anything is asked for."""
        place = _place(address)
        if place is None or not self._may(workspace, place):
            raise forbidden(address)
        return self._read(place.bucket, place.key)

    def _may(self, workspace: str, place: _Place) -> bool:
        return any(
            owner == workspace and prefix is not None and _is_below(place, prefix)
            for owner, prefix in self._prefixes
        )


def parse_prefixes(text: str) -> list[tuple[str, str]]:
    """Of the setting. `Invalid(BAD_SETTING)`"""
    pairs: list[tuple[str, str]] = []
    for part in filter(None, map(str.strip, text.split(","))):
        workspace, _, address = part.partition("=")
        place = _place(address)
        whole = place is not None and (not place.key or _is_clean(place.key))
        if not _WORKSPACE.fullmatch(workspace) or not whole or not address.endswith("/"):
            raise Invalid(
                Code.BAD_SETTING,
                f"MENTATLAB_S3_PREFIXES: {part[:80]!r} is not usable",
                hint="write WORKSPACE=s3://BUCKET/PREFIX/ with a slash at the end, several with"
                " commas between them",
            )
        pairs.append((workspace, address))
    return pairs


def forbidden(address: str) -> Forbidden:
    return Forbidden(
        Code.S3_PREFIX_FORBIDDEN,
        f"{address[:120]!r} is not below a prefix that this workspace may read",
        hint="upload the file, or have its place added to MENTATLAB_S3_PREFIXES",
    )


def _place(address: str) -> _Place | None:
    match = _ADDRESS.fullmatch(address)
    return None if match is None else _Place(match[1], match[2])


def _is_below(place: _Place, prefix: _Place) -> bool:
    inside = place.bucket == prefix.bucket and place.key.startswith(prefix.key)
    return inside and place.key != prefix.key and _is_clean(place.key)


def _is_clean(key: str) -> bool:
    """S3 takes a key as it is; whatever else reads it must not make another one of it."""
    segments = key.removesuffix("/").split("/")
    return "\\" not in key and not any(segment in ("", ".", "..") for segment in segments)
