from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mentatlab.flows import Flow, Lookup, check_flow, load_flow
from mentatlab.protocol.errors import Problem

FlowOf = Callable[..., Flow]


@pytest.fixture
def found(flow_of: FlowOf, lookup: Lookup) -> Callable[..., list[str]]:
    """`CODE pointer` of every problem, warnings in brackets."""

    def check(nodes: dict[str, Any], *edges: str) -> list[str]:
        return [_short(p) for p in check_flow(flow_of(nodes, *edges), lookup)]

    return check


def _short(problem: Problem) -> str:
    text = f"{problem.code} {problem.path}"
    return text if problem.severity == "error" else f"({text})"


Found = Callable[..., list[str]]
CLIP = {"type": "ui.file-upload", "params": {"accept": "video/*"}}
EACH = {"type": "t.detect", "forEach": "image"}


def test_a_good_flow_has_no_problems(found: Found) -> None:
    nodes = {"clip": CLIP, "frames": "t.frames", "detect": EACH, "report": "t.collectall"}
    edges = ["clip.file > frames.video", "frames.frame > detect.image"]
    assert found(nodes, *edges, "detect.boxes > report.items") == []


def test_nodes(found: Found) -> None:
    assert found({"a": "nobody.here", "b": "ui.nothing", "c": "t.echo:2.0.0"}) == [
        "UNKNOWN_AGENT /graph/nodes/0/type",
        "UNKNOWN_AGENT /graph/nodes/1/type",
        "UNKNOWN_AGENT /graph/nodes/2/type",
    ]


def test_two_nodes_of_one_name(flow_of: FlowOf, lookup: Lookup) -> None:
    flow = flow_of({"a": "t.echo"})
    twice = flow.model_copy(
        update={"graph": flow.graph.model_copy(update={"nodes": flow.graph.nodes * 2})}
    )
    assert [_short(p) for p in check_flow(twice, lookup)] == ["DUPLICATE_NODE /graph/nodes/1/id"]


def test_edges_name_nodes_and_pins(found: Found) -> None:
    nodes = {"p": "ui.prompt", "e": "t.echo", "c": "ui.console"}
    edges = ["p.text > e.text", "e.text > c.any"]
    assert found(nodes, *edges, "x.text > y.text") == [
        "UNKNOWN_NODE /graph/edges/2/from",
        "UNKNOWN_NODE /graph/edges/2/to",
    ]
    assert found(nodes, *edges, "e.nope > e.nope") == [
        "UNKNOWN_PIN /graph/edges/2/from",
        "UNKNOWN_PIN /graph/edges/2/to",
    ]
    assert found(nodes, *edges, "c.text > p.text") == [
        "UNKNOWN_PIN /graph/edges/2/from",
        "UNKNOWN_PIN /graph/edges/2/to",
    ]


def test_one_source_feeds_a_pin(found: Found) -> None:
    nodes = {"a": "ui.prompt", "b": "ui.prompt", "e": "t.echo"}
    assert found(nodes, "a.text > e.text", "b.text > e.text") == [
        "DUPLICATE_INPUT /graph/edges/1/to"
    ]


@pytest.mark.parametrize(
    ("source", "target", "code"),
    [
        ("t.echo.text", "t.echo.text", None),
        ("t.store.size", "t.echo.text", "TYPE_MISMATCH"),
        ("t.echo.text", "t.collectall.items", "TYPE_MISMATCH"),
        ("t.detect.annotated", "t.store.bytes", None),
        ("t.detect.annotated", "t.detect.image", None),
        ("t.frames.frame", "t.store.bytes", "NEEDS_FOREACH"),
        ("t.frames.frame", "t.detect.image", "NEEDS_FOREACH"),
        ("t.frames.frame", "t.echo.text", "TYPE_MISMATCH"),
        ("t.frames.frame", "t.collectall.items", None),
        ("t.frames.frame", "t.listen.sound", "TYPE_MISMATCH"),
        ("t.record.raw", "t.listen.sound", None),
        ("t.record.sound", "t.listen.sound", "CONSTRAINT_CONFLICT"),
        ("t.echo.text", "t.listen.sound", "TYPE_MISMATCH"),
        ("t.detect.boxes", "t.collectall.items", None),
    ],
)
def test_types(found: Found, source: str, target: str, code: str | None) -> None:
    (agent, out), (other, into) = source.rsplit(".", 1), target.rsplit(".", 1)
    problems = found({"a": agent, "b": other}, f"a.{out} > b.{into}")
    about_edge = [p for p in problems if p.endswith(" /graph/edges/0")]
    assert about_edge == ([] if code is None else [f"{code} /graph/edges/0"])


