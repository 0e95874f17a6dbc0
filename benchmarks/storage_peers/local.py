"""Files on the disk: up, down, in parts and many small ones, the server on one core."""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.storage_peers import limits, subjects
from benchmarks.storage_peers.beside import LOCAL, rounds, show_transfers
from benchmarks.storage_peers.meter import Transfer, cpu_s, measured
from benchmarks.storage_peers.plan import Plan
from benchmarks.storage_peers.subjects import OURS, Running, Subject, ours
from benchmarks.storage_peers.wire import PIECE, Client
from benchmarks.table import Row, percentile, show

RANGE = 64 << 10
SMALL, IN_FLIGHT = 100_000, 32
UPLOADS = [
    Subject(f"{OURS}, raw", ours, subjects.raw),
    Subject(f"{OURS}, form", ours, subjects.form),
    Subject(f"{OURS}, tus, one PATCH", ours, subjects.tus),
    Subject(f"{OURS}, tus, 16 MiB each", ours, partial(subjects.tus, piece=16 << 20)),
    Subject("tuspyserver, one PATCH", subjects.tuspyserver, partial(subjects.tus, at="/files")),
    Subject("SeaweedFS tus, one PATCH", subjects.seaweed_tus, partial(subjects.tus, at="/.tus/x")),
]
DOWNLOADS = [
    Subject(OURS, ours, subjects.raw),
    Subject("FileResponse on uvicorn", subjects.file_response, subjects.laid),
    Subject("nginx, sendfile", subjects.nginx, subjects.laid),
]


def uploads(plan: Plan, troubles: dict[str, str]) -> None:
    """Durable: the answer comes when the bytes are on the disk. (The peers' need not be.)"""
    buffered, direct, loopback = _limits_in(plan)
    found = rounds(UPLOADS, partial(_upload, plan), plan, troubles)
    rows = [
        Row("dd conv=fdatasync", buffered, "MB/s"),
        Row("dd oflag=direct conv=fdatasync", direct, "MB/s"),
        Row("loopback, bare sockets", loopback, "MB/s"),
    ]
    show(f"Uploads of {plan.size / 1e9:.2f} GB: what this machine can", rows)
    asked = {name: LOCAL for name in found if name.startswith(OURS)}
    asked |= {UPLOADS[0].name: LOCAL._replace(rate=250)}
    show_transfers("Uploads, over HTTP (limit: dd conv=fdatasync)", found, buffered, asked)


def _limits_in(plan: Plan) -> tuple[float, float, float]:
    with tempfile.TemporaryDirectory() as place:
        source = limits.source_file(Path(place), plan.size)
        times = range(plan.rounds)
        return (
            median(limits.disk(source, "conv=fdatasync") for _ in times),
            median(limits.disk(source, "oflag=direct", "conv=fdatasync") for _ in times),
            median(limits.loopback_in(plan.size) for _ in times),
        )


def _upload(plan: Plan, subject: Subject, running: Running) -> Transfer:
    with Client(running.url) as client:
        subject.put(client, len(PIECE))
        work = partial(subject.put, client, plan.size)
        return measured(running.pid, plan.size, work, url=f"{running.url}/healthz")


