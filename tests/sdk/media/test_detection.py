"""The vectorised decode equals a plain loop; boxes come back to the pixels they came from."""

from itertools import pairwise
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mentatlab.protocol.errors import Code, Invalid
from mentatlab.sdk.media.detection import (
    IOU_LIMIT,
    MAX_CANDIDATES,
    Detection,
    Detector,
    class_wise_nms,
    decode_yolov8,
    draw,
    letterbox,
)
from mentatlab.sdk.media.images import Picture, load_image
from mentatlab.sdk.media.tensors import to_tensor
from mentatlab.sdk.models import Floats, InputSpec, Model, OnnxModel, find_model

MEDIA = Path(__file__).parents[3] / "examples" / "media"


@pytest.fixture(scope="module")
def model() -> Model:
    return find_model("nanodet-416")


@pytest.fixture(scope="module")
def detector(model: Model) -> Detector:
    return Detector(model, threads=1)


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    whole = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / whole if whole > 0 else 0.0


def plain_decode(output: Floats, threshold: float) -> list[tuple[int, float, tuple[float, ...]]]:
    """The layout read column by column, then greedy NMS by two loops: (class, score, box)."""
    found: list[tuple[int, float, tuple[float, ...]]] = []
    for column in output[0].T.tolist():
        cx, cy, w, h, *scores = column
        best = max(range(len(scores)), key=scores.__getitem__)
        if scores[best] >= threshold:
            box = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
            found.append((best, scores[best], box))
    found.sort(key=lambda item: -item[1])
    kept: list[tuple[int, float, tuple[float, ...]]] = []
    for item in found:
        if not any(k[0] == item[0] and iou(k[2], item[2]) > IOU_LIMIT for k in kept):
            kept.append(item)
    return kept


@pytest.mark.parametrize("name", ["astronaut.jpg", "chelsea.jpg", "coffee.png"])
def test_detector_equals_a_plain_reference(name: str, model: Model, detector: Detector) -> None:
    picture = load_image(MEDIA / name)
    spec = cast(InputSpec, model.card.input)
    canvas, mapping = letterbox(picture, 416, 416)
    output = OnnxModel(model.path).run(images=to_tensor([canvas], spec))["output0"]
    reference = plain_decode(output, 0.2)
    found = detector.detect(picture, threshold=0.2)
    assert [d.label for d in found] == [detector.labels[c] for c, _, _ in reference]
    for mine, (_, score, box) in zip(found, reference, strict=True):
        pixels = tuple(mapping.to_pixels(np.array([box], np.float32))[0].tolist())
        assert mine.score == pytest.approx(score, abs=1e-3)
        assert iou(mine.box, pixels) >= 0.95


def test_the_astronaut_is_one_person(detector: Detector) -> None:
    [person] = detector.detect(load_image(MEDIA / "astronaut.jpg"))
    assert person.label == "person"
    assert person.score > 0.6
    assert iou(person.box, (15, 14, 364, 507)) > 0.9


def test_an_image_that_was_decoded_smaller_gives_boxes_in_full_pixels(detector: Detector) -> None:
    photo = load_image(MEDIA / "astronaut.jpg").image
    large = Picture(photo, (4096, 4096))
    [person] = detector.detect(large)
    assert iou(person.box, (15 * 8, 14 * 8, 364 * 8, 507 * 8)) > 0.9


def test_only_the_asked_labels_and_number(detector: Detector) -> None:
    picture = load_image(MEDIA / "astronaut.jpg")
    assert {d.label for d in detector.detect(picture, threshold=0.2, labels=["chair"])} == {"chair"}
    assert detector.detect(picture, labels=[]) == []
    assert len(detector.detect(picture, threshold=0.1, max_boxes=2)) == 2
    with pytest.raises(Invalid, match="unicorn") as caught:
        detector.detect(picture, labels=["unicorn"])
    assert caught.value.code == Code.BAD_PARAM
    assert "person" in caught.value.hint


