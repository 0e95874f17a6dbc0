"""Results used again: by content, whatever run they are from, as long as what they refer to is
there."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.support.coroutine_house import Agents, ended, flow, node, pin, states
from tests.support.coroutine_runner import Call

from mentatlab.protocol.media import ref_id_of
from mentatlab.runs.cache import program_digest
from mentatlab.storage import sources
from mentatlab.testing.house import House


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 4), colour).save(file, "PNG")
    return file.getvalue()


async def uploaded(house: House, body: bytes) -> str:
    blob = await house.storage.store(sources.once(body), workspace="default")
    return blob.id


@pytest.fixture
def agents(tmp_path: Path) -> Agents:
    found = Agents(tmp_path)

    async def shout(call: Call) -> dict[str, Any]:
        return {"text": call.invocation.inputs["text"].upper()}

    async def turn(call: Call) -> dict[str, Any]:
        out = Path(call.invocation.context.out_dir) / "turned.png"
        out.write_bytes(png("blue"))
        return {"image": {"path": "turned.png"}}

    async def count(call: Call) -> dict[str, Any]:
        call.send("lines", "a", "b", "a")
        return {}

    found.add("shout", shout, [pin("text")], [pin("text")])
    found.add("turn", turn, [pin("image", "image")], [pin("image", "image")])
    found.add("count", count, [], [pin("lines", "stream of string")])
    return found


SHOUT = flow([node("x", "shout", cache="content")])
TURN = flow([node("x", "turn", cache="content")])


async def test_equal_inputs_are_not_worked_on_twice(agents: Agents) -> None:
    async with agents.open(runner := agents.runner()) as house:
        first = await ended(house, SHOUT, x="a")
        again, other = await ended(house, SHOUT, x="a"), await ended(house, SHOUT, x="b")
        events = await house.runs.events(again.id, workspace="default")
    assert [r.outputs["x.text"] for r in (first, again, other)] == ["A", "A", "B"]
    assert [states(r)["x"] for r in (first, again, other)] == ["succeeded", "cached", "succeeded"]
    assert [e.payload["origin"] for e in events if e.type == "node_cached"] == [first.id]
    assert len(runner.calls) == 2


async def test_another_parameter_or_program_is_another_result(
    agents: Agents, tmp_path: Path
) -> None:
    document = flow([node("x", "shout", cache="content", params={"loud": True})])
    async with agents.open() as house:
        await ended(house, SHOUT, x="a")
        assert states(await ended(house, document, x="a"))["x"] == "succeeded"
        (tmp_path / "agents" / "shout-1.0.0" / "src" / "more.py").write_text("x = 1")
        assert states(await ended(house, SHOUT, x="a"))["x"] == "succeeded"
        assert states(await ended(house, SHOUT, x="a"))["x"] == "cached"


async def test_media_count_by_content_and_a_hit_owns_what_it_refers_to(agents: Agents) -> None:
    async with agents.open() as house:
        first = await ended(house, TURN, x=await uploaded(house, png("red")))
        again = await ended(house, TURN, x=await uploaded(house, png("red")))
        assert states(again)["x"] == "cached"
        await house.engine.delete(first.id, workspace="default")
        await house.storage.life.sweep()
        ref = ref_id_of(again.outputs["x.image"])
        assert (await house.storage.get(ref, workspace="default")).size == len(png("blue"))


async def test_a_hit_whose_bytes_are_gone_is_none(agents: Agents) -> None:
    async with agents.open() as house:
        first = await ended(house, TURN, x=await uploaded(house, png("red")))
        await house.storage.release(f"run:{first.id}")
        await house.storage.delete(ref_id_of(first.outputs["x.image"]), workspace="default")
        again = await ended(house, TURN, x=await uploaded(house, png("red")))
    assert states(again)["x"] == "succeeded"


async def test_items_are_cached_one_by_one(agents: Agents) -> None:
    document = flow(
        [node("make", "count"), node("each", "shout", forEach="text", cache="content")],
        "make.lines > each.text",
    )
    async with agents.open(runner := agents.runner()) as house:
        for _ in range(2):
            run = await ended(house, document)
            lane = next(s.stream_id for s in run.streams if s.node_id == "each")
            async with house.hub.subscribe(lane) as records:
                found = [r.payload["data"] async for r in records if "data" in r.payload]
            assert found == ["A", "B", "A"]
    assert len([c for c in runner.begun() if c[0] == "each"]) <= 3


def test_a_program_is_read_again_when_a_file_of_it_changes(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    file = tmp_path / "src" / "main.py"
    file.write_text("1")
    before = program_digest(tmp_path)
    (tmp_path / "src" / "__pycache__").mkdir()
    (tmp_path / "src" / "__pycache__" / "main.pyc").write_text("x")
    assert program_digest(tmp_path) == before
    file.write_text("22")
    assert program_digest(tmp_path) != before
