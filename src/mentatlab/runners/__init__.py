"""How a node executes: one attempt as a conversation with an agent process, one-shot or warm."""

from mentatlab.runners.local import LocalRunner
from mentatlab.runners.port import Attempt, Invocation, Outcome, Runner
from mentatlab.runners.resources import PROFILES, calculate_resources
from mentatlab.runners.settings import RunnerSettings

__all__ = [
    "PROFILES",
    "Attempt",
    "Invocation",
    "LocalRunner",
    "Outcome",
    "Runner",
    "RunnerSettings",
    "calculate_resources",
]
