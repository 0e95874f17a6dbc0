"""Ours and the peers on the same work, one after the other, round after round."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from benchmarks.streams_peers.clients import Clients
from benchmarks.streams_peers.drive import Load, Plan, pace, saturate
from benchmarks.streams_peers.hubs import CPLUSPLUS, OURS, Hub, Running, ours, peers
from benchmarks.table import percentile

STREAMS = 256
FANS = 1000
PACED_STREAMS, PACED_RATE = 1000, 10_000  # in all: 10 messages a second and stream
ON_THEIR_WAY = (1, 8)
"""Messages of a stream that are sent before the first has arrived: each alone, or in batches."""
ASKED = {"FastAPI": 2.5, "aiohttp": 1.7, CPLUSPLUS: 1 / 1.5}
"""How many times what one core of this peer delivers, one core of ours should."""
P95_MS, P99_MS, CHUNK_US = 3, 10, 60
"""Asked of ours when paced."""
Loads = Mapping[str, Sequence[Load]]


def streams(plan: Plan, troubles: dict[str, str]) -> None:
    title = f"{STREAMS} streams, a publisher and a subscriber each"
    _saturated(title, [ours("plain"), ours("msp"), *peers("ws", plan, troubles)], plan, STREAMS, 1)


def fan_out(plan: Plan, troubles: dict[str, str]) -> None:
    title = f"1 publisher, {FANS:,} subscribers on WebSocket"
    _saturated(title, [ours("plain"), ours("msp"), *peers("ws", plan, troubles)], plan, 1, FANS)


def fan_out_sse(plan: Plan, troubles: dict[str, str]) -> None:
    title = f"1 publisher, {FANS:,} subscribers on SSE"
    _saturated(title, [ours("sse"), *peers("sse", plan, troubles)], plan, 1, FANS)


def paced(plan: Plan, troubles: dict[str, str]) -> None:
    def measure(running: Running) -> dict[str, Load]:
        with Clients(running.port, running.channels(PACED_STREAMS, 1)) as clients:
            return {"": pace(clients, running.pid, plan, PACED_RATE)}

    hubs = [ours("plain"), ours("msp"), *peers("ws", plan, troubles)]
    loads = _rounds(hubs, measure, plan.rounds)[""]
    print(f"\n{PACED_STREAMS:,} streams, 10 messages a second each")
    print(f"  {'':<24}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'us each':>9}{_SHARES}{'lost':>7}")
    for name, some in loads.items():
        p50, p95, p99 = (median(percentile(x.latencies, p) for x in some) for p in (50, 95, 99))
        cost, lost = median(x.cost_us for x in some), max(x.lost for x in some)
        times = f"{p50:>9.2f}{p95:>9.2f}{p99:>9.2f}{cost:>9.1f}"
        words = ""
        if name.startswith(OURS):
            met = p95 <= P95_MS and p99 <= P99_MS and cost <= CHUNK_US
            words = (
                f"  p95 <= {P95_MS}, p99 <= {P99_MS}, <= {CHUNK_US} us{'' if met else ', behind'}"
            )
        print(f"  {name:<24}{times}{_shares(some)}{lost:>7}{words}", flush=True)


def _saturated(title: str, hubs: Sequence[Hub], plan: Plan, streams: int, readers: int) -> None:
    def measure(running: Running) -> dict[str, Load]:
        with Clients(running.port, running.channels(streams, readers)) as clients:
            return {
                f"{window} on the way": saturate(clients, running.pid, plan, window)
                for window in ON_THEIR_WAY
            }

    for label, loads in _rounds(hubs, measure, plan.rounds).items():
        _show(f"{title}; {label} in each stream", loads)


def _rounds(
    hubs: Sequence[Hub], measure: Callable[[Running], dict[str, Load]], rounds: int
) -> dict[str, dict[str, list[Load]]]:
    """By label, then by hub: a load per round. Every round has fresh servers."""
    found: dict[str, dict[str, list[Load]]] = {}
    for _ in range(rounds):
        for hub in hubs:
            for label, load in _measured(hub, measure).items():
                found.setdefault(label, {}).setdefault(hub.name, []).append(load)
    return found


def _measured(hub: Hub, measure: Callable[[Running], dict[str, Load]]) -> dict[str, Load]:
    try:
        with hub.start() as running:
            return measure(running)
    except OSError as error:
        raise RuntimeError(f"{hub.name}: {error}") from error


_SHARES = f"{'server':>8}{'generator':>11}"


def _show(title: str, loads: Loads) -> None:
    own = {name: some for name, some in loads.items() if name.startswith(OURS)}
    times = "".join(f"{'x ' + name.split()[-1]:>9}" for name in own)
    print(f"\n{title}")
    print(f"  {'':<24}{'a second':>12}{'us each':>9}{_SHARES}{times}  asked")
    for name, some in loads.items():
        rate, cost = median(x.rate for x in some), median(x.cost_us for x in some)
        gains = [cost / median(x.cost_us for x in mine) for mine in own.values()]
        words = "" if name in own else "".join(f"{gain:>8.2f}x" for gain in gains)
        if (asked := ASKED.get(name)) is not None:
            words += f"  >= {asked:.2f}x{'' if min(gains) >= asked else ', behind'}"
        print(f"  {name:<24}{rate:>12,.0f}{cost:>9.1f}{_shares(some)}{words}", flush=True)


def _shares(some: Sequence[Load]) -> str:
    server, generator = median(x.server for x in some), median(x.generator for x in some)
    return f"{server:>8.0%}{generator:>11.0%}"
