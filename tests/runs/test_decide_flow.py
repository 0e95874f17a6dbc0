"""`decide` by tables: conditions, branches, gates, the cache, skips, `needs`, pauses, producers
that nobody reads, what a recovery and a broken engine do."""

from typing import Any

import pytest

from mentatlab.flows.plan import Plan, RetryPolicy
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.runs import commands as cmd
from mentatlab.runs import decide as d
from mentatlab.runs import events as ev
from mentatlab.runs import signals as sg
from mentatlab.runs.decide import decide
from mentatlab.runs.events import Fault
from mentatlab.runs.state import NodePhase, RunPhase, RunState, apply, initial

from .test_decide import begun, edge, failed, names, node, offered, plan, succeeded, told

CONTROL: dict[str, Any] = {"kind": "control", "output_pins": ()}
OPTIONAL = (Pin("in", PinType.JSON, required=False),)
FAULT = Fault("EXPRESSION_ERROR", "no such key")


def prepared(name: str, verdict: sg.Verdict, **more: Any) -> sg.Prepared:
    return sg.Prepared(at=3.0, node=name, verdict=verdict, **more)


def decided(*, approved: bool, by: str = "ann") -> sg.GateDecided:
    return sg.GateDecided(at=9.0, node="g", approved=approved, by=by)


def phases(state: RunState) -> dict[str, str]:
    return {name: str(found.phase) for name, found in state.nodes.items()}


def active(name: str = "a", attempt: int = 1) -> sg.LaneActive:
    return sg.LaneActive(at=1.0, node=name, pin="stream", attempt=attempt)


# -- conditions, the cache, branches


@pytest.mark.parametrize("more", [{"when": "x"}, {"cache": True}, CONTROL])
def test_what_has_to_be_prepared_is_asked_about_once(more: Any) -> None:
    p = plan(node("a"), node("b", edge("a", "b", "value"), **more))
    decision = told(p, begun(p), succeeded("a"))
    assert decision.commands[-1] == cmd.Prepare("b", None, 0)
    assert phases(decision.state)["b"] == "ready"
    assert told(p, decision.state, active()).commands == ()


def test_a_node_runs_is_skipped_is_cached_or_fails_as_it_was_prepared() -> None:
    p = plan(node("a", when="x"), node("b", edge("a", "b", "value")))
    state = begun(p)
    assert told(p, state, prepared("a", "run")).commands == (cmd.StartNode("a", None, 1),)
    skipped = told(p, state, prepared("a", "skip"))
    assert phases(skipped.state) == {"a": "skipped", "b": "skipped"}
    assert (skipped.state.phase, skipped.events[1]) == (
        RunPhase.SUCCEEDED,
        ev.NodeSkipped(at=3.0, node="b", cause="upstream", upstream="a"),
    )
    cached = told(p, state, prepared("a", "cached", origin="rn_0", outputs={"value": 1}))
    assert cached.events[0] == ev.NodeCached(at=3.0, node="a", origin="rn_0", outputs={"value": 1})
    assert cached.commands == (
        cmd.EndStream("a", "stream", "complete"),
        cmd.StartNode("b", None, 1),
    )
    failing = told(p, state, prepared("a", "fail", error=FAULT))
    assert phases(failing.state) == {"a": "failed", "b": "upstream_failed"}
    again = told(p, cached.state, prepared("a", "skip"))
    assert again.events == ()


def branches(**more: Any) -> Plan:
    return plan(
        node("c", **CONTROL),
        node("yes", edge("c", "yes", "value", "then")),
        node("no", edge("c", "no", "value", "else")),
        node("end", edge("yes", "end", "value"), edge("no", "end", "value"), **more),
    )


def test_the_branch_that_is_not_taken_is_skipped_and_all_that_needs_it() -> None:
    p = branches()
    decision = told(p, begun(p), prepared("c", "take", taken=("then",)))
    assert phases(decision.state)["no"] == "skipped"
    assert phases(decision.state)["end"] == "pending"  # `yes` may still fail
    assert told(p, decision.state, succeeded("yes")).state.phase is RunPhase.SUCCEEDED
    failing = told(p, decision.state, failed("permanent", node="yes"))
    assert phases(failing.state)["end"] == "upstream_failed"


