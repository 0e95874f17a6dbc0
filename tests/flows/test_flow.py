from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.flows import load_flow
from mentatlab.protocol.errors import Code, Invalid, MentatError, ValidationFailed

DOCUMENT: dict[str, Any] = {
    "apiVersion": "v1alpha1",
    "kind": "Flow",
    "meta": {"id": "demo.echo", "createdAt": "2025-07-22T14:05:00Z"},
    "graph": {
        "nodes": [
            {"id": "prompt1", "type": "ui.prompt", "position": {"x": 1, "y": 2}, "later": True}
        ]
    },
    "layout": {"zoom": 0.9, "viewport": {"x": 0}},
    "runConfig": {"maxTokens": 2048, "secrets": ["KEY"]},
}


def test_what_is_not_known_is_kept_on_a_round_trip() -> None:
    assert load_flow(DOCUMENT).document() == DOCUMENT


def test_the_fields_of_a_node() -> None:
    flow = load_flow(
        b"""
apiVersion: v1beta1
kind: Flow
meta: {id: a}
graph:
  nodes:
    - id: n
      type: t.detect:1.0.0
      params: {model: a}
      forEach: image
      maxParallel: 4
      ordered: false
      onItemError: skip
      maxFailed: 0
      needs: 2.0
      retry: {maxAttempts: 1, base_s: 0.5}
      timeouts: {attempt_s: 5}
      keep: true
  edges: [{from: a.b, to: n.image}]
runConfig: {timeoutSeconds: 60}
"""
    )
    (node,) = flow.graph.nodes
    assert (node.for_each, node.max_parallel, node.ordered, node.max_failed) == (
        "image",
        4,
        False,
        0,
    )
    assert (node.retry.max_attempts, node.retry.base_s, node.retry.cap_s) == (1, 0.5, 60.0)
    assert (node.timeouts.attempt_s, node.timeouts.start_s) == (5, 120.0)
    assert (node.on_item_error, node.keep, node.needs) == ("skip", True, 2.0)
    assert (flow.graph.edges[0].source, flow.graph.edges[0].target) == ("a.b", "n.image")
    assert flow.run_config.timeout_seconds == 60


def test_every_fault_is_told_at_once() -> None:
    node = {"id": "_run", "type": "", "maxParallel": 0, "needs": "some", "onItemError": "ignore"}
    document = {
        **DOCUMENT,
        "apiVersion": "v2",
        "kind": "Agent",
        "graph": {"nodes": [node], "edges": [{"from": "a", "to": "b.c.d"}, {"from": "a.b"}]},
        "runConfig": {"timeoutSeconds": -1},
    }
    with pytest.raises(ValidationFailed) as refused:
        load_flow(document, name="x.mlab")
    assert refused.value.code == Code.FLOW_INVALID
    assert "x.mlab" in refused.value.message
    assert sorted(p.path for p in refused.value.problems) == [
        "/apiVersion",
        "/graph/edges/0/from",
        "/graph/edges/0/to",
        "/graph/edges/1/to",
        "/graph/nodes/0/id",
        "/graph/nodes/0/maxParallel",
        "/graph/nodes/0/needs",
        "/graph/nodes/0/onItemError",
        "/graph/nodes/0/type",
        "/kind",
        "/runConfig/timeoutSeconds",
    ]


def test_a_syntax_error_names_the_line() -> None:
    with pytest.raises(Invalid) as refused:
        load_flow("kind: Flow\nmeta: {id: a\ngraph: 1\n", name="a.mlab")
    assert refused.value.code == Code.FLOW_SYNTAX
    assert "line 3" in refused.value.message


WORDS = st.sampled_from(
    ["apiVersion", "kind", "meta", "graph", "nodes", "edges", "id", "type", "Flow", "v1beta1"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
)


@given(st.dictionaries(WORDS, JSON) | st.text())
def test_no_input_crashes_the_loader(source: Any) -> None:
    with suppress(MentatError):
        load_flow(source)
