"""The processes of every agent, with what they use: read from /proc (Linux; elsewhere empty).

A process belongs to the agent whose mark stands in its environment, or its parent's or session
leader's agent where it has cleared that. So daemons are counted that left the group.
"""

import os
from typing import NamedTuple

from mentatlab.runners import guardian

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
_FRESH_LOOK = 40
"""Takes after which also what was nobody's is looked at again: its number may be another's now."""


class Usage(NamedTuple):
    """Of one agent's processes together. Resident bytes (shared pages counted for each), seconds
    of CPU since they began."""

    pids: tuple[int, ...]
    memory: int
    cpu_s: float


class _Stat(NamedTuple):
    pid: int
    parent: int
    session: int
    cpu_s: float
    started: int
    memory: int


class Census:
    """`take` may run in a thread, one at a time."""

    def __init__(self) -> None:
        self._marks: dict[tuple[int, int], str] = {}  # (pid, start time); "" = nobody's
        self._strangers: set[int] = set()
        self._takes = 0

    def take(self, leaders: dict[int, str]) -> dict[str, Usage]:
        """By mark. `leaders`: the processes that the host started itself, with their marks."""
        self._takes += 1
        if self._takes % _FRESH_LOOK == 0:
            self._strangers.clear()
        ours = [(stat, mark) for stat, mark in self._look(leaders) if mark]
        self._marks = {(stat.pid, stat.started): mark for stat, mark in ours}
        found: dict[str, Usage] = {}
        for stat, mark in ours:
            pids, memory, cpu_s = found.get(mark, _NOTHING)
            found[mark] = Usage((*pids, stat.pid), memory + stat.memory, cpu_s + stat.cpu_s)
        return found

    def _look(self, leaders: dict[int, str]) -> list[tuple[_Stat, str]]:
        numbers = set(_processes())
        self._strangers &= numbers - leaders.keys()
        stats = [s for n in sorted(numbers - self._strangers) if (s := _stat(n)) is not None]
        marks = dict(leaders)
        for stat in stats:  # parents first, mostly: their numbers are lower
            marks.setdefault(stat.pid, self._mark_of(stat, marks))
        self._strangers |= {stat.pid for stat in stats if not marks[stat.pid]}
        return [(stat, marks[stat.pid]) for stat in stats]

    def _mark_of(self, stat: _Stat, marks: dict[int, str]) -> str:
        known = self._marks.get((stat.pid, stat.started))
        return (
            known
            or guardian.mark_of(stat.pid)
            or marks.get(stat.parent, "")
            or marks.get(stat.session, "")
        )


_NOTHING = Usage((), 0, 0.0)


def proportional_memory(pids: tuple[int, ...]) -> int:
    """Bytes with each shared page counted once in all; 0 where the system does not say."""
    return sum(_pss(pid) for pid in pids)


def _processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    except OSError:
        return []


def _stat(pid: int) -> _Stat | None:
    """proc_pid_stat(5); the fields after the name, which may hold spaces and brackets."""
    text = _read(f"/proc/{pid}/stat")
    if not text:
        return None
    f = text.rpartition(b")")[2].split()
    if f[0] == b"Z":  # ended, and nobody has asked how
        return None
    return _Stat(
        pid=pid,
        parent=int(f[1]),
        session=int(f[3]),
        cpu_s=(int(f[11]) + int(f[12])) / _TICKS,
        started=int(f[19]),
        memory=int(f[21]) * _PAGE,
    )


def _pss(pid: int) -> int:
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 — many times a second
            return file.read()
    except OSError:  # it has gone, or is not ours
        return b""
