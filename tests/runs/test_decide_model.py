"""A model check of `decide`: every small graph × every outcome × every order of events.

The world is what the shell may see: attempts under way, retries that are due, readers of `forEach`
sources, gathering of outputs; and once, at any moment, a cancel, a timeout, a crash or a failure of
the shell. Checked in every state: no run is stuck, nothing that succeeded starts again, what has
ended stays so, windows hold, and the log alone gives the same state.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mentatlab.flows.plan import Plan, PlanEdge, PlanNode, RetryPolicy
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.runs import commands as cmd
from mentatlab.runs import decide as d
from mentatlab.runs import events as ev
from mentatlab.runs import signals as sg
from mentatlab.runs.events import Fault
from mentatlab.runs.lookups import items_edge, lane_pins
from mentatlab.runs.state import GOOD, NodePhase, RunState, apply, durable, initial

TRANSIENT = Fault("AGENT_TRANSIENT", "again", kind="transient")
PERMANENT = Fault("AGENT_ERROR", "no")
CANCELLED = Fault("AGENT_CANCELLED", "stopped")
ITEMS = 2

Live = tuple[str, int | None, int]


@dataclass(frozen=True, slots=True)
class World:
    """`readers`: per map node (attempt, next item, closed told)."""

    state: RunState
    live: frozenset[Live] = frozenset()
    due: frozenset[Live] = frozenset()
    active: frozenset[tuple[str, int]] = frozenset()
    readers: tuple[tuple[str, int, int, bool], ...] = ()
    finishing: frozenset[tuple[str, int]] = frozenset()
    interrupted: bool = False
    succeeded: frozenset[tuple[str, int | None]] = frozenset()


def node_of(name: str, feeds: dict[str, str], attempts: int = 2, **more: object) -> PlanNode:
    edges = tuple(edge for source, kind in feeds.items() for edge in edge_of(source, name, kind))
    for_each = next((e.target_pin for e in edges if e.kind == "items"), None)
    pins = tuple(
        Pin(f"from_{source}", PinType.JSON, required=kind != "optional")
        for source, kind in feeds.items()
    )
    outputs = (Pin("value", PinType.JSON), Pin("stream", PinType.STREAM))
    return PlanNode(
        id=name,
        kind="agent",
        type=name,
        inputs=edges,
        input_pins=pins,
        output_pins=outputs[:1] if for_each else outputs,
        for_each=for_each,
        retry=RetryPolicy(max_attempts=attempts),
        **more,  # pyright: ignore[reportArgumentType]
    )


def edge_of(source: str, target: str, kind: str) -> Iterator[PlanEdge]:
    stream = kind in ("stream", "items")
    yield PlanEdge(
        source=source,
        source_pin="stream" if stream else "value",
        target=target,
        target_pin=f"from_{source}",
        kind="items" if kind in ("items", "list") else "stream" if stream else "value",
        source_is_list=kind == "list",
        item_type=PinType.JSON,
    )


def plan_of(nodes: list[PlanNode]) -> Plan:
    edges = [edge for node in nodes for edge in node.inputs]
    maps = {node.id for node in nodes if node.for_each}
    edges = [replace(e, source_pin="value") if e.source in maps else e for e in edges]
    linked = tuple(
        replace(
            node,
            inputs=tuple(e for e in edges if e.target == node.id),
            outputs=tuple(e for e in edges if e.source == node.id),
        )
        for node in nodes
    )
    return Plan(flow_id="f", digest="d", nodes=linked, inputs=(), outputs=())


def carry_out(plan: Plan, world: World, decision: d.Decision) -> World:
    """What a shell does with a decision, in the abstract; and what must hold of the decision."""
    check_decision(plan, world, decision)
    live, due, readers = set(world.live), set(world.due), {r[0]: r for r in world.readers}
    finishing, succeeded = set(world.finishing), set(world.succeeded)
    for event in decision.events:
        match event:
            case ev.NodeSucceeded():
                succeeded.add((event.node, event.item))
            case ev.ItemsVoided():
                succeeded -= {
                    (n, i) for n, i in succeeded if n == event.node and (i or 0) > event.above
                }
            case _:
                pass
    for command in decision.commands:
        match command:
            case cmd.StartNode():
                live.add((command.node, command.item, command.attempt))
            case cmd.ScheduleRetry():
                due.add((command.node, command.item, command.attempt))
            case cmd.ReadItems():
                readers[command.node] = (command.node, command.attempt, command.after + 1, False)
            case cmd.FinishMap():
                finishing.add((command.node, command.attempt))
            case _:
                pass
    return replace(
        world,
        state=decision.state,
        live=frozenset(live),
        due=frozenset(due),
        readers=tuple(sorted(readers.values())),
        finishing=frozenset(finishing),
        succeeded=frozenset(succeeded),
    )


def check_decision(plan: Plan, world: World, decision: d.Decision) -> None:
    before, after = world.state, decision.state
    replayed = reduce(apply, decision.events, before)
    assert {n: s.phase for n, s in replayed.nodes.items()} == {
        n: s.phase for n, s in after.nodes.items()
    }
    assert replayed.phase == after.phase
    for name, node in before.nodes.items():
        assert not node.terminal or after.nodes[name].phase == node.phase
    if before.finished:
        assert not decision.events
        assert not decision.commands
    succeeded = world.succeeded | {
        (e.node, e.item) for e in decision.events if isinstance(e, ev.NodeSucceeded)
    }
    for event in decision.events:
        if isinstance(event, ev.ItemsVoided):
            succeeded = {x for x in succeeded if x[0] != event.node or (x[1] or 0) <= event.above}
    for command in decision.commands:
        if isinstance(command, cmd.StartNode):
            assert (command.node, command.item) not in succeeded
    for node in plan.nodes:
        assert len(after.nodes[node.id].items) <= node.max_parallel
    if after.finished:
        assert all(node.terminal for node in after.nodes.values())


def moves(plan: Plan, world: World) -> Iterator[tuple[World, sg.Signal]]:
    """Everything that may happen next."""
    for unit in world.live:
        yield from ends_of(world, unit)
        name, item, attempt = unit
        if item is None and (name, attempt) not in world.active:
            pins = lane_pins(plan.node(name))
            there = replace(world, active=world.active | {(name, attempt)})
            for pin in pins:
                yield there, sg.LaneActive(at=0, node=name, pin=pin, attempt=attempt)
    for unit in world.due:
        consumed = {n.id: {e.target_pin: 1 for e in n.inputs} for n in plan.nodes}
        left = replace(world, due=world.due - {unit})
        for read in (consumed, {}):
            name, item, attempt = unit
            yield left, sg.RetryDue(at=0, node=name, item=item, attempt=attempt, consumed=read)
    for reader in world.readers:
        yield from reads_of(plan, world, reader)
    for name, attempt in world.finishing:
        left = replace(world, finishing=world.finishing - {(name, attempt)})
        yield left, sg.AttemptEnded(at=0, node=name, attempt=attempt)
    if not world.interrupted:
        yield from interruptions(world)


def ends_of(world: World, unit: Live) -> Iterator[tuple[World, sg.Signal]]:
    name, item, attempt = unit
    left = replace(world, live=world.live - {unit})
    errors = (None, TRANSIENT, PERMANENT) if world.state.ending is None else (None, CANCELLED)
    for error in errors:
        yield left, sg.AttemptEnded(at=0, node=name, item=item, attempt=attempt, error=error)


def reads_of(
    plan: Plan, world: World, reader: tuple[str, int, int, bool]
) -> Iterator[tuple[World, sg.Signal]]:
    name, attempt, index, closed = reader
    edge = items_edge(plan.node(name))
    assert edge is not None
    over = world.state.nodes[edge.source].phase in GOOD
    rest = tuple(r for r in world.readers if r != reader)
    if index <= ITEMS and (over or (edge.source, edge.source_pin) in world.state.active):
        further = replace(world, readers=tuple(sorted((*rest, (name, attempt, index + 1, closed)))))
        yield further, sg.ItemsOffered(at=0, node=name, attempt=attempt, items=(index,))
    if over and not closed and index > ITEMS:
        told = replace(world, readers=tuple(sorted((*rest, (name, attempt, index, True)))))
        yield told, sg.ItemsOffered(at=0, node=name, attempt=attempt, closed=True)


def interruptions(world: World) -> Iterator[tuple[World, sg.Signal]]:
    once = replace(world, interrupted=True)
    yield once, sg.EndAsked(at=0, reason="user_cancel")
    yield once, sg.EndAsked(at=0, reason="timeout")
    state = durable(world.state)
    crashed = World(state=state, interrupted=True, succeeded=world.succeeded)
    yield crashed, sg.Recovered(at=0)
    yield crashed, sg.Broken(at=0, error=PERMANENT)


def start(plan: Plan, *, interrupted: bool) -> World:
    state = apply(
        initial(tuple(n.id for n in plan.nodes)), ev.RunCreated(at=0, flow_id="f", digest="d")
    )
    world = World(state=state, interrupted=interrupted)
    return carry_out(plan, world, d.decide(plan, state, sg.Begin(at=0)))


def fingerprint(world: World) -> object:
    """Equal worlds have equal ones; the sets and tuples of `World` are compared as they are."""
    nodes = tuple(
        (
            (n.phase, n.attempt, n.failures, n.losses),
            (n.succeeded, n.failed, n.last_item, n.offered, n.closed, n.collecting),
            tuple(sorted((i, u.phase, u.attempt, u.failures) for i, u in n.items.items())),
        )
        for n in world.state.nodes.values()
    )
    state = (nodes, world.state.active, world.state.ending, world.state.phase)
    told = (world.active, world.readers, world.finishing, world.interrupted, world.succeeded)
    return state, world.live, world.due, told


def explore(plan: Plan, *, interrupted: bool) -> set[str]:
    """Visit every reachable world once; the phases in which runs ended."""
    todo = [start(plan, interrupted=interrupted)]
    seen: set[object] = set()
    ends: set[str] = set()
    while todo:
        world = todo.pop()
        key = fingerprint(world)
        if key in seen:
            continue
        seen.add(key)
        if world.state.finished:
            ends.add(world.state.phase)
            continue
        following = [
            carry_out(plan, left, d.decide(plan, left.state, signal))
            for left, signal in moves(plan, world)
        ]
        assert following, f"stuck: {world}"
        todo += following
    return ends


KINDS = ("none", "value", "optional", "stream", "items", "list")


def graphs(size: int) -> Iterator[tuple[str, ...]]:
    """Edge kinds for every pair (a→b, a→c, b→c); a node has one `forEach` at most."""
    pairs = list(itertools.combinations("abc"[:size], 2))
    for kinds in itertools.product(KINDS, repeat=len(pairs)):
        maps = [target for (_, target), kind in zip(pairs, kinds, strict=True) if kind[0] in "il"]
        if len(maps) == len(set(maps)):
            yield kinds


def build(kinds: tuple[str, ...], size: int, attempts: int = 2, **more: object) -> Plan:
    pairs = list(itertools.combinations("abc"[:size], 2))
    feeds: dict[str, dict[str, str]] = {name: {} for name in "abc"[:size]}
    for (source, target), kind in zip(pairs, kinds, strict=True):
        if kind != "none":
            feeds[target][source] = kind
    return plan_of([node_of(name, feeds[name], attempts, **more) for name in feeds])


@pytest.mark.parametrize("policy", ["fail_fast", "collect", "skip"])
@pytest.mark.parametrize("kinds", list(graphs(2)), ids="-".join)
def test_every_graph_of_two_with_every_interruption(kinds: tuple[str, ...], policy: str) -> None:
    plan = build(kinds, 2, on_item_error=policy)
    ends = explore(plan, interrupted=False)
    assert {"succeeded", "failed", "cancelled"} <= ends


@pytest.mark.parametrize("kinds", list(graphs(3)), ids="-".join)
def test_every_graph_of_three_without_retries(kinds: tuple[str, ...]) -> None:
    plan = build(kinds, 3, attempts=1)
    assert {"succeeded", "failed"} <= explore(plan, interrupted=True)


@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=10, max_size=10),
    policy=st.sampled_from(["fail_fast", "collect", "skip"]),
    window=st.integers(1, 3),
    choices=st.randoms(use_true_random=False),
)
@settings(max_examples=300)
def test_any_walk_through_a_larger_graph_ends(
    kinds: list[str], policy: str, window: int, choices: random.Random
) -> None:
    names = "abcde"
    feeds: dict[str, dict[str, str]] = {name: {} for name in names}
    for (source, target), kind in zip(itertools.combinations(names, 2), kinds, strict=True):
        if kind in ("items", "list") and {"items", "list"} & set(feeds[target].values()):
            kind = "value"
        if kind != "none":
            feeds[target][source] = kind
    more = {"on_item_error": policy, "max_parallel": window}
    plan = plan_of([node_of(name, feeds[name], **more) for name in names])
    world = start(plan, interrupted=False)
    for _ in range(2000):
        if world.state.finished:
            return
        left, signal = choices.choice(list(moves(plan, world)))
        world = carry_out(plan, left, d.decide(plan, left.state, signal))
    raise AssertionError("the run goes on and on")


def test_an_output_node_waits_for_the_end_of_the_stream_that_it_shows() -> None:
    shown = replace(node_of("b", {"a": "stream"}), kind="output", output_pins=())
    plan = plan_of([node_of("a", {}), shown])
    state = d.decide(plan, initial(("a", "b")), sg.Begin(at=0.0)).state
    state = d.decide(plan, state, sg.LaneActive(at=1.0, node="a", pin="stream", attempt=1)).state
    assert state.nodes["b"].phase is NodePhase.PENDING
    failed = sg.AttemptEnded(at=2.0, node="a", attempt=1, error=PERMANENT)
    state = d.decide(plan, state, failed).state
    assert state.nodes["b"].phase is NodePhase.UPSTREAM_FAILED
    assert state.phase == "failed"
