"""`make bench-storage`: our storage beside boto3, aiobotocore, tuspyserver, SeaweedFS and nginx.

python -m benchmarks.storage_peers [--quick] [--alone] [part ...]
"""

import sys

from benchmarks.command import Bench, main
from benchmarks.cores import CORES
from benchmarks.storage_peers import local, s3
from benchmarks.storage_peers.plan import QUICK, WHOLE, Plan


def _about(plan: Plan) -> str:
    return (
        f"Servers on core {CORES[0]}, the generator on core {CORES[1]}; median of {plan.rounds}."
        " MiB: the most that the\nserver's memory grew. p99, max ms: what other requests waited"
        " meanwhile."
    )


BENCH = Bench(
    name="storage_peers",
    parts={
        "uploads": local.uploads,
        "downloads": local.downloads,
        "ranges": local.ranges,
        "small": local.small,
        "s3": s3.libraries,
        "s3-gateway": s3.gateway,
    },
    quick=QUICK,
    whole=WHOLE,
    about=_about,
    pinned=True,
)

if __name__ == "__main__":
    sys.exit(main(BENCH))
