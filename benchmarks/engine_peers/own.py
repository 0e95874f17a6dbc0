"""What is asked of ours alone: overhead, streams, failures, recovery, maps, a big video."""

import asyncio
import itertools
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support.long_clip import long_clip
from tests.support.server import up
from tests.support.watching import peak, peak_from_now

from benchmarks import commits as disk
from benchmarks import engine, whole
from benchmarks.as_served import as_served
from benchmarks.engine_peers import agents
from benchmarks.engine_peers.plan import Plan
from benchmarks.table import Row, percentile, show
from mentatlab.runs.views import RunView
from mentatlab.sdk.client import AsyncClient
from mentatlab.testing.house import House, open_house

PACED_S = 3.0
"""Seconds that evenly spaced chunks are sent for, 200 a second."""
PACE = 200


def commits(_plan: Plan, _troubles: dict[str, str]) -> None:
    show("What a durable commit costs here", asyncio.run(disk.run()))


def nodes(_plan: Plan, _troubles: dict[str, str]) -> None:
    show("A node's overhead", as_served(engine.run()))


def ready(_plan: Plan, _troubles: dict[str, str]) -> None:
    show("An embedded server", whole.starts())


def chunks(plan: Plan, _troubles: dict[str, str]) -> None:
    """On commit lanes every chunk is on disk before the next agent has it."""
    show("Chunks from agent to agent, each a process", as_served(_chunks(plan)))


async def _chunks(plan: Plan) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        async with _house(Path(folder, "memory"), streams_in_memory=True) as house:
            memory = await _paced(house)
        async with _house(Path(folder, "written")) as house:
            written = await _paced(house)
            commit = [await engine.commit_ms(house) for _ in range(engine.RUNS)]
            one = await _streamed(house, relays=0, count=plan.chunks)
            three = await _streamed(house, relays=2, count=plan.chunks)
    paced = f"a hop, {PACE} chunks/s through three"
    return [
        Row(f"{paced}, memory lanes", percentile(memory, 50), "ms p50", "<= 1 ms"),
        Row(f"{paced}, memory lanes", percentile(memory, 95), "ms p95", "<= 5 ms"),
        Row(f"{paced}, commit lanes", percentile(written, 50), "ms p50"),
        Row(f"{paced}, commit lanes", percentile(written, 95), "ms p95"),
        Row("commit in this folder", percentile(commit, 95), "ms p95"),
        Row("as fast as may be, one hop", one["rate"], "chunks/s", ">= 6,000 /s"),
        Row("as fast as may be, three hops", three["rate"], "chunks/s"),
    ]


async def _paced(house: House) -> list[float]:
    """ms from one agent's word to the next one's hearing it."""
    found = await _streamed(house, relays=2, count=int(PACED_S * PACE), pace=PACE)
    return found["hops"]


async def _streamed(house: House, *, relays: int, count: int, pace: int = 0) -> Any:
    names = ["source", *(f"relay{n}" for n in range(relays)), "sink"]
    nodes = [{"id": name, "type": name.rstrip("0123456789")} for name in names]
    nodes[0]["params"] = {"count": count, "pace": pace}
    edges = [(f"{a}.out", f"{b}.in") for a, b in itertools.pairwise(names)]
    run = await _ended(house, agents.flow(nodes, edges))
    found = await house.engine.outputs(run.id, workspace="default")
    return found["sink.found"]


def failure(plan: Plan, _troubles: dict[str, str]) -> None:
    """From a producer's word that it fails to the end of a run whose dependants run or wait."""
    times = as_served(_failures(plan.starts * 5))
    show("A failure with dependants", [Row("to the run's end", max(times), "ms max", "< 100 ms")])


async def _failures(rounds: int) -> list[float]:
    nodes = [
        {"id": "broken", "type": "broken"},
        {"id": "reader", "type": "relay"},
        {"id": "last", "type": "sink"},
    ]
    document = agents.flow(nodes, [("broken.out", "reader.in"), ("reader.out", "last.in")])
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        async with _house(Path(folder)) as house:
            for _ in range(rounds):
                run = await _ended(house, document, state="failed")
                assert run.error is not None
                times.append((time.time() - float(run.error.message)) * 1000)
    return times


