"""Secrets, a schedule and a webhook from the command line, over a kill of the server."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import httpx2
from tests.gateway.conftest import ECHO_FLOW, write_agent
from tests.support.api import until
from tests.support.server import mentatlab, up

from mentatlab.runs.signatures import HEADER, sign


def told(home: Path, *arguments: str, stdin: str = "") -> Any:
    done = mentatlab(*arguments, "--json", home=home, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_was_set_up_goes_on_after_a_kill(tmp_path: Path):
    home = tmp_path / "home"
    write_agent(home / "agents" / "echo")
    with up(home) as server:
        flow = httpx2.put(f"{server.url}/api/v1/flows/t.echo", json={"flow": ECHO_FLOW})
        assert flow.is_success, flow.text
        told(home, "secrets", "set", "API_TOKEN", stdin="hunter-22\n")
        told(home, "schedules", "add", "t.echo", "* * * * * *", "--inputs", '{"words": "tick"}')
        hook = told(home, "webhooks", "add", "t.echo", "--input", "words")
        server.stop(signal.SIGKILL)
    with up(home) as server:
        assert [s["name"] for s in told(home, "secrets", "ls")["secrets"]] == ["API_TOKEN"]
        (schedule,) = told(home, "schedules", "ls")["schedules"]

        def made() -> list[str]:
            ticks = told(home, "schedules", "show", schedule["id"])["ticks"]
            return [tick["run_id"] for tick in ticks if tick["state"] == "made"]

        until(lambda: made(), "a tick after the kill")
        told(home, "schedules", "rm", schedule["id"])
        body = b'"called"'
        headers = {HEADER: sign(hook["secret"], body, at=int(time.time()))}
        path = f"/api/v1/hooks/{hook['id']}"
        called = httpx2.post(server.url + path, content=body, headers=headers)
        assert called.status_code == 202, called.text
        run_id = called.json()["run_id"]
        httpx2.get(f"{server.url}/api/v1/runs/{run_id}/events", timeout=60)
        outputs = httpx2.get(f"{server.url}/api/v1/runs/{run_id}/outputs").json()["outputs"]
        assert outputs == {"out.text": "called"}
