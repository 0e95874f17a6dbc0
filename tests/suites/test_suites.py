"""Suites: what they may say, what steps become, how results are judged and reported."""

from typing import Any
from xml.etree import ElementTree

import pytest

from mentatlab.flows.flow import load_flow
from mentatlab.protocol.errors import Invalid, ValidationFailed
from mentatlab.suites.checks import Failure, Outcome, judge
from mentatlab.suites.model import Expect, load_suite, load_words
from mentatlab.suites.plan import cases_of, fill, match
from mentatlab.suites.reports import junit, report
from mentatlab.suites.running import CaseResult, SuiteResult

WORDS = load_words("""\
steps:
  give: {argument: "{text}", node: {type: test.give, params: {text: $text}}, gives: {out: text}}
  photo: {input: image}
  every:
    argument: "{n:number}s"
    node: {type: test.every, params: {every_s: $n}}
    takes: {image: image, text: text?}
    gives: {out: rows}
    expect: {outputs: {rows: {count: {min: 1}}}}
  check:
    argument: [strictly]
    expect: {outputs: {rows: {type: json}}}
""")


def suite_of(*steps: str) -> Any:
    lines = "".join(f"      - {step}\n" for step in steps)
    return load_suite(f"tests:\n  - name: A Test\n    flow:\n{lines}")


def test_steps_become_a_flow():
    suite = suite_of("photo: cat.jpg", "give: hi", "every: 0.5s", "check: strictly")
    [case] = cases_of(suite, WORDS)
    flow: Any = case.flow
    load_flow(flow)
    assert flow["meta"]["id"] == "suite.a-test"
    assert flow["graph"]["nodes"] == [
        {"id": "photo", "type": "ui.file-upload", "params": {"accept": "image/*"}},
        {"id": "give", "type": "test.give", "params": {"text": "hi"}},
        {"id": "every", "type": "test.every", "params": {"every_s": 0.5}},
        {"id": "result", "type": "ui.console"},
    ]
    assert flow["graph"]["edges"] == [
        {"from": "photo.file", "to": "every.image"},
        {"from": "give.out", "to": "every.text"},
        {"from": "give.out", "to": "result.text"},
        {"from": "every.out", "to": "result.rows"},
    ]
    assert case.files == {"photo": "cat.jpg"}
    assert [list(e.outputs) for e in case.expects if e.outputs] == [["result.rows"]] * 2


def test_a_stand_in_takes_an_arguments_place():
    [case] = cases_of(suite_of("give: big"), WORDS, {"big": "small"})
    assert isinstance(case.flow, dict)
    assert case.flow["graph"]["nodes"][0]["params"] == {"text": "small"}


def test_a_step_may_come_twice():
    [case] = cases_of(suite_of("give: a", "give: b"), WORDS)
    assert isinstance(case.flow, dict)
    assert [n["id"] for n in case.flow["graph"]["nodes"]] == ["give", "give-2", "result"]


def test_every_problem_of_the_steps_at_once():
    suite = suite_of("dance: now", "every: often", "every: 1s", "check: loosely", "{a: 1, b: 2}")
    with pytest.raises(ValidationFailed) as raised:
        cases_of(suite, WORDS)
    found = [(p.path, p.message) for p in raised.value.problems]
    assert found == [
        ("/tests/0/flow/0", "nobody knows the step dance"),
        ("/tests/0/flow/1", "every takes no 'often'"),
        ("/tests/0/flow/2", "no step before it gives image"),
        ("/tests/0/flow/3", "check takes no 'loosely'"),
        ("/tests/0/flow/4", "a step is one word with its argument"),
    ]
    assert all(problem.hint for problem in raised.value.problems)