@pytest.mark.parametrize(
    ("accept", "code"),
    [
        ("video/*", None),
        (".mp4,.mkv", None),
        (["video/mp4", "video/webm"], None),
        ("image/*", "TYPE_MISMATCH"),
        ("image/*,video/*", "TYPE_MISMATCH"),
        ("text/plain", "TYPE_MISMATCH"),
        ("", "TYPE_MISMATCH"),
        (None, "TYPE_MISMATCH"),
        (".unheard-of", "TYPE_MISMATCH"),
        (7, "TYPE_MISMATCH"),
    ],
)
def test_an_upload_has_the_type_that_it_accepts(
    found: Found, accept: object, code: str | None
) -> None:
    upload = {"type": "ui.file-upload", "params": {"accept": accept}}
    problems = found({"u": upload, "f": "t.frames"}, "u.file > f.video")
    assert problems == ([] if code is None else [f"{code} /graph/edges/0"])


def test_sets_of_media_types_must_meet(found: Found) -> None:
    gif = {"type": "ui.file-upload", "params": {"accept": "image/gif"}}
    nodes = {"u": gif, "d": "t.detect"}
    assert found(nodes, "u.file > d.image") == ["MIME_MISMATCH /graph/edges/0"]


def test_numbers_must_not_contradict(flow_of: FlowOf, lookup: Lookup) -> None:
    (problem,) = check_flow(
        flow_of({"r": "t.record", "l": "t.listen"}, "r.sound > l.sound"), lookup
    )
    assert "sample_rate 44100 against 16000" in problem.message
    assert problem.hint


def test_a_cycle_is_told_once_with_its_nodes(flow_of: FlowOf, lookup: Lookup) -> None:
    nodes = {"a": "t.echo", "b": "t.echo", "c": "t.echo", "d": "t.echo", "s": "t.echo"}
    edges = ["a.text > b.text", "b.text > c.text", "c.text > a.text", "s.text > s.text"]
    problems = check_flow(flow_of(nodes, *edges), lookup)
    assert [p.code for p in problems] == ["CYCLE", "CYCLE"]
    assert {frozenset(p.message.split(": ")[1].split(" → ")) for p in problems} == {
        frozenset("abc"),
        frozenset("s"),
    }


def test_for_each(found: Found) -> None:
    assert found({"p": CLIP, "d": EACH}, "p.file > d.image") == [
        "FOREACH_NOT_A_LIST /graph/edges/0"
    ]
    assert found({"d": EACH}) == ["MISSING_INPUT /graph/nodes/0"]
    assert found({"d": {"type": "t.detect", "forEach": "nope"}}) == [
        "UNKNOWN_PIN /graph/nodes/0/forEach"
    ]
    frames = {"type": "t.frames", "forEach": "video"}
    assert found({"r": "t.record", "f": frames}, "r.raw > f.video") == [
        "FOREACH_STREAM_OUTPUT /graph/nodes/1/forEach"
    ]
    then: dict[str, Any] = {"r": "t.record", "f": frames, "s": "t.store"}
    assert found(then, "r.raw > f.video", "f.frame > s.bytes") == [
        "FOREACH_STREAM_OUTPUT /graph/nodes/1/forEach"
    ]
    listen = {"type": "t.listen", "forEach": "sound"}
    assert found({"r": "t.record", "l": listen}, "r.raw > l.sound") == [
        "FOREACH_STREAM_OUTPUT /graph/nodes/1/forEach",
        "FOREACH_NOT_A_LIST /graph/edges/0",
    ]
    echo = {"type": "t.echo", "forEach": "text"}
    assert found({"f": "t.frames", "e": echo}, "f.frame > e.text") == [
        "TYPE_MISMATCH /graph/edges/0"
    ]
    assert found({"p": {"type": "ui.prompt", "forEach": "text"}}) == [
        "BAD_PARAM /graph/nodes/0/forEach"
    ]


