"""`mentatlab agents`: what flows may name."""

from pathlib import Path
from typing import Any

import click

from mentatlab.cli.connect import Target, connected, target_options
from mentatlab.cli.output import asynchronous, emit, json_option, note, table


@click.group(short_help="List, add and show agents.")
def agents() -> None:
    """The agents that flows may name."""


@agents.command("ls")
@target_options
@json_option
@asynchronous
async def list_agents(*, target: Target) -> None:
    """List agents with their pins; broken ones go to stderr."""
    async with connected(target) as client:
        found = await client.agents()
    for broken in found["broken"]:
        note(f"not usable: {broken['directory']}: {broken['code']}: {broken['detail']}")
    rows = [
        (
            a["id"],
            a["version"],
            "warm" if a["warm"] else "",
            _pins(a["inputs"]),
            _pins(a["outputs"]),
        )
        for a in found["agents"]
    ]
    emit(found, lambda: table(("ID", "VERSION", "", "IN", "OUT"), rows))


def _pins(pins: list[dict[str, Any]]) -> str:
    return " ".join(f"{pin['name']}:{pin['type']}" for pin in pins)


@agents.command()
@click.argument(
    "directory", type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True)
)
@target_options
@json_option
@asynchronous
async def add(*, directory: Path, target: Target) -> None:
    """Register the agent whose manifest.yaml is in DIRECTORY."""
    async with connected(target) as client:
        added = await client.add_agent(directory)
    emit(added, lambda: f"{added['id']}:{added['version']}")


@agents.command()
@click.argument("agent")
@target_options
@json_option
@asynchronous
async def show(*, agent: str, target: Target) -> None:
    """Show one agent, `id` or `id:version`, with its pins."""
    async with connected(target) as client:
        found = await client.agent(agent)
    emit(found, lambda: _description(found))


def _description(agent: dict[str, Any]) -> str:
    lines = [f"{agent['id']}:{agent['version']}  {agent['description']}".rstrip()]
    for title in ("inputs", "outputs"):
        lines.append(f"{title}:")
        lines += [f"  {_pin(pin)}" for pin in agent[title]]
    return "\n".join(lines)


def _pin(pin: dict[str, Any]) -> str:
    optional = "" if pin.get("required", True) else " (optional)"
    text = f"{pin['name']}: {pin['type']}{optional}"
    return f"{text}  {pin.get('description', '')}".rstrip()
