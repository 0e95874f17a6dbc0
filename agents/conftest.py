"""Runs the agent of the test's own folder as a real process, as a host does."""

import asyncio
import json
import os
import struct
import sys
import zlib
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

DEADLINE_S = 60


@dataclass
class Answer:
    """What one invocation said, in order."""

    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    exit_code: int | None = None  # one-shot only

    @property
    def outputs(self) -> dict[str, Any]:
        return next((e["outputs"] for e in self.events if e["type"] == "result"), {})

    @property
    def error(self) -> dict[str, Any]:
        return next((e for e in self.events if e["type"] == "error"), {})

    def chunks(self, pin: str) -> list[Any]:
        return [e["data"] for e in self.events if e["type"] == "chunk" and e["pin"] == pin]


class Warm:
    """A running warm agent; `invoke` as often as you like."""

    def __init__(self, process: asyncio.subprocess.Process, out_dir: Path) -> None:
        self.process = process
        self._out_dir = out_dir
        self._count = 0

    async def invoke(
        self, spec: Mapping[str, Any], chunks: Iterable[Mapping[str, Any]] = ()
    ) -> Answer:
        self._count += 1
        name = f"i{self._count}"
        self._send({"type": "invoke", "id": name, **body(spec, self._out_dir)})
        for chunk in chunks:
            self._send({**chunk, "id": name})
        for pin in live_pins(spec):
            self._send({"type": "credit", "id": name, "pin": pin, "bytes": 1 << 20})
            self._send({"type": "eos", "id": name, "pin": pin, "status": "complete"})
        answer = Answer()
        while not answer.events or answer.events[-1]["type"] not in ("result", "error"):
            answer.events.append(await self.read())
        return answer

    async def read(self) -> dict[str, Any]:
        assert self.process.stdout
        async with asyncio.timeout(DEADLINE_S):
            return json.loads(await self.process.stdout.readline())

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(message).encode() + b"\n")


def body(spec: Mapping[str, Any], out_dir: Path) -> dict[str, Any]:
    return {
        "spec": spec,
        "context": {"run_id": "rn_test", "node_id": "node", "out_dir": str(out_dir)},
    }


def live_pins(spec: Mapping[str, Any]) -> list[str]:
    return [k for k, v in spec.items() if isinstance(v, dict) and v.get("live")]


def start(folder: Path, env: Mapping[str, str]) -> Any:
    return asyncio.create_subprocess_exec(
        sys.executable,
        "src/main.py",
        cwd=folder,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **env},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 21,
    )


@pytest.fixture
def one_shot(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Any]:
    """`await one_shot(spec, chunks=…, env=…) -> Answer`: one process, one answer."""
    folder = request.path.parents[1]

    async def call(
        spec: Mapping[str, Any],
        chunks: Iterable[Mapping[str, Any]] = (),
        env: Mapping[str, str] | None = None,
    ) -> Answer:
        lines = [body(spec, tmp_path), *chunks]
        process = await start(folder, env or {})
        said, _ = await asyncio.wait_for(
            process.communicate("".join(json.dumps(line) + "\n" for line in lines).encode()),
            DEADLINE_S,
        )
        return Answer([json.loads(line) for line in said.splitlines()], process.returncode)

    return call


@pytest.fixture
def warm(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Callable[..., AbstractAsyncContextManager[Warm]]:
    """`async with warm(env=…) as agent:` starts it, waits for `ready`, and drains it at the end."""
    folder = request.path.parents[1]

    @asynccontextmanager
    async def running(env: Mapping[str, str] | None = None) -> AsyncGenerator[Warm]:
        process = await start(folder, {**(env or {}), "MENTAT_WARM": "1"})
        agent = Warm(process, tmp_path)
        try:
            assert (await agent.read())["type"] == "ready"
            yield agent
            await asyncio.wait_for(process.communicate(b'{"type":"drain"}\n'), DEADLINE_S)
            assert process.returncode == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    return running


@pytest.fixture
def media() -> Path:
    """The sample media."""
    return Path(__file__).parents[1] / "examples" / "media"


@pytest.fixture
def reference() -> Callable[[Path], dict[str, Any]]:
    """A file as the host hands it to an agent."""

    def make(file: Path, type_: str = "image") -> dict[str, Any]:
        url = "mentat://default/blob_01J00000000000000000000000"
        return {"type": type_, "ref": {"url": url, "size": 0}, "path": str(file)}

    return make


@pytest.fixture
def bad_images(media: Path, tmp_path: Path) -> dict[Path, str]:
    """Files that no image agent may choke on, and the code that each must answer."""
    bodies = {
        "cut.jpg": (media / "astronaut.jpg").read_bytes()[:20_000],
        "empty.png": b"",
        "page.png": b"<!doctype html><html><body>404</body></html>",
        "bomb.png": png_bomb(20_000),
    }
    for name, body_ in bodies.items():
        (tmp_path / name).write_bytes(body_)
    codes = dict.fromkeys(bodies, "IMAGE_UNREADABLE") | {"bomb.png": "IMAGE_TOO_LARGE"}
    return {tmp_path / name: code for name, code in codes.items()}


def png_bomb(side: int) -> bytes:
    """`side`² black pixels, 1 bit each, in some kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(side * (side // 8 + 1)), 9)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
