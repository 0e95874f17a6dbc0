"""One pass over a video: cuts from every frame, objects from sampled ones; memory stays flat."""

from collections import Counter
from collections.abc import Callable, Generator
from typing import Annotated, Any

import msgspec
from contact_sheet import TILE, Tile

from mentatlab.sdk.media.detection import Detector
from mentatlab.sdk.media.sampling import Ticker, judged
from mentatlab.sdk.media.scenes import Judged, SceneDetector, window_for
from mentatlab.sdk.media.video import Frame, Scaler, Video

MAX_TILES = 100
TAIL_S = 0.5  # a video that ends so much before its claimed duration is cut off
DETECTOR_SIDE = 640  # px; what the detector gets, it shrinks it to its own input


class Params(msgspec.Struct, frozen=True):
    detect_every_s: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.4
    labels: list[str] | None = None  # only these; None = all that the model knows
    model: str = "nanodet-416"


class Analysis:
    """`events` once; then `summary` and `tiles` (one picture a scene, the first 100 scenes)."""

    def __init__(
        self,
        video: Video,
        detector: Detector,
        params: Params,
        *,
        progress: Callable[[float], None],
    ) -> None:
        self.tiles: list[Tile] = []
        self._video = video
        self._detector = detector
        self._params = params
        self._progress = progress
        self._scaler = Scaler()
        self._ticker = Ticker(params.detect_every_s)
        self._starts: list[float] = []  # of scenes, s
        self._labels: Counter[str] = Counter()
        self._samples = self._frames = 0
        self._moved: list[float] = []  # differences since the last sample
        self._first_s = self._last_s = 0.0

    def events(self) -> Generator[dict[str, Any]]:
        """`{"event": "scene", …}` where one begins, `{"event": "objects", …}` at each sample."""
        detector = SceneDetector(window=window_for(self._video.info.fps))
        for frame, verdict in judged(self._video.frames(), detector, self._scaler.planes):
            yield from self._look(frame, verdict)

    def _look(self, frame: Frame, verdict: Judged) -> Generator[dict[str, Any]]:
        if not self._frames:
            self._first_s = frame.time_s
        if verdict.cut or not self._frames:
            yield self._begin_scene(frame)
        else:
            self._moved.append(verdict.difference)
        self._frames, self._last_s = self._frames + 1, frame.time_s
        if self._ticker.due(frame.time_s):
            yield self._sample(frame)

    def _begin_scene(self, frame: Frame) -> dict[str, Any]:
        number, time_s = len(self._starts), _rounded(frame.time_s)
        self._starts.append(time_s)
        if len(self.tiles) < MAX_TILES:
            image = self._scaler.picture(frame, DETECTOR_SIDE).image
            image.thumbnail(TILE)
            self.tiles.append(Tile(image, f"{number + 1}   {time_s:.2f} s"))
        return {"event": "scene", "time": time_s, "scene": number}

    def _sample(self, frame: Frame) -> dict[str, Any]:
        found = self._detector.detect(
            self._scaler.picture(frame, DETECTOR_SIDE),
            threshold=self._params.threshold,
            labels=self._params.labels,
        )
        self._samples += 1
        self._labels.update({detection.label for detection in found})
        activity = sum(self._moved) / len(self._moved) if self._moved else 0.0
        self._moved.clear()
        self._tell_progress(frame.time_s)
        return {
            "event": "objects",
            "time": _rounded(frame.time_s),
            "scene": len(self._starts) - 1,
            "activity": round(activity, 2),
            "objects": [detection.to_dict() for detection in found],
        }

    def _tell_progress(self, time_s: float) -> None:
        if duration_s := self._video.info.duration_s:
            self._progress(min(99.0, 100 * time_s / duration_s))

    def summary(self) -> dict[str, Any]:
        """Times in seconds; `labels`: in how many samples each was seen."""
        info, damaged = self._video.info, self._video.damage.packets
        span_s = self._last_s - self._first_s
        step_s = span_s / (self._frames - 1) if self._frames > 1 else 1 / (info.fps or 25.0)
        end_s = self._last_s + step_s
        ends = [*self._starts[1:], _rounded(end_s)]
        whole = info.duration_s is None or end_s > info.duration_s - TAIL_S
        return {
            "duration": _rounded(end_s),
            "fps": round(1 / step_s, 3) if step_s else None,
            "frames": self._frames,
            "width": info.width,
            "height": info.height,
            "codec": info.codec,
            "scenes": [{"start": s, "end": e} for s, e in zip(self._starts, ends, strict=True)],
            "cuts": self._starts[1:],
            "sampling": f"one frame every {self._params.detect_every_s:g} s",
            "samples": self._samples,
            "labels": dict(self._labels.most_common()),
            "complete": whole and not damaged,
            "damaged_packets": damaged,
        }


def _rounded(time_s: float) -> float:
    return round(time_s, 3)
