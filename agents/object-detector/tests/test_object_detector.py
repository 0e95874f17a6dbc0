"""The real agent process on real photos."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mentatlab.sdk.media.images import load_image


async def test_the_astronaut_is_a_person(one_shot: Any, reference: Any, media: Path) -> None:
    answer = await one_shot({"image": reference(media / "astronaut.jpg")})
    assert answer.exit_code == 0
    [person] = answer.outputs["boxes"]
    assert person["label"] == "person"
    assert person["score"] == pytest.approx(0.73, abs=0.05)
    assert person["box"] == pytest.approx([15, 14, 364, 507], abs=12)


async def test_the_annotated_image_shows_the_box(
    one_shot: Any, reference: Any, media: Path
) -> None:
    answer = await one_shot({"image": reference(media / "astronaut.jpg")})
    annotated = answer.outputs["annotated"]
    assert annotated["metadata"]["mimeType"] == "image/jpeg"
    marked = np.asarray(load_image(Path(annotated["path"])).image, int)
    change = np.abs(marked - np.asarray(load_image(media / "astronaut.jpg").image, int)).mean(2)
    assert change.shape == (512, 512)
    x1, y1, x2, y2 = (round(v) for v in answer.outputs["boxes"][0]["box"])
    assert change[y1 + 40 : y2, x1].mean() > 40  # the left edge
    assert change[y1 + 60 : y2 - 20, x1 + 20 : x2 - 20].mean() < 6  # inside only JPEG noise


async def test_params(warm: Any, reference: Any, media: Path) -> None:
    image = reference(media / "astronaut.jpg")
    async with warm() as agent:
        low = await agent.invoke({"image": image, "threshold": 0.2, "annotate": False})
        chairs = await agent.invoke({"image": image, "threshold": 0.2, "labels": ["chair"]})
        two = await agent.invoke({"image": image, "threshold": 0.2, "max_boxes": 2})
        bad = await agent.invoke({"image": image, "labels": ["unicorn"]})
    assert len(low.outputs["boxes"]) > 2
    assert "annotated" not in low.outputs
    assert {b["label"] for b in chairs.outputs["boxes"]} == {"chair"}
    assert two.outputs["boxes"] == low.outputs["boxes"][:2]
    assert bad.error["code"] == "BAD_PARAM"


async def test_a_turned_12_megapixel_photo_answers_in_upright_full_pixels(
    one_shot: Any, reference: Any, media: Path, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: stored lying on its side
    photo = Image.open(media / "astronaut.jpg").resize((3500, 3500)).rotate(90)
    photo.save(tmp_path / "turned.jpg", exif=exif)
    answer = await one_shot({"image": reference(tmp_path / "turned.jpg")})
    [person] = answer.outputs["boxes"]
    scale = 3500 / 512
    assert person["box"] == pytest.approx([15 * scale, 14 * scale, 364 * scale, 3500], abs=120)
    assert load_image(Path(answer.outputs["annotated"]["path"])).size == (1750, 1750)


@pytest.mark.parametrize("mode", ["one_shot", "warm"])
async def test_a_stream_of_frames(
    mode: str, one_shot: Any, warm: Any, reference: Any, media: Path
) -> None:
    names = ["coffee.png", "astronaut.jpg", "chelsea.jpg"]
    chunks = [
        {"type": "chunk", "pin": "frames", "seq": i, "ref": reference(media / name), "pts": i / 2}
        for i, name in enumerate(names, 1)
    ]
    spec = {"frames": {"type": "stream", "live": True}, "threshold": 0.5}
    if mode == "one_shot":
        answer = await one_shot(spec, chunks)
    else:
        async with warm() as agent:
            answer = await agent.invoke(spec, chunks)
    rows = answer.outputs["boxes"]
    assert [(r["index"], r["pts"]) for r in rows] == [(0, 0.5), (1, 1.0), (2, 1.5)]
    assert [[b["label"] for b in r["boxes"]] for r in rows] == [[], ["person"], ["cat"]]
    assert load_image(Path(answer.outputs["annotated"]["path"])).size == (512, 512)


async def test_nothing_connected(one_shot: Any) -> None:
    answer = await one_shot({})
    assert answer.error["code"] == "MISSING_INPUT"


async def test_a_stream_without_frames(one_shot: Any) -> None:
    answer = await one_shot({"frames": {"type": "stream", "live": True}})
    assert answer.outputs == {"boxes": []}


async def test_bad_input_is_a_coded_error_and_the_worker_lives(
    warm: Any, reference: Any, media: Path, bad_images: dict[Path, str]
) -> None:
    async with warm() as agent:
        for file, code in bad_images.items():
            answer = await agent.invoke({"image": reference(file)})
            assert answer.error["code"] == code
            assert answer.error["hint"]
        good = await agent.invoke({"image": reference(media / "astronaut.jpg")})
        assert good.outputs["boxes"][0]["label"] == "person"
