"""Warm agents that misbehave, on a real server: one invocation's fault ends as any other does, and
the worker is replaced, not mourned.
"""

import os
import signal
from pathlib import Path

import pytest
from tests.e2e.test_bad_agents import chain
from tests.gateway.conftest import write_agent
from tests.support.api import Api, assert_failed, until

pytestmark = pytest.mark.usefixtures("well_afterwards")

MANIFEST = """\
id: {id}
version: 1.0.0
runtime: python3.11
inputs: [{{name: text, type: string, required: false}}]
outputs: [{{name: text, type: string}}]
execution: {{warm: true, startup_timeout_s: 1}}
"""
HEAD = """\
import json, os, pathlib, signal, sys, time
pathlib.Path(__file__).with_name(f"pid-{os.getpid()}").touch()
warm = os.environ.get("MENTAT_WARM") == "1"
def say(**event): print(json.dumps(event), flush=True)
def ready(): say(type="ready", protocol=1, concurrency=4)
def invocations():
    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "invoke":
            yield message["id"]
"""
BAD = {
    "dies": ("ready()\nfor id in invocations(): sys.exit('no more')", "AGENT_KILLED", "no more"),
    "dies-before": ("sys.exit('no model')", "AGENT_START_FAILED", "no model"),
    "floods": (
        "ready()\nfor id in invocations():\n  while 1: say(type='log', id=id, message='x' * 999)",
        "AGENT_FLOOD",
        "far more than anybody",
    ),
    "long-line": (
        "ready()\nfor id in invocations(): say(type='log', id=id, message='x' * 2_000_000)",
        "AGENT_LINE_TOO_LONG",
        "more than 1 MiB",
    ),
    "ignores-cancel": (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nready()\nfor id in invocations(): pass",
        "AGENT_TIMEOUT",
        "did not end in time",
    ),
    "lies": (
        "ready()\nfor id in invocations(): say(type='result', id=id, outputs={'text': [1]})",
        "OUTPUT_TYPE",
        "not of type string",
    ),
    "forgets": (
        "ready()\nfor id in invocations(): say(type='result', id=id, outputs={})",
        "OUTPUT_MISSING",
        "no text",
    ),
    "fails": (
        "ready()\nfor id in invocations():"
        " say(type='error', id=id, code='SOUP_COLD', message='cold', hint='heat it')",
        "SOUP_COLD",
        "cold",
    ),
}
NEVER_READY = """\
if warm:
    time.sleep(600)
json.loads(sys.stdin.readline())
say(text="by myself")
"""
GARBAGE = """\
print("loading the model ...")
print('{"type": "ready", "protocol": 99, "concurrency": "many"}')
ready()
for id in invocations():
    print("\\x00\\xff garbage")
    say(type="result", id="nobody", outputs={"text": "wrong"})
    say(type="chunk", id=id)
    say(type="result", id=id, outputs={"text": "fine"})
"""


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agents")
    write_agent(folder / "echo")
    for name, (main, _, _) in BAD.items():
        write_agent(folder / name, MANIFEST.format(id=f"warm.{name}"), HEAD + main)
    for name, main in {"never-ready": NEVER_READY, "garbage": GARBAGE}.items():
        write_agent(folder / name, MANIFEST.format(id=f"warm.{name}"), HEAD + main)
    return folder


def processes(agents: Path, name: str) -> list[int]:
    """Of this agent, alive now."""
    pids = [int(path.name.partition("-")[2]) for path in (agents / name / "src").glob("pid-*")]
    return [pid for pid in pids if str(agents / name).encode() in _command(pid)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("name", BAD)
def test_it_fails_with_a_reason(api: Api, agents: Path, name: str):
    _, code, message = BAD[name]
    before = api.memory()
    timeouts = {"attempt_s": 1} if code == "AGENT_TIMEOUT" else {}
    retry = {"maxAttempts": 1, "base_s": 0.01}
    view = api.run(chain(f"warm.{name}", timeouts=timeouts, retry=retry))
    assert api.memory() < before + (80 << 20)
    node = assert_failed(view, "n0", code)
    assert message in node["error"]["message"]
    if name in ("dies", "dies-before", "long-line", "ignores-cancel"):
        until(lambda: not processes(agents, name), "the worker is gone")


def test_one_that_is_never_ready_works_as_one_shot(api: Api):
    view = api.run(chain("warm.never-ready"))
    assert view["state"] == "succeeded", view
    logs = api.http.get(f"/api/v1/runs/{view['run_id']}/nodes/n0/logs").json()["logs"]
    assert any("ready" in entry.get("message", "") for entry in logs)


def test_garbage_between_the_right_words_does_no_harm(api: Api, agents: Path):
    for _ in range(3):
        assert api.run(chain("warm.garbage"))["state"] == "succeeded"
    assert len(processes(agents, "garbage")) == 1


def test_a_worker_that_is_killed_between_two_runs_is_replaced(api: Api, agents: Path):
    assert api.run(chain("warm.garbage"))["state"] == "succeeded"
    (pid,) = processes(agents, "garbage")
    os.kill(pid, signal.SIGKILL)
    assert api.run(chain("warm.garbage"))["state"] == "succeeded"
    assert processes(agents, "garbage") != [pid]
