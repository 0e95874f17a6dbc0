"""Finds objects in a photo or in a stream of frames. The model is loaded once and kept."""

import asyncio
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import msgspec

from mentatlab.protocol.errors import Code
from mentatlab.sdk import AgentError, InputStream, MultimodalAgent, run
from mentatlab.sdk.media.detection import Detection, Detector, draw
from mentatlab.sdk.media.images import Picture, encode_jpeg, load_image
from mentatlab.sdk.models import find_model
from mentatlab.sdk.params import read_params

PREVIEW = 1024
"""Pixels of the shorter side that are decoded at least; a 12 MP JPEG is then read at half size."""


class Params(msgspec.Struct):
    model: str = "nanodet-416"
    threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.4
    labels: list[str] | None = None
    max_boxes: Annotated[int, msgspec.Meta(ge=1, le=3000)] = 100
    annotate: bool = True


class Found(NamedTuple):
    picture: Picture
    detections: list[Detection]

    def to_list(self) -> list[dict[str, Any]]:
        return [detection.to_dict() for detection in self.detections]


@lru_cache(maxsize=2)
def detector(model: str) -> Detector:
    return Detector(find_model(model))


class ObjectDetector(MultimodalAgent):
    async def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
        params = read_params(inputs, Params)
        match inputs:
            case {"frames": InputStream() as frames}:
                return await self._detect_frames(frames, params)
            case {"image": dict()}:
                found = await asyncio.to_thread(self._detect, inputs["image"], params)
                return {"boxes": found.to_list(), **await self._annotated(found, params)}
            case _:
                raise AgentError(
                    Code.MISSING_INPUT, "there is no image", hint="connect `image` or `frames`"
                )

    def _detect(self, image: dict[str, Any], params: Params) -> Found:
        with self.open_media(image) as file:
            picture = load_image(file, at_least=PREVIEW)
        detections = detector(params.model).detect(
            picture, threshold=params.threshold, labels=params.labels, max_boxes=params.max_boxes
        )
        return Found(picture, detections)

    async def _detect_frames(self, frames: InputStream, params: Params) -> dict[str, Any]:
        rows: list[dict[str, Any]] = []
        richest: Found | None = None
        async for frame in frames.chunks():
            found = await asyncio.to_thread(self._detect, frame.value, params)
            rows.append({"index": len(rows), "pts": frame.pts, "boxes": found.to_list()})
            if richest is None or len(found.detections) > len(richest.detections):
                richest = found
            self.progress(current=len(rows))
        return {"boxes": rows, **(await self._annotated(richest, params) if richest else {})}

    async def _annotated(self, found: Found, params: Params) -> dict[str, Any]:
        if not params.annotate:
            return {}
        image = await asyncio.to_thread(draw, found.picture, found.detections)
        data = await asyncio.to_thread(encode_jpeg, image)
        return {"annotated": await self.upload_media("annotated", data, {"mimeType": "image/jpeg"})}


if __name__ == "__main__":
    run(ObjectDetector)
