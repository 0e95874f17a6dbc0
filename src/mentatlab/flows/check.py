"""The static check: everything that can be known of a flow before it runs, every problem at once.

`analyse` resolves nodes and edges against the manifests, `check_flow` gives the problems. Nodes and
edges that are broken already are left out of the later steps, so that one fault is told once.
"""

from collections.abc import Mapping
from typing import Any

from mentatlab.flows.analysis import Analysis, Lookup, ResolvedNode, into, is_needed
from mentatlab.flows.conditions import check_conditions
from mentatlab.flows.document import pointer
from mentatlab.flows.flow import Flow, load_flow
from mentatlab.flows.limits import check_limits
from mentatlab.flows.nodes import resolve_node
from mentatlab.flows.subflows import Find, flatten, inline
from mentatlab.flows.webhooks import check_webhooks
from mentatlab.flows.wires import fit_wires, resolve_edge, sort
from mentatlab.protocol.agent import is_secret_name
from mentatlab.protocol.errors import Code, Problem, ValidationFailed
from mentatlab.protocol.pins import PinType
from mentatlab.protocol.values import fits

__all__ = ["Lookup", "analyse", "check_document", "check_flow"]


def check_flow(flow: Flow, lookup: Lookup) -> list[Problem]:
    """Every problem, errors and warnings, in the order of the steps; empty = it can be run."""
    return analyse(flow, lookup).problems


def check_document(document: Mapping[str, Any], find: Find, lookup: Lookup) -> list[Problem]:
    """As `check_flow`, of any document, with the stored flows that it names: what keeps them from
    being put in, then what is wrong with its shape, or when that is right, with its meaning."""
    whole, found = inline(document, find)
    told = {Code.UNKNOWN_FLOW} if found else set[Code]()  # by `found`, each with its reason
    try:
        more = check_flow(load_flow(whole), lookup)
    except ValidationFailed as error:
        more = error.problems
    return found + [p for p in more if p.code not in told and p not in found]


def analyse(flow: Flow, lookup: Lookup) -> Analysis:
    a = Analysis(flow)
    flat = flatten(flow, lookup)
    a.problems += flat.problems
    _check_secrets(a)
    check_webhooks(a)
    if not check_limits(a, flat):
        return a
    for node in flat.nodes:
        resolve_node(a, node.id, node.node, node.path, lookup)
    for edge in flat.edges:
        resolve_edge(a, edge.source, edge.target, edge.path)
    sort(a)
    fit_wires(a)
    for resolved in a.nodes.values():
        _check_constants(a, resolved)
        _check_inputs(a, resolved)
        check_conditions(a, resolved)
    _check_reach(a)
    return a


# what stands on no edge


def _check_secrets(a: Analysis) -> None:
    for index, name in enumerate(a.flow.run_config.secrets):
        if not is_secret_name(name):
            path = pointer("runConfig", "secrets", index)
            text = f"{name[:100]!r} cannot be the name of a secret"
            hint = "capital letters, digits and `_`, as of an environment variable"
            a.report(Code.SECRET_INVALID, path, text, hint)


def _check_constants(a: Analysis, resolved: ResolvedNode) -> None:
    fed = {w.target_pin for w in a.into[resolved.id]}
    for name, value in list(resolved.constants.items()):
        path = into(resolved.path, "params", name)
        pin = resolved.input_pins[name]
        if name in fed:
            text = f"{resolved.id}.{name} has an edge; its constant is not used"
            a.warn(Code.DUPLICATE_INPUT, path, text, "take one of the two away")
            del resolved.constants[name]
        elif not fits(value, pin.type):
            text = f"{resolved.id}.{name} is {str(value)[:60]!r}, not a {pin.type}"
            a.report(Code.BAD_PARAM, path, text, f"give a value of type {pin.type}")
        elif pin.enum is not None and value not in pin.enum:
            text = f"{resolved.id}.{name} is {str(value)[:60]!r}"
            a.report(Code.BAD_PARAM, path, text, f"choose from {list(pin.enum)}")
    if resolved.kind == "input":
        _check_default(a, resolved)


def _check_default(a: Analysis, resolved: ResolvedNode) -> None:
    for pin in resolved.output_pins.values():
        if pin.default is not None and not fits(pin.default, pin.type):
            text = f"{resolved.id}: {str(pin.default)[:60]!r} is not a {pin.type}"
            a.report(Code.BAD_PARAM, resolved.path, text, f"give a value of type {pin.type}")


def _check_inputs(a: Analysis, resolved: ResolvedNode) -> None:
    """A required pin without an edge is a run input, but only what can be given by value."""
    if resolved.kind == "adapter" and not a.into[resolved.id]:
        text = f"{resolved.id} has no edge to adapt"
        a.report(Code.MISSING_INPUT, resolved.path, text, "connect it, or take it away")
    for pin in a.unfed_pins(resolved):
        is_items = pin.name == resolved.node.for_each
        what = "`forEach` over it needs" if is_items else "a stream needs"
        if resolved.kind == "control":
            what = f"{resolved.node.type} needs"
        elif not is_items and not (pin.type is PinType.STREAM and is_needed(pin)):
            continue
        text = f"{resolved.id}.{pin.name} has no edge; {what} one"
        a.report(Code.MISSING_INPUT, resolved.path, text, "connect it to an output")


def _check_reach(a: Analysis) -> None:
    """With output nodes, whatever leads to none of them is computed for nobody."""
    outputs = [n for n in a.nodes.values() if n.kind == "output"]
    if not outputs:
        return
    reached = {n.id for n in outputs}
    waiting = list(reached)
    while waiting:
        before = {w.source.id for w in a.into[waiting.pop()]} - reached
        reached |= before
        waiting.extend(before)
    for node in a.nodes.values():
        lonely = node.kind == "output" and not a.into[node.id]
        if lonely or (node.id not in reached and not node.node.keep):
            what = "shows nothing" if lonely else "leads to no output node"
            hint = "connect it, take it away, or say `keep: true`"
            a.warn(Code.UNREACHABLE_NODE, node.path, f"{node.id} {what}", hint)
