"""The plan's own suite, as it stands there, through `mentatlab test`: real agents, real media. The
description comes from a live endpoint when OPENAI_BASE_URL names one, else from the tests' own."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.chat_server import ChatServer, chat_server, refusal
from tests.support.server import COMMAND, environment

SUITE = Path(__file__).with_name("multimodal_e2e.yaml")


@pytest.fixture
def endpoint() -> Iterator[ChatServer]:
    with chat_server() as server:
        yield server


def run_suite(home: Path, *options: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """In a process and a home of its own."""
    return subprocess.run(
        [*COMMAND, "test", str(SUITE), "--json", *options],
        env={**environment(home), **env},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def stand_in() -> list[str]:
    """The ViT's weights are not in any package: without them the suite is told what to use."""
    folder = os.environ.get("MENTATLAB_MODEL_DIR")
    there = folder is not None and (Path(folder) / "vit-base").is_dir()
    return [] if there else ["--with", "vit-base=efficientnet"]


def test_the_plans_suite(tmp_path: Path, endpoint: ChatServer):
    live = "OPENAI_BASE_URL" in os.environ
    junit = tmp_path / "report.xml"
    env = {} if live else endpoint.env
    answer = run_suite(tmp_path, *stand_in(), "--junit", str(junit), env=env)
    assert answer.returncode == 0, f"{answer.stdout}\n{answer.stderr}"
    told = json.loads(answer.stdout)
    image, video = told["suites"][0]["tests"]
    assert (image["name"], video["name"]) == ("Image to Text Pipeline", "Video Analysis Pipeline")
    outputs: dict[str, Any] = image["outputs"]
    labels = [row["label"] for row in outputs["result.labels"]]
    assert "".join(outputs["result.pieces"]) == json.dumps(outputs["result.description"]) or live
    if not live:
        [request] = endpoint.requests
        assert (request["model"], request["stream"]) == ("gpt-4", True)
        assert labels[0] in outputs["result.description"]["description"]
        assert "512x512 pixels" in outputs["result.description"]["description"]
        assert outputs["result.description"]["labels"] == labels[:3]
    known = json.loads((SUITE.parents[2] / "examples" / "media" / "clip.json").read_text())
    overview = video["outputs"]["result.overview"]
    assert len(video["outputs"]["result.frames"]) == -(-overview["duration"] // 1)
    assert overview["cuts"] == pytest.approx(known["cuts"], abs=0.05)
    assert video["outputs"]["result.summary"][0].keys() == {"index", "scene", "frame"}
    assert 'tests="2" failures="0" errors="0"' in junit.read_text()


def test_without_an_endpoint_the_report_says_so(tmp_path: Path):
    answer = run_suite(tmp_path, *stand_in(), "--only", "Image", env={"OPENAI_BASE_URL": ""})
    assert answer.returncode == 1
    [case] = json.loads(answer.stdout)["suites"][0]["tests"]
    assert (case["passed"], case["state"]) == (False, "failed")
    assert "ENDPOINT_NOT_CONFIGURED" in case["failures"][0]["message"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"messages": []}, "messages"),
        ({"model": 4}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": "x"}, "prompt"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}, "messages"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "strict": True, "schema": {"type": "object"}},
                }
            },
            "strict",
        ),
    ],
)
def test_the_endpoint_refuses_what_the_api_refuses(change: dict[str, Any], says: str):
    good = {"model": "gpt-4", "messages": [{"role": "user", "content": "hi"}]}
    assert refusal(good) == ""
    assert says in refusal({**good, **change}) or refusal({**good, **change}).startswith("$")
