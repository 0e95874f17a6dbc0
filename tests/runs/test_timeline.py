"""When everything happened, told from a plan and a log by hand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.flows.plan import Plan, PlanEdge, PlanNode
from mentatlab.protocol.pins import Pin, PinMetadata, PinType
from mentatlab.runs import events as ev
from mentatlab.runs.timeline import FIRST_ITEMS, ItemPage, LaneTimes, NodeTimes, Timeline, timeline

LINES = Pin("lines", PinType.STREAM, metadata=PinMetadata(items=PinType.STRING))
TEXT = Pin("text", PinType.STRING)
FAULT = ev.Fault("AGENT_ERROR", "it broke", "look at it", "transient")


def edge(source: str, target: str, **more: Any) -> PlanEdge:
    stream = more.get("kind") != "value"
    pin = ("lines", "lines") if stream else ("text", "text")
    fields = {"kind": "stream", "item_type": PinType.STRING, **more}
    return PlanEdge(source=source, source_pin=pin[0], target=target, target_pin=pin[1], **fields)


def plan_of(*nodes: PlanNode) -> Plan:
    return Plan(flow_id="t.times", digest="d", nodes=nodes, inputs=(), outputs=())


def agent(name: str, *inputs: PlanEdge, pin: Pin = TEXT, **more: Any) -> PlanNode:
    return PlanNode(
        id=name, kind="agent", type=f"test.{name}", inputs=inputs, output_pins=(pin,), **more
    )


MAKE = agent("make", pin=LINES)
READ = agent("read", edge("make", "read"))
LAST = agent("last", edge("read", "last", kind="value"))
CHAIN = plan_of(MAKE, READ, LAST)
BEGUN = [ev.RunCreated(at=1.0, flow_id="t.times", digest="d"), ev.RunStarted(at=3.0)]


def told(
    plan: Plan,
    *facts: ev.RunFact,
    at: float = 100.0,
    page: ItemPage = FIRST_ITEMS,
    **lanes: LaneTimes,
) -> Timeline:
    times = {(node, "lines"): lane for node, lane in lanes.items()}
    return timeline("rn_1", plan, [*BEGUN, *facts], lanes=times, at=at, page=page)


def node(found: Timeline, name: str) -> NodeTimes:
    return next(n for n in found.nodes if n.node_id == name)


def test_a_node_that_streams_and_one_that_reads_along():
    lane = LaneTimes(
        pin="lines", stream_id="st_1", state="ended", chunks=3, first_chunk_at=5.0, ended_at=9.0
    )
    found = told(
        CHAIN,
        ev.NodeStarted(at=3.5, node="make", attempt=1),
        ev.NodeStarted(at=6.0, node="read", attempt=1),
        ev.NodeSucceeded(at=9.0, node="make", attempt=1),
        ev.NodeSucceeded(at=11.0, node="read", attempt=1),
        ev.NodeStarted(at=11.25, node="last", attempt=1),
        ev.NodeSucceeded(at=12.0, node="last", attempt=1),
        ev.RunFinished(at=12.5, state="succeeded"),
        make=lane,
    )
    assert (found.state, found.queued_s, found.run_s, found.at) == ("succeeded", 2.0, 9.5, 12.5)
    make, read, last = found.nodes
    assert (make.ready_at, make.queued_s, make.run_s) == (3.0, 0.5, 5.5)
    assert (make.first_chunk_at, make.stream_s) == (5.0, 4.0)
    assert (read.ready_at, read.queued_s, read.run_s) == (5.0, 1.0, 5.0)  # at the first chunk
    assert (last.ready_at, last.queued_s, last.run_s) == (11.0, 0.25, 0.75)
    assert last.stream_s is None


def test_attempts_their_errors_and_the_waits_between():
    facts = [
        ev.NodeStarted(at=4.0, node="make", attempt=1),
        ev.RetryScheduled(
            at=5.0, node="make", attempt=1, error=FAULT, cause="failure", retry_at=7.0
        ),
        ev.NodeStarted(at=7.5, node="make", attempt=2),
        ev.NodeFailed(at=8.0, node="make", attempt=2, error=FAULT),
        ev.NodeUpstreamFailed(at=8.0, node="read", upstream="make"),
    ]
    waiting = node(told(CHAIN, *facts[:2], at=6.0), "make")
    assert (waiting.state, waiting.run_s, waiting.waited_s) == ("retry_wait", 1.0, 1.0)
    make, read, _ = told(CHAIN, *facts).nodes
    first, second = make.attempts
    assert (first.outcome, first.ended_at, first.retry_at) == ("retried", 5.0, 7.0)
    assert first.error is not None
    assert (first.error.code, first.error.hint) == ("AGENT_ERROR", "look at it")
    assert (second.outcome, second.started_at, second.ended_at) == ("failed", 7.5, 8.0)
    assert (make.run_s, make.waited_s, make.state) == (1.5, 2.5, "failed")
    assert (read.state, read.started_at, read.ready_at) == ("upstream_failed", None, 8.0)


def test_what_still_runs_is_measured_up_to_now():
    found = told(CHAIN, ev.NodeStarted(at=4.0, node="make", attempt=1), at=10.0)
    make, read, _ = found.nodes
    assert (make.state, make.run_s, make.ended_at) == ("running", 6.0, None)
    assert (read.state, read.ready_at, read.queued_s) == ("pending", None, None)
    assert (found.at, found.run_s) == (10.0, 7.0)


def test_an_attempt_that_is_begun_again_or_overtaken():
    found = told(
        CHAIN,
        ev.NodeStarted(at=4.0, node="make", attempt=1),
        ev.NodeStarted(at=6.0, node="make", attempt=2),
        ev.RunEnding(at=7.0, reason="user_cancel"),
        ev.RunFinished(at=8.0, state="cancelled", reason="user_cancel"),
    )
    first, second = node(found, "make").attempts
    assert (first.outcome, first.ended_at) == ("restarted", 6.0)
    assert (second.outcome, second.ended_at) == ("overtaken", 8.0)


@pytest.mark.parametrize(
    ("event", "state"),
    [
        (ev.NodeSkipped(at=4.0, node="read", cause="when"), "skipped"),
        (ev.NodeCached(at=4.0, node="read", origin="rn_0"), "cached"),
        (ev.NodeCancelled(at=4.0, node="read"), "cancelled"),
    ],
)
def test_nodes_that_end_without_an_attempt(event: ev.RunFact, state: str):
    read = node(told(CHAIN, event), "read")
    assert (read.state, read.ended_at, read.attempts, read.run_s) == (state, 4.0, (), 0)
    assert read.skipped_by == ("when" if state == "skipped" else None)
    assert read.cached_from == ("rn_0" if state == "cached" else None)


def test_pauses_and_gates():
    gate = PlanNode(id="gate", kind="control", type="core.gate")
    facts = [
        ev.GateOpened(at=4.0, node="gate", message="Ship it?", until=60.0),
        ev.RunPaused(at=5.0),
    ]
    open_ = told(plan_of(gate), *facts)
    assert open_.state == "paused"
    assert [(p.paused_at, p.resumed_at) for p in open_.pauses] == [(5.0, None)]
    waiting = open_.nodes[0].gate
    assert waiting is not None
    assert (waiting.message, waiting.until, waiting.approved) == ("Ship it?", 60.0, None)
    assert open_.nodes[0].state == "waiting_approval"
    closed = told(
        plan_of(gate),
        *facts,
        ev.RunResumed(at=6.0),
        ev.GateClosed(at=9.0, node="gate", approved=True, by="key_1", comment="fine"),
        ev.NodeSucceeded(at=9.0, node="gate", taken=("approved",)),
    )
    assert [(p.paused_at, p.resumed_at) for p in closed.pauses] == [(5.0, 6.0)]
    decided = closed.nodes[0].gate
    assert decided is not None
    assert (decided.approved, decided.by, decided.closed_at) == (True, "key_1", 9.0)
    assert (closed.nodes[0].state, closed.state) == ("succeeded", "running")


EACH = plan_of(MAKE, agent("each", edge("make", "each", kind="items"), for_each="lines"))


def item(number: int, start: float, end: float) -> list[ev.RunFact]:
    return [
        ev.NodeStarted(at=start, node="each", item=number, attempt=1),
        ev.NodeSucceeded(at=end, node="each", item=number, attempt=1),
    ]


def test_items_their_spread_and_their_pages():
    facts = [fact for n in range(1, 6) for fact in item(n, 10.0 * n, 10.0 * n + n)]
    found = node(told(EACH, *facts, page=ItemPage(after=1, limit=3)), "each")
    assert [(i.item, i.run_s) for i in found.items] == [(2, 2.0), (3, 3.0), (4, 4.0)]
    assert found.more_items
    assert found.spread is not None
    assert found.spread.states == {"succeeded": 5}
    assert found.spread.run_s == {"min": 1.0, "p50": 3.0, "p95": 5.0, "max": 5.0, "mean": 3.0}
    rest = node(told(EACH, *facts, page=ItemPage(node="each", after=4)), "each")
    assert [i.item for i in rest.items] == [5]
    assert not rest.more_items
    assert node(told(EACH, *facts, page=ItemPage(node="make")), "each").items == ()


def test_items_that_a_new_source_voids_are_gone():
    facts = [*item(1, 10.0, 11.0), *item(2, 10.0, 12.0)]
    voided = ev.ItemsVoided(at=13.0, node="each", attempt=2, above=1)
    found = node(told(EACH, *facts, voided), "each")
    assert [i.item for i in found.items] == [1]
    assert found.attempts[-1].attempt == 2


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=30))
def test_run_and_wait_fill_the_time_from_first_start_to_end(pieces: list[float]):
    """Attempts and waits alternate without a hole."""
    facts: list[ev.RunFact] = []
    at = 3.0
    for number, length in enumerate(pieces):
        if number % 2 == 0:
            facts.append(ev.NodeStarted(at=at, node="make", attempt=number // 2 + 1))
        else:
            facts.append(
                ev.RetryScheduled(at=at, node="make", error=FAULT, cause="failure", retry_at=at)
            )
        at += length
    facts.append(ev.NodeFailed(at=at, node="make", error=FAULT))
    make = node(told(CHAIN, *facts), "make")
    assert make.started_at == 3.0
    assert make.run_s + make.waited_s == pytest.approx(at - 3.0)
    assert len(make.attempts) == (len(pieces) + 1) // 2
