"""Classifies a photo. The model is loaded by the first invocation and kept."""

import asyncio
from functools import lru_cache
from typing import Annotated, Any

import msgspec

from mentatlab.sdk import MultimodalAgent, run
from mentatlab.sdk.media.classification import Classification, Classifier
from mentatlab.sdk.media.images import load_image
from mentatlab.sdk.models import find_model
from mentatlab.sdk.params import read_params

CARDS = {"efficientnet": "efficientnet-lite0"}  # other names are cards already


class Params(msgspec.Struct):
    model: str = "efficientnet"
    top_k: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5


@lru_cache(maxsize=3)
def classifier(model: str) -> Classifier:
    return Classifier(find_model(CARDS.get(model, model)))


class ImageClassifier(MultimodalAgent):
    async def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
        answer = await asyncio.to_thread(
            self._classify, inputs["image"], read_params(inputs, Params)
        )
        outputs: dict[str, Any] = {
            "classification": [ranked.to_dict() for ranked in answer.top],
            "confidence": answer.top[0].score,
        }
        if answer.features is not None:
            outputs["features"] = await self.upload_media(
                "features",
                answer.features.astype("<f4").tobytes(),
                {
                    "mimeType": "application/octet-stream",
                    "dtype": "float32",
                    "shape": [answer.features.size],
                },
            )
        return outputs

    def _classify(self, image: dict[str, Any], params: Params) -> Classification:
        model = classifier(params.model)
        with self.open_media(image) as file:
            picture = load_image(file, at_least=model.at_least)
        return model.classify([picture], top_k=params.top_k)[0]


if __name__ == "__main__":
    run(ImageClassifier)
