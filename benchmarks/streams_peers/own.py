"""What is asked of ours alone: commit lanes, opening, idle connections, a stalled one, chunks.

Beside the chunks, C++ shows what this machine's loopback can carry.
"""

import asyncio
import resource
import socket
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple
from urllib.request import urlopen

from benchmarks import commits as disk
from benchmarks.streams_peers.clients import Clients, connect, listen
from benchmarks.streams_peers.drive import Load, Plan, fill, memory, pace, saturate
from benchmarks.streams_peers.hubs import (
    CPLUSPLUS,
    Client,
    Hub,
    Running,
    hub_channels,
    init,
    msp,
    ours,
    peers,
    reader,
    subscription,
)
from benchmarks.streams_peers.wire import (
    BINARY,
    Channel,
    Step,
    frame,
    get,
    payload,
    post,
    record,
    say,
)
from benchmarks.table import Row, percentile, show
from mentatlab.protocol.frames import Frame, encode

COMMIT_STREAMS, COMMIT_RATE = 100, 5000
INITS = 200
IDLE_STREAMS = 20
SPARE_FILES = 200  # of the server and of this process, beside the connections
SETTLE_S = 1.0
STALL_READERS, STALL_RATE, STALL_TEXT = 20, 200, 16 << 10
STALL_FILL = 10 << 20  # bytes: more than the kernel buffers for a connection
CHUNK, CHUNK_STREAMS, CHUNK_WINDOW = 64 << 10, 4, 4
CHUNK_MESSAGE = frame(encode(Frame(lane=1, sequence=0, body=payload(CHUNK))), BINARY)
KEPT_BYTES = 64 << 20  # of a lane of chunks, so that they do not fill the memory


def commits(plan: Plan, _troubles: dict[str, str]) -> None:
    rows = asyncio.run(disk.run())
    hub = ours("msp", durability="commit")
    loads: list[Load] = []
    for _ in range(plan.rounds):
        with hub.start() as running:
            channels = running.channels(COMMIT_STREAMS, 1)
            with Clients(running.port, channels) as clients:
                loads.append(pace(clients, running.pid, plan, COMMIT_RATE))
    name = f"commit lanes, {COMMIT_STREAMS} streams, {COMMIT_RATE:,} msg/s"
    rows += _latencies(name, loads, asked="<= 12 ms p95")
    rows.append(Row("  its cost a message", median(x.cost_us for x in loads), "us"))
    rows.append(Row("  the generator", median(x.generator for x in loads) * 100, "% of a core"))
    show("Commit lanes (SQLite, FULL), publisher to reader", rows)


def _latencies(name: str, loads: list[Load], asked: str) -> list[Row]:
    p50, p95 = (median(percentile(x.latencies, p) for x in loads) for p in (50, 95))
    return [Row(name, p50, "ms p50"), Row(name, p95, "ms p95", asked)]


def init_times(plan: Plan, _troubles: dict[str, str]) -> None:
    """From the first byte of `POST init` to the first record, read over SSE."""
    rows = [row for row in asyncio.run(disk.run()) if row.unit == "ms p99"]
    with ours("sse").start() as running:
        for durability in ("memory", "commit"):
            times = [_opened(running.port, durability) for _ in range(INITS * plan.rounds)]
            name = f"init to first record, {durability} lane"
            rows.append(Row(name, percentile(times, 50), "ms p50"))
            rows.append(Row(name, percentile(times, 99), "ms p99", "<= a commit + 3 ms"))
    show("Opening a stream", rows)


def _opened(port: int, durability: str) -> float:
    """Milliseconds."""
    body = {"agent_id": "bench", "pin_name": "out", "durability": durability}
    with (
        socket.create_connection(("127.0.0.1", port)) as caller,
        socket.create_connection(("127.0.0.1", port)) as follower,
    ):
        begun = time.perf_counter()
        caller.sendall(post("/api/v1/streams/init", body))
        stream = listen(caller, b'"status"').partition(b'"stream_id":"')[2].split(b'"')[0]
        follower.sendall(get(f"/api/v1/streams/{stream.decode()}/sse"))
        listen(follower, b"event: stream_start")
        return (time.perf_counter() - begun) * 1000


def idle(plan: Plan, _troubles: dict[str, str]) -> None:
    """Memory that the server's process gains per connection that waits for records."""
    wanted = 10_000 if plan.rounds > 1 else 2000
    count = min(wanted, _files(wanted + SPARE_FILES) - SPARE_FILES)
    rows = [_idle(client, count) for client in ("plain", "msp", "sse")]
    show(f"{count:,} idle connections", rows)


def _idle(client: Client, count: int) -> Row:
    with ours(client).start() as running:
        streams = init(running.port, IDLE_STREAMS, "memory")
        first = connect(running.port, [reader(each, client) for each in streams])
        before = memory(running.pid)
        more = [reader(streams[n % IDLE_STREAMS], client) for n in range(count)]
        sockets = connect(running.port, more)
        time.sleep(SETTLE_S)
        growth = (memory(running.pid) - before) / count
        for each in [*first, *sockets]:
            each.close()
    return Row(f"{client}, each", growth / 1000, "KB", "<= 16 KB")


