"""The agents of these measurements: bare programs, so that the engine is what costs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mentatlab.testing.house import write_agent

_SAY = """
    import json, os, pathlib, shutil, sys, time
    lines = iter(sys.stdin.readline, "")
    def say(**message):
        print(json.dumps(message), flush=True)
    payload = json.loads(next(lines))
    spec, context = payload["spec"], payload["context"]
    def arrivals():
        for line in lines:
            message = json.loads(line)
            if message["type"] == "chunk":
                yield message["data"], time.monotonic_ns()
"""
_SOURCE = """
    begun = time.monotonic()
    for n in range(spec["count"]):
        if spec["pace"]:
            time.sleep(max(0, begun + n / spec["pace"] - time.monotonic()))
        say(type="chunk", pin="out", data={"sent": [time.monotonic_ns()], "taken": []})
    say(type="result", outputs={})
"""
_RELAY = """
    for data, now in arrivals():
        data["taken"].append(now)
        data["sent"].append(time.monotonic_ns())
        say(type="chunk", pin="out", data=data)
    say(type="result", outputs={})
"""
_SINK = """
    hops, times = [], []
    for data, now in arrivals():
        times.append(now)
        taken = [*data["taken"], now]
        hops += [(b - a) / 1e6 for a, b in zip(data["sent"], taken)]
    rate = (len(times) - 1) * 1e9 / (times[-1] - times[0]) if len(times) > 1 else 0
    say(type="result", outputs={"found": {"rate": rate, "hops": hops[:2000]}})
"""
_BROKEN = """
    say(type="chunk", pin="out", data={"sent": [time.monotonic_ns()], "taken": []})
    time.sleep(0.3)
    say(type="error", code="BROKEN", message=str(time.time()), retryable=False)
    sys.exit(1)
"""
_HANGS = """
    if context["attempt"] == 1:
        pathlib.Path(spec["mark"]).touch()
        time.sleep(600)
    say(type="result", outputs={"text": "done"})
"""
_CARRY = """
    film = os.path.join(context["out_dir"], "film.mp4")
    shutil.copyfile(spec["video"]["path"], film)
    say(type="result", outputs={"video": {"path": film}})
"""
_EACH = """
    import json, sys
    def say(**message):
        print(json.dumps(message), flush=True)
    say(type="ready", protocol=1, concurrency=16)
    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "invoke":
            say(type="result", id=message["id"], outputs={"text": "x"})
"""
_OUT = {"name": "out", "type": "stream", "metadata": {"items": "json"}}
_IN = {"name": "in", "type": "stream", "metadata": {"items": "json"}}
_TEXT = {"name": "text", "type": "string"}
_VIDEO = {"name": "video", "type": "video", "metadata": {"mimeType": "video/mp4"}}


def install(root: Path) -> None:
    write_agent(root, "source", _SAY + _SOURCE, outputs=[_OUT])
    write_agent(root, "relay", _SAY + _RELAY, inputs=[_IN], outputs=[_OUT])
    write_agent(root, "sink", _SAY + _SINK, inputs=[_IN], outputs=[_json("found")])
    write_agent(root, "broken", _SAY + _BROKEN, outputs=[_OUT])
    write_agent(root, "hangs", _SAY + _HANGS, outputs=[_TEXT])
    write_agent(root, "carry", _SAY + _CARRY, inputs=[_VIDEO], outputs=[_VIDEO])
    warm = {"execution": {"warm": True, "concurrency": 16}}
    write_agent(root, "each", _EACH, inputs=[_json("in")], outputs=[_TEXT], **warm)


def _json(name: str) -> dict[str, Any]:
    return {"name": name, "type": "json"}


def flow(nodes: list[dict[str, Any]], edges: Iterable[tuple[str, str]]) -> dict[str, Any]:
    return {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "bench.engine", "name": "engine", "version": "1.0.0"},
        "graph": {"nodes": nodes, "edges": [{"from": a, "to": b} for a, b in edges]},
    }
