"""`kill -9` of the process that runs the engine in the middle of a run; then another goes on."""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mentatlab.protocol.records import RecordType
from mentatlab.runs.lanes import LOG_PIN, RUN_NODE, RUN_PIN, stream_id
from mentatlab.runs.reading import LogQuery
from mentatlab.testing.house import open_house, write_agent

TEXT = {"name": "text", "type": "string"}
LINES = {"name": "lines", "type": "stream", "metadata": {"items": "string"}}

# Appends a line to the file `ran`, with its pid; then, the first time only, waits to be killed.
NOTED = """
    import json, os, sys, time
    payload = json.load(sys.stdin)
    context, spec = payload["context"], payload["spec"]
    with open(spec["ran"], "a") as file:
        file.write(f"{context['node_id']} {context.get('item')} {os.getpid()}\\n")
    hangs = spec.get("hang") or context["item"] and context["item"] == spec.get("hang_item")
    if hangs and context["attempt"] == 1:
        time.sleep(60)
    print(json.dumps({"text": spec["text"] + context["node_id"][0]}))
"""
# Sends numbers; hangs after the first `hang` of them in its first attempt.
NUMBERS = """
    import json, os, sys, time
    payload = json.load(sys.stdin)
    spec = payload["spec"]
    for n in range(6):
        print(json.dumps({"type": "chunk", "pin": "lines", "data": str(n)}), flush=True)
        if n == spec.get("hang") and payload["context"]["attempt"] == 1:
            time.sleep(60)
    print(json.dumps({"type": "result", "outputs": {}}))
"""
HOST = """
import asyncio, json, sys
from pathlib import Path
from mentatlab.testing.house import open_house

async def main(home, agents, document, inputs):
    async with open_house(Path(home), [Path(agents)]) as house:
        run = await house.engine.submit(json.loads(document), json.loads(inputs))
        print(run.id, flush=True)
        await house.engine.wait(run.id)

asyncio.run(main(*sys.argv[1:]))
"""


# The same, telling the sequence of every event that it hears.
TELLING_HOST = HOST.replace(
    "await house.engine.wait(run.id)",
    """async with house.hub.subscribe(run.id) as records:
            async for record in records:
                if record.node_id == "_run" and "data" in record.payload:
                    print(record.payload["data"]["seq"], flush=True)""",
)


def flow(nodes: list[dict[str, Any]], edges: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "demo.recovery", "name": "recovery", "version": "1.0.0"},
        "graph": {"nodes": nodes, "edges": [{"from": a, "to": b} for a, b in edges]},
    }


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def killed_in_the_middle(
    home: Path,
    agents: Path,
    document: dict[str, Any],
    inputs: dict[str, Any],
    until: Path,
    text: str,
) -> str:
    """Run the flow in a host process; kill it with SIGKILL once `until` contains `text`."""
    arguments = (str(home), str(agents), json.dumps(document), json.dumps(inputs))
    host = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOST, *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert host.stdout is not None
    run_id = (await host.stdout.readline()).decode().strip()
    async with asyncio.timeout(30):
        while text not in text_of(until):
            await asyncio.sleep(0.01)
    host.send_signal(signal.SIGKILL)
    await host.wait()
    return run_id


def ran(path: Path) -> list[str]:
    """`node item`, in order."""
    return [" ".join(line.split()[:2]) for line in path.read_text().splitlines()]


async def gone(path: Path) -> None:
    """Every agent process that noted its pid has ended."""
    async with asyncio.timeout(15):
        while any(alive(line.split()[2]) for line in text_of(path).splitlines()):
            await asyncio.sleep(0.01)


def holds(path: Path, data: bytes) -> bool:
    return path.exists() and data in path.read_bytes()


def alive(pid: str) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_a_committed_node_is_not_run_again_and_no_process_is_left(tmp_path: Path) -> None:
    agents, notes = tmp_path / "agents", tmp_path / "ran"
    write_agent(agents, "noted", NOTED, inputs=[TEXT], outputs=[TEXT])
    params = {"ran": str(notes)}
    document = flow(
        [
            {"id": "alpha", "type": "noted", "params": params},
            {"id": "beta", "type": "noted", "params": {**params, "hang": True}},
            {"id": "gamma", "type": "noted", "params": params},
        ],
        [("alpha.text", "beta.text"), ("beta.text", "gamma.text")],
    )
    home = tmp_path / "home"
    run_id = await killed_in_the_middle(home, agents, document, {"alpha": "x"}, notes, "beta")
    await gone(notes)
    async with open_house(home, [agents]) as house:
        done = await house.engine.wait(run_id)
        assert done.state == "succeeded", done.error
        assert done.outputs == {"gamma.text": "xabg"}
        assert {n.id: n.attempt for n in done.nodes} == {"alpha": 1, "beta": 2, "gamma": 1}
        types = [e.type for e in await house.runs.events(run_id, workspace="default")]
        assert types.count("run_started") == 1
        async with house.hub.subscribe(run_id) as records:
            told = [r.payload["data"]["seq"] async for r in records if "data" in r.payload]
        assert told == list(range(1, len(types) + 1))
    assert ran(notes) == ["alpha None", "beta None", "beta None", "gamma None"]
    await gone(notes)


