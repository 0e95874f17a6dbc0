"""Objects in a bucket: by the library, by signed parts, through the gateway.

The S3 server is SeaweedFS. It, ours and the generator share both cores; its own cost is told.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from blake3 import blake3
from tests.support.seaweed import SeaweedProcess

from benchmarks.cores import BOTH, CORES
from benchmarks.peers import fetch
from benchmarks.storage_peers import subjects
from benchmarks.storage_peers.beside import NOTHING, Asked
from benchmarks.storage_peers.local import IN_FLIGHT, SMALL, latencies, range_times, whole
from benchmarks.storage_peers.meter import Transfer, cpu_s, figures, measured
from benchmarks.storage_peers.plan import Plan
from benchmarks.storage_peers.subjects import BUCKET, OURS, STORAGE, Running
from benchmarks.storage_peers.wire import Client, content
from benchmarks.table import Row, show

RANGED = 64 << 20  # bytes of the object that is read in ranges
TOGETHER = 4  # parts on their way at a time
PEERS = ("boto3", "aiobotocore")
QUIET = Asked(growth_mib=96, ping_p99_ms=15)


class Stored(NamedTuple):
    """`store_s`: processor seconds of the S3 server."""

    transfer: Transfer
    store_s: float


Found = dict[str, list[Stored]]


def libraries(plan: Plan, troubles: dict[str, str]) -> None:
    """Each in a process of its own, beside the S3 server."""
    found: dict[str, Found] = {"put": {}, "get": {}, "small": {}}
    programs = dict(_programs(plan, troubles))
    with _both_cores():
        for turn in range(plan.rounds):
            with _bucket() as store:
                for name, command in programs.items():
                    for what, stored in _library(store, command, f"{name}/{turn}", plan):
                        found[what].setdefault(name, []).append(stored)
    size, asked = f"{plan.size / 1e9:.2f} GB", {OURS: Asked(rate=150, growth_mib=96)}
    _show(f"S3, puts of {size} in process, {TOGETHER} parts at a time", found["put"], asked)
    _show(f"S3, gets of {size} in process", found["get"], asked)
    rows: list[Row] = []
    for name, some in found["small"].items():
        rows.append(Row(name, median(plan.small / x.transfer.wall_s for x in some), "a second"))
        cost = median(x.transfer.server_s / plan.small * 1000 for x in some)
        rows.append(Row("  its cost each", cost, "ms of CPU"))
    show(f"S3, {plan.small:,} puts of {SMALL // 1000} KB, {IN_FLIGHT} in flight", rows)


def _programs(plan: Plan, troubles: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """By library, less what it is to do."""
    yield OURS, [sys.executable, "-m", "benchmarks.storage_peers.s3_client"]
    if plan.alone:
        return
    try:
        command = fetch.s3_clients()
    except fetch.PeerMissingError as error:
        troubles[" and ".join(PEERS)] = f"cannot be had: {error}"
    else:
        yield from ((name, [*command, name]) for name in PEERS)


def _library(
    store: SeaweedProcess, command: list[str], key: str, plan: Plan
) -> Iterator[tuple[str, Stored]]:
    """`get` finds what `put` brought."""
    login = (store.endpoint, store.access_key, store.secret_key, BUCKET)
    sizes = {"put": plan.size, "get": plan.size, "small": SMALL}
    for what, size in sizes.items():
        os.sync()
        before = cpu_s(store.pid)
        words = (what, *login, key, str(size), str(plan.small))
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{key} {what}: {done.stderr[-500:]}")
        told = json.loads(done.stdout)
        transfer = Transfer(size, told["wall_s"], told["cpu_s"], 0.0, told["growth"])
        yield what, Stored(transfer, cpu_s(store.pid) - before)


# --- by the gateway


def gateway(plan: Plan, troubles: dict[str, str]) -> None:
    """Uploads and downloads of a server whose objects are in the bucket."""
    del troubles  # there is no peer
    found, ranges = Found(), list[float]()
    with _both_cores():
        for _ in range(plan.rounds):
            with _bucket() as store, _ours(store) as running:
                for name, work in _ways(running, plan).items():
                    os.sync()
                    found.setdefault(name, []).append(_beside(store, running, plan.size, work))
                ranges += _range_times(running, plan)
    asked = {
        "signed parts": QUIET._replace(rate=150),
        "upload, raw": QUIET._replace(rate=80),
        "upload, tus": QUIET,
        "download, ?via=gateway": QUIET,
    }
    _show(f"S3, {plan.size / 1e9:.2f} GB with a gateway", found, asked)
    rows = latencies("64 KiB range, ?via=gateway", ranges, asked="<= 2 ms")
    show(f"S3, ranges of {RANGED >> 20} MiB", rows)


def _ways(running: Running, plan: Plan) -> Mapping[str, Callable[[], object]]:
    """In this order: what was brought is then fetched."""
    paths: list[str] = []
    digest = _digest(plan.size)

    def bring(put: subjects.Put) -> None:
        with Client(running.url) as client:
            paths.append(put(client, plan.size))

    def take(query: str) -> None:
        with Client(running.url) as client:
            whole(client, paths[-1] + query, plan.size)

    return {
        "upload, tus": lambda: bring(subjects.tus),
        "upload, raw": lambda: bring(subjects.raw),
        "download, ?via=gateway": lambda: take("?via=gateway"),
        "download, redirected": lambda: take(""),
        "signed parts": lambda: _direct(running, plan.size, digest),  # verified at leisure
    }


def _beside(
    store: SeaweedProcess, running: Running, size: int, work: Callable[[], object]
) -> Stored:
    before = cpu_s(store.pid)
    transfer = measured(running.pid, size, work, url=f"{running.url}/healthz")
    return Stored(transfer, cpu_s(store.pid) - before)


def _direct(running: Running, size: int, digest: str) -> None:
    """Parts go straight to the bucket; the gateway signs them and checks the whole."""
    with Client(running.url) as client:
        upload = client.call("POST", f"{STORAGE}/uploads", {"size": size, "modes": ["direct"]})
        path, parts = f"{STORAGE}/uploads/{upload['upload_id']}", upload["parts"]
        count = -(-size // upload["part_size"])
        if more := list(range(len(parts) + 1, count + 1)):
            parts += client.call("POST", f"{path}/parts", {"numbers": more})["parts"]
    with ThreadPoolExecutor(TOGETHER) as pool:
        list(pool.map(_put_parts, [parts[n::TOGETHER] for n in range(TOGETHER)]))
    with Client(running.url) as client:  # the first one has been idle for too long
        client.call("POST", f"{path}/complete", {"blake3": digest})


def _put_parts(parts: Sequence[Mapping[str, Any]]) -> None:
    if not parts:
        return
    with Client(str(parts[0]["url"])) as client:
        for part in parts:
            url, size = urlsplit(str(part["url"])), part["size"]
            client.send("PUT", f"{url.path}?{url.query}", content(size), size=size)


def _range_times(running: Running, plan: Plan) -> list[float]:
    with Client(running.url) as client:
        path = f"{subjects.raw(client, RANGED)}?via=gateway"
        return range_times(client, path, RANGED, plan.ranges)


@contextlib.contextmanager
def _bucket() -> Generator[SeaweedProcess]:
    with (
        tempfile.TemporaryDirectory() as place,
        subjects.seaweed(Path(place), within=BOTH) as store,
    ):
        yield store


@contextlib.contextmanager
def _ours(store: SeaweedProcess) -> Generator[Running]:
    """In a bucket of its own, which it makes."""
    with (
        tempfile.TemporaryDirectory() as place,
        subjects.ours(Path(place), within=BOTH, env=store.environment) as running,
    ):
        yield running


@contextlib.contextmanager
def _both_cores() -> Generator[None]:
    """For this process too, while it lasts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _show(title: str, found: Found, asked: Mapping[str, Asked]) -> None:
    """Processor seconds a GB of ours (or the library), of the S3 server, of the generator."""
    heads = f"{'MB/s':>9}{'CPU s/GB':>10}{'S3 s/GB':>9}{'gen. s/GB':>11}{'MiB':>8}{'p99 ms':>8}"
    print(f"\n{title}\n  {'':<32}{heads}  asked")
    for name, some in found.items():
        x = figures([each.transfer for each in some])
        gb = some[0].transfer.size / 1e9
        store = median(each.store_s for each in some) / gb
        generator = median(each.transfer.generator_s for each in some) / gb
        costs = f"{x.rate:>9,.0f}{x.server_s_gb:>10.2f}{store:>9.2f}{generator:>11.2f}"
        words = asked.get(name, NOTHING).words(x)
        print(f"  {name:<32}{costs}{x.growth_mib:>8.1f}{x.ping_p99_ms:>8.1f}  {words}", flush=True)


def _digest(size: int) -> str:
    hash_ = blake3()
    for piece in content(size):
        hash_.update(piece)
    return hash_.hexdigest()
