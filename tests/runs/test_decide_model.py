"""A model check of `decide`: every small graph × every outcome × every order of events.

The world is what the shell may see: attempts under way, retries that are due, readers of `forEach`
sources, gathering of outputs, preparations, gates; and a few times, at any moment, a cancel, a
timeout, a pause, a crash or a failure of the shell. Checked in every state: no run is stuck,
nothing that has ended starts again, what has ended stays so, windows and pauses hold, and the log
alone gives the same state.

`MENTATLAB_MODEL=all` explores every graph of four nodes, else one in so many.
"""

import itertools
import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from mentatlab.flows.plan import Plan, PlanEdge, PlanNode, RetryPolicy
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.runs import commands as cmd
from mentatlab.runs import decide as d
from mentatlab.runs import events as ev
from mentatlab.runs import signals as sg
from mentatlab.runs.events import Fault
from mentatlab.runs.lookups import items_edge, lane_pins
from mentatlab.runs.state import GOOD, NodePhase, RunPhase, RunState, apply, durable, initial

TRANSIENT = Fault("AGENT_TRANSIENT", "again", kind="transient")
PERMANENT = Fault("AGENT_ERROR", "no")
CANCELLED = Fault("AGENT_CANCELLED", "stopped")
ITEMS = 2

Live = tuple[str, int | None, int]


@dataclass(frozen=True, slots=True)
class World:
    """`readers`: per map node (attempt, next item, closed told). `trouble`: how often the run may
    still be interrupted. `ended`: units that must not start again."""

    state: RunState
    live: frozenset[Live] = frozenset()
    due: frozenset[Live] = frozenset()
    active: frozenset[tuple[str, int]] = frozenset()
    readers: tuple[tuple[str, int, int, bool], ...] = ()
    finishing: frozenset[tuple[str, int]] = frozenset()
    asked: frozenset[Live] = frozenset()
    gates: frozenset[str] = frozenset()
    trouble: int = 0
    ended: frozenset[tuple[str, int | None]] = frozenset()


def node_of(name: str, feeds: dict[str, str], attempts: int = 2, **more: object) -> PlanNode:
    edges = tuple(edge_of(source, name, kind) for source, kind in feeds.items())
    for_each = next((e.target_pin for e in edges if e.kind == "items"), None)
    pins = tuple(
        Pin(f"from_{source}", PinType.JSON, required=kind != "optional")
        for source, kind in feeds.items()
    )
    outputs = (Pin("value", PinType.JSON), Pin("stream", PinType.STREAM))
    values: dict[str, object] = {"kind": "agent", "type": name, "when": None, **more}
    return PlanNode(
        id=name,
        inputs=edges,
        input_pins=pins,
        output_pins=outputs[:1] if for_each else outputs,
        for_each=for_each,
        retry=RetryPolicy(max_attempts=attempts),
        **values,  # pyright: ignore[reportArgumentType]
    )


def edge_of(source: str, target: str, kind: str) -> PlanEdge:
    stream = kind in ("stream", "items")
    pin = kind if kind in CHOSEN else "stream" if stream else "value"
    return PlanEdge(
        source=source,
        source_pin=pin,
        target=target,
        target_pin=f"from_{source}",
        kind="items" if kind in ("items", "list") else "stream" if stream else "value",
        source_is_list=kind == "list",
        item_type=PinType.JSON,
    )


def plan_of(nodes: list[PlanNode]) -> Plan:
    """A node whose outputs are chosen from is a control node; one with `approved`, a gate."""
    edges = [edge for node in nodes for edge in node.inputs]
    maps = {node.id for node in nodes if node.for_each}
    edges = [replace(e, source_pin="value") if e.source in maps else e for e in edges]
    chosen = {e.source: e.source_pin for e in edges if e.source_pin in CHOSEN}
    control: dict[str, object] = {"kind": "control", "output_pins": ()}
    linked = tuple(
        replace(
            node,
            inputs=tuple(e for e in edges if e.target == node.id),
            outputs=tuple(e for e in edges if e.source == node.id),
            **(
                control | {"type": "core.gate" if chosen[node.id] == "approved" else "core.if"}
                if node.id in chosen
                else {}
            ),  # pyright: ignore[reportArgumentType]
        )
        for node in nodes
    )
    return Plan(flow_id="f", digest="d", nodes=linked, inputs=(), outputs=())


