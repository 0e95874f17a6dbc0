"""An OpenAI-compatible endpoint for tests: `POST /v1/chat/completions`, whole or streamed.

It refuses what the API would refuse (a schema of the request, written from the API's reference),
looks at the picture and the data that it is sent, and answers from them.
"""

import base64
import contextlib
import io
import json
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jsonschema
from PIL import Image

_TEXT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
}
_IMAGE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["type", "image_url"],
    "properties": {
        "type": {"const": "image_url"},
        "image_url": {
            "type": "object",
            "additionalProperties": False,
            "required": ["url"],
            "properties": {
                "url": {"type": "string", "pattern": "^(https?://|data:image/[a-z]+;base64,)"},
                "detail": {"enum": ["auto", "low", "high"]},
            },
        },
    },
}
_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["developer", "system", "user", "assistant"]},
        "content": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "minItems": 1, "items": {"anyOf": [_TEXT, _IMAGE]}},
            ]
        },
        "name": {"type": "string"},
    },
    "additionalProperties": False,
}
_FORMAT = {
    "type": "object",
    "required": ["type", "json_schema"],
    "properties": {
        "type": {"const": "json_schema"},
        "json_schema": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"},
                "description": {"type": "string"},
                "schema": {"type": "object"},
                "strict": {"type": ["boolean", "null"]},
            },
        },
    },
}
REQUEST = {
    "type": "object",
    "additionalProperties": False,
    "required": ["model", "messages"],
    "properties": {
        "model": {"type": "string", "minLength": 1},
        "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
        "stream": {"type": ["boolean", "null"]},
        "stream_options": {"type": ["object", "null"]},
        "max_tokens": {"type": ["integer", "null"], "minimum": 1},
        "max_completion_tokens": {"type": ["integer", "null"], "minimum": 1},
        "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
        "response_format": {"anyOf": [{"type": "object", "required": ["type"]}, _FORMAT]},
    },
}


@dataclass
class ChatServer:
    url: str
    key: str
    requests: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @property
    def env(self) -> dict[str, str]:
        return {"OPENAI_BASE_URL": self.url, "OPENAI_API_KEY": self.key}


def refusal(request: Any) -> str:
    """Why the API would not take it; "" when it would."""
    error = next(iter(jsonschema.Draft202012Validator(REQUEST).iter_errors(request)), None)
    if error is not None:
        return f"{error.json_path}: {error.message[:300]}"
    form = request.get("response_format")
    if form is not None and form["type"] == "json_schema":
        try:
            jsonschema.validate(form, _FORMAT)
            schema = form["json_schema"].get("schema", {})
            jsonschema.Draft202012Validator.check_schema(schema)
        except (jsonschema.ValidationError, jsonschema.SchemaError) as found:
            return f"response_format: {found.message[:300]}"
        if form["json_schema"].get("strict") and not _is_strict(schema):
            return "response_format: strict needs additionalProperties: false and all required"
    return ""


def _is_strict(schema: dict[str, Any]) -> bool:
    """As structured outputs ask for."""
    members = schema.get("properties", {})
    return schema.get("additionalProperties") is False and {*members} == {
        *schema.get("required", [])
    }


def answer_to(request: dict[str, Any]) -> str:
    """What is in the pictures and data that were sent; JSON when that is asked for."""
    labels, pictures = list[str](), list[str]()
    for part in _parts(request):
        if part["type"] == "image_url":
            pictures.append(_look(part["image_url"]["url"]))
        else:
            labels += _labels(part["text"])
    seen = f"a picture of {' and '.join(pictures)}" if pictures else "no picture"
    said = f"This is {seen}; it may show {', '.join(labels[:3]) or 'anything'}."
    if (request.get("response_format") or {}).get("type") != "json_schema":
        return said
    return json.dumps({"description": said, "labels": labels[:3]})


def _parts(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for message in request["messages"]:
        content = message["content"]
        yield from [{"type": "text", "text": content}] if isinstance(content, str) else content


def _look(url: str) -> str:
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2], validate=True))) as image:
        image.load()
        red, green, blue = image.convert("RGB").resize((1, 1)).getpixel((0, 0))  # pyright: ignore[reportGeneralTypeIssues] — three of RGB
        return f"{image.width}x{image.height} pixels around #{red:02x}{green:02x}{blue:02x}"


def _labels(text: str) -> list[str]:
    try:
        data = json.loads(text)
    except ValueError:
        return []
    rows = data if isinstance(data, list) else []
    return [row["label"] for row in rows if isinstance(row, dict) and "label" in row]


@contextlib.contextmanager
def chat_server(key: str = "sk-test") -> Generator[ChatServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        shared = ChatServer(f"http://127.0.0.1:{server.server_port}/v1", key)
        server.RequestHandlerClass = _handler(shared)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield shared
        finally:
            server.shutdown()
            thread.join()


def _handler(shared: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                return self._refuse(404, "unknown path")
            if self.headers["Authorization"] != f"Bearer {shared.key}":
                return self._refuse(401, "Incorrect API key provided")
            if why := refusal(request):
                return self._refuse(400, why)
            shared.requests.append(request)
            answer = answer_to(request)
            return (
                self._stream(request, answer)
                if request.get("stream")
                else self._whole(request, answer)
            )

        def _refuse(self, status: int, message: str) -> None:
            error = {"message": message, "type": "invalid_request_error", "param": None}
            self._send(status, json.dumps({"error": error}).encode(), "application/json")

        def _whole(self, request: dict[str, Any], answer: str) -> None:
            message = {"role": "assistant", "content": answer}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            body = {**_head(request, "chat.completion"), "choices": [choice]}
            self._send(200, json.dumps(body).encode(), "application/json")

        def _stream(self, request: dict[str, Any], answer: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            pieces = [answer[at : at + 12] for at in range(0, len(answer), 12)]
            deltas = [{"role": "assistant", "content": ""}, *({"content": p} for p in pieces), {}]
            for delta in deltas:
                choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
                event = {**_head(request, "chat.completion.chunk"), "choices": [choice]}
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.flush()
            self.wfile.write(b"data: [DONE]\n\n")

        def _send(self, status: int, body: bytes, mime: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", mime)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _head(request: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": request["model"]}
