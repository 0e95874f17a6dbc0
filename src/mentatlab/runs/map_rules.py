"""The rules of `forEach` nodes: the window, items that are prepared, what a failed item means.
Pure.

Answers about items are carried out in item order, so that every item up to the last one with an
event is in the log: a reader goes on after that one when the run is recovered.
"""

from mentatlab.flows.plan import PlanNode
from mentatlab.runs import events as ev
from mentatlab.runs.commands import FinishMap, Prepare
from mentatlab.runs.events import Fault
from mentatlab.runs.lookups import Place
from mentatlab.runs.signals import ItemsOffered, Prepared
from mentatlab.runs.starting import start
from mentatlab.runs.state import NodePhase, NodeState, Unit
from mentatlab.runs.turn import Turn


def offer(turn: Turn, signal: ItemsOffered) -> None:
    if not turn.is_present(signal.node, None, signal.attempt):
        return
    node = turn.node(signal.node)
    queue = (*node.offered, *(i for i in signal.items if i > node.last_item))
    turn.note(signal.node, offered=queue, closed=node.closed or signal.closed)


def advance(turn: Turn, place: Place) -> None:
    """Start what the window has room for; when all have ended, have the outputs gathered."""
    name = place.node.id
    while (node := turn.node(name)).offered and not turn.state.held:
        if len(node.items) >= place.node.max_parallel:
            return
        item = node.offered[0]
        turn.note(name, offered=node.offered[1:])
        if place.asks:
            _ask(turn, name, item)
        else:
            start(turn, name, item)
    if node.closed and not node.offered and not node.items and not node.collecting:
        turn.note(name, collecting=True)
        turn.commands.append(FinishMap(name, node.attempt))


def _ask(turn: Turn, name: str, item: int) -> None:
    node = turn.node(name)
    turn.note(name, items={**node.items, item: Unit(phase=NodePhase.READY)})
    turn.commands.append(Prepare(name, item, node.attempt, node.left_out))


def withdraw(turn: Turn, name: str) -> None:
    """Items that are being prepared wait again, to be asked about anew."""
    node = turn.node(name)
    ready = tuple(i for i, unit in node.items.items() if unit.phase is NodePhase.READY)
    if ready:
        items = {i: unit for i, unit in node.items.items() if i not in ready}
        turn.note(name, items=items, answers={}, offered=(*ready, *node.offered))


def answer(turn: Turn, signal: Prepared, item: int) -> None:
    """Carry out the answers that no earlier item has to be waited for."""
    node = turn.node(signal.node)
    unit = node.items.get(item)
    asked = unit is not None and unit.phase is NodePhase.READY
    if not asked or not turn.is_present(signal.node, None, signal.attempt):
        return
    turn.note(signal.node, answers={**node.answers, item: signal})
    while (told := _next_answer(turn.node(signal.node))) is not None:
        assert told.item is not None
        answers = turn.node(signal.node).answers
        rest = {i: other for i, other in answers.items() if i != told.item}
        turn.note(signal.node, answers=rest)
        _carry_out(turn, told, told.item)


def _next_answer(node: NodeState) -> Prepared | None:
    ready = (i for i, unit in node.items.items() if unit.phase is NodePhase.READY)
    return node.answers.get(min(ready, default=0))


def _carry_out(turn: Turn, told: Prepared, item: int) -> None:
    match told.verdict:
        case "skip":
            turn.emit(ev.NodeSkipped(at=turn.at, node=told.node, item=item, cause="when"))
        case "cached":
            outputs = dict(told.outputs)
            turn.emit(
                ev.NodeCached(
                    at=turn.at, node=told.node, item=item, origin=told.origin, outputs=outputs
                )
            )
        case "fail":
            assert told.error is not None
            event = ev.NodeFailed(at=turn.at, node=told.node, item=item, error=told.error)
            fail_item(turn, turn.place(told.node).node, event)
        case "run" | "take" | "ask":
            start(turn, told.node, item)


def fail_item(turn: Turn, node: PlanNode, event: ev.NodeFailed) -> None:
    assert event.item is not None
    turn.emit(event)
    failed = turn.node(node.id).failed.bit_count()
    if node.on_item_error == "fail_fast":
        turn.fail_node(node.id, _about_item(event.error, event.item))
    elif node.max_failed is not None and failed > node.max_failed:
        more = f"; {failed} items have failed"
        turn.fail_node(node.id, _about_item(event.error, event.item, more))


def _about_item(error: Fault, item: int, more: str = "") -> Fault:
    return Fault(error.code, f"item {item}: {error.message}{more}", error.hint, error.kind)
