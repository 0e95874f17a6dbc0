"""Object detection: letterbox, the YOLOv8 output layout, class-wise NMS, boxes in pixels, drawing.

Boxes are `[x1, y1, x2, y2]`, float pixels, origin at the upper left.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mentatlab.protocol.errors import Code, Invalid
from mentatlab.sdk.media.images import REDUCING_GAP, Picture
from mentatlab.sdk.media.tensors import to_tensor
from mentatlab.sdk.models import Floats, InputSpec, Model, OnnxModel

IOU_LIMIT = (
    0.45  # boxes of one class that overlap more are one object (YOLOv5's and v8's usual value)
)
MAX_CANDIDATES = 3000  # best boxes that enter NMS; bounds its time on a noisy image


@dataclass(frozen=True, slots=True)
class Detection:
    label: str
    score: float  # 0..1
    box: tuple[float, float, float, float]  # pixels

    def to_dict(self) -> dict[str, Any]:
        box = [round(v, 1) for v in self.box]
        return {"label": self.label, "score": round(self.score, 4), "box": box}


@dataclass(frozen=True, slots=True)
class Letterbox:
    """How an image of `size` lies in the model's input: `x_in = x * scale + offset`, y alike."""

    size: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[int, int]

    def to_pixels(self, boxes: Floats) -> Floats:
        """n×4 boxes in the model's input → pixels of the image, clipped to it."""
        scale = np.array(self.scale * 2, np.float32)
        offset = np.array(self.offset * 2, np.float32)
        limit = np.array(self.size * 2, np.float32)
        return np.clip((boxes - offset) / scale, 0, limit)


