"""`mentatlab runs`."""

from dataclasses import replace
from typing import Any

import click

from mentatlab.cli.connect import Target, connected, target_options
from mentatlab.cli.keys import date
from mentatlab.cli.output import asynchronous, emit, emit_line, json_option, table, wants_json
from mentatlab.cli.progress import describe_event
from mentatlab.cli.results import compact


@click.group(short_help="List, show, watch, cancel and delete runs.")
def runs() -> None:
    """Runs: what is running, what has run."""


@runs.command("ls")
@click.option("--state", help="Only runs in this state.")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@target_options
@json_option
@asynchronous
async def list_runs(*, state: str | None, limit: int, target: Target) -> None:
    """List runs, newest first."""
    async with connected(target) as client:
        page = await client.runs(state=state, limit=limit)
    rows = [
        (run["run_id"], run["flow_id"], run["state"], date(run["created_at"]), seconds(run))
        for run in page["runs"]
    ]
    emit(page, lambda: table(("RUN", "FLOW", "STATE", "STARTED", "SECONDS"), rows))


def seconds(run: dict[str, Any]) -> str:
    if run["started_at"] is None or run["finished_at"] is None:
        return ""
    return f"{run['finished_at'] - run['started_at']:.2f}"


@runs.command()
@click.argument("run_id")
@target_options
@json_option
@asynchronous
async def show(*, run_id: str, target: Target) -> None:
    """Show a run: its nodes and its outputs so far."""
    async with connected(target) as client:
        run = await client.run(run_id)
        outputs = (await client.outputs(run_id))["outputs"]
    emit({**run, "outputs": outputs}, lambda: _describe(run, outputs))


def _describe(run: dict[str, Any], outputs: dict[str, Any]) -> str:
    reason = f" ({run['reason']})" if run["reason"] else ""
    lines = [f"{run['run_id']}  {run['flow_id']}  {run['state']}{reason}"]
    lines += [f"  {node['state']:<16} {node['id']}{_error(node['error'])}" for node in run["nodes"]]
    lines += [f"  output {name}: {shorten(value)}" for name, value in outputs.items()]
    return "\n".join(lines)


def _error(error: dict[str, Any] | None) -> str:
    return f"  {error['code']}: {error['message']}" if error else ""


def shorten(value: Any, *, most: int = 200) -> str:
    """One line of at most `most` characters."""
    text = value if isinstance(value, str) else _compact(value)
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _compact(value: Any) -> str:
    match value:
        case {"type": str(kind), "ref": {"url": str(url)}}:
            return f"{kind} {url}"
        case {"type": "stream", "stream_id": str(name), "chunks": int(chunks)}:
            return f"{chunks} elements in {name}"
        case _:
            return compact(value)


@runs.command()
@click.argument("run_id")
@target_options
@json_option
@asynchronous
async def watch(*, run_id: str, target: Target) -> None:
    """Show a run's events until it ends. Exit code 1 when it did not succeed."""
    async with connected(replace(target, recover=True)) as client:
        async for event in client.events(run_id):
            if wants_json():
                emit_line(event)
            elif line := describe_event(event):
                click.echo(line)
        run = await client.run(run_id)
    if run["state"] not in ("succeeded", "partial"):
        raise click.exceptions.Exit(1)


@runs.command()
@click.argument("run_id")
@target_options
@json_option
@asynchronous
async def cancel(*, run_id: str, target: Target) -> None:
    """End a run early."""
    async with connected(replace(target, recover=True)) as client:
        run = await client.cancel(run_id)
    emit(run, lambda: f"{run_id} {run['state']}")


@runs.command()
@click.argument("run_ids", metavar="RUN_ID…", nargs=-1, required=True)
@target_options
@json_option
@asynchronous
async def rm(*, run_ids: tuple[str, ...], target: Target) -> None:
    """Delete runs that have ended, with their events and streams.

    What they stored goes a day later, unless others need it.
    """
    async with connected(target) as client:
        for run_id in run_ids:
            await client.delete_run(run_id)
    emit({"removed": run_ids}, lambda: "\n".join(f"removed {run_id}" for run_id in run_ids))


@runs.command()
@click.argument("run_id")
@click.argument("node", required=False)
@target_options
@json_option
@asynchronous
async def logs(*, run_id: str, node: str | None, target: Target) -> None:
    """Print what a run's agents logged, of one NODE or of all."""
    async with connected(target) as client:
        names = [node] if node else [n["id"] for n in (await client.run(run_id))["nodes"]]
        found = [
            {"node_id": name, **entry}
            for name in names
            for entry in await client.logs(run_id, name)
        ]
    emit({"logs": found}, lambda: "\n".join(_log_line(entry) for entry in found))


def _log_line(entry: dict[str, Any]) -> str:
    said = entry.get("message") or _compact(
        {k: v for k, v in entry.items() if k not in ("node_id", "at", "attempt", "kind", "item")}
    )
    node = f"{entry['node_id']}[{entry['item']}]" if "item" in entry else entry["node_id"]
    return f"{entry['at']} {node} {entry.get('level', entry['kind'])}: {said}"