def test_for_each_gives_a_stream_again(found: Found) -> None:
    nodes = {"f": "t.frames", "d": EACH, "s": "t.store", "e": EACH}
    frames = "f.frame > d.image"
    assert found(nodes, frames, "d.annotated > s.bytes", "d.annotated > e.image") == [
        "NEEDS_FOREACH /graph/edges/1"
    ]


def test_a_stream_that_nothing_feeds_cannot_be_given_to_a_run(found: Found) -> None:
    assert found({"l": "t.listen"}) == ["MISSING_INPUT /graph/nodes/0"]


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({"text": "hi"}, None),
        ({"text": 3}, "/graph/nodes/0/params/text"),
        ({"temperature": 3}, None),
    ],
)
def test_constants_have_the_pins_type(found: Found, params: object, path: str | None) -> None:
    problems = found({"e": {"type": "t.echo", "params": params}})
    assert problems == ([] if path is None else [f"BAD_PARAM {path}"])


def test_other_constants(found: Found) -> None:
    assert found({"d": {"type": "t.detect", "params": {"model": "c"}}}) == [
        "BAD_PARAM /graph/nodes/0/params/model"
    ]
    assert found({"p": {"type": "ui.prompt", "outputs": {"text": 3}}}) == [
        "BAD_PARAM /graph/nodes/0"
    ]
    both = {"p": "ui.prompt", "e": {"type": "t.echo", "params": {"text": "x"}}}
    assert found(both, "p.text > e.text") == ["(DUPLICATE_INPUT /graph/nodes/1/params/text)"]
    assert found({"e": {"type": "t.echo", "profile": "huge"}}) == [
        "BAD_PARAM /graph/nodes/0/profile"
    ]


def test_what_does_not_run_here_is_told_and_not_judged_further(found: Found) -> None:
    loop = {"type": "for_each", "params": {"for_each": {"body": ["process"]}}}
    nodes = {"s": "t.echo", "loop": loop, "process": "t.echo", "end": "t.echo"}
    assert found(nodes, "s.text > loop.input", "loop.output > end.text") == [
        "NOT_RUNNABLE_HERE /graph/nodes/1/type"
    ]
    assert found({"c": "conditional"}) == ["NOT_RUNNABLE_HERE /graph/nodes/0/type"]


def test_adapter_nodes(found: Found) -> None:
    nodes: dict[str, Any] = {"f": "t.frames", "c": "core.collect", "r": "t.collectall"}
    assert found(nodes, "f.frame > c.in", "c.out > r.items") == []
    assert found({**nodes, "r": EACH}, "f.frame > c.in", "c.out > r.image") == []
    assert found({**nodes, "r": "t.detect"}, "f.frame > c.in", "c.out > r.image") == [
        "NEEDS_FOREACH /graph/edges/1"
    ]
    assert found({**nodes, "r": "t.listen"}, "f.frame > c.in", "c.out > r.sound") == [
        "TYPE_MISMATCH /graph/edges/1"
    ]
    silent = {"f": "t.record", "c": "core.collect", "r": "t.listen"}
    assert found(silent, "f.raw > c.in", "c.out > r.sound") == ["TYPE_MISMATCH /graph/edges/1"]
    assert found({"c": "core.collect"}) == ["MISSING_INPUT /graph/nodes/0"]
    once: dict[str, Any] = {"m": "ui.audio-recorder", "o": "core.once", "l": "t.listen"}
    assert found(once, "m.audio > o.in", "o.out > l.sound") == []
    assert found({**once, "l": "t.store"}, "m.audio > o.in", "o.out > l.bytes") == [
        "NEEDS_FOREACH /graph/edges/1"
    ]
    assert found({"r": "t.record", "o": "core.once"}, "r.raw > o.in") == [
        "TYPE_MISMATCH /graph/edges/0"
    ]
    two = {"a": "t.record", "c": "core.collect"}
    assert found(two, "a.raw > c.x", "a.raw > c.y") == ["DUPLICATE_INPUT /graph/edges/1/to"]


