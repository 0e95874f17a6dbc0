"""`mentatlab keys`."""

import time

import click

from mentatlab.cli.connect import Target, connected, target_options
from mentatlab.cli.output import asynchronous, emit, json_option, note, table

SCOPES = ("read", "run", "publish", "admin")
ROLES = ("multimodal_producer", "multimodal_consumer")


@click.group(short_help="Make, list and revoke API keys.")
def keys() -> None:
    """API keys: who may call the server from elsewhere, and what they may do."""


@keys.command()
@click.option("--name", default="", help="What the key is for.")
@click.option("--workspace", default="default", show_default=True)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    help="May be repeated.  [default: read, run, publish]",
)
@click.option("--role", type=click.Choice(ROLES), help="A set of scopes instead of --scope.")
@target_options
@json_option
@asynchronous
async def add(
    *, name: str, workspace: str, scopes: tuple[str, ...], role: str | None, target: Target
) -> None:
    """Make a key and print it. It is shown this once.

    Role multimodal_producer: read, run, publish; multimodal_consumer: read.
    """
    if scopes and role:
        raise click.UsageError("give --scope or --role, not both")
    async with connected(target) as client:
        made = await client.add_key(
            name=name, workspace=workspace, scopes=scopes or None, role=role
        )
    note(f"{made['id']}: {', '.join(made['scopes'])} in workspace {made['workspace']}")
    emit(made, lambda: made["key"])


@keys.command("ls")
@target_options
@json_option
@asynchronous
async def list_keys(*, target: Target) -> None:
    """List the keys that are not revoked."""
    async with connected(target) as client:
        found = await client.keys()
    rows = [
        (k["id"], k["name"], k["workspace"], ",".join(k["scopes"]), date(k["created_at"]))
        for k in found
    ]
    emit({"keys": found}, lambda: table(("ID", "NAME", "WORKSPACE", "SCOPES", "MADE"), rows))


@keys.command()
@click.argument("key_id")
@target_options
@json_option
@asynchronous
async def revoke(*, key_id: str, target: Target) -> None:
    """End a key, at once."""
    async with connected(target) as client:
        await client.revoke_key(key_id)
    emit({"revoked": key_id}, lambda: f"revoked {key_id}")


def date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
