"""Ours and the peers on the same work, one after the other, round after round."""

import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from benchmarks.peers.fetch import PeerMissingError
from benchmarks.storage_peers.meter import Figures, Transfer, figures
from benchmarks.storage_peers.subjects import Running, Subject

T = TypeVar("T")


class Asked(NamedTuple):
    """Bars of the issue: at least MB a second, at most MiB of growth, at most ms of waiting."""

    rate: float = 0.0
    growth_mib: float = math.inf
    ping_p99_ms: float = math.inf

    def words(self, found: Figures) -> str:
        bars = [
            (f">= {self.rate:g} MB/s", self.rate > 0, found.rate >= self.rate),
            (
                f"<= {self.growth_mib:g} MiB",
                self.growth_mib < math.inf,
                found.growth_mib <= self.growth_mib,
            ),
            (
                f"p99 <= {self.ping_p99_ms:g} ms",
                self.ping_p99_ms < math.inf,
                found.ping_p99_ms <= self.ping_p99_ms,
            ),
        ]
        return ", ".join(text + ("" if met else " (behind)") for text, given, met in bars if given)


NOTHING = Asked()
LOCAL = Asked(growth_mib=64, ping_p99_ms=15)
S3 = Asked(growth_mib=96, ping_p99_ms=15)


def rounds(
    subjects: Sequence[Subject],
    measure: Callable[[Subject, Running], T],
    count: int,
    troubles: dict[str, str],
) -> dict[str, list[T]]:
    """By subject. Every round has fresh servers; what the former left to write is on the disk."""
    found: dict[str, list[T]] = {}
    with tempfile.TemporaryDirectory() as place:
        for subject in [each for _ in range(count) for each in subjects]:
            os.sync()
            try:
                with subject.start(Path(place)) as running:
                    result = measure(subject, running)
                    found.setdefault(subject.name, []).append(result)
            except PeerMissingError as error:
                troubles[subject.name] = f"cannot be had: {error}"
            except (OSError, RuntimeError) as error:
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