def carry_out(plan: Plan, world: World, decision: d.Decision) -> World:
    """What a shell does with a decision, in the abstract; and what must hold of the decision."""
    ended = check_decision(plan, world, decision)
    live, due, readers = set(world.live), set(world.due), {r[0]: r for r in world.readers}
    finishing, asked, gates = set(world.finishing), set(world.asked), set(world.gates)
    for event in decision.events:
        if isinstance(event, ev.GateOpened):
            gates.add(event.node)
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
            case cmd.Prepare():
                asked.add((command.node, command.item, command.attempt))
            case _:
                pass
    return replace(
        world,
        state=decision.state,
        live=frozenset(live),
        due=frozenset(due),
        readers=tuple(sorted(readers.values())),
        finishing=frozenset(finishing),
        asked=frozenset(asked),
        gates=frozenset(gates),
        ended=frozenset(ended),
    )


UNIT_ENDS = (ev.NodeSucceeded, ev.NodeCached, ev.NodeSkipped)


def check_decision(plan: Plan, world: World, decision: d.Decision) -> set[tuple[str, int | None]]:
    """The units that have ended well."""
    before, after = world.state, decision.state
    check_replay(reduce(apply, decision.events, before), after)
    assert after.left == sum(not node.terminal for node in after.nodes.values())
    for name, node in before.nodes.items():
        assert not node.terminal or after.nodes[name].phase == node.phase
    if before.finished:
        assert not decision.events
        assert not decision.commands
    ended = set(world.ended)
    for event in decision.events:
        if isinstance(event, UNIT_ENDS):
            ended.add((event.node, event.item))
        elif isinstance(event, ev.ItemsVoided):
            ended = {x for x in ended if x[0] != event.node or (x[1] or 0) <= event.above}
    for command in decision.commands:
        if isinstance(command, cmd.StartNode | cmd.Prepare):
            assert (command.node, command.item) not in ended
            assert after.phase is not RunPhase.PAUSED
    for node in plan.nodes:
        assert len(after.nodes[node.id].items) <= node.max_parallel
    if after.finished:
        assert all(node.terminal for node in after.nodes.values())
    return ended


def check_replay(replayed: RunState, after: RunState) -> None:
    """Which checkpoints can still be used is told again after a recovery."""
    changed = [n for n, node in after.nodes.items() if replayed.nodes[n] is not node]
    pair = [
        durable(
            structs.replace(
                state,
                nodes={n: structs.replace(state.nodes[n], next_resume={}) for n in changed},
            )
        )
        for state in (replayed, after)
    ]
    assert pair[0] == pair[1]


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
    for unit in world.asked:
        yield from answers_to(plan, world, unit)
    for name in world.gates:
        left = replace(world, gates=world.gates - {name})
        yield left, sg.GateDecided(at=0, node=name, approved=True)
        yield left, sg.GateDecided(at=0, node=name, approved=False)
    if world.state.phase is RunPhase.PAUSED:
        yield world, sg.ResumeAsked(at=0)
    if world.trouble:
        yield from interruptions(world)


def answers_to(plan: Plan, world: World, unit: Live) -> Iterator[tuple[World, sg.Signal]]:
    name, item, attempt = unit
    left, node = replace(world, asked=world.asked - {unit}), plan.node(name)

    def told(verdict: sg.Verdict, **more: Any) -> tuple[World, sg.Signal]:
        signal = sg.Prepared(at=0, node=name, item=item, attempt=attempt, verdict=verdict, **more)
        return left, signal

    if node.type == "core.gate":
        yield told("ask")
    elif node.kind == "control":
        yield told("take", taken=("then",))
        yield told("take", taken=("else",))
        yield told("fail", error=PERMANENT)
    else:
        yield told("run")
        yield told("skip")
        yield told("cached", origin="rn")


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
    once = replace(world, trouble=world.trouble - 1)
    yield once, sg.EndAsked(at=0, reason="user_cancel")
    yield once, sg.EndAsked(at=0, reason="timeout")
    yield once, sg.PauseAsked(at=0)
    state = durable(world.state)
    waiting = (n for n, x in state.nodes.items() if x.phase is NodePhase.WAITING_APPROVAL)
    crashed = World(state=state, trouble=once.trouble, ended=world.ended, gates=frozenset(waiting))
    yield crashed, sg.Recovered(at=0)
    yield crashed, sg.Broken(at=0, error=PERMANENT)


