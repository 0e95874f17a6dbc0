"""`mentatlab runs`."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import click

from mentatlab.cli.connect import Target, connected, target_options
from mentatlab.cli.inputs import read_value, split_pairs
from mentatlab.cli.keys import date
from mentatlab.cli.output import asynchronous, emit, emit_line, json_option, note, table, wants_json
from mentatlab.cli.progress import describe_event, text_of
from mentatlab.cli.results import compact
from mentatlab.cli.timeline import timeline_text
from mentatlab.protocol.errors import Code, Invalid


@click.group(short_help="List, show, watch, steer and delete runs.")
def runs() -> None:
    """Runs: what is running, what has run."""


@runs.command("ls")
@click.option("--state", "states", multiple=True, help="Only runs in this state; may be repeated.")
@click.option("--flow", "flow_id", metavar="ID", help="Only runs of this flow.")
@click.option("--since", metavar="TIME", help="Made at or after: RFC 3339 or Unix seconds.")
@click.option("--until", metavar="TIME", help="Made before.")
@click.option("--trigger", metavar="NAME", help="schedule, webhook, or one of them: schedule:ID.")
@click.option("--origin", metavar="RUN_ID", help="Only runs that do this one again.")
@click.option("--search", "q", metavar="TEXT", help="A part of the run's id, flow, or reason.")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@click.option("--before", metavar="RUN_ID", help="The page behind this run.")
@target_options
@json_option
@asynchronous
async def list_runs(
    *, states: tuple[str, ...], limit: int, before: str | None, target: Target, **filters: str
) -> None:
    """List runs, newest first."""
    async with connected(target) as client:
        page = await client.runs(state=states or None, limit=limit, before=before, **filters)
    rows = [
        (run["run_id"], run["flow_id"], run["state"], date(run["created_at"]), seconds(run))
        for run in page["runs"]
    ]
    emit(page, lambda: table(("RUN", "FLOW", "STATE", "STARTED", "SECONDS"), rows))
    if page["next"]:
        note(f"more: --before {page['next']}")


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
    lines += [
        f"  {name:<16} {run[name]}" for name in ("origin", "from_node", "trigger") if run[name]
    ]
    lines += [
        f"  {node['state']:<16} {node['id']}{_gate(node['gate'])}{_error(node['error'])}"
        for node in run["nodes"]
    ]
    lines += [f"  output {name}: {shorten(value)}" for name, value in outputs.items()]
    return "\n".join(lines)


def _gate(gate: dict[str, Any] | None) -> str:
    if gate is None:
        return ""
    until = f" until {date(gate['until'])}" if gate["until"] else ""
    return f"  {gate['message'] or 'approve?'}{until}"


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
        _say_state(await client.cancel(run_id))


@runs.command()
@click.argument("run_id")
@target_options
@json_option
@asynchronous
async def pause(*, run_id: str, target: Target) -> None:
    """Start nothing new in a run; what runs goes on to its end."""
    async with connected(replace(target, recover=True)) as client:
        _say_state(await client.pause(run_id))


@runs.command()
@click.argument("run_id")
@target_options
@json_option
@asynchronous
async def resume(*, run_id: str, target: Target) -> None:
    """Go on with a paused run."""
    async with connected(replace(target, recover=True)) as client:
        _say_state(await client.resume(run_id))


@runs.command()
@click.argument("run_id")
@click.option(
    "--speed",
    type=click.FloatRange(0, 1000, min_open=True),
    default=1.0,
    show_default=True,
    help="A factor of recorded time.",
)
@click.option("--from", "from_", metavar="CURSOR", default="start", help="Go on behind a record.")
@target_options
@json_option
@asynchronous
async def replay(*, run_id: str, speed: float, from_: str, target: Target) -> None:
    """Show an ended run once more as it went: its events and what its nodes streamed. Nothing is
    executed. With --json, each line is a record with its `cursor`.
    """
    async with connected(target) as client:
        async for record in client.replay(run_id, speed=speed, from_=from_):
            if wants_json():
                emit_line(record)
            elif line := _replayed(record):
                click.echo(line)


def _replayed(record: dict[str, Any]) -> str:
    """One line, "" for what only programs care about."""
    match record:
        case {"type": "gap", "reason": str(reason)}:
            return f"(a gap: {reason})"
        case {"type": "stream_data", "node_id": "_run", "payload": {"data": event}}:
            return describe_event(event)
        case {"type": "stream_data", "node_id": node, "pin_name": pin, "payload": payload}:
            value = payload.get("ref", payload.get("data"))
            item = f"[{record['item']}]" if "item" in record else ""
            return f"{node}{item}.{pin}: {shorten(text_of(value) or value)}"
        case _:
            return ""


@runs.command()
@click.argument("run_id")
@click.option("--from", "from_node", metavar="NODE", help="Take over what stands before this node.")
@click.option(
    "--param",
    "params",
    multiple=True,
    metavar="NODE.NAME=VALUE",
    help="Change a parameter (JSON, or text); may be repeated.",
)
@target_options
@json_option
@asynchronous
async def rerun(
    *, run_id: str, from_node: str | None, params: tuple[str, ...], target: Target
) -> None:
    """Do a run again, all of it or from a node on; a new run."""
    async with connected(replace(target, recover=True)) as client:
        run = await client.rerun(run_id, from_node=from_node, params=_params(params))
        emit(run, lambda: run["run_id"])


def _params(pairs: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """`node.name=value` each. `Invalid(INVALID_REQUEST)` for what is none."""
    found: dict[str, dict[str, Any]] = {}
    hint = "write --param node.name=value"
    for place, text in split_pairs(pairs, what="a parameter", hint=hint).items():
        node, _, name = place.rpartition(".")
        if not node:
            raise Invalid(
                Code.INVALID_REQUEST,
                f"{place!r} does not name a node's parameter",
                hint=hint,
            )
        found.setdefault(node, {})[name] = read_value(place, text, None)
    return found


@runs.command()
@click.argument("run_id")
@click.argument("gate")
@click.option("--comment", default="", help="Why; stands in the run's events.")
@target_options
@json_option
@asynchronous
async def approve(*, run_id: str, gate: str, comment: str, target: Target) -> None:
    """Let a run go on behind the node GATE."""
    async with connected(replace(target, recover=True)) as client:
        _say_state(await client.decide_gate(run_id, gate, approve=True, comment=comment))


@runs.command()
@click.argument("run_id")
@click.argument("gate")
@click.option("--comment", default="", help="Why; stands in the run's events.")
@target_options
@json_option
@asynchronous
async def reject(*, run_id: str, gate: str, comment: str, target: Target) -> None:
    """Refuse what the node GATE asks for."""
    async with connected(replace(target, recover=True)) as client:
        _say_state(await client.decide_gate(run_id, gate, approve=False, comment=comment))


def _say_state(run: dict[str, Any]) -> None:
    emit(run, lambda: f"{run['run_id']} {run['state']}")


@runs.command()
@click.argument("run_id")
@click.option("--items", type=click.IntRange(0, 1000), default=20, show_default=True)
@target_options
@json_option
@asynchronous
async def timeline(*, run_id: str, items: int, target: Target) -> None:
    """Show when everything of a run happened, as bars."""
    async with connected(target) as client:
        found = await client.timeline(run_id, items=items)
    emit(found, lambda: timeline_text(found))


@runs.command()
@click.argument("run_id")
@click.argument("place", required=False)
@click.option("--seq", type=click.IntRange(1), help="A record of a stream, an element of a list.")
@target_options
@json_option
@asynchronous
async def lineage(*, run_id: str, place: str | None, seq: int | None, target: Target) -> None:
    """Show where a result comes from: PLACE is `node.pin`; without it the run's only output."""
    async with connected(target) as client:
        outputs = [] if place else list((await client.outputs(run_id))["outputs"])
        wanted = place or (outputs[0] if len(outputs) == 1 else "")
        node, _, pin = wanted.rpartition(".")
        found = await client.lineage(
            run_id, node=node or wanted, pin=pin if node else None, seq=seq
        )
    emit(found, lambda: _lineage_text(found))


