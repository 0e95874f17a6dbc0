"""The command line as a person and a program use it; every command starts as a process."""

import json
from pathlib import Path

import pytest
from tests.gateway.conftest import ECHO, ECHO_FLOW, write_agent
from tests.support.server import mentatlab, up

COPY = """\
id: test.copy
version: 1.0.0
runtime: python3.11
inputs: [{name: file, type: binary}]
outputs: [{name: copy, type: binary}]
"""
COPY_MAIN = """\
import json, os, pathlib, sys
body = json.loads(sys.stdin.readline())
out = pathlib.Path(os.environ["MENTAT_OUT"], "copy.bin")
out.write_bytes(pathlib.Path(body["file"]["path"]).read_bytes())
print(json.dumps({"copy": {"path": str(out)}}))
"""
COPY_FLOW = """\
apiVersion: v1beta1
kind: Flow
meta: {id: t.copy}
graph:
  nodes: [{id: copy, type: test.copy}]
  edges: []
"""
SPEAK = """\
id: test.speak
version: 1.0.0
runtime: python3.11
inputs: [{name: text, type: string}]
outputs: [{name: words, type: stream, metadata: {items: json}}]
"""
SPEAK_MAIN = """\
import json, sys
for word in json.loads(sys.stdin.readline())["text"].split():
    print(json.dumps({"type": "chunk", "pin": "words", "data": {"text": word + " "}}), flush=True)
print(json.dumps({"type": "result", "outputs": {}}))
"""
SPEAK_FLOW = ECHO_FLOW.replace("test.echo", "test.speak").replace(
    "from: echo.text", "from: echo.words"
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with agents in it."""
    agents = tmp_path / "home" / "agents"
    write_agent(agents / "echo")
    write_agent(agents / "copy", COPY, COPY_MAIN)
    write_agent(agents / "speak", SPEAK, SPEAK_MAIN)
    write_agent(
        agents / "fail",
        ECHO.replace("test.echo", "test.fail"),
        "import sys\nsys.exit('it broke')\n",
    )
    return tmp_path / "home"


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    path = tmp_path / "echo.mlab"
    path.write_text(ECHO_FLOW)
    return path


def test_run_without_a_server(home: Path, flow: Path):
    answer = mentatlab("run", flow, "--input", "words=hello there", home=home)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "out.text: hello there\n"
    assert "run succeeded" in answer.stderr


def test_run_with_the_homes_server_and_json(home: Path, flow: Path):
    with up(home) as server:
        answer = mentatlab("run", flow, "-i", "words=5", "--json", home=home)
        told = json.loads(answer.stdout)
        assert told["state"] == "succeeded"
        assert told["outputs"] == {"out.text": "5"}
        assert "starting one" not in answer.stderr
        listed = json.loads(mentatlab("runs", "ls", "--json", home=home).stdout)
        assert [run["run_id"] for run in listed["runs"]] == [told["run_id"]]
        elsewhere = home.parent / "elsewhere"
        named = mentatlab("runs", "show", told["run_id"], "--server", server.url, home=elsewhere)
        assert "out.text: 5" in named.stdout
        assert not elsewhere.exists()


def test_run_reads_a_flow_from_stdin(home: Path):
    answer = mentatlab("run", "-", "-i", "words=x", home=home, stdin=ECHO_FLOW)
    assert answer.stdout == "out.text: x\n"


def test_media_go_in_and_come_out(home: Path, tmp_path: Path):
    flow, data, out = tmp_path / "copy.mlab", tmp_path / "data.bin", tmp_path / "out"
    flow.write_text(COPY_FLOW)
    data.write_bytes(bytes(range(256)) * 100)
    answer = mentatlab("run", flow, "-i", f"copy.file={data}", "-o", out, "--json", home=home)
    assert answer.returncode == 0, answer.stderr
    (file,) = json.loads(answer.stdout)["files"].values()
    assert Path(file).read_bytes() == data.read_bytes()


def test_streamed_text_is_shown_as_it_comes_and_tailed(home: Path, tmp_path: Path):
    flow = tmp_path / "speak.mlab"
    flow.write_text(SPEAK_FLOW)
    with up(home):
        answer = mentatlab("run", flow, "-i", "words=one two three", "--json", home=home)
        assert answer.returncode == 0, answer.stderr
        assert "one two three" in answer.stderr
        (value,) = json.loads(answer.stdout)["outputs"].values()
        tail = mentatlab("streams", "tail", value["stream_id"], home=home)
        assert tail.stdout == "one \ntwo \nthree \n"
        records = mentatlab("streams", "tail", value["stream_id"], "--json", home=home).stdout
        assert [json.loads(r)["sequence"] for r in records.splitlines()] == [2, 3, 4]
        plain = mentatlab("run", flow, "-i", "words=a b", home=home)
        assert plain.stdout == "out.text: a b\n"


def test_a_failed_run_is_exit_code_1_with_the_reason(home: Path, tmp_path: Path):
    flow = tmp_path / "fail.mlab"
    flow.write_text(ECHO_FLOW.replace("test.echo", "test.fail"))
    with up(home):
        answer = mentatlab("run", flow, "-i", "words=x", "--json", home=home)
        assert answer.returncode == 1
        told = json.loads(answer.stdout)
        assert told["state"] == "failed"
        assert "AGENT_EXIT" in answer.stderr
        watched = mentatlab("runs", "watch", told["run_id"], home=home)
        assert watched.returncode == 1
        assert "run failed" in watched.stdout
        logs = mentatlab("runs", "logs", told["run_id"], "echo", home=home)
        assert "it broke" in logs.stdout
        again = mentatlab("runs", "cancel", told["run_id"], home=home)
        assert (again.returncode, "RUN_TERMINAL" in again.stderr) == (1, True)


def test_validate_and_plan(home: Path, flow: Path, tmp_path: Path):
    assert mentatlab("validate", flow, home=home).returncode == 0
    plan = mentatlab("plan", flow, home=home).stdout
    assert "input   words: string" in plan
    assert "output  out.text" in plan
    wrong = tmp_path / "wrong.mlab"
    wrong.write_text(ECHO_FLOW.replace("test.echo", "nobody").replace("echo.text}", "ech.text}"))
    answer = mentatlab("validate", wrong, "--json", home=home)
    assert answer.returncode == 1
    codes = {p["code"] for p in json.loads(answer.stderr)["error"]["problems"]}
    assert {"UNKNOWN_AGENT", "UNKNOWN_NODE"} <= codes


def test_a_new_agent_runs_at_once(home: Path, tmp_path: Path):
    made = mentatlab("agent", "new", "my-agent", "--dir", tmp_path, home=home)
    folder = Path(made.stdout.strip())
    alone = mentatlab("agent", "run", folder, "--input", "text=hello", home=home)
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout == "agent.loud: HELLO\n"
    assert mentatlab("agents", "add", folder, home=home).stdout == "my.my-agent:0.1.0\n"
    run = mentatlab("run", folder / "flow.mlab", "-i", "words=loud", home=home)
    assert run.stdout == "result.loud: LOUD\n"
    twice = mentatlab("agent", "new", "my-agent", "--dir", tmp_path, home=home)
    assert (twice.returncode, "CONFLICT" in twice.stderr) == (1, True)
    odd = mentatlab("agent", "new", "no/slash", "--dir", tmp_path, home=home)
    assert (odd.returncode, "INVALID_REQUEST" in odd.stderr) == (1, True)


def test_agents(home: Path):
    listed = json.loads(mentatlab("agents", "ls", "--json", home=home).stdout)
    assert "test.echo" in {agent["id"] for agent in listed["agents"]}
    assert "text:string" in mentatlab("agents", "ls", home=home).stdout
    shown = mentatlab("agents", "show", "test.echo", home=home)
    assert "text: string" in shown.stdout
    unknown = mentatlab("agents", "show", "nobody", home=home)
    assert (unknown.returncode, "UNKNOWN_AGENT" in unknown.stderr) == (1, True)


def test_storage(home: Path, tmp_path: Path):
    data, copy = tmp_path / "data.bin", tmp_path / "copy.bin"
    data.write_bytes(b"\x00\x01" * 5000)
    with up(home):
        ref = mentatlab("storage", "put", data, home=home).stdout.strip()
        assert mentatlab("storage", "get", ref, "-o", copy, home=home).returncode == 0
        assert copy.read_bytes() == data.read_bytes()
        assert ref in mentatlab("storage", "ls", home=home).stdout
        assert mentatlab("storage", "rm", ref, home=home).returncode == 0
        missing = mentatlab("storage", "get", ref, home=home)
        assert (missing.returncode, "REFERENCE_NOT_FOUND" in missing.stderr) == (1, True)


def test_keys(home: Path):
    with up(home) as server:
        made = json.loads(mentatlab("keys", "add", "--scope", "read", "--json", home=home).stdout)
        use = ("--server", server.url, "--key", made["key"])
        elsewhere = home.parent / "elsewhere"
        assert mentatlab("runs", "ls", *use, home=elsewhere).returncode == 0
        refused = mentatlab("keys", "ls", *use, home=elsewhere)
        assert (refused.returncode, "FORBIDDEN" in refused.stderr) == (1, True)
        assert made["id"] in mentatlab("keys", "ls", home=home).stdout
        assert mentatlab("keys", "revoke", made["id"], home=home).returncode == 0
        over = mentatlab("runs", "ls", *use, home=elsewhere)
        assert (over.returncode, "UNAUTHENTICATED" in over.stderr) == (1, True)


def test_a_server_that_does_not_answer(home: Path):
    answer = mentatlab("runs", "ls", "--server", "http://127.0.0.1:9", home=home)
    assert answer.returncode == 1
    assert "error: SERVER_UNREACHABLE" in answer.stderr
    assert "hint:" in answer.stderr


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["run"], ["run", "/nowhere.mlab"], ["runs", "ls", "--limit", "0"]]
)
def test_a_wrong_command_line_is_exit_code_2(home: Path, arguments: list[str]):
    answer = mentatlab(*arguments, home=home)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert "Usage: mentatlab" in answer.stderr


def test_help_needs_no_server_parts(home: Path):
    answer = mentatlab("--help", home=home, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert answer.returncode == 0
    assert "Start the server" in answer.stdout
    for heavy in ("fastapi", "pydantic", "httpx2", "uvicorn"):
        assert f"| {heavy}\n" not in answer.stderr.replace("  ", " ")
        assert f" {heavy}\n" not in answer.stderr


def test_doctor(home: Path):
    found = json.loads(mentatlab("doctor", "--json", home=home).stdout)
    assert found["server"] is None
    assert "server" not in found["missing"]
    assert "ok" in mentatlab("doctor", home=home).stdout
