"""Logs that releases have written are read as they were meant: `golden/NAME.jsonl` are the stored
events, `NAME.json` what they come to."""

import json
from functools import reduce
from pathlib import Path
from typing import Any, get_args

import pytest

from mentatlab.protocol.errors import Internal
from mentatlab.runs import events as ev
from mentatlab.runs.state import RunState, apply, initial

GOLDEN = Path(__file__).parent / "golden"
LOGS = sorted(GOLDEN.glob("*.jsonl"))


def lines(log: Path) -> list[bytes]:
    return log.read_bytes().splitlines()


def shown(state: RunState) -> dict[str, Any]:
    fields = ("phase", "attempt", "failures", "losses", "succeeded", "failed", "skipped")
    nodes = {n: {f: getattr(x, f) for f in fields} for n, x in state.nodes.items()}
    error = state.error and state.error.code
    return {"nodes": nodes, "phase": state.phase, "reason": state.reason, "error": error}


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.stem)
def test_a_stored_log_comes_to_what_it_came_to(log: Path) -> None:
    expected = json.loads(log.with_suffix(".json").read_bytes())
    facts = [ev.decode(line) for line in lines(log)]
    assert shown(reduce(apply, facts, initial(tuple(expected["nodes"])))) == expected


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.stem)
def test_what_is_of_this_version_is_written_as_it_was(log: Path) -> None:
    for line in lines(log):
        fact = ev.decode(line)
        if ev.stored_type(fact) == json.loads(line)["type"]:
            assert ev.encode(fact) == line


def test_the_logs_tell_every_event() -> None:
    told = {type(ev.decode(line)) for log in LOGS for line in lines(log)}
    assert set(get_args(ev.RunFact)) - told == {ev.ItemsVoided, ev.NodeUpstreamFailed}


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ({"code": "ENGINE_LOST", "message": "m", "kind": "infra"}, "lost"),
        ({"code": "AGENT_OOM", "message": "m", "kind": "oom"}, "oom"),
        ({"code": "AGENT_ERROR", "message": "m"}, "failure"),
    ],
)
def test_a_retry_of_an_older_log_says_why_it_was(error: dict[str, str], cause: str) -> None:
    stored = {"type": "retry_scheduled/1", "at": 1.0, "node": "a", "retry_at": 2.0, "error": error}
    fact = ev.decode(json.dumps(stored).encode())
    assert isinstance(fact, ev.RetryScheduled)
    assert (fact.cause, fact.node, fact.retry_at) == (cause, "a", 2.0)


@pytest.mark.parametrize("data", [b'{"type":"node_danced/1","at":1}', b"[1]", b'{"at":1}'])
def test_what_no_version_has_written_is_said_so(data: bytes) -> None:
    with pytest.raises(Internal, match="cannot read"):
        ev.decode(data)