def _lineage_text(found: dict[str, Any]) -> str:
    lines = [f"{found['result']} comes from"]
    for origin in found["origins"]:
        more = [f"at {origin['time_code']}"] if origin["time_code"] else []
        more += [f"frame {origin['frame']}"] if origin["frame"] is not None else []
        more += [origin["reference"]["ref"]["url"]] if origin["reference"] else []
        lines.append("  ".join([f"  {origin['id']}", *more]))
    lines += [f"  {step['id']} {_skip(step)}" for step in found["steps"] if step["skipped_by"]]
    lines += [
        f"  {step['id']} <- {source}"
        for step in found["steps"]
        for sources in step["sources"].values()
        for source in sources
    ]
    return "\n".join(lines)


def _skip(step: dict[str, Any]) -> str:
    """Why nothing came there."""
    because = f" because of {step['upstream']}" if step["upstream"] else ""
    return f"was skipped ({step['skipped_by']}{because})"


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
@click.option("--item", type=click.IntRange(1), help="Only of this item of a forEach node.")
@click.option("--attempt", type=click.IntRange(1), help="Only of this attempt.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run is over.")
@target_options
@json_option
@asynchronous
async def logs(
    *,
    run_id: str,
    node: str | None,
    item: int | None,
    attempt: int | None,
    follow: bool,
    target: Target,
) -> None:
    """Print what a run's agents logged, of one NODE or of all."""
    async with connected(replace(target, recover=follow)) as client:
        names = [node] if node else [n["id"] for n in (await client.run(run_id))["nodes"]]
        if follow:
            async with asyncio.TaskGroup() as tasks:
                for name in names:
                    lines = client.follow_logs(run_id, name, item=item, attempt=attempt)
                    tasks.create_task(_print_lines(name, lines))
            return
        found = [
            {"node_id": name, **entry}
            for name in names
            for entry in await client.logs(run_id, name, item=item, attempt=attempt)
        ]
    emit({"logs": found}, lambda: "\n".join(_log_line(entry) for entry in found))


async def _print_lines(name: str, lines: AsyncIterator[dict[str, Any]]) -> None:
    async for line in lines:
        entry = {"node_id": name, **line}
        if wants_json():
            emit_line(entry)
        else:
            click.echo(_log_line(entry))


def _log_line(entry: dict[str, Any]) -> str:
    said = entry.get("message") or _compact(
        {k: v for k, v in entry.items() if k not in ("node_id", "at", "attempt", "kind", "item")}
    )
    node = f"{entry['node_id']}[{entry['item']}]" if "item" in entry else entry["node_id"]
    return f"{entry['at']} {node} {entry.get('level', entry['kind'])}: {said}"
