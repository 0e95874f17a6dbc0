"""`make bench-streams`: our streams beside FastAPI, aiohttp, Node, NATS, Redis and C++.

python -m benchmarks.streams_peers [--quick] [part ...]
"""

import argparse
import gc
import os
import platform
import sys
import time

from benchmarks.streams_peers import beside, own
from benchmarks.streams_peers.drive import Plan
from benchmarks.streams_peers.hubs import CORES

PARTS = {
    "streams": beside.streams,
    "fan-out": beside.fan_out,
    "fan-out-sse": beside.fan_out_sse,
    "paced": beside.paced,
    "commits": own.commits,
    "init": own.init_times,
    "idle": own.idle,
    "stalled": own.stalled,
    "chunks": own.chunks,
}
QUICK = Plan(rounds=1, seconds=0.5, warm_s=0.3)
WHOLE = Plan(rounds=3, seconds=1.2, warm_s=0.5)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.streams_peers")
    parser.add_argument("parts", nargs="*", metavar="part", help=" ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="one short round")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - PARTS.keys():
        parser.error(f"no such part: {' '.join(sorted(unknown))}")
    if len(CORES) < 2:
        print("This takes two cores: one for the server, one for the load.", file=sys.stderr)
        return 2
    return _run(asked.parts or list(PARTS), QUICK if asked.quick else WHOLE)


def _run(parts: list[str], plan: Plan) -> int:
    """1 when a peer could not be had or a part failed, else 0."""
    os.sched_setaffinity(0, {CORES[1]})
    gc.disable()
    begun = time.monotonic()
    print(f"{platform.platform()}, Python {platform.python_version()}, {_load()}")
    print(
        f"Servers on core {CORES[0]}, the generator on core {CORES[1]}; median of {plan.rounds}."
        " `x`: how many times a peer's\ndeliveries one core second of ours makes."
    )
    troubles: dict[str, str] = {}
    for part in parts:
        try:
            PARTS[part](plan, troubles)
        except (OSError, RuntimeError) as error:
            troubles[f"the part {part}"] = repr(error)
    print(f"\n{time.monotonic() - begun:.0f} s, {_load()}", flush=True)
    for name, reason in troubles.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    return 1 if troubles else 0


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    sys.exit(main())
