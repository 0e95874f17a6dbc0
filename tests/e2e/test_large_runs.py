"""A film of a gigabyte through three nodes, and a map over ten thousand items: the server stays
small."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.api import Api, api_of
from tests.support.long_clip import FPS, long_clip
from tests.support.sending import Part, send_file
from tests.support.server import up
from tests.support.watching import watched

from mentatlab.testing.house import write_agent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

GROWTH = 50 * 10**6
ITEMS = 10_000
VIDEO = {"name": "video", "type": "video", "metadata": {"mimeType": "video/mp4"}}
NUMBERS = {"name": "numbers", "type": "stream", "metadata": {"items": "number"}}
NUMBER = {"name": "number", "type": "number"}
COUNT = {"name": "count", "type": "json"}
CARRY = """
    import json, os, shutil, sys
    payload = json.load(sys.stdin)
    film = os.path.join(payload["context"]["out_dir"], "film.mp4")
    shutil.copyfile(payload["spec"]["video"]["path"], film)
    print(json.dumps({"type": "result", "outputs": {"video": {"path": film}}}))
"""
FRAMES = """
    import json, sys
    import av
    payload = json.load(sys.stdin)
    with av.open(payload["spec"]["video"]["path"]) as film:
        packets = [p for p in film.demux(film.streams.video[0]) if p.size]
    keys = sum(p.is_keyframe for p in packets)
    print(json.dumps({"count": {"frames": len(packets), "keys": keys}}))
"""
SOURCE = f"""
    import json, sys
    json.load(sys.stdin)
    for n in range({ITEMS}):
        print(json.dumps({{"type": "chunk", "pin": "numbers", "data": n}}), flush=True)
    print(json.dumps({{"type": "result", "outputs": {{}}}}))
"""
DOUBLE = """
    import json, sys
    def say(**message):
        print(json.dumps(message), flush=True)
    say(type="ready", protocol=1, concurrency=16)
    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "invoke":
            number = message["spec"]["number"]
            say(type="result", id=message["id"], outputs={"number": 2 * number})
"""
SUM = """
    import json, sys
    lines = iter(sys.stdin.readline, "")
    next(lines)
    got = [json.loads(line) for line in lines]
    numbers = [one["data"] for one in got if one["type"] == "chunk"]
    found = {"items": len(numbers), "sum": sum(numbers), "ordered": numbers == sorted(numbers)}
    print(json.dumps({"count": found}))
"""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    home = tmp_path / "home"
    agents = home / "agents"
    write_agent(agents, "carry", CARRY, inputs=[VIDEO], outputs=[VIDEO])
    write_agent(agents, "frames", FRAMES, inputs=[VIDEO], outputs=[COUNT])
    write_agent(agents, "source", SOURCE, outputs=[NUMBERS])
    warm = {"warm": True, "concurrency": 16}
    write_agent(agents, "double", DOUBLE, inputs=[NUMBER], outputs=[NUMBER], execution=warm)
    write_agent(agents, "sum", SUM, inputs=[NUMBERS], outputs=[COUNT])
    with up(home, env={"MENTATLAB_RATE": "0"}) as server, api_of(server) as api:
        yield api
    shutil.rmtree(home)


def flow(nodes: list[dict[str, Any]], *edges: tuple[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "t.large"},
        "graph": {"nodes": nodes, "edges": [{"from": a, "to": b} for a, b in edges]},
    }


def test_a_film_of_a_gigabyte_goes_through_three_nodes(api: Api, tmp_path: Path) -> None:
    """Two of them store a film of their own; the last one finds every frame of the first."""
    clip = long_clip(tmp_path / "film.mp4", 10**9)
    assert clip.size >= 10**9
    url = f"{api.server.url}/api/v1/storage/upload?type=video&filename=film.mp4"
    names = {"a": "carry", "b": "carry", "c": "frames"}
    document = flow(
        [{"id": id_, "type": type_} for id_, type_ in names.items()],
        ("a.video", "b.video"),
        ("b.video", "c.video"),
    )
    with watched(api.server, growth=GROWTH):
        answer = send_file("POST", url, Part(clip.path, 0, clip.size))
        assert answer.status == 201, answer
        clip.path.unlink()
        reference = api.http.get("/api/v1/storage").json()["items"][0]["ref"]
        run = api.run(document, a=reference)
    assert run["state"] == "succeeded", run
    frames = clip.seconds * FPS
    assert api.outputs(run["run_id"]) == {"c.count": {"frames": frames, "keys": clip.seconds}}


def test_ten_thousand_items(api: Api) -> None:
    document = flow(
        [
            {"id": "source", "type": "source"},
            {"id": "each", "type": "double", "forEach": "number", "maxParallel": 16},
            {"id": "sum", "type": "sum"},
        ],
        ("source.numbers", "each.number"),
        ("each.number", "sum.numbers"),
    )
    with watched(api.server, growth=GROWTH):
        run = api.run(document)
    assert run["state"] == "succeeded", run
    total = ITEMS * (ITEMS - 1)
    found = {"items": ITEMS, "sum": total, "ordered": True}
    assert api.outputs(run["run_id"]) == {"sum.count": found}
