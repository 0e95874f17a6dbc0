"""`decide` by tables: retries and their times, ends, maps, restarts of consumers, recovery."""

from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from mentatlab.flows.plan import Plan, PlanEdge, PlanNode, RetryPolicy, Timeouts
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.runs import commands as cmd
from mentatlab.runs import decide as d
from mentatlab.runs import events as ev
from mentatlab.runs import signals as sg
from mentatlab.runs.decide import decide
from mentatlab.runs.events import Fault
from mentatlab.runs.lanes import Standing, stream_id
from mentatlab.runs.retries import LOST_ATTEMPTS
from mentatlab.runs.state import NodePhase, RunPhase, RunState, apply, initial, with_node

PINS = (Pin("value", PinType.JSON), Pin("stream", PinType.STREAM))


def node(name: str, *inputs: PlanEdge, **more: Any) -> PlanNode:
    for_each = next((e.target_pin for e in inputs if e.kind == "items"), None)
    outputs = PINS[:1] if for_each else PINS
    values: dict[str, Any] = {"kind": "agent", "output_pins": outputs, "for_each": for_each}
    return PlanNode(id=name, type=name, inputs=inputs, **{**values, **more})


def edge(source: str, target: str, kind: Any, pin: str = "", **more: Any) -> PlanEdge:
    source_pin = pin or ("value" if kind == "value" else "stream")
    return PlanEdge(
        source=source,
        source_pin=source_pin,
        target=target,
        target_pin="in",
        kind=kind,
        item_type=PinType.JSON,
        **more,
    )


def plan(*nodes: PlanNode, **more: Any) -> Plan:
    edges = [e for n in nodes for e in n.inputs]
    linked = tuple(replace(n, outputs=tuple(e for e in edges if e.source == n.id)) for n in nodes)
    values: dict[str, Any] = {"inputs": (), "outputs": ()}
    return Plan(flow_id="f", digest="d", nodes=linked, **{**values, **more})


def begun(p: Plan, at: float = 0.0) -> RunState:
    created = ev.RunCreated(at=at, flow_id="f", digest="d")
    state = apply(initial(tuple(n.id for n in p.nodes)), created)
    return decide(p, state, sg.Begin(at=at)).state


def told(p: Plan, state: RunState, *signals: sg.Signal) -> d.Decision:
    """The last signal's decision, after all before it."""
    decision = d.Decision(state, (), ())
    for signal in signals:
        decision = decide(p, decision.state, signal)
    return decision


def failed(kind: Any, **more: Any) -> sg.AttemptEnded:
    values: dict[str, Any] = {"at": 100.0, "node": "a", "attempt": 1, "jitter": 0.5}
    error = Fault(more.pop("code", "AGENT_ERROR"), "no", kind=kind)
    return sg.AttemptEnded(error=error, **{**values, **more})


def succeeded(name: str, attempt: int = 1, item: int | None = None) -> sg.AttemptEnded:
    return sg.AttemptEnded(at=1.0, node=name, attempt=attempt, item=item)


def names(events: tuple[ev.RunFact, ...]) -> list[str]:
    return [ev.name_of(e) for e in events]


# -- retries


@pytest.mark.parametrize(
    ("kind", "policy", "attempts"),
    [
        ("permanent", 5, 1),
        ("transient", 3, 3),
        ("transient", 1, 1),
        ("timeout", 2, 2),
        ("infra", 1, 3),
        ("infra", 5, 5),
        ("oom", 5, 2),
        ("oom", 1, 1),
    ],
)
def test_each_class_has_its_number_of_attempts(kind: str, policy: int, attempts: int) -> None:
    p = plan(node("a", retry=RetryPolicy(max_attempts=policy)))
    state = begun(p)
    for attempt in range(1, attempts):
        decision = told(p, state, failed(kind, attempt=attempt))
        assert names(decision.events) == ["retry_scheduled"]
        state = told(p, decision.state, sg.RetryDue(at=200.0, node="a", attempt=attempt)).state
        assert state.nodes["a"].attempt == attempt + 1
    decision = told(p, state, failed(kind, attempt=attempts))
    assert names(decision.events) == ["node_failed", "run_finished"]


