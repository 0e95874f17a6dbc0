"""Value edges with real agents: the classic echo agent, chains, inputs, outputs, errors."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.support.api import processes_of

from mentatlab.protocol.errors import Conflict, NotFound, ValidationFailed
from mentatlab.runs.limits import Limits
from mentatlab.runs.reading import LogQuery
from mentatlab.runs.store import RunFilter
from mentatlab.testing.house import open_house, write_agent

CLASSIC_ECHO = """
    import json, sys
    payload = json.load(sys.stdin)
    print(json.dumps({"text": payload["text"]}))
"""
SHOUT = """
    import json, sys
    payload = json.load(sys.stdin)
    print(json.dumps({"loud": payload["text"].upper() + payload["spec"].get("mark", "")}))
"""
FLAKY = """
    import json, os, sys
    payload = json.load(sys.stdin)
    if not os.path.exists(payload["spec"]["tried"]):
        open(payload["spec"]["tried"], "w").close()
        print(json.dumps({"type": "log", "message": "not yet"}))
        sys.exit(3)
    print(json.dumps({"text": payload["text"]}))
"""
SLEEPER = """
    import json, os, sys, time
    payload = json.load(sys.stdin)
    with open(payload["spec"]["pid"] + ".part", "w") as file:
        file.write(str(os.getpid()))
    os.replace(payload["spec"]["pid"] + ".part", payload["spec"]["pid"])
    time.sleep(60)
