"""Live stream edges, `forEach`, retries that begin a lane again: with real agent processes."""

from pathlib import Path
from typing import Any

from mentatlab.protocol.records import RecordType
from mentatlab.testing.house import House, open_house, write_agent

TEXT = {"name": "text", "type": "string"}
LINES = {"name": "lines", "type": "stream", "metadata": {"items": "string"}}

# Sends one chunk, then ends only when the file `seen` is there: its reader makes it.
WAITING_PRODUCER = """
    import json, os, sys, time
    payload = json.load(sys.stdin)
    def say(line):
        print(json.dumps({"type": "chunk", "pin": "lines", "data": line}), flush=True)
    say("first")
    deadline = time.monotonic() + 30
    while not os.path.exists(payload["spec"]["seen"]):
        if time.monotonic() > deadline:
            sys.exit("nobody has read the first chunk")
        time.sleep(0.01)
    say("last")
    print(json.dumps({"type": "result", "outputs": {}}))
"""
READER = """
    import json, pathlib, sys
    lines = iter(sys.stdin.readline, "")
    payload = json.loads(next(lines))
    got = []
    for line in lines:
        message = json.loads(line)
        if message["type"] == "chunk":
            got.append(message["data"])
            if "seen" in payload["spec"]:
                pathlib.Path(payload["spec"]["seen"]).touch()
    print(json.dumps({"text": " ".join(got)}))
"""
COUNTER = """
    import json, sys
    payload = json.load(sys.stdin)
    for n in range(int(payload["text"])):
        print(json.dumps({"type": "chunk", "pin": "lines", "data": str(n)}), flush=True)
    print(json.dumps({"type": "result", "outputs": {}}))
"""

# Doubles a number; notes how many of its kind run at once.
DOUBLE = """
    import json, os, pathlib, sys, time
    payload = json.load(sys.stdin)
    marks = pathlib.Path(payload["spec"]["marks"])
    mine = marks / f"run-{os.getpid()}"
    mine.touch()
    (marks / f"at-{os.getpid()}").write_text(str(len(list(marks.glob("run-*")))))
    time.sleep(0.05)
    mine.unlink()
    print(json.dumps({"text": str(int(payload["text"]) * 2)}))
"""
ONLY_EVEN = """
    import json, sys
    payload = json.load(sys.stdin)
    if int(payload["text"]) % 2:
        sys.exit("odd")
    print(json.dumps({"text": payload["text"]}))
"""
ODD = "the agent exited with 1: odd"
# Fails for now once its two chunks were read; good the second time.
FLAKY_PRODUCER = """
    import json, os, pathlib, sys, time
    payload = json.load(sys.stdin)
    def say(*lines):
        for line in lines:
            print(json.dumps({"type": "chunk", "pin": "lines", "data": line}), flush=True)
    tried = pathlib.Path(payload["spec"]["tried"])
    if not tried.exists():
        tried.touch()
        say("bad", "worse")
        while not os.path.exists(payload["spec"]["seen"]):
            time.sleep(0.01)
        sys.exit(3)
    say("good", "better", "best")
    print(json.dumps({"type": "result", "outputs": {}}))
"""
# Two good chunks and a checkpoint, then a wrong one; the second attempt goes on after the two.
CAREFUL_PRODUCER = """
    import json, sys
    context = json.load(sys.stdin)["context"]
    def say(**message):
        print(json.dumps(message), flush=True)
    done = context["resume_state"] or 0
    for n in range(done + 1, 5):
        if n == 3 and not done:
            say(type="checkpoint", state=2)
            say(type="chunk", pin="lines", data="99")
            sys.exit(3)
        say(type="chunk", pin="lines", data=str(n))
    say(type="result", outputs={})
"""
SUM = """
    import json, sys
    payload = json.load(sys.stdin)
    print(json.dumps({"text": str(sum(map(int, payload["all"])))}))
"""


def flow(nodes: list[dict[str, Any]], edges: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "demo.streams", "name": "streams", "version": "1.0.0"},
        "graph": {"nodes": nodes, "edges": [{"from": a, "to": b} for a, b in edges]},
    }


async def data_of(house: House, stream_id: str) -> list[tuple[Any, int | None]]:
    """(value, item) of every data record of an ended lane, voided ones included."""
    async with house.hub.subscribe(stream_id) as records:
        return [(r.payload["data"], r.item) async for r in records if r.type is RecordType.DATA]