@pytest.mark.parametrize(
    ("failures", "jitter", "waits"),
    [(0, 1.0, 2.0), (0, 0.25, 0.5), (1, 1.0, 4.0), (3, 1.0, 16.0), (8, 1.0, 60.0), (2, 0.0, 0.0)],
)
def test_the_wait_is_exponential_with_full_jitter(
    failures: int, jitter: float, waits: float
) -> None:
    p = plan(node("a", retry=RetryPolicy(max_attempts=99)))
    state = begun(p)
    state = with_node(state, "a", structs.replace(state.nodes["a"], failures=failures))
    decision = told(p, state, failed("transient", jitter=jitter))
    assert decision.commands == (cmd.ScheduleRetry("a", None, 1, 100.0 + waits),)


def test_no_retry_starts_after_the_total_time() -> None:
    p = plan(node("a", timeouts=Timeouts(total_s=101.0)))
    state = begun(p, at=1.0)
    assert told(p, state, failed("transient", jitter=0.4)).state.nodes["a"].retry_at == 100.8
    assert names(told(p, state, failed("transient", jitter=1.0)).events)[0] == "node_failed"


def test_late_messages_of_an_old_attempt_are_dropped() -> None:
    p = plan(node("a"))
    state = told(p, begun(p), failed("transient"), sg.RetryDue(at=1.0, node="a", attempt=1)).state
    for late in (
        succeeded("a", attempt=1),
        sg.RetryDue(at=1.0, node="a", attempt=1),
        sg.LaneActive(at=1.0, node="a", pin="stream", attempt=1),
    ):
        assert told(p, state, late) == (state, (), ())


# -- ends


def test_one_transaction_for_an_end_and_the_next_start() -> None:
    p = plan(node("a"), node("b", edge("a", "b", "value")))
    decision = told(p, begun(p), succeeded("a"))
    assert names(decision.events) == ["node_succeeded", "node_started"]
    assert decision.commands == (
        cmd.EndStream("a", "stream", "complete"),
        cmd.StartNode("b", None, 1),
    )


def test_a_failure_ends_its_dependants_at_once_even_one_that_reads_its_stream() -> None:
    p = plan(
        node("a"),
        node("b", edge("a", "b", "stream")),
        node("c", edge("b", "c", "value")),
    )
    state = told(p, begun(p), sg.LaneActive(at=1.0, node="a", pin="stream", attempt=1)).state
    assert state.nodes["b"].phase is NodePhase.RUNNING
    decision = told(p, state, failed("permanent"))
    assert names(decision.events) == [
        "node_failed",
        "node_upstream_failed",
        "node_upstream_failed",
        "run_finished",
    ]
    assert cmd.CancelNode("b", None, 1, "upstream_failed") in decision.commands
    assert decision.state.error == Fault("AGENT_ERROR", "no")


def test_a_branch_into_an_optional_pin_may_fail_and_the_run_is_partial() -> None:
    optional = (Pin("in", PinType.JSON, required=False),)
    p = plan(node("a"), node("b", edge("a", "b", "value"), input_pins=optional))
    decision = told(p, begun(p), failed("permanent"))
    assert names(decision.events) == ["node_failed", "node_started"]
    decision = told(p, decision.state, succeeded("b"))
    assert decision.state.phase is RunPhase.PARTIAL


def test_a_failed_node_that_is_an_output_fails_the_run() -> None:
    optional = (Pin("in", PinType.JSON, required=False),)
    b = node("b", edge("a", "b", "value"), input_pins=optional)
    p = plan(node("a"), b, outputs=(("a", "value"),))
    decision = told(p, begun(p), failed("permanent"), succeeded("b"))
    assert (decision.state.phase, decision.state.reason) == (RunPhase.FAILED, "node_failed")


