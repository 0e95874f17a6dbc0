"""Pausing, gates and reruns over HTTP, with real agent processes."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.gateway.conftest import ECHO, write_agent

from mentatlab.app import App, Settings

COUNTING = """\
import json, pathlib, sys
payload = json.load(sys.stdin)
log = pathlib.Path(payload["spec"]["log"])
with log.open("a") as file:
    file.write(payload["context"]["node_id"] + "\\n")
sign = payload["spec"].get("sign", "+")
print(json.dumps({"text": payload["text"] + sign}))
"""
FAILING = 'import sys; print("no", file=sys.stderr); sys.exit(4)\n'


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    agents = tmp_path / "agents"
    write_agent(agents / "count", ECHO.replace("test.echo", "test.count"), COUNTING)
    write_agent(agents / "fail", ECHO.replace("test.echo", "test.fail"), FAILING)
    return settings


def chain(log: Path, *types: str) -> dict[str, Any]:
    names = [f"n{number}" for number in range(1, len(types) + 1)]
    nodes = [
        {"id": name, "type": type_, "params": {"log": str(log)}}
        for name, type_ in zip(names, types, strict=True)
    ]
    edges = [
        {"from": f"{a}.text", "to": f"{b}.text"}
        for a, b in zip(["words", *names], [*names, "out"], strict=True)
    ]
    ends = [{"id": "words", "type": "ui.prompt"}, {"id": "out", "type": "ui.console"}]
    return {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "t.chain"},
        "graph": {"nodes": [*ends, *nodes], "edges": edges},
    }


async def run(app: App, http: httpx2.AsyncClient, flow: Any, **inputs: Any) -> dict[str, Any]:
    answer = await http.post("/api/v1/runs", json={"flow": flow, "inputs": inputs})
    assert answer.status_code == 201, answer.text
    return await ended(app, http, answer.json()["run_id"])


async def ended(app: App, http: httpx2.AsyncClient, run_id: str) -> dict[str, Any]:
    await app.services.engine.wait(run_id)
    found = (await http.get(f"/api/v1/runs/{run_id}")).json()
    outputs = (await http.get(f"/api/v1/runs/{run_id}/outputs")).json()["outputs"]
    states = {node["id"]: node["state"] for node in found["nodes"]}
    return {**found, "outputs": outputs, "states": states}


async def test_a_rerun_from_a_node_takes_over_what_stands_before_it(
    app: App, http: httpx2.AsyncClient, tmp_path: Path
):
    log = tmp_path / "log"
    first = await run(app, http, chain(log, "test.count", "test.count", "test.count"), words="a")
    assert first["outputs"] == {"out.text": "a+++"}
    answer = await http.post(
        f"/api/v1/runs/{first['run_id']}/rerun",
        json={"from_node": "n2", "params": {"n3": {"sign": "!"}}},
    )
    assert answer.status_code == 201, answer.text
    again = await ended(app, http, answer.json()["run_id"])
    assert answer.headers["location"] == f"/api/v1/runs/{again['run_id']}"
    assert again["outputs"] == {"out.text": "a++!"}
    assert again["states"]["n1"] == "cached"
    assert log.read_text().split() == ["n1", "n2", "n3", "n2", "n3"]
    whole = await http.post(f"/api/v1/runs/{again['run_id']}/rerun")
    assert (await ended(app, http, whole.json()["run_id"]))["outputs"] == {"out.text": "a++!"}
    assert log.read_text().split()[5:] == ["n1", "n2", "n3"]


async def test_a_rerun_does_what_failed_again(app: App, http: httpx2.AsyncClient, tmp_path: Path):
    log = tmp_path / "log"
    first = await run(app, http, chain(log, "test.count", "test.fail", "test.count"), words="a")
    assert first["state"] == "failed"
    (tmp_path / "agents" / "fail" / "src" / "main.py").write_text(COUNTING)
    answer = await http.post(f"/api/v1/runs/{first['run_id']}/rerun", json={"from_node": "n3"})
    again = await ended(app, http, answer.json()["run_id"])
    assert (again["state"], again["outputs"]) == ("succeeded", {"out.text": "a+++"})
    assert log.read_text().split() == ["n1", "n2", "n3"]


async def test_what_cannot_be_done_again(app: App, http: httpx2.AsyncClient, tmp_path: Path):
    first = await run(app, http, chain(tmp_path / "log", "test.count"), words="a")
    path = f"/api/v1/runs/{first['run_id']}/rerun"
    for body, code in (
        ({"from_node": "n9"}, "UNKNOWN_NODE"),
        ({"params": {"n9": {"a": 1}}}, "BAD_PARAM"),
        ({"params": {"n1": 1}}, "INVALID_REQUEST"),
    ):
        answer = await http.post(path, json=body)
        assert answer.json()["code"] == code, answer.text
    waiting = await http.post(
        "/api/v1/runs", json={"flow": chain(tmp_path, "test.wait"), "inputs": {"words": "a"}}
    )
    run_id = waiting.json()["run_id"]
    assert (await http.post(f"/api/v1/runs/{run_id}/rerun")).json()["code"] == "RUN_ACTIVE"
    await http.post(f"/api/v1/runs/{run_id}/cancel")
    await app.services.engine.wait(run_id)


async def test_a_rerun_with_a_key_is_made_once(app: App, http: httpx2.AsyncClient, tmp_path: Path):
    first = await run(app, http, chain(tmp_path / "log", "test.count"), words="a")
    path, key = f"/api/v1/runs/{first['run_id']}/rerun", {"Idempotency-Key": "k"}
    made = [await http.post(path, headers=key, json={"from_node": "n1"}) for _ in range(2)]
    assert made[0].json()["run_id"] == made[1].json()["run_id"]
    other = await http.post(path, headers=key, json={})
    assert other.json()["code"] == "IDEMPOTENCY_CONFLICT"
    for answer in made:
        await app.services.engine.wait(answer.json()["run_id"])


async def test_inputs_have_a_limit(http: httpx2.AsyncClient, tmp_path: Path):
    body = {"flow": chain(tmp_path, "test.count"), "inputs": {"words": "a" * (4 << 20)}}
    answer = await http.post("/api/v1/runs", json=body)
    assert (answer.status_code, answer.json()["code"]) == (413, "INPUTS_TOO_LARGE")


async def test_a_gate_is_decided_once_and_its_choice_is_taken_over(
    app: App, http: httpx2.AsyncClient, tmp_path: Path
):
    log = tmp_path / "log"
    flow = chain(log, "test.count", "core.gate", "test.count")
    flow["graph"]["nodes"][3] = {"id": "n2", "type": "core.gate", "params": {"message": "fine?"}}
    for edge in flow["graph"]["edges"]:
        edge["to"] = edge["to"].replace("n2.text", "n2.value")
        edge["from"] = edge["from"].replace("n2.text", "n2.approved")
    made = await http.post("/api/v1/runs", json={"flow": flow, "inputs": {"words": "a"}})
    assert made.status_code == 201, made.text
    path = f"/api/v1/runs/{made.json()['run_id']}"
    early = await http.post(f"{path}/gates/n3", json={"approve": True})
    assert early.json()["code"] == "GATE_NOT_OPEN"
    async with asyncio.timeout(30):
        while "waiting_approval" not in (await http.get(path)).text:
            await asyncio.sleep(0.02)
    assert (await http.post(f"{path}/pause")).json()["state"] == "paused"
    assert (await http.post(f"{path}/resume")).json()["state"] == "running"
    decided = await http.post(f"{path}/gates/n2", json={"approve": True, "comment": "go"})
    assert decided.status_code == 200, decided.text
    again = await http.post(f"{path}/gates/n2", json={"approve": True})
    assert again.json()["code"] in ("GATE_NOT_OPEN", "RUN_TERMINAL")
    assert (await ended(app, http, made.json()["run_id"]))["outputs"] == {"out.text": "a++"}
    over = await http.post(f"{path}/pause")
    assert over.json()["code"] == "RUN_TERMINAL"
    rerun = await http.post(f"{path}/rerun", json={"from_node": "n3"})
    done = await ended(app, http, rerun.json()["run_id"])
    assert (done["state"], done["outputs"]) == ("succeeded", {"out.text": "a++"})
    assert log.read_text().split() == ["n1", "n3", "n3"]