def _files(wanted: int) -> int:
    """How many files this process and its servers may open; raised where that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
        except (ValueError, PermissionError):
            print(f"  fewer connections: this process may open {hard} files only")
        else:
            return wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, wanted)), hard))
    return min(hard, wanted)


class _Stall(NamedTuple):
    """Bytes at the end of a load: told by the server, of its process, in its kernel buffers."""

    load: Load
    held: float
    memory: float
    kernel: float

    @property
    def p99(self) -> float:
        """ms."""
        return percentile(self.load.latencies, 99)


def stalled(plan: Plan, _troubles: dict[str, str]) -> None:
    """Beside the same load without it, in turns."""
    with ours("msp").start() as running:
        _among(running, plan, deaf=0)  # the memory that any load takes once
        turns = range(3 * plan.rounds)
        pairs = [(_among(running, plan, deaf=0), _among(running, plan, deaf=1)) for _ in turns]
    beside = [b for _, b in pairs]
    change = median(b.p99 / a.p99 - 1 for a, b in pairs)
    growth = median(b.memory - a.memory for a, b in pairs)
    rows = [
        Row("p99 of all, nobody stalls", median(a.p99 for a, _ in pairs), "ms"),
        Row("p99 of the others, one stalls", median(b.p99 for b in beside), "ms"),
        Row("  the change, median of turns", change * 100, "%", "< 10 %"),
        Row("held for it, as /metrics tells", _kib(b.held for b in beside), "KiB", "<= 256 KiB"),
        Row("held for it, growth of the process", growth / 1024, "KiB", "<= 256 KiB"),
        Row("in the kernel's send buffer", _kib(b.kernel for b in beside), "KiB"),
    ]
    show(f"One of {STALL_READERS + 1} subscribers takes nothing", rows)


def _among(running: Running, plan: Plan, *, deaf: int) -> _Stall:
    """First as fast as may be, so that no buffer of the kernel has room left, then by the clock."""
    pid, port = running.pid, running.port
    [stream] = init(port, 1, "memory", max_bytes=KEPT_BYTES)
    dialogue = reader(stream, "msp")
    channel = Channel(msp(stream), [dialogue] * STALL_READERS, frame(record(STALL_TEXT)))
    before = memory(pid)
    with Clients(port, [channel], [dialogue] * deaf) as clients:
        fill(clients, STALL_FILL // STALL_TEXT)
        load = pace(clients, pid, plan, STALL_RATE)
        return _Stall(load, _held(port), memory(pid) - before, _send_queue(port))


def _kib(values: Iterable[float]) -> float:
    return median(values) / 1024


def _held(port: int) -> float:
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    return float(text.partition("\nmentatlab_stream_unsent_bytes_most ")[2].split()[0])


def _send_queue(port: int) -> int:
    """Bytes that the kernel holds for the slowest connection to this port."""
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    queues = [int(x[4].partition(":")[0], 16) for x in sockets if x[1].endswith(f":{port:04X}")]
    return max(queues)


def chunks(plan: Plan, troubles: dict[str, str]) -> None:
    rows: list[Row] = []
    for durability, asked in (("memory", ">= 500 MB/s"), ("commit", ">= 100 MB/s")):
        channels = partial(_chunk_channels, durability)
        rows += _chunks(f"{durability} lanes", ours("msp"), channels, plan, asked)
    for hub in peers("ws", plan, troubles):
        if hub.name == CPLUSPLUS:
            rows += _chunks(hub.name, hub, _plain_chunk_channels, plan, "")
    show(f"Binary chunks of {CHUNK >> 10} KiB, {CHUNK_STREAMS} streams, one subscriber each", rows)


def _chunks(
    name: str, hub: Hub, channels: Callable[[int], list[Channel]], plan: Plan, asked: str
) -> list[Row]:
    loads: list[Load] = []
    for _ in range(plan.rounds):
        with hub.start() as running, Clients(running.port, channels(running.port)) as clients:
            loads.append(saturate(clients, running.pid, plan, CHUNK_WINDOW))
    a_core = median(CHUNK / x.cost_us for x in loads)  # bytes a µs of the processor = MB a second
    return [
        Row(name, median(x.rate for x in loads) * CHUNK / 1e6, "MB/s"),
        Row("  per core", a_core, "MB/s", asked),
        Row("  the generator", median(x.generator for x in loads) * 100, "% of a core"),
    ]


def _chunk_channels(durability: str, port: int) -> list[Channel]:
    streams = init(port, CHUNK_STREAMS, durability, max_bytes=KEPT_BYTES)
    return [
        Channel(
            msp(each, Step(say(type="publish", id=each), b'"publishing"')),
            [msp(each, subscription(each))],
            CHUNK_MESSAGE,
        )
        for each in streams
    ]


def _plain_chunk_channels(_port: int) -> list[Channel]:
    return [each._replace(message=CHUNK_MESSAGE) for each in hub_channels("ws", CHUNK_STREAMS, 1)]
