"""The static check's first step: what each node is, which pins it has."""

from difflib import get_close_matches
from typing import Any

from mentatlab.flows.analysis import Analysis, Lookup, ResolvedNode, choices, into
from mentatlab.flows.builtins import (
    ADAPTER_TYPES,
    BUILTIN_TYPES,
    CONTROL_PARAMS,
    INPUT_PINS,
    NOT_RUNNABLE,
    OUTPUT_TYPES,
    branches,
    input_pin,
)
from mentatlab.flows.document import Model
from mentatlab.flows.flow import Node
from mentatlab.flows.manifest import PROFILES, Manifest
from mentatlab.protocol.errors import Code
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.protocol.values import fits


def resolve_node(a: Analysis, node_id: str, node: Node, path: str, lookup: Lookup) -> None:
    if node_id in a.nodes:
        text = f"a node called {node_id!r} stands at {a.nodes[node_id].path} already"
        a.report(Code.DUPLICATE_NODE, into(path, "id"), text, "give it another id")
        return
    resolved = ResolvedNode(node_id, node, path, "opaque")
    a.nodes[node_id] = resolved
    a.into[node_id] = []
    if node.type in NOT_RUNNABLE:
        text = f"nodes of type {node.type} do not run here"
        a.report(Code.NOT_RUNNABLE_HERE, into(path, "type"), text, NOT_RUNNABLE[node.type])
    elif node.type in INPUT_PINS:
        pin = input_pin(node.type, node.params, _input_default(node))
        resolved.kind, resolved.output_pins = "input", {pin.name: pin}
    elif node.type in OUTPUT_TYPES:
        resolved.kind = "output"
    elif node.type in ADAPTER_TYPES:
        resolved.kind = "adapter"
    elif node.type in CONTROL_PARAMS:
        _resolve_control(resolved)
    else:
        _resolve_agent(a, resolved, lookup)
    _check_fields(a, resolved)


def _input_default(node: Node) -> Any:
    """An input node's own value: `outputs: {text: …}` of older files, or `params: {text: …}`."""
    pin = INPUT_PINS[node.type]
    return node.outputs.get(pin, node.params.get(pin))


def _resolve_control(resolved: ResolvedNode) -> None:
    """Its outputs are of the type that its `value` has, which its edge will tell."""
    node = resolved.node
    constant = node.params.get("value")
    type_ = PinType.JSON if constant is None else _type_of(constant)
    resolved.kind = "control"
    resolved.input_pins = {"value": Pin("value", type_)}
    resolved.output_pins = {name: Pin(name, type_) for name in branches(node.type, node.params)}
    resolved.constants = {} if constant is None else {"value": constant}


def _type_of(constant: object) -> PinType:
    candidates = (PinType.STRING, PinType.NUMBER, PinType.BOOLEAN)
    return next((type_ for type_ in candidates if fits(constant, type_)), PinType.JSON)


def _resolve_agent(a: Analysis, resolved: ResolvedNode, lookup: Lookup) -> None:
    node = resolved.node
    manifest = lookup(node.type)
    if manifest is None:
        hint = "`mentatlab agents ls` lists what is installed"
        if node.type.startswith(("ui.", "core.")):
            hint = choices("built in", BUILTIN_TYPES, instead_of=node.type)
        text = f"{resolved.id}: no agent is called {node.type!r}"
        a.report(Code.UNKNOWN_AGENT, into(resolved.path, "type"), text, hint)
        return
    resolved.kind = "agent"
    resolved.manifest = _with_profile(a, resolved, manifest)
    resolved.input_pins = {pin.name: pin for pin in manifest.input_pins}
    resolved.output_pins = {pin.name: pin for pin in manifest.output_pins}
    resolved.constants = {k: v for k, v in node.params.items() if k in resolved.input_pins}
    if node.for_each is not None:
        _check_for_each(a, resolved, node.for_each)


def _with_profile(a: Analysis, resolved: ResolvedNode, manifest: Manifest) -> Manifest:
    """A node's `profile` takes the place of the manifest's resources."""
    profile = resolved.node.profile
    if profile is None:
        return manifest
    if profile not in PROFILES:
        text = f"{resolved.id}: no resource profile is called {profile!r}"
        hint = choices("profiles", PROFILES, instead_of=profile)
        a.report(Code.BAD_PARAM, into(resolved.path, "profile"), text, hint)
        return manifest
    return manifest.with_profile(profile)


