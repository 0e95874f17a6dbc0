"""How much one flow may ask for: refused before anything starts."""

import msgspec

from mentatlab.flows.analysis import Analysis, into
from mentatlab.flows.builtins import SUBFLOW
from mentatlab.flows.document import pointer
from mentatlab.flows.flow import Node
from mentatlab.flows.subflows import MAX_NODES, Flat
from mentatlab.protocol.errors import Code

MAX_EDGES = 10_000
MAX_PARALLEL = 1_000
MAX_TIMEOUT_S = 30 * 86_400.0
MAX_PARAMS_BYTES = 256 * 1024


def check_limits(a: Analysis, flat: Flat) -> bool:
    """False when there are too many nodes or edges to look at one by one."""
    graph = pointer("graph")
    small = True
    for what, count, limit in (
        ("nodes", len(flat.nodes), MAX_NODES),
        ("edges", len(flat.edges), MAX_EDGES),
    ):
        if count > limit:
            text = f"the flow has {count} {what}, over {limit}"
            a.report(Code.FLOW_LIMIT, into(graph, what), text, "use `forEach`, or split the flow")
            small = False
    _check_timeout(a, pointer("runConfig", "timeoutSeconds"), a.flow.run_config.timeout_seconds)
    for node in flat.nodes:
        _check_node(a, node.id, node.node, node.path)
    for index, node in enumerate(a.flow.graph.nodes):
        if node.type == SUBFLOW:
            _check_params(a, node.id, node, pointer("graph", "nodes", index))
    return small


def _check_node(a: Analysis, name: str, node: Node, path: str) -> None:
    if node.max_parallel > MAX_PARALLEL:
        text = f"{name}: `maxParallel` is {node.max_parallel}, over {MAX_PARALLEL}"
        a.report(Code.FLOW_LIMIT, into(path, "maxParallel"), text, "lower it")
    for field in ("start_s", "attempt_s", "total_s", "heartbeat_s"):
        if field in node.timeouts.model_fields_set:
            _check_timeout(a, into(path, "timeouts", field), getattr(node.timeouts, field))
    _check_params(a, name, node, path)


def _check_timeout(a: Analysis, path: str, seconds: float | None) -> None:
    if seconds is not None and seconds > MAX_TIMEOUT_S:
        text = f"{seconds:g} s are over {MAX_TIMEOUT_S:g} s (30 days)"
        a.report(Code.FLOW_LIMIT, path, text, "lower it")


def _check_params(a: Analysis, name: str, node: Node, path: str) -> None:
    """A sub-flow's document is no parameter: its nodes are counted."""
    own = {k: v for k, v in node.params.items() if k != "flow" or node.type != SUBFLOW}
    if own and (size := len(msgspec.json.encode(own))) > MAX_PARAMS_BYTES:
        text = f"{name}: `params` take {size} bytes, over {MAX_PARAMS_BYTES}"
        hint = "store the value and give its reference, or make it an input of the run"
        a.report(Code.FLOW_LIMIT, into(path, "params"), text, hint)
