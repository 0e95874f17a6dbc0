"""Every call of our routers, through the real rooms."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.gateway.conftest import ECHO, ECHO_FLOW, client_of, write_agent

from mentatlab.app import App, Settings, build

WAIT_FLOW = ECHO_FLOW.replace("test.echo", "test.wait")


async def events_of(http: httpx2.AsyncClient, run_id: str, **how: Any) -> list[dict[str, str]]:
    """Server-sent events as dicts of their fields, until the answer ends."""
    found: list[dict[str, str]] = []
    async with http.stream("GET", f"/api/v1/runs/{run_id}/events", **how) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = (await answer.aread()).decode()
    for block in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if not line.startswith(":")
        )
        if "data" in fields:
            found.append(fields)
    return found


async def submit(http: httpx2.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await http.post("/api/v1/runs", json={"flow": ECHO_FLOW, **body})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/api/v1/runs/{answer.json()['run_id']}"
    return answer.json()


async def test_a_run_from_submission_to_outputs(http: httpx2.AsyncClient):
    run = await submit(http, inputs={"words": "hello"})
    events = await events_of(http, run["run_id"])
    assert [int(e["id"]) for e in events] == list(range(1, len(events) + 1))
    assert events[0]["event"] == "run_created"
    assert events[-1]["event"] == "run_finished"
    assert json.loads(events[-1]["data"])["payload"]["state"] == "succeeded"
    done = (await http.get(f"/api/v1/runs/{run['run_id']}")).json()
    assert done["state"] == "succeeded"
    assert {n["id"]: n["state"] for n in done["nodes"]}["echo"] == "succeeded"
    outputs = (await http.get(f"/api/v1/runs/{run['run_id']}/outputs")).json()
    assert outputs["outputs"] == {"out.text": "hello"}
    logs = (await http.get(f"/api/v1/runs/{run['run_id']}/nodes/echo/logs")).json()["logs"]
    assert any(entry.get("message") == "heard 5" for entry in logs)


async def test_events_resume_behind_any_event_and_end(http: httpx2.AsyncClient):
    run_id = (await submit(http, inputs={"words": "x"}))["run_id"]
    every = await events_of(http, run_id)
    for seen in range(len(every)):
        rest = await events_of(http, run_id, headers={"Last-Event-ID": str(seen)})
        assert rest == every[seen:]
        assert await events_of(http, run_id, params={"after": seen}) == rest
    over = await http.get(
        f"/api/v1/runs/{run_id}/events", headers={"Last-Event-ID": every[-1]["id"]}
    )
    assert over.status_code == 204
    wrong = await http.get(f"/api/v1/runs/{run_id}/events", headers={"Last-Event-ID": "1:7"})
    assert (wrong.status_code, wrong.json()["code"]) == (400, "INVALID_REQUEST")


async def test_cancel(http: httpx2.AsyncClient):
    run_id = (await submit(http, flow=WAIT_FLOW, inputs={"words": "x"}))["run_id"]
    following = asyncio.create_task(events_of(http, run_id))
    cancelled = await http.post(f"/api/v1/runs/{run_id}/cancel")
    assert cancelled.status_code == 202
    events = await following
    assert json.loads(events[-1]["data"])["payload"]["state"] == "cancelled"
    again = await http.post(f"/api/v1/runs/{run_id}/cancel")
    assert (again.status_code, again.json()["code"]) == (409, "RUN_TERMINAL")


async def test_draining_ends_followers(app: App, http: httpx2.AsyncClient):
    run_id = (await submit(http, flow=WAIT_FLOW, inputs={"words": "x"}))["run_id"]
    following = asyncio.create_task(events_of(http, run_id))
    await app.services.hub.drain()
    assert (await following)[-1]["event"] != "run_finished"
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()["code"]) == (503, "UNAVAILABLE")
    assert ready.headers["retry-after"] == "1"
    assert (await http.get("/healthz")).status_code == 200


async def test_lists_have_pages(http: httpx2.AsyncClient):
    made = [(await submit(http, inputs={"words": str(n)}))["run_id"] for n in range(3)]
    first = (await http.get("/api/v1/runs", params={"limit": 2})).json()
    second = (await http.get("/api/v1/runs", params={"limit": 2, "before": first["next"]})).json()
    ids = [run["run_id"] for run in first["runs"] + second["runs"]]
    assert ids == sorted(made, reverse=True)
    assert second["next"] is None
    too_many = await http.get("/api/v1/runs", params={"limit": 1000})
    assert too_many.status_code == 422
    assert too_many.json()["problems"][0]["path"] == "/query/limit"


@pytest.mark.parametrize("where", ["header", "body"])
async def test_an_idempotency_key_makes_one_run(http: httpx2.AsyncClient, where: str):
    async def post(words: str) -> httpx2.Response:
        body = {"flow": ECHO_FLOW, "inputs": {"words": words}}
        if where == "body":
            return await http.post("/api/v1/runs", json={**body, "idempotency_key": "k1"})
        return await http.post("/api/v1/runs", json=body, headers={"Idempotency-Key": "k1"})

    first, second, other = await post("a"), await post("a"), await post("b")
    assert first.json()["run_id"] == second.json()["run_id"]
    assert (other.status_code, other.json()["code"]) == (409, "IDEMPOTENCY_CONFLICT")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"flow": ECHO_FLOW, "inputs": {}}, 422, "RUN_INPUT_MISSING"),
        ({"flow": ECHO_FLOW, "inputs": {"words": "x", "y": 1}}, 422, "RUN_INPUT_UNKNOWN"),
        ({"flow": ECHO_FLOW, "inputs": {"words": 5}}, 422, "RUN_INPUT_TYPE"),
        ({"flow": ECHO_FLOW.replace("test.echo", "nobody")}, 422, "FLOW_INVALID"),
        ({"flow": "{broken: ["}, 400, "FLOW_SYNTAX"),
        ({"flow": {"kind": "Flow"}}, 422, "FLOW_INVALID"),
        ({"flow_id": "t.absent"}, 404, "NOT_FOUND"),
        ({}, 422, "INVALID_REQUEST"),
        ({"flow": ECHO_FLOW, "flow_id": "x"}, 422, "INVALID_REQUEST"),
        ({"flow": 5}, 422, "INVALID_REQUEST"),
        ([], 422, "INVALID_REQUEST"),
    ],
)
async def test_wrong_submissions(http: httpx2.AsyncClient, body: Any, status: int, code: str):
    answer = await http.post("/api/v1/runs", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_body_that_is_not_json(http: httpx2.AsyncClient):
    answer = await http.post(
        "/api/v1/runs", content=b"{no", headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert answer.json()["code"] == "INVALID_REQUEST"
    assert "not JSON" in answer.json()["detail"]


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("path", ["/api/v1/runs", "/api/v1/flows/validate", "/api/v1/flows"])
async def test_a_body_over_the_limit(http: httpx2.AsyncClient, path: str, announced: bool):
    async def pieces():
        for _ in range(9):
            yield b" " * (1 << 20)

    content = b" " * (9 << 20) if announced else pieces()
    answer = await http.post(path, content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "PAYLOAD_TOO_LARGE")


async def test_media_may_be_larger_than_json(http: httpx2.AsyncClient):
    answer = await http.post("/api/v1/storage/upload", content=b"x" * (9 << 20))
    assert answer.status_code == 201


@pytest.mark.parametrize("path", ["", "/events", "/outputs", "/nodes/echo/logs"])
async def test_an_unknown_run(http: httpx2.AsyncClient, path: str):
    answer = await http.get(f"/api/v1/runs/rn_absent{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "RUN_NOT_FOUND")


# flows


async def test_stored_flows(http: httpx2.AsyncClient):
    stored = await http.post("/api/v1/flows", json={"flow": ECHO_FLOW})
    assert stored.status_code == 201
    first = stored.json()
    assert first["id"] == "t.echo"
    changed = ECHO_FLOW.replace("name: echo", "name: other")
    second = (await http.put("/api/v1/flows/t.echo", content=changed)).json()
    assert second["digest"] != first["digest"]
    assert (await http.get("/api/v1/flows")).json()["flows"] == [
        {k: second[k] for k in ("id", "digest", "created_at")}
    ]
    assert (await http.get("/api/v1/flows/t.echo")).json() == second
    older = await http.get("/api/v1/flows/t.echo", params={"digest": first["digest"]})
    assert older.json()["document"] == first["document"]
    run = await http.post("/api/v1/runs", json={"flow_id": "t.echo", "inputs": {"words": "a"}})
    assert run.status_code == 201
    assert (await http.delete("/api/v1/flows/t.echo")).status_code == 204
    assert (await http.get("/api/v1/flows/t.echo")).status_code == 404
    assert (await http.get(f"/api/v1/runs/{run.json()['run_id']}")).status_code == 200


async def test_a_flow_goes_under_its_own_name(http: httpx2.AsyncClient):
    answer = await http.put("/api/v1/flows/other", content=ECHO_FLOW)
    assert (answer.status_code, answer.json()["code"]) == (409, "CONFLICT")


@pytest.mark.parametrize("form", ["wrapped text", "wrapped document", "document", "text"])
async def test_a_flow_in_every_form(http: httpx2.AsyncClient, form: str):
    document = (await http.post("/api/v1/flows", json={"flow": ECHO_FLOW})).json()["document"]
    sent: dict[str, Any] = {
        "wrapped text": {"json": {"flow": ECHO_FLOW}},
        "wrapped document": {"json": {"flow": document}},
        "document": {"json": document},
        "text": {"content": ECHO_FLOW, "headers": {"Content-Type": "application/yaml"}},
    }[form]
    assert (await http.post("/api/v1/flows/validate", **sent)).json() == {
        "valid": True,
        "problems": [],
    }
    plan = (await http.post("/api/v1/flows/plan", **sent)).json()
    assert [node["id"] for node in plan["nodes"]] == ["words", "echo", "out"]
    assert [i["name"] for i in plan["inputs"]] == ["words"]
    assert plan["outputs"] == [{"node": "out", "pin": "text"}]


@pytest.mark.parametrize(
    ("flow", "code"),
    [
        (ECHO_FLOW.replace("test.echo", "nobody"), "UNKNOWN_AGENT"),
        (ECHO_FLOW.replace("echo.text, to: out", "echo.txt, to: out"), "UNKNOWN_PIN"),
        (ECHO_FLOW.replace("kind: Flow", "kind: Fruit"), "FLOW_INVALID"),
    ],
)
async def test_validate_tells_problems(http: httpx2.AsyncClient, flow: str, code: str):
    answer = await http.post("/api/v1/flows/validate", content=flow)
    assert answer.status_code == 200
    assert not answer.json()["valid"]
    assert code in {problem["code"] for problem in answer.json()["problems"]}


async def test_every_call_tells_all_problems_of_a_flow(http: httpx2.AsyncClient):
    sub_flows = "    - {id: a, type: core.flow, params: {flow: t.none}}\n"
    sub_flows += "    - {id: b, type: core.flow, params: {flow: t.echo}}\n"
    flow = ECHO_FLOW.replace("test.echo}\n", f"nobody, forEech: x}}\n{sub_flows}", 1)
    flow = f"{flow}runConfig: {{secrets: [api-key]}}\n"
    answer = await http.post("/api/v1/flows/validate", content=flow)
    found = {p["code"]: p for p in answer.json()["problems"]}
    assert {code for code, p in found.items() if p["severity"] == "error"} == {
        *("UNKNOWN_FLOW", "CYCLE", "UNKNOWN_AGENT", "SECRET_INVALID")
    }
    assert found["UNKNOWN_FIELD"]["hint"] == "did you mean forEach?"
    errors = [(p["code"], p["path"]) for p in found.values() if p["severity"] == "error"]
    for method, path, sent in (
        ("POST", "/api/v1/runs", {"json": {"flow": flow}}),
        ("PUT", "/api/v1/flows/t.echo", {"content": flow}),
        ("POST", "/api/v1/flows", {"content": flow}),
        ("POST", "/api/v1/flows/plan", {"content": flow}),
    ):
        refused = await http.request(method, path, **sent)
        assert (refused.status_code, refused.json()["code"]) == (422, "FLOW_INVALID")
        assert [(p["code"], p["path"]) for p in refused.json()["problems"]] == errors


# agents


async def test_agents(http: httpx2.AsyncClient, admin: httpx2.AsyncClient, tmp_path: Path):
    listed = (await http.get("/api/v1/agents")).json()
    assert {a["id"] for a in listed["agents"]} == {"test.echo", "test.wait"}
    one = (await http.get("/api/v1/agents/test.echo:1.0.0")).json()
    assert one["manifest"]["runtime"] == "python3.11"
    missing = await http.get("/api/v1/agents/nobody")
    assert (missing.status_code, missing.json()["code"]) == (404, "UNKNOWN_AGENT")

    folder = write_agent(tmp_path / "more", ECHO.replace("test.echo", "test.more"))
    body = {"directory": str(folder)}
    refused = await http.post("/api/v1/agents", json=body)
    assert (refused.status_code, refused.json()["code"]) == (403, "FORBIDDEN")
    assert (await admin.post("/api/v1/agents", json=body)).status_code == 201
    assert (await http.get("/api/v1/agents/test.more")).status_code == 200


async def test_an_agent_from_its_manifest(admin: httpx2.AsyncClient):
    manifest = {
        "id": "test.upper",
        "version": "1.0.0",
        "command": ["tr", "a-z", "A-Z"],
        "inputs": [{"name": "text", "type": "string"}],
        "outputs": [{"name": "TEXT", "type": "string"}],
    }
    added = await admin.post("/api/v1/agents", json={"manifest": manifest})
    assert added.status_code == 201, added.text
    assert added.json()["manifest"] == manifest
    without = {k: v for k, v in manifest.items() if k != "command"}
    refused = await admin.post("/api/v1/agents", json={"manifest": without})
    assert (refused.status_code, refused.json()["code"]) == (400, "MANIFEST_INVALID")
    neither = await admin.post("/api/v1/agents", json={})
    assert neither.status_code == 422


async def test_a_broken_agent_is_listed_with_its_problems(settings: Settings):
    write_agent(settings.agent_dirs[0] / "broken", ECHO.replace("type: string", "type: strong"))
    async with build(settings) as app, client_of(app) as http:
        (broken,) = (await http.get("/api/v1/agents")).json()["broken"]
    assert broken["code"] == "MANIFEST_INVALID"
    assert broken["problems"][0]["path"] == "/inputs/0/type"


async def test_added_agents_are_remembered(settings: Settings, tmp_path: Path):
    folder = write_agent(tmp_path / "more", ECHO.replace("test.echo", "test.more"))
    async with build(settings) as app, client_of(app, app.key) as admin:
        await admin.post("/api/v1/agents", json={"directory": str(folder)})
    async with build(settings) as app, client_of(app) as http:
        assert (await http.get("/api/v1/agents/test.more")).status_code == 200


# keys


async def test_keys(app: App, http: httpx2.AsyncClient, admin: httpx2.AsyncClient):
    assert (await http.get("/api/v1/keys")).status_code == 403
    made = (
        await admin.post(
            "/api/v1/keys", json={"name": "ci", "workspace": "team", "scopes": ["read"]}
        )
    ).json()
    async with client_of(app, made["key"]) as reader:
        assert (await reader.get("/api/v1/runs")).status_code == 200
        refused = await reader.post("/api/v1/runs", json={"flow": ECHO_FLOW})
        assert (refused.status_code, refused.json()["code"]) == (403, "FORBIDDEN")
        (listed,) = (await admin.get("/api/v1/keys")).json()["keys"]
        assert listed == {k: v for k, v in made.items() if k != "key"}
        assert (await admin.delete(f"/api/v1/keys/{made['id']}")).status_code == 204
        assert (await reader.get("/api/v1/runs")).status_code == 401
    gone = await admin.delete(f"/api/v1/keys/{made['id']}")
    assert (gone.status_code, gone.json()["code"]) == (404, "NOT_FOUND")
    wrong = await admin.post("/api/v1/keys", json={"scopes": ["all"]})
    assert wrong.status_code == 422


async def test_a_role_is_a_set_of_scopes(admin: httpx2.AsyncClient):
    for body, scopes in (
        ({}, ["publish", "read", "run"]),
        ({"role": "multimodal_producer"}, ["publish", "read", "run"]),
        ({"role": "multimodal_consumer"}, ["read"]),
    ):
        made = await admin.post("/api/v1/keys", json=body)
        assert (made.status_code, made.json()["scopes"]) == (201, scopes)
    for body in ({"role": "king"}, {"role": "multimodal_consumer", "scopes": ["admin"]}):
        refused = await admin.post("/api/v1/keys", json=body)
        assert (refused.status_code, refused.json()["code"]) == (422, "INVALID_REQUEST")


async def test_an_admin_key_rules_its_workspace_only(app: App, admin: httpx2.AsyncClient):
    made = await admin.post("/api/v1/keys", json={"workspace": "a", "scopes": ["admin"]})
    other = (await admin.post("/api/v1/keys", json={"workspace": "b"})).json()
    async with client_of(app, made.json()["key"]) as ruler:
        added = (await ruler.post("/api/v1/keys", json={"workspace": "b"})).json()
        assert added["workspace"] == "a"
        seen = {key["id"] for key in (await ruler.get("/api/v1/keys")).json()["keys"]}
        assert other["id"] not in seen
        assert (await ruler.delete(f"/api/v1/keys/{other['id']}")).status_code == 404


async def test_workspaces_do_not_see_each_other(
    app: App, http: httpx2.AsyncClient, admin: httpx2.AsyncClient
):
    run_id = (await submit(http, inputs={"words": "x"}))["run_id"]
    stored = (await http.post("/api/v1/storage/upload", content=b"mine")).json()["ref"]
    await http.post("/api/v1/flows", json={"flow": ECHO_FLOW})
    made = await admin.post("/api/v1/keys", json={"workspace": "other"})
    async with client_of(app, made.json()["key"]) as stranger:
        assert (await stranger.get("/api/v1/runs")).json()["runs"] == []
        assert (await stranger.get("/api/v1/flows")).json()["flows"] == []
        for path in (
            f"/api/v1/runs/{run_id}",
            f"/api/v1/runs/{run_id}/events",
            f"/api/v1/runs/{run_id}/outputs",
            f"/api/v1/storage/{stored}",
            f"/api/v1/streams/{run_id}",
            f"/api/v1/streams/{run_id}/sse",
            "/api/v1/flows/t.echo",
        ):
            assert (await stranger.get(path)).status_code == 404, path
        assert (await stranger.post(f"/api/v1/runs/{run_id}/cancel")).status_code == 404


# flags


async def test_without_multimodal_text_goes_on(settings: Settings):
    text_only = Settings(home=settings.home, agent_dirs=settings.agent_dirs, multimodal=False)
    photo = ECHO_FLOW.replace(
        "{id: words, type: ui.prompt}",
        "{id: words, type: ui.prompt}\n"
        '    - {id: photo, type: ui.file-upload, params: {accept: "image/*"}}',
    ).replace("edges:", "edges:\n    - {from: photo.file, to: out.photo}")
    async with build(text_only) as app, client_of(app) as http:
        await submit(http, inputs={"words": "x"})
        refused = await http.post("/api/v1/runs", json={"flow": photo, "inputs": {}})
    assert (refused.status_code, refused.json()["code"]) == (403, "FEATURE_DISABLED")


async def test_without_streaming_the_stream_calls_are_refused(settings: Settings):
    off = Settings(home=settings.home, agent_dirs=settings.agent_dirs, streaming=False)
    async with build(off) as app, client_of(app) as http:
        run_id = (await submit(http, inputs={"words": "x"}))["run_id"]
        refused = await http.get(f"/api/v1/streams/{run_id}/sse")
        assert (refused.status_code, refused.json()["code"]) == (403, "FEATURE_DISABLED")


# the server itself


async def test_metrics_are_prometheus_text(http: httpx2.AsyncClient):
    answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "\nmentatlab_agents 2\n" in answer.text
    again = (await http.get("/metrics")).text
    assert '\nmentatlab_requests_total{edge="http",status="200"} 1\n' in again
    assert "\n# TYPE mentatlab_requests_total counter\n" in again
    assert "\nmentatlab_stream_publishers 0\n" in again
    assert "\nmentatlab_streams_held_back 0\n" in again
    for line in answer.text.splitlines():
        assert line.startswith("# ") or float(line.rsplit(" ", 1)[1]) >= 0


async def test_the_address_that_up_prints_leads_to_the_docs_page(http: httpx2.AsyncClient):
    front = await http.get("/", follow_redirects=False)
    assert (front.status_code, front.headers["Location"]) == (307, "/docs")


async def test_the_docs_page_loads_nothing_from_elsewhere(http: httpx2.AsyncClient):
    page = await http.get("/docs")
    assert page.status_code == 200
    assert "://" not in page.text
    assert "connect-src 'self'" in page.headers["content-security-policy"]


async def test_pages_of_the_machine_may_call(http: httpx2.AsyncClient):
    page = {"Origin": "http://localhost:3000"}
    answer = await http.get("/api/v1/runs", headers=page)
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    preflight = await http.options(
        "/api/v1/runs", headers={**page, "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status_code == 200
    evil = await http.options(
        "/api/v1/runs",
        headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
    )
    assert "access-control-allow-origin" not in evil.headers


async def test_the_reference_lists_every_call_and_no_other(app: App):
    text = (Path(__file__).parents[2] / "docs" / "reference" / "http-api.md").read_text()
    listed: set[tuple[str, str]] = set()
    for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE):
        methods: list[str] = []
        for method, path in re.findall(r"`([A-Z]+)(?: (/[^`?]+)\??[^`]*)?`", row):
            methods.append(method)
            if path:
                listed |= {(each, re.sub(r"{\w+}", "{}", path)) for each in methods}
                methods = []
    described = {
        (method.upper(), re.sub(r"{\w+}", "{}", path))
        for path, methods in app.asgi.openapi()["paths"].items()
        for method in methods
    }
    assert listed == described | {("HEAD", "/api/v1/storage/{}"), ("WS", "/ws/streams/{}")}


_BODILESS = ("/cancel", "/pause", "/resume", "/tickets", "/fallback", "/gc", "/scrub", "/redeliver")


async def test_every_answer_and_body_of_the_api_has_a_schema(http: httpx2.AsyncClient):
    api = (await http.get("/openapi.json")).json()
    for path, methods in api["paths"].items():
        for method, call in methods.items():
            assert call.get("summary"), (method, path)
            assert "application/problem+json" in call["responses"]["default"]["content"]
            signed = path.startswith("/api/v1/hooks/")  # whatever its sender writes
            if method in ("post", "put") and not (signed or path.endswith(_BODILESS)):
                assert call["requestBody"]["content"], (method, path)


async def test_the_schema_file_is_current(app: App):
    file = Path(__file__).parents[2] / "schemas" / "openapi.json"
    assert json.loads(file.read_text()) == app.asgi.openapi(), (
        "run: mentatlab openapi > schemas/openapi.json"
    )
