"""Who runs where."""

import contextlib
import os
from collections.abc import Iterator

CORES = sorted(os.sched_getaffinity(0))[:2]
"""The server's and the generator's."""
SERVER = ("taskset", "-c", str(CORES[0]))
BOTH = ("taskset", "-c", ",".join(map(str, CORES)))


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """This thread, and the threads and processes that it begins meanwhile, share the first core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES[:1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
