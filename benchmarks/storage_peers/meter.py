"""What a transfer took: time, both sides' processors, the server's memory, how late it answered."""

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.support.watching import peak, peak_from_now

from benchmarks.table import percentile

MIB = 1 << 20


class Transfer(NamedTuple):
    """Processor seconds are of the server's process, and of the generator's."""

    size: int
    wall_s: float
    server_s: float
    generator_s: float
    growth: int
    """The most bytes that the server's memory was above what it was before."""
    pings: Sequence[float] = ()
    """ms that other requests waited meanwhile."""

    @property
    def rate(self) -> float:
        """MB a second."""
        return self.size / 1e6 / self.wall_s


class Figures(NamedTuple):
    """Medians of several transfers; the worst growth; all pings together."""

    rate: float
    server_s_gb: float
    generator: float
    growth_mib: float
    ping_p99_ms: float
    ping_max_ms: float


def figures(some: Sequence[Transfer]) -> Figures:
    pings = [ms for each in some for ms in each.pings]
    return Figures(
        rate=median(each.rate for each in some),
        server_s_gb=median(each.server_s / (each.size / 1e9) for each in some),
        generator=median(each.generator_s / each.wall_s for each in some),
        growth_mib=max(each.growth for each in some) / MIB,
        ping_p99_ms=percentile(pings, 99) if len(pings) > 1 else math.nan,
        ping_max_ms=max(pings, default=math.nan),
    )


def measured(
    pid: int, size: int, work: Callable[[], object], *, url: str | None = None
) -> Transfer:
    """`work` moves `size` bytes through the server `pid`, which is pinged at `url` meanwhile."""
    with contextlib.ExitStack() as stack:
        pings = stack.enter_context(pinging(url)) if url else list[float]()
        before = peak_from_now(pid)
        server, own, begun = cpu_s(pid), time.process_time(), time.perf_counter()
        work()
        wall_s = time.perf_counter() - begun
        server_s, generator_s = cpu_s(pid) - server, time.process_time() - own
        growth = peak(pid) - before
    return Transfer(size, wall_s, server_s, generator_s, growth, pings)


@contextlib.contextmanager
def pinging(url: str) -> Generator[list[float]]:
    """By a process of its own, until left; then the list has the milliseconds of each."""
    command = [sys.executable, "-m", "benchmarks.storage_peers.pinger", url]
    times: list[float] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()  # it pings
        try:
            yield times
        finally:
            process.stdin.close()
            times += json.loads(process.stdout.read())


def cpu_s(pid: int) -> float:
    """User and system time of all its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
