"""How much is measured."""

from typing import NamedTuple


class Plan(NamedTuple):
    """`rounds`: runs of each kind, in about `seconds` at most; `starts`: how often something is
    killed or fails; `chunks` through a stream; `items` of a map; `video`: bytes; `alone`: without
    peers."""

    rounds: int
    seconds: float
    starts: int
    chunks: int
    items: int
    video: int
    alone: bool = False


QUICK = Plan(rounds=30, seconds=3, starts=2, chunks=4000, items=1000, video=100 * 10**6)
WHOLE = Plan(rounds=200, seconds=10, starts=5, chunks=20_000, items=10_000, video=10**9)
