"""Rows of figures, and how they are printed."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """`asked` is the bar of the issue or the design that the figure is held against, if any."""

    name: str
    value: float
    unit: str
    asked: str = ""


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def show(title: str, rows: Sequence[Row]) -> None:
    print(f"\n{title}")
    for name, value, unit, asked in rows:
        print(f"  {name:<46}{value:>12,.2f} {unit:<14}{asked}", flush=True)
