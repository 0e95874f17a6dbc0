"""What the static check knows of a flow while it goes through its steps."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from mentatlab.flows.document import pointer
from mentatlab.flows.flow import Flow, Node
from mentatlab.flows.manifest import Manifest
from mentatlab.flows.shapes import Fit
from mentatlab.protocol.errors import Code, Problem
from mentatlab.protocol.pins import Pin

Lookup = Callable[[str], Manifest | None]
"""`id` or `id:version` → the manifest."""

NodeKind = Literal["input", "agent", "output", "adapter", "control", "opaque"]
"""opaque: an unknown agent or a node that does not run here; its edges are not judged."""


@dataclass(slots=True)
class ResolvedNode:
    """`id`: the author's, behind those of the sub-flows around it (`outer:inner`)."""

    id: str
    node: Node
    path: str
    kind: NodeKind
    manifest: Manifest | None = None
    input_pins: dict[str, Pin] = field(default_factory=dict[str, Pin])
    output_pins: dict[str, Pin] = field(default_factory=dict[str, Pin])
    constants: dict[str, Any] = field(default_factory=dict[str, Any])  # by input pin
    variables: frozenset[str] = frozenset()  # what its conditions may name


@dataclass(slots=True)
class Wire:
    path: str
    source: ResolvedNode
    source_pin: str
    target: ResolvedNode
    target_pin: str
    fit: Fit | None = None

    def __str__(self) -> str:
        return f"{self.source.id}.{self.source_pin} → {self.target.id}.{self.target_pin}"


@dataclass(slots=True)
class Analysis:
    flow: Flow
    problems: list[Problem] = field(default_factory=list[Problem])
    nodes: dict[str, ResolvedNode] = field(default_factory=dict[str, ResolvedNode])
    wires: list[Wire] = field(default_factory=list[Wire])
    into: dict[str, list[Wire]] = field(default_factory=dict[str, list[Wire]])
    order: list[str] = field(
        default_factory=list[str]
    )  # topological; what is on a cycle comes last

    def report(self, code: Code, path: str, message: str, hint: str = "") -> None:
        self.problems.append(Problem(code, path, message, hint))

    def warn(self, code: Code, path: str, message: str, hint: str = "") -> None:
        self.problems.append(Problem(code, path, message, hint, severity="warning"))

    def unfed_pins(self, resolved: ResolvedNode) -> list[Pin]:
        """Input pins that neither an edge nor a constant feeds. A faulty edge counts as one."""
        fed = {w.target_pin for w in self.into[resolved.id]} | resolved.constants.keys()
        return [pin for pin in resolved.input_pins.values() if pin.name not in fed]


def is_needed(pin: Pin) -> bool:
    return pin.required and pin.default is None


def into(path: str, *names: str | int) -> str:
    return path + pointer(*names)


def choices(what: str, names: Iterable[str], *, instead_of: str = "") -> str:
    """A hint: the nearest of the names, or all of them."""
    listed = list(names)
    if near := get_close_matches(instead_of, listed, 1):
        return f"did you mean {near[0]}?"
    shown = ", ".join(listed[:12])
    return f"{what} are {shown}" if listed else f"there are no {what}"
