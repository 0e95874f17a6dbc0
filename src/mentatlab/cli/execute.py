"""One run from inputs to outputs, shown as it goes: what `run` and `agent run` share."""

import asyncio
import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from mentatlab.cli.inputs import Upload, read_value, split_pairs
from mentatlab.cli.output import emit, note
from mentatlab.cli.progress import describe_event, text_of
from mentatlab.cli.results import describe, write_outputs
from mentatlab.protocol.errors import MentatError
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.protocol.records import StreamChunk
from mentatlab.protocol.values import is_object
from mentatlab.sdk.client import AsyncClient

Flow = dict[str, Any] | str
_TEXT_GRACE_S = 5.0
_LOG_LINES = 100


async def execute(
    client: AsyncClient,
    flow: Flow,
    pairs: Sequence[str],
    *,
    out: Path | None,
    alone: bool = False,
) -> None:
    """Upload, submit, follow, print or write what came out; exit code 1 when the run failed.

    The log of a node that failed is shown. `alone`: of every node, and the run ends with the
    command.
    """
    plan = await client.plan(flow)
    inputs = await resolve_inputs(client, pairs, pins_of(plan))
    submitted = await client.submit(flow, inputs)
    run_id = submitted["run_id"]
    note(f"run {run_id}")
    try:
        await follow(client, run_id)
    except asyncio.CancelledError:
        if not alone:
            note(f"\nthe run is not cancelled: `mentatlab runs cancel {run_id}` does that")
        raise
    await _show_logs(client, run_id, every=alone)
    await report(client, run_id, out)


async def _show_logs(client: AsyncClient, run_id: str, *, every: bool) -> None:
    for node in (await client.run(run_id))["nodes"]:
        if every or node["state"] == "failed":
            said = [e for e in await client.logs(run_id, node["id"]) if e["kind"] == "log"]
            for entry in said[-_LOG_LINES:]:
                note(f"{node['id']} | {entry['message']}")


def pins_of(plan: Mapping[str, Any]) -> dict[str, PinType]:
    """Input names in both forms, `node` and `node.pin`, → types."""
    found: dict[str, PinType] = {}
    for wanted in plan["inputs"]:
        pin = msgspec.convert(wanted["pin"], Pin)
        found[f"{wanted['node']}.{pin.name}"] = found[wanted["name"]] = pin.type
    return found


async def resolve_inputs(
    client: AsyncClient, pairs: Sequence[str], types: Mapping[str, PinType]
) -> dict[str, Any]:
    """Values by name; files are uploaded and become references."""
    values = {
        name: read_value(name, text, types.get(name)) for name, text in split_pairs(pairs).items()
    }
    return {
        name: await _upload(client, value.path, types[name]) if isinstance(value, Upload) else value
        for name, value in values.items()
    }


async def _upload(client: AsyncClient, path: Path, type_: PinType) -> dict[str, Any]:
    with click.progressbar(
        length=size_of(path),
        label=f"uploading {path.name}",
        file=sys.stderr,
        hidden=not sys.stderr.isatty(),
    ) as bar:
        stored = await client.upload(
            path,
            type_=type_.value,  # pyright: ignore[reportArgumentType] — one of the media types
            progress=lambda sent, _: bar.update(sent - bar.pos),
        )
    return stored["reference"]


def size_of(path: Path) -> int:
    return path.stat().st_size


async def follow(client: AsyncClient, run_id: str) -> None:
    """Progress and streamed text on stderr, until the run is over."""
    screen = _Screen()
    async with asyncio.TaskGroup() as tasks:
        texts = tasks.create_task(_follow_texts(client, run_id, screen))
        async for event in client.events(run_id):
            if line := describe_event(event):
                screen.line(line)
        await asyncio.wait({texts}, timeout=_TEXT_GRACE_S)
        texts.cancel()
    screen.finish()


async def _follow_texts(client: AsyncClient, run_id: str, screen: "_Screen") -> None:
    """Best effort: a lane that fails, or streaming switched off, is told by the events."""
    with contextlib.suppress(MentatError):
        async with contextlib.aclosing(client.stream(run_id)) as records:
            async for record in records:
                if not isinstance(record, StreamChunk):
                    continue
                data = record.payload.get("data")
                if record.node_id == "_run":
                    if is_object(data) and data.get("type") == "run_finished":
                        return
                elif text := text_of(data):
                    screen.text(f"{record.node_id}.{record.pin_name}", text)


class _Screen:
    """stderr, where lines of progress and running text share the place."""

    def __init__(self) -> None:
        self._speaker = ""

    def line(self, line: str) -> None:
        self.finish()
        note(line)

    def text(self, speaker: str, text: str) -> None:
        if speaker != self._speaker:
            self.finish()
            note(f"{speaker}: ", newline=False)
            self._speaker = speaker
        note(text, newline=False)

    def finish(self) -> None:
        if self._speaker:
            note("")
        self._speaker = ""


async def report(client: AsyncClient, run_id: str, out: Path | None) -> None:
    run = await client.run(run_id)
    outputs = (await client.outputs(run_id))["outputs"]
    answer = {
        "run_id": run_id,
        "flow": run["flow_id"],
        "state": run["state"],
        "reason": run["reason"],
        "error": run["error"],
        "seconds": round((run["finished_at"] or 0) - (run["started_at"] or 0), 3),
        "outputs": outputs,
    }
    if out is not None:
        answer["files"] = await write_outputs(client, outputs, out)
        note(f"wrote {len(answer['files'])} outputs to {out}")
    texts = {name: await describe(client, value) for name, value in outputs.items()}
    emit(answer, lambda: "\n".join(f"{name}: {text}" for name, text in texts.items()))
    if run["state"] not in ("succeeded", "partial"):
        _explain(run)
        raise click.exceptions.Exit(1)


def _explain(run: dict[str, Any]) -> None:
    note(f"the run {run['state']}{': ' + run['reason'] if run['reason'] else ''}")
    for node in run["nodes"]:
        if error := node["error"]:
            note(f"error: {node['id']}: {error['code']}: {error['message']}")
            if error["hint"]:
                note(f"hint: {error['hint']}")