def test_constants_of_older_files_feed_pins(found: Found) -> None:
    source = {"type": "t.echo", "outputs": {"items": ["a"], "text": "b"}}
    nodes: dict[str, Any] = {"s": source, "r": "t.collectall", "e": "t.echo"}
    assert found(nodes, "s.items > r.items", "s.text > e.text") == []
    assert found(nodes, "s.items > e.text") == ["BAD_PARAM /graph/nodes/2/params/text"]
    assert found({"s": source, "c": "ui.console"}, "s.items > c.x") == [
        "NOT_RUNNABLE_HERE /graph/edges/0",
        "(UNREACHABLE_NODE /graph/nodes/0)",
        "(UNREACHABLE_NODE /graph/nodes/1)",
    ]


def test_what_leads_to_no_output_is_a_warning(found: Found) -> None:
    kept = {"type": "t.echo", "keep": True}
    nodes = {"a": "t.echo", "c": "ui.console", "b": "t.echo", "k": kept, "d": "ui.chatPanel"}
    assert found(nodes, "a.text > c.text") == [
        "(UNREACHABLE_NODE /graph/nodes/2)",
        "(UNREACHABLE_NODE /graph/nodes/4)",
    ]


FAULTS: dict[str, dict[str, Any]] = {
    "UNKNOWN_AGENT": {"type": "nobody.here"},
    "NOT_RUNNABLE_HERE": {"type": "conditional"},
    "BAD_PARAM": {"type": "t.echo", "params": {"text": 1}},
    "MISSING_INPUT": {"type": "t.listen"},
    "UNKNOWN_PIN": {"type": "t.detect", "forEach": "nope"},
}


@given(st.lists(st.sampled_from(sorted(FAULTS)), max_size=12), st.integers(0, 5))
def test_independent_faults_are_all_told(
    flow_of: FlowOf, lookup: Lookup, faults: list[str], extra_edges: int
) -> None:
    nodes: dict[str, Any] = {"good": "t.echo"}
    nodes |= {f"n{i}": FAULTS[code] for i, code in enumerate(faults)}
    edges = [f"good.text > gone{i}.text" for i in range(extra_edges)]
    problems = check_flow(flow_of(nodes, *edges), lookup)
    assert sorted(p.code for p in problems) == sorted([*faults, *["UNKNOWN_NODE"] * extra_edges])


@settings(max_examples=60)
@given(st.data(), st.integers(2, 12))
def test_any_cycle_is_told(flow_of: FlowOf, lookup: Lookup, data: st.DataObject, size: int) -> None:
    ring = data.draw(st.permutations(range(size)))
    nodes = {f"n{i}": "t.join" for i in range(size)}
    edges = [f"n{a}.text > n{b}.a" for a, b in zip(ring, [*ring[1:], ring[0]], strict=True)]
    forward = data.draw(st.lists(st.integers(1, size - 1), unique=True))
    edges += [f"n{ring[0]}.text > n{ring[i]}.b" for i in forward]
    codes = [p.code for p in check_flow(flow_of(nodes, *edges), lookup)]
    assert codes == ["CYCLE"]


def test_secrets_are_named_as_environment_variables(flow_of: FlowOf, lookup: Lookup) -> None:
    names = ["API_KEY", "api-key", "PATH", "", "MENTATLAB_DATABASE"]
    flow = flow_of({"p": "ui.prompt", "c": "ui.console"}, "p.text > c.any")
    document = {**flow.document(), "runConfig": {"secrets": names}}
    found = check_flow(load_flow(document), lookup)
    assert [_short(p) for p in found] == [
        f"SECRET_INVALID /runConfig/secrets/{index}" for index in (1, 2, 3, 4)
    ]