"""
TEXT = [{"name": "text", "type": "string"}]


async def until_written(path: Path) -> str:
    """What a foreign process writes there, in one go."""
    async with asyncio.timeout(30):
        while not (text := text_of(path)):
            await asyncio.sleep(0.01)
    return text


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def write_agents(root: Path) -> Path:
    write_agent(root, "echo", CLASSIC_ECHO, inputs=TEXT, outputs=TEXT)
    write_agent(root, "shout", SHOUT, inputs=TEXT, outputs=[{"name": "loud", "type": "string"}])
    return root


def flow(nodes: list[dict[str, Any]], edges: list[tuple[str, str]], **more: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "demo.test", "name": "test", "version": "1.0.0"},
        "graph": {"nodes": nodes, "edges": [{"from": a, "to": b} for a, b in edges]},
        **more,
    }


ECHO_THEN_SHOUT = flow(
    [
        {"id": "ask", "type": "ui.prompt"},
        {"id": "echo", "type": "echo"},
        {"id": "shout", "type": "shout", "params": {"mark": "!"}},
        {"id": "show", "type": "ui.console"},
    ],
    [("ask.text", "echo.text"), ("echo.text", "shout.text"), ("shout.loud", "show.text")],
)


async def test_the_classic_echo_agents_output_reaches_the_next_node(tmp_path: Path) -> None:
    async with open_house(tmp_path / "home", [write_agents(tmp_path / "agents")]) as house:
        run = await house.engine.submit(ECHO_THEN_SHOUT, {"ask": "hello"}, workspace="w")
        assert run.state == "running"
        done = await house.engine.wait(run.id)
        assert (done.state, done.reason) == ("succeeded", "")
        assert await house.engine.outputs(run.id, workspace="w") == {"show.text": "HELLO!"}
        assert [(n.id, n.state, n.attempt) for n in done.nodes] == [
            ("ask", "succeeded", 0),
            ("echo", "succeeded", 1),
            ("shout", "succeeded", 1),
            ("show", "succeeded", 0),
        ]


async def test_a_chain_of_three_commits_four_times(tmp_path: Path) -> None:
    """NodeSucceeded(A) and NodeStarted(B) are one transaction: n + 1 for a chain of n."""
    document = flow(
        [{"id": name, "type": "echo"} for name in ("one", "two", "three")],
        [("one.text", "two.text"), ("two.text", "three.text")],
    )
    async with open_house(tmp_path / "home", [write_agents(tmp_path / "agents")]) as house:
        commits = [0]

        def count(sql: str) -> None:
            commits[0] += sql.startswith(("INSERT INTO runs", "UPDATE runs SET state"))

        await house.database.write(lambda db: db.set_trace_callback(count))
        run = await house.engine.submit(document, {"one": "hi"})
        done = await house.engine.wait(run.id)
        assert done.outputs == {"three.text": "hi"}
        assert commits == [4]
        events = await house.runs.events(run.id, workspace="default")
        assert [(e.seq, e.type, e.node_id) for e in events] == [
            (1, "run_created", ""),
            (2, "run_started", ""),
            (3, "node_started", "one"),
            (4, "node_succeeded", "one"),
            (5, "node_started", "two"),
            (6, "node_succeeded", "two"),
            (7, "node_started", "three"),
            (8, "node_succeeded", "three"),
            (9, "run_finished", ""),
        ]
        assert (await house.runs.events(run.id, workspace="default", after=8)) == events[8:]


async def test_the_runs_own_lane_tells_its_events_and_ends_last(tmp_path: Path) -> None:
    async with open_house(tmp_path / "home", [write_agents(tmp_path / "agents")]) as house:
        run = await house.engine.submit(ECHO_THEN_SHOUT, {"ask": "hello"})
        async with house.hub.subscribe(run.id) as records:  # follows live, ends with the run
            told = [r.payload["data"] async for r in records if "data" in r.payload]
        done = await house.engine.wait(run.id)
        assert done.state == "succeeded"
        events = await house.runs.events(run.id, workspace="default")
        assert told == [event.to_dict() for event in events]


async def test_a_permanent_failure_fails_its_dependants_in_the_same_transaction(
    tmp_path: Path,
) -> None:
    agents = write_agents(tmp_path / "agents")
    write_agent(agents, "bad", "import sys; sys.exit('broken')", inputs=TEXT, outputs=TEXT)
    document = flow(
        [
            {"id": "ask", "type": "ui.prompt"},
            {"id": "bad", "type": "bad"},
            {"id": "next", "type": "echo"},
            {"id": "last", "type": "echo"},
            {"id": "aside", "type": "echo"},
        ],
        [
            ("ask.text", "bad.text"),
            ("bad.text", "next.text"),
            ("next.text", "last.text"),
            ("ask.text", "aside.text"),
        ],
    )
    async with open_house(tmp_path / "home", [agents]) as house:
        run = await house.engine.submit(document, {"ask": "hi"})
        done = await house.engine.wait(run.id)
        assert (done.state, done.reason) == ("failed", "node_failed")
        assert done.error is not None
        assert done.error.code == "AGENT_EXIT"
        nodes = {n.id: n for n in done.nodes}
        assert {k: n.state for k, n in nodes.items()} == {
            "ask": "succeeded",
            "bad": "failed",
            "next": "upstream_failed",
            "last": "upstream_failed",
            "aside": "succeeded",
        }
        assert nodes["next"].error is not None
        assert nodes["next"].error.code == "UPSTREAM_FAILED"
        types = [e.type for e in await house.runs.events(run.id, workspace="default")]
        at = types.index("node_failed")
        assert types[at + 1 : at + 3] == ["node_upstream_failed", "node_upstream_failed"]


async def test_exit_3_is_tried_again_and_the_retry_is_told(tmp_path: Path) -> None:
    agents = tmp_path / "agents"
    write_agent(agents, "flaky", FLAKY, inputs=TEXT, outputs=TEXT)
    document = flow(
        [
            {
                "id": "flaky",
                "type": "flaky",
                "params": {"tried": str(tmp_path / "tried")},
                "retry": {"base_s": 0.01},
            }
        ],
        [],
    )
    async with open_house(tmp_path / "home", [agents]) as house:
        run = await house.engine.submit(document, {"flaky": "x"})
        done = await house.engine.wait(run.id)
        assert done.state == "succeeded", done.error
        assert done.nodes[0].attempt == 2
        events = await house.runs.events(run.id, workspace="default")
        retry = next(e for e in events if e.type == "retry_scheduled")
        assert retry.payload["error"]["kind"] == "transient"
        logs = await house.runs.logs(LogQuery(run.id, "flaky", "default"))
        assert [(line["message"], line["attempt"]) for line in logs] == [("not yet", 1)]


async def test_cancel_kills_the_agent_and_what_follows_never_starts(tmp_path: Path) -> None:
    agents = write_agents(tmp_path / "agents")
    write_agent(agents, "sleeper", SLEEPER, inputs=TEXT, outputs=TEXT)
    pid_file = tmp_path / "pid"
    document = flow(
        [
            {"id": "sleep", "type": "sleeper", "params": {"pid": str(pid_file)}},
            {"id": "next", "type": "echo"},
        ],
        [("sleep.text", "next.text")],
    )
    async with open_house(tmp_path / "home", [agents]) as house:
        run = await house.engine.submit(document, {"sleep": "x"})
        pid = int(await until_written(pid_file))
        asked = await house.engine.cancel(run.id, workspace="default")
        assert asked.state == "cancelling"
        done = await house.engine.wait(run.id)
        assert (done.state, done.reason) == ("cancelled", "user_cancel")
        assert {n.id: n.state for n in done.nodes} == {"sleep": "cancelled", "next": "cancelled"}
        assert not alive(pid)
        with pytest.raises(Conflict, match="RUN_TERMINAL"):
            await house.engine.cancel(run.id, workspace="default")


@pytest.mark.parametrize("where", ["attempt", "total", "run"])
async def test_each_timeout_ends_what_takes_too_long(tmp_path: Path, where: str) -> None:
    agents = tmp_path / "agents"
    write_agent(agents, "sleeper", SLEEPER, inputs=TEXT, outputs=TEXT)
    timeouts = {
        "attempt": {"timeouts": {"attempt_s": 0.5}, "retry": {"maxAttempts": 1}},
        "total": {"timeouts": {"total_s": 0.5}},
        "run": {},
    }
    config = {"runConfig": {"timeoutSeconds": 1}} if where == "run" else {}
    node = {"id": "sleep", "type": "sleeper", "params": {"pid": str(tmp_path / "pid")}}
    document = flow([{**node, **timeouts[where]}], [], **config)
    async with open_house(tmp_path / "home", [agents]) as house:
        run = await house.engine.submit(document, {"sleep": "x"})
        done = await house.engine.wait(run.id)
        assert done.state == "failed"
        assert done.error is not None
        if where == "run":
            assert (done.reason, done.error.code) == ("timeout", "RUN_TIMEOUT")
        else:
            assert (done.reason, done.error.code) == ("node_failed", "AGENT_TIMEOUT")
        assert processes_of(run.id) == []  # whether the agent came as far as its first line or not


async def test_wrong_inputs_are_told_all_at_once_and_no_run_is_made(tmp_path: Path) -> None:
    document = flow(
        [
            {"id": "a", "type": "ui.prompt"},
            {"id": "b", "type": "ui.prompt"},
            {"id": "one", "type": "echo"},
            {"id": "two", "type": "echo"},
        ],
        [("a.text", "one.text"), ("b.text", "two.text")],
    )
    async with open_house(tmp_path / "home", [write_agents(tmp_path / "agents")]) as house:
        with pytest.raises(ValidationFailed) as caught:
            await house.engine.submit(document, {"a": 7, "c": "x"})
        assert [(p.code, p.path) for p in caught.value.problems] == [
            ("RUN_INPUT_UNKNOWN", "/inputs/c"),
            ("RUN_INPUT_MISSING", "/inputs/b"),
            ("RUN_INPUT_TYPE", "/inputs/a"),
        ]
        with pytest.raises(ValidationFailed, match="UNKNOWN_AGENT"):
            await house.engine.submit(flow([{"id": "x", "type": "nobody"}], []), {})
        assert await house.runs.list("default") == []


async def test_the_same_idempotency_key_is_the_same_run(tmp_path: Path) -> None:
    async with open_house(tmp_path / "home", [write_agents(tmp_path / "agents")]) as house:
        submit, inputs = house.engine.submit, {"ask": "hello"}
        first = await submit(ECHO_THEN_SHOUT, inputs, idempotency_key="k")
        second = await submit(ECHO_THEN_SHOUT, inputs, idempotency_key="k")
        assert second.id == first.id
        other = await submit(ECHO_THEN_SHOUT, inputs, workspace="w", idempotency_key="k")
        assert other.id != first.id
        with pytest.raises(Conflict, match="IDEMPOTENCY_CONFLICT"):
            await submit(ECHO_THEN_SHOUT, {"ask": "else"}, idempotency_key="k")
        for run in (first, other):
            await house.engine.wait(run.id)
        listed = await house.runs.list("default")
        assert [(r.id, r.state) for r in listed] == [(first.id, "succeeded")]
        assert await house.runs.list("default", filter=RunFilter(states=("failed",))) == []
        assert await house.runs.list("default", before=first.id) == []


async def test_a_run_of_another_workspace_is_not_there(tmp_path: Path) -> None:
    async with open_house(tmp_path / "home", [write_agents(tmp_path / "agents")]) as house:
        run = await house.engine.submit(ECHO_THEN_SHOUT, {"ask": "x"}, workspace="mine")
        await house.engine.wait(run.id)
        for call in (house.engine.get, house.engine.outputs, house.runs.events):
            with pytest.raises(NotFound, match="RUN_NOT_FOUND"):
                await call(run.id, workspace="yours")


async def test_runs_beyond_the_limit_wait_as_queued(tmp_path: Path) -> None:
    agents = write_agents(tmp_path / "agents")
    write_agent(agents, "sleeper", SLEEPER, inputs=TEXT, outputs=TEXT)
    sleeping = flow(
        [{"id": "sleep", "type": "sleeper", "params": {"pid": str(tmp_path / "pid")}}], []
    )
    async with open_house(tmp_path / "home", [agents], limits=Limits(max_runs=1)) as house:
        first = await house.engine.submit(sleeping, {"sleep": "x"})
        await until_written(tmp_path / "pid")
        second = await house.engine.submit(ECHO_THEN_SHOUT, {"ask": "x"})
        third = await house.engine.submit(ECHO_THEN_SHOUT, {"ask": "x"})
        assert (second.state, third.state) == ("queued", "queued")
        gone = await house.engine.cancel(third.id, workspace="default")
        assert gone.state == "cancelled"  # without waiting for its turn
        await house.engine.cancel(first.id, workspace="default")
        assert (await house.engine.wait(second.id)).state == "succeeded"


async def test_a_value_over_32_kib_goes_by_reference_and_arrives_whole(tmp_path: Path) -> None:
    text = "x" * 100_000
    document = flow(
        [{"id": "one", "type": "echo"}, {"id": "two", "type": "echo"}], [("one.text", "two.text")]
    )
    agents = tmp_path / "agents"
    write_agent(
        agents,
        "echo",
        CLASSIC_ECHO.replace(
            'payload["text"]',
            'payload["spec"]["text"]',  # large values stand there only
        ),
        inputs=TEXT,
        outputs=TEXT,
    )
    async with open_house(tmp_path / "home", [agents]) as house:
        run = await house.engine.submit(document, {"one": text})
        done = await house.engine.wait(run.id)
        assert done.state == "succeeded", done.error
        value = done.outputs["two.text"]
        assert (value["type"], value["ref"]["size"]) == ("string", 100_002)
        big = await house.engine.submit(document, {"one": "x" * 600_000})
        done = await house.engine.wait(big.id)
        assert done.error is not None
        assert done.error.code == "VALUE_TOO_LARGE"
