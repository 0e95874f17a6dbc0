"""`mentatlab runs`, each against a server of its own in this process."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.gateway.conftest import ECHO, ECHO_FLOW, write_agent

from mentatlab.cli.root import cli
from mentatlab.cli.timeline import bar_of

FLAKY_MAIN = """\
import json, os, sys
text = json.load(sys.stdin)["text"]
attempt = int(os.environ["ATTEMPT"])
print("attempt", attempt, file=sys.stderr)
if attempt == 1:
    sys.exit(3)
print(json.dumps({"text": text}))
"""
FLAKY_FLOW = ECHO_FLOW.replace("test.echo}", "test.flaky, retry: {base_s: 0.01}}")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    agents = tmp_path / "home" / "agents"
    write_agent(agents / "flaky", ECHO.replace("test.echo", "test.flaky"), FLAKY_MAIN)
    (tmp_path / "flaky.mlab").write_text(FLAKY_FLOW)
    return tmp_path / "home"


def mentatlab(home: Path, *arguments: str | Path, code: int = 0) -> Result:
    answer = CliRunner().invoke(
        cli, [*map(str, arguments)], env={"MENTATLAB_HOME": str(home), "COLUMNS": "160"}
    )
    assert answer.exit_code == code, f"{answer.output}\n{answer.exception!r}"
    return answer


def data(home: Path, *arguments: str | Path, code: int = 0) -> Any:
    return json.loads(mentatlab(home, *arguments, "--json", code=code).stdout)


@pytest.fixture
def run_id(home: Path) -> str:
    return data(home, "run", home.parent / "flaky.mlab", "-i", "words=hi")["run_id"]


def test_what_one_may_ask_about_a_run(home: Path, run_id: str):
    assert (
        run_id in mentatlab(home, "runs", "ls", "--state", "succeeded", "--flow", "t.echo").output
    )
    assert data(home, "runs", "ls", "--search", "nothing")["runs"] == []
    refused = mentatlab(home, "runs", "ls", "--since", "yesterday", code=1)
    assert "/query/since" in refused.stderr

    told = data(home, "runs", "timeline", run_id)
    echo = next(n for n in told["nodes"] if n["node_id"] == "echo")
    assert [a["outcome"] for a in echo["attempts"]] == ["retried", "succeeded"]
    shown = mentatlab(home, "runs", "timeline", run_id).stdout.splitlines()
    assert shown[0].startswith(f"{run_id}  succeeded")
    assert shown[-1].startswith(". queued")
    line = next(line for line in shown if line.startswith("echo"))
    assert line.endswith("|")

    for options in ([], ["--attempt", "2"], ["--follow"]):  # gone with the server that kept them
        assert mentatlab(home, "runs", "logs", run_id, "echo", *options).stdout == ""

    assert data(home, "runs", "lineage", run_id)["origins"][0]["input"] == "words"
    shown_lineage = mentatlab(home, "runs", "lineage", run_id, "echo.text").stdout
    assert "echo.text <- words.text" in shown_lineage


def test_a_parameter_must_name_a_node(home: Path, run_id: str):
    refused = mentatlab(home, "runs", "rerun", run_id, "--param", "text=1", code=1)
    assert "node.name=value" in refused.stderr


UNIT = {"ready_at": 0.0, "started_at": 2.0, "ended_at": 9.0, "first_chunk_at": 7.0}
TRIES = [{"started_at": 2.0, "ended_at": 3.0}, {"started_at": 6.0, "ended_at": 9.0}]


@pytest.mark.parametrize(
    ("unit", "bar"),
    [
        ({**UNIT, "attempts": TRIES}, "..==~~=*=|"),
        ({**UNIT, "attempts": [], "started_at": None, "first_chunk_at": None}, ".........|"),
        ({**UNIT, "attempts": TRIES[:1], "ended_at": None, "first_chunk_at": None}, "..==~~~~~~"),
        (dict.fromkeys([*UNIT]) | {"attempts": []}, ""),
    ],
)
def test_bars(unit: dict[str, Any], bar: str):
    assert bar_of(unit, 0.0, 10.0, width=10) == bar


def test_a_run_is_shown_once_more_as_it_went(home: Path, run_id: str):
    told = mentatlab(home, "runs", "replay", run_id, "--speed", "1000").stdout.splitlines()
    assert told[0] == "run started"
    assert "echo will be tried again" in "\n".join(told)
    assert told[-1] == "run succeeded"
    lines = mentatlab(home, "runs", "replay", run_id, "--speed", "1000", "--json").stdout
    records = [json.loads(line) for line in lines.splitlines()]
    types = [r["payload"]["data"]["type"] for r in records if r["type"] == "stream_data"]
    assert (types[0], types[-1]) == ("run_created", "run_finished")
    rest = mentatlab(
        home, *("runs", "replay", run_id, "--speed", "1000", "--json"),
        *("--from", records[1]["cursor"]),
    ).stdout  # fmt: skip
    assert [json.loads(line) for line in rest.splitlines()][-1] == records[-1]
    assert len(rest.splitlines()) == len(records) - 2
    assert "RUN_NOT_FOUND" in mentatlab(home, "runs", "replay", "rn_none", code=1).stderr
    mentatlab(home, "runs", "replay", run_id, "--speed", "0", code=2)
