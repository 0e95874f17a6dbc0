"""`make demo`: real media through real models, by the public API alone. Leaves `out/demo/`.

Starts the embedded server as anyone would (`mentatlab up`), runs the three flows beside this file
on `examples/media/`, shows progress and streamed results, writes `report.json` and media, stops.
"""

import asyncio
import json
import shutil
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mentatlab.sdk.client import AsyncClient, Gap, Reset

HERE = Path(__file__).parent
MEDIA = HERE / "media"
OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "out/demo")
START_TIMEOUT_S = 60.0
FLOWS = {"photo": "coffee.png", "speech": "jfk.wav", "clip": "clip.mp4"}
"""What each flow is run on; its input has the flow's own name."""


@asynccontextmanager
async def server(home: Path) -> AsyncIterator[AsyncClient]:
    """`mentatlab up` on a free port, and a client of it."""
    command = [sys.executable, "-m", "mentatlab", "up", "--port", "0", "--home", str(home)]
    process = await asyncio.create_subprocess_exec(*command, stdout=sys.stderr)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            url = await _address(process, home / "server.json")
        print(f"server   {url}")
        async with AsyncClient(url, key=(home / "key").read_text().strip()) as client:
            yield client
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _address(process: asyncio.subprocess.Process, info: Path) -> str:
    while not info.exists():
        if process.returncode is not None:
            sys.exit("the server did not start")
        await asyncio.sleep(0.02)
    return json.loads(info.read_text())["url"]


async def run_flow(client: AsyncClient, name: str, media: str) -> dict[str, Any]:
    """Upload one file, run `examples/<name>.mlab` on it, follow it; the run with its outputs."""
    print(f"\n{name}: {media}")
    uploaded = await client.upload(MEDIA / media)
    started = time.monotonic()
    flow = (HERE / f"{name}.mlab").read_text()
    run = await client.submit(flow, {name: uploaded["reference"]})
    async with asyncio.TaskGroup() as tasks:
        for stream in run["streams"]:
            tasks.create_task(show_stream(client, stream, started))
        async for event in client.events(run["run_id"]):
            show_event(event, started)
    run = await client.run(run["run_id"])
    outputs = (await client.outputs(run["run_id"]))["outputs"]
    return {**run, "outputs": outputs, "seconds": round(time.monotonic() - started, 3)}


async def show_stream(client: AsyncClient, stream: dict[str, Any], started: float) -> None:
    """Print what a stream says as it comes; media go by as one mark each."""
    async for record in client.stream(stream["stream_id"]):
        if not isinstance(record, Gap | Reset):
            text = _words(record.payload.get("data"))
            if text:
                _say(started, f"{stream['node_id']}.{stream['pin_name']}", text)


def _words(data: Any) -> str:
    match data:
        case {"text": str(text), "start": start}:
            return f"[{start:6.2f} s] {text}"
        case {"event": "scene", "time": time_, "scene": number}:
            return f"[{time_:6.2f} s] scene {number} begins"
        case {"event": "objects", "time": time_, "objects": [*objects]} if objects:
            return f"[{time_:6.2f} s] {', '.join(found['label'] for found in objects)}"
        case _:
            return ""


def show_event(event: dict[str, Any], started: float) -> None:
    node, kind = event.get("node_id"), event["type"]
    if node is None or event.get("item") is not None:
        return
    if kind in ("node_started", "node_succeeded", "node_failed", "retry_scheduled"):
        error = (event.get("payload") or {}).get("error") or {}
        _say(
            started, node, f"{kind[5:]} {error.get('code', '')} {error.get('message', '')}".strip()
        )


def _say(started: float, who: str, what: str) -> None:
    print(f"  {time.monotonic() - started:6.2f} s  {who:<24} {what}", flush=True)


async def save(client: AsyncClient, runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The media of the answers as files, and the answers themselves."""
    photo, speech, clip = (runs[name]["outputs"] for name in FLOWS)
    await client.download_to(photo["answer.annotated"], OUT / "annotated.jpg")
    await client.download_to(clip["result.contact_sheet"], OUT / "contact-sheet.jpg")
    (OUT / "transcript.srt").write_text(speech["result.subtitles"])
    (OUT / "transcript.vtt").write_text(speech["result.vtt"])
    return {
        "runs": [
            {"flow": name, **{key: run[key] for key in ("run_id", "state", "seconds")}}
            for name, run in runs.items()
        ],
        "answers": {
            "image_top1": photo["answer.classification"][0]["label"],
            "boxes": photo["answer.boxes"],
            "transcript": " ".join(s["text"].strip() for s in speech["result.segments"]),
            "scenes": clip["result.summary"]["cuts"],
        },
    }


async def main() -> int:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    async with server(OUT / "home") as client:
        runs = {name: await run_flow(client, name, file) for name, file in FLOWS.items()}
        failed = [name for name, run in runs.items() if run["state"] != "succeeded"]
        if failed:
            print(
                f"\nfailed: {', '.join(failed)}; the records are in {OUT / 'home'}", file=sys.stderr
            )
            return 1
        report = await save(client, runs)
    (OUT / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    print(f"\n{json.dumps(report['answers'], indent=2, ensure_ascii=False)}\n\nwritten to {OUT}/")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
