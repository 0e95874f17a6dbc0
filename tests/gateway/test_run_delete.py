"""DELETE /api/v1/runs/{id}: a run goes with its events and streams and lets go of its blobs."""

import json
from collections.abc import AsyncIterator

import httpx2
import pytest
from tests.gateway.test_api import WAIT_FLOW, events_of, submit

from mentatlab.app import App
from mentatlab.protocol.errors import NotFound
from mentatlab.runs.lanes import stream_id

LONG = "x" * 40_000  # stored, since it is over 32 KiB


async def ended(http: httpx2.AsyncClient, **body: object) -> str:
    run_id = (await submit(http, **body))["run_id"]
    await events_of(http, run_id)
    return run_id


async def owners(app: App) -> set[str]:
    rows = await app.services.storage._catalog.database.read(
        lambda db: db.execute("SELECT DISTINCT owner FROM blob_refs").fetchall()
    )
    return {row["owner"] for row in rows}


async def test_nothing_of_a_deleted_run_remains(app: App, http: httpx2.AsyncClient) -> None:
    kept, gone = (
        await ended(http, inputs={"words": LONG}),
        await ended(http, inputs={"words": LONG}),
    )
    assert await owners(app) == {f"run:{kept}", f"run:{gone}"}
    assert (await http.delete(f"/api/v1/runs/{gone}")).status_code == 204
    assert await owners(app) == {f"run:{kept}"}
    for path in ("", "/outputs", "/events", "/nodes/echo/logs"):
        answer = await http.get(f"/api/v1/runs/{gone}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "RUN_NOT_FOUND")
    assert (await http.get(f"/api/v1/streams/{gone}")).status_code == 404
    assert await app.services.hub.lanes(gone) == []
    listed = (await http.get("/api/v1/runs")).json()["runs"]
    assert [run["run_id"] for run in listed] == [kept]
    still = await http.get(f"/api/v1/runs/{kept}")
    assert still.json()["nodes"]  # from the flow's snapshot, which both had
    assert (await http.delete(f"/api/v1/runs/{gone}")).status_code == 404


async def test_a_stream_lets_go_of_its_blobs_too(app: App, http: httpx2.AsyncClient) -> None:
    run_id = await ended(http, inputs={"words": "x"})
    lane = await app.services.hub.create_stream(
        "a", "p", run_id=run_id, node_id="n", workspace="default"
    )
    stream = lane.lane.stream_id
    assert stream != stream_id(run_id, "n", "other")
    blob = await app.services.storage.store(
        _once(b"x"), workspace="default", owner=f"stream:{stream}"
    )
    assert (await http.delete(f"/api/v1/runs/{run_id}")).status_code == 204
    assert await owners(app) == set()
    assert (await http.get(f"/api/v1/storage/{blob.id}")).status_code == 200  # for a day


async def test_a_run_under_way_is_not_deleted(http: httpx2.AsyncClient) -> None:
    run_id = (await submit(http, flow=WAIT_FLOW, inputs={"words": "x"}))["run_id"]
    refused = await http.delete(f"/api/v1/runs/{run_id}")
    assert (refused.status_code, refused.json()["code"]) == (409, "RUN_ACTIVE")
    assert run_id in refused.json()["hint"]
    await http.post(f"/api/v1/runs/{run_id}/cancel")
    last = (await events_of(http, run_id))[-1]
    assert json.loads(last["data"])["payload"]["state"] == "cancelled"
    assert (await http.delete(f"/api/v1/runs/{run_id}")).status_code == 204


async def test_an_interrupted_delete_can_be_repeated(
    app: App, http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await ended(http, inputs={"words": LONG})
    deleted = app.services.hub.delete_run

    async def cut_off(run: str) -> None:
        await deleted(run)
        raise OSError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(app.services.hub, "delete_run", cut_off)
        with pytest.raises(OSError, match="killed"):
            await app.services.engine.delete(run_id, workspace="default")
    assert (await http.delete(f"/api/v1/runs/{run_id}")).status_code == 204
    assert await owners(app) == set()


async def test_the_idempotency_key_is_free_again(http: httpx2.AsyncClient) -> None:
    first = await ended(http, inputs={"words": "a"}, idempotency_key="k")
    assert (await http.delete(f"/api/v1/runs/{first}")).status_code == 204
    assert await ended(http, inputs={"words": "b"}, idempotency_key="k") != first


async def test_a_foreign_run_is_unknown(app: App, http: httpx2.AsyncClient) -> None:
    run_id = await ended(http, inputs={"words": "x"})
    with pytest.raises(NotFound):
        await app.services.engine.delete(run_id, workspace="other")
    assert (await http.get(f"/api/v1/runs/{run_id}")).status_code == 200


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
