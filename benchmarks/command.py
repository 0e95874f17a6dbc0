"""The command line of the benches that measure beside peers."""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from benchmarks.cores import CORES

Troubles = dict[str, str]
"""What could not be had or measured, and why."""


class Plan(Protocol):
    """`alone`: without peers, so that nothing is fetched."""

    def _replace(self, *, alone: bool) -> "Plan": ...


P = TypeVar("P", bound=Plan)


@dataclass(frozen=True, kw_only=True)
class Bench(Generic[P]):
    """`about` says, for a plan, what the reader of the figures must know; `pinned`: this
    process keeps to the generator's core."""

    name: str
    parts: Mapping[str, Callable[[P, Troubles], None]]
    quick: P
    whole: P
    about: Callable[[P], str]
    pinned: bool = False


class _Asked(NamedTuple):
    parts: list[str]
    quick: bool
    alone: bool


def main(bench: Bench[P]) -> int:
    """1 when a peer could not be had or a part failed, 2 when this machine does not do, else 0."""
    asked = _asked(bench)
    if len(CORES) < 2:
        print("This takes two cores: one for the server, one for the load.", file=sys.stderr)
        return 2
    plan = bench.quick if asked.quick else bench.whole
    return _run(bench, asked.parts, plan._replace(alone=asked.alone))


def _asked(bench: Bench[P]) -> _Asked:
    parser = argparse.ArgumentParser(prog=f"benchmarks.{bench.name}")
    parser.add_argument("parts", nargs="*", metavar="part", help=" ".join(bench.parts))
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--alone", action="store_true", help="without peers, so nothing is fetched")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - bench.parts.keys():
        parser.error(f"no such part: {' '.join(sorted(unknown))}")
    return _Asked(asked.parts or list(bench.parts), asked.quick, asked.alone)


def _run(bench: Bench[P], parts: list[str], plan: P) -> int:
    if bench.pinned:
        os.sched_setaffinity(0, {CORES[1]})
    begun = time.monotonic()
    print(f"{platform.platform()}, Python {platform.python_version()}, {_load()}")
    print(bench.about(plan))
    troubles: Troubles = {}
    for part in parts:
        try:
            bench.parts[part](plan, troubles)
        except (OSError, RuntimeError, AssertionError) as error:
            troubles[f"the part {part}"] = repr(error)
    print(f"\n{time.monotonic() - begun:.0f} s, {_load()}", flush=True)
    for name, reason in troubles.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    return 1 if troubles else 0


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"
