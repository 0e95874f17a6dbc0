"""Whether what came out of a run is what was expected. Pure."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import jsonschema
import msgspec

from mentatlab.protocol.media import is_reference
from mentatlab.protocol.pins import PinType
from mentatlab.protocol.values import fits, is_object
from mentatlab.suites.model import Bounds, Expect, NodeCheck, TimingCheck, ValueCheck

_SHOWN = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A run as the API tells it; `streams`: the elements of outputs that are streams, by name."""

    run: Mapping[str, Any]
    outputs: Mapping[str, Any]
    timeline: Mapping[str, Any]
    streams: Mapping[str, list[Any]] = field(default_factory=dict[str, list[Any]])


@dataclass(frozen=True, slots=True)
class Failure:
    """`where`: `outputs.x`, `nodes.y.state`, …"""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def judge(expects: tuple[Expect, ...], outcome: Outcome) -> list[Failure]:
    """Everything that is not as expected."""
    state = next((e.state for e in reversed(expects) if e.state), "succeeded")
    found = [*_state(state, outcome)]
    for expect in expects:
        found += _error(expect, outcome)
        for name, check in expect.outputs.items():
            found += _output(name, check, outcome)
        for name, node in expect.nodes.items():
            found += _node(name, node, outcome)
        for timing in expect.timings:
            found += _timing(timing, outcome)
    return found


def _state(state: str, outcome: Outcome) -> Iterator[Failure]:
    if outcome.run["state"] != state:
        errors = [f"{n['id']}: {_told(n['error'])}" for n in outcome.run["nodes"] if n["error"]]
        why = f" ({'; '.join(errors)})" if errors else ""
        yield Failure("state", f"the run {outcome.run['state']}, not {state}{why}")


def _told(error: Mapping[str, Any]) -> str:
    hint = f"; hint: {error['hint']}" if error.get("hint") else ""
    return f"{error['code']}: {error['message']}{hint}"


def _error(expect: Expect, outcome: Outcome) -> Iterator[Failure]:
    error: dict[str, Any] | None = outcome.run.get("error")
    found = error and error["code"]
    if expect.error is not None and found != expect.error:
        yield Failure("error", f"{found or 'no error'}, not {expect.error}")


def _output(name: str, check: ValueCheck, outcome: Outcome) -> Iterator[Failure]:
    if name not in outcome.outputs:
        there = ", ".join(outcome.outputs) or "nothing"
        yield Failure(f"outputs.{name}", f"did not come out; there is {there}")
        return
    value = outcome.outputs[name]
    if check.type is not None and not _is_of(value, check.type):
        yield Failure(f"outputs.{name}", f"{_shown(value)} is no {check.type}")
    yield from value_failures(f"outputs.{name}", check, outcome.streams.get(name, value))


def _is_of(value: Any, type_: PinType) -> bool:
    if type_ is PinType.JSON:
        return not is_reference(value)
    return fits(value, type_)


def value_failures(where: str, check: ValueCheck, value: Any) -> Iterator[Failure]:
    if check.json_schema is not None:
        validator = jsonschema.Draft202012Validator(check.json_schema)
        for error in validator.iter_errors(value):  # pyright: ignore[reportUnknownMemberType] — its stub is partial
            yield Failure(where, f"{error.json_path}: {error.message[:_SHOWN]}")
    if check.equals is not None and value != check.equals:
        yield Failure(where, f"{_shown(value)} is not {_shown(check.equals)}")
    if check.contains is not None and not _contains(value, check.contains):
        yield Failure(where, f"{_shown(value)} does not contain {_shown(check.contains)}")
    if check.matches is not None and not re.search(check.matches, _text(value)):
        yield Failure(where, f"{_shown(value)} does not match {check.matches}")
    if check.count is not None:
        count = len(value) if _has_members(value) else None
        yield from _bounds(f"{where}.count", check.count, count)
    if check.min is not None or check.max is not None:
        number = value if isinstance(value, int | float) else None
        yield from _bounds(where, Bounds(min=check.min, max=check.max), number)
    for path, inner in check.at.items():
        found, there = _at(value, path)
        if there:
            yield from value_failures(f"{where}{path}", inner, found)
        else:
            yield Failure(where, f"has nothing at {path}: {_shown(value)}")


def _contains(value: Any, wanted: Any) -> bool:
    if isinstance(value, str):
        return str(wanted) in value
    if is_object(value) and is_object(wanted):
        return all(value.get(name) == one for name, one in wanted.items())
    return isinstance(value, list | dict) and wanted in value


def _has_members(value: Any) -> TypeGuard[list[Any] | dict[str, Any] | str]:
    return isinstance(value, list | dict | str)


def _is_array(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _at(value: Any, path: str) -> tuple[Any, bool]:
    """What a JSON pointer (RFC 6901) names, and whether it is there."""
    for part in path.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if _is_array(value) and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        elif is_object(value) and name in value:
            value = value[name]
        else:
            return None, False
    return value, True


def _node(name: str, check: NodeCheck, outcome: Outcome) -> Iterator[Failure]:
    node = _times(name, outcome)
    where = f"nodes.{name}"
    if node is None:
        yield Failure(where, "the flow has no such node")
        return
    if check.state is not None and node["state"] != check.state:
        yield Failure(f"{where}.state", f"{node['state']}, not {check.state}")
    if check.error is not None:
        errors = [n["error"] for n in outcome.run["nodes"] if n["id"] == name and n["error"]]
        if check.error not in [error["code"] for error in errors]:
            yield Failure(f"{where}.error", f"{_shown(errors)}, not {check.error}")
    if check.attempts is not None:
        yield from _bounds(f"{where}.attempts", check.attempts, len(node["attempts"]))
    for pin, bounds in check.chunks.items():
        chunks = next((s["chunks"] for s in node["streams"] if s["pin"] == pin), None)
        yield from _bounds(f"{where}.chunks.{pin}", bounds, chunks)
    states: dict[str, int] = node["spread"]["states"] if node["spread"] else {}
    for state, bounds in check.items.items():
        yield from _bounds(f"{where}.items.{state}", bounds, states.get(state, 0))


def _times(name: str, outcome: Outcome) -> dict[str, Any] | None:
    return next((n for n in outcome.timeline["nodes"] if n["node_id"] == name), None)


def _timing(check: TimingCheck, outcome: Outcome) -> Iterator[Failure]:
    where = f"timings.{check.of}/{check.to}"
    part, whole = _duration(check.of, outcome), _duration(check.to, outcome)
    if part is None or not whole:
        missing = check.to if part is not None else check.of
        yield Failure(where, f"there is no {missing}")
        return
    yield from _bounds(where, Bounds(min=check.min, max=check.max), part / whole)


def _duration(name: str, outcome: Outcome) -> float | None:
    place, _, measure = name.rpartition(".")
    if place == "run":
        return outcome.timeline.get(measure)
    node = _times(place, outcome)
    if node is None:
        return None
    if measure == "first_chunk_s":
        first, started = node.get("first_chunk_at"), node.get("started_at")
        return None if first is None or started is None else first - started
    return node.get(measure)


def _bounds(where: str, bounds: Bounds, found: float | None) -> Iterator[Failure]:
    if found is None:
        yield Failure(where, "there is no number")
        return
    if bounds.equals is not None and found != bounds.equals:
        yield Failure(where, f"{found:g}, not {bounds.equals:g}")
    if bounds.min is not None and found < bounds.min:
        yield Failure(where, f"{found:g}, below {bounds.min:g}")
    if bounds.max is not None and found > bounds.max:
        yield Failure(where, f"{found:g}, above {bounds.max:g}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _shown(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