def test_branches_meet_where_one_is_enough() -> None:
    p = branches(needs="any")
    decision = told(p, begun(p), prepared("c", "take", taken=("else",)), succeeded("no"))
    assert decision.commands[-1] == cmd.StartNode("end", None, 1, ("in",))
    last = told(p, decision.state, succeeded("end"))
    assert (last.state.phase, phases(last.state)["yes"]) == (RunPhase.SUCCEEDED, "skipped")


@pytest.mark.parametrize(
    ("needs", "ends", "phase"),
    [
        (2, ["good", "good", ""], "running"),
        (2, ["good", "bad", ""], "pending"),
        (2, ["bad", "bad", ""], "upstream_failed"),
        ("any", ["bad", "bad", "bad"], "upstream_failed"),
        ("any", ["skip", "skip", "skip"], "skipped"),
        ("any", ["skip", "bad", "skip"], "upstream_failed"),
        (9, ["good", "good", "good"], "running"),
        (9, ["good", "good", "skip"], "skipped"),
        (3, ["skip", "good", ""], "pending"),
        (3, ["skip", "good", "bad"], "upstream_failed"),
    ],
)
def test_how_many_edges_are_enough(needs: Any, ends: list[str], phase: str) -> None:
    sources = [node(name, when="x") for name in "abc"]
    p = plan(*sources, node("n", *(edge(s, "n", "value") for s in "abc"), needs=needs))
    signals: list[sg.Signal] = []
    for name, end in zip("abc", ends, strict=True):
        if end == "skip":
            signals.append(prepared(name, "skip"))
        elif end:
            good = succeeded(name) if end == "good" else failed("permanent", node=name)
            signals += [prepared(name, "run"), good]
    assert phases(told(p, begun(p), *signals).state)["n"] == phase


def test_an_optional_input_that_was_skipped_stays_away() -> None:
    p = plan(node("a", when="x"), node("b", edge("a", "b", "value"), input_pins=OPTIONAL))
    decision = told(p, begun(p), prepared("a", "skip"))
    assert decision.commands[-1] == cmd.StartNode("b", None, 1, ("in",))
    again = told(p, decision.state, failed("transient", node="b"))
    due = sg.RetryDue(at=200.0, node="b", attempt=1)
    assert told(p, again.state, due).commands[-1] == cmd.StartNode("b", None, 2, ("in",))


def test_items_are_prepared_and_answers_carried_out_in_their_order() -> None:
    p = plan(node("a", keep=True), node("m", edge("a", "m", "items"), when="x", max_parallel=3))
    state = told(p, begun(p), active(), offered(2, 3, 4, 5)).state
    of = {"item": 3, "attempt": 1}
    assert told(p, state, prepared("m", "run", **of)).events == ()
    decision = told(p, state, prepared("m", "run", **of), prepared("m", "skip", item=2, attempt=1))
    assert names(decision.events) == ["node_skipped", "node_started"]
    assert decision.commands == (cmd.StartNode("m", 3, 1), cmd.Prepare("m", 5, 1))
    assert told(p, state, prepared("m", "run", item=2, attempt=9)).events == ()  # another attempt's
    cached = told(p, state, prepared("m", "cached", item=2, attempt=1, origin="rn_0"))
    assert cached.state.nodes["m"].succeeded == 0b100
    failing = told(p, state, prepared("m", "fail", item=2, attempt=1, error=FAULT))
    assert phases(failing.state)["m"] == "failed"


# -- gates


def gated(*pins: str) -> tuple[Plan, RunState]:
    p = plan(node("g", **CONTROL), *(node(pin, edge("g", pin, "value", pin)) for pin in pins))
    decision = told(p, begun(p), prepared("g", "ask", message="sure?", until=50.0))
    assert decision.commands == (cmd.ScheduleGate("g", 50.0),)
    assert phases(decision.state)["g"] == "waiting_approval"
    return p, decision.state