def start(plan: Plan, *, trouble: int) -> World:
    state = apply(
        initial(tuple(n.id for n in plan.nodes)), ev.RunCreated(at=0, flow_id="f", digest="d")
    )
    world = World(state=state, trouble=trouble)
    return carry_out(plan, world, d.decide(plan, state, sg.Begin(at=0)))


def fingerprint(world: World) -> object:
    """Equal worlds have equal ones; the sets and tuples of `World` are compared as they are."""
    nodes = tuple(
        (
            (n.phase, n.attempt, n.failures, n.losses, n.stopping, n.left_out, n.taken),
            (n.succeeded, n.failed, n.skipped, n.last_item, n.offered, n.closed, n.collecting),
            tuple(sorted((i, u.phase, u.attempt, u.failures) for i, u in n.items.items())),
            tuple(sorted((i, told.verdict) for i, told in n.answers.items())),
        )
        for n in world.state.nodes.values()
    )
    state = (nodes, world.state.active, world.state.ending, world.state.phase)
    told = (world.active, world.readers, world.finishing, world.asked, world.gates)
    return state, world.live, world.due, told, world.trouble, world.ended


def explore(plan: Plan, *, trouble: int) -> tuple[set[str], int]:
    """Visit every reachable world once; the phases in which runs ended, and how many worlds."""
    todo = [start(plan, trouble=trouble)]
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
    return ends, len(seen)


KINDS = ("none", "value", "optional", "stream", "items", "list", "then", "else", "approved")
NAMES = "abcdef"


def graphs(size: int, kinds: tuple[str, ...] = KINDS) -> Iterator[tuple[str, ...]]:
    """Edge kinds for every pair of nodes in topological order: (a, b), (a, c), …"""
    pairs = list(itertools.combinations(range(size), 2))
    for found in itertools.product(kinds, repeat=len(pairs)):
        if is_flow(dict(zip(pairs, found, strict=True))):
            yield found


def is_flow(edges: dict[tuple[int, int], str]) -> bool:
    """A node has one `forEach` at most; outputs are chosen from or not, of a gate or of an if; a
    control node takes values."""
    maps = [target for (_, target), kind in edges.items() if kind in ("items", "list")]
    out: dict[int, set[str]] = {}
    for (source, _), kind in edges.items():
        out.setdefault(source, set()).add(FAMILY[kind])
    families = [found - {"none"} for found in out.values()]
    control = {source for source, found in out.items() if found & {"if", "gate"}}
    fed = {FAMILY[kind] for (_, target), kind in edges.items() if target in control}
    lists = {target for (_, target), kind in edges.items() if kind == "list"}
    return (
        len(maps) == len(set(maps))
        and all(len(found) <= 1 for found in families)
        and not any(
            kind in ("stream", "items", "list") and target in control
            for (_, target), kind in edges.items()
        )
        and bool(fed <= {"none", "plain", "if", "gate"})
        and not any(edges[e] in ("stream", "items") and e[0] in lists for e in edges)
    )


FAMILY = dict.fromkeys(KINDS, "plain") | {
    "none": "none",
    "approved": "gate",
    "then": "if",
    "else": "if",
}
CHOSEN = frozenset(("then", "else", "approved"))


def is_least(size: int, found: tuple[str, ...]) -> bool:
    """Of the graphs that differ only in names and hang together, one."""
    pairs = list(itertools.combinations(range(size), 2))
    edges = {p: kind for p, kind in zip(pairs, found, strict=True) if kind != "none"}
    if not hangs_together(size, edges):
        return False
    for order in itertools.permutations(range(size)):
        named = {(order[a], order[b]): kind for (a, b), kind in edges.items()}
        if all(a < b for a, b in named):
            other = tuple(named.get(pair, "none") for pair in pairs)
            if other < found:
                return False
    return True


def hangs_together(size: int, edges: Iterable[tuple[int, int]]) -> bool:
    groups = [{n} for n in range(size)]
    for a, b in edges:
        joined = {n for group in groups if group & {a, b} for n in group}
        groups = [group for group in groups if not group & joined] + [joined]
    return len(groups) == 1