async def test_a_map_goes_on_after_its_last_committed_item(tmp_path: Path) -> None:
    agents, notes = tmp_path / "agents", tmp_path / "ran"
    write_agent(agents, "numbers", NUMBERS, outputs=[LINES])
    write_agent(agents, "noted", NOTED, inputs=[TEXT], outputs=[TEXT])
    document = flow(
        [
            {"id": "count", "type": "numbers"},
            {"id": "each", "type": "noted", "forEach": "text", "params": {"ran": str(notes)}},
            {
                "id": "hold",
                "type": "noted",
                "params": {"ran": str(notes), "hang": True, "text": ""},
            },
        ],
        [("count.lines", "each.text")],
    )
    home = tmp_path / "home"
    run_id = await killed_in_the_middle(home, agents, document, {}, notes, "each 4")
    async with open_house(home, [agents]) as house:
        done = await house.engine.wait(run_id)
        assert done.state == "succeeded", done.error
        stream = next(s for s in done.streams if s.node_id == "each")
        async with house.hub.subscribe(stream.stream_id) as records:
            found = [(r.item, r.payload["data"]) async for r in records if "data" in r.payload]
        assert found == [(n + 2, f"{n}e") for n in range(6)]
        events = await house.runs.events(run_id, workspace="default")
        ended = [e.item for e in events if e.type == "node_succeeded" and e.item is not None]
        assert sorted(ended) == [2, 3, 4, 5, 6, 7]


async def test_an_item_under_way_is_started_again_and_none_that_had_succeeded(
    tmp_path: Path,
) -> None:
    agents, notes = tmp_path / "agents", tmp_path / "ran"
    write_agent(agents, "numbers", NUMBERS, outputs=[LINES])
    write_agent(agents, "noted", NOTED, inputs=[TEXT], outputs=[TEXT])
    params = {"ran": str(notes), "hang_item": 4}
    document = flow(
        [
            {"id": "count", "type": "numbers"},
            {"id": "each", "type": "noted", "forEach": "text", "params": params},
        ],
        [("count.lines", "each.text")],
    )
    home = tmp_path / "home"
    run_id = await killed_in_the_middle(home, agents, document, {}, notes, "each 4")
    await gone(notes)
    async with open_house(home, [agents]) as house:
        done = await house.engine.wait(run_id)
        assert done.state == "succeeded", done.error
        stream = next(s for s in done.streams if s.node_id == "each")
        async with house.hub.subscribe(stream.stream_id) as records:
            found = [(r.item, r.payload["data"]) async for r in records if "data" in r.payload]
        assert found == [(n + 2, f"{n}e") for n in range(6)]
    assert ran(notes) == [f"each {n}" for n in (2, 3, 4, 4, 5, 6, 7)]


async def test_a_producers_lane_goes_on_in_a_new_attempt(tmp_path: Path) -> None:
    agents = tmp_path / "agents"
    write_agent(agents, "numbers", NUMBERS, outputs=[LINES])
    document = flow([{"id": "count", "type": "numbers", "params": {"hang": 2}}], [])
    home = tmp_path / "home"
    log = home / "streams.db-wal"
    arguments = (str(home), str(agents), json.dumps(document), "{}")
    host = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOST, *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert host.stdout is not None
    run_id = (await host.stdout.readline()).decode().strip()
    async with asyncio.timeout(30):
        while not holds(log, b'"data":"2"'):
            await asyncio.sleep(0.02)
    os.kill(host.pid, signal.SIGKILL)
    await host.wait()
    async with open_house(home, [agents]) as house:
        done = await house.engine.wait(run_id)
        assert done.state == "succeeded", done.error
        async with house.hub.subscribe(done.streams[0].stream_id) as records:
            found = [(str(r.type), r.attempt) async for r in records]
        kinds = [kind for kind, _ in found]
        assert kinds.count("stream_start") == 2
        assert kinds[-1] == "stream_end"
        assert [a for kind, a in found if kind == "stream_data"][-6:] == [2] * 6
        assert done.outputs["count.lines"]["chunks"] == 6


async def test_a_stop_without_cancel_leaves_the_run_to_the_next_start(tmp_path: Path) -> None:
    agents, notes = tmp_path / "agents", tmp_path / "ran"
    write_agent(agents, "noted", NOTED, inputs=[TEXT], outputs=[TEXT])
    document = flow([{"id": "a", "type": "noted", "params": {"ran": str(notes), "hang": True}}], [])
    async with open_house(tmp_path / "home", [agents]) as house:
        run = await house.engine.submit(document, {"a": "x"})
        async with asyncio.timeout(30):
            while not text_of(notes):
                await asyncio.sleep(0.01)
    await gone(notes)
    async with open_house(tmp_path / "home", [agents]) as house:
        done = await house.engine.wait(run.id)
        assert (done.state, done.nodes[0].attempt) == ("succeeded", 2)