def test_an_approval_leads_on() -> None:
    p, state = gated("approved", "rejected")
    decision = told(p, state, decided(approved=True))
    assert names(decision.events)[:2] == ["gate_closed", "node_succeeded"]
    assert phases(decision.state) == {
        "g": "succeeded",
        "approved": "running",
        "rejected": "skipped",
    }
    assert told(p, decision.state, decided(approved=False)).events == ()


def test_a_rejection_goes_its_own_way_or_fails() -> None:
    p, state = gated("approved", "rejected")
    decision = told(p, state, decided(approved=False))
    assert phases(decision.state) == {
        "g": "succeeded",
        "approved": "skipped",
        "rejected": "running",
    }
    p, state = gated("approved")
    error = told(p, state, decided(approved=False)).state.error
    late = told(p, state, decided(approved=False, by="")).state.error
    assert error is not None
    assert late is not None
    assert (error.code, error.message) == ("GATE_REJECTED", "ann has rejected g")
    assert "in time" in late.message


def test_a_gate_is_watched_again_after_a_recovery_and_ends_with_a_cancel() -> None:
    p, state = gated("approved")
    recovered = told(p, state, sg.Recovered(at=9.0))
    assert recovered.commands == (cmd.ScheduleGate("g", 50.0),)
    cancelled = told(p, state, sg.EndAsked(at=9.0, reason="user_cancel"))
    assert cancelled.state.phase is RunPhase.CANCELLED


# -- pauses

PAUSE, RESUME = sg.PauseAsked(at=5.0), sg.ResumeAsked(at=6.0)


def test_nothing_starts_in_a_pause_and_what_was_due_starts_after_it() -> None:
    p = plan(node("a"), node("b", edge("a", "b", "value")), node("c"))
    due = sg.RetryDue(at=200.0, node="c", attempt=1)
    held = told(p, begun(p), PAUSE, succeeded("a"), failed("transient", node="c"), due)
    assert (held.state.phase, held.commands) == (RunPhase.PAUSED, ())
    assert phases(held.state) == {"a": "succeeded", "b": "pending", "c": "retry_wait"}
    resumed = told(p, held.state, RESUME)
    assert resumed.commands == (cmd.ScheduleRetry("c", None, 1, 101.0), cmd.StartNode("b", None, 1))
    assert told(p, resumed.state, RESUME).events == ()


def test_what_was_being_prepared_is_asked_about_anew() -> None:
    p = plan(
        node("a", keep=True), node("m", edge("a", "m", "items"), when="x"), node("w", when="x")
    )
    state = told(p, begun(p), active(), offered(2, 3), PAUSE, PAUSE).state
    assert told(p, state, prepared("w", "run")).events == ()
    assert told(p, state, RESUME).commands == (
        cmd.Prepare("m", 2, 1),
        cmd.Prepare("w", None, 0),
    )


@pytest.mark.parametrize(
    ("last", "events"),
    [
        (succeeded("a"), ["node_succeeded", "run_resumed", "run_finished"]),
        (sg.EndAsked(at=7.0, reason="user_cancel"), ["run_ending"]),
        (sg.EndAsked(at=7.0, reason="timeout"), ["run_ending"]),
    ],
)
def test_a_paused_run_can_end(last: sg.Signal, events: list[str]) -> None:
    p = plan(node("a"))
    decision = told(p, begun(p), PAUSE, last)
    assert names(decision.events) == events
    assert decision.state.phase is not RunPhase.PAUSED


# -- producers that nobody reads


def reading(**more: Any) -> tuple[Plan, RunState]:
    p = plan(node("a", **more), node("b", edge("a", "b", "stream")))
    return p, told(p, begun(p), active()).state


def test_a_producer_is_stopped_once_and_has_succeeded() -> None:
    p, state = reading()
    decision = told(p, state, succeeded("b"))
    assert decision.commands[-1] == cmd.CancelNode("a", None, 1, "no_demand")
    assert told(p, decision.state, active()).commands == ()
    last = told(p, decision.state, failed("permanent", code="AGENT_CANCELLED"))
    assert last.state.phase is RunPhase.SUCCEEDED
    event = last.events[0]
    assert isinstance(event, ev.NodeSucceeded)
    assert event.metrics == {"stopped_early": True}


