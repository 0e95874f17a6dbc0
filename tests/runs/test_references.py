"""References at the edge: never one that was deleted, has expired or is foreign; inputs that lie in
a bucket; and media that an agent reads by address."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mentatlab.protocol.errors import (
    Code,
    Forbidden,
    Gone,
    MentatError,
    NotFound,
    UnsupportedMedia,
)
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.runs.edges import GET_EXPIRES_S, Budget, Edge, MultimodalEdgeProcessor
from mentatlab.storage import StorageManager, open_local, open_memory, sources
from mentatlab.storage.s3_inputs import S3Inputs
from mentatlab.testing.clock import ManualClock


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 4), "red").save(file, "PNG")
    return file.getvalue()


def edge(workspace: str = "w", type_: PinType = PinType.IMAGE) -> Edge:
    return Edge(
        workspace=workspace,
        flow_id="f",
        run_id="rn_1",
        node_id="n",
        pin=Pin("p", type_),
        owner="run:rn_1",
        now_ms=1,
    )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000.0)


@pytest.fixture
async def storage(clock: ManualClock) -> AsyncIterator[StorageManager]:
    async with open_memory(clock=clock) as storage:
        yield storage


async def stored(storage: StorageManager, **more: Any) -> str:
    blob = await storage.store(sources.once(png()), workspace="w", **more)
    return blob.id


async def taken(edges: MultimodalEdgeProcessor, ref: str, workspace: str = "w") -> str:
    """Asked twice, so that what is kept of the first time would answer the second one."""
    said: list[str] = []
    for _ in range(2):
        try:
            await edges.deliver(edge(workspace), ref, Budget())
            await edges.validate_reference(ref, workspace=workspace)
            said.append("fine")
        except MentatError as error:
            said.append(error.code)
    assert said[0] == said[1]
    return said[0]


async def test_one_that_was_deleted(storage: StorageManager) -> None:
    edges, ref = MultimodalEdgeProcessor(storage), await stored(storage)
    assert await taken(edges, ref) == "fine"
    await storage.delete(ref, workspace="w")
    assert await taken(edges, ref) == "REFERENCE_NOT_FOUND"


async def test_one_that_has_expired(storage: StorageManager, clock: ManualClock) -> None:
    edges, ref = MultimodalEdgeProcessor(storage), await stored(storage, ttl_s=60)
    assert await taken(edges, ref) == "fine"
    clock.now += 60
    assert await taken(edges, ref) == "REFERENCE_EXPIRED"
    clock.now += 30 * 86_400
    await storage.life.sweep()
    assert await taken(edges, ref) == "REFERENCE_NOT_FOUND"


async def test_one_that_was_swept(storage: StorageManager, clock: ManualClock) -> None:
    edges, ref = MultimodalEdgeProcessor(storage), await stored(storage, owner="run:rn_1")
    assert await taken(edges, ref) == "fine"
    await storage.release("run:rn_1")
    clock.now += 30 * 86_400
    await storage.life.sweep()
    assert await taken(edges, ref) == "REFERENCE_NOT_FOUND"


async def test_a_foreign_one(storage: StorageManager) -> None:
    edges, ref = MultimodalEdgeProcessor(storage), await stored(storage)
    assert await taken(edges, ref) == "fine"
    assert await taken(edges, ref, "other") == "REFERENCE_NOT_FOUND"
    assert await taken(edges, f"mentat://other/{ref}", "other") == "REFERENCE_NOT_FOUND"
    assert await taken(edges, ref) == "fine"


async def test_one_whose_bytes_are_gone_is_not_given_as_a_path(tmp_path: Path) -> None:
    async with open_local(tmp_path / "blobs", tmp_path / "catalog.db") as storage:
        edges, ref = MultimodalEdgeProcessor(storage), await stored(storage)
        delivered = await edges.deliver(edge(), ref, Budget())
        Path(delivered["path"]).unlink()  # noqa: ASYNC240
        again = await edges.deliver(edge(), ref, Budget())
        assert "path" not in again


steps = st.lists(
    st.tuples(
        st.sampled_from(["store", "short", "take", "foreign", "delete", "wait", "sweep"]),
        st.integers(0, 4),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(steps=steps)
def test_in_any_order_what_is_taken_is_what_stands(steps: list[tuple[str, int]]) -> None:
    asyncio.run(follow(steps))


async def follow(steps: list[tuple[str, int]]) -> None:
    clock = ManualClock(1_800_000_000.0)
    async with open_memory(clock=clock) as storage:
        edges, refs = MultimodalEdgeProcessor(storage), list[str]()
        expiry: dict[str, float | None] = {}  # of what stands
        for step, number in steps:
            ref = refs[number % len(refs)] if refs else ""
            if step in ("store", "short"):
                ttl = 60.0 if step == "short" else None
                refs.append(await text(storage, ttl))
                expiry[refs[-1]] = None if ttl is None else clock.now + ttl
            elif step == "wait":
                clock.now += 20.0 * number
            elif step == "sweep":
                await storage.life.sweep()
            elif step == "delete" and stands(expiry, ref, clock):
                await storage.delete(ref, workspace="w")
                del expiry[ref]
            elif ref:
                workspace = "other" if step == "foreign" else "w"
                fine = workspace == "w" and stands(expiry, ref, clock)
                assert await is_taken(edges, ref, workspace) == fine


async def text(storage: StorageManager, ttl_s: float | None) -> str:
    """Bytes that nobody probes."""
    blob = await storage.store(sources.once(b"text"), workspace="w", ttl_s=ttl_s)
    return blob.id


def stands(expiry: dict[str, float | None], ref: str, clock: ManualClock) -> bool:
    return ref in expiry and (expiry[ref] is None or clock.now < (expiry[ref] or 0))


async def is_taken(edges: MultimodalEdgeProcessor, ref: str, workspace: str) -> bool:
    try:
        await edges.deliver(edge(workspace, PinType.BINARY), ref, Budget())
    except (NotFound, Gone):
        return False
    return True


# --- by address


def signed(workspace: str, ref: str, expires_s: float) -> str:
    return f"http://here/{workspace}/{ref}?{expires_s:g}"


async def test_where_there_is_no_file_an_agent_gets_an_address(storage: StorageManager) -> None:
    edges, ref = MultimodalEdgeProcessor(storage, sign=signed), await stored(storage)
    delivered = await edges.deliver(edge(), ref, Budget())
    assert delivered["get"] == f"http://here/w/{ref}?{GET_EXPIRES_S:g}"
    assert "path" not in delivered


async def test_where_there_is_a_file_it_gets_its_path(tmp_path: Path) -> None:
    async with open_local(tmp_path / "blobs", tmp_path / "catalog.db") as storage:
        edges, ref = MultimodalEdgeProcessor(storage, sign=signed), await stored(storage)
        delivered = await edges.deliver(edge(), ref, Budget())
        assert delivered["path"].endswith(".png")
        assert "get" not in delivered


async def test_an_address_is_not_recorded(storage: StorageManager) -> None:
    """It would outlive its time in the log, and give to readers of the log what they may not."""
    edges, ref = MultimodalEdgeProcessor(storage, sign=signed), await stored(storage)
    delivered = await edges.deliver(edge(), ref, Budget())
    assert "get" not in await edges.process_edge_data(edge(), delivered)
    nested = await edges.deliver(edge(type_=PinType.JSON), {"x": delivered}, Budget())
    assert nested["x"]["get"]
    recorded = await edges.process_edge_data(edge(type_=PinType.JSON), nested)
    assert "get" not in recorded["x"]


# --- in a bucket

BUCKET = {"incoming/cat.png": png(), "incoming/page": b"<html>", "secret/cat.png": png()}


async def read(bucket: str, key: str) -> AsyncIterator[bytes]:
    if bucket != "shared" or key not in BUCKET:
        raise NotFound(Code.REFERENCE_NOT_FOUND, f"there is no {key}")
    yield BUCKET[key]


@pytest.fixture
def edges(storage: StorageManager) -> MultimodalEdgeProcessor:
    inputs = S3Inputs([("w", "s3://shared/incoming/")], read)
    return MultimodalEdgeProcessor(storage, s3_inputs=inputs)


@pytest.mark.parametrize(
    "form",
    [
        "s3://shared/incoming/cat.png",
        {"type": "image", "ref": "s3://shared/incoming/cat.png"},
        {"type": "image", "ref": {"url": "s3://shared/incoming/cat.png"}},
    ],
)
async def test_an_input_in_a_bucket_is_taken_in(
    edges: MultimodalEdgeProcessor, storage: StorageManager, form: Any
) -> None:
    reference = await edges.take_input(edge(), form)
    assert reference["ref"]["url"].startswith("mentat://w/blob_")
    assert reference["ref"]["metadata"]["width"] == 8
    assert reference["ref"]["metadata"]["source"] == "s3://shared/incoming/cat.png"
    blob = await storage.get(reference, workspace="w")
    assert (blob.filename, blob.key) == ("cat.png", "w/f/rn_1/n/p_1.png")
    assert await taken(edges, blob.id) == "fine"


async def test_other_inputs_are_as_before(
    edges: MultimodalEdgeProcessor, storage: StorageManager
) -> None:
    ref = await stored(storage)
    assert (await edges.take_input(edge(), ref))["ref"]["url"] == f"mentat://w/{ref}"
    address = "s3://shared/incoming/cat.png"
    assert await edges.take_input(edge(type_=PinType.STRING), address) == address  # it is text


async def test_what_may_not_be_read_there(edges: MultimodalEdgeProcessor) -> None:
    for address, workspace in (
        ("s3://shared/secret/cat.png", "w"),
        ("s3://shared/incoming/../secret/cat.png", "w"),
        ("s3://shared/incoming/cat.png", "other"),
    ):
        with pytest.raises(Forbidden) as caught:
            await edges.take_input(edge(workspace), address)
        assert caught.value.code is Code.S3_PREFIX_FORBIDDEN


async def test_without_the_setting_none_may(storage: StorageManager) -> None:
    with pytest.raises(Forbidden):
        await MultimodalEdgeProcessor(storage).take_input(edge(), "s3://shared/incoming/cat.png")


async def test_an_agent_may_not_name_one(edges: MultimodalEdgeProcessor) -> None:
    """It would read with the server's right what its own may not."""
    with pytest.raises(MentatError) as caught:
        await edges.process_edge_data(
            edge(), {"type": "image", "ref": "s3://shared/incoming/cat.png"}
        )
    assert caught.value.code is Code.OUTPUT_TYPE


async def test_it_must_be_of_the_pins_type_and_be_there(
    edges: MultimodalEdgeProcessor, storage: StorageManager
) -> None:
    with pytest.raises(UnsupportedMedia):
        await edges.take_input(edge(), "s3://shared/incoming/page")
    with pytest.raises(NotFound):
        await edges.take_input(edge(), "s3://shared/incoming/dog.png")
    assert await storage.page("w", limit=10) == []
