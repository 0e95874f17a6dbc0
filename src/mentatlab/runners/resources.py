"""What an attempt needs: profiles, then explicit numbers, then what the inputs ask for on top.
Pure.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import msgspec

from mentatlab.protocol.agent import PROFILES, AgentProgram, Origin, Resources
from mentatlab.protocol.errors import Code, Invalid
from mentatlab.protocol.media import is_reference
from mentatlab.protocol.pins import parse_size

_SCRATCH_PER_INPUT_BYTE = 3
"""A working copy, an output of the same size, and room."""

_MEMORY_BESIDE_PIXELS = 256 << 20
_BYTES_PER_PIXEL = {"image": 16, "video": 96}
"""Decoded RGB, a float32 copy of it, and room; of a video 32 decoded frames."""

_TIME_PER_MEDIA_SECOND = 4
"""A medium may take this many times as long as it plays, when the author sets no time."""


class Medium(NamedTuple):
    """What is known of one medium among the inputs; 0 = unknown."""

    type: str
    size: int  # bytes
    pixels: int  # of one frame
    duration: float  # seconds


def calculate_resources(
    manifest: AgentProgram | Mapping[str, Any], inputs: Mapping[str, Any] | None = None
) -> Resources:
    """Cores, bytes and seconds for one attempt of an agent on these inputs; `explained` says why.

    `manifest` is a program, or a manifest as a mapping (its `resources` with `profiles`; explicit
    values win; of several profiles the largest of each counts). Scratch space grows with the bytes
    of the media among `inputs`, memory with their pixels and time with their duration, the latter
    two unless the author set them.
    """
    if isinstance(manifest, AgentProgram):
        base, origins = manifest.resources, manifest.origins
    else:
        base, origins = _declared(manifest)
    media = list(_media(inputs or {}))
    return _grown(msgspec.structs.replace(base, explained=_explain(base, origins)), media, origins)


def _grown(base: Resources, media: list[Medium], origins: Mapping[str, Origin]) -> Resources:
    scratch = sum(m.size for m in media) * _SCRATCH_PER_INPUT_BYTE
    pixels = sum(m.pixels * _BYTES_PER_PIXEL.get(m.type, 0) for m in media)
    wishes = {
        "scratch": (scratch, f"scratch {_mib(scratch)} MiB: 3 × the bytes of the input media"),
        "memory": (
            pixels and pixels + _MEMORY_BESIDE_PIXELS,
            f"memory {_mib(pixels + _MEMORY_BESIDE_PIXELS)} MiB: for the pixels of the input media",
        ),
        "timeout_s": (
            sum(m.duration for m in media) * _TIME_PER_MEDIA_SECOND,
            f"time: {_TIME_PER_MEDIA_SECOND} × the duration of the input media",
        ),
    }
    for name, (needed, why) in wishes.items():
        fixed = name != "scratch" and origins.get(name) == "manifest"
        if not fixed and needed > getattr(base, name):
            base = msgspec.structs.replace(base, **{name: needed}, explained=(*base.explained, why))
    return base


def _explain(base: Resources, origins: Mapping[str, Origin]) -> tuple[str, ...]:
    return (
        f"cpu {base.cpu:g} ({_origin(origins, 'cpu')})",
        f"memory {_mib(base.memory)} MiB ({_origin(origins, 'memory')})",
        *([f"gpu {base.gpu} ({_origin(origins, 'gpu')})"] if base.gpu else []),
    )


def _origin(origins: Mapping[str, Origin], name: str) -> str:
    return origins.get(name, "default")


def _mib(bytes_: int) -> int:
    return bytes_ >> 20


def _declared(manifest: Mapping[str, Any]) -> tuple[Resources, dict[str, Origin]]:
    said: Mapping[str, Any] = manifest.get("resources") or {}
    profiles = [_profile(name) for name in said.get("profiles") or ()]
    base = _largest(profiles)
    given = {
        "cpu": _cpu(said.get("cpu")),
        "memory": _size(said.get("memory")),
        "gpu": None if said.get("gpu") is None else int(said["gpu"]),
        "scratch": _size(said.get("ephemeralStorage")),
        "timeout_s": said.get("timeout_seconds"),
        "max_concurrent": said.get("max_concurrent"),
    }
    explicit = {k: v for k, v in given.items() if v is not None}
    origins: dict[str, Origin] = dict.fromkeys(
        ("cpu", "memory", "gpu", "scratch") if profiles else (), "profile"
    )
    origins |= dict.fromkeys(explicit, "manifest")
    return msgspec.structs.replace(base, **explicit), origins


def _profile(name: str) -> Resources:
    if name not in PROFILES:
        raise Invalid(
            Code.MANIFEST_INVALID,
            f"there is no resource profile {name!r}",
            hint=f"one of {', '.join(PROFILES)}",
        )
    return PROFILES[name]


def _largest(profiles: list[Resources]) -> Resources:
    if not profiles:
        return Resources()
    return Resources(
        cpu=max(p.cpu for p in profiles),
        memory=max(p.memory for p in profiles),
        gpu=max(p.gpu for p in profiles),
        scratch=max(p.scratch for p in profiles),
    )


def _cpu(value: str | float | None) -> float | None:
    """Cores; Kubernetes' `"500m"` is half a core."""
    if isinstance(value, str):
        return float(value[:-1]) / 1000 if value.endswith("m") else float(value)
    return value


def _size(value: str | int | None) -> int | None:
    return None if value is None else parse_size(value)


def _media(value: object) -> Iterator[Medium]:
    """Every media reference inside a JSON value."""
    if isinstance(value, Mapping):
        found = cast("Mapping[str, Any]", value)
        if is_reference(found):
            yield _medium(found)
            return
        value = list(found.values())
    if isinstance(value, list | tuple):
        for part in cast("list[Any]", value):
            yield from _media(part)


def _medium(reference: Mapping[str, Any]) -> Medium:
    ref = cast("Mapping[str, Any]", reference["ref"])
    known = cast("Mapping[str, Any]", ref.get("metadata") or {})
    return Medium(
        type=str(reference.get("type", "")),
        size=int(_amount(ref.get("size"))),
        pixels=int(_amount(known.get("width")) * _amount(known.get("height"))),
        duration=_amount(known.get("duration")),
    )


def _amount(value: object) -> float:
    known = isinstance(value, int | float) and math.isfinite(value) and value > 0
    return float(cast("float", value)) if known else 0.0
