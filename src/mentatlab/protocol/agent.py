"""What a runner needs to know of an agent: the run-time part of its manifest."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from mentatlab.protocol.pins import Pin

_OF_THE_SERVER = ("MENTATLAB_", "S3_")
_SHARED = frozenset({"MENTATLAB_MODEL_DIR"})


def is_reserved(variable: str) -> bool:
    """Whether it is one of the server's own settings, which hold its secrets: no agent gets it."""
    return variable.startswith(_OF_THE_SERVER) and variable not in _SHARED


_SECRET_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,99}")
_OF_THE_START = frozenset({"PATH", "LANG", "PYTHONPATH", "LD_PRELOAD", "LD_LIBRARY_PATH"})


def is_secret_name(name: str) -> bool:
    """Whether a secret may be called so: as an environment variable, and none on which the server
    or an agent's start depends."""
    return (
        _SECRET_NAME.fullmatch(name) is not None
        and not is_reserved(name)
        and name not in _OF_THE_START
    )


class Resources(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What one attempt may use. `explained` says for people where the numbers come from."""

    cpu: float = 1.0  # cores
    memory: int = 1 << 30  # bytes
    gpu: int = 0
    scratch: int = 1 << 30  # bytes of ephemeral storage
    timeout_s: float = 3600.0
    max_concurrent: int = 0  # 0 = no own limit
    batch: int = 0  # most that are handed over together, 0 = as the manifest says
    explained: tuple[str, ...] = ()

    def adapted(self, *, most: int, batch: int = 0) -> "Resources | None":
        """For one more attempt after it ran out of memory: twice the memory, up to `most` bytes
        (the machine's); where that is no more than it had, half of `batch`, the items that it took
        together. None when neither can change.
        """
        memory = min(2 * self.memory, most)
        if memory > self.memory:
            why = f"memory {_mib(self.memory)} → {_mib(memory)} MiB: it ran out of it"
            return self._changed(why, memory=memory)
        if (size := self.batch or batch) > 1:
            why = f"batch {size} → {size // 2}: out of memory, and the machine has no more"
            return self._changed(why, batch=size // 2)
        return None

    def _changed(self, why: str, *, memory: int = 0, batch: int = 0) -> "Resources":
        return msgspec.structs.replace(
            self,
            memory=memory or self.memory,
            batch=batch or self.batch,
            explained=(*self.explained, why),
        )


def _mib(bytes_: int) -> int:
    return bytes_ >> 20


_GIB = 1 << 30

PROFILES: Mapping[str, Resources] = {
    "text_processing": Resources(cpu=0.5, memory=_GIB, scratch=_GIB),
    "audio_processing": Resources(cpu=1, memory=2 * _GIB, scratch=5 * _GIB),
    "image_processing": Resources(cpu=2, memory=4 * _GIB, scratch=10 * _GIB),
    # A GPU is used where there is one, so it is no request.
    "video_processing": Resources(cpu=4, memory=8 * _GIB, scratch=50 * _GIB),
}

Origin = Literal["profile", "manifest"]
"""Who named a number of the resources: a profile (a smaller machine gives what it has), or the
author (a machine without it cannot run the agent)."""


class Batch(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Invocations handed to one process together: up to `max`, waiting at most `delay_ms`."""

    max: int
    delay_ms: int = 0


class Warm(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A process that serves many invocations: manifest `execution`, or a `longRunning` service."""

    concurrency: int = 1
    idle_ttl_s: float = 300.0
    max_invocations: int = 0  # 0 = no limit
    max_rss: int = 0  # bytes, 0 = no limit
    startup_timeout_s: float = 120.0
    batch: Batch | None = None
    service: bool = False  # one supervised process, restarted when it ends


class AgentProgram(msgspec.Struct, frozen=True, kw_only=True):
    """How to start an agent, what it takes and gives. `warm` None = a process per attempt."""

    id: str
    version: str
    command: tuple[str, ...]  # argv, absolute program
    directory: Path  # working directory: the manifest's folder
    inputs: tuple[Pin, ...] = ()
    outputs: tuple[Pin, ...] = ()
    env: tuple[str, ...] = ()  # names to inject
    fixed_env: tuple[tuple[str, str], ...] = ()  # old manifests' K=V
    warm: Warm | None = None
    resources: Resources = Resources()
    origins: Mapping[str, Origin] = {}  # of `cpu memory gpu scratch timeout_s`; absent = default
    outputs_optional: bool = False  # old manifests: `error` and `mentat_meta` may stay away
