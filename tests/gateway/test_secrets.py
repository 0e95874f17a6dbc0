"""Secrets over HTTP, and in the hands of a real agent."""

from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.gateway.conftest import ECHO, write_agent

from mentatlab.app import App, Settings

MANIFEST = ECHO.replace("test.echo", "test.spy") + "env: [API_TOKEN]\n"
SPY = """\
import json, os, sys
payload = json.load(sys.stdin)
token = os.environ.get("API_TOKEN", "none")
print(json.dumps({"type": "log", "level": "info", "message": "token is " + token}))
print("stderr " + token, file=sys.stderr)
if payload["text"] == "fail":
    print(json.dumps({"type": "error", "code": "SPY", "message": "bad " + token}))
    sys.exit(4)
print(json.dumps({"text": f"{len(token)} {token} " + os.environ.get("OTHER", "no other")}))
"""
VALUE = "hunter-22-hunter"


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    write_agent(tmp_path / "agents" / "spy", MANIFEST, SPY)
    return settings


def flow(*secrets: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "t.spy"},
        "graph": {"nodes": [{"id": "spy", "type": "test.spy"}], "edges": []},
        "runConfig": {"secrets": list(secrets)},
    }


async def submit(http: httpx2.AsyncClient, text: str, *secrets: str) -> httpx2.Response:
    body = {"flow": flow(*secrets), "inputs": {"spy": text}}
    return await http.post("/api/v1/runs", json=body)


async def test_an_agent_gets_what_it_and_the_flow_name_and_nobody_else_sees_it(
    app: App, http: httpx2.AsyncClient, admin: httpx2.AsyncClient
):
    for name in ("API_TOKEN", "OTHER"):
        answer = await admin.put(f"/api/v1/secrets/{name}", json={"value": VALUE})
        assert answer.status_code == 204, answer.text
    listed = await http.get("/api/v1/secrets")
    assert [s["name"] for s in listed.json()["secrets"]] == ["API_TOKEN", "OTHER"]
    shown = listed.text
    for text, state in (("go", "succeeded"), ("fail", "failed")):
        run_id = (await submit(http, text, "API_TOKEN", "OTHER")).json()["run_id"]
        assert (await app.services.engine.wait(run_id)).state == state
        for path in ("", "/outputs", "/nodes/spy/logs", "/events"):
            shown += (await http.get(f"/api/v1/runs/{run_id}{path}")).text
    assert "token is ***" in shown
    assert "bad ***" in shown
    assert "16 *** no other" in shown
    assert VALUE not in shown
    without = (await submit(http, "go")).json()["run_id"]
    await app.services.engine.wait(without)
    outputs = (await http.get(f"/api/v1/runs/{without}/outputs")).json()["outputs"]
    assert outputs == {"spy.text": "4 none no other"}


async def test_a_missing_secret_is_told_before_anything_starts(http: httpx2.AsyncClient):
    answer = await submit(http, "go", "API_TOKEN")
    assert (answer.status_code, answer.json()["code"]) == (400, "SECRET_MISSING")
    assert (await http.get("/api/v1/runs")).json()["runs"] == []


async def test_only_admins_set_and_remove(http: httpx2.AsyncClient, admin: httpx2.AsyncClient):
    refused = await http.put("/api/v1/secrets/API_TOKEN", json={"value": VALUE})
    assert refused.json()["code"] == "FORBIDDEN"
    bad = await admin.put("/api/v1/secrets/path", json={"value": VALUE})
    assert bad.json()["code"] == "SECRET_INVALID"
    assert VALUE not in bad.text
    await admin.put("/api/v1/secrets/API_TOKEN", json={"value": VALUE})
    assert (await admin.delete("/api/v1/secrets/API_TOKEN")).status_code == 204
    assert (await admin.delete("/api/v1/secrets/API_TOKEN")).status_code == 404