@pytest.mark.parametrize(
    ("reason", "meanwhile", "end"),
    [("user_cancel", "cancelling", "cancelled"), ("timeout", "running", "failed")],
)
def test_an_end_that_is_asked_for(reason: Any, meanwhile: str, end: str) -> None:
    p = plan(node("a"), node("b", edge("a", "b", "value")), node("c"))
    state = told(p, begun(p), failed("transient", node="c")).state
    decision = told(p, state, sg.EndAsked(at=2.0, reason=reason))
    assert names(decision.events) == ["run_ending", "node_cancelled", "node_cancelled"]
    assert decision.commands[0] == cmd.CancelNode("a", None, 1, reason)
    assert decision.state.phase == meanwhile
    again = told(p, decision.state, sg.EndAsked(at=2.0, reason="user_cancel"))
    assert again.events == ()
    last = told(p, decision.state, failed("permanent", code="AGENT_CANCELLED"))
    assert names(last.events) == ["node_cancelled", "run_finished"]
    assert (last.state.phase, last.state.reason) == (end, reason)
    assert (last.state.error is not None) == (reason == "timeout")


def test_a_cancelled_queued_run_never_starts() -> None:
    p = plan(node("a"))
    state = apply(initial(("a",)), ev.RunCreated(at=0, flow_id="f", digest="d"))
    decision = told(p, state, sg.EndAsked(at=1.0, reason="user_cancel"))
    assert names(decision.events) == ["run_ending", "node_cancelled", "run_finished"]
    assert told(p, decision.state, sg.Begin(at=2.0)).events == ()


# -- maps


def mapped(**more: Any) -> tuple[Plan, RunState]:
    """A map over a stream whose first chunk is there."""
    p = plan(node("a"), node("m", edge("a", "m", "items"), **more))
    active = sg.LaneActive(at=1.0, node="a", pin="stream", attempt=1)
    decision = told(p, begun(p), active)
    assert decision.commands == (cmd.ReadItems("m", 1, 0),)
    return p, decision.state


def offered(*items: int, closed: bool = False, attempt: int = 1) -> sg.ItemsOffered:
    return sg.ItemsOffered(at=1.0, node="m", attempt=attempt, items=items, closed=closed)


def test_items_start_within_the_window_in_order() -> None:
    p, state = mapped(max_parallel=2)
    decision = told(p, state, offered(2, 3, 4, 5))
    assert decision.commands == (cmd.StartNode("m", 2, 1), cmd.StartNode("m", 3, 1))
    decision = told(p, decision.state, succeeded("m", item=3))
    assert names(decision.events) == ["node_succeeded", "node_started"]
    assert decision.commands == (cmd.StartNode("m", 4, 1),)


def test_the_map_is_finished_when_its_source_is_and_no_item_is_left() -> None:
    p, state = mapped(max_parallel=2)
    decision = told(p, state, offered(2), offered(closed=True), succeeded("m", item=2))
    assert decision.commands == (cmd.FinishMap("m", 1),)
    decision = told(p, decision.state, succeeded("m"))
    assert decision.commands[0] == cmd.EndStream("m", "value", "complete")


def test_an_empty_source_makes_an_empty_map() -> None:
    p, state = mapped()
    assert told(p, state, offered(closed=True)).commands == (cmd.FinishMap("m", 1),)


@pytest.mark.parametrize(("policy", "most"), [("collect", None), ("skip", None), ("skip", 1)])
def test_items_may_fail_up_to_max_failed(policy: str, most: int | None) -> None:
    p, state = mapped(max_parallel=9, on_item_error=policy, max_failed=most)
    one = failed("permanent", node="m", item=2)
    state = told(p, state, offered(2, 3, 4, closed=True), one).state
    decision = told(p, state, failed("permanent", node="m", item=3))
    if most is None:
        assert names(decision.events) == ["node_failed"]
        assert decision.state.nodes["m"].failed == 0b1100
        return
    assert names(decision.events) == ["node_failed", "node_failed"]
    assert cmd.CancelNode("m", 4, 1, "node_failed") in decision.commands
    error = decision.state.nodes["m"].error
    assert error is not None
    assert error.message == "item 3: no; 2 items have failed"


