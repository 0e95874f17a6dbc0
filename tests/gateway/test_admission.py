"""Every refusal on every edge, in process."""

import logging

import httpx2
import pytest
from fastapi import Depends, FastAPI
from starlette.requests import HTTPConnection, Request
from starlette.types import Message

from mentatlab.gateway.admission import Admission, Rules, is_loopback, token_secret
from mentatlab.gateway.asgi import AdmissionMiddleware
from mentatlab.gateway.identity import Caller, caller, requires
from mentatlab.gateway.problems import install
from mentatlab.protocol import tokens
from mentatlab.protocol.errors import Code, NotFound
from mentatlab.streams import StreamingConnectionManager

HOME_KEY = "ml_home"
READER = Caller(workspace="w", scopes=frozenset({"read"}), name="reader")


async def lookup(key: str) -> Caller | None:
    return READER if key == "ml_reader" else None


def who(connection: HTTPConnection) -> dict[str, object]:
    found = caller(connection)
    return {"workspace": found.workspace, "name": found.name, "scopes": sorted(found.scopes)}


def application(*, loopback: bool = True, **rules: object) -> FastAPI:
    app = FastAPI()
    install(app)
    settings = Rules(
        loopback=loopback,
        home_key=HOME_KEY,
        token_secret=token_secret(HOME_KEY),
        **rules,  # pyright: ignore[reportArgumentType] — a test's shorthand
    )
    admission = Admission(settings, lookup, StreamingConnectionManager())
    app.add_middleware(AdmissionMiddleware, admission=admission)
    app.get("/who")(who)
    app.get("/run", dependencies=[Depends(requires("run"))])(who)
    app.get("/admin", dependencies=[Depends(requires("admin"))])(who)
    app.get("/healthz")(who)

    @app.get("/bug")
    def bug() -> None:  # pyright: ignore[reportUnusedFunction]
        raise RuntimeError("secret")

    @app.post("/body")
    async def body(request: Request) -> None:  # pyright: ignore[reportUnusedFunction]
        await request.body()

    @app.get("/missing")
    def missing() -> None:  # pyright: ignore[reportUnusedFunction]
        raise NotFound(Code.RUN_NOT_FOUND, "no such run", hint="look again")

    return app


def client(*, loopback: bool = True, **rules: object) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=application(loopback=loopback, **rules)),
        base_url="http://127.0.0.1:7070",
    )


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 200, None),
        ({"Host": "localhost"}, 200, None),
        ({"Host": "[::1]:7070"}, 200, None),
        ({"Host": "evil.example"}, 403, "FORBIDDEN_HOST"),
        ({"Host": "127.0.0.1.evil.example:7070"}, 403, "FORBIDDEN_HOST"),
        ({"Host": "[broken"}, 403, "FORBIDDEN_HOST"),
        ({"Host": ""}, 403, "FORBIDDEN_HOST"),
        ({"Host": "mentat.example"}, 200, None),
        ({"Origin": "http://localhost:3000"}, 200, None),
        ({"Origin": "https://app.example"}, 200, None),
        ({"Origin": "https://evil.example"}, 403, "FORBIDDEN_HOST"),
        ({"Origin": "null"}, 403, "FORBIDDEN_HOST"),
        ({"Authorization": "Basic eDp5"}, 401, "UNAUTHENTICATED"),
        ({"Authorization": "Bearer "}, 401, "UNAUTHENTICATED"),
        (bearer("ml_unknown"), 401, "UNAUTHENTICATED"),
        (bearer("ml_ü".encode().decode("latin-1")), 401, "UNAUTHENTICATED"),
        (bearer("v1.no.token"), 401, "TOKEN_INVALID"),
        (bearer(HOME_KEY), 200, None),
    ],
)
async def test_loopback(headers: dict[str, str], status: int, code: str | None):
    rules = {
        "hosts": frozenset({"mentat.example"}),
        "origins": frozenset({"https://app.example"}),
    }
    async with client(**rules) as http:
        raw = {k: v.encode("latin-1") for k, v in headers.items()}
        answer = await http.get("/who", headers=raw)
        assert answer.status_code == status
        assert answer.json().get("code") == code


