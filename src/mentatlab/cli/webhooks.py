"""`mentatlab webhooks`."""

import click

from mentatlab.cli.connect import Target, connected, target_options
from mentatlab.cli.keys import date
from mentatlab.cli.output import asynchronous, emit, json_option, note, table


@click.group(short_help="Addresses that start stored flows when they are called.")
def webhooks() -> None:
    """Webhooks: addresses that start a stored flow when they are called and signed."""


@webhooks.command()
@click.argument("flow_id")
@click.option("--input", "input_", default="", help="The input that gets a call's body.")
@target_options
@json_option
@asynchronous
async def add(*, flow_id: str, input_: str, target: Target) -> None:
    """Make an address that starts FLOW_ID, and print it. Its secret is shown this once."""
    async with connected(target) as client:
        made = await client.add_webhook(flow_id, input=input_)
    note(f"{made['id']}: calls are signed with the secret {made['secret']}")
    emit(made, lambda: made["url"])


@webhooks.command("ls")
@target_options
@json_option
@asynchronous
async def list_webhooks(*, target: Target) -> None:
    """List the webhooks."""
    async with connected(target) as client:
        found = await client.webhooks()
    rows = [(w["id"], w["flow_id"], w["input"], date(w["created_at"]), w["url"]) for w in found]
    emit({"webhooks": found}, lambda: table(("ID", "FLOW", "INPUT", "MADE", "URL"), rows))


@webhooks.command()
@click.argument("webhook_id")
@target_options
@json_option
@asynchronous
async def rm(*, webhook_id: str, target: Target) -> None:
    """End a webhook, at once."""
    async with connected(target) as client:
        await client.remove_webhook(webhook_id)
    emit({"removed": webhook_id}, lambda: f"removed {webhook_id}")
