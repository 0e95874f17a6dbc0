"""Describes anything by an OpenAI-compatible endpoint (`POST …/chat/completions`, streamed)."""

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import httpx2
import msgspec

from mentatlab.protocol.errors import Code
from mentatlab.sdk import AgentError, StreamingAgent, run
from mentatlab.sdk.media.images import encode_jpeg, load_image
from mentatlab.sdk.params import read_params

LONGEST_SIDE = 1024  # pixels of the image that is sent
TIMEOUT = httpx2.Timeout(120, connect=10)  # seconds; a model may think long before its first word
TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class Params(msgspec.Struct):
    """`model` wins over `MODEL`; with a `schema` the answer is JSON of that form."""

    prompt: str = "Describe what you are given, in a few plain sentences."
    model: str = ""
    schema: dict[str, Any] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    url: str
    key: str
    model: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], model: str = "") -> "Endpoint":
        base, model = environment.get("OPENAI_BASE_URL"), model or environment.get("MODEL", "")
        if not base or not model:
            raise AgentError(
                Code.ENDPOINT_NOT_CONFIGURED,
                "the describer has no endpoint",
                hint="start the server with OPENAI_BASE_URL (e.g. http://127.0.0.1:8000/v1), MODEL"
                " (or the input `model`) and, when the endpoint asks for one, OPENAI_API_KEY in its"
                " environment",
            )
        url = base.rstrip("/") + "/chat/completions"
        return cls(url=url, key=environment.get("OPENAI_API_KEY", ""), model=model)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


class Describer(StreamingAgent):
    concurrency = 4

    async def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
        params = read_params(inputs, Params)
        endpoint = Endpoint.from_environment(os.environ, params.model)
        request: dict[str, Any] = {
            "model": endpoint.model,
            "stream": True,
            "max_tokens": params.max_tokens,
            "messages": [{"role": "user", "content": await self._content(params.prompt, inputs)}],
        }
        if params.schema is not None:
            form = {"name": "answer", "strict": True, "schema": params.schema}
            request["response_format"] = {"type": "json_schema", "json_schema": form}
        pieces: list[str] = []
        await self.init_stream("text")
        async for piece in complete(endpoint, request):
            pieces.append(piece)
            await self.stream_output("text", piece)
        answer = "".join(pieces)
        return {"answer": answer} | ({} if params.schema is None else {"object": parsed(answer)})

    async def _content(self, prompt: str, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        if (data := inputs.get("data")) is not None:
            text = data if isinstance(data, str) else msgspec.json.encode(data).decode()
            content.append({"type": "text", "text": text})
        if image := inputs.get("image"):
            url = await asyncio.to_thread(self._data_url, image)
            content.append({"type": "image_url", "image_url": {"url": url}})
        return content

    def _data_url(self, ref: Mapping[str, Any]) -> str:
        with self.open_media(ref) as file:
            image = load_image(file, at_least=LONGEST_SIDE).image
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(image)).decode()


async def complete(endpoint: Endpoint, request: Mapping[str, Any]) -> AsyncIterator[str]:
    """Pieces of the answer as they come; `AgentError(ENDPOINT_FAILED)` when refused or cut off."""
    try:
        async with (
            httpx2.AsyncClient(timeout=TIMEOUT, headers=endpoint.headers) as client,
            client.stream("POST", endpoint.url, json=request) as response,
        ):
            if response.status_code != 200:
                raise refused(response.status_code, await response.aread())
            async for piece in pieces_of(response.aiter_lines()):
                yield piece
    except httpx2.HTTPError as error:
        raise failed(f"no answer: {error or type(error).__name__}", retryable=True) from error


async def pieces_of(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    """Text out of server-sent events; they end with `[DONE]`."""
    async for line in lines:
        field, _, data = line.partition(":")
        if field != "data":
            continue
        if data.strip() == "[DONE]":
            return
        if piece := piece_of(data):
            yield piece
    raise failed("the answer broke off", retryable=True)


def piece_of(data: str) -> str:
    try:
        event = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise failed(f"an event is not JSON: {data[:200]!r}") from error
    match event:
        case {"error": problem}:
            raise failed(f"in mid-answer: {problem}")
        case {"choices": [{"delta": {"content": str(text)}}, *_]}:
            return text
        case _:
            return ""  # a role, a usage report, a finish reason


def parsed(answer: str) -> Any:
    try:
        return msgspec.json.decode(answer)
    except msgspec.DecodeError as error:
        raise failed(f"the answer is not the JSON that was asked for: {answer[:200]!r}") from error


def refused(status: int, body: bytes) -> AgentError:
    said = body[:500].decode("utf-8", "replace").strip()
    return failed(f"HTTP {status}: {said}", retryable=status in TRANSIENT)


def failed(why: str, *, retryable: bool = False) -> AgentError:
    return AgentError(
        Code.ENDPOINT_FAILED,
        f"the endpoint failed: {why}",
        retryable=retryable,
        hint="check OPENAI_BASE_URL, OPENAI_API_KEY and MODEL against the endpoint",
    )


if __name__ == "__main__":
    run(Describer)
