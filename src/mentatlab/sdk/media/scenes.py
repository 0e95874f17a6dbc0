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


class Cut(NamedTuple):
    frame: int  # index of the new scene's first frame
    time_s: float  # its presentation time
    difference: float  # levels of 255


@dataclass(frozen=True, slots=True)
class _Frame:
    index: int
    time_s: float
    planes: NDArray[np.int16]
    histogram: NDArray[np.float64]
    difference: float  # from the frame before
    histogram_change: float


class SceneDetector:
    """Push every frame's planes in order; a cut is told `window` frames after it was pushed.

    `window` is a number of frames on both sides, about 0.2 s; `min_scene_s` the shortest scene.
    """

    def __init__(self, *, window: int = 5, min_scene_s: float = 0.25) -> None:
        self.window = window
        self._min_scene_s = min_scene_s
        self._frames: deque[_Frame] = deque(maxlen=2 * window + 1)
        self.pushed = 0
        self._last_cut_s = float("-inf")

    def push(self, planes: Planes, time_s: float) -> Cut | None:
        """`planes`: (54, 64) uint8, YUV 4:2:0. The cut, if the frame `window` pushes ago is one."""
        frame = self._measure(planes, time_s)
        if not self._frames:
            self._last_cut_s = time_s
        self._frames.append(frame)
        self.pushed += 1
        return self._judge(len(self._frames) - 1 - self.window)

    def finish(self) -> list[Cut]:
        """Cuts among the last `window` frames, judged by the neighbours that they have."""
        count = len(self._frames)
        found = (self._judge(i) for i in range(max(1, count - self.window), count))
        return [cut for cut in found if cut]

    @property
    def difference(self) -> float:
        """Of the newest frame from the one before, in levels of 255: how much moves."""
        return self._frames[-1].difference if self._frames else 0.0

    def _measure(self, planes: Planes, time_s: float) -> _Frame:
        levels = planes.astype(np.int16)
        counts = np.bincount(planes[:HEIGHT].ravel() >> 4, minlength=16)
        histogram = counts / (WIDTH * HEIGHT)
        last = self._frames[-1] if self._frames else None
        return _Frame(
            index=self.pushed,
            time_s=time_s,
            planes=levels,
            histogram=histogram,
            difference=_difference(levels, last.planes) if last else 0.0,
            histogram_change=_change(histogram, last.histogram) if last else 0.0,
        )

    def _judge(self, position: int) -> Cut | None:
        if position < 1:
            return None
        frame = self._frames[position]
        if frame.time_s - self._last_cut_s < self._min_scene_s or not _is_cut(
            list(self._frames), position, self.window
        ):
            return None
        self._last_cut_s = frame.time_s
        return Cut(frame.index, frame.time_s, frame.difference)


def window_for(fps: float) -> int:
    """Frames in about 0.2 s, within bounds that keep memory flat."""
    return min(48, max(3, round(fps / 5)))


def _is_cut(frames: Sequence[_Frame], position: int, window: int) -> bool:
    new, old = frames[position], frames[position - 1]
    if new.difference < MIN_DIFFERENCE or new.histogram_change < MIN_HISTOGRAM:
        return False
    before = frames[max(0, position - window) : position]
    after = frames[position + 1 : position + 1 + window]
    if new.difference < MIN_RATIO * _usual([*before, *after]):
        return False
    similar = FLASH * new.difference
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
