"""Type compatibility of one edge: what a source gives against what a pin takes (contracts §3).

Equal types fit; audio, image and video widen to binary; a value becomes a stream of one (`once`);
a finite stream or list becomes a JSON array (`collect`); a stream or list on a pin for one element
needs `forEach`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mentatlab.protocol.errors import Code, Problem
from mentatlab.protocol.pins import MEDIA_TYPES, Pin, PinMetadata, PinType, mime_patterns
from mentatlab.protocol.pins import mimes_intersect as intersect

EdgeKind = Literal["value", "stream", "items"]
"""What arrives. value: one final value · stream: elements as they come · items: the source of a
`forEach` (a list or a stream; each element starts one invocation)."""

Adapter = Literal["none", "once", "collect"]
"""once: the final value becomes a stream of one (for `items` and `value`: a list of one) ·
collect: the whole stream or list becomes one JSON array when it has ended."""

Container = Literal["one", "stream", "list"]


_NO_METADATA = PinMetadata()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a source gives; `list` exists only in the checker. `item` None = a stream that is silent
    about its elements. `via` = the explicit adapter node that it went through."""

    container: Container = "one"
    item: PinType | None
    metadata: PinMetadata = _NO_METADATA
    via: Adapter = "none"

    def __str__(self) -> str:
        item = self.item or "anything"
        return item if self.container == "one" else f"{self.container}<{item}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    kind: EdgeKind
    adapter: Adapter = "none"
    source_is_list: bool = False
    item_type: PinType


@dataclass(frozen=True, slots=True)
class Misfit:
    code: Code
    message: str
    hint: str = ""


def shape_of(pin: Pin) -> Shape:
    if pin.type is PinType.STREAM:
        return Shape(container="stream", item=pin.metadata.items, metadata=pin.metadata)
    return Shape(item=pin.type, metadata=pin.metadata)


def element_fits(source: PinType | None, target: PinType | None) -> bool:
    if source is None or target is None or source == target:
        return True
    return target is PinType.BINARY and source in MEDIA_TYPES


def fit_any(source: Shape) -> Fit:
    """An output widget takes whatever comes."""
    item = source.item or PinType.JSON
    if source.container == "list":
        return _fit_array(source)
    kind: EdgeKind = "stream" if source.container == "stream" and source.via == "none" else "value"
    return Fit(kind=kind, item_type=item)


def fit_items(source: Shape, pin: Pin) -> Fit | Misfit:
    """The edge that feeds `forEach`."""
    if source.container == "one" or pin.type is PinType.STREAM:
        return Misfit(
            Code.FOREACH_NOT_A_LIST,
            f"`forEach` over {source} into {pin.type}: each element starts one invocation",
            "take `forEach` away, or feed it a stream of elements",
        )
    if not element_fits(source.item, pin.type):
        return _mismatch(source, pin.type)
    return Fit(
        kind="items",
        adapter=source.via,
        source_is_list=source.container == "list" or source.via != "none",
        item_type=source.item or pin.type,
    )


def fit_pin(source: Shape, pin: Pin) -> Fit | Misfit:
    """An edge to an agent's pin."""
    if pin.type is PinType.STREAM:
        return _fit_stream(source, pin)
    if source.container == "one":
        if element_fits(source.item, pin.type):
            return Fit(kind="value", item_type=source.item or pin.type)
        return _mismatch(source, pin.type)
    if pin.type is PinType.JSON:
        return _fit_array(source)
    if not element_fits(source.item, pin.type):
        return _mismatch(source, pin.type)
    return Misfit(
        Code.NEEDS_FOREACH,
        f"{source} gives many, the pin takes one {pin.type}",
        f"put `forEach: {pin.name}` on the node",
    )


def fit_value(source: Shape) -> Fit:
    """An edge to a control node: its value as JSON, of whatever type."""
    if source.container == "one":
        return Fit(kind="value", item_type=source.item or PinType.JSON)
    return _fit_array(source)


def _fit_array(source: Shape) -> Fit:
    """A whole stream or list as one JSON array."""
    return Fit(
        kind="value",
        adapter="once" if source.via == "once" else "collect",
        source_is_list=_true_list(source),
        item_type=source.item or PinType.JSON,
    )


def _fit_stream(source: Shape, pin: Pin) -> Fit | Misfit:
    wanted = pin.metadata.items
    if source.container == "list" or not element_fits(source.item, wanted):
        return _mismatch(source, f"stream<{wanted or 'anything'}>")
    item = source.item or wanted or PinType.JSON
    if source.container == "one" or source.via == "once":
        return Fit(kind="stream", adapter="once", item_type=item)
    return Fit(kind="stream", item_type=item)


def _true_list(source: Shape) -> bool:
    return source.container == "list" and source.via == "none"


def _mismatch(source: Shape, target: str) -> Misfit:
    hint = "connect an output of that type, or put an agent between that converts"
    if source.item is PinType.BINARY:
        hint = "say what the bytes are: `accept` of ui.file-upload, or the output pin's type"
    return Misfit(Code.TYPE_MISMATCH, f"{source} does not fit {target}", hint)


_EQUAL = ("sample_rate", "channels", "width", "height", "fps", "encoding")


def contradictions(source: PinMetadata, target: PinMetadata) -> Iterator[Misfit]:
    """Where both sides declare and no medium can satisfy both."""
    if not intersect(mime_patterns(source.mime_type), mime_patterns(target.mime_type)):
        yield Misfit(
            Code.MIME_MISMATCH,
            f"the source gives {source.mime_type}, the pin takes {target.mime_type}",
            "convert between the two, or widen the pin's mimeType",
        )
    for name in _EQUAL:
        given, asked = getattr(source, name), getattr(target, name)
        if given is not None and asked is not None and not _same(given, asked):
            yield _conflict(f"{name} {given} against {asked}")
    given, longest = source.duration, target.longest
    if given is not None and longest is not None and given > longest:
        yield _conflict(f"duration {given:g} s against at most {longest:g} s")


def _same(given: str | float, asked: str | float) -> bool:
    if isinstance(given, str) or isinstance(asked, str):
        return given == asked
    return math.isclose(given, asked, rel_tol=1e-3 if isinstance(given, float) else 0)


def _conflict(what: str) -> Misfit:
    return Misfit(
        Code.CONSTRAINT_CONFLICT, f"the two sides contradict: {what}", "convert between the two"
    )


def problem(misfit: Misfit, path: str, where: str) -> Problem:
    return Problem(misfit.code, path, f"{where}: {misfit.message}", misfit.hint)
