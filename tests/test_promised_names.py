"""The Python names that are promises to others: each is imported from where it was promised, and
called as it was promised."""

import asyncio
from contextlib import aclosing
from pathlib import Path

from tests.support.agent_processes import Bench, perform
from tests.support.media import picture

from mentatlab.flows import ManifestValidator, MultimodalPin, ValidationMode
from mentatlab.protocol import events
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.protocol.records import data_draft
from mentatlab.runners import LocalRunner, calculate_resources
from mentatlab.runs import Edge, MultimodalEdgeProcessor
from mentatlab.sdk import Agent, BaseAgent, MultimodalAgent, StreamingAgent
from mentatlab.storage import StorageManager, open_memory
from mentatlab.streams import (
    BufferManager,
    StreamChunk,
    StreamingConnectionManager,
    StreamInitRequest,
    StreamRegistry,
    StreamSession,
)

PHOTO = picture("PNG", size=8)
MANIFEST = {
    "id": "my.agent",
    "version": "1.0.0",
    "inputs": [{"name": "photo", "type": "image", "metadata": {"mimeType": "image/png"}}],
    "outputs": [{"name": "text", "type": "string"}],
    "resources": {"profiles": ["image_processing"]},
}


def test_flows() -> None:
    for mode in (ValidationMode.STRICT, ValidationMode.LENIENT, ValidationMode.OFF):
        validator = ManifestValidator(mode).add_multimodal_rules()
        assert validator.validate(MANIFEST) == []
    (problem,) = ManifestValidator(ValidationMode.STRICT).validate({**MANIFEST, "version": "one"})
    assert problem.path == "/version"
    pin = MultimodalPin.model_validate({"name": "photo", "type": "image"})
    assert [p.severity for p in pin.validate_multimodal()] == ["warning"]


async def test_storage() -> None:
    async with open_memory() as storage:
        assert isinstance(storage, StorageManager)
        key = storage.generate_key("ws", "flow", "rn_1", "node", "photo", "png")
        assert key.startswith("ws/flow/rn_1/node/photo_")
        assert key.endswith(".png")
        reference = await storage.upload(PHOTO, {"mimeType": "image/png"})
        assert reference["type"] == "image"


async def test_runs() -> None:
    async with open_memory() as storage:
        edges = MultimodalEdgeProcessor(storage)
        edge = Edge(
            workspace="default",
            flow_id="flow",
            run_id="rn_1",
            node_id="node",
            pin=Pin("photo", PinType.IMAGE),
            owner="run:rn_1",
            now_ms=1,
        )
        data = await edges.process_edge_data(edge, PHOTO)
        reference = await edges.validate_reference(data)
        assert await edges.create_reference(str(data["ref"]["url"]), "image") == reference


async def test_streams() -> None:
    async with aclosing(StreamingConnectionManager()) as streams:
        session = await streams.create_stream("my.agent", "text")
        assert isinstance(session, StreamSession)
        await streams.stream_chunk(session.stream_id, data_draft("hello"))
        await streams.end_stream(session.stream_id)
        async with streams.subscribe(session.stream_id) as records:
            told = [record async for record in records]
    assert all(isinstance(record, StreamChunk) for record in told)
    assert [record.to_dict()["type"] for record in told] == [
        "stream_start",
        "stream_data",
        "stream_end",
    ]
    assert told[1].to_dict()["payload"]["data"] == "hello"


async def test_parts_of_streams() -> None:
    registry, buffers = StreamRegistry(), BufferManager()
    async with aclosing(StreamingConnectionManager()) as streams:
        lane = (await streams.create_stream("my.agent", "text")).lane
    registry.register(lane)
    assert registry.get(lane.stream_id) == lane
    listener = buffers.listen(lane.stream_id)
    assert buffers.statistics().listeners == 1
    listener.close()
    wanted = StreamInitRequest.model_validate({"agent_id": "my.agent", "pin_name": "text"})
    assert (wanted.agent_id, wanted.pin_name) == ("my.agent", "text")


def test_runners() -> None:
    resources = calculate_resources(MANIFEST, {})
    assert (resources.cpu, resources.memory) == (2, 4 * 2**30)


# -- the SDK, in a real agent process

EVERYTHING = """
    from mentatlab.sdk import StreamingAgent, run

    class Everything(StreamingAgent):
        async def process(self, inputs):
            photo = inputs["photo"]
            whole = await self.process_media(photo)
            assert whole == await self.download_media(photo)
            with self.open_media(photo) as file:
                assert file.read() == whole

            async def blocks():
                yield whole

            by = [whole, photo["path"], blocks()]
            given = [await self.upload_media("copy", data, metadata={}) for data in by]

            stream = await self.init_stream("words")
            await self.send_chunk(stream, "a")
            await self.end_stream(stream)
            await self.stream_output("more", "b")

            async def items():
                yield "c"

            await self.stream_output("more", items())
            self.progress(50)
            self.checkpoint({"n": 1})
            self.log("here")
            return {"copy": given[0], "copies": len(given)}

    run(Everything)
"""


async def test_the_sdk(tmp_path: Path) -> None:
    assert issubclass(StreamingAgent, MultimodalAgent)
    assert issubclass(MultimodalAgent, Agent)
    assert BaseAgent is Agent
    photo = tmp_path / "photo.png"
    photo.write_bytes(PHOTO)
    (tmp_path / "out").mkdir()
    runner = LocalRunner()
    invocation = Bench(tmp_path).invocation(
        EVERYTHING,
        inputs={"photo": {"type": "image", "path": str(photo)}},
        outputs=(
            Pin("copy", PinType.IMAGE),
            Pin("copies", PinType.NUMBER),
            Pin("words", PinType.STREAM),
            Pin("more", PinType.STREAM),
        ),
    )
    try:
        outcome, told = await perform(runner, invocation)
    finally:
        await runner.aclose()
    assert outcome.status == "succeeded", outcome
    assert outcome.outputs["copies"] == 3
    assert await asyncio.to_thread(Path(outcome.outputs["copy"]["path"]).read_bytes) == PHOTO
    said = [(e.pin, e.data) for e in told if isinstance(e, events.Chunk)]
    assert said == [("words", "a"), ("more", "b"), ("more", "c")]
    kinds = {type(event) for event in told}
    assert {events.Progress, events.Checkpoint, events.Log} <= kinds