async def test_logs_go_on_under_another_epoch_and_end_with_their_run(tmp_path: Path) -> None:
    """Also those of a node that had succeeded before the restart, which logs nothing any more."""
    agents, notes = tmp_path / "agents", tmp_path / "ran"
    talking = NOTED.replace(
        'print(json.dumps({"text"', 'print("hello")\n    print(json.dumps({"text"'
    )
    write_agent(agents, "noted", talking, inputs=[TEXT], outputs=[TEXT])
    params = {"ran": str(notes)}
    document = flow(
        [
            {"id": "alpha", "type": "noted", "params": params},
            {"id": "beta", "type": "noted", "params": {**params, "hang": True}},
        ],
        [("alpha.text", "beta.text")],
    )
    async with open_house(tmp_path / "home", [agents]) as house:
        run = await house.engine.submit(document, {"alpha": "x"})
        async with asyncio.timeout(30):
            while "beta" not in text_of(notes):
                await asyncio.sleep(0.01)
        (before,) = [x for x in await house.hub.lanes(run.id) if x.pin_name == LOG_PIN]
        assert (before.node_id, before.state, before.head) == ("alpha", "open", 2)
    await gone(notes)
    async with open_house(tmp_path / "home", [agents]) as house:
        async with house.hub.subscribe(before.stream_id, from_=str(before.cursor)) as reader:
            assert reader.gap is not None
            assert (reader.gap.reason, reader.gap.from_) == ("epoch", str(before.cursor))
        done = await house.engine.wait(run.id)
        assert done.state == "succeeded", done.error
        logs = {x.node_id: x for x in await house.hub.lanes(run.id) if x.pin_name == LOG_PIN}
        assert {name: lane.state for name, lane in logs.items()} == {
            "alpha": "ended",
            "beta": "ended",
        }
        assert logs["alpha"].epoch != before.epoch
        assert logs["beta"].chunks == 1
    async with open_house(tmp_path / "home", [agents]) as house:
        assert await house.runs.logs(LogQuery(run.id, "beta", "default")) == []
        states = {x.state for x in await house.hub.lanes(run.id) if x.pin_name == LOG_PIN}
        assert states == {"errored"}


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_kill_at_any_event_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    """A host is killed after its first event, another after its second, until one lives to the
    end."""
    agents = tmp_path / "agents"
    write_agent(agents, "numbers", NUMBERS, outputs=[LINES])
    write_agent(agents, "noted", NOTED, inputs=[TEXT], outputs=[TEXT])
    kill_at = 1
    while await killed_at(kill_at, subfolder(tmp_path, kill_at), agents):
        kill_at += 1
    assert kill_at > 2 * len(("run", "alpha", "beta", "count", "each", *"012345"))


def subfolder(folder: Path, number: int) -> Path:
    (folder / str(number)).mkdir()
    return folder / str(number)


async def killed_at(seq: int, folder: Path, agents: Path) -> bool:
    """Kill the host when it has told that event, go on in another and look; False when the run had
    ended before."""
    home, notes = folder / "home", folder / "ran"
    params = {"ran": str(notes)}
    document = flow(
        [
            {"id": "alpha", "type": "noted", "params": params},
            {"id": "beta", "type": "noted", "params": params},
            {"id": "count", "type": "numbers"},
            {"id": "each", "type": "noted", "forEach": "text", "params": params},
        ],
        [("alpha.text", "beta.text"), ("count.lines", "each.text")],
    )
    arguments = (str(home), str(agents), json.dumps(document), json.dumps({"alpha": "x"}))
    host = await asyncio.create_subprocess_exec(
        sys.executable, "-c", TELLING_HOST, *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert host.stdout is not None
    run_id = (await host.stdout.readline()).decode().strip()
    told = 0
    while told < seq and (line := await host.stdout.readline()):
        told = int(line)
    if told == seq:
        host.kill()
    await host.wait()
    await gone(notes)
    await nothing_is_lost_or_repeated(home, agents, run_id, notes, before=told)
    return told == seq


async def nothing_is_lost_or_repeated(
    home: Path, agents: Path, run_id: str, notes: Path, *, before: int
) -> None:
    async with open_house(home, [agents]) as house:
        done = await house.engine.wait(run_id)
        assert done.state == "succeeded", done.error
        assert done.outputs["beta.text"] == "xab"
        (lane,) = [s.stream_id for s in done.streams if s.node_id == "each"]
        async with house.hub.subscribe(lane) as records:
            items = [r.payload["data"] async for r in records if r.type is RecordType.DATA]
        assert items == [f"{n}e" for n in range(6)]
        events = await house.runs.events(run_id, workspace="default")
        async with house.hub.subscribe(stream_id(run_id, RUN_NODE, RUN_PIN)) as records:
            told = [r.payload["data"]["seq"] async for r in records if "data" in r.payload]
    assert told == [e.seq for e in events] == list(range(1, len(events) + 1))
    ends = [e for e in events if e.type == "node_succeeded"]
    assert all(count == 1 for count in Counter((e.node_id, e.item) for e in ends).values())
    executed = Counter(ran(notes))
    for end in ends:
        if (
            end.seq <= before
            and end.node_id != "count"
            and (end.node_id, end.item) != ("each", None)
        ):
            assert executed[f"{end.node_id} {end.item}"] == end.attempt
