"""Image classification with any model that a card describes: probabilities, top-k, features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mentatlab.protocol.errors import Code, Invalid
from mentatlab.sdk.media.images import Picture
from mentatlab.sdk.media.tensors import crop_and_resize, to_tensor
from mentatlab.sdk.models import Floats, InputSpec, Model, OnnxModel


@dataclass(frozen=True, slots=True)
class Ranked:
    label: str
    score: float  # probability, 0..1
    index: int  # of the class

    def to_dict(self) -> dict[str, Any]:
        return {"label": self.label, "score": round(self.score, 4), "index": self.index}


@dataclass(frozen=True, slots=True)
class Classification:
    top: list[Ranked]  # best first
    logits: Floats  # [classes]
    features: Floats | None  # the embedding before the last layer, when the model gives it


def softmax(logits: Floats) -> Floats:
    """Over the last axis; stable for large values."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def rank(probabilities: Floats, labels: Sequence[str], top_k: int) -> list[Ranked]:
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    return [Ranked(labels[int(i)], float(probabilities[i]), int(i)) for i in best]


class Classifier:
    """A classification model, loaded once; calls may come from several threads."""

    def __init__(self, model: Model, *, threads: int | None = None) -> None:
        self.labels = model.labels()
        self.input = _cropped_input(model)
        self._onnx = OnnxModel(model.path, threads=threads)
        self._logits = next(n for n, o in model.card.outputs.items() if o.activation == "softmax")

    @property
    def at_least(self) -> int:
        """Pixels of the shorter side that an image must keep while it is decoded (`load_image`)."""
        return round(2 * max(self.input.size) / (self.input.centre_crop or 1))

    def classify(self, pictures: Sequence[Picture], *, top_k: int = 5) -> list[Classification]:
        """One answer a picture, in one batch."""
        images = [crop_and_resize(picture.image, self.input) for picture in pictures]
        outputs = self._onnx.run(**{self.input.name: to_tensor(images, self.input)})
        logits, features = outputs[self._logits], outputs.get("features")
        return [
            Classification(
                top=rank(softmax(row), self.labels, top_k),
                logits=row,
                features=None if features is None else features[i],
            )
            for i, row in enumerate(logits)
        ]


def _cropped_input(model: Model) -> InputSpec:
    if model.card.task != "image-classification" or model.card.input is None:
        raise Invalid(
            Code.BAD_PARAM,
            f"model {model.card.id} is for {model.card.task}, not for image-classification",
            hint="name a model of that task, such as efficientnet",
        )
    return model.card.input