def _check_for_each(a: Analysis, resolved: ResolvedNode, pin: str) -> None:
    path = into(resolved.path, "forEach")
    if pin not in resolved.input_pins:
        text = f"{resolved.id}: `forEach` names the input pin {pin!r}, which is not there"
        hint = choices("inputs", resolved.input_pins, instead_of=pin)
        a.report(Code.UNKNOWN_PIN, path, text, hint)
    for output in resolved.output_pins.values():
        if output.type is PinType.STREAM:
            text = f"{resolved.id}: with `forEach`, the output {output.name!r} cannot be a stream"
            hint = "use an agent that gives one value for each item"
            a.report(Code.FOREACH_STREAM_OUTPUT, path, text, hint)


_OF_AGENTS = {
    "for_each": "forEach",
    "retry": "retry",
    "timeouts": "timeouts",
    "cache": "cache",
    "profile": "profile",
}
_OF_MAPS = {
    "max_parallel": "maxParallel",
    "ordered": "ordered",
    "on_item_error": "onItemError",
    "max_failed": "maxFailed",
}


def _check_fields(a: Analysis, resolved: ResolvedNode) -> None:
    """Fields that are unknown, or that do nothing where they stand."""
    node = resolved.node
    _check_cache(a, resolved)
    _check_unknown(a, resolved, node, resolved.path)
    _check_unknown(a, resolved, node.retry, into(resolved.path, "retry"))
    _check_unknown(a, resolved, node.timeouts, into(resolved.path, "timeouts"))
    if node.for_each is not None and resolved.kind not in ("agent", "opaque"):
        text = f"{resolved.id}: `forEach` belongs to agents, not to {node.type}"
        a.report(Code.BAD_PARAM, into(resolved.path, "forEach"), text, "take it away")
    idle = {} if resolved.kind in ("agent", "opaque") else _OF_AGENTS
    if node.for_each is None:
        idle = {**idle, **_OF_MAPS}
    for name in node.model_fields_set & idle.keys() - {"for_each"}:
        text = f"{resolved.id}: `{idle[name]}` has no effect here"
        hint = "it belongs to " + ("a node with `forEach`" if name in _OF_MAPS else "agents")
        a.warn(Code.UNUSED_FIELD, into(resolved.path, idle[name]), text, hint)
    if node.max_failed is not None and node.on_item_error == "fail_fast":
        text = f"{resolved.id}: `maxFailed` has no effect: the first failed item fails the node"
        path = into(resolved.path, "maxFailed")
        a.warn(Code.UNUSED_FIELD, path, text, "say `onItemError: collect` or `skip`")


def is_cached(resolved: ResolvedNode) -> bool:
    """Whether results may be those of an earlier run: what the node says, else the manifest."""
    manifest, said = resolved.manifest, resolved.node.cache
    if manifest is None or streams_of(resolved):
        return False
    return manifest.cache == "content" if said is None else said in ("content", True)


def streams_of(resolved: ResolvedNode) -> list[str]:
    pins = [*resolved.input_pins.values(), *resolved.output_pins.values()]
    return [pin.name for pin in pins if pin.type is PinType.STREAM]


def _check_cache(a: Analysis, resolved: ResolvedNode) -> None:
    said, path = resolved.node.cache, into(resolved.path, "cache")
    if resolved.kind == "agent" and said in ("content", True) and streams_of(resolved):
        names = ", ".join(streams_of(resolved))
        text = f"{resolved.id} is not cached: {names} are streams"
        a.warn(Code.UNUSED_FIELD, path, text, "take `cache` away")


def _check_unknown(a: Analysis, resolved: ResolvedNode, model: Model, path: str) -> None:
    """A field that this version does not know is kept; a misspelt one should be seen."""
    known = [field.alias or name for name, field in type(model).model_fields.items()]
    for name in model.model_extra or {}:
        if name.startswith(("x-", "_")):
            continue
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else "fields of your own may start with x-"
        text = f"{resolved.id}: the field {name!r} is not known, and kept as it is"
        a.warn(Code.UNKNOWN_FIELD, into(path, name), text, hint)