def downloads(plan: Plan, troubles: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        source = limits.source_file(Path(place), plan.size)
        limit = median(limits.loopback_out(source) for _ in range(plan.rounds))
    found = rounds(DOWNLOADS, partial(_download, plan), plan, troubles)
    show(
        f"Downloads of {plan.size / 1e9:.2f} GB: what this machine can",
        [Row("loopback, bare sockets, sendfile", limit, "MB/s")],
    )
    asked = {OURS: LOCAL._replace(rate=1000)}
    show_transfers("Downloads, from the page cache (limit: loopback)", found, limit, asked)


def _download(plan: Plan, subject: Subject, running: Running) -> Transfer:
    with Client(running.url) as client:
        path = subjects.bring(subject, running, client, plan.size)
        whole(client, path, plan.size)
        work = partial(whole, client, path, plan.size)
        return measured(running.pid, plan.size, work, url=f"{running.url}/healthz")


def whole(client: Client, path: str, size: int) -> None:
    if (came := client.get(path)) != size:
        raise RuntimeError(f"{came} of {size} bytes came")


class _Ranges(NamedTuple):
    milliseconds: list[float]
    cost_ms: float
    """Of the server's processor, each."""


def ranges(plan: Plan, troubles: dict[str, str]) -> None:
    found = rounds(DOWNLOADS, partial(_ranges, plan), plan, troubles)
    rows: list[Row] = []
    for name, some in found.items():
        times = [ms for each in some for ms in each.milliseconds]
        rows += latencies(name, times, asked="<= 0.5 ms" if name == OURS else "")
        rows.append(Row("  its cost each", median(each.cost_ms for each in some), "ms of CPU"))
    show(f"Ranges of {RANGE >> 10} KiB of {plan.size / 1e9:.2f} GB, one after the other", rows)


def latencies(name: str, times: list[float], asked: str) -> list[Row]:
    """`asked`: of the median."""
    return [
        Row(name, percentile(times, 50), "ms p50", asked),
        Row(name, percentile(times, 99), "ms p99"),
    ]


def _ranges(plan: Plan, subject: Subject, running: Running) -> _Ranges:
    with Client(running.url) as client:
        path = subjects.bring(subject, running, client, plan.size)
        range_times(client, path, plan.size, 20)
        before = cpu_s(running.pid)
        times = range_times(client, path, plan.size, plan.ranges)
        return _Ranges(times, (cpu_s(running.pid) - before) / len(times) * 1000)


def range_times(client: Client, path: str, size: int, count: int) -> list[float]:
    """Milliseconds of each, at offsets all over the object."""
    return [_range_ms(client, path, n * (size - RANGE) // count) for n in range(count)]


def _range_ms(client: Client, path: str, offset: int) -> float:
    stop = offset + RANGE
    begun = time.perf_counter()
    came = client.get(path, headers={"Range": f"bytes={offset}-{stop - 1}"})
    took = (time.perf_counter() - begun) * 1000
    if came != RANGE:
        raise RuntimeError(f"{came} bytes came of a range")
    return took


class Many(NamedTuple):
    """Objects a second; milliseconds of the server's processor for one."""

    rate: float
    cost_ms: float


def small(plan: Plan, troubles: dict[str, str]) -> None:
    with_tus = [UPLOADS[0], UPLOADS[2], *UPLOADS[4:]]
    found = rounds(with_tus, partial(_small, plan), plan, troubles)
    rows: list[Row] = []
    for name, some in found.items():
        asked = ">= 500/s" if name == UPLOADS[0].name else ""
        rows.append(Row(name, median(each.rate for each in some), "a second", asked))
        rows.append(Row("  its cost each", median(each.cost_ms for each in some), "ms of CPU"))
    show(f"{plan.small:,} uploads of {SMALL // 1000} KB, {IN_FLIGHT} in flight", rows)


def _small(plan: Plan, subject: Subject, running: Running) -> Many:
    return many(running.pid, plan.small, lambda: _sender(subject, running.url))


def _sender(subject: Subject, url: str) -> Callable[[], object]:
    client = Client(url)
    return lambda: subject.put(client, SMALL)


def many(pid: int, count: int, connect: Callable[[], Callable[[], object]]) -> Many:
    """Each of the threads in flight connects, and then does what that gave, again and again."""
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        senders = [connect() for _ in range(IN_FLIGHT)]
        list(pool.map(_repeat, senders, [1] * IN_FLIGHT))  # all are connected
        shares = [count // IN_FLIGHT + (n < count % IN_FLIGHT) for n in range(IN_FLIGHT)]
        before, begun = cpu_s(pid), time.perf_counter()
        list(pool.map(_repeat, senders, shares))
        wall_s = time.perf_counter() - begun
        return Many(count / wall_s, (cpu_s(pid) - before) / count * 1000)


def _repeat(work: Callable[[], object], times: int) -> None:
    for _ in range(times):
        work()
