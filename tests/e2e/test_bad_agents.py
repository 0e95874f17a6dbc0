"""Agents that misbehave, on a real server: the run fails with a reason that a person understands,
no process is left, and everybody else's runs go on.
"""

import json
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.gateway.conftest import ECHO_FLOW, write_agent
from tests.support.api import Api, Json, assert_failed, processes_of, until
from tests.support.server import mentatlab

pytestmark = pytest.mark.usefixtures("well_afterwards")

MANIFEST = """\
id: {id}
version: 1.0.0
runtime: python3.11
inputs: [{{name: text, type: string, required: false}}]
outputs: {outputs}
"""
TEXT = "[{name: text, type: string}]"
HEAD = """\
import json, os, signal, sys, time
asked = json.load(sys.stdin)
def say(**event): print(json.dumps(event), flush=True)
"""


class Bad(NamedTuple):
    """What the agent does, and what is told about it. `attempts` = how often it is tried."""

    main: str
    code: str
    message: str
    attempts: int = 1
    outputs: str = TEXT
    node: Json = {}


GARBAGE = """\
sys.stdout.buffer.write(bytes(range(256)) * 40 + b'\\n')
print('{"text": ')
print('{"text": NaN}')
print('{"type": "result", "outputs": [1]}')
print('{"type": "progress", "percent": "much"}')
print('{"type": "chunk"}')
print('[' * 100_000)
print('{"text": "\\\\ud800"}')
"""
BAD = {
    "garbage": Bad(GARBAGE, "NO_RESULT", "without a result"),
    "silent": Bad("", "NO_RESULT", "expected text"),
    "list": Bad("print([1, 2])", "NO_RESULT", "expected text"),
    "exits-3": Bad(
        "print('come back later', file=sys.stderr); sys.exit(3)",
        "AGENT_TRANSIENT",
        "exited with 3: come back later",
        attempts=3,
    ),
    "exits-1": Bad("say(text='x'); sys.exit('no luck')", "AGENT_EXIT", "exited with 1: no luck"),
    "raises": Bad("{}['key']", "AGENT_EXIT", "KeyError: 'key'"),
    "crashes": Bad("os.kill(os.getpid(), signal.SIGSEGV)", "AGENT_EXIT", "SIGSEGV"),
    "is-killed": Bad("os.kill(os.getpid(), signal.SIGKILL)", "AGENT_KILLED", "SIGKILL", attempts=3),
    "says-why": Bad(
        "say(type='error', code='SOUP_COLD', message='the soup is cold', hint='heat it')",
        "SOUP_COLD",
        "the soup is cold",
    ),
    "says-again": Bad(
        "say(type='error', code='BUSY', message='later', retryable=True, hint='wait')",
        "BUSY",
        "later",
        attempts=3,
    ),
    "never-answers": Bad(
        "time.sleep(600)",
        "AGENT_TIMEOUT",
        "did not end in time",
        attempts=2,
        node={"timeouts": {"attempt_s": 0.5}, "retry": {"maxAttempts": 2, "base_s": 0.01}},
    ),
    "ignores-the-end": Bad(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
        "AGENT_TIMEOUT",
        "did not end in time",
        node={"timeouts": {"attempt_s": 0.5}, "retry": {"maxAttempts": 1}},
    ),
    "never-reads": Bad(
        "time.sleep(600)",
        "AGENT_TIMEOUT",
        "no sign of life",
        node={"timeouts": {"heartbeat_s": 0.5}, "retry": {"maxAttempts": 1}},
    ),
    "long-line": Bad("say(text='x' * (2 << 20))", "AGENT_LINE_TOO_LONG", "more than 1 MiB"),
    "endless-line": Bad(
        "while True: sys.stdout.write('x' * 65536)", "AGENT_LINE_TOO_LONG", "more than 1 MiB"
    ),
    "floods": Bad("while True: print('x' * 1000)", "AGENT_FLOOD", "far more than anybody can read"),
    "floods-stderr": Bad(
        "while True: print('x' * 1000, file=sys.stderr)", "AGENT_FLOOD", "far more than anybody"
    ),
    "floods-outputs": Bad(
        "for n in range(10**9): say(type='output', key=f'k{n}', value='x' * 10_000)",
        "AGENT_FLOOD",
        "far more than anybody",
    ),
    "floods-progress": Bad(
        "for n in range(10**9): say(type='progress', percent=n % 100, message='x' * 10_000)",
        "AGENT_FLOOD",
        "far more than anybody",
    ),
    "lies": Bad("say(text=5)", "OUTPUT_TYPE", "text: 5 is not of type string"),
    "lies-about-media": Bad(
        "say(picture={'path': 'a.png'})",
        "MEDIA_TYPE_MISMATCH",
        "text",
        outputs="[{name: picture, type: image}]",
    ),
    "chunk-on-no-stream": Bad(
        "say(type='chunk', pin='text', data='x'); say(text='x')", "OUTPUT_TYPE", "no stream output"
    ),
    "chunk-of-wrong-type": Bad(
        "say(type='chunk', pin='words', data='x'); say(type='result', outputs={})",
        "OUTPUT_TYPE",
        "'x' is not of type number",
        outputs="[{name: words, type: stream, metadata: {items: number}}]",
    ),
    "forgets-one": Bad(
        "say(text='x')",
        "OUTPUT_MISSING",
        "no score",
        outputs="[{name: text, type: string}, {name: score, type: number, required: true}]",
    ),
    "names-a-foreign-file": Bad(
        "say(file={'path': '/etc/passwd'})",
        "OUTPUT_FILE_INVALID",
        "",
        outputs="[{name: file, type: binary}]",
    ),
    "links-to-a-foreign-file": Bad(
        "os.symlink('/etc/passwd', os.environ['MENTAT_OUT'] + '/a'); say(file={'path': 'a'})",
        "OUTPUT_FILE_INVALID",
        "",
        outputs="[{name: file, type: binary}]",
    ),
    "names-no-file": Bad(
        "say(file={'path': 'nothing'})",
        "OUTPUT_FILE_INVALID",
        "",
        outputs="[{name: file, type: binary}]",
    ),
    "large-inline": Bad(
        "say(file='QUJD' * 70_000)",
        "VALUE_TOO_LARGE",
        "characters of base64",
        outputs="[{name: file, type: binary}]",
    ),
}
PREPARE = {"lies-about-media": "open(os.environ['MENTAT_OUT'] + '/a.png', 'w').write('<html>')\n"}
FORKS = """\
if os.fork() == 0:
    os.setsid()
    time.sleep(600)
subprocess = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "600")
say(text="done")
"""
BIG = "say(text='x' * 600_000)"
TORRENT = "for n in range(300): say(type='chunk', pin='words', data='x' * 900_000)"
WORDS = "[{name: words, type: stream, metadata: {items: string}}]"


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agents")
    write_agent(folder / "echo")
    for name, bad in BAD.items():
        add(folder, name, PREPARE.get(name, "") + bad.main, bad.outputs)
    add(folder, "forks", FORKS)
    add(folder, "big", BIG)
    add(folder, "torrent", TORRENT, WORDS)
    add(folder, "starts-not", "this is no python")
    no_program = MANIFEST.format(id="bad.no-program", outputs=TEXT) + "command: [/nowhere/agent]\n"
    write_agent(folder / "no-program", no_program)
    return folder


