"""The real agent process on real photos."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest


def features_of(answer: Any) -> Any:
    return np.frombuffer(Path(answer.outputs["features"]["path"]).read_bytes(), "<f4")


async def test_coffee_is_espresso(one_shot: Any, reference: Any, media: Path) -> None:
    answer = await one_shot({"image": reference(media / "coffee.png")})
    assert answer.exit_code == 0
    best, *others = answer.outputs["classification"]
    assert best["label"] == "espresso"
    assert best["score"] > 0.8
    assert len(others) == 4
    assert answer.outputs["confidence"] == pytest.approx(best["score"], abs=1e-4)
    assert answer.outputs["features"]["metadata"]["shape"] == [1280]
    assert features_of(answer).shape == (1280,)


async def test_warm_answers_again_and_alike(warm: Any, reference: Any, media: Path) -> None:
    async with warm() as agent:
        first = await agent.invoke({"image": reference(media / "coffee.png"), "top_k": 1})
        cat = await agent.invoke({"image": reference(media / "chelsea.jpg"), "top_k": 2})
        again = await agent.invoke({"image": reference(media / "coffee.png"), "top_k": 1})
    assert first.outputs["classification"] == again.outputs["classification"]
    assert np.array_equal(features_of(first), features_of(again))
    assert {r["label"] for r in cat.outputs["classification"]} == {"tiger cat", "Egyptian cat"}


async def test_bad_input_is_a_coded_error_and_the_worker_lives(
    warm: Any, reference: Any, media: Path, bad_images: dict[Path, str]
) -> None:
    async with warm() as agent:
        for file, code in bad_images.items():
            answer = await agent.invoke({"image": reference(file)})
            assert answer.error["code"] == code
            assert answer.error["hint"]
            assert not answer.error.get("retryable")
        bad = await agent.invoke({"image": reference(media / "coffee.png"), "top_k": 0})
        assert bad.error["code"] == "BAD_PARAM"
        good = await agent.invoke({"image": reference(media / "coffee.png")})
        assert good.outputs["classification"][0]["label"] == "espresso"


@pytest.mark.parametrize("model", ["resnet50", "vit-base", "../../etc/passwd"])
async def test_a_model_that_is_not_here(
    model: str, one_shot: Any, reference: Any, media: Path, tmp_path: Path
) -> None:
    answer = await one_shot(
        {"image": reference(media / "coffee.png"), "model": model},
        env={"MENTATLAB_MODEL_DIR": str(tmp_path)},
    )
    assert answer.exit_code == 1
    assert answer.error["code"] == "MODEL_NOT_FOUND"
    assert "MENTATLAB_MODEL_DIR" in answer.error["hint"]
