"""Which frames of a video to look at: by number, by time, key frames, scene starts.

Pure over any iterator of frames; times are PTS, so variable frame rates are sampled evenly in time.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Protocol, TypeVar

from mentatlab.sdk.media.scenes import Judged, Planes, SceneDetector

_ROUNDING_S = 1e-6  # a frame at 1.9999999 s is the one of 2 s


class Timed(Protocol):
    @property
    def time_s(self) -> float: ...


F = TypeVar("F", bound=Timed)


def every_nth(frames: Iterable[F], n: int) -> Iterator[F]:
    """The first frame and every n-th after it."""
    return islice(frames, 0, None, n)


class Ticker:
    """Due once in each of the intervals [0, `step_s`), [`step_s`, 2 `step_s`) …"""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._due_s = -math.inf

    def due(self, time_s: float) -> bool:
        if time_s < self._due_s - _ROUNDING_S:
            return False
        self._due_s = (math.floor((time_s + _ROUNDING_S) / self._step_s) + 1) * self._step_s
        return True


def every_seconds(frames: Iterable[F], step_s: float) -> Iterator[F]:
    """The first frame in each interval of `step_s`; a pause in the video gives no frame twice."""
    ticker = Ticker(step_s)
    return (frame for frame in frames if ticker.due(frame.time_s))


def judged(
    frames: Iterable[F], detector: SceneDetector, planes: Callable[[F], Planes]
) -> Iterator[tuple[F, Judged]]:
    """Every frame in order, with the word on whether it begins a scene; holds `window` frames."""
    held: deque[F] = deque()
    for frame in frames:
        held.append(frame)
        if verdict := detector.push(planes(frame), frame.time_s):
            yield held.popleft(), verdict
    yield from zip(held, detector.finish(), strict=True)


def scene_starts(
    frames: Iterable[F], detector: SceneDetector, planes: Callable[[F], Planes]
) -> Iterator[F]:
    """The first frame of every scene."""
    pairs = judged(frames, detector, planes)
    return (frame for frame, verdict in pairs if verdict.cut or verdict.frame == 0)