def letterbox(
    picture: Picture, width: int, height: int, *, grey: int = 114
) -> tuple[Image.Image, Letterbox]:
    """The picture as large as fits, proportions kept, amid a grey image of `width`×`height`.

    The mapping is from the picture's full size, also when it was decoded smaller.
    """
    full_width, full_height = picture.size
    ratio = min(width / full_width, height / full_height)
    inner = (max(1, round(full_width * ratio)), max(1, round(full_height * ratio)))
    offset = ((width - inner[0]) // 2, (height - inner[1]) // 2)
    canvas = Image.new("RGB", (width, height), (grey, grey, grey))
    shrunk = picture.image.resize(inner, Image.Resampling.BILINEAR, reducing_gap=REDUCING_GAP)
    canvas.paste(shrunk, offset)
    scale = (inner[0] / full_width, inner[1] / full_height)
    return canvas, Letterbox(picture.size, scale, offset)


def decode_yolov8(
    output: Floats, *, threshold: float, classes: Collection[int] | None = None
) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """`[1, 4 + classes, n]` → boxes m×4, scores m, classes m; best score first, at most 3000.

    A column is cx, cy, w, h in input pixels, then a score for each class, of which the best counts.
    `classes` keeps only these indices.
    """
    table = output[0]
    scores = table[4:]
    best = scores.argmax(axis=0)
    confidence = np.take_along_axis(scores, best[None], axis=0)[0]
    keep = confidence >= threshold
    if classes is not None:
        keep &= np.isin(best, list(classes))
    chosen = np.flatnonzero(keep)
    chosen = chosen[np.argsort(-confidence[chosen], kind="stable")][:MAX_CANDIDATES]
    centre, half = table[:2, chosen].T, table[2:4, chosen].T / 2
    return np.hstack([centre - half, centre + half]), confidence[chosen], best[chosen]


def class_wise_nms(
    boxes: Floats, classes: NDArray[np.intp], *, iou_limit: float = IOU_LIMIT
) -> NDArray[np.intp]:
    """Indices of the boxes that stay, best first. `boxes` come best first.

    Of boxes of one class that overlap by more than `iou_limit` only the best stays.
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)
    left = np.arange(len(boxes))
    kept: list[int] = []
    while left.size:
        first, rest = left[0], left[1:]
        kept.append(int(first))
        upper_left = np.maximum(boxes[first, :2], boxes[rest, :2])
        lower_right = np.minimum(boxes[first, 2:], boxes[rest, 2:])
        shared = (lower_right - upper_left).clip(min=0).prod(axis=1)
        union = areas[first] + areas[rest] - shared
        same = (classes[rest] == classes[first]) & (shared > iou_limit * union)
        left = rest[~same]
    return np.array(kept, dtype=np.intp)


class Detector:
    """A detection model of the YOLOv8 layout, loaded once; calls may come from several threads."""

    def __init__(self, model: Model, *, threads: int | None = None) -> None:
        self.labels = model.labels()
        self._input = _letterboxed_input(model)
        self._onnx = OnnxModel(model.path, threads=threads)
        self._output = self._onnx.output_names[0]

    def detect(
        self,
        picture: Picture,
        *,
        threshold: float = 0.4,
        labels: Collection[str] | None = None,
        max_boxes: int = 100,
    ) -> list[Detection]:
        """Objects with a score of at least `threshold`, best first; boxes in full-size pixels.

        `labels` keeps only these; a name that the model does not know is `Invalid(BAD_PARAM)`.
        """
        wanted = None if labels is None else [self._class_of(name) for name in labels]
        height, width = self._input.size
        canvas, mapping = letterbox(picture, width, height, grey=self._input.letterbox or 0)
        output = self._onnx.run(**{self._input.name: to_tensor([canvas], self._input)})[
            self._output
        ]
        boxes, scores, classes = decode_yolov8(output, threshold=threshold, classes=wanted)
        kept = class_wise_nms(boxes, classes)[:max_boxes]
        pixels = mapping.to_pixels(boxes[kept])
        return [
            Detection(self.labels[int(classes[k])], float(scores[k]), _as_box(row))
            for k, row in zip(kept, pixels, strict=True)
        ]

    def _class_of(self, label: str) -> int:
        if label in self.labels:
            return self.labels.index(label)
        raise Invalid(
            Code.BAD_PARAM,
            f"the model knows no class {label!r}",
            hint=f"it knows {', '.join(self.labels)}",
        )


def _as_box(row: Floats) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = map(float, row)
    return (x1, y1, x2, y2)


def _letterboxed_input(model: Model) -> InputSpec:
    card = model.card
    layouts = [output.layout for output in card.outputs.values()]
    if card.input is None or card.input.letterbox is None or layouts[:1] != ["yolov8"]:
        raise Invalid(
            Code.BAD_PARAM,
            f"model {card.id} ({card.task}) is no detector of the YOLOv8 layout",
            hint="its card needs input.letterbox and a first output with layout: yolov8",
        )
    return card.input


_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000")


def draw(picture: Picture, detections: Sequence[Detection]) -> Image.Image:
    """A copy of the picture with a box and a caption for each detection; one colour a label."""
    image = picture.image.copy()
    ratio = image.width / picture.size[0]
    line = max(2, min(image.size) // 250)
    font = ImageFont.load_default(size=max(12, min(image.size) // 40))
    canvas = ImageDraw.Draw(image)
    labels = list(dict.fromkeys(d.label for d in detections))
    for detection in reversed(detections):  # the best lies on top
        colour = _COLOURS[labels.index(detection.label) % len(_COLOURS)]
        _draw_one(canvas, detection, ratio, colour, line, font)
    return image


def _draw_one(
    canvas: ImageDraw.ImageDraw,
    detection: Detection,
    ratio: float,
    colour: str,
    line: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    x1, y1, x2, y2 = (v * ratio for v in detection.box)
    caption = f"{detection.label} {detection.score:.2f}"
    _, _, width, height = canvas.textbbox((0, 0), caption, font=font)
    upper = max(0, y1 - height - line)
    canvas.rectangle((x1, y1, x2, y2), outline=colour, width=line)
    canvas.rectangle((x1, upper, x1 + width + 2 * line, upper + height + line), fill=colour)
    canvas.text((x1 + line, upper), caption, fill="white", font=font)
