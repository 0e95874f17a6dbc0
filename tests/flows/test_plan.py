from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mentatlab.flows import Flow, Lookup, Plan, check_flow, compile_plan
from mentatlab.protocol.errors import Code, ValidationFailed
from mentatlab.protocol.pins import PinType

FlowOf = Callable[..., Flow]


@pytest.fixture
def plan_of(flow_of: FlowOf, lookup: Lookup) -> Callable[..., Plan]:
    return lambda *args, **fields: compile_plan(flow_of(*args, **fields), lookup)


PlanOf = Callable[..., Plan]
CLIP = {"type": "ui.file-upload", "params": {"accept": "video/*"}}
EACH = {"type": "t.detect", "forEach": "image", "maxParallel": 8, "onItemError": "collect"}


def edges(plan: Plan) -> list[tuple[str, str, str, PinType]]:
    return [
        (f"{e.source}.{e.source_pin} > {e.target}.{e.target_pin}", e.kind, e.adapter, e.item_type)
        for node in plan.nodes
        for e in node.inputs
    ]


def test_a_flow_of_every_kind_of_edge(plan_of: PlanOf) -> None:
    plan = plan_of(
        {"end": "ui.console", "report": "t.collectall", "detect": EACH, "f": "t.frames", "c": CLIP},
        "c.file > f.video",
        "f.frame > detect.image",
        "detect.boxes > report.items",
        "report.report > end.text",
        "detect.annotated > end.pictures",
        runConfig={"timeoutSeconds": 5, "secrets": ["KEY"]},
    )
    assert [n.id for n in plan.nodes] == ["c", "f", "detect", "report", "end"]
    assert edges(plan) == [
        ("c.file > f.video", "value", "none", PinType.VIDEO),
        ("f.frame > detect.image", "items", "none", PinType.IMAGE),
        ("detect.boxes > report.items", "value", "collect", PinType.JSON),
        ("report.report > end.text", "value", "none", PinType.JSON),
        ("detect.annotated > end.pictures", "stream", "none", PinType.IMAGE),
    ]
    assert [(i.name, i.pin.type) for i in plan.inputs] == [("c", PinType.VIDEO)]
    assert plan.outputs == (("end", "text"), ("end", "pictures"))
    assert (plan.timeout_s, plan.secrets, plan.flow_id) == (5, ("KEY",), "test")
    detect = plan.node("detect")
    assert (detect.for_each, detect.max_parallel, detect.on_item_error) == ("image", 3, "collect")
    assert [(p.name, p.type) for p in plan.node("end").input_pins] == [
        ("text", PinType.JSON),
        ("pictures", PinType.STREAM),
    ]
    assert plan.node("f").params == {"every_s": 1.0}
    assert plan.node("f").outputs == detect.inputs


def test_values_become_streams_of_one(plan_of: PlanOf) -> None:
    plan = plan_of({"m": "ui.audio-recorder", "l": "t.listen"}, "m.audio > l.sound")
    assert edges(plan) == [("m.audio > l.sound", "stream", "once", PinType.AUDIO)]
    streams = plan_of({"r": "t.record", "l": "t.listen"}, "r.raw > l.sound")
    assert edges(streams) == [("r.raw > l.sound", "stream", "none", PinType.AUDIO)]


def test_adapter_nodes_are_part_of_the_edge(plan_of: PlanOf) -> None:
    collected = plan_of(
        {"f": "t.frames", "c": "core.collect", "r": "t.collectall", "e": "ui.console"},
        "f.frame > c.in",
        "c.out > r.items",
        "c.out > e.frames",
    )
    assert [n.id for n in collected.nodes] == ["f", "r", "e"]
    assert edges(collected) == [
        ("f.frame > r.items", "value", "collect", PinType.IMAGE),
        ("f.frame > e.frames", "value", "collect", PinType.IMAGE),
    ]
    assert collected.node("e").input_pins[0].type is PinType.JSON
    once = plan_of(
        {"m": "ui.audio-recorder", "o": "core.once", "l": "t.listen", "e": "ui.console"},
        "m.audio > o.in",
        "o.out > l.sound",
        "o.out > e.sound",
    )
    assert edges(once)[0] == ("m.audio > l.sound", "stream", "once", PinType.AUDIO)


def test_run_inputs_and_outputs_without_nodes_for_them(plan_of: PlanOf) -> None:
    plan = plan_of({"e": "t.echo", "j": "t.join", "d": "t.detect"}, "e.text > j.a")
    assert [i.name for i in plan.inputs] == ["e", "d", "j"]
    both = plan_of({"j": "t.join", "s": "t.store"})
    assert [i.name for i in both.inputs] == ["j.a", "j.b", "s"]
    assert both.outputs == (("j", "text"), ("s", "size"))
    found = both.input("s.bytes")
    assert found is not None
    assert found is both.input("s")
    assert both.input("j") is None
    assert both.input("s.name") is None


