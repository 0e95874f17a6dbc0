"""The agents of docs/guides/audio-and-video-agents.md run as they stand there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mentatlab.sdk.media.images import load_image

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "guides" / "audio-and-video-agents.md").read_text()


def run(name: str, spec: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The chunks of the agent whose block begins with a comment with this file name."""
    blocks = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", GUIDE, re.DOTALL))
    (folder / "main.py").write_text(blocks[name])
    context = {"run_id": "r", "node_id": "n", "out_dir": str(folder / "out")}
    process = subprocess.run(
        [sys.executable, "main.py"],
        cwd=folder,
        env={"PATH": os.environ["PATH"]},
        input=json.dumps({"spec": spec, "context": context}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 0, process.stderr
    *events, last = map(json.loads, process.stdout.splitlines())
    assert last == {"type": "result", "outputs": {}}
    return events


def test_loudness(media: Path, tmp_path: Path) -> None:
    spec = {"audio": {"path": str(media / "jfk.wav")}}
    chunks = run("loudness/src/main.py", spec, tmp_path)
    assert [c["pts"] for c in chunks] == list(range(11))
    assert all(-60 < c["data"]["db"] < -5 for c in chunks)


def test_scene_pictures(media: Path, tmp_path: Path) -> None:
    spec = {"video": {"path": str(media / "clip.mp4")}}
    chunks = run("scene-pictures/src/main.py", spec, tmp_path)
    assert [c["pts"] for c in chunks] == pytest.approx([0, 2.4, 5.2, 7.6, 10.0])
    assert {load_image(Path(c["path"])).size for c in chunks} == {(480, 270)}