def test_every_problem_of_the_document_at_once():
    with pytest.raises(ValidationFailed) as raised:
        load_suite("tests:\n  - {name: x, flow: f.mlab, expct: {}}\n  - {flow: 3, timeout_s: 0}\n")
    paths = {problem.path for problem in raised.value.problems}
    assert {"/tests/0/expct", "/tests/1/name", "/tests/1/timeout_s"} <= paths
    for text in ("tests: []", "tests: [{name: a, flow: x}, {name: a, flow: x}]"):
        with pytest.raises(ValidationFailed):
            load_suite(text)
    with pytest.raises(Invalid):
        load_suite("tests: [")


def test_a_schema_that_is_none():
    check = "{outputs: {x: {schema: {type: nonsense}}}}"
    with pytest.raises(ValidationFailed) as raised:
        load_suite(f"tests: [{{name: a, flow: x, expect: {check}}}]")
    assert any("no JSON Schema" in problem.message for problem in raised.value.problems)


@pytest.mark.parametrize(
    ("pattern", "argument", "found"),
    [
        ("{fps:number}fps", "2.5fps", {"fps": 2.5}),
        ("{fps:number}fps", "fps", None),
        ("{a}/{b:number}", "x.y/3", {"a": "x.y", "b": 3.0}),
        ("{argument}", "anything (at all)", {}),
        (["one", "two"], "two", {}),
        (["one", "two"], "three", None),
    ],
)
def test_arguments(pattern: str | list[str], argument: str, found: dict[str, Any] | None):
    wanted = None if found is None else {**found, "argument": argument}
    assert match(pattern, argument) == wanted


def test_what_was_found_goes_anywhere():
    found = {"n": 2.0, "name": "x"}
    assert fill({"a": ["$n", {"b": "$name"}], "c": "$other", "d": 1}, found) == {
        "a": [2.0, {"b": "x"}],
        "c": "$other",
        "d": 1,
    }


IMAGE = {"type": "image", "ref": {"url": "mentat://default/blob_01J00000000000000000000000"}}
NODE: dict[str, Any] = {
    "node_id": "n",
    "state": "succeeded",
    "attempts": [{}, {}],
    "streams": [{"pin": "out", "chunks": 3}],
    "spread": {"states": {"succeeded": 5}, "run_s": {}},
    "started_at": 1.0,
    "first_chunk_at": 2.0,
    "run_s": 4.0,
    "stream_s": None,
}
OUTCOME = Outcome(
    run={
        "state": "failed",
        "error": {"code": "AGENT_ERROR"},
        "nodes": [{"id": "n", "error": {"code": "AGENT_ERROR", "message": "no", "hint": "why"}}],
    },
    outputs={"a": {"rows": [1, 2], "x/y": "deep"}, "i": IMAGE, "n": 3, "s": {"type": "stream"}},
    timeline={"nodes": [NODE], "run_s": 8.0},
    streams={"s": ["one", "two"]},
)
FINE: dict[str, Any] = {
    "state": "failed",
    "error": "AGENT_ERROR",
    "outputs": {
        "a": {
            "type": "json",
            "schema": {"type": "object"},
            "contains": {"rows": [1, 2]},
            "count": 2,
            "at": {"/rows/1": {"equals": 2}, "/x~1y": {"matches": "^de"}},
        },
        "i": {"type": "image"},
        "n": {"type": "number", "min": 3, "max": 3, "equals": 3},
        "s": {"type": "stream", "count": {"min": 2}, "contains": "one"},
    },
    "nodes": {
        "n": {
            "state": "succeeded",
            "error": "AGENT_ERROR",
            "attempts": 2,
            "chunks": {"out": {"min": 1, "max": 3}},
            "items": {"succeeded": 5, "failed": 0},
        }
    },
    "timings": [
        {"of": "n.first_chunk_s", "to": "n.run_s", "max": 0.25},
        {"of": "n.run_s", "to": "run.run_s", "min": 0.5},
    ],
}


def judged(expect: dict[str, Any]) -> list[str]:
    return [failure.where for failure in judge((Expect.model_validate(expect),), OUTCOME)]


def test_everything_is_as_expected():
    assert judged(FINE) == []


