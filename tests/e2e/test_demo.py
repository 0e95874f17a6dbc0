"""`make demo`, as a new user runs it: the answers are right, and nothing is left running."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that the demo leaves, and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), str(out)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return out, result.stdout


@pytest.fixture(scope="module")
def report(demo: tuple[Path, str]) -> dict[str, Any]:
    return json.loads((demo[0] / "report.json").read_text())


def test_every_flow_succeeded(report: dict[str, Any]):
    assert [(r["flow"], r["state"]) for r in report["runs"]] == [
        ("photo", "succeeded"),
        ("speech", "succeeded"),
        ("clip", "succeeded"),
    ]
    assert all(r["run_id"].startswith("rn_") and r["seconds"] > 0 for r in report["runs"])


def test_the_photo_is_an_espresso_in_a_cup_on_a_table(report: dict[str, Any]):
    answers = report["answers"]
    assert answers["image_top1"] == "espresso"
    boxes = {box["label"]: box["box"] for box in answers["boxes"]}
    assert set(boxes) == {"cup", "dining table"}
    x1, y1, x2, y2 = boxes["cup"]
    assert 100 < x1 < x2 < 500  # the cup stands in the middle of the 600×400 photo
    assert 0 <= y1 < y2 < 350


def test_the_speech_is_kennedys(report: dict[str, Any]):
    text = "".join(c for c in report["answers"]["transcript"].lower() if c.isalpha() or c == " ")
    assert "ask not what your country can do for you" in text


def test_the_cuts_are_where_the_clip_was_cut(report: dict[str, Any]):
    known = json.loads((ROOT / "examples" / "media" / "clip.json").read_text())["cuts"]
    found = report["answers"]["scenes"]
    assert len(found) == len(known)
    assert all(abs(a - b) <= 0.1 for a, b in zip(found, known, strict=True))


def test_the_files_are_real(demo: tuple[Path, str]):
    out, _ = demo
    with Image.open(out / "annotated.jpg") as annotated:
        assert annotated.size == (600, 400)
    with Image.open(out / "contact-sheet.jpg") as sheet:
        assert sheet.format == "JPEG"
    assert "00:00:0" in (out / "transcript.srt").read_text()
    assert (out / "transcript.vtt").read_text().startswith("WEBVTT\n")


def test_streamed_text_was_shown_before_its_node_had_ended(demo: tuple[Path, str]):
    printed = demo[1]
    assert printed.index("fellow Americans") < printed.index("transcriber              succeeded")


def test_no_process_of_the_demo_is_left(demo: tuple[Path, str]):
    home = str(demo[0] / "home").encode()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        if int(entry.parent.name) != os.getpid():
            try:
                assert home not in entry.read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
