import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.protocol import events, stdio
from mentatlab.protocol.errors import Code, TooLarge
from mentatlab.protocol.stdio import Context, Lines, body, parse_command, parse_event


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(i % (len(data) + 1) for i in at)})
    return [data[a:b] for a, b in pairwise(edges)]


@given(
    st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", "é".encode()])).map(b"".join),
    st.lists(st.integers(0, 1000)),
)
def test_lines_are_the_same_for_every_chunking(data: bytes, at: list[int]) -> None:
    lines = Lines()
    got = [line for chunk in cut(data, at) for line in lines.feed(chunk)]
    got += lines.end()
    expected = data.split(b"\n")
    assert got == (expected if expected[-1] else expected[:-1])


def test_a_line_over_the_limit_is_refused_as_soon_as_it_is() -> None:
    lines = Lines(limit=4)
    assert list(lines.feed(b"abcd\nab")) == [b"abcd"]
    with pytest.raises(TooLarge) as refused:
        list(lines.feed(b"cde"))
    assert refused.value.code == Code.AGENT_LINE_TOO_LONG
    feed = Lines(limit=4).feed(b"ok\nabcde\n")
    assert next(feed) == b"ok"
    with pytest.raises(TooLarge):
        next(feed)


def test_what_is_written_is_one_line_of_at_most_1_mib() -> None:
    assert stdio.encode({"type": "drain"}) == b'{"type":"drain"}\n'
    with pytest.raises(TooLarge):
        stdio.encode({"a": "x" * stdio.MAX_LINE_BYTES})
    with pytest.raises(TooLarge):
        stdio.encode_command(stdio.InputChunk(pin="p", seq=1, data="x" * stdio.MAX_LINE_BYTES))


def event(message: object) -> Any:
    return parse_event(json.dumps(message).encode())


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"type": "ready"}, events.Ready()),
        ({"type": "ready", "protocol": 1, "concurrency": 4}, events.Ready(concurrency=4)),
        ({"type": "log", "message": "hi"}, events.Log(message="hi")),
        (
            {"type": "log", "level": "WARN", "message": "hi", "data": {"message": "in"}},
            events.Log(message="hi", level="warning", data={"message": "in"}),
        ),
        (
            {"type": "log", "data": {"level": "fatal", "message": "in"}},
            events.Log(message="in", level="error"),
        ),
        ({"type": "log", "level": 3, "message": "hi"}, events.Log(message="hi")),
        ({"type": "progress", "percent": 5}, events.Progress(percent=5)),
        (
            {"type": "progress", "data": {"current": 1, "total": 4}},
            events.Progress(current=1, total=4),
        ),
        ({"type": "metric", "name": "s", "value": 2}, events.Metric(name="s", value=2)),
        (
            {"type": "checkpoint", "state": {"n": 1}, "offsets": {"in": 3}},
            events.Checkpoint(state={"n": 1}, offsets={"in": 3}),
        ),
        ({"type": "heartbeat", "id": "i7"}, events.Heartbeat(invocation="i7")),
        ({"type": "chunk", "pin": "p", "data": None}, events.Chunk(pin="p", data=None)),
        (
            {"type": "chunk", "pin": "p", "data": {"pin": "q", "data": 1}, "pts": 0.5},
            events.Chunk(pin="p", data={"pin": "q", "data": 1}, pts=0.5),
        ),
        (
            {"type": "chunk", "data": {"pin": "p", "data": 1, "final": True}},
            events.Chunk(pin="p", data=1, final=True),
        ),
        ({"type": "chunk", "pin": "p", "path": "a.jpg"}, events.Chunk(pin="p", path="a.jpg")),
        ({"type": "output", "key": "k", "value": [1]}, events.Output(key="k", value=[1])),
        (
            {"type": "error", "code": "X", "message": "m", "retryable": True},
            events.Error(code="X", message="m", retryable=True),
        ),
        ({"type": "error"}, events.Error()),
        ({"type": "result", "outputs": {"a": 1}}, events.Result(outputs={"a": 1})),
        ({"type": "result", "data": {"outputs": {"a": 1}}}, events.Result(outputs={"a": 1})),
        ({"type": "result", "data": {"a": 1}}, events.Result(outputs={"a": 1})),
        ({"type": "result", "a": 1}, events.Result(outputs={"a": 1})),
        ({"type": "ack", "pin": "p", "seq": 9}, events.Ack(pin="p", seq=9)),
        ({"text": "hi"}, events.Bare(value={"text": "hi"})),
        ({"type": 3, "id": 4}, events.Bare(value={"type": 3, "id": 4})),
        ({"type": "invented", "x": 1}, None),
    ],
)
def test_events(message: object, expected: events.AgentEvent | None) -> None:
    assert event(message) == expected


