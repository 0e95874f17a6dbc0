import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mentatlab.protocol.agent import AgentProgram
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.protocol.stdio import Context
from mentatlab.runners import Invocation, LocalRunner

FOLDER = Path(__file__).parents[1]
TEXTS = ["hello", "", "grüß dich 🌍", 'quotes " and \\ and\nlines', "x" * 100_000]


@pytest.mark.parametrize("text", TEXTS)
def test_by_hand(text: str) -> None:
    answer = subprocess.run(
        [sys.executable, FOLDER / "src/main.py"],
        input=json.dumps({"text": text}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(answer.stdout) == {"text": text}


@pytest.mark.parametrize("text", TEXTS[:4])
async def test_as_a_node(text: str, tmp_path: Path) -> None:
    program = AgentProgram(
        id="mentatlab.echo",
        version="0.1.0",
        command=(sys.executable, "src/main.py"),
        directory=FOLDER,
        inputs=(Pin("text", PinType.STRING),),
        outputs=(Pin("text", PinType.STRING),),
    )
    invocation = Invocation(
        workspace="default",
        program=program,
        inputs={"text": text},
        params={},
        context=Context(run_id="rn_test", node_id="echo", out_dir=str(tmp_path)),
        scratch=tmp_path,
    )
    runner = LocalRunner()
    async with runner.attempt(invocation) as attempt:
        outcome = await attempt.outcome()
    await runner.aclose()
    assert outcome.outputs == {"text": text}


def test_it_needs_no_sdk() -> None:
    assert "mentatlab" not in (FOLDER / "src/main.py").read_text()
    assert yaml.safe_load((FOLDER / "manifest.yaml").read_text())["id"] == "mentatlab.echo"
