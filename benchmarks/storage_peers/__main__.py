"""`make bench-storage`: our storage beside boto3, aiobotocore, tuspyserver, SeaweedFS and nginx.

python -m benchmarks.storage_peers [--quick] [--alone] [part ...]
"""

import argparse
import os
import platform
import sys
import time

from benchmarks.storage_peers import local, s3
from benchmarks.storage_peers.cores import CORES
from benchmarks.storage_peers.plan import QUICK, WHOLE, Plan

PARTS = {
    "uploads": local.uploads,
    "downloads": local.downloads,
    "ranges": local.ranges,
    "small": local.small,
    "s3": s3.libraries,
    "s3-gateway": s3.gateway,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.storage_peers")
    parser.add_argument("parts", nargs="*", metavar="part", help=" ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--alone", action="store_true", help="without peers, so nothing is fetched")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - PARTS.keys():
        parser.error(f"no such part: {' '.join(sorted(unknown))}")
    if len(CORES) < 2:
        print("This takes two cores: one for the server, one for the load.", file=sys.stderr)
        return 2
    plan = QUICK if asked.quick else WHOLE
    return _run(asked.parts or list(PARTS), plan._replace(alone=asked.alone))


def _run(parts: list[str], plan: Plan) -> int:
    """1 when a peer could not be had or a part failed, else 0."""
    os.sched_setaffinity(0, {CORES[1]})
    begun = time.monotonic()
    print(f"{platform.platform()}, Python {platform.python_version()}, {_load()}")
    print(
        f"Servers on core {CORES[0]}, the generator on core {CORES[1]}; median of {plan.rounds}."
        " MiB: the most that the\nserver's memory grew. p99, max ms: what other requests waited"
        " meanwhile."
    )
    troubles: dict[str, str] = {}
    for part in parts:
        try:
            PARTS[part](plan, troubles)
        except (OSError, RuntimeError, AssertionError) as error:
            troubles[f"the part {part}"] = repr(error)
    print(f"\n{time.monotonic() - begun:.0f} s, {_load()}", flush=True)
    for name, reason in troubles.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    return 1 if troubles else 0


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    sys.exit(main())
