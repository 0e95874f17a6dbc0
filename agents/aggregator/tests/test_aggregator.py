"""The real agent process."""

from typing import Any

LIVE = {"type": "stream", "live": True}


def chunk(pin: str, seq: int, data: Any, pts: float | None = None) -> dict[str, Any]:
    return {"type": "chunk", "pin": pin, "seq": seq, "data": data, "pts": pts}


async def test_streams_join_by_index(one_shot: Any) -> None:
    chunks = [chunk("a", 1, "x"), chunk("b", 1, 10), chunk("a", 2, "y")]
    answer = await one_shot({"a": LIVE, "b": LIVE, "names": {"a": "word"}}, chunks)
    assert answer.exit_code == 0
    assert answer.outputs == {
        "result": [{"index": 0, "word": "x", "b": 10}, {"index": 1, "word": "y"}]
    }


async def test_streams_join_by_time(one_shot: Any) -> None:
    chunks = [
        *(chunk("a", i + 1, f"frame {i}", pts=float(i)) for i in range(3)),
        chunk("b", 1, "hello", pts=0.2),
        chunk("b", 2, "world", pts=1.9),
    ]
    answer = await one_shot({"a": LIVE, "b": LIVE, "join": "time", "tolerance_s": 0.3}, chunks)
    assert answer.outputs["result"] == [
        {"time": 0.0, "a": "frame 0", "b": "hello"},
        {"time": 1.0, "a": "frame 1"},
        {"time": 1.9, "b": "world", "a": "frame 2"},
    ]


async def test_the_time_may_stand_in_the_element(one_shot: Any) -> None:
    items = [{"start": 2, "text": "b"}, {"start": 1, "text": "a"}]
    answer = await one_shot({"items": items, "join": "time", "time_key": "start"})
    assert answer.outputs["result"] == [
        {"time": 1.0, "items": items[1]},
        {"time": 2.0, "items": items[0]},
    ]


async def test_an_element_without_a_time(one_shot: Any) -> None:
    answer = await one_shot({"items": [1], "join": "time"})
    assert answer.exit_code == 1
    assert answer.error["code"] == "BAD_PARAM"
    assert "time_key" in answer.error["hint"]


async def test_lists_single_values_and_nothing(warm: Any) -> None:
    async with warm() as agent:
        rows = await agent.invoke({"items": ["x", {"y": 1}]})
        single = await agent.invoke({"items": 7})
        nothing = await agent.invoke({})
        bad = await agent.invoke({"items": [], "join": "sideways"})
    assert rows.outputs["result"] == [{"index": 0, "items": "x"}, {"index": 1, "items": {"y": 1}}]
    assert single.outputs["result"] == [{"index": 0, "items": 7}]
    assert nothing.outputs["result"] == []
    assert bad.error["code"] == "BAD_PARAM"


async def test_a_source_that_runs_ahead_does_not_block_the_other(one_shot: Any) -> None:
    """More chunks on one input than an agent buffers before the other gets its first."""
    ahead = [chunk("a", i, i) for i in range(1, 1001)]
    answer = await one_shot({"a": LIVE, "b": LIVE}, [*ahead, chunk("b", 1, "late")])
    rows = answer.outputs["result"]
    assert len(rows) == 1000
    assert rows[0] == {"index": 0, "a": 1, "b": "late"}


async def test_an_upstream_that_failed(warm: Any) -> None:
    async with warm() as agent:
        eos = {"type": "eos", "pin": "a", "status": "error"}
        answer = await agent.invoke({"a": LIVE}, [chunk("a", 1, 1), eos])
    assert answer.error["code"] == "UPSTREAM_FAILED"