def test_constants_defaults_and_parameters(plan_of: PlanOf) -> None:
    params = {"every_s": 2, "quality": "high"}
    plan = plan_of({"f": {"type": "t.frames", "params": params}})
    assert plan.node("f").params == {"every_s": 2, "quality": "high"}
    prompt = {"type": "ui.prompt", "outputs": {"text": "Hello"}}
    greeting = plan_of(
        {"p": prompt, "e": {"type": "t.echo", "params": {"text": "unused"}}}, "p.text > e.text"
    )
    (given,) = greeting.inputs
    assert (given.pin.required, given.pin.default) == (False, "Hello")
    assert greeting.node("e").params == {}
    constant = {"type": "t.echo", "outputs": {"items": [1, 2]}, "params": {"text": "x"}}
    folded = plan_of({"s": constant, "r": "t.collectall"}, "s.items > r.items")
    assert folded.node("r").params == {"items": [1, 2]}
    assert folded.inputs == ()


def test_a_profile_takes_the_place_of_the_resources(plan_of: PlanOf) -> None:
    node = plan_of({"d": {"type": "t.detect", "profile": "video_processing"}}).node("d")
    assert node.manifest is not None
    assert node.manifest.limits().cpu == 4


def test_node_policies(plan_of: PlanOf) -> None:
    fields = {
        "type": "t.echo",
        "retry": {"maxAttempts": 1},
        "timeouts": {"heartbeat_s": 5},
        "ordered": False,
        "maxFailed": 2,
        "keep": True,
    }
    node = plan_of({"e": fields}).node("e")
    assert (node.retry.max_attempts, node.timeouts.heartbeat_s, node.timeouts.start_s) == (
        1,
        5,
        120,
    )
    assert (node.ordered, node.max_failed, node.keep) == (False, 2, True)


def test_the_digest_is_that_of_the_flow_and_its_manifests(flow_of: FlowOf, lookup: Lookup) -> None:
    flow = flow_of({"e": "t.echo"})
    digest = compile_plan(flow, lookup).digest
    assert compile_plan(flow, lookup).digest == digest
    assert compile_plan(flow_of({"f": "t.echo"}), lookup).digest != digest

    def changed(name: str) -> Any:
        manifest = lookup(name)
        return manifest and manifest.model_copy(update={"version": "2.0.0"})

    assert compile_plan(flow, changed).digest != digest


def test_errors_stop_the_plan_and_warnings_do_not(flow_of: FlowOf, lookup: Lookup) -> None:
    nodes = {"e": "t.echo", "c": "ui.console", "x": "nobody.here", "y": "nobody.here"}
    with pytest.raises(ValidationFailed) as refused:
        compile_plan(flow_of(nodes), lookup)
    assert refused.value.code == Code.FLOW_INVALID
    assert [p.code for p in refused.value.problems] == [Code.UNKNOWN_AGENT] * 2
    assert len(compile_plan(flow_of({"e": "t.echo", "c": "ui.console"}), lookup).nodes) == 2


TYPES = ["t.echo", "t.frames", "t.detect", "t.collectall", "t.listen", "t.store", "t.record"]
TYPES += ["ui.prompt", "ui.file-upload", "ui.console", "core.once", "core.collect", "core.if"]
PINS = ["text", "video", "frame", "image", "boxes", "items", "sound", "words", "bytes", "file"]
NODES = st.fixed_dictionaries(
    {"type": st.sampled_from(TYPES)},
    optional={
        "forEach": st.sampled_from(PINS),
        "params": st.dictionaries(st.sampled_from(PINS), st.sampled_from([1, "a", "video/*"])),
        "outputs": st.dictionaries(st.sampled_from(PINS), st.sampled_from([1, "a", [1]])),
    },
)
ENDS = st.builds("{}.{}".format, st.sampled_from("abcdx"), st.sampled_from(PINS))


@settings(max_examples=300)
@given(
    st.dictionaries(st.sampled_from("abcd"), NODES, min_size=1),
    st.lists(st.builds("{} > {}".format, ENDS, ENDS), max_size=8),
)
def test_every_flow_has_an_error_or_a_plan(
    flow_of: FlowOf, lookup: Lookup, nodes: dict[str, Any], wires: list[str]
) -> None:
    flow = flow_of(nodes, *wires)
    errors = [p for p in check_flow(flow, lookup) if p.severity == "error"]
    if errors:
        with pytest.raises(ValidationFailed):
            compile_plan(flow, lookup)
    else:
        plan = compile_plan(flow, lookup)
        assert {n.id for n in plan.nodes} <= set(nodes)
        assert all(e.source in nodes for n in plan.nodes for e in n.inputs)


@settings(max_examples=80)
@given(st.data(), st.integers(1, 15))
def test_any_acyclic_flow_compiles_in_topological_order(
    flow_of: FlowOf, lookup: Lookup, data: st.DataObject, size: int
) -> None:
    names = data.draw(st.permutations([f"n{i}" for i in range(size)]))
    wires = [
        f"{data.draw(st.sampled_from(names[:i]))}.text > {names[i]}.{pin}"
        for i in range(1, size)
        for pin in data.draw(st.sets(st.sampled_from("ab")))
    ]
    listed = dict.fromkeys(data.draw(st.permutations(names)), "t.join")
    plan = compile_plan(flow_of(listed, *data.draw(st.permutations(wires))), lookup)
    place = {node.id: i for i, node in enumerate(plan.nodes)}
    assert len(place) == size
    assert all(place[e.source] < place[e.target] for n in plan.nodes for e in n.inputs)
    assert len(plan.inputs) == 2 * size - len(wires)