def build(kinds: tuple[str, ...], size: int, attempts: int = 2, **more: object) -> Plan:
    feeds: dict[str, dict[str, str]] = {name: {} for name in NAMES[:size]}
    for (a, b), kind in zip(itertools.combinations(NAMES[:size], 2), kinds, strict=True):
        if kind != "none":
            feeds[b][a] = kind
    return plan_of([node_of(name, feeds[name], attempts, **more) for name in feeds])


@pytest.mark.parametrize("kinds", list(graphs(2)), ids="-".join)
def test_every_graph_of_two_with_every_interruption(kinds: tuple[str, ...]) -> None:
    ends, _ = explore(build(kinds, 2), trouble=1)
    assert {"succeeded", "failed", "cancelled"} <= ends


@pytest.mark.parametrize("policy", ["collect", "skip"])
@pytest.mark.parametrize("kind", ["items", "list"])
def test_every_order_of_a_map_whose_items_may_fail(kind: str, policy: str) -> None:
    ends, _ = explore(build((kind,), 2, attempts=1, on_item_error=policy), trouble=1)
    assert {"succeeded", "failed", "cancelled"} <= ends


@pytest.mark.parametrize("kinds", list(graphs(2)), ids="-".join)
def test_every_graph_of_two_whose_nodes_have_conditions(kinds: tuple[str, ...]) -> None:
    ends, _ = explore(build(kinds, 2, attempts=1, when="true"), trouble=1)
    assert {"succeeded", "failed", "cancelled"} <= ends


@pytest.mark.parametrize("kinds", list(graphs(2)), ids="-".join)
@pytest.mark.slow
def test_every_graph_of_two_with_two_interruptions(kinds: tuple[str, ...]) -> None:
    """A pause and a crash, a crash after a crash, …"""
    explore(build(kinds, 2, attempts=1), trouble=2)


THREE = [kinds for kinds in graphs(3) if is_least(3, kinds)]


@pytest.mark.parametrize("needs", ["all", "any"])
@pytest.mark.parametrize("part", range(8))
def test_every_graph_of_three(part: int, needs: str) -> None:
    for kinds in THREE[part :: 8 if needs == "all" else 40]:
        ends, _ = explore(build(kinds, 3, attempts=1, needs=needs), trouble=0)
        assert {"succeeded", "failed"} <= ends


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_every_graph_of_three_with_every_interruption(part: int) -> None:
    for kinds in THREE[part :: 8 if ALL else 24]:
        explore(build(kinds, 3, attempts=1), trouble=1)


FOUR_KINDS = ("none", "value", "optional", "stream", "items", "then", "else")
ALL = os.environ.get("MENTATLAB_MODEL") == "all"
STRIDE = 1 if ALL else 97


@pytest.mark.slow
def test_every_graph_of_four() -> None:
    found = (kinds for kinds in graphs(4, FOUR_KINDS) if is_least(4, kinds))
    for kinds in itertools.islice(found, 0, None, STRIDE):
        ends, _ = explore(build(kinds, 4, attempts=1, max_parallel=2), trouble=0)
        assert {"succeeded", "failed"} <= ends


@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=15, max_size=15),
    policy=st.sampled_from(["fail_fast", "collect", "skip"]),
    window=st.integers(1, 3),
    when=st.sampled_from([None, "true"]),
    needs=st.sampled_from(["all", "any", 2]),
    choices=st.randoms(use_true_random=False),
)
@settings(max_examples=200)
def test_any_walk_through_a_larger_graph_ends(
    kinds: list[str],
    policy: str,
    window: int,
    when: str | None,
    needs: str | int,
    choices: random.Random,
) -> None:
    edges: dict[tuple[int, int], str] = {}
    for pair, kind in zip(itertools.combinations(range(6), 2), kinds, strict=True):
        edges[pair] = kind if is_flow({**edges, pair: kind}) else "none"
    more: dict[str, Any] = {"on_item_error": policy, "max_parallel": window, "when": when}
    plan = build(tuple(edges.values()), 6, needs=needs, **more)
    world = start(plan, trouble=3)
    for _ in range(4000):
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