@pytest.mark.parametrize(
    "message",
    [
        {"type": "metric", "name": "s"},
        {"type": "output", "key": "k"},
        {"type": "chunk", "pin": "p"},
        {"type": "chunk", "pin": "p", "data": 1, "path": "a"},
        {"type": "result", "outputs": 3},
        {"type": "ack", "pin": "p", "seq": "x"},
    ],
)
def test_a_malformed_event_is_logged_with_its_content(message: dict[str, Any]) -> None:
    log = event({**message, "id": "i1"})
    assert isinstance(log, events.Log)
    assert (log.level, log.data["type"], log.invocation) == ("warning", message["type"], "i1")
    assert f"malformed {message['type']}" in log.message


@pytest.mark.parametrize(
    "line",
    [b"Loading model...", b"[1, 2]", b"3", b'{"a": ', b'{"type": "log", "message": "\xff"}'],
)
def test_what_is_no_object_is_a_log_line(line: bytes) -> None:
    assert parse_event(line) == events.Log(message=line.decode("utf-8", "replace"))


@pytest.mark.parametrize("line", [b"", b"  ", b"\r"])
def test_blank_lines_say_nothing(line: bytes) -> None:
    assert parse_event(line) is None


def test_nesting_without_end_is_a_log_line() -> None:
    assert isinstance(parse_event(b"[" * 500_000), events.Log)


@given(st.binary())
def test_no_line_crashes_the_parsers(line: bytes) -> None:
    parse_event(line)
    parse_command(line)


CONTEXT = Context(run_id="rn_1", node_id="n", attempt=2)


def test_the_body_has_pins_at_the_top_and_in_spec() -> None:
    big = "x" * (stdio.MAX_INLINE_BYTES + 1)
    made = body({"text": "hi", "big": big}, {"k": 3, "text": "constant"}, CONTEXT)
    assert made == {
        "text": "hi",
        "k": 3,
        "spec": {"text": "hi", "k": 3, "big": big},
        "context": msgspec.to_builtins(CONTEXT),
    }


def test_every_key_of_the_context_is_there_for_agents_that_just_read_it() -> None:
    context = body({}, {}, Context(run_id="rn_1", node_id="n"))["context"]
    assert context == {
        "run_id": "rn_1",
        "node_id": "n",
        "attempt": 1,
        "item": None,
        "execution_id": "",
        "deadline": None,
        "resume_state": None,
        "token": "",
        "url": "",
        "out_dir": "",
        "idempotency_key": "",
    }


def test_pins_called_spec_and_context_win() -> None:
    made = body({"spec": {"prompt": "p"}, "context": 1}, {}, CONTEXT)
    assert (made["spec"], made["context"]) == ({"prompt": "p"}, 1)


@pytest.mark.parametrize(
    "command",
    [
        stdio.Invoke(id="i1", spec={"a": 1}, context={"run_id": "r"}),
        stdio.InputChunk(id="i1", pin="p", seq=3, data={"a": None}),
        stdio.InputChunk(pin="p", seq=3, ref={"type": "image"}, pts=1.5, item=2),
        stdio.Eos(pin="p", status="cancelled"),
        stdio.Credit(pin="p", bytes=1 << 20),
        stdio.Cancel(id="i1", reason="user"),
        stdio.Drain(),
    ],
)
def test_commands_come_back(command: stdio.Command) -> None:
    assert parse_command(stdio.encode_command(command)) == command


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b'{"type": "later"}', b'{"type": "chunk"}'])
def test_an_agent_passes_over_what_it_does_not_know(line: bytes) -> None:
    assert parse_command(line) is None
