"""`make bench-engine`: our engine beside Prefect, Dagster, Temporal, Ray Serve, Jina and Pipecat.

python -m benchmarks.engine_peers [--quick] [--alone] [part ...]
"""

import sys

from benchmarks.command import Bench, main
from benchmarks.engine_peers import beside, own
from benchmarks.engine_peers.plan import QUICK, WHOLE, Plan


def _about(plan: Plan) -> str:
    return (
        f"Up to {plan.rounds} runs of each kind. `x`: how many times what ours with warm agents"
        " takes, a peer takes,\nfor one more step and for a chain of three."
        " Ours runs in this process as in its server's:\non uvloop, with the server's garbage"
        " collection."
    )


BENCH = Bench(
    name="engine_peers",
    parts={
        "commits": own.commits,
        "chains": beside.chains,
        "nodes": own.nodes,
        "chunks": own.chunks,
        "failure": own.failure,
        "recovery": own.recovery,
        "items": own.items,
        "video": own.video,
        "ready": own.ready,
    },
    quick=QUICK,
    whole=WHOLE,
    about=_about,
)

if __name__ == "__main__":
    sys.exit(main(BENCH))
