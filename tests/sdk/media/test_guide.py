"""The agent of docs/guides/image-agents.md runs as it stands there, and so does its model card."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mentatlab_models
import pytest

from mentatlab.sdk.media.detection import Detector
from mentatlab.sdk.media.images import load_image
from mentatlab.sdk.models import Places, find_model

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "guides" / "image-agents.md").read_text()
ASTRONAUT = ROOT / "examples" / "media" / "astronaut.jpg"


def code(name: str) -> str:
    """The block whose first line is a comment with this file name."""
    blocks = re.findall(r"```\w+\n# (\S+)\n(.*?)```", GUIDE, re.DOTALL)
    return dict(blocks)[name]


@pytest.mark.parametrize(("threshold", "status"), [(0.4, 0), (0.99, 1)])
def test_the_cut_out_agent(threshold: float, status: int, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(code("cutout/src/main.py"))
    line = {
        "spec": {"image": {"path": str(ASTRONAUT)}, "threshold": threshold},
        "context": {"run_id": "r", "node_id": "n", "out_dir": str(tmp_path / "out")},
    }
    process = subprocess.run(
        [sys.executable, "main.py"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        input=json.dumps(line),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == status, process.stderr
    event = json.loads(process.stdout.splitlines()[-1])
    if status:
        assert event["code"] == "NOTHING_FOUND"
        return
    assert event["outputs"]["label"] == "person"
    assert load_image(Path(event["outputs"]["cutout"]["path"])).size == pytest.approx(
        (350, 493), abs=12
    )


def test_a_card_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "my-detector"
    folder.mkdir()
    (folder / "my-detector.yaml").write_text(code("my-detector.yaml"))
    weights = Path(mentatlab_models.__file__).with_name("nanodet-416.onnx")
    (folder / "my-detector.onnx").symlink_to(weights)
    model = find_model("my-detector", Places(model_dir=tmp_path, cache=tmp_path))
    assert Detector(model).detect(load_image(ASTRONAUT))[0].label == "person"
