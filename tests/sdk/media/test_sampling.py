import itertools
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.sdk.media.sampling import every_nth, every_seconds


class At(NamedTuple):
    time_s: float


def times(*values: float) -> list[At]:
    return [At(v) for v in values]


def test_every_nth() -> None:
    assert list(every_nth(times(0, 1, 2, 3, 4), 2)) == times(0, 2, 4)


@pytest.mark.parametrize(
    ("frames", "step", "expected"),
    [
        ([], 1, []),
        ([i / 10 for i in range(25)], 1.0, [0, 1, 2]),
        ([0, 0.9999999, 1.0333], 1.0, [0, 0.9999999]),  # a rounded 1.0
        ([0, 0.1, 5.5, 5.6, 6.0], 1.0, [0, 5.5, 6.0]),  # a pause gives one frame
        ([0.7, 0.8, 1.1], 1.0, [0.7, 1.1]),  # a late start keeps the grid
        ([0, 1 / 30, 2 / 30, 3 / 30], 0.04, [0, 2 / 30, 3 / 30]),
    ],
)
def test_every_seconds(frames: list[float], step: float, expected: list[float]) -> None:
    assert list(every_seconds(times(*frames), step)) == times(*expected)


@given(st.lists(st.floats(0, 100), max_size=50), st.floats(0.01, 10))
def test_no_interval_gives_two_frames(values: list[float], step: float) -> None:
    chosen = [f.time_s for f in every_seconds(times(*sorted(values)), step)]
    slots = [int((t + 1e-6) / step) for t in chosen]
    assert all(later > earlier for earlier, later in itertools.pairwise(slots))
