"""`mentatlab agent`: for those who write one."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from mentatlab.cli.connect import Target, connected
from mentatlab.cli.execute import execute, resolve_inputs
from mentatlab.cli.feed import feed, write_feeder
from mentatlab.cli.inputs import split_pairs
from mentatlab.cli.output import asynchronous, emit, json_option, note
from mentatlab.cli.run import input_option, out_option
from mentatlab.protocol.errors import Code, Conflict, Invalid, Problem, ValidationFailed
from mentatlab.protocol.pins import Pin, PinType

MANIFEST = """\
id: {id}
version: 0.1.0
runtime: python3.11
command: [python, src/main.py]
description: Says what it was told, louder.
inputs:
  - {{name: text, type: string}}
outputs:
  - {{name: loud, type: string}}
"""
MAIN = """\
from mentatlab.sdk import Agent, run


class {name}(Agent):
    def process(self, inputs):
        return {{"loud": inputs["text"].upper()}}


if __name__ == "__main__":
    run({name})
"""
FLOW = """\
apiVersion: v1beta1
kind: Flow
meta: {{id: {id}.flow, name: "{id}"}}
graph:
  nodes:
    - {{id: words, type: ui.prompt}}
    - {{id: agent, type: {id}}}
    - {{id: result, type: ui.console}}
  edges:
    - {{from: words.text, to: agent.text}}
    - {{from: agent.loud, to: result.loud}}
"""


@click.group(short_help="Make an agent, run one alone.")
def agent() -> None:
    """For those who write agents."""


@agent.command()
@click.argument("name")
@click.option(
    "--dir",
    "parent",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=".",
    help="Where to put its folder.  [default: here]",
)
@json_option
def new(*, name: str, parent: Path) -> None:
    """Make a folder NAME with a working agent: manifest, code, a flow that uses it."""
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", name) is None:
        raise Invalid(
            Code.INVALID_REQUEST, f"{name!r} cannot be an agent's id", hint="e.g. my-agent"
        )
    folder = parent / name
    if folder.exists():
        raise Conflict(Code.CONFLICT, f"{folder} is there already", hint="choose another name")
    (folder / "src").mkdir(parents=True)
    agent_id = name if "." in name else f"my.{name}"
    words = re.split(r"[_.-]+", name)
    files = {
        "manifest.yaml": MANIFEST.format(id=agent_id),
        "src/main.py": MAIN.format(name="".join(word.capitalize() for word in words)),
        "flow.mlab": FLOW.format(id=agent_id),
    }
    for path, text in files.items():
        (folder / path).write_text(text)
    note(f"try it:  mentatlab agent run {folder} --input text=hello")
    emit({"directory": str(folder), "files": list(files)}, lambda: str(folder))


@agent.command("run")
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@input_option
@out_option
@json_option
@asynchronous
async def run_alone(*, directory: Path, inputs: tuple[str, ...], out: Path | None) -> None:
    """Run the agent in DIRECTORY alone, in a home of its own for the moment.

    Inputs are its pins (a stream's is a JSON array); names that are not pins become its params.
    What it logs goes to stderr.
    """
    given = split_pairs(inputs)
    with tempfile.TemporaryDirectory(prefix="mentatlab-") as home:
        write_feeder(Path(home))
        target = Target(home=Path(home), agent_dirs=(directory,), quiet=True)
        async with connected(target) as client:
            added = await client.add_agent(directory)
            pins = [msgspec.convert(pin, Pin, strict=False) for pin in added["inputs"]]
            _check_given(added["id"], pins, given)
            streams = [pin for pin in pins if pin.type is PinType.STREAM]
            fed = {pin.name for pin in streams}
            runs = {pin.name for pin in pins if _is_required(pin)} - fed
            params = [f"{k}={v}" for k, v in given.items() if k not in runs | fed]
            types = {pin.name: pin.type for pin in pins}
            flow = _flow_of(added, await resolve_inputs(client, params, types))
            await feed(client, flow, streams, given)
            pairs = [f"agent.{k}={v}" for k, v in given.items() if k in runs]
            await execute(client, flow, pairs, out=out, alone=True)


def _check_given(agent_id: str, pins: list[Pin], given: Mapping[str, str]) -> None:
    """In the agent's own words; the run knows its pins only as those of a node."""
    problems = [
        Problem(
            Code.RUN_INPUT_MISSING,
            f"/inputs/{pin.name}",
            f"the input {pin.name} ({pin.type}) is missing",
            f"give it: --input {pin.name}=…",
        )
        for pin in pins
        if _is_required(pin) and pin.name not in given
    ]
    if problems:
        raise ValidationFailed(Code.RUN_INPUT_MISSING, f"{agent_id} needs more inputs", problems)


def _is_required(pin: Pin) -> bool:
    return pin.required and pin.default is None


def _flow_of(agent: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """A flow of this one node. Its required pins are inputs of the run, all else is params."""
    node = {"id": "agent", "type": f"{agent['id']}:{agent['version']}", "params": params}
    return {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": f"{agent['id']}.alone"},
        "graph": {"nodes": [node], "edges": []},
    }
