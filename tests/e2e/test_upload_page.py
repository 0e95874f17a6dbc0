"""The page of the guide on large files, in a real browser, over a line that cuts."""

import functools
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.e2e.test_docs import FILE, GUIDES
from tests.support.browser import browser_page
from tests.support.cutting import cutting
from tests.support.node_clients import node_clients

from mentatlab import app
from mentatlab.sdk.client import AsyncClient

CLIP = Path(__file__).parents[2] / "examples" / "media" / "clip.mp4"
CHOOSE = """
    (async () => {
      const files = new DataTransfer();
      const clip = await (await fetch("clip.mp4")).blob();
      files.items.add(new File([clip], "clip.mp4", {type: "video/mp4"}));
      document.getElementById("file").files = files.files;
      document.getElementById("file").dispatchEvent(new Event("change"));
      while (!document.getElementById("said").value) await new Promise(go => setTimeout(go, 50));
      return document.getElementById("said").value;
    })()
"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with what the page needs beside it; the page itself is the guide's."""
    folder = tmp_path / "site"
    folder.mkdir()
    shutil.copy(CLIP, folder)
    bundle = node_clients() / "node_modules" / "tus-js-client" / "dist" / "tus.min.js"
    shutil.copy(bundle, folder)
    return folder


@pytest.fixture
def origin(site: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_a_page_uploads(tmp_path: Path, site: Path, origin: str) -> None:
    settings = app.read_settings({}, home=tmp_path / "home", host="127.0.0.1", port=0)
    async with (
        app.running(settings) as server,
        cutting(server.url, seed=3, most_bytes=250_000) as (url, cutter),
        browser_page(tmp_path / "profile") as page,
        AsyncClient(server.url, key=server.key) as client,
    ):
        pages = dict(FILE.findall((GUIDES / "upload-large-files.md").read_text()))
        text = pages["upload.html"].replace("http://127.0.0.1:7070", url)
        (site / "upload.html").write_text(text)
        await page.goto(f"{origin}/upload.html")
        ref = await page.evaluate(CHOOSE)
        assert cutter.cuts > 0
        assert ref.startswith("blob_"), ref
        assert b"".join([b async for b in client.download(ref)]) == CLIP.read_bytes()
        (item,) = (await client.blobs())["items"]
        assert (item["filename"], item["type"]) == ("clip.mp4", "video")