async def test_a_consumer_gets_the_first_chunk_before_the_producer_has_ended(
    tmp_path: Path,
) -> None:
    agents = tmp_path / "agents"
    write_agent(agents, "producer", WAITING_PRODUCER, outputs=[LINES])
    write_agent(agents, "reader", READER, inputs=[LINES], outputs=[TEXT])
    seen = {"seen": str(tmp_path / "seen")}
    document = flow(
        [
            {"id": "produce", "type": "producer", "params": seen},
            {"id": "read", "type": "reader", "params": seen},
        ],
        [("produce.lines", "read.lines")],
    )
    async with open_house(tmp_path / "home", [agents]) as house:
        run = await house.engine.submit(document, {})
        (stream,) = run.streams
        assert (stream.node_id, stream.pin_name, stream.state) == ("produce", "lines", "open")
        done = await house.engine.wait(run.id)
        assert done.state == "succeeded", done.error
        assert done.outputs == {"read.text": "first last"}
        assert done.streams[0].state == "ended"
        assert await data_of(house, stream.stream_id) == [("first", None), ("last", None)]


async def test_a_stream_is_mapped_item_by_item_in_order_within_its_window(tmp_path: Path) -> None:
    agents, marks = tmp_path / "agents", tmp_path / "marks"
    marks.mkdir()
    write_agent(agents, "counter", COUNTER, inputs=[TEXT], outputs=[LINES])
    write_agent(agents, "double", DOUBLE, inputs=[TEXT], outputs=[TEXT])
    write_agent(agents, "reader", READER, inputs=[LINES], outputs=[TEXT])
    double: dict[str, Any] = {"id": "double", "type": "double", "params": {"marks": str(marks)}}
    document = flow(
        [
            {"id": "count", "type": "counter", "params": {"text": "7"}},
            {**double, "forEach": "text", "maxParallel": 2},
            {"id": "read", "type": "reader"},
        ],
        [("count.lines", "double.text"), ("double.text", "read.lines")],
    )
    async with open_house(tmp_path / "home", [agents]) as house:
        run = await house.engine.submit(document, {})
        done = await house.engine.wait(run.id)
        assert done.state == "succeeded", done.error
        assert done.outputs == {"read.text": "0 2 4 6 8 10 12"}
        node = next(n for n in done.nodes if n.id == "double")
        assert node.items is not None
        assert (node.items.succeeded, node.items.failed) == (7, 0)
        stream = next(s for s in done.streams if s.node_id == "double")
        records = await data_of(house, stream.stream_id)
        assert [item for _, item in records] == [2, 3, 4, 5, 6, 7, 8]  # the source's sequences
    at_once = [int(path.read_text()) for path in marks.glob("at-*")]
    assert len(at_once) == 7
    assert max(at_once) <= 2


async def test_items_that_fail_are_collected_or_skipped_and_the_run_is_partial(
    tmp_path: Path,
) -> None:
    agents = tmp_path / "agents"
    write_agent(agents, "counter", COUNTER, inputs=[TEXT], outputs=[LINES])
    write_agent(agents, "odd", ONLY_EVEN, inputs=[TEXT], outputs=[TEXT])
    async with open_house(tmp_path / "home", [agents]) as house:
        for policy, expected in (
            ("collect", ["0", {"item": 3, "error": {"code": "AGENT_EXIT", "message": ODD}}, "2"]),
            ("skip", ["0", "2"]),
        ):
            document = flow(
                [
                    {"id": "count", "type": "counter", "params": {"text": "3"}},
                    {"id": "odd", "type": "odd", "forEach": "text", "onItemError": policy},
                ],
                [("count.lines", "odd.text")],
            )
            run = await house.engine.submit(document, {})
            done = await house.engine.wait(run.id)
            assert done.state == "partial", done
            records = await data_of(house, done.streams[1].stream_id)
            assert [value for value, _ in records] == expected
            node = done.nodes[1]
            assert node.items is not None
            assert (node.items.succeeded, node.items.failed) == (2, 1)


async def test_fail_fast_and_max_failed_end_the_node_with_the_items_error(tmp_path: Path) -> None:
    agents = tmp_path / "agents"
    write_agent(agents, "counter", COUNTER, inputs=[TEXT], outputs=[LINES])
    write_agent(agents, "odd", ONLY_EVEN, inputs=[TEXT], outputs=[TEXT])
    async with open_house(tmp_path / "home", [agents]) as house:
        for more in ({}, {"onItemError": "skip", "maxFailed": 1}):
            document = flow(
                [
                    {"id": "count", "type": "counter", "params": {"text": "6"}},
                    {"id": "odd", "type": "odd", "forEach": "text", **more},
                ],
                [("count.lines", "odd.text")],
            )
            done = await house.engine.wait((await house.engine.submit(document, {})).id)
            assert (done.state, done.reason) == ("failed", "node_failed")
            assert done.error is not None
            assert done.error.code == "AGENT_EXIT"
            assert "item " in done.error.message
            assert done.streams[1].state == "errored"