def test_a_classifier_is_no_detector() -> None:
    with pytest.raises(Invalid, match="image-classification"):
        Detector(find_model("efficientnet-lite0"))


def test_a_card_without_the_layout_is_refused(model: Model) -> None:
    card = msgspec.structs.replace(model.card, outputs={})
    with pytest.raises(Invalid, match="YOLOv8"):
        Detector(Model(card=card, directory=model.directory))


@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    x=st.floats(0, 1),
    y=st.floats(0, 1),
)
def test_letterbox_maps_there_and_back(width: int, height: int, x: float, y: float) -> None:
    picture = Picture(Image.new("RGB", (4, 4)), (width, height))
    canvas, mapping = letterbox(picture, 416, 320)
    assert canvas.size == (416, 320)
    px, py = x * width, y * height
    inside = [px * mapping.scale[0] + mapping.offset[0], py * mapping.scale[1] + mapping.offset[1]]
    assert 0 <= inside[0] <= 416.01
    assert 0 <= inside[1] <= 320.01
    back = mapping.to_pixels(np.array([[*inside, *inside]], np.float32))[0]
    assert back[:2] == pytest.approx([px, py], abs=max(width, height) * 1e-4 + 0.01)


def test_letterbox_bars_are_grey() -> None:
    canvas, mapping = letterbox(Picture(Image.new("RGB", (200, 100), "red"), (200, 100)), 100, 100)
    assert mapping.offset == (0, 25)
    assert canvas.getpixel((50, 5)) == canvas.getpixel((50, 95)) == (114, 114, 114)
    assert canvas.getpixel((50, 50)) == (255, 0, 0)


@given(st.data())
def test_nms_equals_the_plain_loop(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 30))
    columns = data.draw(
        st.lists(
            st.tuples(
                *[st.integers(0, 60)] * 2, *[st.integers(0, 40)] * 2, *[st.integers(0, 100)] * 3
            ),
            min_size=count,
            max_size=count,
        )
    )
    table = np.array(columns, np.float32).reshape(-1, 7).T[None]
    table[:, 4:] /= 100
    boxes, scores, classes = decode_yolov8(table, threshold=0.3)
    kept = class_wise_nms(boxes, classes)
    reference = plain_decode(table, float(np.float32(0.3)))
    assert [
        (int(classes[k]), float(scores[k]), tuple(boxes[k].tolist())) for k in kept
    ] == reference


def test_decode_keeps_the_best_candidates_of_a_flood() -> None:
    scores = np.linspace(0.5, 1, MAX_CANDIDATES + 50, dtype=np.float32)
    table = np.vstack([np.zeros((4, scores.size), np.float32), scores])[None]
    _, kept, _ = decode_yolov8(table, threshold=0.1)
    assert len(kept) == MAX_CANDIDATES
    assert kept[0] == 1
    assert all(a >= b for a, b in pairwise(kept))


def test_drawing_marks_the_box_and_leaves_the_original() -> None:
    picture = Picture(Image.new("RGB", (200, 100), "black"), (400, 200))
    marked = draw(
        picture, [Detection("cup", 0.9, (100, 60, 300, 180)), Detection("cat", 0.5, (0, 0, 9, 9))]
    )
    assert picture.image.getextrema() == ((0, 0), (0, 0), (0, 0))
    assert marked.getpixel((50, 60)) != (0, 0, 0)  # the left edge, at half the full size
    assert marked.getpixel((100, 70)) == (0, 0, 0)  # inside
    assert marked.getpixel((50, 60)) != marked.getpixel((0, 4))  # a colour for each label


def test_to_dict_is_json() -> None:
    assert Detection("cup", 0.123456, (1.04, 2, 3, 4)).to_dict() == {
        "label": "cup",
        "score": 0.1235,
        "box": [1.0, 2, 3, 4],
    }
