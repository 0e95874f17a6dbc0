"""The engines that are measured: each does the same chains in its own idiomatic way."""

import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.engine_peers.peers.measure import RESULT, Measured
from benchmarks.engine_peers.plan import Plan
from benchmarks.peers import fetch

_HERE = Path(__file__).parent
PATIENCE_S = 120
"""For one peer, its start and its end included."""


class Peer(NamedTuple):
    """`program` beside the file that measures; `requirements` of its environment; `durable`: its
    steps are recorded, so that they survive its end."""

    name: str
    program: str
    requirements: str
    durable: bool


PEERS = [
    Peer("Prefect", "prefect_flows.py", "prefect.txt", durable=True),
    Peer("Dagster", "dagster_jobs.py", "dagster.txt", durable=True),
    Peer("Temporal, dev server", "temporal_flows.py", "temporal.txt", durable=True),
    Peer("Ray Serve", "ray_serve.py", "ray.txt", durable=False),
    Peer("Jina", "jina_flow.py", "jina.txt", durable=False),
    Peer("Pipecat", "pipecat_pipeline.py", "pipecat.txt", durable=False),
]


def measure_peer(peer: Peer, plan: Plan) -> Measured:
    """`fetch.PeerMissingError` when it cannot be had, `RuntimeError` when it fails."""
    python = fetch.environment(_HERE / "requirements" / peer.requirements)
    command = [python, _HERE / "peers" / peer.program, str(plan.rounds), str(plan.seconds)]
    with tempfile.TemporaryDirectory(prefix="p", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [*command, folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"it did not end within {PATIENCE_S} s") from error
        finally:
            _kill_all(process.pid)
        result = Path(folder, RESULT)
        if process.returncode or not result.exists():
            raise RuntimeError(f"it failed: {said[-500:]}")
        return Measured(**json.loads(result.read_text()))


def _kill_all(group: int) -> None:
    """What it started and did not end."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
