"""`examples/streams/` as a reader starts them: programs, a shell script, a page in a browser."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.support.browser import Page, browser_page
from tests.support.server import Up, environment, up

from mentatlab.sdk.client import AsyncClient

EXAMPLES = Path(__file__).parents[2] / "examples" / "streams"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("home")) as server:
        yield server


def start(server: Up, *command: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(part) for part in command],
        env=environment(server.home, MENTATLAB_SERVER=server.url, PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def interrupt(process: subprocess.Popen[str]) -> str:
    """As Ctrl-C does; what was printed since."""
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 1, printed
    return printed


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_publisher_and_subscriber_go_on_where_they_were(server: Up, tmp_path: Path) -> None:
    place = tmp_path / "cursor"
    publish = (sys.executable, EXAMPLES / "publisher.py", "balcony", "6")
    with start(server, *publish) as first:
        stream_id = next_line(first)
        follow = (sys.executable, EXAMPLES / "subscriber.py", stream_id, place)
        with start(server, *follow) as reader:
            printed = [next_line(reader) for _ in range(2)]
            printed += interrupt(reader).splitlines()
        assert "the same name goes on" in interrupt(first)
    with start(server, *publish) as second, start(server, *follow) as reader:
        assert next_line(second) == stream_id
        rest, _ = reader.communicate(timeout=30)
        printed += rest.splitlines()
        assert second.wait(30) == 0
    records = [line for line in printed if line.startswith(tuple("0123456789"))]
    assert [line.split()[0] for line in records] == [str(n) for n in range(2, 8)]
    assert printed[-1] == "complete"


def test_the_programs_say_what_is_wrong(server: Up) -> None:
    with start(server, sys.executable, EXAMPLES / "subscriber.py", "st_nobody") as reader:
        printed, _ = reader.communicate(timeout=30)
    assert printed.startswith("STREAM_UNKNOWN: there is no stream")


def test_the_shell_script(server: Up) -> None:
    with start(server, "sh", EXAMPLES / "stream.sh") as script:
        printed, _ = script.communicate(timeout=30)
    assert script.returncode == 0, printed
    assert printed.count('"first":2,"last":3,"duplicate":false') == 1
    assert printed.count('"first":2,"last":3,"duplicate":true') == 1
    for name in ("hello", "stream_start", "stream_end"):
        assert f"event: {name}" in printed
    assert printed.count("event: stream_data") == 3
    log = [json.loads(line) for line in printed.splitlines() if line.startswith('{"type"')]
    assert [record["sequence"] for record in log] == [1, 2, 3, 4, 5, 4, 5]
    assert "211   P   N   G" in printed.splitlines()[-1]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Not on stderr."""


@pytest.fixture(scope="module")
def page_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=EXAMPLES)) as pages:
        threading.Thread(target=pages.serve_forever).start()
        yield f"http://127.0.0.1:{pages.server_port}/page.html"
        pages.shutdown()


FOLLOW = """
    (() => {
        const form = document.getElementById("place");
        form.server.value = %r; form.stream.value = %r; form.token.value = %r;
        form.querySelector("button[value=%s]").click();
    })()
"""
RECORDS = "document.getElementById('records').textContent"
STATE = "document.getElementById('state').textContent"


async def until(page: Page, holds: Callable[[str], bool], expression: str = RECORDS) -> str:
    async with asyncio.timeout(30):
        while not holds(text := await page.evaluate(expression)):
            await asyncio.sleep(0.02)
    return text


def values(text: str) -> list[Any]:
    lines = [line.split(" ", 2) for line in text.splitlines()]
    return [json.loads(line[2]) for line in lines if line[1] == "stream_data"]


@pytest.mark.parametrize("by", ["eventsource", "websocket"])
async def test_the_page_follows_over_a_restart_with_a_token(
    by: str, page_url: str, tmp_path: Path
) -> None:
    script = "<img src=x onerror=document.title='broken'>"
    with up(tmp_path / "home") as first:
        port = first.url.rpartition(":")[2]
        async with AsyncClient(first.url) as client, browser_page(tmp_path / "profile") as page:
            opened = await client.open_stream("me", "out")
            stream_id = opened["stream_id"]
            await client.publish(stream_id, [1, script])
            token = (await client.stream_token(stream_id, ["sub", "pub"]))["token"]
            await page.goto(page_url)
            await page.evaluate(FOLLOW % (first.url, stream_id, token, by))
            await until(page, lambda text: len(values(text)) == 2)
            await asyncio.to_thread(first.stop, signal.SIGKILL)
            await until(page, lambda text: text == "reconnecting", STATE)
            with up(tmp_path / "home", "--port", port):
                await client.publish(stream_id, [3], end=True)
                text = await until(page, lambda text: "stream_end" in text)
                await until(page, lambda text: text == "the stream has ended", STATE)
            assert values(text) == [1, script, 3]
            assert await page.evaluate("document.title") == "A MentatLab stream"


async def test_the_page_publishes(server: Up, page_url: str, tmp_path: Path) -> None:
    type_ = """
        (() => {
            const form = document.getElementById("publish");
            form.text.value = %r; form.requestSubmit();
        })()
    """
    async with AsyncClient(server.url) as client, browser_page(tmp_path / "profile") as page:
        stream_id = (await client.open_stream("me", "page"))["stream_id"]
        await page.goto(page_url)
        await page.evaluate(FOLLOW % (server.url, stream_id, "", "websocket"))
        await until(page, lambda text: "stream_start" in text)
        for text in ("hello", "world"):
            await page.evaluate(type_ % text)
        shown = await until(page, lambda text: len(values(text)) == 2)
        assert values(shown) == ["hello", "world"]
        async with client.connect_streams() as streams, streams.publisher(stream_id) as out:
            await out.send_bytes(b"x" * 70_000)
        await until(page, lambda text: "4 70000 bytes" in text)


async def test_the_page_says_why_it_is_refused(server: Up, page_url: str, tmp_path: Path) -> None:
    async with browser_page(tmp_path / "profile") as page:
        await page.goto(page_url)
        await page.evaluate(FOLLOW % (server.url, "st_nobody", "", "websocket"))
        await until(page, lambda text: text.startswith("refused: STREAM_UNKNOWN"), STATE)
        await page.evaluate(FOLLOW % (server.url, "st_nobody", "v1.wrong.token", "eventsource"))
        await until(page, lambda text: text.startswith("TOKEN_INVALID"), STATE)