def test_an_item_is_tried_again_on_its_own() -> None:
    p, state = mapped(max_parallel=2)
    decision = told(p, state, offered(2, 3), failed("transient", node="m", item=2))
    assert names(decision.events) == ["retry_scheduled"]
    assert len(decision.state.nodes["m"].items) == 2  # it keeps its place in the window
    due = sg.RetryDue(at=200.0, node="m", item=2, attempt=1)
    assert told(p, decision.state, due).commands == (cmd.StartNode("m", 2, 2),)


def test_a_source_that_cannot_be_read_fails_the_map() -> None:
    p, state = mapped()
    error = Fault("STREAM_LOST", "gone")
    decision = told(p, state, offered(2), sg.MapFailed(at=1.0, node="m", attempt=1, error=error))
    assert cmd.CancelNode("m", 2, 1, "node_failed") in decision.commands
    assert decision.state.nodes["m"].error == error


# -- producers that begin again


def restarted(p: Plan, state: RunState, head: int, **consumed: int) -> d.Decision:
    """Producer `a` fails for now with a checkpoint at `head`, and starts again."""
    given = {name: {"in": seq} for name, seq in consumed.items()}
    again = failed("transient", resume_from={"stream": head})
    return told(p, state, again, sg.RetryDue(at=200.0, node="a", attempt=1, consumed=given))


@pytest.mark.parametrize(
    ("head", "consumed", "restarts"), [(0, 1, True), (3, 3, False), (3, 4, True), (0, 0, False)]
)
def test_consumers_that_read_further_than_what_stands_start_again(
    head: int, consumed: int, restarts: bool
) -> None:
    p = plan(node("a"), node("b", edge("a", "b", "stream")))
    active = sg.LaneActive(at=1.0, node="a", pin="stream", attempt=1)
    decision = restarted(p, told(p, begun(p), active).state, head, b=consumed)
    assert decision.commands[:2] == (
        cmd.OpenStream("a", "stream", 2, head),
        cmd.StartNode("a", None, 2),
    )
    assert decision.commands[2:] == (
        (
            cmd.CancelNode("b", None, 1, "upstream_restarted"),
            cmd.OpenStream("b", "stream", 2, 0),
            cmd.StartNode("b", None, 2),
        )
        if restarts
        else ()
    )
    assert decision.state.nodes["b"].failures == 0


def test_a_consumer_that_succeeded_is_left_alone() -> None:
    p = plan(node("a", keep=True), node("b", edge("a", "b", "stream")))
    active = sg.LaneActive(at=1.0, node="a", pin="stream", attempt=1)
    state = told(p, begun(p), active, succeeded("b")).state
    assert len(restarted(p, state, 0, b=9).commands) == 2


def test_a_map_keeps_the_items_that_stand() -> None:
    p, state = mapped(max_parallel=9)
    state = told(p, state, offered(2, 3, 4, 5), *(succeeded("m", item=i) for i in (2, 4))).state
    decision = restarted(p, state, 3)
    assert decision.commands[2:] == (
        cmd.CancelNode("m", 5, 1, "upstream_restarted"),
        cmd.OpenStream("m", "value", 2, item=3),
        cmd.ReadItems("m", 2, 3),
    )
    found = decision.state.nodes["m"]
    assert (found.succeeded, sorted(found.items), found.last_item) == (0b100, [3], 3)
    assert told(p, decision.state, offered(9, attempt=1)).commands == ()  # the old reader
    assert told(p, decision.state, offered(9, attempt=2)).commands == (cmd.StartNode("m", 9, 1),)