def add(folder: Path, name: str, main: str, outputs: str = TEXT) -> None:
    manifest = MANIFEST.format(id=f"bad.{name}", outputs=outputs)
    write_agent(folder / name, manifest, HEAD + main)


def chain(*types: str, **fields: Any) -> Json:
    """Agents in a row by `text`, called n0, n1, …; what the first gives needs no name."""
    nodes = [{"id": f"n{i}", "type": type_} for i, type_ in enumerate(types)]
    nodes[0] = {"retry": {"base_s": 0.01}, **nodes[0], **fields}
    edges = [{"from": f"n{i}.text", "to": f"n{i + 1}.text"} for i in range(len(types) - 1)]
    return {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "t.bad"},
        "graph": {"nodes": nodes, "edges": edges},
    }


@pytest.mark.parametrize("name", BAD)
def test_it_fails_with_a_reason(api: Api, name: str):
    bad = BAD[name]
    before = api.memory()
    view = api.run(chain(f"bad.{name}", **bad.node))
    assert api.memory() < before + (80 << 20)
    node = assert_failed(view, "n0", bad.code)
    assert bad.message in node["error"]["message"]
    assert node["attempt"] == bad.attempts
    scratch = api.server.home / "scratch"
    until(lambda: not [p for p in scratch.rglob("*") if p.is_file()], "what it left is removed")