async def test_a_shown_stream_is_an_output_once_it_has_ended_whole(tmp_path: Path) -> None:
    agents = tmp_path / "agents"
    write_agent(agents, "counter", COUNTER, inputs=[TEXT], outputs=[LINES])
    write_agent(agents, "odd", ONLY_EVEN, inputs=[TEXT], outputs=[TEXT])
    async with open_house(tmp_path / "home", [agents]) as house:
        for more, expected in (
            ({"onItemError": "collect"}, ("partial", 9)),
            ({"onItemError": "skip", "maxFailed": 3}, ("failed", None)),
        ):
            document = flow(
                [
                    {"id": "count", "type": "counter", "params": {"text": "9"}},
                    {"id": "odd", "type": "odd", "forEach": "text", "maxParallel": 4, **more},
                    {"id": "show", "type": "ui.stream-viewer"},
                ],
                [("count.lines", "odd.text"), ("odd.text", "show.text")],
            )
            done = await house.engine.wait((await house.engine.submit(document, {})).id)
            shown = done.outputs.get("show.text", {}).get("chunks")
            assert (done.state, shown) == expected


async def test_a_producer_that_tries_again_begins_its_lane_again(tmp_path: Path) -> None:
    """Exit 3 after two chunks, then success: the consumer, who had read them, starts again."""
    agents = tmp_path / "agents"
    write_agent(agents, "flaky", FLAKY_PRODUCER, outputs=[LINES])
    write_agent(agents, "reader", READER, inputs=[LINES], outputs=[TEXT])
    files = {"tried": str(tmp_path / "tried"), "seen": str(tmp_path / "seen")}
    document = flow(
        [
            {"id": "produce", "type": "flaky", "params": files, "retry": {"base_s": 0.01}},
            {"id": "read", "type": "reader", "params": {"seen": files["seen"]}},
        ],
        [("produce.lines", "read.lines")],
    )
    async with open_house(tmp_path / "home", [agents]) as house:
        run = await house.engine.submit(document, {})
        done = await house.engine.wait(run.id)
        assert done.state == "succeeded", done.error
        assert done.outputs == {"read.text": "good better best"}
        assert {n.id: n.attempt for n in done.nodes} == {"produce": 2, "read": 2}
        async with house.hub.subscribe(run.streams[0].stream_id) as records:
            kinds = [(str(r.type), r.attempt) async for r in records]
        assert kinds == [
            ("stream_start", 1),
            ("stream_data", 1),
            ("stream_data", 1),
            ("stream_start", 2),
            ("stream_data", 2),
            ("stream_data", 2),
            ("stream_data", 2),
            ("stream_end", None),
        ]


async def test_a_value_flows_into_a_stream_pin_and_a_stream_into_a_json_pin(tmp_path: Path) -> None:
    agents = tmp_path / "agents"
    write_agent(agents, "counter", COUNTER, inputs=[TEXT], outputs=[LINES])
    write_agent(agents, "reader", READER, inputs=[LINES], outputs=[TEXT])
    write_agent(agents, "sum", SUM, inputs=[{"name": "all", "type": "json"}], outputs=[TEXT])
    document = flow(
        [
            {"id": "ask", "type": "ui.prompt"},
            {"id": "read", "type": "reader"},
            {"id": "count", "type": "counter"},
            {"id": "sum", "type": "sum"},
        ],
        [("ask.text", "read.lines"), ("read.text", "count.text"), ("count.lines", "sum.all")],
    )
    async with open_house(tmp_path / "home", [agents]) as house:
        run = await house.engine.submit(document, {"ask": "4"})
        done = await house.engine.wait(run.id)
        assert done.state == "succeeded", done.error
        assert done.outputs == {"sum.text": "6"}


