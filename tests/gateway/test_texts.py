"""NUL and half surrogate pairs stop at the border, so that no database has to say what it thinks of
them."""

import json
from typing import Any

import httpx2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.conftest import ECHO_FLOW

from mentatlab.app import App
from mentatlab.gateway.texts import bad_text, check_address
from mentatlab.protocol.errors import Code, ValidationFailed

HALF = "\ud800"
ANY_TEXT = st.text(st.characters(codec=None) | st.sampled_from(f"\0{HALF}/~"), max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"a": "x", "b": {"c": ["\0"]}}, None),
        ({"a": "x\0"}, "/a"),
        ({"a": HALF}, "/a"),
        ({"a": {"b": [1, {"c/~": HALF}]}}, "/a/b/1/c~1~0"),
        ({"a": {HALF: 1}}, "/a"),
        ({"a": "\U0001f600"}, None),
    ],
)
def test_where_the_text_is_that_is_none(body: dict[str, Any], place: str | None):
    assert bad_text(body) == place


@given(st.dictionaries(ANY_TEXT, VALUES, max_size=4))
def test_what_passes_can_be_stored(body: dict[str, Any]):
    try:
        msgspec.json.encode(body)
        storable = not any(isinstance(value, str) and "\0" in value for value in body.values())
    except UnicodeEncodeError:
        storable = False
    assert (bad_text(body) is None) == storable


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/a\0", b""),
        ("/a\ufffd", b""),
        ("/a", b"x=%00"),
        ("/a", b"x=%ED%A0%80"),
        ("/a", b"%ed%bf%bf=1"),
    ],
)
def test_addresses_that_are_refused(path: str, query: bytes):
    with pytest.raises(ValidationFailed) as refused:
        check_address(path, query)
    assert refused.value.code == Code.INVALID_TEXT
    assert refused.value.problems[0].path == ("/query" if query else "/path")


@pytest.mark.parametrize("query", [b"", b"x=%2500", b"x=%ED%9F%BF", b"x=%F0%9F%98%80", b"x=%E9"])
def test_addresses_that_are_fine(query: bytes):
    check_address("/a/\u00e4 b", query)


CALLS: list[tuple[str, str, dict[str, Any], str]] = [
    ("POST", "runs", {"flow": ECHO_FLOW, "inputs": {"words": HALF}}, "/body/inputs/words"),
    ("POST", "runs", {"flow_id": "a\0"}, "/body/flow_id"),
    ("POST", "runs", {"flow": ECHO_FLOW, "idempotency_key": "k\0"}, "/body/idempotency_key"),
    ("POST", "runs/rn_x/rerun", {"params": {"a": {"b": HALF}}}, "/body/params/a/b"),
    ("POST", "runs/rn_x/gates/g", {"approve": True, "comment": "\0"}, "/body/comment"),
    ("POST", "schedules", {"flow_id": "f", "cron": "* * * * *\0"}, "/body/cron"),
    ("POST", "webhooks", {"flow_id": "f", "input": HALF}, "/body/input"),
    ("POST", "keys", {"name": "n\0"}, "/body/name"),
    ("PUT", "secrets/A", {"value": "12345\0"}, "/body/value"),
    ("POST", "storage/uploads", {"filename": "a\0b"}, "/body/filename"),
    ("GET", "flows/%00", {}, "/path"),
    ("GET", "runs?q=%00", {}, "/query"),
]


@pytest.mark.parametrize(("method", "path", "body", "place"), CALLS)
async def test_calls(
    admin: httpx2.AsyncClient, method: str, path: str, body: dict[str, Any], place: str
):
    sent: dict[str, Any] = {
        "content": json.dumps(body),
        "headers": {"Content-Type": "application/json"},
    }
    answer = await admin.request(method, f"/api/v1/{path}", **(sent if body else {}))
    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_TEXT")
    assert [p["path"] for p in answer.json()["problems"]] == [place]


async def test_data_may_hold_nul(app: App, http: httpx2.AsyncClient):
    sent = {"flow": ECHO_FLOW, "inputs": {"words": "a\0b"}}
    run_id = (await http.post("/api/v1/runs", json=sent)).json()["run_id"]
    assert (await app.services.engine.wait(run_id)).outputs == {"out.text": "a\0b"}
