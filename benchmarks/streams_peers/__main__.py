"""`make bench-streams`: our streams beside FastAPI, aiohttp, Node, NATS, Redis and C++.

python -m benchmarks.streams_peers [--quick] [--alone] [part ...]
"""

import gc
import sys

from benchmarks.command import Bench, main
from benchmarks.cores import CORES
from benchmarks.streams_peers import beside, own
from benchmarks.streams_peers.drive import Plan


def _about(plan: Plan) -> str:
    return (
        f"Servers on core {CORES[0]}, the generator on core {CORES[1]}; median of {plan.rounds}."
        " `x`: how many times a peer's\ndeliveries one core second of ours makes."
    )


BENCH = Bench(
    name="streams_peers",
    parts={
        "streams": beside.streams,
        "fan-out": beside.fan_out,
        "fan-out-sse": beside.fan_out_sse,
        "paced": beside.paced,
        "commits": own.commits,
        "init": own.init_times,
        "idle": own.idle,
        "stalled": own.stalled,
        "chunks": own.chunks,
    },
    quick=Plan(rounds=1, seconds=0.5, warm_s=0.3),
    whole=Plan(rounds=3, seconds=1.2, warm_s=0.5),
    about=_about,
    pinned=True,
)

if __name__ == "__main__":
    gc.disable()
    sys.exit(main(BENCH))