def test_a_producer_that_waits_for_a_retry_or_was_lost_starts_no_more() -> None:
    p, state = reading()
    waits = told(p, state, failed("transient"), succeeded("b"))
    assert waits.state.phase is RunPhase.SUCCEEDED
    lost = told(p, state, succeeded("b"), sg.Recovered(at=9.0))
    assert lost.state.phase is RunPhase.SUCCEEDED


def test_a_producer_goes_on_that_is_kept_or_whose_stream_is_a_result() -> None:
    p, state = reading(keep=True)
    assert len(told(p, state, succeeded("b")).commands) == 1
    p = plan(node("a"), node("b", edge("a", "b", "stream")), outputs=(("a", "stream"),))
    assert len(told(p, begun(p), active(), succeeded("b")).commands) == 1


def test_a_producer_that_has_not_started_is_skipped_when_its_reader_has_failed() -> None:
    p = plan(
        node("x"),
        node("y"),
        node("a", edge("x", "a", "value")),
        node("b", edge("a", "b", "stream"), edge("y", "b", "value")),
    )
    decision = told(p, begun(p), failed("permanent", node="y"), succeeded("x"))
    assert phases(decision.state)["a"] == "skipped"
    assert decision.state.phase is RunPhase.FAILED


# -- memory, recovery, the engine itself


def test_an_attempt_after_too_little_memory_is_told_so() -> None:
    p = plan(node("a", retry=RetryPolicy(max_attempts=5)))
    state = told(p, begun(p), failed("transient")).state
    state = told(p, state, sg.RetryDue(at=101.0, node="a", attempt=1)).state
    decision = told(p, state, failed("oom", attempt=2))
    assert isinstance(decision.events[0], ev.RetryScheduled)
    assert decision.events[0].cause == "oom"
    decision = told(p, decision.state, sg.RetryDue(at=102.0, node="a", attempt=2))
    assert decision.commands[-1] == cmd.StartNode("a", None, 3, ooms=1)
    assert names(told(p, decision.state, failed("oom", attempt=3)).events)[0] == "node_failed"


def test_a_stored_checkpoint_is_gone_on_from_after_a_recovery() -> None:
    p = plan(node("a"))
    recovered = sg.Recovered(at=5.0, resume_from={"a": {"stream": 7}})
    due = sg.RetryDue(at=6.0, node="a", attempt=1)
    decision = told(p, begun(p), recovered, due)
    assert decision.commands[0] == cmd.OpenStream("a", "stream", 2, 7)
    waiting = told(p, begun(p), failed("transient"), recovered, due)
    assert waiting.commands[0] == cmd.OpenStream("a", "stream", 2, 7)


def test_what_another_run_gave_is_there_when_a_run_begins() -> None:
    p = plan(node("a"), node("b", edge("a", "b", "value")))
    facts = (
        ev.RunCreated(at=0.0, flow_id="f", digest="d", origin="rn_0", from_node="b"),
        ev.NodeCached(at=0.0, node="a", origin="rn_0", outputs={"value": 1}),
    )
    state = initial(("a", "b"))
    for fact in facts:
        state = apply(state, fact)
    decision = decide(p, state, sg.Begin(at=1.0))
    assert decision.commands == (
        cmd.EndStream("a", "stream", "complete"),
        cmd.StartNode("b", None, 1),
    )
    assert told(p, decision.state, sg.Begin(at=2.0)).events == ()


def test_a_broken_engine_ends_the_run_and_says_why() -> None:
    p = plan(node("g", **CONTROL), node("b", edge("g", "b", "value", "then")))
    decision = told(p, begun(p), sg.Broken(at=5.0, error=FAULT))
    state = decision.state
    assert (state.phase, state.reason, state.error) == (RunPhase.FAILED, "engine_lost", FAULT)
    assert {x.phase for x in state.nodes.values()} == {NodePhase.CANCELLED}


def test_streams_of_a_finished_run_ended_as_their_nodes_did() -> None:
    p, state = reading()
    state = told(p, state, failed("permanent")).state
    ends = d.stream_ends(p, state)
    assert [(e.node, e.outcome) for e in ends] == [("a", "error"), ("b", "error")]