def test_others_go_on_beside_a_flood(api: Api):
    flood = api.submit(chain("bad.floods"))
    with ThreadPoolExecutor(4) as pool:
        views = list(pool.map(lambda n: api.run(ECHO_FLOW, words=str(n)), range(8)))
    assert [view["state"] for view in views] == ["succeeded"] * 8
    assert_failed(api.ended(flood), "n0", "AGENT_FLOOD")


def test_a_torrent_of_chunks_goes_to_the_disk_and_not_to_memory(api: Api):
    before = api.memory()
    run_id = api.submit(chain("bad.torrent"))
    most = before
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(api.ended, run_id)
        while not wait([ended], timeout=0.05).done:
            most = max(most, api.memory())
    assert ended.result()["state"] == "succeeded"
    assert most < before + (128 << 20)


def test_what_an_agent_leaves_behind_ends_with_it(api: Api):
    view = api.run(chain("bad.forks"))
    assert view["state"] == "succeeded"
    assert processes_of(view["run_id"]) == []


def test_a_program_that_is_not_there(api: Api):
    view = api.run(chain("bad.no-program"))
    node = assert_failed(view, "n0", "AGENT_START_FAILED")
    assert "/nowhere/agent" in node["error"]["message"]


def test_a_program_that_is_not_python(api: Api):
    node = assert_failed(api.run(chain("bad.starts-not")), "n0", "AGENT_EXIT")
    assert "SyntaxError" in node["error"]["message"]


def test_a_value_that_the_next_node_cannot_be_given(api: Api):
    view = api.run(chain("bad.big", "test.echo"))
    node = assert_failed(view, "n1", "VALUE_TOO_LARGE")
    assert "600002 bytes" in node["error"]["message"]
    assert "byReference" in node["error"]["hint"]


def test_what_comes_after_a_failed_node_ends_too(api: Api):
    view = api.run(chain("bad.exits-1", "test.echo", "test.echo"))
    assert_failed(view, "n0", "AGENT_EXIT")
    assert [node["state"] for node in view["nodes"]] == ["failed", *["upstream_failed"] * 2]
    for node in view["nodes"][1:]:
        assert node["error"]["code"] == "UPSTREAM_FAILED"
        assert node["error"]["hint"]


def test_the_log_keeps_what_was_no_event(api: Api):
    view = api.run(chain("bad.garbage"))
    logs = api.http.get(f"/api/v1/runs/{view['run_id']}/nodes/n0/logs").json()["logs"]
    assert any('{"text": NaN}' in entry.get("message", "") for entry in logs)


def test_a_run_that_takes_too_long(api: Api):
    flow = chain("bad.never-answers") | {"runConfig": {"timeoutSeconds": 0.5}}
    view = api.run(flow)
    assert (view["state"], view["reason"]) == ("failed", "timeout")
    assert view["error"]["code"] == "RUN_TIMEOUT"
    assert processes_of(view["run_id"]) == []


def test_the_command_line_says_it_too(api: Api, tmp_path: Path):
    flow = tmp_path / "flow.mlab"
    flow.write_text(json.dumps(chain("bad.exits-1")))
    answer = mentatlab("run", flow, "--server", api.server.url, home=api.server.home)
    assert answer.returncode == 1
    assert "AGENT_EXIT" in answer.stderr
    assert "no luck" in answer.stderr
