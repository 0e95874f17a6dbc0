"""`mentatlab test` with suites of one's own."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.gateway.conftest import ECHO, ECHO_FLOW, WAIT_MAIN, write_agent

from mentatlab.cli.root import cli

SUITE = """\
steps:
  say:
    node: {type: test.echo, params: {text: $argument}}
    gives: {text: said}
tests:
  - name: a flow in a file
    flow: echo.mlab
    inputs: {words: hello}
    expect:
      outputs: {out.text: {type: string, equals: hello}}
      nodes: {echo: {state: succeeded, attempts: 1}}
      timings: [{of: echo.run_s, to: run.run_s, max: 1}]
  - name: steps
    flow:
      - say: good day
    expect: {outputs: {said: {contains: day}}}
  - name: not as expected
    flow: echo.mlab
    inputs: {words: hello}
    expect: {outputs: {out.text: {equals: bye}}}
  - name: no file
    flow: nowhere.mlab
  - name: no end
    flow:
      - wait: long
    timeout_s: 0.5
    expect: {state: cancelled}
"""
STEPS = (
    "steps:\n  wait: {node: {type: test.wait, params: {text: $argument}}, gives: {text: never}}\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_agent(tmp_path / "agents" / "echo")
    write_agent(tmp_path / "agents" / "wait", ECHO.replace("test.echo", "test.wait"), WAIT_MAIN)
    (tmp_path / "echo.mlab").write_text(ECHO_FLOW)
    (tmp_path / "mine.yaml").write_text(SUITE)
    (tmp_path / "steps.yaml").write_text(STEPS)
    return tmp_path


def run(folder: Path, *options: str, code: int) -> Result:
    arguments = ["test", str(folder / "mine.yaml"), "--agents", str(folder / "agents")]
    answer = CliRunner().invoke(cli, [*arguments, *options])
    assert answer.exit_code == code, f"{answer.output}\n{answer.exception!r}"
    return answer


def test_a_suite_of_ones_own(folder: Path):
    report = folder / "report.xml"
    answer = run(
        folder, "--steps", str(folder / "steps.yaml"), "--json", "--junit", str(report), code=1
    )
    tests = json.loads(answer.stdout)["suites"][0]["tests"]
    assert [test["passed"] for test in tests] == [True, True, False, False, False]
    assert tests[2]["failures"][0]["message"] == '"hello" is not "bye"'.replace('"', "")
    assert "nowhere.mlab" in tests[3]["error"]
    assert (tests[4]["state"], tests[4]["error"]) == ("cancelled", "it took longer than its 0.5 s")
    assert 'tests="5" failures="1" errors="2"' in report.read_text()


def test_only_some_and_for_the_eye(folder: Path):
    options = ("--steps", str(folder / "steps.yaml"), "--only", "steps", "--with", "good day=a day")
    answer = run(folder, *options, code=0)
    assert "ok  steps" in answer.stderr
    assert answer.stdout.splitlines() == ["good day is stood in for by a day", "1 tests, 0 failed"]


def test_a_suite_that_cannot_run(folder: Path):
    answer = run(folder, code=2)  # nobody told it what `wait` is
    assert "SUITE_INVALID" in answer.stderr
    assert "nobody knows the step wait" in answer.stderr
