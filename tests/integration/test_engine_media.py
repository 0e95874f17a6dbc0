"""Media by reference between real agents: stored once, constraints before the start, full disks."""

import asyncio
import io
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mentatlab.protocol.media import ref_id_of
from mentatlab.protocol.records import RecordType
from mentatlab.storage import Swept, open_local
from mentatlab.testing.house import House, open_house, write_agent

PICTURE = {"name": "picture", "type": "image", "metadata": {"mimeType": "image/*"}}
FRAMES = {"name": "frames", "type": "stream", "metadata": {"items": "image"}}
SIZE = {"name": "size", "type": "number"}

# Copies its picture to a file of its own; says what it was given.
COPY = """
    import json, pathlib, sys
    payload = json.load(sys.stdin)
    given, out = payload["picture"], pathlib.Path(payload["context"]["out_dir"])
    body = pathlib.Path(given["path"]).read_bytes()
    assert len(body) == given["ref"]["size"]
    (out / "copy.png").write_bytes(body)
    print(json.dumps({"picture": {"path": "copy.png", "metadata": {"copied": True}}}))
"""
MEASURE = """
    import json, os, pathlib, sys
    payload = json.load(sys.stdin)
    pathlib.Path(payload["spec"].get("ran", os.devnull)).touch()
    print(json.dumps({"size": os.path.getsize(payload["picture"]["path"])}))
"""
SPLIT = """
    import json, pathlib, sys
    payload = json.load(sys.stdin)
    body = pathlib.Path(payload["picture"]["path"]).read_bytes()
    for n in range(3):
        path = pathlib.Path(payload["context"]["out_dir"], f"{n}.png")
        path.write_bytes(body)
        chunk = {"type": "chunk", "pin": "frames", "path": str(path), "pts": n / 2}
        print(json.dumps({**chunk, "metadata": {"index": n}}), flush=True)
    print(json.dumps({"type": "result", "outputs": {}}))
"""


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 16), "blue").save(file, "PNG")
    return file.getvalue()


def flow(nodes: list[dict[str, Any]], edges: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "demo.media", "name": "media", "version": "1.0.0"},
        "graph": {"nodes": nodes, "edges": [{"from": a, "to": b} for a, b in edges]},
    }


def write_agents(root: Path, **constraint: Any) -> Path:
    write_agent(root, "copy", COPY, inputs=[PICTURE], outputs=[PICTURE])
    picky = {**PICTURE, "metadata": {"mimeType": "image/*", **constraint}}
    write_agent(root, "measure", MEASURE, inputs=[picky], outputs=[SIZE])
    write_agent(root, "split", SPLIT, inputs=[PICTURE], outputs=[FRAMES])
    return root


async def uploaded(house: House) -> dict[str, Any]:
    return await house.storage.upload(png(), {"type": "image"})


async def test_a_picture_goes_from_agent_to_agent_by_reference(tmp_path: Path) -> None:
    document = flow(
        [
            {"id": "file", "type": "ui.file-upload", "params": {"accept": "image/*"}},
            {"id": "copy", "type": "copy"},
            {"id": "measure", "type": "measure"},
            {"id": "show", "type": "ui.console"},
        ],
        [
            ("file.file", "copy.picture"),
            ("copy.picture", "measure.picture"),
            ("copy.picture", "show.copy"),
            ("measure.size", "show.size"),
        ],
    )
    async with open_house(tmp_path / "home", [write_agents(tmp_path / "agents")]) as house:
        run = await house.engine.submit(document, {"file": await uploaded(house)})
        done = await house.engine.wait(run.id)
        assert done.state == "succeeded", done.error
        assert done.outputs["show.size"] == len(png())
        copy = done.outputs["show.copy"]
        assert "path" not in copy
        assert copy["ref"]["metadata"]["copied"] is True
        assert copy["ref"]["metadata"]["width"] == 32
        blob = await house.storage.get(copy, workspace="default")
        assert blob.key.startswith(f"default/demo.media/{run.id}/copy/picture_")
    assert not list((tmp_path / "home" / "scratch").rglob("*.png"))


async def test_an_input_over_its_pins_constraint_is_refused_before_the_agent_starts(
    tmp_path: Path,
) -> None:
    agents = write_agents(tmp_path / "agents", maxSize="10B")
    node = {"id": "measure", "type": "measure", "params": {"ran": str(tmp_path / "ran")}}
    async with open_house(tmp_path / "home", [agents]) as house:
        run = await house.engine.submit(flow([node], []), {"measure": await uploaded(house)})
        done = await house.engine.wait(run.id)
        assert done.error is not None
        assert (done.state, done.error.code) == ("failed", "MEDIA_TOO_LARGE")
        assert "measure.picture" in done.error.message
        assert done.nodes[0].attempt == 1  # and not tried again
    assert not (tmp_path / "ran").exists()


async def test_frames_stream_by_reference_into_a_map(tmp_path: Path) -> None:
    document = flow(
        [
            {"id": "split", "type": "split"},
            {"id": "measure", "type": "measure", "forEach": "picture", "maxParallel": 2},
        ],
        [("split.frames", "measure.picture")],
    )
    async with open_house(tmp_path / "home", [write_agents(tmp_path / "agents")]) as house:
        run = await house.engine.submit(document, {"split": await uploaded(house)})
        done = await house.engine.wait(run.id)
        assert done.state == "succeeded", done.error
        frames, sizes = done.streams
        async with house.hub.subscribe(frames.stream_id) as records:
            found = [r async for r in records if r.type is RecordType.DATA]
        assert [r.pts_us for r in found] == [0, 500_000, 1_000_000]
        assert [r.payload["metadata"]["index"] for r in found] == [0, 1, 2]
        assert all(r.payload["metadata"]["mime_type"] == "image/png" for r in found)
        for record in found:
            await house.storage.get(record.payload["ref"], workspace="default")
        async with house.hub.subscribe(sizes.stream_id) as records:
            values = [r.payload["data"] async for r in records if r.type is RecordType.DATA]
        assert values == [len(png())] * 3


