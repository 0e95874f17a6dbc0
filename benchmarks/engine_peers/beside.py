"""Ours and the peers on the same chains of trivial steps, one after the other."""

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from tests.support.server import up

from benchmarks import engine
from benchmarks.as_served import as_served
from benchmarks.engine_peers.peers import measure
from benchmarks.engine_peers.peers.measure import Measured
from benchmarks.engine_peers.plan import Plan
from benchmarks.engine_peers.subjects import PEERS, Peer, measure_peer
from benchmarks.peers.fetch import PeerMissingError
from benchmarks.table import percentile
from mentatlab.runners.port import Runner
from mentatlab.sdk.client import AsyncClient
from mentatlab.testing.house import open_house, write_agent

OURS = "MentatLab, warm agents"
"""What the peers are held against: every step in a process of its own, everything recorded."""
DURABLE_TIMES = 3
"""How many times a durable peer's step ours should be at least."""
CHAIN_MS = 9


def chains(plan: Plan, troubles: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        warm = {"execution": {"warm": True}}
        pins = {"inputs": engine.TEXT, "outputs": engine.TEXT}
        write_agent(root / "agents", "warm", engine.WARM, **pins, **warm)
        mine = as_served(_in_process(root / "warm", plan))
        found = {
            OURS: mine,
            "MentatLab, no processes": as_served(
                _in_process(root / "none", plan, engine.NoRunner())
            ),
            "MentatLab, over HTTP": asyncio.run(_over_http(root / "http", root / "agents", plan)),
        }
    _head()
    for name, one in found.items():
        _show(name, one, mine, f"<= {CHAIN_MS} ms p50" if name == OURS else "")
    for peer in () if plan.alone else PEERS:
        if (theirs := _attempted(peer, plan, troubles)) is not None:
            _show(f"{peer.name} {theirs.version}", theirs, mine, _verdict(peer, theirs, mine))


def _attempted(peer: Peer, plan: Plan, troubles: dict[str, str]) -> Measured | None:
    try:
        return measure_peer(peer, plan)
    except PeerMissingError as error:
        troubles[peer.name] = f"cannot be had: {error}"
    except RuntimeError as error:
        troubles[peer.name] = str(error)
    return None


async def _in_process(home: Path, plan: Plan, runner: Runner | None = None) -> Measured:
    async with open_house(home, [home.parent / "agents"], runner=runner) as house:
        return await measure.measured(engine.runs(house, "warm"), plan.rounds, plan.seconds)


async def _over_http(home: Path, agents: Path, plan: Plan) -> Measured:
    """A real `mentatlab up`; a run's end is told by its event stream."""
    settings = {"MENTATLAB_RATE": "0", "MENTATLAB_AGENTS": str(agents)}
    with up(home, env=settings) as server:
        async with AsyncClient(server.url) as client:

            async def run(steps: int) -> None:
                made = await client.submit(engine.chain("warm", steps), {"n0": measure.WORD})
                async for _ in client.events(made["run_id"]):
                    pass

            return await measure.measured(run, plan.rounds, plan.seconds)


def _head() -> None:
    print(f"\nChains of trivial steps; {measure.IN_FLIGHT} runs of one step in flight")
    columns = ("one p50", "three p50", "three p99", "a step", "in flight", "x step", "x three")
    print(f"  {'':<26}{''.join(f'{name:>11}' for name in columns)}  asked")
    units = ("ms", "ms", "ms", "ms", "runs/s", "", "")
    print(f"  {'':<26}{''.join(f'{unit:>11}' for unit in units)}")


def _show(name: str, one: Measured, mine: Measured, words: str) -> None:
    p50, p99 = (percentile(one.three, p) for p in (50, 99))
    figures = (median(one.one), p50, p99, step_ms(one))
    cells = "".join(f"{figure:>11.2f}" for figure in figures) + f"{one.rate:>11,.0f}"
    times = f"{_times(one, mine, step_ms):>10.2f}x{_times(one, mine, _three_ms):>10.2f}x"
    print(f"  {name:<26}{cells}{' ' * 22 if one is mine else times}  {words}", flush=True)


def _verdict(peer: Peer, theirs: Measured, mine: Measured) -> str:
    if peer.durable:
        met = _times(theirs, mine, step_ms) >= DURABLE_TIMES
        return f"x step >= {DURABLE_TIMES}{'' if met else ', behind'}"
    if peer.name in ("Ray Serve", "Jina"):
        return f"x three > 1{'' if _times(theirs, mine, _three_ms) > 1 else ', behind'}"
    return "nothing recorded, one process"


def step_ms(one: Measured) -> float:
    """One more step of a run."""
    return max(0.0, (median(one.three) - median(one.one)) / 2)


def _three_ms(one: Measured) -> float:
    return median(one.three)


def _times(theirs: Measured, mine: Measured, figure: Callable[[Measured], float]) -> float:
    return figure(theirs) / max(figure(mine), 1e-3)