def recovery(plan: Plan, _troubles: dict[str, str]) -> None:
    """An embedded server waits for no lease: its home's lock goes with the process."""
    times = [asyncio.run(_recovery()) for _ in range(plan.starts)]
    show("kill -9 in the middle of a run", [Row("to its end", max(times), "s max", "<= 2 s")])


async def _recovery() -> float:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "home")
        agents.install(home / "agents")
        mark = Path(folder, "begun")
        nodes = [{"id": "it", "type": "hangs", "params": {"mark": str(mark)}}]
        with up(home) as server:
            async with AsyncClient(server.url) as client:
                made = await client.submit(agents.flow(nodes, []), {})
            while not mark.exists():
                await asyncio.sleep(0.01)
            server.stop(signal.SIGKILL)
        killed = time.perf_counter()
        with up(home) as server:
            async with AsyncClient(server.url) as client:
                async for _ in client.events(made["run_id"]):
                    pass
                taken = time.perf_counter() - killed
                ended = await client.run(made["run_id"])
        assert ended["state"] == "succeeded", ended
        return taken


def items(plan: Plan, _troubles: dict[str, str]) -> None:
    show(f"A map over {plan.items:,} items, a warm agent", as_served(_items(plan.items)))


async def _items(count: int) -> list[Row]:
    nodes: list[dict[str, Any]] = [
        {"id": "source", "type": "source", "params": {"count": count, "pace": 0}},
        {"id": "each", "type": "each", "forEach": "in", "maxParallel": 16},
    ]
    with tempfile.TemporaryDirectory() as folder:
        async with _house(Path(folder)) as house:
            before = peak_from_now(os.getpid())
            begun = time.perf_counter()
            await _ended(house, agents.flow(nodes, [("source.out", "each.in")]))
            taken = time.perf_counter() - begun
            grown = peak(os.getpid()) - before
    return [
        Row("an item", taken / count * 1000, "ms", "<= 2 ms"),
        Row("the engine's memory grew by", grown / 1e6, "MB"),
    ]


def video(plan: Plan, _troubles: dict[str, str]) -> None:
    """Each node takes the film and gives a film: four of them are stored."""
    rows = asyncio.run(_video(plan.video))
    show(f"A film of {plan.video / 1e9:.1f} GB through three nodes", rows)


async def _video(size: int) -> list[Row]:
    names = ("a", "b", "c")
    nodes = [{"id": name, "type": "carry"} for name in names]
    edges = [("a.video", "b.video"), ("b.video", "c.video")]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "home")
        agents.install(home / "agents")
        clip = long_clip(Path(folder, "film.mp4"), size)
        with up(home, env={"MENTATLAB_RATE": "0"}) as server:
            async with AsyncClient(server.url) as client:
                film = await client.upload(clip.path, type_="video")
                before = peak_from_now(server.process.pid)
                begun = time.perf_counter()
                made = await client.submit(agents.flow(nodes, edges), {"a": film["reference"]})
                async for _ in client.events(made["run_id"]):
                    pass
                taken, grown = time.perf_counter() - begun, peak(server.process.pid) - before
                ended = await client.run(made["run_id"])
        assert ended["state"] == "succeeded", ended
    return [
        Row("the run", taken, "s"),
        Row("the server's memory grew by", grown / 1e6, "MB", "< 50 MB"),
    ]


def _house(root: Path, *, streams_in_memory: bool = False):
    agents.install(root / "agents")
    return open_house(root / "home", [root / "agents"], streams_in_memory=streams_in_memory)


async def _ended(house: House, document: dict[str, Any], *, state: str = "succeeded") -> RunView:
    made = await house.engine.submit(document, {})
    run = await house.engine.wait(made.id)
    if run.state != state:
        raise RuntimeError(f"the run ended {run.state}: {run.error}")
    return run
