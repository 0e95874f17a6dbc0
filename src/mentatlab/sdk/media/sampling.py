"""Which frames of a video to look at: by number, by time, key frames, scene starts.

Pure over any iterator of frames; times are PTS, so variable frame rates are sampled evenly in time.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Protocol, TypeVar

from mentatlab.sdk.media.scenes import Cut, Planes, SceneDetector

_ROUNDING_S = 1e-6  # a frame at 1.9999999 s is the one of 2 s


class Timed(Protocol):
    @property
    def index(self) -> int: ...
    @property
    def time_s(self) -> float: ...


F = TypeVar("F", bound=Timed)


def every_nth(frames: Iterable[F], n: int) -> Iterator[F]:
    """The first frame and every n-th after it."""
    return islice(frames, 0, None, n)


def every_seconds(frames: Iterable[F], step_s: float) -> Iterator[F]:
    """The first frame in each of the intervals [0, `step_s`), [`step_s`, 2 `step_s`) …"""
    due = -math.inf
    for frame in frames:
        if frame.time_s >= due - _ROUNDING_S:
            yield frame
            due = (math.floor((frame.time_s + _ROUNDING_S) / step_s) + 1) * step_s


def with_cuts(
    frames: Iterable[F], detector: SceneDetector, planes: Callable[[F], Planes]
) -> Iterator[tuple[F, Cut | None]]:
    """Every frame in order, with the cut that it begins. Runs `detector.window` frames behind."""
    held: list[F] = []
    for frame in frames:
        held.append(frame)
        cut = detector.push(planes(frame), frame.time_s)
        if len(held) > detector.window:
            yield held.pop(0), cut
    cuts = {cut.frame: cut for cut in detector.finish()}
    for position, frame in enumerate(held, start=detector.pushed - len(held)):
        yield frame, cuts.get(position)


def scene_starts(
    frames: Iterable[F], detector: SceneDetector, planes: Callable[[F], Planes]
) -> Iterator[F]:
    """The first frame of every scene."""
    pairs = with_cuts(frames, detector, planes)
    return (frame for i, (frame, cut) in enumerate(pairs) if cut or i == 0)
