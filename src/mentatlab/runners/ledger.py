"""Who holds how much of the machine, and what an invocation needs of it. Pure."""

from collections.abc import Hashable, Iterable, Iterator
from typing import NamedTuple

from mentatlab.protocol.agent import Resources
from mentatlab.protocol.errors import Code
from mentatlab.runners.machine import Machine
from mentatlab.runners.port import Invocation, Outcome
from mentatlab.runners.result import failed


class Need(NamedTuple):
    cpu: float  # cores
    memory: int  # bytes
    gpu: int = 0


LIGHT = Need(0.05, 32 << 20)
"""Counted for an agent whose manifest says nothing: what a small script takes. So a machine of two
cores starts some forty of them at a time."""

_ROUNDING = 1e-6


class Ledger:
    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._held: dict[Hashable, Need] = {}
        self._cpu = 0.0
        self._memory = 0
        self._gpu = 0

    @property
    def used(self) -> Need:
        return Need(self._cpu, self._memory, self._gpu)

    def held_by(self, owner: Hashable) -> Need:
        return self._held.get(owner, _NOTHING)

    def hold(self, owner: Hashable, need: Need) -> None:
        """Instead of what it held before."""
        before = self._held.get(owner, _NOTHING)
        self._held[owner] = need
        self._add(need, before)

    def drop(self, owner: Hashable) -> None:
        self._add(_NOTHING, self._held.pop(owner, _NOTHING))

    def fits(
        self, need: Need, *, instead_of: Hashable = None, without: Iterable[Hashable] = ()
    ) -> bool:
        """Whether there is room for it; `without` are owners that are about to leave."""
        gone = [self.held_by(instead_of), *map(self.held_by, without)]
        cpu = self._cpu - sum(n.cpu for n in gone) + need.cpu
        memory = self._memory - sum(n.memory for n in gone) + need.memory
        gpu = self._gpu - sum(n.gpu for n in gone) + need.gpu
        machine = self._machine
        return cpu <= machine.cpus + _ROUNDING and memory <= machine.memory and gpu <= machine.gpus

    def _add(self, more: Need, less: Need) -> None:
        self._cpu += more.cpu - less.cpu
        self._memory += more.memory - less.memory
        self._gpu += more.gpu - less.gpu


_NOTHING = Need(0.0, 0, 0)


def need_of(invocation: Invocation, machine: Machine) -> Need | Outcome:
    """What is reserved for it; a failed outcome when the author asks for more than the machine has.

    A profile's numbers shrink to the machine. What nobody named counts as `LIGHT`, unless the
    inputs or an earlier failure have raised it.
    """
    if lacking := list(_lacking(invocation, machine)):
        return failed(
            "permanent",
            Code.RESOURCES_UNAVAILABLE,
            f"{invocation.program.id} asks for {' and '.join(lacking)}",
            hint="lower `resources` in its manifest, or run it on a larger machine",
        )
    asked, said = invocation.resources, invocation.program.origins
    raised = asked.memory > Resources().memory
    return Need(
        cpu=min(asked.cpu, machine.cpus) if "cpu" in said else LIGHT.cpu,
        memory=min(asked.memory, machine.memory) if "memory" in said or raised else LIGHT.memory,
        gpu=min(asked.gpu, machine.gpus),
    )


def _lacking(invocation: Invocation, machine: Machine) -> Iterator[str]:
    asked = invocation.resources
    firm = {k for k, origin in invocation.program.origins.items() if origin == "manifest"}
    if "cpu" in firm and asked.cpu > machine.cpus + _ROUNDING:
        yield f"{asked.cpu:g} cores, and there are {machine.cpus:g}"
    if "memory" in firm and asked.memory > machine.memory:
        yield f"{asked.memory >> 20} MiB of memory, and there are {machine.memory >> 20}"
    if "gpu" in firm and asked.gpu > machine.gpus:
        yield f"{asked.gpu} GPUs, and there are {machine.gpus}"
