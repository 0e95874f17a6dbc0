"""The whole app in process, behind its real admission; agents are real processes."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
import pytest

from mentatlab.app import App, Settings, build

ECHO = """\
id: test.echo
version: 1.0.0
runtime: python3.11
inputs: [{name: text, type: string}]
outputs: [{name: text, type: string}]
"""
ECHO_MAIN = (
    "import json, sys\n"
    "payload = json.load(sys.stdin)\n"
    "print('heard', len(payload['text']), file=sys.stderr)\n"
    'print(json.dumps({"text": payload["text"]}))\n'
)
WAIT_MAIN = "import sys, time\nsys.stdin.readline()\ntime.sleep(600)\n"

ECHO_FLOW = """\
apiVersion: v1beta1
kind: Flow
meta: {id: t.echo, name: echo}
graph:
  nodes:
    - {id: words, type: ui.prompt}
    - {id: echo, type: test.echo}
    - {id: out, type: ui.console}
  edges:
    - {from: words.text, to: echo.text}
    - {from: echo.text, to: out.text}
"""


def write_agent(folder: Path, manifest: str = ECHO, main: str = ECHO_MAIN) -> Path:
    (folder / "src").mkdir(parents=True)
    (folder / "manifest.yaml").write_text(manifest)
    (folder / "src" / "main.py").write_text(main)
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    agents = tmp_path / "agents"
    write_agent(agents / "echo")
    write_agent(agents / "wait", ECHO.replace("test.echo", "test.wait"), WAIT_MAIN)
    return Settings(home=tmp_path / "home", agent_dirs=(agents,))


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[App]:
    async with build(settings) as built:
        yield built


ClientOf = Callable[..., httpx2.AsyncClient]


def client_of(app: App, key: str | None = None) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=app.asgi),
        base_url="http://127.0.0.1:7070",
        headers={"Authorization": f"Bearer {key}"} if key else {},
    )


@pytest.fixture
async def http(app: App) -> AsyncIterator[httpx2.AsyncClient]:
    """The user at the machine: no key."""
    async with client_of(app) as client:
        yield client


@pytest.fixture
async def admin(app: App) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(app, app.key) as client:
        yield client
