"""How a node executes: one attempt as a conversation with an agent process, one-shot or warm."""

from mentatlab.protocol.agent import PROFILES
from mentatlab.runners.local import LocalRunner
from mentatlab.runners.machine import Machine, this_machine
from mentatlab.runners.port import Attempt, Invocation, Outcome, Runner
from mentatlab.runners.resources import calculate_resources
from mentatlab.runners.settings import RunnerSettings

__all__ = [
    "PROFILES",
    "Attempt",
    "Invocation",
    "LocalRunner",
    "Machine",
    "Outcome",
    "Runner",
    "RunnerSettings",
    "calculate_resources",
    "this_machine",
]
