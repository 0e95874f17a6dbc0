"""The real agent process against a real HTTP server that speaks the chat-completions protocol."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mentatlab.sdk.media.images import load_image

PIECES = ["A cup", " of espresso", " on a wooden", " table: \N{HOT BEVERAGE}."]
HEAD = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
TAIL = {"choices": [{"delta": {}, "finish_reason": "stop"}]}


def event(data: Any) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def words(pieces: list[str]) -> list[bytes]:
    return [event({"choices": [{"delta": {"content": piece}}]}) for piece in pieces]


WHOLE = [b": hello\n\n", event(HEAD), *words(PIECES), event(TAIL), event(b"[DONE]")]


@dataclass
class Endpoint:
    """Answers every request with `status` and the lines of `body`, each sent at once."""

    status: int = 200
    body: list[bytes] = field(default_factory=lambda: list(WHOLE))
    requests: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    paths: list[str] = field(default_factory=list[str])
    url: str = ""

    @property
    def env(self) -> dict[str, str]:
        return {"OPENAI_BASE_URL": self.url, "OPENAI_API_KEY": "secret-key", "MODEL": "test-model"}


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    shared = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            shared.paths.append(self.path)
            shared.headers.append({k.lower(): v for k, v in self.headers.items()})
            length = int(self.headers["Content-Length"])
            shared.requests.append(json.loads(self.rfile.read(length)))
            self.send_response(shared.status)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for line in shared.body:
                self.wfile.write(line)
                self.wfile.flush()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        shared.url = f"http://127.0.0.1:{server.server_port}/v1"
        try:
            yield shared
        finally:
            server.shutdown()
            thread.join()


async def test_the_answer_streams_and_comes_whole(one_shot: Any, endpoint: Endpoint) -> None:
    answer = await one_shot({"prompt": "What is it?"}, env=endpoint.env)
    assert answer.exit_code == 0
    assert answer.chunks("text") == PIECES
    assert answer.outputs["answer"] == "".join(PIECES)


async def test_the_request_is_what_the_protocol_asks_for(
    one_shot: Any, endpoint: Endpoint, reference: Callable[[Path], dict[str, Any]], media: Path
) -> None:
    boxes = [{"label": "cup", "score": 0.9}]
    spec = {"image": reference(media / "coffee.png"), "data": boxes, "max_tokens": 40}
    await one_shot(spec, env=endpoint.env)
    [request] = endpoint.requests
    assert endpoint.paths == ["/v1/chat/completions"]
    assert endpoint.headers[0]["authorization"] == "Bearer secret-key"
    assert endpoint.headers[0]["content-type"] == "application/json"
    assert (request["model"], request["stream"], request["max_tokens"]) == ("test-model", True, 40)
    [message] = request["messages"]
    prompt, data, image = message["content"]
    assert message["role"] == "user"
    assert "Describe" in prompt["text"]
    assert json.loads(data["text"]) == boxes
    head, _, body = image["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    assert load_image(base64.b64decode(body)).size == (600, 400)


async def test_an_endpoint_without_a_key_gets_none(one_shot: Any, endpoint: Endpoint) -> None:
    env = {k: v for k, v in endpoint.env.items() if k != "OPENAI_API_KEY"}
    answer = await one_shot({}, env=env)
    assert answer.exit_code == 0
    assert "authorization" not in endpoint.headers[0]


@pytest.mark.parametrize("missing", ["OPENAI_BASE_URL", "MODEL"])
async def test_without_configuration(missing: str, one_shot: Any, endpoint: Endpoint) -> None:
    answer = await one_shot({}, env={k: v for k, v in endpoint.env.items() if k != missing})
    assert answer.exit_code == 1
    assert answer.error["code"] == "ENDPOINT_NOT_CONFIGURED"
    assert missing in answer.error["hint"]
    assert endpoint.requests == []


@pytest.mark.parametrize(
    ("status", "body", "retryable", "says"),
    [
        (401, [b'{"error": "bad key"}'], False, "HTTP 401"),
        (429, [b"slow down"], True, "HTTP 429"),
        (503, [b""], True, "HTTP 503"),
        (200, WHOLE[:3], True, "broke off"),
        (200, [event({"error": {"message": "overloaded"}})], False, "overloaded"),
        (200, [event(b"{not json")], False, "not JSON"),
    ],
)
async def test_a_failing_endpoint(
    status: int, body: list[bytes], retryable: bool, says: str, one_shot: Any, endpoint: Endpoint
) -> None:
    endpoint.status, endpoint.body = status, body
    answer = await one_shot({}, env=endpoint.env)
    assert answer.exit_code == (3 if retryable else 1)
    assert answer.error["code"] == "ENDPOINT_FAILED"
    assert answer.error["retryable"] is retryable
    assert says in answer.error["message"]
    assert "secret-key" not in json.dumps(answer.events)


async def test_nobody_listens(one_shot: Any, endpoint: Endpoint) -> None:
    answer = await one_shot({}, env={**endpoint.env, "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"})
    assert answer.exit_code == 3
    assert answer.error["code"] == "ENDPOINT_FAILED"


async def test_warm_answers_again(warm: Any, endpoint: Endpoint) -> None:
    async with warm(env=endpoint.env) as agent:
        first = await agent.invoke({"prompt": "one"})
        second = await agent.invoke({"prompt": "two"})
    assert first.outputs == second.outputs == {"answer": "".join(PIECES)}
    assert [r["messages"][0]["content"][0]["text"] for r in endpoint.requests] == ["one", "two"]


async def test_a_schema_makes_the_answer_an_object(one_shot: Any, endpoint: Endpoint) -> None:
    schema = {"type": "object", "required": ["what"]}
    endpoint.body = [*words(['{"what": ', '"a cup"}']), event(b"[DONE]")]
    answer = await one_shot({"schema": schema, "model": "other"}, env=endpoint.env)
    assert answer.outputs["object"] == {"what": "a cup"}
    [request] = endpoint.requests
    assert request["model"] == "other"
    form = request["response_format"]
    assert (form["type"], form["json_schema"]["schema"]) == ("json_schema", schema)


async def test_a_schema_and_an_answer_that_is_no_json(one_shot: Any, endpoint: Endpoint) -> None:
    answer = await one_shot({"schema": {"type": "object"}}, env=endpoint.env)
    assert answer.error["code"] == "ENDPOINT_FAILED"
    assert "not the JSON" in answer.error["message"]


async def test_a_model_by_input_needs_no_variable(one_shot: Any, endpoint: Endpoint) -> None:
    env = {k: v for k, v in endpoint.env.items() if k != "MODEL"}
    assert (await one_shot({"model": "gpt-4"}, env=env)).exit_code == 0
