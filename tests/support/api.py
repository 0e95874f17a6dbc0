"""A running server as a stranger's program sees it: plain HTTP, and a look at its processes."""

import contextlib
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx2
from tests.gateway.conftest import ECHO_FLOW
from tests.support.server import Up

from mentatlab.protocol.errors import Code

ERROR_PAGES = Path(__file__).parents[2] / "docs" / "reference" / "errors"
DEADLINE_S = 120

Json = dict[str, Any]


class Api:
    """Needs the agent `test.echo` of `tests.gateway.conftest` for `is_well`."""

    def __init__(self, server: Up, http: httpx2.Client) -> None:
        self.server, self.http = server, http

    def post(self, path: str, body: Any) -> httpx2.Response:
        return self.http.post(f"/api/v1/{path}", json=body)

    def upload(self, data: bytes, **query: str) -> Any:
        """The reference's id."""
        answer = self.http.post("/api/v1/storage/upload", content=data, params=query)
        assert answer.status_code == 201, answer.text
        return answer.json()["ref"]

    def submit(self, flow: Json | str, **inputs: Any) -> str:
        answer = self.post("runs", {"flow": flow, "inputs": inputs})
        assert answer.status_code == 201, answer.text
        return answer.json()["run_id"]

    def look(self, run_id: str) -> Json:
        return self.http.get(f"/api/v1/runs/{run_id}").raise_for_status().json()

    def ended(self, run_id: str) -> Json:
        """The run when its event stream has ended."""
        with self.http.stream("GET", f"/api/v1/runs/{run_id}/events") as events:
            events.raise_for_status()
            events.read()
        return self.look(run_id)

    def run(self, flow: Json | str, **inputs: Any) -> Json:
        return self.ended(self.submit(flow, **inputs))

    def outputs(self, run_id: str) -> Json:
        answer = self.http.get(f"/api/v1/runs/{run_id}/outputs")
        return answer.raise_for_status().json()["outputs"]

    def is_well(self) -> None:
        """It answers, and a good run still succeeds."""
        assert self.http.get("/healthz").status_code == 200
        view = self.run(ECHO_FLOW, words="still well")
        assert view["state"] == "succeeded", view
        assert self.outputs(view["run_id"]) == {"out.text": "still well"}

    def memory(self) -> int:
        """Resident bytes of the server's process."""
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@contextlib.contextmanager
def api_of(server: Up) -> Generator[Api]:
    with httpx2.Client(base_url=server.url, timeout=DEADLINE_S) as http:
        yield Api(server, http)


def refused(answer: httpx2.Response, status: int, code: str) -> Json:
    """Checks that it is an error as promised to clients; the problem document."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: Json = answer.json()
    assert problem["status"] == status
    assert problem["type"] == f"urn:mentatlab:error:{problem['code']}"
    assert_explained(problem, code, problem["detail"])
    for found in problem.get("problems", []):
        assert_explained(found, found["code"], found["message"])
    return problem


def assert_explained(error: Json, code: str, message: str) -> None:
    """A person can act on it: code, message, hint, and a page if the code is one of ours."""
    assert error["code"] == code, error
    assert message
    assert error.get("hint"), f"no hint: {error}"
    assert "Traceback" not in message
    assert code not in set(Code) or (ERROR_PAGES / f"{code}.md").exists()


def assert_failed(view: Json, node: str, code: str, *, reason: str = "node_failed") -> Json:
    """The run ended because of this node, says why, and left no process; the node."""
    assert (view["state"], view["reason"]) == ("failed", reason), view
    found = next(n for n in view["nodes"] if n["id"] == node)
    assert found["state"] == "failed"
    assert_explained(found["error"], code, found["error"]["message"])
    assert view["error"]["code"] == code
    assert processes_of(view["run_id"]) == []
    return found


def processes_of(run_id: str) -> list[int]:
    """What carries the run's id in its environment: one-shot agents and their offspring."""
    mark = f"\0RUN_ID={run_id}\0".encode()
    return [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/environ") if mark in _read(p)]


def _read(environ: Path) -> bytes:
    try:
        return b"\0" + environ.read_bytes()
    except OSError:  # gone meanwhile, or another user's
        return b""


def flow_of(agent: str, node: str = "it", **fields: Any) -> Json:
    """One node whose pins are the flow's inputs, named `<node>.<pin>`; what it gives is shown."""
    return {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "t.one"},
        "graph": {"nodes": [{"id": node, "type": agent, **fields}], "edges": []},
    }


def until(condition: Callable[[], object], what: str) -> None:
    """Poll a foreign process, with a deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)
