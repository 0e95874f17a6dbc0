"""What a runner needs to know of an agent: the run-time part of its manifest."""

from pathlib import Path

import msgspec

from mentatlab.protocol.pins import Pin

_OF_THE_SERVER = ("MENTATLAB_", "S3_")
_SHARED = frozenset({"MENTATLAB_MODEL_DIR"})


def is_reserved(variable: str) -> bool:
    """Whether it is one of the server's own settings, which hold its secrets: no agent gets it."""
    return variable.startswith(_OF_THE_SERVER) and variable not in _SHARED


class Resources(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    cpu: float = 1.0  # cores
    memory: int = 1 << 30  # bytes
    gpu: int = 0
    scratch: int = 1 << 30  # bytes of ephemeral storage
    timeout_s: float = 3600.0
    max_concurrent: int = 0  # 0 = no own limit


class Warm(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Manifest `execution` of a warm agent."""

    concurrency: int = 1
    idle_ttl_s: float = 300.0
    max_invocations: int = 0  # 0 = no limit
    max_rss: int = 0  # bytes, 0 = no limit
    startup_timeout_s: float = 120.0


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
    outputs_optional: bool = False  # old manifests: `error` and `mentat_meta` may stay away
