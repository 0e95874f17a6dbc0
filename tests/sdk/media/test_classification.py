"""The classifier against an independent run: plain Pillow, numpy and a direct onnxruntime."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from mentatlab.protocol.errors import Invalid
from mentatlab.sdk.media.classification import Classifier, rank, softmax
from mentatlab.sdk.media.images import load_image
from mentatlab.sdk.media.tensors import central_square, to_tensor
from mentatlab.sdk.models import Floats, InputSpec, find_model

MEDIA = Path(__file__).parents[3] / "examples" / "media"


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier(find_model("efficientnet-lite0"), threads=1)


def reference_run(file: Path) -> dict[str, Floats]:
    """Straight from the facts: centre crop 0.875, 224 bicubic, RGB, (x - 127) / 128, NCHW."""
    image = Image.open(file).convert("RGB")
    side = 0.875 * min(image.size)
    left, upper = (image.width - side) / 2, (image.height - side) / 2
    square = image.resize(
        (224, 224), Image.Resampling.BICUBIC, (left, upper, left + side, upper + side)
    )
    values = (np.asarray(square).astype(np.float32) - 127) / 128
    session = onnxruntime.InferenceSession(str(find_model("efficientnet-lite0").path))
    logits, features = session.run(
        ["logits", "features"], {"input": values.transpose(2, 0, 1)[None]}
    )
    return {"logits": logits[0], "features": features[0]}


@pytest.mark.parametrize("name", ["coffee.png", "astronaut.jpg", "chelsea.jpg"])
def test_logits_equal_an_independent_run(name: str, classifier: Classifier) -> None:
    [answer] = classifier.classify([load_image(MEDIA / name)])
    expected = reference_run(MEDIA / name)
    assert answer.features is not None
    assert np.allclose(answer.logits, expected["logits"], atol=1e-3)
    assert np.allclose(answer.features, expected["features"], atol=1e-3)


def test_coffee_is_espresso(classifier: Classifier) -> None:
    [answer] = classifier.classify([load_image(MEDIA / "coffee.png", at_least=classifier.at_least)])
    assert answer.top[0].label == "espresso"
    assert answer.top[0].score > 0.8
    assert answer.top[0].to_dict() == {
        "label": "espresso",
        "score": pytest.approx(answer.top[0].score, abs=1e-4),
        "index": 967,
    }


def test_chelsea_is_a_cat(classifier: Classifier) -> None:
    [answer] = classifier.classify([load_image(MEDIA / "chelsea.jpg")], top_k=3)
    assert {r.label for r in answer.top} >= {"tiger cat", "Egyptian cat"}


def test_a_shrunk_decode_of_a_large_photo_agrees(classifier: Classifier, tmp_path: Path) -> None:
    """The fast path (a JPEG decoded at a half, a quarter …) may move a probability a little."""
    large = tmp_path / "large.jpg"
    load_image(MEDIA / "coffee.png").image.resize((3000, 2000)).save(large, quality=95)
    fast = load_image(large, at_least=classifier.at_least)
    assert fast.image.size == (1500, 1000)
    answers = classifier.classify([fast, load_image(large)])
    assert [a.top[0].label for a in answers] == ["espresso", "espresso"]
    assert answers[0].top[0].score == pytest.approx(answers[1].top[0].score, abs=0.02)


def test_a_batch_gives_what_single_calls_give(classifier: Classifier) -> None:
    pictures = [load_image(MEDIA / n) for n in ("coffee.png", "chelsea.jpg")]
    together = classifier.classify(pictures)
    for picture, answer in zip(pictures, together, strict=True):
        [alone] = classifier.classify([picture])
        assert np.allclose(alone.logits, answer.logits, atol=1e-3)


def test_a_detector_is_no_classifier() -> None:
    with pytest.raises(Invalid, match="object-detection"):
        Classifier(find_model("nanodet-416"))


@given(arrays(np.float32, (7,), elements=st.floats(-1e4, 1e4, width=32)))
def test_softmax_is_a_distribution_in_the_same_order(logits: Floats) -> None:
    values = softmax(logits)
    assert values.sum() == pytest.approx(1, abs=1e-5)
    assert values[logits.argmax()] == values.max()


def test_rank_takes_the_best_first() -> None:
    scores = np.array([0.1, 0.6, 0.3], np.float32)
    assert [r.label for r in rank(scores, ("a", "b", "c"), 2)] == ["b", "c"]
    assert len(rank(scores, ("a", "b", "c"), 9)) == 3


def test_tensor_layouts() -> None:
    image = Image.new("RGB", (2, 1), (255, 0, 51))
    nhwc = InputSpec(
        name="x", size=(1, 2), layout="NHWC", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    tensor = to_tensor([image], nhwc)
    assert tensor.shape == (1, 1, 2, 3)
    assert tensor[0, 0, 0] == pytest.approx([1, -1, -0.6])
    assert to_tensor([image, image], InputSpec(name="x", size=(1, 2))).shape == (2, 3, 1, 2)


def test_no_crop_takes_the_whole_image() -> None:
    assert central_square((30, 20), None) == (0, 0, 30, 20)
    assert central_square((30, 20), 0.5) == (10, 5, 20, 15)
