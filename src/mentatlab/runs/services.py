"""What a run is carried out with, and the run itself as its parts know it."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mentatlab.runners.machine import Machine, this_machine
from mentatlab.runners.port import Runner
from mentatlab.runs.edges import MultimodalEdgeProcessor
from mentatlab.runs.folders import Folders
from mentatlab.runs.limits import Limits
from mentatlab.runs.registry import AgentRegistry
from mentatlab.runs.secrets import SecretsFor, no_secrets
from mentatlab.runs.store import RunStore
from mentatlab.streams.hub import StreamingConnectionManager


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The other rooms and the world, as the engine was given them. `clock`: Unix seconds."""

    store: RunStore
    hub: StreamingConnectionManager
    edges: MultimodalEdgeProcessor
    runner: Runner
    registry: AgentRegistry
    scratch: Path
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    secret: bytes = b""
    url: str = ""
    secrets_for: SecretsFor = no_secrets
    limits: Limits = field(default_factory=Limits)
    machine: Machine = field(default_factory=this_machine)
    folders: Folders = field(default_factory=Folders)
    clock: Callable[[], float] = time.time
    chance: Callable[[], float] = random.random


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    id: str
    workspace: str
    flow_id: str
