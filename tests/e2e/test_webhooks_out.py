"""A real server tells a real receiver of runs' ends: over its failures, and over a kill."""

import json
import signal
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.gateway.conftest import ECHO_FLOW, write_agent
from tests.support.server import Up, mentatlab, up
from tests.support.webhook_receiver import WITHIN_S, Receiver, receiving

from mentatlab.runs.signatures import verify

PRIVATE = {"MENTATLAB_WEBHOOK_PRIVATE": "true"}
SECRET = "not to be guessed 4711"


@pytest.fixture
def receiver() -> Generator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_agent(tmp_path / "home" / "agents" / "echo")
    return tmp_path / "home"


def told(home: Path, *arguments: str, stdin: str = "") -> Any:
    done = mentatlab(*arguments, "--json", home=home, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run_echo(server: Up, flow: str) -> str:
    body = {"flow": flow, "inputs": {"words": "hi"}}
    answer = httpx2.post(f"{server.url}/api/v1/runs", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()["run_id"]


def delivery_of(server: Up, run_id: str) -> Any:
    """When it was delivered."""
    query = {"run_id": run_id, "state": "delivered"}
    deadline = time.monotonic() + WITHIN_S
    while True:
        answer = httpx2.get(f"{server.url}/api/v1/deliveries", params=query)
        if found := answer.json()["deliveries"]:
            return found[0]
        assert time.monotonic() < deadline, server.log()
        time.sleep(0.02)


def test_over_failures_of_the_receiver_and_a_kill_of_the_server(
    home: Path, receiver: Receiver
) -> None:
    own = f"runConfig: {{webhooks: [{{url: '{receiver.url}/own', secret: HOOK_SECRET}}]}}\n"
    hangs = threading.Event()
    for answer in (500, None, hangs):
        receiver.answers.put(answer)
    with up(home, env=PRIVATE) as server:
        told(home, "secrets", "set", "HOOK_SECRET", stdin=SECRET)
        run_id = run_echo(server, ECHO_FLOW + own)
        calls = [receiver.next_call() for _ in range(3)]
        server.stop(signal.SIGKILL)  # the run has ended, and nobody has been told
    hangs.set()
    with up(home, env=PRIVATE) as server:
        calls.append(receiver.next_call())
        found = delivery_of(server, run_id)
        (listed,) = told(home, "webhooks", "deliveries", "--run", run_id)["deliveries"]
    assert (found["attempts"], found["status"], found["event"]) == (4, 200, "run_finished")
    assert listed == found
    for call in calls:
        verify(SECRET, call.body, call.signature, now=time.time())
    assert {(call.path, call.delivery) for call in calls} == {("/own", found["id"])}
    (body,) = {call.body for call in calls}
    run = json.loads(body)["run"]
    assert (run["run_id"], run["state"], run["flow_id"]) == (run_id, "succeeded", "t.echo")
