"""Joins streams, lists and single values into rows."""

import asyncio
from typing import Annotated, Any, Literal, NamedTuple, cast

import msgspec

from mentatlab.protocol.errors import Code
from mentatlab.sdk import Agent, AgentError, InputStream, run
from mentatlab.sdk.params import read_params

SOURCES = ("items", "a", "b", "c", "d")


class Params(msgspec.Struct):
    join: Literal["index", "time"] = "index"
    tolerance_s: Annotated[float, msgspec.Meta(ge=0)] = 0.5
    time_key: str = "pts"
    names: dict[str, str] = {}


class Element(NamedTuple):
    value: Any
    time: float | None  # seconds


Sources = dict[str, list[Element]]  # by name


class Aggregator(Agent):
    concurrency = 8

    async def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
        params = read_params(inputs, Params)
        present = [pin for pin in SOURCES if inputs.get(pin) is not None]
        # All at once: an upstream that feeds two inputs waits for both to be read.
        async with asyncio.TaskGroup() as tasks:
            reads = {pin: tasks.create_task(read(inputs[pin], params.time_key)) for pin in present}
        sources = {params.names.get(pin, pin): task.result() for pin, task in reads.items()}
        by_time = params.join == "time"
        return {
            "result": join_by_time(sources, params.tolerance_s)
            if by_time
            else join_by_index(sources)
        }


async def read(source: object, time_key: str) -> list[Element]:
    if isinstance(source, InputStream):
        return [
            Element(chunk.value, time_of(chunk.value, time_key) if chunk.pts is None else chunk.pts)
            async for chunk in source.chunks()
        ]
    values = cast("list[Any]", source) if isinstance(source, list) else [source]
    return [Element(value, time_of(value, time_key)) for value in values]


def time_of(value: object, time_key: str) -> float | None:
    if not isinstance(value, dict):
        return None
    seconds = cast("dict[str, Any]", value).get(time_key)
    return float(seconds) if isinstance(seconds, int | float) else None


def join_by_index(sources: Sources) -> list[dict[str, Any]]:
    """The n-th of each; a source that is over leaves its name out."""
    length = max((len(elements) for elements in sources.values()), default=0)
    return [
        {"index": i}
        | {name: elements[i].value for name, elements in sources.items() if i < len(elements)}
        for i in range(length)
    ]


def join_by_time(sources: Sources, tolerance_s: float) -> list[dict[str, Any]]:
    """In order of time; a row opens with an element and takes at most one of each other source
    that comes within the tolerance."""
    timed = [
        (seconds(e, name), name, e.value) for name, elements in sources.items() for e in elements
    ]
    rows: list[dict[str, Any]] = []
    for time, name, value in sorted(timed, key=lambda element: element[0]):
        if not rows or name in rows[-1] or time - rows[-1]["time"] > tolerance_s:
            rows.append({"time": time})
        rows[-1][name] = value
    return rows


def seconds(element: Element, name: str) -> float:
    if element.time is None:
        raise AgentError(
            Code.BAD_PARAM,
            f"an element of {name!r} has no time",
            hint="join by index, or say with time_key where its seconds stand",
        )
    return element.time


if __name__ == "__main__":
    run(Aggregator)
