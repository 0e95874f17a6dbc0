"""Starts of attempts, and what a start makes void: records that later attempts take back, and with
them the attempts of consumers that have read them. Pure.
"""

from collections.abc import Mapping

from mentatlab.runs import events as ev
from mentatlab.runs.commands import CancelNode, OpenStream, Prepare, ReadItems, StartNode
from mentatlab.runs.lookups import Place, reads_lane
from mentatlab.runs.state import NodePhase, NodeState, Unit
from mentatlab.runs.turn import Turn

_NOTHING = -1
"""A lane's head when not even having read nothing of it is safe."""

Consumed = Mapping[str, Mapping[str, int]]


def ask(turn: Turn, name: str, left_out: tuple[str, ...]) -> None:
    """Have the shell prepare a node before it starts."""
    turn.note(name, phase=NodePhase.READY, left_out=left_out)
    turn.commands.append(Prepare(name, None, 0, left_out))


def begin(turn: Turn, place: Place, left_out: tuple[str, ...]) -> None:
    """A node's first start. Nodes of a flow's edge end as they start."""
    node = place.node
    if node.kind != "agent":
        turn.emit(ev.NodeSucceeded(at=turn.at, node=node.id))
    elif node.for_each is not None:
        turn.emit(ev.NodeStarted(at=turn.at, node=node.id, attempt=1, left_out=left_out))
        turn.commands.append(ReadItems(node.id, 1, 0))
    else:
        start(turn, node.id, None, left_out=left_out)


def start(
    turn: Turn,
    name: str,
    item: int | None,
    consumed: Consumed | None = None,
    *,
    left_out: tuple[str, ...] = (),
) -> None:
    """A new attempt. What does not stand in its lanes is void for its consumers too."""
    unit = turn.state.unit(name, item) or Unit()
    attempt = unit.attempt + 1
    heads = _heads(turn.place(name), unit) if attempt > 1 and item is None else {}
    event = ev.NodeStarted(
        at=turn.at,
        node=name,
        item=item,
        attempt=attempt,
        resume_from=heads,
        left_out=left_out if item is None else (),
    )
    turn.emit(event)
    turn.commands += [OpenStream(name, pin, attempt, head) for pin, head in heads.items()]
    turn.commands.append(StartNode(name, item, attempt, turn.node(name).left_out, unit.ooms))
    if heads:
        _void_consumers(turn, name, heads, consumed or {})


def _heads(place: Place, unit: Unit) -> dict[str, int]:
    assert isinstance(unit, NodeState)
    return {pin: unit.next_resume.get(pin, 0) for pin in place.lanes}


def _void_consumers(turn: Turn, name: str, heads: Mapping[str, int], consumed: Consumed) -> None:
    """Restart, transitively, those who were given records that no longer stand."""
    for edge in turn.place(name).node.outputs:
        if edge.source_pin not in heads or not reads_lane(edge):
            continue
        target, head = turn.node(edge.target), heads[edge.source_pin]
        if edge.target_pin in target.left_out:
            continue
        void = consumed.get(edge.target, {}).get(edge.target_pin, 0) > head
        if target.phase is NodePhase.RETRY_WAIT and void:  # its checkpoint is of no use
            turn.note(edge.target, next_resume={})
        if target.phase is not NodePhase.RUNNING:
            continue
        if turn.place(edge.target).node.for_each is not None:
            # of another stream that its items read too, any of them may have had anything
            kept = head if edge.kind == "items" else 0
            _void_items(turn, edge.target, target, kept, consumed)
        elif void:
            turn.commands.append(
                CancelNode(edge.target, None, target.attempt, "upstream_restarted")
            )
            start(turn, edge.target, None, consumed, left_out=target.left_out)


def _void_items(turn: Turn, name: str, node: NodeState, head: int, consumed: Consumed) -> None:
    attempt, above = node.attempt + 1, max(head, 0)
    turn.commands += [
        CancelNode(name, item, unit.attempt, "upstream_restarted")
        for item, unit in node.items.items()
        if item > above and unit.phase is not NodePhase.READY
    ]
    turn.emit(ev.ItemsVoided(at=turn.at, node=name, attempt=attempt, above=above))
    pins = turn.place(name).lanes
    turn.commands += [OpenStream(name, pin, attempt, item=above) for pin in pins]
    turn.commands.append(ReadItems(name, attempt, min(above, node.last_item)))
    # Where the kept items end in its own lanes is not known here: whoever reads them begins again.
    _void_consumers(turn, name, dict.fromkeys(pins, _NOTHING), consumed)
