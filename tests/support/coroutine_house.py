"""An engine whose agents are coroutines of the test, and flows for it in few words."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.coroutine_runner import Agent, CoroutineRunner

from mentatlab.protocol.records import RecordType
from mentatlab.runs.views import RunView
from mentatlab.testing.house import House, open_house, write_agent

Pins = Mapping[str, Any]


def pin(name: str, type_: str = "string", **more: Any) -> dict[str, Any]:
    """`type_` may be `stream of string`."""
    kind, _, items = type_.partition(" of ")
    metadata = {"metadata": {"items": items}} if items else {}
    return {"name": name, "type": kind, **metadata, **more}


def flow(nodes: list[dict[str, Any]], *edges: str, **more: Any) -> dict[str, Any]:
    """Edges as `a.x > b.y`."""
    wires = [edge.split(" > ") for edge in edges]
    return {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "t.flow"},
        "graph": {"nodes": nodes, "edges": [{"from": a, "to": b} for a, b in wires]},
        **more,
    }


def node(id_: str, type_: str, **more: Any) -> dict[str, Any]:
    return {"id": id_, "type": type_, **more}


class Agents:
    """Manifests below `root` and the coroutines that answer for them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._answers: dict[str, Agent] = {}

    def add(self, name: str, agent: Agent, inputs: list[Pins], outputs: list[Pins]) -> None:
        write_agent(self._root / "agents", name, "", inputs=inputs, outputs=outputs)
        self._answers[name] = agent

    def runner(self) -> CoroutineRunner:
        return CoroutineRunner(self._answers)

    @asynccontextmanager
    async def open(
        self, runner: CoroutineRunner | None = None, **options: Any
    ) -> AsyncIterator[House]:
        """The same home, whenever it is opened; retries come at once."""
        home = open_house(
            self._root / "home",
            [self._root / "agents"],
            runner=runner or self.runner(),
            chance=lambda: 0.0,
            **options,
        )
        async with home as house:
            yield house


async def ended(house: House, document: dict[str, Any], **inputs: Any) -> RunView:
    run = await house.engine.submit(document, inputs)
    return await house.engine.wait(run.id)


def states(run: RunView) -> dict[str, str]:
    return {found.id: found.state for found in run.nodes}


async def standing(house: House, stream_id: str) -> list[tuple[Any, int | None]]:
    """(value, item) of the data that stand in an ended stream."""
    ranges = (await house.hub.lane(stream_id)).standing
    async with house.hub.subscribe(stream_id) as records:
        return [
            (r.payload["data"], r.item)
            async for r in records
            if r.type is RecordType.DATA and any(a <= r.sequence <= b for a, b in ranges)
        ]
