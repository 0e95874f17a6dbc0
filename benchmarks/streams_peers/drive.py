"""How the clients send: as fast as the server delivers, or by the clock."""

import os
import select
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.streams_peers.clients import Clients, Group

PATIENCE_S = 30.0
LATE_S = 2.0  # how long the last messages may take
_now = time.perf_counter


class Plan(NamedTuple):
    """How long a measurement may take: `warm_s` seconds before anything counts, `seconds` then.
    `alone`: without peers."""

    rounds: int
    seconds: float
    warm_s: float
    alone: bool = False


class Load(NamedTuple):
    """What was delivered in `wall_s` seconds; processor seconds of both sides."""

    delivered: int
    wall_s: float
    server_s: float
    generator_s: float
    latencies: Sequence[float] = ()
    """ms from the send call to the read that brings it."""
    lost: int = 0

    @property
    def rate(self) -> float:
        return self.delivered / self.wall_s

    @property
    def cost_us(self) -> float:
        """The server's processor time for a delivery."""
        return self.server_s / max(self.delivered, 1) * 1e6

    @property
    def server(self) -> float:
        """Share of one core."""
        return self.server_s / self.wall_s

    @property
    def generator(self) -> float:
        return self.generator_s / self.wall_s


class _Meter:
    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._begun = self._read()

    def load(self, delivered: int) -> Load:
        wall, server, own = (b - a for a, b in zip(self._begun, self._read(), strict=True))
        return Load(delivered, wall, server, own)

    def _read(self) -> tuple[float, float, float]:
        return _now(), cpu_s(self._pid), time.process_time()


def saturate(clients: Clients, pid: int, plan: Plan, window: int) -> Load:
    """Closed loops: of every stream `window` messages are on their way, no fewer than before."""
    for group in clients.groups:
        _refill(clients, group, window)
    _exchange(clients, plan.warm_s, window)
    meter = _Meter(pid)
    delivered = _exchange(clients, plan.seconds, window)
    if not delivered:
        raise TimeoutError(f"nothing was delivered in {PATIENCE_S} s")
    return meter.load(delivered)


def _exchange(clients: Clients, seconds: float, window: int) -> int:
    """Deliveries; on a busy machine it goes on until there is one."""
    delivered, begun = 0, _now()
    while (gone := _now() - begun) < seconds or (not delivered and gone < PATIENCE_S):
        for reader, count in clients.received(max(seconds - gone, 0.1)):
            reader.group.delivered += count
            delivered += count
            _refill(clients, reader.group, window)
    return delivered


def fill(clients: Clients, count: int, window: int = 4) -> None:
    """`count` messages of every stream, delivered when this returns."""
    for group in clients.groups:
        _refill(clients, group, window, count)
    until = _now() + PATIENCE_S
    while _owed(clients):
        if _now() > until:
            raise TimeoutError(f"{_owed(clients)} messages were not delivered in {PATIENCE_S} s")
        for reader, got in clients.received(1.0):
            reader.group.delivered += got
            _refill(clients, reader.group, window, count)


def _refill(clients: Clients, group: Group, window: int, most: int = sys.maxsize) -> None:
    if due := min(group.delivered // group.readers + window, most) - group.sent:
        clients.send(group, due)


def pace(clients: Clients, pid: int, plan: Plan, rate: float) -> Load:
    """`rate` messages a second in all, evenly spaced, stream after stream, whatever comes back."""
    _paced(clients, rate, plan.warm_s)
    meter = _Meter(pid)
    latencies = _paced(clients, rate, plan.seconds)
    load = meter.load(len(latencies))
    until = _now() + LATE_S
    while (lost := _owed(clients)) and _now() < until:
        latencies += _arrivals(clients, _now() + 0.01)
    return load._replace(latencies=latencies, lost=lost)


def _paced(clients: Clients, rate: float, seconds: float) -> list[float]:
    """Latencies of what came meanwhile."""
    latencies: list[float] = []
    begun, sent = _now(), 0
    while sent < rate * seconds:
        due = int((_now() - begun) * rate) + 1
        for number in range(sent, due):
            group = clients.groups[number % len(clients.groups)]
            group.times.append(_now())
            clients.send(group, 1)
        sent = max(sent, due)
        latencies += _arrivals(clients, begun + sent / rate)
    return latencies


def _arrivals(clients: Clients, until: float) -> list[float]:
    latencies: list[float] = []
    while True:
        select.select([clients.epoll], [], [], max(0.0, until - _now()))  # epoll's own wait: ms
        for reader, count in clients.received(0):
            now, group = _now(), reader.group
            sent = group.times[reader.seen : reader.seen + count]
            latencies += [(now - each) * 1000 for each in sent]
            reader.seen += count
            group.delivered += count
        if _now() >= until:
            return latencies


def _owed(clients: Clients) -> int:
    return sum(group.sent * group.readers - group.delivered for group in clients.groups)


def cpu_s(pid: int) -> float:
    """User and system time of all its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    """Resident bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024