async def test_an_attempt_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    """What the checkpoint covers stands; what came after it is void."""
    agents = tmp_path / "agents"
    write_agent(agents, "careful", CAREFUL_PRODUCER, outputs=[LINES])
    write_agent(agents, "double", DOUBLE, inputs=[TEXT], outputs=[TEXT])
    write_agent(agents, "reader", READER, inputs=[LINES], outputs=[TEXT])
    marks = tmp_path / "marks"
    marks.mkdir()
    document = flow(
        [
            {"id": "produce", "type": "careful", "retry": {"base_s": 0.01}},
            {"id": "read", "type": "reader"},
            {"id": "each", "type": "double", "forEach": "text", "params": {"marks": str(marks)}},
            {"id": "again", "type": "reader"},
        ],
        [
            ("produce.lines", "read.lines"),
            ("produce.lines", "each.text"),
            ("each.text", "again.lines"),
        ],
    )
    async with open_house(tmp_path / "home", [agents]) as house:
        run = await house.engine.submit(document, {})
        done = await house.engine.wait(run.id)
        assert done.state == "succeeded", done.error
        assert done.outputs == {"read.text": "1 2 3 4", "again.text": "2 4 6 8"}
        assert (await house.hub.lane(run.streams[0].stream_id)).chunks == 4
        assert (await house.hub.lane(run.streams[1].stream_id)).chunks == 4


async def test_a_collected_stream_is_an_array_in_the_runs_outputs(tmp_path: Path) -> None:
    agents = tmp_path / "agents"
    write_agent(agents, "counter", COUNTER, inputs=[TEXT], outputs=[LINES])
    document = flow(
        [
            {"id": "count", "type": "counter", "params": {"text": "3"}},
            {"id": "all", "type": "core.collect"},
            {"id": "show", "type": "ui.console"},
            {"id": "watch", "type": "ui.stream-viewer"},
        ],
        [("count.lines", "all.in"), ("all.out", "show.all"), ("count.lines", "watch.lines")],
    )
    async with open_house(tmp_path / "home", [agents]) as house:
        run = await house.engine.submit(document, {})
        done = await house.engine.wait(run.id)
        assert done.state == "succeeded", done.error
        outputs = await house.engine.outputs(run.id, workspace="default")
        assert outputs["show.all"] == ["0", "1", "2"]
        assert outputs["watch.lines"] == {
            "type": "stream",
            "stream_id": run.streams[0].stream_id,
            "items": "string",
            "chunks": 3,
            "state": "ended",
        }


async def test_a_run_that_is_cancelled_ends_its_streams_as_cancelled(tmp_path: Path) -> None:
    agents = tmp_path / "agents"
    write_agent(agents, "producer", WAITING_PRODUCER, outputs=[LINES])
    write_agent(agents, "double", DOUBLE, inputs=[TEXT], outputs=[TEXT])
    document = flow(
        [
            {"id": "produce", "type": "producer", "params": {"seen": str(tmp_path / "never")}},
            {"id": "each", "type": "double", "forEach": "text"},
        ],
        [("produce.lines", "each.text")],
    )
    async with open_house(tmp_path / "home", [agents]) as house:
        run = await house.engine.submit(document, {})
        async with house.hub.subscribe(run.streams[0].stream_id) as records:
            async for record in records:
                if record.type is RecordType.DATA:
                    await house.engine.cancel(run.id, workspace="default")
        assert record.payload["reason"] == "cancelled"
        done = await house.engine.wait(run.id)
        assert done.state == "cancelled"
        assert [s.state for s in done.streams] == ["ended", "ended"]


async def test_an_agent_that_sends_on_a_pin_it_does_not_have_fails(tmp_path: Path) -> None:
    agents = tmp_path / "agents"
    write_agent(agents, "counter", COUNTER, inputs=[TEXT], outputs=[TEXT])
    document = flow([{"id": "count", "type": "counter", "params": {"text": "3"}}], [])
    async with open_house(tmp_path / "home", [agents]) as house:
        done = await house.engine.wait((await house.engine.submit(document, {})).id)
        assert done.error is not None
        assert done.error.code == "OUTPUT_TYPE"


async def test_a_result_may_hold_a_streams_elements(tmp_path: Path) -> None:
    agents = tmp_path / "agents"
    write_agent(agents, "lister", 'print("{\\"lines\\": [\\"a\\", \\"b\\"]}")', outputs=[LINES])
    write_agent(agents, "one", 'print("{\\"lines\\": \\"c\\"}")', outputs=[LINES])
    document = flow([{"id": "lister", "type": "lister"}, {"id": "one", "type": "one"}], [])
    async with open_house(tmp_path / "home", [agents]) as house:
        run = await house.engine.submit(document, {})
        done = await house.engine.wait(run.id)
        assert done.state == "succeeded", done.error
        found = [await data_of(house, s.stream_id) for s in run.streams]
        assert found == [[("a", None), ("b", None)], [("c", None)]]
