"""Ours and the peers on the same work, one after the other, round after round."""

import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from benchmarks.peers.fetch import PeerMissingError
from benchmarks.storage_peers.meter import Figures, Transfer, figures
from benchmarks.storage_peers.plan import Plan
from benchmarks.storage_peers.subjects import OURS, Running, Subject

T = TypeVar("T")


class Asked(NamedTuple):
    """Bars of the issue: at least MB a second, at most MiB of growth, at most ms of waiting."""

    rate: float = 0.0
    growth_mib: float = math.inf
    ping_p99_ms: float = math.inf

    def words(self, found: Figures) -> str:
        bars = [
            (f">= {self.rate:g} MB/s", self.rate == 0, found.rate < self.rate),
            _most(self.growth_mib, "MiB", found.growth_mib),
            _most(self.ping_p99_ms, "ms p99", found.ping_p99_ms),
        ]
        given = [(text, missed) for text, is_none, missed in bars if not is_none]
        return ", ".join(text + (" (behind)" if missed else "") for text, missed in given)


def _most(bar: float, unit: str, found: float) -> tuple[str, bool, bool]:
    """Text, whether there is no bar, whether it is missed."""
    return f"<= {bar:g} {unit}", bar == math.inf, found > bar


NOTHING = Asked()
LOCAL = Asked(growth_mib=64, ping_p99_ms=15)


def rounds(
    subjects: Sequence[Subject],
    measure: Callable[[Subject, Running], T],
    plan: Plan,
    troubles: dict[str, str],
) -> dict[str, list[T]]:
    """By subject. Every round has fresh servers; what the former left to write is on the disk."""
    found: dict[str, list[T]] = {}
    invited = [each for each in subjects if not plan.alone or each.name.startswith(OURS)]
    with tempfile.TemporaryDirectory() as place:
        for subject in invited * plan.rounds:
            os.sync()
            try:
                with subject.start(Path(place)) as running:
                    result = measure(subject, running)
                    found.setdefault(subject.name, []).append(result)
            except PeerMissingError as error:
                troubles[subject.name] = f"cannot be had: {error}"
            except (OSError, RuntimeError, AssertionError) as error:
                troubles[subject.name] = repr(error)
    return found


def show_transfers(
    title: str, found: Mapping[str, Sequence[Transfer]], limit: float, asked: Mapping[str, Asked]
) -> None:
    """`limit`: MB a second that the rates are held against."""
    heads = f"{'MB/s':>9}{'of limit':>9}{'CPU s/GB':>10}{'generator':>11}{'MiB':>8}{'p99 ms':>8}"
    print(f"\n{title}\n  {'':<32}{heads}{'max ms':>8}  asked")
    for name, some in found.items():
        x = figures(some)
        speed = f"{x.rate:>9,.0f}{x.rate / limit:>9.0%}{x.server_s_gb:>10.2f}{x.generator:>11.0%}"
        rest = f"{x.growth_mib:>8.1f}{x.ping_p99_ms:>8.1f}{x.ping_max_ms:>8.1f}"
        print(f"  {name:<32}{speed}{rest}  {asked.get(name, NOTHING).words(x)}", flush=True)