def test_items_that_stand_but_had_not_started_are_read_again() -> None:
    p, state = mapped(max_parallel=1)
    state = told(p, state, offered(2, 3, 4)).state
    decision = restarted(p, state, 3)
    assert decision.commands[-1] == cmd.ReadItems("m", 2, 2)
    again = told(p, decision.state, offered(3, attempt=2), succeeded("m", item=2))
    assert again.commands == (cmd.StartNode("m", 3, 1),)


# -- recovery


def test_what_ran_starts_again_at_once_and_does_not_count_as_a_failure() -> None:
    p = plan(node("a", retry=RetryPolicy(max_attempts=1)), node("b", edge("a", "b", "value")))
    decision = told(p, begun(p), sg.Recovered(at=50.0))
    assert names(decision.events) == ["retry_scheduled"]
    assert decision.commands == (cmd.ScheduleRetry("a", None, 1, 50.0),)
    unit = decision.state.nodes["a"]
    assert (unit.failures, unit.losses) == (0, 1)
    (lost,) = (event for event in decision.events if isinstance(event, ev.RetryScheduled))
    assert lost.error.message == "the server stopped while this ran"  # it is not given up yet


def test_a_node_that_is_lost_ten_times_is_given_up() -> None:
    p = plan(node("a"))
    state = begun(p)
    for attempt in range(1, LOST_ATTEMPTS):
        due = sg.RetryDue(at=1.0, node="a", attempt=attempt)
        state = told(p, state, sg.Recovered(at=1.0), due).state
    decision = told(p, state, sg.Recovered(at=1.0))
    assert decision.state.error is not None
    assert decision.state.error.code == "ENGINE_LOST"


def test_a_lost_checkpoint_means_beginning_from_the_start() -> None:
    p = plan(node("a"))
    state = told(p, begun(p), failed("transient", resume_from={"stream": 5})).state
    assert state.nodes["a"].next_resume == {"stream": 5}
    due = sg.RetryDue(at=200.0, node="a", attempt=1)
    assert told(p, state, sg.Recovered(at=1.0), due).commands[0] == cmd.OpenStream(
        "a", "stream", 2, 0
    )


def test_recovery_ends_the_streams_of_what_had_ended() -> None:
    p = plan(node("a"), node("b"), node("c", edge("b", "c", "value")), node("d"))
    state = told(p, begun(p), succeeded("a"), failed("permanent", node="b")).state
    ends = [
        c for c in told(p, state, sg.Recovered(at=1.0)).commands if isinstance(c, cmd.EndStream)
    ]
    assert [(e.node, e.outcome, e.error and e.error.code) for e in ends] == [
        ("a", "complete", None),
        ("b", "error", "AGENT_ERROR"),
        ("c", "error", "UPSTREAM_FAILED"),
    ]


# -- lanes


def test_the_name_of_a_lane_depends_on_the_run_the_node_and_the_pin() -> None:
    names_ = {stream_id(r, n, p) for r in "ab" for n in "ab" for p in "ab"}
    assert len(names_) == 8
    assert stream_id("r", "n", "p") == stream_id("r", "n", "p")
    assert stream_id("r", "a/b", "c") != stream_id("r", "a", "b/c")


def test_what_stands_in_a_lane() -> None:
    lane = Standing()
    assert lane.holds(2)
    lane.cut(3)
    assert [lane.holds(n) for n in (3, 4, 9)] == [True, False, False]
    lane.reopen(6)  # a new stream_start at 6
    assert [lane.holds(n) for n in (3, 4, 6, 7, 99)] == [True, False, False, True, True]
    lane.cut(2)
    lane.reopen(12)
    assert [lane.holds(n) for n in (2, 3, 8, 13)] == [True, False, False, True]
    assert [Standing([(2, 3), (7, 6)]).holds(n) for n in (2, 4, 7)] == [True, False, True]