@pytest.mark.parametrize(
    ("headers", "run", "admin"),
    [
        ({}, 200, 403),
        (bearer(HOME_KEY), 200, 200),
        (bearer("ml_reader"), 403, 403),
    ],
)
async def test_scopes_on_loopback(headers: dict[str, str], run: int, admin: int):
    async with client() as http:
        assert (await http.get("/run", headers=headers)).status_code == run
        assert (await http.get("/admin", headers=headers)).status_code == admin


async def test_elsewhere_nobody_may_do_anything_without_a_key():
    async with client(loopback=False) as http:
        answer = await http.get("/run", headers={"Host": "any.example"})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert (await http.get("/run", headers=bearer(HOME_KEY))).status_code == 200
        assert (await http.get("/healthz")).status_code == 200


async def test_probes_need_no_host():
    async with client() as http:
        assert (await http.get("/healthz", headers={"Host": "10.1.2.3"})).status_code == 200


async def test_a_token_is_a_caller_without_scopes():
    claims = tokens.Claims(
        subject="st_1", capabilities=("sub",), workspace="w", expires=2_000_000_000_000
    )
    token = tokens.mint(claims, token_secret(HOME_KEY))
    async with client() as http:
        found = (await http.get("/who", headers=bearer(token))).json()
        assert found == {"workspace": "w", "name": "token:st_1", "scopes": []}
        assert (await http.get("/run", headers=bearer(token))).status_code == 403


async def test_rate_is_per_key_and_the_user_at_the_machine_has_none():
    async with client(rate=0.001, burst=1.0) as http:
        assert (await http.get("/who", headers=bearer("ml_reader"))).status_code == 200
        refused = await http.get("/who", headers=bearer("ml_reader"))
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0
        assert (await http.get("/who", headers=bearer(HOME_KEY))).status_code == 200
        assert {(await http.get("/who")).status_code for _ in range(5)} == {200}


async def test_the_access_log_has_one_line_for_each_request(caplog: pytest.LogCaptureFixture):
    """Whatever is in the address; and never the query, where a ticket may stand."""
    caplog.set_level(logging.INFO, "mentatlab.access")
    async with client() as http:
        await http.get("/who%0aforged line?ticket=secret", headers=bearer("ml_reader"))
        await http.get("/bug")
        await http.get("/healthz")
    lines = [line.getMessage() for line in caplog.records if line.name == "mentatlab.access"]
    assert [line.split(" ms")[0].rsplit(" ", 1)[0] for line in lines] == [
        "127.0.0.1 GET /who\\nforged line 404 reader",
        "127.0.0.1 GET /bug 500 loopback",
        "127.0.0.1 GET /healthz 200 -",
    ]


async def test_a_bug_is_answered_with_an_id(caplog: pytest.LogCaptureFixture):
    async with client() as http:
        answer = await http.get("/bug")
    assert answer.status_code == 500
    assert answer.json()["code"] == "INTERNAL"
    assert "secret" not in answer.text
    assert answer.json()["details"]["incident"] in caplog.text


async def test_who_leaves_in_the_middle_of_a_body_is_no_bug(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "mentatlab")
    said: list[Message] = []

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        said.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/body", "raw_path": b"/body",
        "query_string": b"", "http_version": "1.1", "root_path": "", "scheme": "http",
        "headers": [(b"host", b"127.0.0.1")], "client": ("127.0.0.1", 1), "server": None,
    }  # fmt: skip
    await application()(scope, gone, send)
    assert [m["status"] for m in said if m["type"] == "http.response.start"] == [499]
    assert [(r.name, r.levelname) for r in caplog.records] == [("mentatlab.access", "INFO")]
    assert " 499 " in caplog.text


async def test_known_errors_pass_the_one_place():
    async with client() as http:
        answer = await http.get("/missing")
        assert (answer.status_code, answer.json()["hint"]) == (404, "look again")
        unknown = await http.get("/nowhere")
        assert (unknown.status_code, unknown.json()["code"]) == (404, "NOT_FOUND")
        wrong = await http.post("/who")
        assert (wrong.status_code, wrong.json()["code"]) == (405, "METHOD_NOT_ALLOWED")
        assert wrong.headers["allow"] == "GET"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_is_loopback(host: str, expected: bool):
    assert is_loopback(host) is expected
