"""What all attempts and workers of one runner share."""

import math
from typing import NamedTuple

import msgspec

from mentatlab.runners.child import Guardian, Limits
from mentatlab.runners.machine import Machine
from mentatlab.runners.port import Invocation
from mentatlab.runners.settings import RunnerSettings
from mentatlab.runners.watch import Watch

_CPU_SLACK_S = 60


class Host(NamedTuple):
    settings: RunnerSettings
    machine: Machine
    guardian: Guardian
    watch: Watch

    def memory_for(self, invocation: Invocation) -> int:
        """Bytes after which the agent's process tree is ended."""
        return min(invocation.resources.memory, self.machine.memory)

    def one_shot_limits(self, invocation: Invocation) -> Limits:
        """A second line behind the clocks and the watch, should the host be held up."""
        cpu_s = invocation.attempt_timeout_s * max(1.0, self.machine.cpus) + _CPU_SLACK_S
        return msgspec.structs.replace(
            self.settings.limits,
            cpu_s=math.ceil(cpu_s),
            file_bytes=invocation.resources.scratch,
        )
