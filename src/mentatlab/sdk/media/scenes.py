"""Hard cuts from small pictures of the frames: a state machine that holds a few of them.

A cut is a frame that differs from the one before it far more than its neighbours differ from theirs
(so shaking and pans are no cuts), that also changes the colours of the picture, and after which the
old picture does not come back (so a flash is no cut).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 64, 36
"""Size of the picture that is compared; planes are YUV 4:2:0, so (54, 64) uint8 in all."""

Planes = NDArray[np.uint8]

MIN_DIFFERENCE = 8.0  # levels of 255: mean |ΔY| + |ΔU| + |ΔV|
MIN_RATIO = 2.5  # over the neighbours' mean difference
MIN_HISTOGRAM = 0.08  # part of the picture that changed its brightness class
FLASH = 0.5  # the old picture is back when it differs less than this part of the cut's difference


class Judged(NamedTuple):
    """A frame and whether it begins a new scene."""

    frame: int  # its index, from 0
    time_s: float
    difference: float  # from the frame before, in levels of 255: how much moves
    cut: bool


@dataclass(frozen=True, slots=True)
class _Frame:
    index: int
    time_s: float
    planes: NDArray[np.int16]
    histogram: NDArray[np.float64]
    difference: float  # from the frame before
    histogram_change: float


class SceneDetector:
    """Push every frame's planes in order; each frame is judged `window` frames after it was pushed.

    `window` is a number of frames on both sides, about 0.2 s; `min_scene_s` the shortest scene.
    """

    def __init__(self, *, window: int = 5, min_scene_s: float = 0.25) -> None:
        self.window = window
        self._min_scene_s = min_scene_s
        self._frames: deque[_Frame] = deque(maxlen=2 * window + 1)
        self._pushed = 0
        self._scene_start_s = 0.0

    def push(self, planes: Planes, time_s: float) -> Judged | None:
        """`planes`: (54, 64) uint8, YUV 4:2:0. What the frame `window` pushes ago is."""
        if not self._pushed:
            self._scene_start_s = time_s
        self._frames.append(self._measure(planes, time_s))
        self._pushed += 1
        position = len(self._frames) - 1 - self.window
        return self._judge(position) if position >= 0 else None

    def finish(self) -> list[Judged]:
        """The last `window` frames, judged by the neighbours that they have."""
        count = len(self._frames)
        return [self._judge(i) for i in range(max(0, count - self.window), count)]

    def _measure(self, planes: Planes, time_s: float) -> _Frame:
        levels = planes.astype(np.int16)
        counts = np.bincount(planes[:HEIGHT].ravel() >> 4, minlength=16)
        histogram = counts / (WIDTH * HEIGHT)
        last = self._frames[-1] if self._frames else None
        return _Frame(
            index=self._pushed,
            time_s=time_s,
            planes=levels,
            histogram=histogram,
            difference=_difference(levels, last.planes) if last else 0.0,
            histogram_change=_change(histogram, last.histogram) if last else 0.0,
        )

    def _judge(self, position: int) -> Judged:
        frame = self._frames[position]
        old_enough = frame.time_s - self._scene_start_s >= self._min_scene_s
        cut = old_enough and _is_cut(list(self._frames), position, self.window)
        if cut:
            self._scene_start_s = frame.time_s
        return Judged(frame.index, frame.time_s, frame.difference, cut)


def window_for(fps: float | None) -> int:
    """Frames in about 0.2 s, within bounds that keep memory flat; 5 for an unknown rate."""
    return min(48, max(3, round((fps or 25.0) / 5)))


def _is_cut(frames: Sequence[_Frame], position: int, window: int) -> bool:
    new = frames[position]
    if new.index == 0 or new.difference < MIN_DIFFERENCE or new.histogram_change < MIN_HISTOGRAM:
        return False
    before = frames[max(0, position - window) : position]
    after = frames[position + 1 : position + 1 + window]
    if new.difference < MIN_RATIO * _usual([*before, *after]):
        return False
    old, similar = frames[position - 1], FLASH * new.difference
    came_back = any(_difference(old.planes, frame.planes) < similar for frame in after)
    was_there = any(_difference(new.planes, frame.planes) < similar for frame in before[:-1])
    return not (came_back or was_there)


def _usual(neighbours: Sequence[_Frame]) -> float:
    """Mean difference of the neighbours without the greatest, which may be another cut."""
    differences = sorted(frame.difference for frame in neighbours if frame.index > 0)[:-1]
    return sum(differences) / len(differences) if differences else 0.0


def _difference(a: NDArray[np.int16], b: NDArray[np.int16]) -> float:
    """Mean |ΔY| + mean |ΔU| + mean |ΔV|, in levels of 255."""
    change = np.abs(a - b)
    luma = change[:HEIGHT].mean()
    # the U and V planes hold a quarter of Y's samples each, one after the other
    return float(luma + 2 * change[HEIGHT:].mean())


def _change(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """0 = the same brightness classes, 1 = none in common."""
    return float(np.abs(a - b).sum() / 2)
