"""`mentatlab validate` and `mentatlab plan`."""

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from mentatlab.cli.connect import Target, connected, target_options
from mentatlab.cli.inputs import read_text
from mentatlab.cli.output import asynchronous, emit, json_option, note
from mentatlab.protocol.errors import Code, Problem, ValidationFailed

flow_argument = click.argument(
    "flow", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True)
)


def read_flow(path: Path) -> str:
    """The text of a flow; `-` is stdin."""
    if str(path) == "-":
        return sys.stdin.read()
    return read_text(path)


@click.command(short_help="Check a flow.")
@flow_argument
@target_options
@json_option
@asynchronous
async def validate(*, flow: Path, target: Target) -> None:
    """Check FLOW: every problem at once. Exit code 1 when it cannot run.

    A file called manifest.yaml is checked as an agent's manifest.
    """
    if flow.name == "manifest.yaml":
        _validate_manifest(flow)
        return
    async with connected(target) as client:
        answer = await client.validate(read_flow(flow))
    problems = [msgspec.convert(found, Problem) for found in answer["problems"]]
    if not answer["valid"]:
        raise ValidationFailed(Code.FLOW_INVALID, f"{flow} cannot run", problems)
    _valid(flow, problems)


def _validate_manifest(path: Path) -> None:
    from mentatlab.flows import ManifestValidator  # part of the server extra, not of the client

    problems = ManifestValidator().add_multimodal_rules().validate(read_text(path))
    if any(found.severity == "error" for found in problems):
        raise ValidationFailed(Code.MANIFEST_INVALID, f"{path} is not a manifest", problems)
    _valid(path, problems)


def _valid(path: Path, warnings: list[Problem]) -> None:
    for found in warnings:
        note(f"warning: {found.path or '/'}: {found.code}: {found.message}")
    answer = {"valid": True, "problems": msgspec.to_builtins(warnings)}
    emit(answer, lambda: f"{path} is valid")


@click.command(short_help="Show how a flow would be executed.")
@flow_argument
@target_options
@json_option
@asynchronous
async def plan(*, flow: Path, target: Target) -> None:
    """Show how FLOW would be executed: inputs, nodes in order, outputs."""
    async with connected(target) as client:
        answer = await client.plan(read_flow(flow))
    emit(answer, lambda: _describe(answer))


def _describe(plan: dict[str, Any]) -> str:
    lines = [f"flow {plan['flow_id']}  {plan['digest'][:12]}"]
    for wanted in plan["inputs"]:
        pin = wanted["pin"]
        optional = "" if pin.get("required", True) else " (optional)"
        lines.append(f"  input   {wanted['name']}: {pin['type']}{optional}")
    for node in plan["nodes"]:
        lines.append(f"  {node['kind']:<7} {node['id']}  {node['type']}{_each(node)}")
        lines += [f"            {edge['pin']} <- {_edge(edge)}" for edge in node["inputs"]]
    lines += [f"  output  {out['node']}.{out['pin']}" for out in plan["outputs"]]
    return "\n".join(lines)


def _each(node: dict[str, Any]) -> str:
    return f"  for each {node['for_each']}" if node["for_each"] else ""


def _edge(edge: dict[str, Any]) -> str:
    adapter = "" if edge["adapter"] == "none" else f", {edge['adapter']}"
    return f"{edge['from']} ({edge['kind']} of {edge['type']}{adapter})"
