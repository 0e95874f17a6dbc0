"""`mentatlab agent`: for those who write one."""

import re
import tempfile
from pathlib import Path
from typing import Any

import click
import msgspec

from mentatlab.cli.connect import Target, connected
from mentatlab.cli.execute import execute, resolve_inputs
from mentatlab.cli.output import asynchronous, emit, json_option, note
from mentatlab.cli.run import input_option, out_option
from mentatlab.protocol.errors import Code, Conflict, Invalid
from mentatlab.protocol.pins import Pin

MANIFEST = """\
id: {id}
version: 0.1.0
runtime: python3.11
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

    Inputs are its pins; names that are not pins become its params.
    """
    with tempfile.TemporaryDirectory(prefix="mentatlab-") as home:
        target = Target(home=Path(home), agent_dirs=(directory,), quiet=True)
        async with connected(target) as client:
            added = await client.add_agent(directory)
            flow, runs_inputs = _flow_of(added, inputs)
            flow["graph"]["nodes"][0]["params"] = await resolve_inputs(
                client, [pair for pair in inputs if pair not in runs_inputs], _types(added)
            )
            await execute(client, flow, [f"agent.{pair}" for pair in runs_inputs], out=out)


def _flow_of(agent: dict[str, Any], pairs: tuple[str, ...]) -> tuple[dict[str, Any], list[str]]:
    """A flow of this one node, and those of the inputs that are the run's: its required pins."""
    required = {
        pin["name"]
        for pin in agent["inputs"]
        if pin.get("required", True) and pin.get("default") is None
    }
    node = {"id": "agent", "type": f"{agent['id']}:{agent['version']}"}
    flow = {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": f"{agent['id']}.alone"},
        "graph": {"nodes": [node], "edges": []},
    }
    return flow, [pair for pair in pairs if pair.partition("=")[0] in required]


def _types(agent: dict[str, Any]) -> dict[str, Any]:
    return {pin["name"]: msgspec.convert(pin, Pin, strict=False).type for pin in agent["inputs"]}
