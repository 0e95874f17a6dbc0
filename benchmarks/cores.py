"""Who runs where."""

import os

CORES = sorted(os.sched_getaffinity(0))[:2]
"""The server's and the generator's."""
SERVER = ("taskset", "-c", str(CORES[0]))
BOTH = ("taskset", "-c", ",".join(map(str, CORES)))
