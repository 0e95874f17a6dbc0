"""A run's timeline as bars of text."""

from collections.abc import Iterator
from typing import Any

from mentatlab.cli.output import table

WIDTH = 40
LEGEND = ". queued   = running   ~ waits for a retry   * first chunk   | end"
_ITEMS_SHOWN = 20


def timeline_text(found: dict[str, Any]) -> str:
    """One line for each node, and for items of `forEach` nodes; times in seconds from the run's
    creation."""
    begin, whole = found["created_at"], max(found["at"] - found["created_at"], 1e-9)
    rows = [
        (name, unit["state"], _seconds(unit["queued_s"]), _seconds(unit["run_s"]), tries, bar)
        for name, unit, tries, bar in _rows(found, begin, whole)
    ]
    heading = f"{found['run_id']}  {found['state']}  {whole:.3f} s"
    shown = table(("NODE", "STATE", "QUEUED", "RUN", "TRIES", f"0 … {whole:.3f} s"), rows)
    return f"{heading}\n{shown}\n{LEGEND}"


def _rows(
    found: dict[str, Any], begin: float, whole: float
) -> Iterator[tuple[str, dict[str, Any], str, str]]:
    for node in found["nodes"]:
        yield node["node_id"], node, _tries(node), bar_of(node, begin, whole)
        for item in node["items"][:_ITEMS_SHOWN]:
            yield f"  [{item['item']}]", item, _tries(item), bar_of(item, begin, whole)


def _tries(unit: dict[str, Any]) -> str:
    return str(len(unit["attempts"]) or "")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def bar_of(unit: dict[str, Any], begin: float, whole: float, width: int = WIDTH) -> str:
    """`begin` and the length `whole` in seconds of what the `width` characters show."""
    cells = [" "] * width

    def at(time: float) -> int:
        return min(width - 1, max(0, int((time - begin) / whole * width)))

    def fill(start: float | None, end: float | None, mark: str) -> None:
        if start is not None:
            for cell in range(at(start), at(begin + whole if end is None else end) + 1):
                cells[cell] = mark

    fill(unit["ready_at"], unit["started_at"] or unit["ended_at"], ".")
    fill(unit["started_at"], unit["ended_at"], "~")
    for attempt in unit["attempts"]:
        fill(attempt["started_at"], attempt["ended_at"], "=")
    for time, mark in ((unit.get("first_chunk_at"), "*"), (unit["ended_at"], "|")):
        if time is not None:
            cells[at(time)] = mark
    return "".join(cells).rstrip()
