"""The whole product from outside: `mentatlab up`, then a photo through the public API.

A photo end to end: upload, run of `examples/photo.mlab`, its answer, with warm agents.
"""

import io
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from tests.support.server import Up, up

from benchmarks.table import Row, percentile
from mentatlab.sdk.client import AsyncClient

EXAMPLES = Path(__file__).parents[1] / "examples"
STARTS = 3
IDLE_S = 1.0
PHOTOS = 40
CLASSIFY = """
apiVersion: v1beta1
kind: Flow
meta: {id: bench.classify, name: One photo, version: 0.1.0}
graph:
  nodes:
    - {id: photo, type: ui.file-upload, params: {accept: "image/*"}}
    - {id: classify, type: mentatlab.image-classifier}
  edges: [{from: photo.file, to: classify.image}]
"""


async def run() -> list[Row]:
    rows = starts()
    with _server() as server:
        async with AsyncClient(server.url) as client:
            classify = await _photos(client, CLASSIFY)
            photo = await _photos(client, (EXAMPLES / "photo.mlab").read_text())
    return [
        *rows,
        *_image_rows("1080p JPEG, classify", classify),
        *_image_rows("1080p JPEG, classify + detect + join", photo),
    ]


def starts() -> list[Row]:
    ready: list[float] = []
    rss: list[float] = []
    for _ in range(STARTS):
        begun = time.perf_counter()
        with _server() as server:
            ready.append(time.perf_counter() - begun)
            time.sleep(IDLE_S)
            rss.append(_rss_mb(server.process.pid))
    return [
        Row("server ready", min(ready), "s best", "<= 2 s"),
        Row("server idle", min(rss), "MB", "<= 150 MB"),
    ]


def _image_rows(name: str, times: list[float]) -> list[Row]:
    return [
        Row(name, percentile(times, 50), "ms p50"),
        Row(name, percentile(times, 90), "ms p90", "< 100 ms"),
    ]


async def _photos(client: AsyncClient, flow: str) -> list[float]:
    """ms from the upload's first byte to the answer; the first two runs warm the agents up."""
    photo = _jpeg(1920, 1080)
    times = [await _one(client, flow, photo) for _ in range(PHOTOS + 2)]
    return times[2:]


async def _one(client: AsyncClient, flow: str, photo: bytes) -> float:
    begun = time.perf_counter()
    uploaded = await client.upload(photo, filename="photo.jpg")
    run = await client.submit(flow, {"photo": uploaded["reference"]})
    async for _ in client.events(run["run_id"]):
        pass
    answer = await client.outputs(run["run_id"])
    assert answer["state"] == "succeeded", answer
    return (time.perf_counter() - begun) * 1000


def _jpeg(width: int, height: int) -> bytes:
    with Image.open(EXAMPLES / "media" / "coffee.png") as coffee:
        file = io.BytesIO()
        coffee.convert("RGB").resize((width, height)).save(file, "JPEG", quality=90)
        return file.getvalue()


@contextmanager
def _server() -> Generator[Up]:
    with tempfile.TemporaryDirectory() as home, up(Path(home)) as server:
        yield server


def _rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6
