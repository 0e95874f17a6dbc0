"""What this machine, or the container that the server runs in, has to give to agents."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

_UNLIMITED = 1 << 60
"""cgroup v1 writes a number of about this size for no limit."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    cpus: float  # cores
    memory: int  # bytes
    gpus: int = 0


def this_machine(root: Path = Path("/")) -> Machine:
    """The smaller of what the hardware has and what the container may use."""
    memory = [_total_memory(), *_limits(root, "memory.max", "memory/memory.limit_in_bytes")]
    return Machine(
        cpus=min([_cores(), *_cpu_quota(root)]),
        memory=min(memory),
        gpus=len(list((root / "dev").glob("nvidia[0-9]*"))),
    )


def _total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cores() -> float:
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return float(len(affinity(0)) if affinity else os.cpu_count() or 1)


def _limits(root: Path, *names: str) -> Iterator[int]:
    """Of a container's own cgroup, which it sees at the top; bytes."""
    for name in names:
        text = _read(root / "sys/fs/cgroup" / name)
        if text.isdigit() and int(text) < _UNLIMITED:
            yield int(text)


def _cpu_quota(root: Path) -> Iterator[float]:
    """Cores of a quota: v2 writes `quota period` (or `max period`), v1 two files (-1 = none)."""
    cgroup = root / "sys/fs/cgroup"
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    if not quota:
        quota = _read(cgroup / "cpu/cpu.cfs_quota_us")
        period = _read(cgroup / "cpu/cpu.cfs_period_us")
    if quota.isdigit() and period.isdigit():
        yield int(quota) / int(period)


def _read(path: Path) -> str:
    if sys.platform != "linux":
        return ""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
