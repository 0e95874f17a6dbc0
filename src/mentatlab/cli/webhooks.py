"""`mentatlab webhooks`: in, addresses that start flows; out, those that are told of runs' ends."""

from typing import Any

import click

from mentatlab.cli.connect import Target, connected, target_options
from mentatlab.cli.keys import date
from mentatlab.cli.output import asynchronous, emit, json_option, note, table

EVENTS = ("run_finished", "run_succeeded", "run_partial", "run_failed", "run_cancelled")


@click.group(short_help="Addresses that start stored flows, and that are told of runs' ends.")
def webhooks() -> None:
    """Webhooks: addresses that start a stored flow when they are called and signed (add, ls, rm);
    and addresses that are called, signed, when a run has ended."""


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


@webhooks.command()
@click.argument("url")
@click.option(
    "--event",
    "events",
    type=click.Choice(EVENTS),
    multiple=True,
    default=("run_finished",),
    show_default=True,
    help="May be repeated; run_finished is any end.",
)
@click.option("--flow", "flow_id", default="", help="Only of this stored flow's runs.")
@target_options
@json_option
@asynchronous
async def subscribe(*, url: str, events: tuple[str, ...], flow_id: str, target: Target) -> None:
    """Tell URL of runs' ends. The secret that signs is shown this once."""
    async with connected(target) as client:
        made = await client.subscribe(url, events=events, flow_id=flow_id)
    note(f"deliveries are signed with the secret {made['secret']}")
    emit(made, lambda: made["id"])


@webhooks.command()
@target_options
@json_option
@asynchronous
async def subscriptions(*, target: Target) -> None:
    """List the addresses that are told of runs' ends."""
    async with connected(target) as client:
        found = await client.subscriptions()
    rows = [(s["id"], s["url"], " ".join(s["events"]), s["flow_id"], _since(s)) for s in found]
    emit({"subscriptions": found}, lambda: table(("ID", "URL", "EVENTS", "FLOW", "STATE"), rows))


def _since(subscription: dict[str, Any]) -> str:
    stopped = subscription["stopped_at"]
    return f"stopped {date(stopped)}" if stopped else f"since {date(subscription['created_at'])}"


@webhooks.command()
@click.argument("subscription_id")
@target_options
@json_option
@asynchronous
async def unsubscribe(*, subscription_id: str, target: Target) -> None:
    """End a subscription, with what it has not been told yet."""
    async with connected(target) as client:
        await client.unsubscribe(subscription_id)
    emit({"removed": subscription_id}, lambda: f"removed {subscription_id}")


@webhooks.command()
@click.option("--subscription", "subscription_id")
@click.option("--run", "run_id")
@click.option("--state", type=click.Choice(("waiting", "delivered", "failed")))
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@target_options
@json_option
@asynchronous
async def deliveries(*, limit: int, target: Target, **wanted: str | None) -> None:
    """List what was told to whom, and what waits, those of the newest runs first."""
    given = {name: value for name, value in wanted.items() if value is not None}
    async with connected(target) as client:
        found = await client.deliveries(limit=limit, **given)
    rows = [
        (
            d["id"],
            d["event"],
            d["state"],
            d["attempts"],
            date(d["created_at"]),
            d["url"],
            d["error"],
        )
        for d in found["deliveries"]
    ]
    heads = ("ID", "EVENT", "STATE", "ATTEMPTS", "MADE", "URL", "LAST ERROR")
    emit(found, lambda: table(heads, rows))


@webhooks.command()
@click.argument("delivery_id")
@target_options
@json_option
@asynchronous
async def redeliver(*, delivery_id: str, target: Target) -> None:
    """Send a delivery again, now, under the same id."""
    async with connected(target) as client:
        found = await client.redeliver(delivery_id)
    emit(found, lambda: f"{delivery_id} {found['state']}")
