"""`mentatlab schedules`."""

from typing import Any

import click
import msgspec

from mentatlab.cli.connect import Target, connected, target_options
from mentatlab.cli.keys import date
from mentatlab.cli.output import asynchronous, emit, json_option, table


@click.group(short_help="Run stored flows at certain times.")
def schedules() -> None:
    """Schedules: stored flows that run at the times of a cron expression."""


@schedules.command()
@click.argument("flow_id")
@click.argument("cron")
@click.option("--timezone", default="UTC", show_default=True)
@click.option("--inputs", default="{}", help="The runs' inputs, a JSON object.")
@click.option(
    "--overlap",
    type=click.Choice(("skip", "queue", "allow")),
    default="skip",
    show_default=True,
    help="What a tick does while an earlier run goes on.",
)
@target_options
@json_option
@asynchronous
async def add(
    *, flow_id: str, cron: str, timezone: str, inputs: str, overlap: str, target: Target
) -> None:
    """Run FLOW_ID at the times of CRON, '0 7 * * 1-5' for instance."""
    try:
        given = msgspec.json.decode(inputs, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise click.UsageError(f"--inputs is no JSON object: {error}") from error
    async with connected(target) as client:
        made = await client.add_schedule(
            flow_id, cron, inputs=given, timezone=timezone, overlap=overlap
        )
    emit(made, lambda: f"{made['id']} next {date(made['next_at'])}")


@schedules.command("ls")
@target_options
@json_option
@asynchronous
async def list_schedules(*, target: Target) -> None:
    """List the schedules."""
    async with connected(target) as client:
        found = await client.schedules()
    rows = [(s["id"], s["flow_id"], s["cron"], s["timezone"], _next(s)) for s in found]
    emit({"schedules": found}, lambda: table(("ID", "FLOW", "CRON", "ZONE", "NEXT"), rows))


def _next(schedule: dict[str, Any]) -> str:
    return "paused" if schedule["paused"] else date(schedule["next_at"])


@schedules.command()
@click.argument("schedule_id")
@target_options
@json_option
@asynchronous
async def show(*, schedule_id: str, target: Target) -> None:
    """Show a schedule's last ticks and the runs that they made."""
    async with connected(target) as client:
        found = await client.schedule(schedule_id)
    rows = [(date(t["at"]), t["state"], t["run_id"], t["error"]) for t in found["ticks"]]
    emit(found, lambda: table(("AT", "STATE", "RUN", "ERROR"), rows))


@schedules.command()
@click.argument("schedule_id")
@target_options
@json_option
@asynchronous
async def pause(*, schedule_id: str, target: Target) -> None:
    """Let a schedule rest."""
    async with connected(target) as client:
        found = await client.pause_schedule(schedule_id)
    emit(found, lambda: f"{schedule_id} paused")


@schedules.command()
@click.argument("schedule_id")
@target_options
@json_option
@asynchronous
async def resume(*, schedule_id: str, target: Target) -> None:
    """Let a schedule go on."""
    async with connected(target) as client:
        found = await client.pause_schedule(schedule_id, paused=False)
    emit(found, lambda: f"{schedule_id} next {date(found['next_at'])}")


@schedules.command()
@click.argument("schedule_id")
@target_options
@json_option
@asynchronous
async def rm(*, schedule_id: str, target: Target) -> None:
    """Remove a schedule. Its runs stay."""
    async with connected(target) as client:
        await client.remove_schedule(schedule_id)
    emit({"removed": schedule_id}, lambda: f"removed {schedule_id}")
