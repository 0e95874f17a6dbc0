"""The hand-written JSON Schemas and the models give the same verdict on every document."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from mentatlab.flows import ManifestValidator, load_flow
from mentatlab.flows.document import read_document
from mentatlab.flows.manifest import manifest_problems
from mentatlab.protocol.errors import Code, ValidationFailed

ROOT = Path(__file__).parents[2]
AGENT, FLOW = (
    Draft202012Validator(json.loads((ROOT / f"schemas/{name}.schema.json").read_text()))
    for name in ("agent", "flow")
)
BEYOND_THE_SCHEMA = {
    Code.MANIFEST_DUPLICATE_PIN,
    Code.MANIFEST_OLD_ENV,
    Code.MANIFEST_RESERVED_ENV,
}


def agent_fits(document: Any) -> bool:
    problems = ManifestValidator().validate(document)
    return not any(p.severity == "error" and p.code not in BEYOND_THE_SCHEMA for p in problems)


def flow_fits(document: Any) -> bool:
    try:
        load_flow(document)
    except ValidationFailed:
        return False
    return True


def read(path: Path) -> dict[str, Any]:
    return read_document(path.read_bytes(), code=Code.FLOW_SYNTAX, name=path.name)


@pytest.mark.parametrize("schema", [AGENT, FLOW])
def test_the_schemas_are_schemas(schema: Draft202012Validator) -> None:
    Draft202012Validator.check_schema(schema.schema)


@pytest.mark.parametrize("folder", ["valid", "invalid", "refused"])
def test_golden_manifests_have_one_verdict(folder: str) -> None:
    paths = list((ROOT / "conformance/manifests" / folder).iterdir())
    assert paths
    for path in paths:
        fits = folder != "invalid"
        assert AGENT.is_valid(read(path)) is fits, path.name
        assert agent_fits(read(path)) is fits, path.name


@pytest.mark.parametrize("folder", ["valid", "invalid"])
def test_golden_flows_have_one_verdict(folder: str) -> None:
    paths = list((ROOT / "conformance/flows" / folder).iterdir())
    assert paths
    for path in paths:
        fits = folder == "valid"
        assert FLOW.is_valid(read(path)) is fits, path.name
        assert flow_fits(read(path)) is fits, path.name


def test_every_installed_manifest_and_example_satisfies_the_schemas() -> None:
    for path in ROOT.glob("agents/*/manifest.yaml"):
        assert [e.message for e in AGENT.iter_errors(read(path))] == [], path
        assert manifest_problems(read(path)) == [], path
    for path in ROOT.glob("examples/*.mlab"):
        assert [e.message for e in FLOW.iter_errors(read(path))] == [], path


ODD = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        1,
        -1,
        2.0,
        0.5,
        "",
        "a",
        "1",
        "a b",
        "a.b",
        [],
        [1],
        ["a"],
        {},
        {"a": 1},
    ]
)


def mostly(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 9).flatmap(lambda n: ODD if n == 0 else strategy)


def fields(**optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={k: mostly(v) for k, v in optional.items()})


NAMES = st.sampled_from(["text", "image", "a-b", "a_b", "A1", "1a", "a.b"])
TYPES = st.sampled_from(["string", "json", "image", "audio", "stream", "picture"])
SIZES = st.sampled_from(["10MB", "1GiB", "4Gi", "1.5k", "x", " 3 MB ", "-1", "10i"]) | st.integers(
    -2, 2**40
)
NUMBERS = st.integers(-1, 100) | st.floats(-1, 100)
BOOLEANS = st.booleans()
TEXTS = st.sampled_from(["", "a", "b c"])

METADATA = fields(
    mimeType=TEXTS,
    encoding=TEXTS,
    sampleRate=NUMBERS,
    channels=NUMBERS,
    width=NUMBERS,
    height=NUMBERS,
    fps=NUMBERS,
    duration=NUMBERS,
    maxDuration=NUMBERS,
    maxSize=SIZES,
    streaming=BOOLEANS,
    byReference=BOOLEANS,
    items=TYPES,
    ttl=st.sampled_from(["ephemeral", "execution", "pinned", "forever", 3600]),
)
PIN = fields(
    name=NAMES,
    type=TYPES,
    required=BOOLEANS,
    default=ODD,
    enum=st.lists(ODD, max_size=2),
    description=TEXTS,
    metadata=METADATA,
)
VARIABLES = st.sampled_from(
    ["A", "A=b", "A=\n", "A-B", "=", {"name": "A"}, {"name": "A", "value": 1}]
)
AGENTS = fields(
    id=st.sampled_from(["a.b", "a", "a b"]),
    version=st.sampled_from(["0.1.0", "1.0.0-rc.1+b", "1.0", "01.0.0"]),
    image=TEXTS,
    runtime=TEXTS,
    command=st.lists(TEXTS, max_size=2),
    description=TEXTS,
    author=TEXTS,
    inputs=st.lists(mostly(PIN), max_size=2),
    outputs=st.lists(mostly(PIN), max_size=2),
    longRunning=BOOLEANS,
    execution=fields(
        warm=BOOLEANS,
        concurrency=NUMBERS,
        idle_ttl_s=NUMBERS,
        max_invocations=NUMBERS,
        max_rss=SIZES,
        startup_timeout_s=NUMBERS,
        batch=fields(max=NUMBERS, delay_ms=NUMBERS),
    ),
    resources=fields(
        cpu=NUMBERS | st.sampled_from(["500m", "2", "x"]),
        memory=SIZES,
        gpu=NUMBERS | BOOLEANS,
        timeout_seconds=NUMBERS,
        max_concurrent=NUMBERS,
        ephemeralStorage=SIZES,
        profiles=st.lists(TEXTS, max_size=2),
    ),
    env=st.lists(mostly(VARIABLES), max_size=2),
    ui=ODD,
    cache=ODD,
    later=ODD,
)
NODE = fields(
    id=NAMES,
    type=TEXTS,
    params=st.just({"a": [None]}),
    outputs=st.just({}),
    forEach=NAMES,
    maxParallel=NUMBERS,
    ordered=BOOLEANS,
    onItemError=st.sampled_from(["fail_fast", "collect", "skip", "retry"]),
    maxFailed=NUMBERS,
    when=TEXTS,
    needs=st.sampled_from(["all", "any", "some"]) | NUMBERS,
    retry=fields(maxAttempts=NUMBERS, base_s=NUMBERS, cap_s=NUMBERS),
    timeouts=fields(start_s=NUMBERS, attempt_s=NUMBERS, total_s=NUMBERS, heartbeat_s=NUMBERS),
    cache=ODD,
    profile=TEXTS,
    keep=BOOLEANS,
)
ENDS = st.sampled_from(["a.b", "a.b.c", "a", ".b", "a.", "a. b", "node-1.pin_2"])
FLOWS = fields(
    apiVersion=st.sampled_from(["v1alpha1", "v1beta1", "v1"]),
    kind=st.sampled_from(["Flow", "Agent"]),
    meta=fields(id=NAMES, name=TEXTS, version=TEXTS, description=TEXTS),
    graph=fields(
        nodes=st.lists(mostly(NODE), max_size=2),
        edges=st.lists(mostly(fields(**{"from": ENDS, "to": ENDS})), max_size=2),
    ),
    layout=st.just({"zoom": 1}),
    runConfig=fields(secrets=st.lists(TEXTS, max_size=1), timeoutSeconds=NUMBERS),
)


@settings(max_examples=400)
@given(AGENTS | AGENTS.map(lambda a: {"id": "a.b", "version": "0.1.0", **a}))
@example({"inputs": [{"name": None, "type": []}], "env": ["A=b"]})
def test_generated_manifests_have_one_verdict(document: dict[str, Any]) -> None:
    assert AGENT.is_valid(document) is agent_fits(document)


def part_of_an_agent(**part: Any) -> dict[str, Any]:
    return {"id": "a.b", "version": "0.1.0", **part}


PARTS = st.one_of(
    PIN.map(lambda p: part_of_an_agent(inputs=[{"name": "a", "type": "json", **p}])),
    METADATA.map(
        lambda m: part_of_an_agent(outputs=[{"name": "a", "type": "stream", "metadata": m}])
    ),
    VARIABLES.map(lambda v: part_of_an_agent(env=[v])),
    SIZES.map(lambda s: part_of_an_agent(resources={"memory": s})),
)


@settings(max_examples=400)
@given(PARTS)
def test_manifests_with_one_odd_part_have_one_verdict(document: dict[str, Any]) -> None:
    assert AGENT.is_valid(document) is agent_fits(document)


@settings(max_examples=400)
@given(FLOWS)
def test_generated_flows_have_one_verdict(document: dict[str, Any]) -> None:
    assert FLOW.is_valid(document) is flow_fits(document)


@settings(max_examples=400)
@given(NODE.map(lambda n: {"id": "a", "type": "x", **n}), ENDS)
def test_flows_with_one_odd_node_have_one_verdict(node: dict[str, Any], end: str) -> None:
    document = {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "a"},
        "graph": {"nodes": [node], "edges": [{"from": end, "to": "a.b"}]},
    }
    assert FLOW.is_valid(document) is flow_fits(document)
