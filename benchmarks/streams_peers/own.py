"""What is asked of ours alone: commit lanes, opening, idle connections, a stalled one, chunks.

Beside the chunks, C++ shows what this machine's loopback can carry.
"""

import asyncio
import resource
import socket
import time
from collections.abc import Callable
from functools import partial
from statistics import median

from benchmarks import commits as disk
from benchmarks.streams_peers.clients import Clients, connect, listen
from benchmarks.streams_peers.drive import Load, Plan, memory, pace, saturate
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
STALL_READERS, STALL_RATE, STALL_TEXT = 20, 500, 4096
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


def stalled(plan: Plan, _troubles: dict[str, str]) -> None:
    """Beside the same load without it, in turns; memory too."""
    calm: list[Load] = []
    beside: list[Load] = []
    held: list[float] = []
    with ours("msp").start() as running:
        _among(running, plan, stalled=0)  # the memory that any load takes once
        for _ in range(plan.rounds + 1):
            without, usual = _among(running, plan, stalled=0)
            load, growth = _among(running, plan, stalled=1)
            calm.append(without)
            beside.append(load)
            held.append((growth - usual) / 1024)
    p99, others = (median(percentile(x.latencies, 99) for x in some) for some in (calm, beside))
    change = (others / p99 - 1) * 100
    sent = STALL_TEXT * STALL_RATE * plan.seconds / 1024
    rows = [
        Row("p99 of all, nobody stalls", p99, "ms"),
        Row("p99 of the others, one stalls", others, "ms"),
        Row("  the change", change, "%", "< 10 %"),
        Row(f"memory for it, of {sent:,.0f} KiB published", median(held), "KiB", "<= 256 KiB"),
    ]
    show(f"One of {STALL_READERS + 1} subscribers takes nothing", rows)


def _among(running: Running, plan: Plan, *, stalled: int) -> tuple[Load, float]:
    """And the bytes that the server's process gained."""
    [stream] = init(running.port, 1, "memory", max_bytes=KEPT_BYTES)
    dialogue = reader(stream, "msp")
    channel = Channel(msp(stream), [dialogue] * STALL_READERS, frame(record(STALL_TEXT)))
    before = memory(running.pid)
    with Clients(running.port, [channel], [dialogue] * stalled) as clients:
        load = pace(clients, running.pid, plan, STALL_RATE)
        return load, memory(running.pid) - before


def chunks(plan: Plan, troubles: dict[str, str]) -> None:
    rows: list[Row] = []
    for durability, asked in (("memory", ">= 500 MB/s"), ("commit", ">= 100 MB/s")):
        channels = partial(_chunk_channels, durability)
        rows += _chunks(f"{durability} lanes", ours("msp"), channels, plan, asked)
    for hub in peers("ws", troubles):
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