async def swept_later(home: Path, *, days: int) -> Swept:
    """What a sweep would remove, if everything that it finds were so old."""
    later = time.time() + days * 86_400
    async with open_local(home / "blobs", home / "catalog.db", clock=lambda: later) as storage:
        return await storage.life.sweep()


async def test_no_sweep_takes_what_a_run_needs_or_gave(tmp_path: Path) -> None:
    agents, home = write_agents(tmp_path / "agents"), tmp_path / "home"
    patient = """
        import json, os, pathlib, sys, time
        payload = json.load(sys.stdin)
        pathlib.Path(payload["spec"]["ran"]).touch()
        while not os.path.exists(payload["spec"]["go"]):
            time.sleep(0.01)
        print(json.dumps({"size": os.path.getsize(payload["picture"]["path"])}))
    """
    write_agent(agents, "patient", patient, inputs=[PICTURE], outputs=[SIZE])
    ran, go = tmp_path / "ran", tmp_path / "go"
    document = flow(
        [
            {"id": "file", "type": "ui.file-upload", "params": {"accept": "image/*"}},
            {"id": "copy", "type": "copy"},
            {"id": "split", "type": "split"},
            {"id": "patient", "type": "patient", "params": {"ran": str(ran), "go": str(go)}},
        ],
        [
            ("file.file", "copy.picture"),
            ("file.file", "split.picture"),
            ("copy.picture", "patient.picture"),
        ],
    )
    async with open_house(home, [agents]) as house:
        reference = await uploaded(house)
        run = await house.engine.submit(document, {"file": reference})
        await house.storage.release(f"upload:{ref_id_of(reference)}")  # only the run needs it now
        async with asyncio.timeout(30):
            while not ran.exists() or await state_of(house, run.id, "split") != "succeeded":
                await asyncio.sleep(0.01)
        assert await swept_later(home, days=6) == Swept(0, 0)
        go.touch()
        done = await house.engine.wait(run.id)
        assert done.state == "succeeded", done.error
        assert await swept_later(home, days=6) == Swept(0, 0)
        frames = next(s for s in done.streams if s.pin_name == "frames")
        async with house.hub.subscribe(frames.stream_id) as records:
            found = [r.payload["ref"] async for r in records if r.type is RecordType.DATA]
        assert len(found) == 3
        for ref in (reference, *found):
            blob = await house.storage.get(ref, workspace="default")
            assert b"".join([b async for b in await house.storage.open(blob)]) == png()
    assert await swept_later(home, days=8) == Swept(4, 0)  # what the run made, by its own expiry


async def state_of(house: House, run_id: str, node: str) -> str:
    run = await house.engine.get(run_id, workspace="default")
    return next(n.state for n in run.nodes if n.id == node)


async def test_a_full_blob_store_fails_the_node_with_its_code(tmp_path: Path) -> None:
    agents = write_agents(tmp_path / "agents")
    home = tmp_path / "home"
    async with open_house(home, [agents]) as house:
        reference = await uploaded(house)
    async with open_house(home, [agents], min_free_bytes=1 << 60) as house:
        run = await house.engine.submit(
            flow([{"id": "copy", "type": "copy"}], []), {"copy": reference}
        )
        done = await house.engine.wait(run.id)
        assert done.error is not None
        assert (done.state, done.error.code) == ("failed", "DISK_FULL")


async def fill(house: House) -> None:
    """No event fits into runs.db any more, however small: each takes a megabyte along."""
    for statement in (
        "CREATE TABLE ballast (bytes BLOB)",
        "PRAGMA max_page_count=1",  # SQLite never goes below what there is
        "CREATE TEMP TRIGGER full BEFORE INSERT ON main.run_events BEGIN"
        " INSERT INTO ballast VALUES (zeroblob(1000000)); END",
    ):
        await house.database.write(lambda db, sql=statement: db.execute(sql).fetchall())


async def make_room(house: House) -> None:
    for statement in ("DROP TRIGGER temp.full", "PRAGMA max_page_count=1073741823"):
        await house.database.write(lambda db, sql=statement: db.execute(sql).fetchall())


async def test_a_full_run_log_fails_the_run_as_soon_as_that_can_be_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agents = write_agents(tmp_path / "agents")
    waits = """
        import json, os, sys, time
        payload = json.load(sys.stdin)
        while not os.path.exists(payload["spec"]["go"]):
            time.sleep(0.01)
        print(json.dumps({"size": 1}))
    """
    write_agent(agents, "waits", waits, outputs=[SIZE])
    node = {"id": "wait", "type": "waits", "params": {"go": str(tmp_path / "go")}}
    async with open_house(tmp_path / "home", [agents]) as house:
        run = await house.engine.submit(flow([node], []), {})
        await fill(house)
        (tmp_path / "go").touch()
        waiting = asyncio.create_task(house.engine.wait(run.id))
        async with asyncio.timeout(30):
            while "cannot go on" not in caplog.text:
                await asyncio.sleep(0.01)
        assert not waiting.done()
        await make_room(house)
        done = await waiting
        assert done.error is not None
        assert (done.state, done.error.code) == ("failed", "DISK_FULL")
        assert done.nodes[0].state == "failed"
