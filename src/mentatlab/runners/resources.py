"""What an attempt needs: profiles, then explicit numbers, then what the inputs ask for on top.
Pure.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from mentatlab.protocol.agent import AgentProgram, Resources
from mentatlab.protocol.errors import Code, Invalid
from mentatlab.protocol.media import is_reference
from mentatlab.protocol.pins import parse_size

_GIB = 1 << 30

PROFILES: Mapping[str, Resources] = {
    "text_processing": Resources(cpu=0.5, memory=_GIB, scratch=_GIB),
    "audio_processing": Resources(cpu=1, memory=2 * _GIB, scratch=5 * _GIB),
    "image_processing": Resources(cpu=2, memory=4 * _GIB, scratch=10 * _GIB),
    "video_processing": Resources(cpu=4, memory=8 * _GIB, scratch=50 * _GIB, gpu=1),
}

_SCRATCH_PER_INPUT_BYTE = 3
"""A working copy, an output of the same size, and room."""


def calculate_resources(
    manifest: AgentProgram | Mapping[str, Any], inputs: Mapping[str, Any] | None = None
) -> Resources:
    """Cores, bytes and seconds for one attempt of an agent on these inputs.

    `manifest` is a program, or a manifest as a mapping (its `resources` with `profiles`; explicit
    values win; of several profiles the largest of each counts). Scratch space grows with the media
    among `inputs`.
    """
    base = manifest.resources if isinstance(manifest, AgentProgram) else _declared(manifest)
    needed = sum(_sizes(inputs or {})) * _SCRATCH_PER_INPUT_BYTE
    return msgspec.structs.replace(base, scratch=max(base.scratch, needed))


def _declared(manifest: Mapping[str, Any]) -> Resources:
    said: Mapping[str, Any] = manifest.get("resources") or {}
    base = _largest([_profile(name) for name in said.get("profiles") or ()])
    explicit = {
        "cpu": _cpu(said.get("cpu")),
        "memory": _size(said.get("memory")),
        "gpu": None if said.get("gpu") is None else int(said["gpu"]),
        "scratch": _size(said.get("ephemeralStorage")),
        "timeout_s": said.get("timeout_seconds"),
        "max_concurrent": said.get("max_concurrent"),
    }
    return msgspec.structs.replace(base, **{k: v for k, v in explicit.items() if v is not None})


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


def _sizes(value: object) -> list[int]:
    """Bytes of every media reference inside a JSON value."""
    if isinstance(value, Mapping):
        found = cast("Mapping[str, Any]", value)
        if is_reference(found):
            size = found["ref"].get("size", 0)
            return [size] if isinstance(size, int) and math.isfinite(size) else []
        return [size for part in found.values() for size in _sizes(part)]
    if isinstance(value, list | tuple):
        return [size for part in cast("list[Any]", value) for size in _sizes(part)]
    return []
