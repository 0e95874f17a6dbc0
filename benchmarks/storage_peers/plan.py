"""How much is measured."""

from typing import NamedTuple


class Plan(NamedTuple):
    """`size`: bytes of a big object; `small`: how many small ones; `ranges`: requests for parts;
    `alone`: without peers."""

    rounds: int
    size: int
    small: int
    ranges: int
    alone: bool = False


QUICK = Plan(rounds=1, size=64 << 20, small=64, ranges=50)
WHOLE = Plan(rounds=3, size=1 << 30, small=1000, ranges=1000)
