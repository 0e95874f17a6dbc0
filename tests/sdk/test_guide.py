"""The code of docs/guides/write-an-agent.md, run as it stands."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.agent_processes import Bench, perform

from mentatlab.protocol import events
from mentatlab.protocol.agent import Warm
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.runners import LocalRunner

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "write-an-agent.md"
LENGTHS = re.search(r"```js file=lengths.js\n(.*?)```", GUIDE.read_text(), re.DOTALL)
CODE = dict(re.findall(r"```python file=(\S+)\n(.*?)```", GUIDE.read_text(), re.DOTALL))


def pins(**types: str) -> tuple[Pin, ...]:
    return tuple(Pin(name, PinType(type_)) for name, type_ in types.items())


async def run_guide(folder: Path, name: str, *, chunks: Any = (), **more: Any) -> Any:
    (folder / name).write_text(CODE[name])
    runner = LocalRunner()
    invocation = Bench(folder).invocation((sys.executable, str(folder / name)), **more)
    try:
        return await perform(runner, invocation, chunks)
    finally:
        await runner.aclose()


@pytest.mark.parametrize("name", ["shout.py", "plain.py"])
async def test_first_agent(tmp_path: Path, name: str) -> None:
    outcome, _ = await run_guide(
        tmp_path, name, inputs={"text": "hello"}, outputs=pins(loud="string")
    )
    assert outcome.outputs == {"loud": "HELLO"}


async def test_progress_and_checkpoint(tmp_path: Path) -> None:
    outcome, told = await run_guide(
        tmp_path, "careful.py", inputs={"steps": 2}, outputs=pins(steps="number")
    )
    assert outcome.outputs == {"steps": 2}
    assert [e.current for e in told if isinstance(e, events.Progress)] == [1, 2]
    assert [e.state for e in told if isinstance(e, events.Checkpoint)] == [{"done": 1}, {"done": 2}]


async def test_failing_well(tmp_path: Path) -> None:
    outcome, _ = await run_guide(
        tmp_path, "careful.py", inputs={"steps": 4}, outputs=pins(steps="number")
    )
    assert (outcome.code, outcome.hint) == ("TOO_MANY_STEPS", "set `steps` lower")


async def test_streams(tmp_path: Path) -> None:
    outcome, told = await run_guide(
        tmp_path,
        "running_sum.py",
        chunks=[("numbers", n) for n in (1, 2, 3)],
        stream_inputs=("numbers",),
        outputs=pins(sums="stream", total="number"),
    )
    assert outcome.outputs == {"total": 6}
    assert [e.data for e in told if isinstance(e, events.Chunk)] == [1, 3, 6]


async def test_media(tmp_path: Path) -> None:
    medium = tmp_path / "medium.bin"
    medium.write_bytes(b"abcdef")
    outcome, _ = await run_guide(
        tmp_path,
        "reverse.py",
        inputs={"file": {"type": "binary", "path": str(medium)}},
        outputs=pins(reversed="binary", magic="string"),
    )
    assert (tmp_path / "out" / "reversed-1.bin").read_bytes() == b"fedcba"
    assert outcome.outputs["reversed"]["path"] == str(tmp_path / "out" / "reversed-1.bin")
    assert outcome.outputs["magic"] == b"abcd".hex()


async def test_warm(tmp_path: Path) -> None:
    outcome, _ = await run_guide(
        tmp_path,
        "warm.py",
        inputs={"name": "b"},
        outputs=pins(score="number"),
        warm=Warm(concurrency=4),
    )
    assert outcome.outputs == {"score": 2}


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
async def test_javascript(tmp_path: Path) -> None:
    assert LENGTHS
    (tmp_path / "main.js").write_text(LENGTHS[1])
    runner = LocalRunner()
    invocation = Bench(tmp_path).invocation(
        ("node", "main.js"),
        stream_inputs=("words",),
        outputs=pins(lengths="stream", count="number"),
    )
    try:
        outcome, told = await perform(runner, invocation, [("words", w) for w in ("abc", "d")])
    finally:
        await runner.aclose()
    assert outcome.outputs == {"count": 2}
    assert [e.data for e in told if isinstance(e, events.Chunk)] == [3, 1]


def test_every_example_is_run() -> None:
    assert CODE.keys() == {
        *("shout.py", "plain.py", "careful.py", "running_sum.py", "reverse.py", "warm.py")
    }
