"""`mentatlab secrets`."""

import sys

import click

from mentatlab.cli.connect import Target, connected, target_options
from mentatlab.cli.keys import date
from mentatlab.cli.output import asynchronous, emit, json_option, table


@click.group(short_help="Set, list and remove secrets.")
def secrets() -> None:
    """Secrets: passwords and keys that flows name and agents are given."""


@secrets.command("set")
@click.argument("name")
@target_options
@json_option
@asynchronous
async def set_secret(*, name: str, target: Target) -> None:
    """Set the secret NAME to what comes on stdin.

    One newline at its end is not part of it. At a terminal it is asked for and not shown.
    """
    if sys.stdin.isatty():
        value: str = click.prompt(name, hide_input=True, err=True)
    else:
        value = sys.stdin.read().removesuffix("\n")
    async with connected(target) as client:
        await client.set_secret(name, value)
    emit({"set": name}, lambda: f"set {name}")


@secrets.command("ls")
@target_options
@json_option
@asynchronous
async def list_secrets(*, target: Target) -> None:
    """List the names. Values are never shown."""
    async with connected(target) as client:
        found = await client.secrets()
    rows = [(s["name"], date(s["created_at"]), date(s["updated_at"])) for s in found]
    emit({"secrets": found}, lambda: table(("NAME", "MADE", "CHANGED"), rows))


@secrets.command("rm")
@click.argument("name")
@target_options
@json_option
@asynchronous
async def remove(*, name: str, target: Target) -> None:
    """Remove a secret. Runs that name it are refused from then on."""
    async with connected(target) as client:
        await client.remove_secret(name)
    emit({"removed": name}, lambda: f"removed {name}")