@pytest.mark.parametrize(
    ("expect", "where"),
    [
        ({"error": "OTHER"}, "error"),
        ({"outputs": {"b": {}}}, "outputs.b"),
        ({"outputs": {"a": {"type": "image"}}}, "outputs.a"),
        ({"outputs": {"i": {"type": "json"}}}, "outputs.i"),
        ({"outputs": {"a": {"schema": {"required": ["z"]}}}}, "outputs.a"),
        ({"outputs": {"a": {"contains": {"rows": []}}}}, "outputs.a"),
        ({"outputs": {"n": {"equals": 4}}}, "outputs.n"),
        ({"outputs": {"n": {"contains": 4}}}, "outputs.n"),
        ({"outputs": {"n": {"min": 4}}}, "outputs.n"),
        ({"outputs": {"n": {"max": 2}}}, "outputs.n"),
        ({"outputs": {"n": {"count": 1}}}, "outputs.n.count"),
        ({"outputs": {"i": {"min": 1}}}, "outputs.i"),
        ({"outputs": {"a": {"matches": "never"}}}, "outputs.a"),
        ({"outputs": {"s": {"count": 3}}}, "outputs.s.count"),
        ({"outputs": {"a": {"at": {"/rows/7": {}}}}}, "outputs.a"),
        ({"outputs": {"a": {"at": {"/rows/0": {"equals": 9}}}}}, "outputs.a/rows/0"),
        ({"nodes": {"m": {}}}, "nodes.m"),
        ({"nodes": {"n": {"state": "failed"}}}, "nodes.n.state"),
        ({"nodes": {"n": {"error": "OTHER"}}}, "nodes.n.error"),
        ({"nodes": {"n": {"attempts": 1}}}, "nodes.n.attempts"),
        ({"nodes": {"n": {"chunks": {"nothing": 1}}}}, "nodes.n.chunks.nothing"),
        ({"nodes": {"n": {"items": {"succeeded": 4}}}}, "nodes.n.items.succeeded"),
        (
            {"timings": [{"of": "n.run_s", "to": "run.run_s", "max": 0.1}]},
            "timings.n.run_s/run.run_s",
        ),
        ({"timings": [{"of": "m.run_s", "to": "run.run_s"}]}, "timings.m.run_s/run.run_s"),
        ({"timings": [{"of": "n.run_s", "to": "n.stream_s"}]}, "timings.n.run_s/n.stream_s"),
    ],
)
def test_what_is_not_as_expected_is_named(expect: dict[str, Any], where: str):
    assert judged({"state": "failed", **expect}) == [where]


def test_a_run_that_should_have_succeeded_says_why_it_did_not():
    [failure] = judge((Expect(),), OUTCOME)
    assert str(failure) == "state: the run failed, not succeeded (n: AGENT_ERROR: no; hint: why)"


def test_reports():
    good = CaseResult(name="good", seconds=1.5, run_id="rn_1", state="succeeded")
    bad = CaseResult(name="bad", seconds=0.5, failures=(Failure("outputs.x", "<no>\x00"),))
    broken = CaseResult(name="broken", seconds=0.0, error="SUITE_INVALID: nothing there")
    result = SuiteResult(name="s", cases=(good, bad, broken), stand_ins={"a": "b"})
    told = report([result])
    assert not told["passed"]
    assert [test["passed"] for test in told["suites"][0]["tests"]] == [True, False, False]
    assert told["suites"][0]["stand_ins"] == {"a": "b"}
    root = ElementTree.fromstring(junit([result]))
    place = root[0]
    assert {k: place.get(k) for k in ("tests", "failures", "errors", "time")} == {
        "tests": "3",
        "failures": "1",
        "errors": "1",
        "time": "2.000",
    }
    assert [[child.tag for child in case] for case in place] == [
        ["system-out"],
        ["failure"],
        ["error"],
    ]
    assert place[1][0].text == "outputs.x: <no>"
